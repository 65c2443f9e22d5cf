# SPDX-License-Identifier: GPL-2.0-or-later
"""The record that describes an architecture, made of levels (`archs.levels`).

Everything that makes one architecture different stands in one file as one value of
this record; no other package asks for an architecture's name. An absent capability is
None, and code asks for the capability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.errors import ExecmemError
from allocator.types import TextPoke
from archs.environment import Boot, Environment
from archs.levels.link import Link
from archs.levels.load import Erratum, Load, Plt
from archs.levels.patch import LivePatch, Patch
from archs.levels.run import Run
from archs.text import TextPatching

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Index = NDArray[np.intp]


@attrs.frozen(kw_only=True)
class Entry:
    """One form of the room that a compiler leaves for the function tracer.

    Parameters
    ----------
    code
        What may stand from an address of the table on: bytes, and which of their bits count.
    function
        Where the function may begin, counted from that address; empty: anywhere.
    align
        What the address must be a multiple of.
    calls
        The kernel's symbol that the branch at the address must lead to; empty: none.
    idle
        Returns what is written while nothing is traced, given the addresses and the kernel's
        symbols: bytes from the address on, and code (a row for each address).
    """

    code: tuple[tuple[bytes, bytes], ...]
    function: tuple[int, ...] = ()
    align: int = 1
    calls: str = ""
    idle: Callable[[U64, Mapping[str, int]], tuple[tuple[int, U8], ...]]


def exactly(*codes: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return codes of which every bit counts."""
    return tuple((code, b"\xff" * len(code)) for code in codes)


def same(at: int, code: bytes) -> Callable[[U64, Mapping[str, int]], tuple[tuple[int, U8], ...]]:
    """Return what writes the same code at every address, so many bytes behind it."""
    row = np.frombuffer(code, np.uint8)
    return lambda sites, _symbols: ((at, np.broadcast_to(row, (sites.size, row.size))),)


@attrs.frozen(kw_only=True)
class Ftrace:
    """The sites of the function tracer, and what stands there while nothing is traced.

    Parameters
    ----------
    section
        Table of the sites' addresses.
    entries
        The forms that a site may have. Where the function's symbol does not tell one from
        another, the first of those that most sites of a module have is taken.
    trampolines
        Sections of one PLT entry each, through which sites reach `tracer` when it is far.
    tracer
        The kernel's symbol.
    """

    section: str
    entries: tuple[Entry, ...]
    trampolines: tuple[str, ...] = ()
    tracer: str = ""


