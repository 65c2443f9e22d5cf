# SPDX-License-Identifier: GPL-2.0-or-later
"""The one engine that applies relocations, whatever the architecture.

It works on arrays, one entry per relocation. X is computed for all of them in a few passes
over adjoining memory; what is stored alike (the same words, the same reach) is stored
together, whatever its types are called. Places are written through an aligned view of the
image where they allow it (see Places). Addresses stay uint64 throughout (uint64 + int64 would
become float64 and lose bits) and are viewed as int64 only to compare.

Checks come as reductions of a whole batch first; which records are wrong is asked only where
something is.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.op import TARGETS, Letters, OpKind
from archs.reloc import REFUSED, SUMMED, Checks, Part, Reach, Reloc, Rows

U64: TypeAlias = NDArray[np.uint64]
Index: TypeAlias = NDArray[np.intp]
Picked: TypeAlias = "slice | Index"

# Records up to which all types go through the columns of `Few` at once. That makes every pass
# over every record, but needs a third of the calls into numpy; they cost the same at 4,000
# (x86-64, riscv64) to 8,000 (arm64) records.
FEW = 4096
# Records up to which words are stored through a view of words at every byte, and types are
# counted by Python. Finding the aligned view of a batch (`StorePlaces`) costs 5 to 15 us, which is
# what aligned words save on 500 to 2,000 of them.
HARDLY = 512
# What is counted in an array by number must be below: psABIs end at about 1,100, and a damaged
# file's 2^32 would be 32 GiB.
FAR = 4096
_EVERY = slice(None)


@attrs.frozen(eq=False)
class Records:
    """Relocations as arrays of equal length, in file order within a section.

    Parameters
    ----------
    offset
        Byte offset of the place in the image buffer.
    place, target
        P and S+A as uint64 (sums wrap); for rows that take the symbol's size the target is Z+A.
    addend
        A; may be a strided view of the file.
    type
        Relocation numbers.
    group
        Number of the relocation section: pairing stays inside one. None: all are of one.
    bases
        Values of letters that are the same for all records, where rows have such letters.
    """

    offset: Index
    place: U64
    target: U64
    addend: U64
    type: NDArray[np.uint32]
    group: U64 | None = None
    bases: Mapping[str, int] | None = None

    def total(self, letters: Letters, index: Picked) -> U64:
        """Return the sum of letters for the records at `index`; ValueError where one has no value."""
        if letters in TARGETS:
            return self.target[index]
        if letters == ("P",):
            return self.place[index]
        x = np.zeros(self.type[index].size, np.uint64)
        for letter in letters:
            if letter == "S":
                x += self.target[index] - self.addend[index]
            elif letter == "A":
                x += self.addend[index]
            elif letter == "P":
                x += self.place[index]
            elif self.bases is not None and letter in self.bases:
                x += np.uint64(self.bases[letter])
            else:
                raise ValueError(f"nothing says what {letter} is here")
        return x


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


def numbers_in(types: NDArray[np.uint32]) -> list[int]:
    """Return the relocation numbers that occur, ascending; a damaged file may hold any."""
    if types.size <= HARDLY:
        return sorted(set(types.tolist()))
    low, high = int(np.minimum.reduce(types)), int(np.maximum.reduce(types))
    if low == high:
        return [low]
    if high > FAR:
        return list(map(int, np.unique(types)))
    found: list[int] = np.bincount(types).nonzero()[0].tolist()
    return found


def having(types: NDArray[np.uint32], numbers: Sequence[int]) -> Index:
    """Return the indices of the records that have one of the types."""
    found = types == numbers[0]
    for number in numbers[1:]:
        found |= types == number
    index: Index = found.nonzero()[0]
    return index


def by_number(column: NDArray[Any], types: NDArray[np.uint32]) -> NDArray[Any]:
    """Return each record's entry of an array by relocation number (see Rows).

    numpy takes four times as long by indices of any other size than its own.
    """
    return column.take(types.astype(np.intp), mode="clip")


def compute(row: Reloc, records: Records, index: Picked) -> U64:
    """Return X for the records at `index`; PAIR and accumulating rows have their own ways."""
    return row.op.compute(lambda letters: records.total(letters, index))


def out_of_reach(x: U64, reach: Reach | None) -> NDArray[np.bool_]:
    """Return which entries of X lie outside `reach` (alignment is a problem of its own)."""
    if reach is None:
        return np.zeros(x.size, np.bool_)
    v = x.view(np.int64)
    return np.asarray((v < reach.lo) | (v >= reach.hi))


def _first_failure(row: Reloc, x: U64, checks: Checks) -> tuple[Problem, NDArray[np.bool_]] | None:
    """Return why entries of X do not fit and which, or None; two reductions when all fit."""
    reach = row.reach_under(checks)
    if reach is None or not x.size:
        return None
    v = x.view(np.int64)
    if np.minimum.reduce(v) < reach.lo or np.maximum.reduce(v) >= reach.hi:
        return Problem.RANGE, out_of_reach(x, reach)
    if checks is Checks.HARDWARE and reach.align > 1:
        low = np.uint64(reach.align - 1)
        if int(np.bitwise_or.reduce(x)) & int(low):
            return Problem.ALIGN, np.asarray((x & low) != 0)
    return None


# Words ---------------------------------------------------------------------------------------


class StorePlaces:
    """Where words are stored, and the fastest way that numpy has to get there.

    Words behind one another are one slice; aligned ones are entries of a view of the image.
    Misaligned ones at even places are stored by halves. For others the view has a word at
    every byte: five times slower, but nothing that numpy offers is faster.
    """

    def __init__(self, image: NDArray[np.uint8], at: Index) -> None:
        self._image, self._at = image, at
        self._first, self._span = int(at[0]), int(at[-1]) - int(at[0])
        self._low = int(np.bitwise_or.reduce(at)) & 7
        self._ways: dict[tuple[int, int, str], tuple[NDArray[Any], Index | slice]] = {}

    @cached_property
    def least(self) -> int:
        """The smallest step from one place to the next."""
        steps = self._at[1:] - self._at[:-1]
        return int(np.minimum.reduce(steps)) if steps.size else 1 << 62

    def _way(self, part: Part) -> tuple[NDArray[Any], Index | slice]:
        """Return a view of the image, and which of its words are those of a part."""
        key = part.offset, part.size, part.order
        if key not in self._ways:
            self._ways[key] = self._find(part.offset, part.word)
        return self._ways[key]

    def _find(self, offset: int, word: np.dtype[Any]) -> tuple[NDArray[Any], Index | slice]:
        image, at, size = self._image, self._at, word.itemsize
        if (self._low | offset) & (size - 1):
            return _anywhere(image, word), at + offset if offset else at
        # Steps that are all at least the size, and are the size on average, all are the size.
        if self._span == size * (at.size - 1) and self.least >= size:
            first = self._first + offset
            return image[first : first + size * at.size].view(word), _EVERY
        shift = size.bit_length() - 1
        index = at >> shift if shift else at
        more = offset >> shift
        return image[: image.size & -size].view(word), index + more if more else index

    def read(self, part: Part) -> NDArray[Any]:
        """Return the words of a part."""
        view, index = self._way(part)
        if isinstance(index, slice):
            return view
        return view.take(index, mode="clip") if view.strides[0] == part.size else view[index]

    def store(self, part: Part, x: U64) -> None:
        """Replace the bits of a part's words that X decides."""
        if part.halves and (self._low | part.offset) & 3 == 2:
            for half in part.halves:
                self.store(half, x)
            return
        view, index = self._way(part)
        words = (x if part.whole else part.field(x)).astype(part.word)
        if part.keep is not None:
            words |= self.read(part) & part.keep
        view[index] = words

    def repeated(self, size: int) -> NDArray[np.bool_]:
        """Return which words of `size` bytes share some with an earlier one."""
        order = np.argsort(self._at, kind="stable")
        steps = self._at[order[1:]] - self._at[order[:-1]]
        found = np.zeros(self._at.size, np.bool_)
        found[order[1:][steps < size]] = True
        return found


