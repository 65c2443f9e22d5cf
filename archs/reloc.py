# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocations as rows.

A row says everything about a relocation: its psABI number and name, the operation that
gives X (archs/op.py), the bit slices of X that go into which bits of which word, and the
interval that X must lie in. The engine (archs/engine.py) applies rows; error texts, reach
diagrams and the documentation read the same ones, so none of them can drift from what it does.
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
from archs.dialect import MARKS, Order
from archs.op import EVERY_BIT, Got, Number, Op, OpKind

Constant: TypeAlias = NDArray[np.uint64]


@attrs.frozen
class Slice:
    """`bits` bits of X from bit `x` up, placed from bit `word` up."""

    x: int
    bits: int
    word: int


@attrs.frozen
class Part:
    """One word that a relocation writes.

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
    order
        Which byte of the word comes first.
    """

    size: int
    slices: tuple[Slice, ...]
    offset: int = 0
    bias: int = 0
    zeros: int = 0
    movz: int = 0
    order: Order = "little"

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
    def _steps(self) -> tuple[tuple[int | None, int | None, int | None], ...]:
        """For each slice: shift X right, mask it, shift it left; None where there is no need."""
        return tuple(
            (s.x or None, (1 << s.bits) - 1 if s.x + s.bits < 64 else None, s.word or None)
            for s in self.slices
        )

    @cached_property
    def _array_steps(self) -> tuple[tuple[Constant | None, ...], ...]:
        """The steps as arrays of no dimension: numpy takes as long to make one as to use it."""
        return tuple(
            tuple(None if value is None else np.array(value, np.uint64) for value in step)
            for step in self._steps
        )

    @cached_property
    def keep(self) -> NDArray[Any] | None:
        """Bits of the word that stay, as an integer of its size; None where none do."""
        kept = ~self.mask & (1 << 8 * self.size) - 1
        return np.array(kept, self.word) if kept else None

    @cached_property
    def word(self) -> np.dtype[Any]:
        """The type of the words."""
        return np.dtype(f"{MARKS[self.order]}u{self.size}")

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
                offset = self.offset + (low if self.order == "little" else 16 - low) // 8
                found.append(Part(2, tuple(slices), offset, self.bias, zeros, order=self.order))
        return tuple(found)

    def field(self, x: Number) -> Number:
        """Return the bits of the word that X decides, of a whole number or an array of uint64.

        Parameters
        ----------
        x
            X modulo 2^64.
        """
        steps = self._steps if isinstance(x, int) else self._array_steps
        value: Any = x
        word: Any = None
        if self.added is not None:
            value = (x + self.bias) & EVERY_BIT if isinstance(x, int) else value + self.added
        if self.movz:
            every = -(value >> 63) & EVERY_BIT  # where X is negative every bit, else none
            value, word = value ^ every, self.movz & ~every
        for right, mask, left in steps:
            if right is not None:
                field = value >> right
                if mask is not None:
                    field &= mask
            else:
                field = value if mask is None else value & mask
            if left is not None:
                field <<= left
            if word is None:
                word = field
            else:
                word |= field
        found: Number = word
        return found

    def insert(self, word: int, x: int) -> int:
        """Return `word` with the slices of `x` placed in it."""
        return word & ~self.mask | self.field(x & EVERY_BIT)

    def extract(self, word: Number) -> Number:
        """Return the bits of X that stand in words, without the bias."""
        found: Any = None
        for s in self.slices:
            bits: Any = ((word >> s.word) & ((1 << s.bits) - 1)) << s.x
            found = bits if found is None else found | bits
        value: Number = found
        return value

    def load(self, code: bytes | bytearray | memoryview) -> int:
        """Return the word, from the bytes at P."""
        return int.from_bytes(code[self.offset : self.offset + self.size], self.order)


def data(size: int, order: Order = "little") -> tuple[Part, ...]:
    """Return the parts of a plain data word of `size` bytes."""
    return (Part(size, (Slice(0, 8 * size, 0),), order=order),)


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
    low
        Where addends stand in the words: number of the row that has the low part of this row's
        addend, in the next record of that type and symbol (psABI of MIPS: AHL). None: it is
        complete, or comes with the record.
    uleb
        Whether the field is a ULEB128 number, whose length stays as it is.
    kernel
        Whether the kernel's module loader knows the type.
    unless
        Types that take the bits above: in an object that has one of them nothing is out of reach.
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
    low: int | None = None
    uleb: bool = False
    kernel: bool = True
    unless: tuple[int, ...] = ()
    unsupported: str = ""

    @property
    def size(self) -> int:
        """Bytes from P to the end of the last word written."""
        return max((part.offset + part.size for part in self.parts), default=int(self.uleb))

    def held(self, word: Callable[[Part], Number], *, addend: bool = False) -> Number:
        """Return what stands in the row's fields, modulo 2^64, of whole numbers or arrays of uint64.

        A field that was filled with a bias is completed by the signed low part that follows; bits
        that no field holds are zero. What cannot be negative has no sign.

        Parameters
        ----------
        word
            Returns the word, or words, of a part.
        addend
            Whether it is an addend that stands there, and not yet X: an offset in a region has
            no sign, what is added to its target has.
        """
        plain = self.reach is not None and self.reach.lo >= 0
        plain = plain and not (addend and self.op.kind is OpKind.REGION)
        total: Any = 0
        for part in self.parts:
            value: Any = part.extract(word(part))
            if not plain:
                half = 1 << max(s.x + s.bits for s in part.slices) - 1
                value = (value ^ half) - half
            total = value + total
        found: Number = total & EVERY_BIT
        return found

    def reach_under(self, checks: Checks) -> Reach | None:
        """Return the reach that a link as strict as `checks` insists on."""
        return self.reach if checks is Checks.HARDWARE else self.kernel_reach

    @property
    def accumulates(self) -> bool:
        """Whether records of this type at one place add up before they are stored."""
        return self.op.accumulates