@attrs.frozen(kw_only=True)
class SameSize:
    """Alternatives whose replacement is as long as what it replaces.

    Parameters
    ----------
    section
        The table.
    entry
        Its entries: `place` and `replacement` (self-relative words), `length` in bytes, and
        what else decides.
    wanted
        Returns which entries apply to a CPU with the given features, in the order to apply.
    moved
        Returns code that ran at the first address as it must read at the second.
    callback
        Returns which entries name a kernel function, instead of code, as their replacement.
    callbacks
        What the kernel's functions write, by symbol, given the length.
    """

    section: str
    entry: np.dtype[np.void]
    wanted: Callable[[NDArray[np.void], frozenset[str]], NDArray[np.intp]]
    moved: Callable[[bytes, int, int], bytes]
    callback: Callable[[NDArray[np.void]], NDArray[np.bool_]] = lambda entries: np.zeros(
        entries.size, np.bool_
    )
    callbacks: Mapping[str, Callable[[int], bytes]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class VariableSize:
    """Alternatives where instructions differ in size, and NOPs fill what is left (x86-64).

    Parameters
    ----------
    filler
        The shortest NOP.
    moved
        Returns code that stood at the first address as it must read at the second; the last
        number is how many bytes of it the replacement has, the rest is filler.
    packed
        Returns code with its NOPs put together.
    direct_call
        Returns the replacement of an indirect call by a direct one, given the call, its
        address, what stands there for the replacement, and the environment; None where
        nobody knows what the pointer holds.
    """

    filler: bytes
    moved: Callable[[bytes, int, int, int], bytes]
    packed: Callable[[bytes], bytes]
    direct_call: Callable[[bytes, int, bytes, Environment], bytes | None]


@attrs.frozen(kw_only=True)
class Thunks:
    """Branches through thunks that mitigations rewrite, and how (x86-64).

    Places and targets are arrays of addresses, code is an array with a row per place.

    Parameters
    ----------
    longest
        Bytes of the longest direct branch.
    length
        Returns the lengths of the direct branches that rows of code begin with; 0 for others.
    targets
        Returns where the direct branches go.
    aim
        Returns the same branches, aimed at other targets.
    registers
        Symbols of the indirect thunks, by register number.
    indirect
        Returns what takes the place of branches (rows of one length) to the thunks of
        registers, given their places; None where they stay.
    returns
        Returns the code that takes the place of return branches.
    padding
        Returns the bodies of the call thunks in front of functions at the places.
    filler
        What the padding in front of a function holds until then.
    is_call, call_size
        Which rows of code are direct calls of that size, the only ones that are counted.
    untracked
        Functions whose callers are not tracked.
    """

    longest: int
    length: Callable[[U8], Index]
    targets: Callable[[U8, U64], U64]
    aim: Callable[[U8, U64, U64], U8]
    registers: tuple[str, ...]
    indirect: Callable[[U8, U64, U64, Environment], U8 | None]
    returns: Callable[[U64, Environment], U8]
    padding: Callable[[U64, Environment], U8]
    filler: int
    is_call: Callable[[U8], NDArray[np.bool_]]
    call_size: int
    untracked: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Finalisation:
    """What the kernel does to a module between relocation and init.

    Parameters
    ----------
    order
        Names of the mechanisms (`loader.finalize.MECHANISMS`), in the kernel's order.
    environment
        Returns what a boot means for modules.
    features
        Feature -> number in the module's tables.
    ftrace
        Sites of the function tracer.
    static_call
        Returns the code of static call sites, given the code before, the places, the functions
        (0: none), which are tail calls, and the environment.
    thunks
        Branches that mitigations rewrite.
    same_size, variable_size
        Alternatives, where instructions have one size or several.
    extable_handlers
        Whether an entry of an exception table named a handler, before Linux 5.16.
    """

    order: tuple[str, ...]
    environment: Callable[[Boot], Environment] | None = None
    features: Mapping[str, int] = attrs.field(factory=dict, repr=False)
    ftrace: Ftrace | None = None
    static_call: Callable[[U8, U64, U64, NDArray[np.bool_], Environment], U8] | None = None
    thunks: Thunks | None = None
    same_size: SameSize | None = None
    variable_size: VariableSize | None = None
    extable_handlers: bool = False


@attrs.define(auto_exc=True, str=False)
class LevelMissing(ExecmemError, ValueError):
    """Something needs a level that an architecture does not have."""

    arch: str
    level: str
    lacks: str

    def __str__(self) -> str:
        return f"{self.arch} has no level {self.level!r}: {self.lacks} is not known of it"


@attrs.frozen(kw_only=True)
class Arch:
    """One architecture, as levels. Adding one: a file that ends in such a record, and a line.

    Each level is a record of its own, and makes the next set of registry-parametrised tests
    pass; without it, what needs it says so by name.

    Parameters
    ----------
    name, aliases
        The name used everywhere, and the ones accepted besides.
    title
        The manufacturer's spelling, for people.
    machine
        `e_machine` of its modules.
    link
        *links*: what relocations mean.
    load
        *loads*: where modules may lie. Code that cannot do without asks for `loads`.
    run
        *runs*: calling convention and emulated CPU. Code that cannot do without asks for `runs`.
    patch
        *pokes and traces*: how finished text is written; None: it never is.
    finalisation
        *finalises*: what the kernel edits in a module before its init runs; None: nothing.
    """

    name: str
    aliases: tuple[str, ...] = ()
    title: str
    machine: int
    link: Link
    load: Load | None = None
    run: Run | None = None
    patch: Patch | None = None
    finalisation: Finalisation | None = None

    @property
    def loads(self) -> Load:
        """The level that loading needs; LevelMissing where there is none."""
        if self.load is None:
            raise LevelMissing(self.name, "load", "where its modules may lie")
        return self.load

    @property
    def runs(self) -> Run:
        """The level that running needs; LevelMissing where there is none."""
        if self.run is None:
            raise LevelMissing(self.name, "run", "how its functions are called")
        return self.run

    # What an absent level has none of.

    @property
    def plt(self) -> Plt | None:
        """Stubs for branches that do not reach."""
        return None if self.load is None else self.load.plt

    @property
    def got_section(self) -> str | None:
        """Section of the global offset table."""
        return None if self.load is None else self.load.got_section

    @property
    def errata(self) -> Mapping[str, Erratum]:
        """CPU errata that the loader can work around, by number."""
        return {} if self.load is None else self.load.errata

    @property
    def text_poke(self) -> TextPoke | None:
        """How finished text is written."""
        return None if self.patch is None else self.patch.text_poke

    @property
    def live_patch(self) -> LivePatch | None:
        """How text is written that may be executed meanwhile."""
        return None if self.patch is None else self.patch.live

    @property
    def patching(self) -> TextPatching | None:
        """The instructions of static keys, static calls, ftrace and kprobes."""
        return None if self.patch is None else self.patch.text