def _anywhere(image: NDArray[np.uint8], word: np.dtype[Any]) -> NDArray[Any]:
    """Return a view of the words at every byte: slow for each, but one call stores them."""
    return np.ndarray(max(image.size - word.itemsize + 1, 0), word, image, 0, (1,))


def encode(parts: Sequence[Part], image: NDArray[np.uint8], offset: Index, x: U64) -> None:
    """Write the words of a row at every `offset`."""
    if offset.size > HARDLY:
        places = StorePlaces(image, offset)
        for part in parts:
            places.store(part, x)
        return
    for part in parts:
        at = offset + part.offset if part.offset else offset
        view = _anywhere(image, part.word)
        found = (x if part.whole else part.field(x)).astype(part.word)
        if part.keep is not None:
            found |= view[at] & part.keep
        view[at] = found


# Relocations that need others ------------------------------------------------------------------


def _pair(rows: Rows, records: Records, index: Index, x: U64) -> Index:
    """Copy the X of the HI20 that each PAIR record names; return the records that have none.

    The psABI lets several LO12 share a HI20 at any distance in the same relocation
    section; S of a LO12 is the address of the instruction that carries the HI20. Compilers
    put the two records side by side, so that is looked at first.
    """
    before = index - 1
    wanted = records.target[index] - records.addend[index]
    beside = by_number(rows.high, records.type[before])
    beside &= records.place[before] == wanted
    if records.group is not None:
        beside &= records.group[before] == records.group[index]
    x[index] = x[before]
    if beside.all():
        return np.empty(0, np.intp)
    rest = (~beside).nonzero()[0]
    return _search_pair(rows, records, index[rest], wanted[rest], x)


