# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocations as rows.

A row says everything about a relocation: its psABI number and name, the operation that
gives X from S, A and P, the bit slices of X that go into which bits of which word, the
interval that X must lie in, and how the result combines with what is there. The engine
(archs/engine.py) applies rows; error texts, reach diagrams and the documentation read the
same ones, so none of them can drift from what it does.

The letters are the psABIs': symbol value S (its size Z), addend A, place P, result X, and
V for what the relocations at one place have accumulated so far.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import size_text

Constant: TypeAlias = NDArray[np.uint64]
PAGE_MASK = np.uint64(0xFFFF_FFFF_FFFF_F000)


class Op(enum.Enum):
    """How X is computed; the value is the psABI's formula."""

    NONE = "-"
    ABS = "S+A"
    PC = "S+A-P"
    PAGE = "Page(S+A)-Page(P)"
    PAIR = "X of the HI20 at S"
    SIZE = "Z+A"
    ADD = "V+S+A"
    SUB = "V-S-A"
    SET = "S+A, later V"


@attrs.frozen
class Slice:
    """`bits` bits of X from bit `x` up, placed from bit `word` up."""

    x: int
    bits: int
    word: int


@attrs.frozen
class Part:
    """One little-endian word that a relocation writes.

    Parameters
    ----------
    size
        Bytes of the word: 1, 2, 4 or 8.
    slices
        Which bits of X go where.
    offset
        Bytes from P to the word.
    bias
        Added to X first: 0x800 makes a U-type immediate absorb the signed low part.
    zeros
        Bits of the word that are cleared: a scaled offset is narrower than its field.
    movz
        The opcode bit that tells MOVZ from MOVN: a negative X is stored inverted, and the
        bit cleared; otherwise the bit is set.
    """

    size: int
    slices: tuple[Slice, ...]
    offset: int = 0
    bias: int = 0
    zeros: int = 0
    movz: int = 0

    @cached_property
    def mask(self) -> int:
        """Bits of the word that are replaced."""
        fields = sum(((1 << s.bits) - 1) << s.word for s in self.slices)
        return self.zeros | self.movz | fields

    @cached_property
    def whole(self) -> bool:
        """Whether the word is X itself, every bit of it."""
        return self.slices == (Slice(0, 8 * self.size, 0),) and not self.bias

    @cached_property
    def steps(self) -> tuple[tuple[Constant | None, Constant | None, Constant | None], ...]:
        """For each slice: shift X right, mask it, shift it left; None where there is no need.

        Arrays of no dimension, because numpy takes as long to make one as to use it.
        """

        def constant(value: int, needed: bool) -> Constant | None:
            return np.array(value, np.uint64) if needed else None

        return tuple(
            (
                constant(s.x, s.x > 0),
                constant((1 << s.bits) - 1, s.x + s.bits < 64),
                constant(s.word, s.word > 0),
            )
            for s in self.slices
        )

    @cached_property
    def keep(self) -> NDArray[Any] | None:
        """Bits of the word that stay, as an integer of its size; None where none do."""
        kept = ~self.mask & (1 << 8 * self.size) - 1
        return np.array(kept, self.word) if kept else None

    @cached_property
    def word(self) -> np.dtype[Any]:
        """The type of the words."""
        return np.dtype(f"<u{self.size}")

    @cached_property
    def added(self) -> Constant | None:
        """What is added to X first, if anything."""
        return np.array(self.bias, np.uint64) if self.bias else None

    @cached_property
    def halves(self) -> tuple[Part, ...]:
        """The same as parts of two bytes, without those that nothing is put into.

        Empty for other than four bytes, and where MOVZ or MOVN depends on all of X.
        """
        if self.size != 4 or self.movz:
            return ()
        found = []
        for low in (0, 16):
            slices = []
            for s in self.slices:
                start, end = max(s.word, low), min(s.word + s.bits, low + 16)
                if start < end:
                    slices.append(Slice(s.x + start - s.word, end - start, start - low))
            zeros = self.zeros >> low & 0xFFFF
            if slices or zeros:
                offset = self.offset + low // 8
                found.append(Part(2, tuple(slices), offset, bias=self.bias, zeros=zeros))
        return tuple(found)

    def insert(self, word: int, x: int) -> int:
        """Return `word` with the slices of `x` placed in it (the scalar model)."""
        value = x + self.bias
        word &= ~self.mask
        if self.movz:
            word, value = (word, ~value) if value < 0 else (word | self.movz, value)
        for s in self.slices:
            word |= (value >> s.x & (1 << s.bits) - 1) << s.word
        return word

    def extract(self, word: int) -> int:
        """Return the bits of X that stand in `word`, without the bias."""
        return sum(((word >> s.word) & ((1 << s.bits) - 1)) << s.x for s in self.slices)


