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

The letters S, A, P, X and V are the psABIs': symbol value, addend, place, result, and
the value that the group of relocations at one place has accumulated so far.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import size_text

U64 = NDArray[np.uint64]
Index = NDArray[np.intp]

PAGE_MASK = np.uint64(0xFFFF_FFFF_FFFF_F000)


class Op(enum.Enum):
    """How X is computed; the value is the psABI's formula."""

    NONE = "-"
    ABS = "S+A"
    PC = "S+A-P"
    PAGE = "Page(S+A)-Page(P)"
    PAIR = "X of the HI20 at S"
    ADD = "V+S+A"
    SUB = "V-S-A"


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
    """

    size: int
    slices: tuple[Slice, ...]
    offset: int = 0
    bias: int = 0
    zeros: int = 0

    @property
    def mask(self) -> int:
        """Bits of the word that are replaced."""
        return self.zeros | sum(((1 << s.bits) - 1) << s.word for s in self.slices)

    def insert(self, word: int, x: int) -> int:
        """Return `word` with the slices of `x` placed in it (the scalar model)."""
        value = x + self.bias
        word &= ~self.mask
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
    high
        Whether this row is the HI20 half that a PAIR row refers to.
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
    high: bool = False
    unsupported: str = ""

    @property
    def size(self) -> int:
        """Bytes from P to the end of the last word written."""
        return max((part.offset + part.size for part in self.parts), default=0)

    @property
    def accumulates(self) -> bool:
        """Whether records of this type at one place add up before they are stored."""
        return self.op in (Op.ADD, Op.SUB)


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
    UNSUPPORTED = "relocation type is known but not supported"
    RANGE = "out of range"
    ALIGN = "misaligned"
    UNPAIRED = "no HI20 relocation at the symbol"
    OUTSIDE = "place lies outside its section"
    HOMELESS = "the symbol lies in a section that is not loaded"
    OCCUPIED = "place is not zero before relocation"


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


def compute(row: Reloc, records: Records, index: Index) -> U64:
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


def encode(row: Reloc, image: NDArray[np.uint8], offset: Index, x: U64) -> None:
    """Write the words of `row` at every `offset`."""
    for part in row.parts:
        view = word_view(image, part.size)
        at = offset + part.offset if part.offset else offset
        bits = 8 * part.size
        first = part.slices[0]
        if len(part.slices) == 1 and first.bits == bits and not part.bias and not first.x:
            view[at] = x.astype(view.dtype)
            continue
        value = x + np.uint64(part.bias) if part.bias else x
        word = np.zeros(x.size, np.uint64)
        for s in part.slices:
            field = (value >> np.uint64(s.x)) & np.uint64((1 << s.bits) - 1)
            word |= field << np.uint64(s.word)
        keep = view.dtype.type(~part.mask & ((1 << bits) - 1))
        view[at] = (view[at] & keep) | word.astype(view.dtype)


def _pair(rows: Mapping[int, Reloc], records: Records, index: Index) -> tuple[U64, Index]:
    """Return X of the HI20 record that each PAIR record names, and which have none.

    The psABI lets several LO12 share a HI20 at any distance in the same relocation
    section; S of a LO12 is the address of the instruction that carries the HI20.
    """
    highs = np.flatnonzero(np.isin(records.type, [n for n, row in rows.items() if row.high]))
    x_high = np.zeros(highs.size, np.uint64)
    for number in np.unique(records.type[highs]):
        of_type = records.type[highs] == number
        x_high[of_type] = compute(rows[int(number)], records, highs[of_type])
    # The section index is part of the key: a label is only unique within its section.
    order = np.lexsort((records.place[highs], records.group[highs]))
    key_dtype = np.dtype([("group", np.int64), ("place", np.uint64)])
    keys = np.empty(highs.size, key_dtype)
    keys["group"], keys["place"] = records.group[highs][order], records.place[highs][order]
    wanted = np.empty(index.size, key_dtype)
    wanted["group"], wanted["place"] = records.group[index], records.value[index]
    if not highs.size:
        return np.zeros(index.size, np.uint64), np.arange(index.size, dtype=np.intp)
    found = _search(keys, wanted)
    hit = np.minimum(found, highs.size - 1)
    missing = keys[hit] != wanted
    return x_high[order][hit], np.flatnonzero(missing)


def _search(keys: NDArray[np.void], wanted: NDArray[np.void]) -> Index:
    """Return searchsorted positions of (group, place) pairs, group by group.

    numpy compares structured scalars slowly, so each group is searched as plain uint64.
    """
    found = np.zeros(wanted.size, np.intp)
    for group in np.unique(wanted["group"]):
        lo, hi = np.searchsorted(keys["group"], [group, group + 1])
        mine = wanted["group"] == group
        found[mine] = lo + np.searchsorted(keys["place"][lo:hi], wanted["place"][mine])
    return found


def _accumulate(
    rows: Mapping[int, Reloc], image: NDArray[np.uint8], records: Records, index: Index
) -> None:
    """Apply ADD and SUB records: grouped by place, from 0, stored once by the last record's row.

    The kernel (arch/riscv/kernel/module.c since 6.7) starts each group from zero,
    whatever stands at the place, and stores when the relocation section is done.
    """
    order = index[np.lexsort((index, records.offset[index]))]
    at = records.offset[order]
    x = records.value[order] + records.addend[order]
    numbers = records.type[order]
    subtract = np.isin(numbers, [n for n, row in rows.items() if row.op is Op.SUB])
    x[subtract] = np.uint64(0) - x[subtract]
    first = np.flatnonzero(np.append(True, at[1:] != at[:-1]))
    total = np.add.reduceat(x, first)
    last = np.append(first[1:], at.size) - 1
    for number in np.unique(numbers[last]):
        chosen = numbers[last] == number
        encode(rows[int(number)], image, at[first[chosen]], total[chosen])


def _numbers(rows: Mapping[int, Reloc], types: NDArray[np.uint32]) -> list[int]:
    """Return the relocation numbers that occur; a damaged file may hold any 32-bit number."""
    beyond = max(rows) + 1
    known = np.flatnonzero(np.bincount(np.minimum(types, beyond), minlength=beyond)[:beyond])
    return [*known.tolist(), *np.unique(types[types >= beyond]).tolist()]


def apply(
    rows: Mapping[int, Reloc],
    image: NDArray[np.uint8],
    records: Records,
    *,
    checks: Checks = Checks.HARDWARE,
    clean_target: bool = False,
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
    """
    failures: list[Failure] = []
    accumulating: list[Index] = []
    for number in _numbers(rows, records.type):
        index = np.flatnonzero(records.type == number)
        row = rows.get(number)
        if row is None or row.unsupported:
            problem = Problem.UNKNOWN if row is None else Problem.UNSUPPORTED
            failures.append(Failure(problem, row, index, np.zeros(index.size, np.uint64)))
            continue
        if row.op is Op.NONE:
            continue
        if row.accumulates:
            accumulating.append(index)
            continue
        if row.op is Op.PAIR:
            x, missing = _pair(rows, records, index)
            if missing.size:
                failures.append(Failure(Problem.UNPAIRED, row, index[missing], x[missing]))
                continue
        else:
            x = compute(row, records, index)
        reach = row.reach if checks is Checks.HARDWARE else row.kernel_reach
        wrong = out_of_reach(x, reach)
        if wrong.any():
            failures.append(Failure(Problem.RANGE, row, index[wrong], x[wrong]))
            continue
        if checks is Checks.HARDWARE and reach is not None and reach.align > 1:
            wrong = (x & np.uint64(reach.align - 1)) != 0
            if wrong.any():
                failures.append(Failure(Problem.ALIGN, row, index[wrong], x[wrong]))
                continue
        if clean_target:
            wrong = word_view(image, row.size)[records.offset[index]] != 0
            if wrong.any():
                failures.append(Failure(Problem.OCCUPIED, row, index[wrong], x[wrong]))
                continue
        encode(row, image, records.offset[index], x)
    if accumulating:
        _accumulate(rows, image, records, np.concatenate(accumulating))
    return failures
