# SPDX-License-Identifier: GPL-2.0-or-later
"""Control of what the guest executes: stop at an instruction, look, go on, go back.

`Machine.control(handler)` is a context manager. While it is open, each call into the guest stops
at its first instruction, at breakpoints and watchpoints, after steps, where the guest does what
it may not do, and when it has returned. At each stop the handler is called, there and then, while
the emulator executes nothing: it looks at registers and memory, changes them, and says how to go
on. Calls may nest (a kernel function that is Python calls guest code), and so do stops.

Nothing of it is in the guest: breakpoints are not in memory, and time does not pass while a
handler thinks.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs

from emulator.stops import Ended, Resume, Why
from machine.watching import Touch


@attrs.frozen(kw_only=True)
class Stopped:
    """Where the guest has stopped.

    What handlers have changed is changed again where the guest comes to that place once more.

    Parameters
    ----------
    why
        The reason.
    pc
        The next instruction, not executed yet. At `RETURNED` it is where calls return to, at
        `FAULT` the one that failed.
    function
        Address of the function that was called from outside.
    depth
        How many guest functions are under way, one called from the other through Python; 1 is
        the one from outside.
    count
        Instructions since that one began.
    cpu
        Number of the CPU.
    accesses
        At `WATCHPOINT`: what the instruction before `pc` accessed of what is watched.
    fault
        At `FAULT`: what comes out of the call if it goes on.
    result
        At `RETURNED`: the register of the result.
    origin
        At `FAULT`: the `count` of the instruction that it comes from, for `Resume.GO_BACK`; None
        where that is not known. A booted kernel stops where it gives the process up.
    reason
        At `BEGINNING`: why there is no going back further.
    """

    why: Why
    pc: int
    function: int
    depth: int = 1
    count: int = 0
    cpu: int = 0
    accesses: tuple[Touch, ...] = ()
    fault: Exception | None = None
    result: int | None = None
    origin: int | None = None
    reason: str = ""


@attrs.frozen
class Register:
    """A register that can be asked for.

    Parameters
    ----------
    name
        By the emulator's name, in lower case; of system registers the architecture's.
    bits
        Its width.
    group
        `general`, `float`, `vector` or `system`.
    """

    name: str
    bits: int
    group: str


class Control(abc.ABC):
    """A guest under control; all of it may be used while it has stopped, and before it starts.

    `poll`, where it is set, is called several times a second while the guest runs; where it returns
    True, the guest stops (`Why.INTERRUPTED`). `aim` is where `Resume.GO_BACK` goes: a `count` of the
    same call.
    """

    poll: Callable[[], bool] | None
    aim: int

    # Breakpoints ----------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def breakpoints(self) -> frozenset[int]:
        """The addresses at which the guest stops."""

    @abc.abstractmethod
    def break_at(self, address: int) -> None:
        """Stop before the instruction at an address; nothing where that is so already."""

    @abc.abstractmethod
    def unbreak(self, address: int) -> None:
        """Stop there no longer; nothing where there is no breakpoint."""

    @abc.abstractmethod
    def watch(self, address: int, size: int, kind: str = "w") -> None:
        """Stop after instructions that access memory, to the byte.

        Parameters
        ----------
        address, size
            What is watched, in bytes. What counts is the physical memory that is there now, by
            whatever address it is accessed.
        kind
            `r` loads, `w` stores, `rw` both.

        Raises
        ------
        BadCall
            Nothing is mapped there, or the kind is none.
        """

    @abc.abstractmethod
    def unwatch(self, address: int, size: int, kind: str = "w") -> None:
        """Stop after them no longer; nothing where that is not watched."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Let the guest stop before its next instruction, or soon after; from any thread."""

    # Registers and memory -------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def registers(self) -> Mapping[str, Register]:
        """The registers that there are, by name; the program counter among them."""

    @abc.abstractmethod
    def get(self, name: str) -> int:
        """Return a register of the CPU that has stopped; BadCall where there is none such.

        By any name that the emulator has for it: `x10` and `a0`.
        """

    @abc.abstractmethod
    def set(self, name: str, value: int) -> None:
        """Set a register; BadCall where there is none such, or it cannot be set."""

    @property
    @abc.abstractmethod
    def pc(self) -> int:
        """The next instruction."""

    @pc.setter
    @abc.abstractmethod
    def pc(self, address: int) -> None: ...

    @abc.abstractmethod
    def read(self, address: int, size: int) -> bytes:
        """Return memory as the guest has it, whatever it may do there; BadCall where none is."""

    @abc.abstractmethod
    def write(self, address: int, data: bytes) -> None:
        """Store in memory, whatever the guest may do there; BadCall where none is.

        Where code is stored it is executed from now on.
        """

    @property
    @abc.abstractmethod
    def cpus(self) -> int:
        """How many CPUs there are."""

    @property
    @abc.abstractmethod
    def history(self) -> str:
        """Why the guest cannot be gone back with; empty: it can."""


Handler: TypeAlias = Callable[[Stopped, Control], Resume]

__all__ = ["Control", "Ended", "Handler", "Register", "Resume", "Stopped", "Touch", "Why"]
