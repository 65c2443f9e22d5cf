# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocations as rows, and the one engine that applies them.

A row says everything about a relocation: its psABI number and name, the operation that
gives X from S, A and P, the bit slices of X that go into which bits of which word, the
interval that X must lie in, and how the result combines with what is there. Error
texts, reach diagrams and the documentation read the same row, so none of them can
drift from what the engine does.

The engine works on arrays, one entry per relocation of a module, grouped by type:
unaligned words are gathered and scattered through overlapping stride-1 views of the
image. Addresses stay uint64 throughout (uint64 + int64 would become float64 and lose
bits) and are viewed as int64 only to compare.

The letters are the psABIs': symbol value S (its size Z), addend A, place P, result X, and
V for what the relocations at one place have accumulated so far.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import size_text

U64 = NDArray[np.uint64]
Index = NDArray[np.intp]
Selection: TypeAlias = "slice | Index"

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

    @property
    def mask(self) -> int:
        """Bits of the word that are replaced."""
        fields = sum(((1 << s.bits) - 1) << s.word for s in self.slices)
        return self.zeros | self.movz | fields

    @property
    def whole(self) -> bool:
        """Whether the word is X itself, every bit of it."""
        return self.slices == (Slice(0, 8 * self.size, 0),) and not self.bias

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

    @property
    def accumulates(self) -> bool:
        """Whether records of this type at one place add up before they are stored."""
        return self.op in (Op.ADD, Op.SUB, Op.SET)


class Rows(dict[int, Reloc]):
    """An architecture's relocations by number, with what the engine asks of all of them."""

    @cached_property
    def widths(self) -> NDArray[np.uint64]:
        """Bytes written, by number; the last entry stands for every number beyond."""
        found = np.zeros(max(self) + 2, np.uint64)
        for number, row in self.items():
            found[number] = row.size
        return found

    @cached_property
    def high(self) -> NDArray[np.bool_]:
        """Which numbers are HI20 halves; the last entry stands for every number beyond."""
        found = np.zeros(max(self) + 2, np.bool_)
        found[[number for number, row in self.items() if row.high]] = True
        return found


class Checks(enum.Enum):
    """How strict a link is."""

    HARDWARE = "hardware"
    KERNEL = "kernel"


@attrs.frozen(eq=False)
class Records:
    """The relocations of one module as arrays of equal length, in file order.

    Parameters
    ----------
    offset
        Byte offset of the place in the image buffer.
    place, value, addend
        P, S and A as uint64 (A wraps).
    type
        Relocation numbers.
    group
        Index of the relocation section: pairing and accumulation stay inside one.
    """

    offset: Index
    place: U64
    value: U64
    addend: U64
    type: NDArray[np.uint32]
    group: NDArray[np.int32]


class Problem(enum.Enum):
    """Why a record cannot be applied."""

    UNKNOWN = "unknown relocation type"
    UNSUPPORTED = "relocation type is not supported"
    RANGE = "out of range"
    ALIGN = "misaligned"
    UNPAIRED = "no HI20 relocation at the symbol"
    OUTSIDE = "place lies outside its section"
    HOMELESS = "the symbol lies in a section that is not loaded"
    OCCUPIED = "place is not zero before relocation"
    NO_GOT = "needs a slot of the global offset table, and the module has no .got section"
    FULL = "no PLT entry left, or none near enough, for the veneer of an erratum"


@attrs.frozen(eq=False)
class Failure:
    """All records of one type that fail for one reason."""

    problem: Problem
    row: Reloc | None
    index: Index
    x: U64


def word_view(image: NDArray[np.uint8], size: int) -> NDArray[np.unsignedinteger]:
    """Return `image` as overlapping little-endian words, one starting at every byte."""
    count = max(image.size - size + 1, 0)
    return np.ndarray((count,), f"<u{size}", buffer=image, strides=(1,))