def _search_pair(rows: Rows, records: Records, index: Index, wanted: U64, x: U64) -> Index:
    """Do as `_pair`, the HI20 being anywhere in the same section."""
    highs = by_number(rows.high, records.type).nonzero()[0]
    known = np.zeros(index.size, np.bool_)
    groups = np.zeros(records.type.size, np.uint64) if records.group is None else records.group
    for group in np.unique(groups[index]):
        mine = (groups[index] == group).nonzero()[0]
        inside = highs[groups[highs] == group]
        if not inside.size:
            continue
        inside = inside[np.argsort(records.place[inside], kind="stable")]
        places = records.place[inside]
        hit = np.minimum(np.searchsorted(places, wanted[mine]), inside.size - 1)
        known[mine] = places[hit] == wanted[mine]
        x[index[mine]] = x[inside[hit]]
    missing: Index = index[~known]
    x[missing] = 0
    return missing


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
    if np.count_nonzero(places[1:] < places[:-1]):
        order = np.argsort(places, kind="stable")
        index, places = index[order], places[order]
    begins = np.ones(index.size + 1, np.bool_)
    np.not_equal(places[1:], places[:-1], out=begins[1:-1])
    (edges,) = begins.nonzero()
    first, last = edges[:-1], edges[1:] - 1
    x = records.target[index]
    ops = by_number(rows.signs, records.type[index])
    np.negative(x, out=x, where=ops < 0)
    total = np.add.reduceat(x, first)
    # What was there before a SET does not count.
    for at in (ops == 2).nonzero()[0].tolist():
        group = int(np.searchsorted(first, at, side="right")) - 1
        end = int(last[group]) + 1
        total[group] = np.add.reduce(x[at:end])
    failures = []
    numbers = records.type[index[last]]
    for number in numbers_in(numbers):
        chosen, row = having(numbers, [number]), rows[number]
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
            encode(row.parts, image, where, value)
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


# A small batch ---------------------------------------------------------------------------------


def _apply_few(
    rows: Rows, image: NDArray[np.uint8], records: Records, checks: Checks, clean_target: bool
) -> list[Failure] | None:
    """Apply records all at once, whatever their types; do nothing and return None if any fails.

    Sums are the exception: they come last, and bring their own failures. The steps are those
    of `apply`, which says what is wrong. Here X is computed and checked by columns of the
    table instead of row by row, and numpy stores words at any byte: slow for each word, but
    one call.
    """
    table = rows.batch_columns[checks]
    types = records.type.astype(np.intp)
    forms = table.forms.take(types, mode="clip")
    counts = np.bincount(forms, minlength=2).tolist()
    if counts[REFUSED]:
        return None
    target_bits, place_bits, least, span, low, width = table.columns.take(types, 1, mode="clip")
    at = records.offset
    if clean_target and np.count_nonzero((at + width.view(np.intp))[:-1] > at[1:]):
        return None
    x = (records.target & target_bits) - (records.place & place_bits)
    for number in table.others:
        those = having(records.type, [number])
        if those.size:
            x[those] = compute(rows[number], records, those)
    if rows.entangled:
        (index,) = table.pairs[forms].nonzero()
        if index.size and _pair(rows, records, index, x).size:
            return None
    # Unsigned, so that one comparison checks both ends.
    if np.count_nonzero((x - least) >= span) or (table.aligned and np.count_nonzero(x & low)):
        return None
    order = forms.argsort(kind="stable")
    places, values = at[order], x[order]
    batches = []
    end = 0
    for form, count in enumerate(counts):
        end += count
        if count and table.parts[form]:
            mine = slice(end - count, end)
            batches.append((table.parts[form], places[mine], values[mine]))
    if clean_target and any(
        np.count_nonzero(_anywhere(image, part.word)[where]) for (part,), where, _ in batches
    ):
        return None
    for parts, where, value in batches:
        encode(parts, image, where, value)
    if not counts[SUMMED]:
        return []
    (index,) = (forms == SUMMED).nonzero()
    return _accumulate(rows, image, records, index, checks)


# The engine ------------------------------------------------------------------------------------


