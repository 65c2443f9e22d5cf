# SPDX-License-Identifier: GPL-2.0-or-later
"""The level *links*: what relocations mean, and the instructions that they fill."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import attrs

from allocator.types import Interval, size_text
from archs.dialect import NATIVE, Dialect, Info
from archs.marks import Mark
from archs.op import Op
from archs.operands import Patterns, Templates
from archs.reloc import Reach, Reloc, Rows, data


@attrs.frozen
class Fill:
    """One relocation that fills a field: its number, bytes from the instruction to P, and A."""

    relocation: int
    at: int = 0
    addend: int = 0


@attrs.frozen(kw_only=True)
class Probe:
    """How to execute an instruction in order to see how far it gets.

    Parameters
    ----------
    code
        The instruction, or the pair, with empty fields.
    fills
        The relocations that fill them.
    setup
        Code that runs right before it, so that a conditional branch is taken.
    result
        Register that holds the formed address; None: the guest goes there.
    """

    code: bytes
    fills: tuple[Fill, ...]
    setup: bytes = b""
    result: str | None = None


@attrs.frozen
class Region:
    """Where region jumps lead: aligned memory around the instruction behind the jump.

    Parameters
    ----------
    size
        Bytes of the region, a power of two.
    behind
        Bytes from the jump to the instruction behind it.
    """

    size: int
    behind: int

    def start(self, place: int) -> int:
        """Return where the region begins that a jump at `place` stays in."""
        return (place + self.behind) & -self.size


@attrs.frozen(kw_only=True)
class Branch:
    """An instruction that holds a displacement, or an offset in a region, and how far it gets.

    Parameters
    ----------
    mnemonic
        As the assembler spells it.
    reach
        Displacements, from the instruction's own address, or the region's start.
    what
        What it is used for: call, jump, branch, data.
    probe
        How to execute it; None where nobody can.
    region
        The region that its target lies in; None where it holds a displacement.
    """

    mnemonic: str
    reach: Reach
    what: str
    probe: Probe | None = None
    region: Region | None = None

    def span(self, place: int) -> Interval:
        """Return the addresses that it gets to from `place`."""
        start = place if self.region is None else self.region.start(place)
        return Interval(start + self.reach.lo, start + self.reach.hi)

    def text(self) -> str:
        """Return how far it gets in the units that people think in."""
        if self.region is None:
            return self.reach.text()
        return f"its region of {size_text(self.region.size)}"


@attrs.frozen(kw_only=True)
class Assembly:
    """How its assembly is written, and by which programs it is assembled and linked.

    Parameters
    ----------
    triple
        Of the GNU tools: the prefix of their names, and what clang and llvm-mc are told.
    hosts
        What machines call themselves whose own tools do, too.
    lines
        The lines that each word of a body for every architecture stands for; `{0}` is what
        follows the word. See `execmem.check.shared` for the words.
    flags
        What compilers must be told so that C becomes a module's code.
    """

    triple: str
    hosts: tuple[str, ...] = ()
    lines: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    flags: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Link:
    """What linking needs: relocations, and the instructions that they fill.

    Parameters
    ----------
    relocations
        Every relocation the psABI defines for ET_REL, keyed by number.
    clean_target
        Whether the loader refuses a place that is not zero before relocation.
    dialect
        How its object files are written.
    branches
        Instructions that hold a displacement.
    code_model
        What compilers assume of where code and data are, for people.
    code_model_option
        The compiler's option for it.
    code_model_wide
        The option for code that can be anywhere, of which other relocations take the rest of an
        address (`Reloc.unless`).
    operands
        Which numbers instructions hold, as LLVM counts them; None where nobody has said.
    code_model_absolute
        Relocations narrower than an address by which its code holds absolute addresses.
    marks
        What its modules may show of their kernel.
    assembly
        How its assembly is written; None where nobody has said.
    """

    relocations: Rows = attrs.field(converter=Rows, repr=False)
    clean_target: bool
    dialect: Dialect = NATIVE
    branches: tuple[Branch, ...] = ()
    code_model: str = ""
    code_model_option: str = ""
    code_model_wide: str = ""
    code_model_absolute: tuple[int, ...] = ()
    operands: Patterns | Templates | None = None
    marks: tuple[Mark, ...] = ()
    assembly: Assembly | None = None

    @cached_property
    def pointers(self) -> tuple[int, ...]:
        """Relocations that store an address where data holds one."""
        address, bits = data(self.dialect.word, self.dialect.order), self.dialect.bits
        return tuple(
            number
            for number, row in self.relocations.items()
            if row.op == attrs.evolve(Op.ABS, name=row.op.name, bits=row.op.bits)
            and row.op.bits >= bits
            and row.got is None
            and row.parts == address
        )

    def type_name(self, number: int) -> str:
        """Return what to call a type of relocation, of whatever number.

        Where a record has three types in one number (`Info.MIPS64`), each is named.
        """
        if number in self.relocations:
            return self.relocations[number].name
        if self.dialect.info is not Info.MIPS64 or number < 1 << 8:
            return f"type {number}"
        types = (number >> shift & 0xFF for shift in (0, 8, 16))
        names = " / ".join(self.type_name(each) for each in types)
        special = number >> 24
        return f"type {number:#x} ({names}{f', special symbol {special}' if special else ''})"

    @cached_property
    def accompanied(self) -> Link:
        """The same for an object with records that lift the reach of others (`Reloc.unless`)."""
        return attrs.evolve(self, relocations=self.relocations.accompanied)

    @property
    def call(self) -> Branch | None:
        """The instruction that calls functions; None where all calls go through registers."""
        return next((branch for branch in self.branches if branch.what == "call"), None)

    @property
    def calls(self) -> list[int]:
        """Relocations of the instructions that call and jump to functions."""
        probes = [b.probe for b in self.branches if b.what in ("call", "jump") and b.probe]
        return sorted({fill.relocation for probe in probes for fill in probe.fills})


def rows(*table: Reloc) -> Rows:
    """Return a relocation table keyed by number; refuse a number that occurs twice."""
    keyed = Rows({row.number: row for row in table})
    if len(keyed) != len(table):
        raise ValueError("a relocation number occurs twice")
    return keyed