def compute(row: Reloc, records: Records, index: Selection) -> U64:
    """Return X for the records at `index`; PAIR and accumulating rows have their own ways."""
    x = records.value[index] + records.addend[index]
    if row.op is Op.PC:
        x -= records.place[index]
    elif row.op is Op.PAGE:
        x &= PAGE_MASK
        x -= records.place[index] & PAGE_MASK
    return x


def out_of_reach(x: U64, reach: Reach | None) -> NDArray[np.bool_]:
    """Return which entries of X lie outside `reach` (alignment is a problem of its own)."""
    if reach is None:
        return np.zeros(x.size, np.bool_)
    v = x.view(np.int64)
    return np.asarray((v < reach.lo) | (v >= reach.hi))


def _first_failure(row: Reloc, x: U64, checks: Checks) -> tuple[Problem, NDArray[np.bool_]] | None:
    """Return why entries of X do not fit and which, or None; two reductions when all fit."""
    reach = row.reach if checks is Checks.HARDWARE else row.kernel_reach
    if reach is None or not x.size:
        return None
    v = x.view(np.int64)
    if v.min() < reach.lo or v.max() >= reach.hi:
        return Problem.RANGE, out_of_reach(x, reach)
    if checks is Checks.HARDWARE and reach.align > 1:
        low = np.uint64(reach.align - 1)
        if int(np.bitwise_or.reduce(x)) & int(low):
            return Problem.ALIGN, np.asarray((x & low) != 0)
    return None


# Words ---------------------------------------------------------------------------------------


def _field(part: Part, x: U64) -> U64:
    """Return the bits of a part's word that X decides."""
    value = x + np.uint64(part.bias) if part.bias else x
    word = None
    if part.movz:
        negative = value.view(np.int64) < 0
        value = np.where(negative, ~value, value)
        word = np.where(negative, np.uint64(0), np.uint64(part.movz))
    for s in part.slices:
        field = value >> np.uint64(s.x) if s.x else value
        if s.x + s.bits < 64:
            field = field & np.uint64((1 << s.bits) - 1)
        if s.word:
            field = field << np.uint64(s.word)
        word = field if word is None else word | field
    assert word is not None
    return word


