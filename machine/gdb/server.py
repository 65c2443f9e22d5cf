# SPDX-License-Identifier: GPL-2.0-or-later
"""What lets a debugger that connects have the guest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from machine.control import Control, Resume, Stopped
from machine.face import Machine
from machine.gdb.booted import BootedSubject
from machine.gdb.listening import LOOPBACK, Listening, Place
from machine.gdb.modelled import ModelledSubject
from machine.gdb.session import Session
from machine.gdb.starting import AtInit, Begins, at_function, first_call
from machine.gdb.subject import Subject
from machine.gdb.wire import Lost
from machine.machine import ModelledMachine


def subject_of(machine: Machine) -> Subject:
    """Return what a debugger is shown of a machine."""
    if isinstance(machine, ModelledMachine):
        return ModelledSubject(machine)
    from machine.booted.machine import BootedMachine

    assert isinstance(machine, BootedMachine)
    return BootedSubject(machine)


class Server:
    """Waits for a debugger, and lets it have the guest: a context manager.

    Calls into the guest that are made inside of the `with` block are debugged. The first waits
    for a debugger to connect, and stops where it begins; the others stop where the debugger wants.
    Once it has detached, or is gone, nothing stops any more.

    Parameters
    ----------
    machine
        The machine.
    port
        Of this host; 0: any that is free.
    path
        A socket in the file system instead, which this user alone may use.
    host
        An address of this host. Whoever can reach it gets the guest, and so far it is asked for by name.
    place
        Where else debuggers connect, instead of all that.
    at, init
        Where a debugger gets the guest first, if not where the first call begins: a function's
        address, or the name of a module that is going to be loaded, for its init.
    on_wait, while_waiting
        Called when a debugger is going to be waited for, and several times a second until it comes.

    `port` is the one that it listens at; 0 for a socket in the file system.

    Raises
    ------
    CannotListen
        The port is taken, the address is none of this host, the path is there already.
    """

    def __init__(
        self,
        machine: Machine,
        port: int = 0,
        *,
        path: str | Path | None = None,
        host: str = LOOPBACK,
        place: Place | None = None,
        at: int | None = None,
        init: str = "",
        on_wait: Callable[[Server], object] | None = None,
        while_waiting: Callable[[], object] | None = None,
    ) -> None:
        self.machine = machine
        self.subject = subject_of(machine)
        self._begins: Begins = first_call if at is None else at_function(at)
        if init:
            self._begins = AtInit(self.subject, init)
        self._place = Listening(port, path=path, host=host) if place is None else place
        self.port = self._place.port
        self._on_wait, self._while_waiting = on_wait, while_waiting
        self._session: Session | None = None
        self._free = False
        self._status = 0
        self._open = ExitStack()

    # Where --------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where it listens, as gdb's `target remote` takes it."""
        return self._place.address

    @property
    def was_connected(self) -> bool:
        """Whether a debugger has had the guest."""
        return self._session is not None

    @property
    def connected(self) -> bool:
        """Whether a debugger has the guest."""
        return self._session is not None and not self._free

    # While it is open -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.close)
            control = stack.enter_context(self.machine.control(self._stopped))
            control.poll = self._wanted
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._session is not None and not self._free:
            with suppress(Lost):
                self._session.over(self._status if kind is None else self._status or 1)
        self._open.close()

    def close(self) -> None:
        """Wait for nobody any more."""
        if self._session is not None:
            self._session.link.close()
        self._place.close()

    def ends_with(self, status: int) -> None:
        """Let the debugger be told, at the end, that the program has exited with a number."""
        self._status = status

    # What control asks ----------------------------------------------------------------------------

    def _stopped(self, stopped: Stopped, control: Control) -> Resume:
        if self._free:
            return Resume.DETACH
        if self._session is None:
            if not self._begins(stopped, control):
                return Resume.CONTINUE
            if self._on_wait is not None:
                self._on_wait(self)
            self._session = Session(self._place.wait(self._while_waiting), self.subject)
        try:
            found = self._session.stop(stopped, control)
        except Lost:
            found = Resume.DETACH
        if found in (Resume.DETACH, Resume.END):
            self._free = True
            for address in control.breakpoints:
                control.unbreak(address)
        return found

    def _wanted(self) -> bool:
        """Return whether the debugger wants the guest to stop, or is gone."""
        if self._session is None or self._free:
            return False
        try:
            return self._session.link.interrupted()
        except Lost:
            self._free = True
            return True