def data(size: int) -> tuple[Part, ...]:
    """Return the parts of a plain data word of `size` bytes."""
    return (Part(size, (Slice(0, 8 * size, 0),)),)


@attrs.frozen
class Reach:
    """The half-open interval [lo, hi) of X, and the multiple that X must be."""

    lo: int
    hi: int
    align: int = 1

    def __contains__(self, x: int) -> bool:
        return self.lo <= x < self.hi and x % self.align == 0

    def __str__(self) -> str:
        def signed(value: int) -> str:
            return f"-{-value:#x}" if value < 0 else f"{value:#x}"

        return f"[{signed(self.lo)}, {signed(self.hi)})"

    def text(self) -> str:
        """Return the interval in the units that people think in.

        >>> Reach(-(1 << 27), 1 << 27).text(), Reach(-(1 << 31) - 2048, (1 << 31) - 2048).text()
        ('+-128 MiB', '-2 GiB-2 KiB..+2 GiB-2 KiB')
        """
        if -self.lo == self.hi:
            return f"+-{size_text(self.hi)}"
        return f"{_edge(self.lo)}..{_edge(self.hi)}"


def _edge(value: int) -> str:
    """Return an edge as the nearest power of two and what is left."""
    if value == 0:
        return "0"
    sign, size = ("-", -value) if value < 0 else ("+", value)
    power = 1 << (size.bit_length() - 1)
    if 2 * power - size < size - power:
        power *= 2
    text = f"{sign}{size_text(power)}"
    rest = size - power
    if rest:
        text += f"{'+' if (rest > 0) == (value > 0) else '-'}{size_text(abs(rest))}"
    return text


def signed(bits: int, align: int = 1) -> Reach:
    """Return the reach of a signed field of `bits` bits (counted in bytes of X)."""
    return Reach(-(1 << (bits - 1)), 1 << (bits - 1), align)


def unsigned(bits: int) -> Reach:
    """Return the reach of an unsigned field of `bits` bits."""
    return Reach(0, 1 << bits)


class Stub(enum.Enum):
    """What a module loader may put between place and target."""

    PLT = "plt"


class Got(enum.Enum):
    """What stands for S where a row goes through the global offset table."""

    SLOT = "address of the slot that holds S"
    SLOT_SUM = "address of the slot that holds S+A"
    OFFSET = "offset of the slot that holds S from the table's start"
    OFFSET_SUM = "offset of the slot that holds S+A from the table's start"
    PAGE_OFFSET_SUM = "offset of the slot that holds S+A from the page of the table's start"
    BASE = "address of the table"
    RELATIVE = "distance of the symbol from the table's start"


class Checks(enum.Enum):
    """How strict a link is."""

    HARDWARE = "hardware"
    KERNEL = "kernel"


@attrs.frozen
class Reloc:
    """One relocation type.

    Parameters
    ----------
    number, name
        As the psABI gives them.
    op
        The operation.
    parts
        Words written; empty for rows that write nothing.
    reach
        What the hardware's field can hold; None where every value fits.
    kernel_reach
        What the kernel's module loader checks, where it differs; None: it checks nothing.
    stub
        Set where a branch that does not reach may go through a stub instead.
    got
        What the row needs of a global offset table, if anything.
    high
        Whether this row is the HI20 half that a PAIR row refers to.
    uleb
        Whether the field is a ULEB128 number, whose length stays as it is.
    kernel
        Whether the kernel's module loader knows the type.
    unsupported
        The reason why the loader refuses this type, by name.
    """

    number: int
    name: str
    op: Op
    parts: tuple[Part, ...] = ()
    reach: Reach | None = None
    kernel_reach: Reach | None = attrs.field(
        default=attrs.Factory(lambda self: self.reach, takes_self=True)
    )
    stub: Stub | None = None
    got: Got | None = None
    high: bool = False
    uleb: bool = False
    kernel: bool = True
    unsupported: str = ""

    @property
    def size(self) -> int:
        """Bytes from P to the end of the last word written."""
        return max((part.offset + part.size for part in self.parts), default=int(self.uleb))

    def reach_under(self, checks: Checks) -> Reach | None:
        """Return the reach that a link as strict as `checks` insists on."""
        return self.reach if checks is Checks.HARDWARE else self.kernel_reach

    @property
    def accumulates(self) -> bool:
        """Whether records of this type at one place add up before they are stored."""
        return self.op in (Op.ADD, Op.SUB, Op.SET)