def apply(
    rows: Rows,
    image: NDArray[np.uint8],
    records: Records,
    *,
    checks: Checks = Checks.HARDWARE,
    clean_target: bool = False,
    numbers: Sequence[int] | None = None,
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
    numbers
        The types that occur, where that is known already.
    """
    if 0 < records.type.size <= FEW:
        done = _apply_few(rows, image, records, checks, clean_target)
        if done is not None:
            return done
    failures: list[Failure] = []
    summed: list[int] = []
    alike: dict[int, list[int]] = {}
    numbers = numbers_in(records.type) if numbers is None else numbers
    for number in numbers:
        row = rows.get(number)
        if row is None or row.unsupported or (checks is Checks.KERNEL and not row.kernel):
            problem = Problem.UNKNOWN if row is None else Problem.UNSUPPORTED
            where = having(records.type, [number])
            failures.append(Failure(problem, row, where, np.zeros(where.size, np.uint64)))
        elif row.accumulates:
            summed.append(number)
        elif row.op.kind is not OpKind.NOTHING:
            alike.setdefault(rows.forms[checks][number], []).append(number)
    # What PAIR records take; they come last.
    pairs = [group for group in alike.values() if rows[group[0]].op.high_half]
    kept = np.zeros(records.type.size, np.uint64) if pairs else None
    for group in sorted(alike.values(), key=pairs.__contains__):
        # An index costs more than it is worth where it would name every record.
        index = having(records.type, group) if len(group) < len(numbers) else _EVERY
        if kept is None or group not in pairs:
            x = _values(rows, records, group, index)
            if kept is not None:
                kept[index] = x
        else:
            index = indices(index, kept.size)
            missing = _pair(rows, records, index, kept)
            failures += _by_type(rows, records, Problem.UNPAIRED, group, missing, kept)
            x = kept[index]
        batch = _Batch(group, records.offset[index], x, index)
        failures += _store(rows, image, records, batch, checks, clean_target)
    if summed:
        failures += _accumulate(rows, image, records, having(records.type, summed), checks)
    return sorted(failures, key=_number)


def _number(failure: Failure) -> float:
    return failure.row.number if failure.row is not None else float("inf")


def indices(index: Picked, size: int) -> Index:
    """Return a selection among `size` records as an array of indices."""
    return np.arange(size)[index] if isinstance(index, slice) else index


def _values(rows: Rows, records: Records, numbers: Sequence[int], index: Picked) -> U64:
    """Return X of the records at `index`, which are those that have these types.

    They are of one form: if they differ, some are the target, and the others that less P.
    """
    row = next((rows[n] for n in numbers if rows[n].op.placed), rows[numbers[0]])
    x = compute(row, records, index)
    others = [n for n in numbers if rows[n].op.placed is not row.op.placed]
    if others:
        mine = having(records.type[index], others)
        x[mine] = records.target[index][mine]
    return x


def _by_type(
    rows: Rows, records: Records, problem: Problem, numbers: Sequence[int], index: Index, x: U64
) -> Iterable[Failure]:
    """Yield a failure for each type among the records at `index`."""
    types = records.type[index]
    for number in numbers:
        mine = index[types == number]
        if mine.size:
            yield Failure(problem, rows[number], mine, x[mine])


@attrs.frozen(eq=False)
class _Batch:
    """Records that are stored alike: their types, places and X, and which they are."""

    numbers: Sequence[int]
    offset: Index
    x: U64
    index: Picked


def _store(
    rows: Rows,
    image: NDArray[np.uint8],
    records: Records,
    batch: _Batch,
    checks: Checks,
    clean_target: bool,
) -> Iterable[Failure]:
    """Check and store a batch; return at most one failure for each type of it."""
    row, held = rows[batch.numbers[0]], None
    fits = _first_failure(row, batch.x, checks) is None
    if fits and not clean_target:
        encode(row.parts, image, batch.offset, batch.x)
        return []
    places = StorePlaces(image, batch.offset)
    if clean_target:
        # Where targets are clean a row is one plain word.
        (part,) = row.parts
        words = places.read(part)
        held = np.asarray(words != 0) if words.any() else None
        if places.least < part.size and (twice := places.repeated(part.size)).any():
            held = twice if held is None else held | twice
    if fits and held is None:
        for part in row.parts:
            places.store(part, batch.x)
        return []
    index = indices(batch.index, records.type.size)
    failures = []
    for number in batch.numbers:
        mine = (records.type[index] == number).nonzero()[0]
        bad = _first_failure(rows[number], batch.x[mine], checks)
        if bad is None and held is not None and held[mine].any():
            bad = Problem.OCCUPIED, held[mine]
        if bad is not None:
            wrong = mine[bad[1]]
            failures.append(Failure(bad[0], rows[number], index[wrong], batch.x[wrong]))
    return failures
