# SPDX-License-Identifier: GPL-2.0-or-later
"""Where debuggers connect: a port of this host, or a socket in its file system.

Who may connect may do everything to the guest, and read what the guest holds. So nothing but this
host is listened to, unless an address is asked for by name.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Self

import attrs

from allocator.errors import ExecmemError
from machine.control import Control, Resume, Stopped
from machine.face import Machine
from machine.gdb.booted import BootedSubject
from machine.gdb.modelled import ModelledSubject
from machine.gdb.session import Session
from machine.gdb.starting import AtInit, Begins, at_function, first_call
from machine.gdb.subject import Subject
from machine.gdb.wire import Link, Lost
from machine.machine import ModelledMachine

LOOPBACK = "127.0.0.1"
_PRIVATE = 0o600
_PATIENCE = 0.2  # seconds


@attrs.define(auto_exc=True, str=False)
class CannotListen(ExecmemError):
    """A place that nobody can be waited for at.

    Parameters
    ----------
    where
        The place.
    reason
        Why.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


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
        self._path = None if path is None else Path(path)
        self._host = host
        self._listener = _listen(port, host) if self._path is None else _listen_at(self._path)
        self.port = 0 if self._path is not None else int(self._listener.getsockname()[1])
        self._on_wait, self._while_waiting = on_wait, while_waiting
        self._session: Session | None = None
        self._free = False
        self._status = 0
        self._open = ExitStack()

    # Where --------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where it listens, as gdb's `target remote` takes it."""
        if self._path is not None:
            return str(self._path)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self.port}"

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
        self._listener.close()
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()

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
            self._session = Session(self._wait(), self.subject)
        try:
            found = self._session.stop(stopped, control)
        except Lost:
            found = Resume.DETACH
        if found in (Resume.DETACH, Resume.END):
            self._free = True
            for address in control.breakpoints:
                control.unbreak(address)
        return found

    def _wait(self) -> Link:
        if self._on_wait is not None:
            self._on_wait(self)
        while not select.select([self._listener], [], [], _PATIENCE)[0]:
            if self._while_waiting is not None:
                self._while_waiting()
        connection, _ = self._listener.accept()
        if self._path is None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Link(connection, self._listener, self._refuse)

    def _refuse(self) -> None:
        """Let nobody wait who connects while a debugger has the guest."""
        with suppress(OSError):
            self._listener.accept()[0].close()

    def _wanted(self) -> bool:
        """Return whether the debugger wants the guest to stop, or is gone."""
        if self._session is None or self._free:
            return False
        try:
            return self._session.link.interrupted()
        except Lost:
            self._free = True
            return True


def _listen(port: int, host: str) -> socket.socket:
    where = f"{host}:{port}"
    if not 0 <= port < 1 << 16:
        raise CannotListen(where, "a port is a number from 0 to 65535")
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        raise CannotListen(where, "no address: expected one such as 127.0.0.1") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise CannotListen(where, error.strerror or str(error)) from None
    return listener


def _listen_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            _drop_left(path)
    except OSError:
        pass  # nothing is there
    try:
        before = os.umask(0o777 & ~_PRIVATE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(1)
    except OSError as error:
        listener.close()
        reason = "is there already" if path.exists() else error.strerror or str(error)
        raise CannotListen(str(path), reason) from None
    return listener


def _drop_left(path: Path) -> None:
    """Take a socket away that nobody listens at any more."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink()
    finally:
        probe.close()