class _Places:
    """Where words of one size are stored, and the fastest way that numpy has to get there.

    Words behind one another are one slice. Otherwise numpy is four times faster where a view
    is aligned, so the widest unit that divides every offset is used; a word that is wider
    than the unit is stored in pieces.
    """

    def __init__(self, image: NDArray[np.uint8], size: int, at: Index) -> None:
        self.image, self.size, self.at = image, size, at
        self.run = self._as_run()
        low = int(np.bitwise_or.reduce(at)) | size
        self.unit = min(low & -low, size)

    def _as_run(self) -> slice | None:
        """Return the bytes that the words cover if they follow one another, else None."""
        at, size = self.at, self.size
        start, count = int(at[0]), at.size
        if start % size or int(at[-1]) - start != size * (count - 1) or count < 2:
            return None
        if count > 2 and not (at[1:] - at[:-1] == size).all():
            return None
        return slice(start, start + size * count)

    def occupied(self) -> NDArray[np.bool_] | None:
        """Return which words are not zero; None where all are."""
        if self.run is not None:
            words = self.image[self.run].view(f"<u{self.size}")
        elif self.unit == self.size:
            words = self._view(self.unit)[self.at // self.unit]
        else:
            words = self._straddling()
        return np.asarray(words != 0) if words.any() else None

    def store(self, word: U64, mask: int, *, clean: bool) -> None:
        """Replace the bits of `mask`; `clean` promises that the words are zero."""
        bits = 8 * self.size
        whole = mask == (1 << bits) - 1
        if whole and self.run is not None:
            self.image[self.run].view(f"<u{self.size}")[:] = word
        elif self.unit > 1 or self.size == 1:
            self._store_units(word, mask)
        elif whole and clean and self.size < 8:
            self._add(word & np.uint64(mask))
        else:
            view = word_view(self.image, self.size)
            new = word.astype(view.dtype)
            keep = view.dtype.type(~mask & ((1 << bits) - 1))
            view[self.at] = new if whole else (view[self.at] & keep) | new

    def _view(self, unit: int) -> NDArray[np.unsignedinteger]:
        return self.image[: self.image.size & -unit].view(f"<u{unit}")

    def _store_units(self, word: U64, mask: int) -> None:
        unit, view = self.unit, self._view(self.unit)
        first = self.at // unit if unit > 1 else self.at
        every = (1 << 8 * unit) - 1
        for number in range(self.size // unit):
            cut = mask >> (8 * unit * number) & every
            if not cut:
                continue
            index = first + number if number else first
            part = word >> np.uint64(8 * unit * number) if number else word
            if cut != every:
                new = part.astype(view.dtype) & view.dtype.type(cut)
                new |= view[index] & view.dtype.type(~cut & every)
                view[index] = new
            else:
                view[index] = part

    def _straddling(self) -> U64:
        """Return words at any byte, from one or two aligned words of eight bytes."""
        wide = self._view(8)
        index, shift = self.at >> 3, (self.at & 7).view(np.uint64) << np.uint64(3)
        words: U64 = wide[index].astype(np.uint64, copy=False) >> shift
        over = np.flatnonzero(shift > np.uint64(64 - 8 * self.size))
        words[over] |= wide[index[over] + 1] << (np.uint64(64) - shift[over])
        words &= np.uint64((1 << 8 * self.size) - 1)
        return words

    def _add(self, word: U64) -> None:
        """Add to words that are zero: what shares an aligned word adds up correctly."""
        wide = self._view(8)
        index, shift = self.at >> 3, (self.at & 7).view(np.uint64) << np.uint64(3)
        np.add.at(wide, index, word << shift)
        over = np.flatnonzero(shift > np.uint64(64 - 8 * self.size))
        np.add.at(wide, index[over] + 1, word[over] >> (np.uint64(64) - shift[over]))


def encode(row: Reloc, image: NDArray[np.uint8], offset: Index, x: U64) -> None:
    """Write the words of `row` at every `offset`."""
    for part in row.parts:
        at = offset + part.offset if part.offset else offset
        word = x if part.whole else _field(part, x)
        _Places(image, part.size, at).store(word, part.mask, clean=False)


# Relocations that need others ------------------------------------------------------------------


def _pair(rows: Rows, records: Records, index: Index) -> tuple[U64, Index]:
    """Return X of the HI20 record that each PAIR record names, and which have none.

    The psABI lets several LO12 share a HI20 at any distance in the same relocation
    section; S of a LO12 is the address of the instruction that carries the HI20. Compilers
    put the two records side by side, so that is looked at first.
    """
    high = rows.high
    types = np.minimum(records.type, high.size - 1)
    before = np.maximum(index - 1, 0)
    beside = (
        high[types[before]]
        & (records.place[before] == records.value[index])
        & (records.group[before] == records.group[index])
    )
    x = np.zeros(index.size, np.uint64)
    near = before[beside]
    for number, row in rows.items():
        if row.high:
            mine = records.type[near] == number
            if mine.all():
                x[beside] = compute(row, records, near)
                break
            x[np.flatnonzero(beside)[mine]] = compute(row, records, near[mine])
    if beside.all():
        return x, np.empty(0, np.intp)
    rest = np.flatnonzero(~beside)
    x[rest], missing = _search_pair(rows, records, np.flatnonzero(high[types]), index[rest])
    return x, rest[missing]


def _search_pair(rows: Rows, records: Records, highs: Index, index: Index) -> tuple[U64, Index]:
    """Return X of the HI20 anywhere in the same section, and which records have none."""
    found = np.zeros(index.size, np.uint64)
    known = np.zeros(index.size, np.bool_)
    for group in np.unique(records.group[index]):
        mine = np.flatnonzero(records.group[index] == group)
        inside = highs[records.group[highs] == group]
        if not inside.size:
            continue
        inside = inside[np.argsort(records.place[inside], kind="stable")]
        places, wanted = records.place[inside], records.value[index[mine]]
        hit = np.minimum(np.searchsorted(places, wanted), inside.size - 1)
        known[mine] = places[hit] == wanted
        chosen = inside[hit]
        for number in np.unique(records.type[chosen]):
            same = records.type[chosen] == number
            found[mine[same]] = compute(rows[int(number)], records, chosen[same])
    return found, np.flatnonzero(~known)


def _accumulate(
    rows: Rows,
    image: NDArray[np.uint8],
    records: Records,
    index: Index,
    checks: Checks,
) -> list[Failure]:
    """Apply ADD, SUB and SET records: by place, from 0, stored once by the last record's row.

    The kernel (arch/riscv/kernel/module.c since 6.7) starts each group from zero,
    whatever stands at the place, and stores when the relocation section is done.
    """
    places = records.offset[index]
    if (places[1:] < places[:-1]).any():
        order = np.argsort(places, kind="stable")
        index, places = index[order], places[order]
    first = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
    last = np.append(first[1:], places.size) - 1
    x = records.value[index] + records.addend[index]
    op = np.zeros(max(rows) + 2, np.int8)
    for number, row in rows.items():
        op[number] = {Op.SUB: -1, Op.SET: 2}.get(row.op, 1)
    ops = op[records.type[index]]
    subtracted = ops == -1
    x[subtracted] = np.uint64(0) - x[subtracted]
    total = np.add.reduceat(x, first)
    # What was there before a SET does not count.
    for at in np.flatnonzero(ops == 2).tolist():
        group = int(np.searchsorted(first, at, side="right")) - 1
        end = int(last[group]) + 1
        total[group] = np.add.reduce(x[at:end])
    failures = []
    numbers = records.type[index[last]]
    for number in np.unique(numbers).tolist():
        chosen = np.flatnonzero(numbers == number)
        row = rows[number]
        where, value = places[first[chosen]], total[chosen]
        bad = _first_failure(row, value, checks)
        if row.uleb and checks is Checks.KERNEL:
            for a, v in zip(where.tolist(), value.tolist(), strict=True):
                _store_shortest_uleb(image, a, v)
        elif bad is None and row.uleb:
            wrong = [
                not _store_uleb(image, a, v)
                for a, v in zip(where.tolist(), value.tolist(), strict=True)
            ]
            bad = (Problem.RANGE, np.array(wrong)) if any(wrong) else None
        elif bad is None:
            encode(row, image, where, value)
        if bad is not None:
            problem, wrong_ones = bad
            failed = index[last[chosen]][wrong_ones]
            failures.append(Failure(problem, row, failed, value[wrong_ones]))
    return failures


def _store_shortest_uleb(image: NDArray[np.uint8], at: int, value: int) -> None:
    """Store a ULEB128 number as the kernel does: as short as it gets, and nothing for 0."""
    while value and at < image.size:
        image[at] = value & 0x7F | (0x80 if value >> 7 else 0)
        value >>= 7
        at += 1


def _store_uleb(image: NDArray[np.uint8], at: int, value: int) -> bool:
    """Rewrite the ULEB128 number at `at` without changing its length; False when it does not fit."""
    length = 1
    while at + length <= image.size and image[at + length - 1] & 0x80:
        length += 1
    if value >> (7 * length) or at + length > image.size:
        return False
    for number in range(length):
        more = 0x80 if number < length - 1 else 0
        image[at + number] = (value >> (7 * number) & 0x7F) | more
    return True


# The engine ------------------------------------------------------------------------------------


Batches: TypeAlias = "Sequence[tuple[int, Selection]]"


def by_type(types: NDArray[np.uint32], uniform: Sequence[slice] = ()) -> Batches:
    """Return each relocation number with the records that have it.

    Parameters
    ----------
    uniform
        Runs of records, in order, known to have one type each: they need no index.
    """
    batches: list[tuple[int, Selection]] = [(int(types[run.start]), run) for run in uniform]
    rest: Index | None = None
    if uniform:
        edges = [0, *(edge for run in uniform for edge in (run.start, run.stop)), types.size]
        gaps = zip(edges[::2], edges[1::2], strict=True)
        rest = np.concatenate([np.arange(start, end) for start, end in gaps])
        types = types[rest]
    numbers = _numbers(types)
    for number in numbers:
        if len(numbers) == 1 and rest is None:
            batches.append((number, slice(0, types.size)))
            continue
        index = np.flatnonzero(types == number)
        batches.append((number, index if rest is None else rest[index]))
    return sorted(batches, key=lambda batch: batch[0])


def _numbers(types: NDArray[np.uint32]) -> list[int]:
    """Return the relocation numbers that occur; a damaged file may hold any 32-bit number."""
    if not types.size:
        return []
    if int(types.max()) < 1 << 12:
        return list(map(int, np.flatnonzero(np.bincount(types))))
    return list(map(int, np.unique(types)))


def apply(
    rows: Rows,
    image: NDArray[np.uint8],
    records: Records,
    *,
    checks: Checks = Checks.HARDWARE,
    clean_target: bool = False,
    batches: Batches | None = None,
) -> Sequence[Failure]:
    """Apply every record to `image` in place; return every failure, first types first.

    Nothing of `image` is meaningful when a failure is returned.

    Parameters
    ----------
    rows
        The architecture's table, keyed by number.
    image
        One writable buffer that holds every section to be relocated.
    records
        The relocations; offsets must leave room for their words (see Problem.OUTSIDE).
    checks
        HARDWARE refuses what a field cannot hold; KERNEL checks what the kernel checks.
    clean_target
        Refuse a place that is not zero before it is relocated.
    batches
        The records by type, where that is known already.
    """
    failures: list[Failure] = []
    accumulating: list[Index] = []
    for number, index in by_type(records.type) if batches is None else batches:
        row = rows.get(number)
        if row is None or row.unsupported or (checks is Checks.KERNEL and not row.kernel):
            problem = Problem.UNKNOWN if row is None else Problem.UNSUPPORTED
            where = indices(index)
            failures.append(Failure(problem, row, where, np.zeros(where.size, np.uint64)))
        elif row.accumulates:
            accumulating.append(indices(index))
        elif row.op is not Op.NONE:
            failures += _apply_row(rows, row, image, records, index, checks, clean_target)
    if accumulating:
        together = np.sort(np.concatenate(accumulating))
        failures += _accumulate(rows, image, records, together, checks)
    return failures


def indices(index: Selection) -> Index:
    """Return a selection as an array of indices."""
    return np.arange(index.start, index.stop) if isinstance(index, slice) else index


def _apply_row(
    rows: Rows,
    row: Reloc,
    image: NDArray[np.uint8],
    records: Records,
    index: Selection,
    checks: Checks,
    clean_target: bool,
) -> list[Failure]:
    """Apply the records of one type; return at most one failure, for the first reason found."""
    if row.op is Op.PAIR:
        x, missing = _pair(rows, records, indices(index))
        if missing.size:
            return [Failure(Problem.UNPAIRED, row, indices(index)[missing], x[missing])]
    else:
        x = compute(row, records, index)
    bad = _first_failure(row, x, checks)
    offset = records.offset[index]
    if bad is None and clean_target and x.size:
        # Where targets are clean a row is one plain word: check and store share the places.
        (part,) = row.parts
        places = _Places(image, part.size, offset)
        occupied = places.occupied()
        if occupied is None:
            places.store(x, part.mask, clean=True)
            return []
        bad = (Problem.OCCUPIED, occupied)
    if bad is not None:
        return [Failure(bad[0], row, indices(index)[bad[1]], x[bad[1]])]
    if x.size:
        encode(row, image, offset, x)
    return []