class Rows(dict[int, Reloc]):
    """An architecture's relocations by number, with what the engine asks of all of them.

    The last entry of an array stands for every number beyond.
    """

    @cached_property
    def pointers(self) -> tuple[int, ...]:
        """Numbers that store an address in eight bytes."""
        return tuple(n for n, row in self.items() if row.op is Op.ABS and row.parts == data(8))

    @cached_property
    def widths(self) -> NDArray[np.uint64]:
        """Bytes written, by number."""
        return self._array(np.uint64, lambda row: row.size)

    @cached_property
    def high(self) -> NDArray[np.bool_]:
        """Which numbers are HI20 halves."""
        return self._array(np.bool_, lambda row: row.high)

    @cached_property
    def signs(self) -> NDArray[np.int8]:
        """What accumulating numbers do with S+A: -1 subtract, 1 add, 2 forget the rest."""
        return self._array(np.int8, lambda row: {Op.SUB: -1, Op.SET: 2}.get(row.op, 1))

    @cached_property
    def sized(self) -> frozenset[int]:
        """Numbers that take the symbol's size."""
        return frozenset(number for number, row in self.items() if row.op is Op.SIZE)

    @cached_property
    def through_got(self) -> frozenset[int]:
        """Numbers that need something of a global offset table."""
        return frozenset(number for number, row in self.items() if row.got is not None)

    @cached_property
    def entangled(self) -> bool:
        """Whether what a record stores may depend on other records."""
        return any(row.op is Op.PAIR or row.accumulates for row in self.values())

    @cached_property
    def forms(self) -> Mapping[Checks, Mapping[int, int]]:
        """Numbers that store the same words within the same reach have the same form.

        But X is computed for them together, which what takes another's X or pages is kept out of.
        """
        apart = (Op.PAIR, Op.PAGE)
        found: dict[Checks, dict[int, int]] = {}
        for checks in Checks:
            known: dict[object, int] = {}
            found[checks] = {
                number: known.setdefault(
                    (row.op if row.op in apart else None, row.parts, row.reach_under(checks)),
                    len(known),
                )
                for number, row in self.items()
            }
        return found

    @cached_property
    def few(self) -> Mapping[Checks, Few]:
        """What a small batch of records is applied by."""
        return {checks: Few.of(self, checks) for checks in Checks}

    def _array(self, kind: type[np.generic], entry: Callable[[Reloc], int]) -> NDArray[Any]:
        found = np.zeros(max(self) + 2, kind)
        for number, row in self.items():
            found[number] = entry(row)
        return found


EVERY_BIT = (1 << 64) - 1
REFUSED, SUMMED = 0, 1


@attrs.frozen(eq=False)
class Few:
    """A table of relocations as columns, to apply records of many types in few steps.

    Parameters
    ----------
    forms
        Form of each number, REFUSED and SUMMED (what accumulates) or one for each way to
        write words; the last entry stands for every number beyond.
    columns
        By number, as uint64: the bits of S+A and of P that count, in X = (S+A) - P; the
        least X and the width of its interval (one X less where all fit); the bits of X that must be 0; bytes written.
    pairs
        Whether rows of a form take another's X.
    parts
        Words that each form writes.
    aligned
        Whether any X must be a multiple of something.
    """

    forms: NDArray[np.uint8]
    columns: NDArray[np.uint64]
    pairs: NDArray[np.bool_]
    parts: tuple[tuple[Part, ...], ...]
    aligned: bool

    @classmethod
    def of(cls, rows: Rows, checks: Checks) -> Few:
        """Return the columns of a table under checks as strict as these."""
        keys: dict[object, int] = {"refused": REFUSED, "sum": SUMMED}
        forms = np.zeros(max(rows) + 2, np.uint8)
        columns = np.zeros((6, forms.size), np.uint64)
        columns[3] = EVERY_BIT
        parts: list[tuple[Part, ...]] = [(), ()]
        pairs = np.zeros(len(rows) + 2, np.bool_)
        for number, row in rows.items():
            if row.unsupported or (checks is Checks.KERNEL and not row.kernel):
                continue
            key = "sum" if row.accumulates else (row.op is Op.PAIR, row.parts)
            form = forms[number] = keys.setdefault(key, len(keys))
            if form == len(parts):
                parts.append(row.parts)
            pairs[form] = row.op is Op.PAIR
            bits = int(PAGE_MASK) if row.op is Op.PAGE else EVERY_BIT
            columns[:2, number] = bits, bits if row.op in (Op.PC, Op.PAGE) else 0
            reach = None if row.accumulates else row.reach_under(checks)
            if reach is not None and row.op is not Op.NONE:
                lo, hi = max(reach.lo, -1 << 63), min(reach.hi, 1 << 63)
                columns[2:4, number] = lo & EVERY_BIT, min(hi - lo, EVERY_BIT)
                columns[4, number] = reach.align - 1 if checks is Checks.HARDWARE else 0
            columns[5, number] = row.size
        return cls(forms, columns, pairs, tuple(parts), bool(columns[4].any()))
