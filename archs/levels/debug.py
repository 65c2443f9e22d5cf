# SPDX-License-Identifier: GPL-2.0-or-later
"""The level *is debugged*: what a debugger calls the registers, and how calls look on a stack.

The names of features and registers are those that gdb looks for (its manual, appendix
"Standard Target Features"); a register that is no part of them shows under a feature of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.versions import Version

ZERO = "0"  # source of a register that always holds 0
VECTOR = "vector128"  # a type of every description: 128 bits, seen as any element


@attrs.frozen
class Register:
    """A register as a debugger sees it.

    Parameters
    ----------
    name
        The debugger's.
    bits
        Of it.
    source
        The emulator's name, lower case; empty: the debugger's; None: the emulator does not
        tell it, and the debugger is told so; `ZERO`: it holds nothing.
    type
        One of gdb's types; empty: a number of its width.
    group
        Which of `info registers`' groups it is in, where its type does not tell.
    """

    name: str
    bits: int = 64
    source: str | None = ""
    type: str = ""
    group: str = ""


@attrs.frozen
class Feature:
    """Registers that a debugger looks for together.

    Parameters
    ----------
    name
        What gdb calls it.
    registers
        In gdb's order.
    """

    name: str
    registers: Sequence[Register]


@attrs.frozen(kw_only=True)
class Sleeping:
    """Where the registers are of a task that does not run.

    Parameters
    ----------
    registers
        Debugger's name of a register -> member of `struct task_struct`.
    pointer
        Member that points at the rest, which lies on the task's stack; empty: there is none.
    frame
        Structure there, whose members `framed` names.
    framed
        Debugger's name of a register -> member of that.
    """

    registers: Mapping[str, str] = attrs.field(factory=dict)
    pointer: str = ""
    frame: str = ""
    framed: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Frames:
    """Where functions have their callers' frames, row by row: each from its address to the next.

    A frame begins where the stack pointer is when the function returns.

    Parameters
    ----------
    address
        Of the first instruction, ascending.
    known
        Whether the caller is known there.
    register
        Number (DWARF's) of the register that the frame counts from.
    offset
        Bytes from there to the frame's begin.
    pointer
        Bytes from the frame's begin to the caller's frame pointer; 0: it is where it was.
    back
        The same of the return address.
    """

    address: NDArray[np.uint64]
    known: NDArray[np.bool_]
    register: NDArray[np.uint8]
    offset: NDArray[np.int64]
    pointer: NDArray[np.int64]
    back: NDArray[np.int64]


@attrs.frozen(kw_only=True)
class Unwind:
    """How frames are found where a debugger does not find them by itself.

    Parameters
    ----------
    pointer, unknown
        DWARF's numbers of the frame pointer, and of registers of a caller that nobody knows.
    sections, symbols
        Tables that the kernel's own unwinder goes by: sections of a module, symbols around the
        same in the kernel, two each; addresses, and what they say.
    tables
        Returns what such tables say: given the bytes of both, where the first lies, and the
        version. None: there are none.
    scan
        Returns what code says, given it, where it lies, and the addresses where functions begin.
        None: it is not asked.
    """

    pointer: int
    unknown: tuple[int, ...] = ()
    sections: tuple[str, str] = ("", "")
    symbols: tuple[tuple[str, str], ...] = ()
    tables: Callable[[bytes, bytes, int, Version], Frames] | None = None
    scan: Callable[[bytes, int, NDArray[np.uint64]], Frames] | None = None


@attrs.frozen(kw_only=True)
class Debug:
    """What a debugger is told of an architecture.

    Parameters
    ----------
    architecture
        What gdb calls it.
    features
        Registers, all that it needs first.
    system
        Feature of the system's registers, as far as control lists such.
    counter, stack
        What the debugger calls program counter and stack pointer.
    columns
        DWARF's numbers of what holds return addresses, and of the stack pointer.
    sleeping
        Registers of a task that does not run; None: not known.
    firsts
        Functions of the kernel that tasks begin in: nobody has called them.
    unwind
        How frames are found; None: the debugger finds them by itself.
    """

    architecture: str
    features: Sequence[Feature]
    system: str
    counter: str
    stack: str
    columns: tuple[int, int]
    sleeping: Sleeping | None = None
    firsts: tuple[str, ...] = ()
    unwind: Unwind | None = None
