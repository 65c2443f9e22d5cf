# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call from outside may take, whatever runs inside of it.

A call brings a lot with it: init functions of dependencies, callbacks, timers, work, threads,
the kernel's own work for the guest. All of it takes from one budget, so that nothing can be
moved to where nobody counts. A part may be given less than the whole, never more.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import attrs
import unicorn


@attrs.define(eq=False)
class Budget:
    """Instructions that may still be executed, and the moment at which time is over.

    Parameters
    ----------
    instructions, seconds
        The limits as they were given; None: there is none.
    left
        Instructions that are left.
    deadline
        On the monotonic clock.
    whole
        What this is a part of.
    """

    instructions: int | None = None
    seconds: float | None = None
    left: int | None = None
    deadline: float | None = None
    whole: Budget | None = None

    @classmethod
    def of(cls, instructions: int | None, seconds: float | None) -> Budget:
        """Return a whole budget, whose time begins now."""
        deadline = None if seconds is None else time.monotonic() + seconds
        return cls(instructions, seconds, instructions, deadline)

    def part(self, instructions: int | None, seconds: float | None) -> Budget:
        """Return the budget of a part: the given limits, and no more than what is left here."""
        made = self.of(instructions, seconds)
        made.whole = self
        if self.left is not None and (made.left is None or self.left < made.left):
            made.instructions, made.left = self.instructions, self.left
        if self.deadline is not None and (made.deadline is None or self.deadline < made.deadline):
            made.seconds, made.deadline = self.seconds, self.deadline
        return made

    def take(self, instructions: int) -> None:
        """Pay for instructions, here and in what this is a part of."""
        paying: Budget | None = self
        while paying is not None:
            if paying.left is not None:
                paying.left -= instructions
            paying = paying.whole

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return self.deadline is not None and time.monotonic() >= self.deadline


DEFAULT = -1  # a limit that was not given
SECONDS = 60.0
INSTRUCTIONS: int | None = None  # counting them costs ten times the execution
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _nothing() -> None:
    return


@attrs.define(eq=False)
class Limits:
    """The budget that counts now, for all CPUs of a machine; outside of calls it has no limits.

    Parameters
    ----------
    instructions, seconds
        What a call from outside may take that is not given other limits.
    """

    instructions: int | None = INSTRUCTIONS
    seconds: float | None = SECONDS
    budget: Budget = attrs.field(factory=Budget)
    depth: int = 0  # budgets that are open, one inside the other
    pay: Callable[[], None] = _nothing  # for what the CPU under way has executed so far

    def enter(self, instructions: int | None, seconds: float | None) -> Budget:
        """Let a part begin; what it returns is for `leave`."""
        outer = self.budget
        self.depth += 1
        if instructions is not None or seconds is not None:
            self.pay()
            self.budget = outer.part(instructions, seconds)
        return outer

    def given(
        self, instructions: int | None, seconds: float | None
    ) -> tuple[int | None, float | None]:
        """Return limits: those given; else those of a call from outside, if this is one."""
        if instructions == DEFAULT:
            instructions = None if self.depth else self.instructions
        if seconds == DEFAULT:
            seconds = None if self.depth else self.seconds
        return instructions, seconds

    @contextmanager
    def whole(
        self, instructions: int | None = DEFAULT, seconds: float | None = DEFAULT
    ) -> Iterator[Budget]:
        """Let everything meanwhile take from one budget."""
        outer = self.enter(*self.given(instructions, seconds))
        try:
            yield self.budget
        finally:
            self.leave(outer)

    def leave(self, outer: Budget) -> None:
        """Let a part end."""
        self.budget = outer
        self.depth -= 1

    @contextmanager
    def apart(self, seconds: float) -> Iterator[None]:
        """Let what the guest does not pay for happen, in its own time."""
        self.pay()
        outer, self.budget = self.budget, Budget.of(None, seconds)
        self.depth += 1
        try:
            yield
        finally:
            self.leave(outer)


def one_budget(limits: Callable[[Any], Limits]) -> Callable[[_Method], _Method]:
    """Return what lets everything that a method runs take from one budget.

    Parameters
    ----------
    limits
        Returns the limits of the method's object.
    """

    def decorate(method: _Method) -> _Method:
        @functools.wraps(method)
        def limited(self: object, *args: object, **kwargs: object) -> object:
            with limits(self).whole():
                return method(self, *args, **kwargs)

        return cast("_Method", limited)

    return decorate


class Counter:
    """How many instructions Unicorn has executed since its last start.

    It counts them where it was given a limit, and does not tell. The count stands in front of
    the limit in its own state; where it stands there is found out by setting two limits, once.
    """

    SEARCHED = 4096  # bytes of Unicorn's state
    _offset: int | None = None
    _sought = False

    def __init__(self, uc: unicorn.Uc) -> None:
        self._uc = uc
        self._count: ctypes.c_uint64 | None = None

    def find(self, at: int) -> None:
        """Look for the count; starting at `at` and ending there executes nothing."""
        if not Counter._sought:
            Counter._sought = True
            Counter._offset = self._search(at)
        if Counter._offset is not None:
            self._count = ctypes.c_uint64.from_address(self._state + Counter._offset)

    @property
    def found(self) -> bool:
        """Whether there is a count that can be read."""
        return self._count is not None

    def read(self, most: int) -> int:
        """Return the instructions since the last start, which was given the limit `most`."""
        # Unicorn stops before the one beyond the limit, and has counted it. Without a count
        # all of them are taken as executed: never less than there were.
        return most if self._count is None else min(self._count.value, most)

    @property
    def value(self) -> int:
        """The count: in a hook, of instructions that have begun."""
        assert self._count is not None
        return self._count.value

    def limit(self, more: int) -> None:
        """Let Unicorn stop after so many instructions more, from a hook or between slices."""
        assert self._count is not None
        assert Counter._offset is not None
        most = ctypes.c_uint64.from_address(self._state + Counter._offset + 8)
        most.value = self._count.value + more

    @property
    def _state(self) -> int:
        return int(self._uc._uch.value)  # noqa: SLF001 -- the handle is the state

    def _search(self, at: int) -> int | None:
        places: set[int] | None = None
        for limit in (0x0123_4567_89AB, 0x0246_8ACE_1357):
            with suppress(unicorn.UcError):  # nothing may be mapped there
                self._uc.emu_start(at, at, count=limit)
            found = set()
            for offset in range(8, self.SEARCHED, 8):
                if ctypes.c_uint64.from_address(self._state + offset).value == limit:
                    before = ctypes.c_uint64.from_address(self._state + offset - 8).value
                    if before == 0:
                        found.add(offset - 8)
                    break
            places = found if places is None else places & found
        return places.pop() if places else None
