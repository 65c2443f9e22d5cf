# SPDX-License-Identifier: GPL-2.0-or-later
"""Breakpoints of a whole computer: who is told when an address is reached.

The guest's memory has nothing of them. A hook on the one instruction either ends the emulator's
run, after which guest code may be run in between, or calls who waits right there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import attrs
from unicorn import unicorn_const as uc_const


@attrs.frozen(eq=False)
class Break:
    """Somebody who is told when an address is reached.

    Parameters
    ----------
    handler
        Called before the instruction there; returns where to go on, or None for: right there.
    inside
        Whether it runs no guest code and lets no run end: then the emulator need not stop for it.
    order
        Those with lower numbers are called first, of equal ones who came first.
    looks
        Whether it only looks on: the guest goes on as if it had not stopped there.
    outside
        What it changes or tells outside of the guest, in words; empty: nothing that lasts.
    """

    handler: Callable[[], int | None]
    inside: bool = False
    order: int = 0
    looks: bool = False
    outside: str = ""


class Stage(Protocol):
    """The computer, as far as its breakpoints need it."""

    uc: Any

    @property
    def sp(self) -> int:
        """The stack pointer."""
        ...

    def ends(self) -> bool:
        """Return whether the run is to end."""
        ...

    def left(self, at: int, /) -> None:
        """Note that the block under way was left at an address."""
        ...

    def happened(self, what: str, /) -> None:
        """Take note of something that a run made anew would do once more."""
        ...

    def go_to(self, address: int, /) -> None:
        """Let the emulator go on at an address, from a hook."""
        ...

    def fail(self, error: BaseException, /) -> None:
        """Let the run end, from a hook, and raise an exception."""
        ...


class Breaks:
    """The breakpoints of a computer.

    Parameters
    ----------
    stage
        The computer.
    anew
        Lets the blocks of [start, end) be translated again, so that hooks reach them.

    `at` is the one that stopped the run; None: something else did.
    """

    def __init__(self, stage: Stage, anew: Callable[[int, int], None]) -> None:
        self._stage = stage
        self._anew = anew
        self._waiting: dict[int, tuple[Break, ...]] = {}
        self._handles: dict[int, Any] = {}
        self._inside: set[int] = set()  # addresses for which the emulator does not stop
        # To be gone on from: address and stack, as an interrupt may come first, and get there too.
        self._passing: set[tuple[int, int]] = set()
        self.at: int | None = None

    def add(self, address: int, made: Break) -> Break:
        """Let somebody wait for an address."""
        waiting = (*self._waiting.get(address, ()), made)
        self._waiting[address] = tuple(sorted(waiting, key=lambda each: each.order))
        self._note_inside(address)
        if address not in self._handles:
            self._handles[address] = self._stage.uc.hook_add(
                uc_const.UC_HOOK_CODE, self._reached, None, address, address
            )
            self._anew(address, address + 1)
        return made

    def add_inside(
        self, handlers: Iterable[tuple[int, Callable[[], int | None]]], order: int
    ) -> Callable[[], None]:
        """Let handlers that need no stop wait for their addresses, until the result is called."""
        made = [(at, self.add(at, Break(handler, True, order))) for at, handler in handlers]

        def end() -> None:
            for at, each in made:
                self.remove(at, each)

        return end

    def remove(self, address: int, made: Break | None = None) -> None:
        """Let one wait no longer, or all; nothing where nobody waits."""
        waiting = self._waiting.get(address, ())
        left = tuple(each for each in waiting if made is not None and each is not made)
        if left:
            self._waiting[address] = left
            self._note_inside(address)
            return
        self._waiting.pop(address, None)
        self._inside.discard(address)
        handle = self._handles.pop(address, None)
        if handle is not None:
            self._stage.uc.hook_del(handle)
            self._anew(address, address + 1)

    def tell(self, address: int) -> int | None:
        """Call who waits for an address; return where to go on, or None for: right there."""
        for each in self._waiting.get(address, ()):
            if each in self._waiting.get(address, ()):  # not taken away by one before it
                if each.outside:
                    self._stage.happened(each.outside)
                to = each.handler()
                if to is not None or self._stage.ends():
                    return to
        return None

    def is_looked_at(self, address: int) -> bool:
        """Return whether all who wait for an address only look on."""
        return all(each.looks for each in self._waiting.get(address, ()))

    def go_on(self, address: int) -> None:
        """Let the next run begin with the instruction at an address, and tell nobody."""
        if address in self._handles:
            self._passing.add((address, self._stage.sp))

    @property
    def passing(self) -> frozenset[tuple[int, int]]:
        """What is to be gone on from: address and stack."""
        return frozenset(self._passing)

    @passing.setter
    def passing(self, passing: frozenset[tuple[int, int]]) -> None:
        self._passing = set(passing)

    def forget(self) -> None:
        """Forget what was to be gone on from: the computer is another now."""
        self._passing.clear()

    def _note_inside(self, address: int) -> None:
        if all(each.inside for each in self._waiting[address]):
            self._inside.add(address)
        else:
            self._inside.discard(address)

    def _reached(self, uc: Any, address: int, _size: int, _data: object) -> None:
        if self._passing:
            here = address, self._stage.sp
            if here in self._passing:
                self._passing.discard(here)
                return
        if address in self._inside:
            try:
                to = self.tell(address)
            except BaseException as error:  # noqa: BLE001 -- raised again when the run has ended
                self._stage.left(address)
                self._stage.fail(error)
                return
            if to is not None:
                self._stage.left(address)
                self._stage.go_to(to)
        elif address in self._waiting:
            self.at = address
            self._stage.left(address)
            uc.emu_stop()
