# SPDX-License-Identifier: GPL-2.0-or-later
"""Stops of a guest under control: why, where, and how it goes on."""

from __future__ import annotations

import enum
from typing import Any, Protocol

import attrs


class Why(enum.Enum):
    """Why the guest has stopped."""

    ENTRY = "a call begins"
    BREAKPOINT = "a breakpoint is reached"
    WATCHPOINT = "watched memory was accessed"
    STEP = "a step is done"
    FAULT = "it did what it may not do"
    RETURNED = "the call has returned"
    INTERRUPTED = "somebody asked it to stop"
    BEGINNING = "nothing of before is known"


class Resume(enum.Enum):
    """How the guest goes on.

    `STEP` is one instruction, whatever it takes: all of a repeated one, a branch with its delay
    slot, a kernel function that is Python. Where it raises an exception, or an interrupt comes, the
    next is the first of the vector. `GO_BACK` goes to where it was at `Control.aim`. `END` lets the
    call end there: it comes out as `Ended`. `DETACH` goes on and stops nowhere any more while this
    control is open.
    """

    CONTINUE = "continue"
    STEP = "step"
    STEP_BACK = "step back"
    CONTINUE_BACK = "continue back"
    GO_BACK = "go back"
    END = "end"
    DETACH = "detach"


class Ended(Exception):
    """A handler let the call end (`Resume.END`)."""


class Rewound(BaseException):
    """The call is to begin anew: nobody but who began it may catch this."""


class Seat(Protocol):
    """What executes."""

    @property
    def seat(self) -> int:
        """Number of the CPU."""
        ...

    @property
    def pc(self) -> int:
        """The next instruction."""
        ...

    def code(self, address: int, size: int) -> bytes:
        """Return up to so many bytes that stand at an address."""
        ...

    def general(self) -> tuple[int, ...]:
        """Return the registers that a program computes with."""
        ...

    def get(self, name: str, /) -> int:
        """Return a register."""
        ...

    def late(self) -> bool:
        """Return whether the next instruction takes the one behind it along (a delay slot)."""
        ...

    def cut(self) -> None:
        """Let the run under way end before its next instruction: from a hook."""
        ...


@attrs.frozen(kw_only=True)
class Event:
    """A stop, as far as who executes knows it.

    Parameters
    ----------
    why, pc, count
        As in `machine.control.Stopped`.
    accesses
        What was noted of watched memory.
    fault, result, reason
        Likewise.
    """

    why: Why
    pc: int
    count: int
    accesses: tuple[Any, ...] = ()
    fault: Exception | None = None
    result: int | None = None
    reason: str = ""


class Past(Protocol):
    """What is known of before."""

    def begin(self) -> None:
        """Let a call from outside begin."""
        ...

    def pass_by(self, seat: Any, /) -> None:
        """Take note of the guest where that is worth it."""
        ...

    def keep(self, seat: Any, /) -> None:
        """Take note of the guest as it is."""
        ...

    def reach(self) -> tuple[int, str]:
        """Return how far it can be gone back, and why no further; the count now for nowhere."""
        ...

    def before(self, count: int, /) -> int:
        """Return from where it can be run anew up to a count."""
        ...

    def back(self, seat: Any, count: int, /) -> None:
        """Go back to there; or raise `Rewound`, for whoever began the call to do it."""
        ...