class Rows(dict[int, Reloc]):
    """An architecture's relocations by number, with what the engine asks of all of them.

    The last entry of an array stands for every number beyond.
    """

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
        return self._array(np.int8, lambda row: 2 if row.op.anew else row.op.weight("S"))

    @cached_property
    def sized(self) -> frozenset[int]:
        """Numbers that take the symbol's size."""
        return frozenset(number for number, row in self.items() if row.op.kind is OpKind.SIZE)

    @cached_property
    def through_got(self) -> frozenset[int]:
        """Numbers that need something of a global offset table."""
        return frozenset(number for number, row in self.items() if row.got is not None)

    @cached_property
    def entangled(self) -> bool:
        """Whether what a record stores may depend on other records."""
        return any(row.op.high_half or row.accumulates for row in self.values())

    @cached_property
    def companions(self) -> tuple[int, ...]:
        """Numbers that lift the reach of others in the same object."""
        return tuple({number for row in self.values() for number in row.unless})

    @cached_property
    def accompanied(self) -> Rows:
        """The rows for an object that has companions."""
        return Rows(
            {
                number: attrs.evolve(row, reach=None, kernel_reach=None) if row.unless else row
                for number, row in self.items()
            }
        )

    @cached_property
    def forms(self) -> Mapping[Checks, Mapping[int, int]]:
        """Numbers that store the same words within the same reach have the same form.

        X is computed for all of a form together, as the target and where wanted less P; what is
        more than that is a form of its own.
        """
        together = ((EVERY_BIT, 0), (EVERY_BIT, EVERY_BIT))

        def apart(op: Op) -> Op | None:
            computed = op.high_half or bool(op.terms and not op.accumulates)
            return op if computed and op.columns not in together else None

        found: dict[Checks, dict[int, int]] = {}
        for checks in Checks:
            known: dict[object, int] = {}
            found[checks] = {
                number: known.setdefault(
                    (apart(row.op), row.parts, row.reach_under(checks)), len(known)
                )
                for number, row in self.items()
            }
        return found

    @cached_property
    def batch_columns(self) -> Mapping[Checks, BatchColumns]:
        """What a small batch of records is applied by."""
        return {checks: BatchColumns.of(self, checks) for checks in Checks}

    def _array(self, kind: type[np.generic], entry: Callable[[Reloc], int]) -> NDArray[Any]:
        found = np.zeros(max(self) + 2, kind)
        for number, row in self.items():
            found[number] = entry(row)
        return found


REFUSED, SUMMED = 0, 1


@attrs.frozen(eq=False)
class BatchColumns:
    """A table of relocations as columns, to apply records of many types in few steps.

    Parameters
    ----------
    forms
        Form of each number, REFUSED and SUMMED (what accumulates) or one for each way to
        write words; the last entry stands for every number beyond.
    columns
        By number, as uint64: the bits of S+A and of P that count, in X = (S+A) - P; the
        least X and the width of its interval (one X less where all fit); the bits of X that must
        be 0; bytes written.
    others
        Numbers whose X is more than such a difference.
    pairs
        Whether rows of a form take another's X.
    parts
        Words that each form writes.
    aligned
        Whether any X must be a multiple of something.
    """

    forms: NDArray[np.uint8]
    columns: NDArray[np.uint64]
    others: tuple[int, ...]
    pairs: NDArray[np.bool_]
    parts: tuple[tuple[Part, ...], ...]
    aligned: bool

    @classmethod
    def of(cls, rows: Rows, checks: Checks) -> BatchColumns:
        """Return the columns of a table under checks as strict as these."""
        keys: dict[object, int] = {"refused": REFUSED, "sum": SUMMED}
        forms = np.zeros(max(rows) + 2, np.uint8)
        columns = np.zeros((6, forms.size), np.uint64)
        columns[3] = EVERY_BIT
        parts: list[tuple[Part, ...]] = [(), ()]
        pairs = np.zeros(len(rows) + 2, np.bool_)
        others: list[int] = []
        for number, row in rows.items():
            if row.unsupported or (checks is Checks.KERNEL and not row.kernel):
                continue
            key = "sum" if row.accumulates else (row.op.high_half, row.parts)
            form = forms[number] = keys.setdefault(key, len(keys))
            if form == len(parts):
                parts.append(row.parts)
            pairs[form] = row.op.high_half
            columns[:2, number] = row.op.columns or 0
            if row.op.columns is None and not row.accumulates:
                others.append(number)
            reach = None if row.accumulates else row.reach_under(checks)
            if reach is not None and row.op.kind is not OpKind.NOTHING:
                lo, hi = max(reach.lo, -1 << 63), min(reach.hi, 1 << 63)
                columns[2:4, number] = lo & EVERY_BIT, min(hi - lo, EVERY_BIT)
                columns[4, number] = reach.align - 1 if checks is Checks.HARDWARE else 0
            columns[5, number] = row.size
        aligned = bool(columns[4].any())
        return cls(forms, columns, tuple(others), pairs, tuple(parts), aligned)
