# SPDX-License-Identifier: GPL-2.0-or-later
"""The level *pokes and traces*: how finished text is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from allocator.types import TextPoke
from archs.text import Guest, TextPatching

Emulator: TypeAlias = Callable[[int, Guest], None]


@attrs.frozen(kw_only=True)
class LivePatch:
    """How an instruction is replaced that another CPU may be executing.

    Parameters
    ----------
    name
        The kernel functions that do it.
    concurrent
        Returns whether new bytes may simply be written over old ones meanwhile (old, new).
    rule
        When that is so, in words that complete "other CPUs may be executing it: ...".
    jump
        Returns the instruction (place, target) that only jumps, or None out of its reach.
    breakpoint
        Written over the first byte until the rest is; None: all CPUs are stopped instead.
    emulator
        Returns what does the new instruction's work, at its address, for a CPU that met the
        breakpoint; None where the breakpoint's handler does not know the instruction.
    emulates
        What the handler knows, in words.
    maintenance
        Instructions of the CPU that has written, before the others are made to fetch anew: each
        works on what those before it are through with.
    """

    name: str
    concurrent: Callable[[bytes, bytes], bool]
    rule: str
    jump: Callable[[int, int], bytes | None]
    breakpoint: bytes | None = None
    emulator: Callable[[bytes], Emulator | None] = lambda _new: None
    emulates: str = ""
    maintenance: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Patch:
    """How finished text is written.

    Parameters
    ----------
    text_poke
        How one poke is done (`Emulation.copy` has the function that stores).
    live
        How text is written that may be executed meanwhile; None: it is not.
    text
        The instructions of static keys, static calls, ftrace and kprobes; None: there are none.
    """

    text_poke: TextPoke
    live: LivePatch | None = None
    text: TextPatching | None = None
