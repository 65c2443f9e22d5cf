# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's page tables, read as a whole: what of its half of the addresses is mapped, and where to."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.levels.boot import TableFormat

_ENTRY = 3  # log2 of an entry's bytes
_MOST = 1 << 21  # leaves that are looked at: more than any memory of ours has pages
_WHOLE = 1 << 64
_PAGE_BITS = 12  # of what `there` counts by

# Returns the words at a physical address, or None where there is no memory.
Words = Callable[[int, int], "NDArray[np.uint64] | None"]


class Lacking(LookupError):
    """Memory that a dump does not have."""


@attrs.frozen
class Run:
    """Memory that lies in a row by both addresses.

    Parameters
    ----------
    address, physical
        Where it begins.
    size
        Bytes.
    """

    address: int
    physical: int
    size: int

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.address + self.size


@attrs.frozen(kw_only=True)
class Tables:
    """The page tables of a kernel.

    Parameters
    ----------
    format
        How entries are read.
    root
        Physical address of the first table.
    bits, granule
        Bits of an address, and of a page's size.
    """

    format: TableFormat
    root: int
    bits: int
    granule: int

    def runs(self, words: Words) -> list[Run]:
        """Return what is mapped in the kernel's half, by address.

        Tables that several entries lead to count once: they are fillers (KASAN's shadow, x86's
        espfix), the same memory over and over.

        Parameters
        ----------
        words
            Returns so many words at a physical address, or None.
        """
        stride = self.granule - _ENTRY
        shift = self.top
        tables = [(self.root, _WHOLE - (1 << self.bits))]
        count, first = 1 << self.bits - shift, 0
        if self.format.shared:
            first = count // 2
        found: list[tuple[NDArray[np.uint64], NDArray[np.uint64], int]] = []
        seen: set[int] = set()
        leaves = 0
        while tables and leaves < _MOST:
            below: list[tuple[int, int]] = []
            for at, start in tables:
                entries = words(at, count)
                if entries is None or at in seen:
                    continue
                seen.add(at)
                index = np.flatnonzero(entries & np.uint64(1))
                index = index[index >= first]
                chosen = self.plain(entries[index], index, shift)
                frames = (chosen & np.uint64(self.format.frame)) << np.uint64(self.format.shift)
                starts = np.uint64(start) + (index.astype(np.uint64) << np.uint64(shift))
                maps = self.leaves(chosen, shift)
                inside = np.uint64((1 << shift) - 1)
                found.append((starts[maps], frames[maps] & ~inside, 1 << shift))
                leaves += int(maps.sum())
                below += zip(frames[~maps].tolist(), starts[~maps].tolist(), strict=True)
            tables, shift, first = below, shift - stride, 0
            count = 1 << stride
            if shift < self.granule:
                break
        return _joined(found)

    def walk(self, address: int, words: Words, has: Callable[[int], bool]) -> int | None:
        """Return the physical address of one in the kernel's half; None where nothing is mapped.

        Parameters
        ----------
        words
            As for `runs`.
        has
            Returns whether a table is there; the address of one that is not is the result.
        """
        if address < _WHOLE - (1 << self.bits - int(self.format.shared)):
            return None
        at, shift, stride = self.root, self.top, self.granule - _ENTRY
        mask = (1 << self.bits - shift) - 1
        while has(at):
            index = address >> shift & mask
            found = words(at + 8 * index, 1)
            if found is None or not int(found[0]) & 1:
                return None
            entry = int(self.plain(found, np.array([index]), shift)[0])
            to = (entry & self.format.frame) << self.format.shift
            if self.leaves(np.array([entry], np.uint64), shift)[0]:
                within = (1 << shift) - 1
                return to & ~within | address & within
            at, shift, mask = to & -(1 << self.granule), shift - stride, (1 << stride) - 1
            if shift < self.granule:
                return None
        return at

    def entry(self, words: Words, address: int) -> int | None:
        """Return the entry that maps an address, however much it maps; None where none does."""
        shift, stride = self.top, self.granule - _ENTRY
        table, count = self.root, 1 << self.bits - shift
        while shift >= self.granule:
            found = words(table, count)
            entry = 0 if found is None else int(found[address >> shift & count - 1])
            if not entry & 1:
                return None
            if self.leaves(np.array([entry], np.uint64), shift)[0]:
                return entry
            table = (entry & self.format.frame) << self.format.shift
            shift, count = shift - stride, 1 << stride
        return None

    def is_open(self, words: Words, address: int) -> bool | None:
        """Return whether memory may be stored to and executed; None where that is not known."""
        written, executed = self.format.written, self.format.executed
        if written is None or executed is None:
            return None
        entry = self.entry(words, address)
        if entry is None:
            return False
        return all(entry & mask == value for mask, value in (written, executed))

    @property
    def top(self) -> int:
        """The bits below an index into the first table."""
        stride = self.granule - _ENTRY
        return self.granule + (-(-(self.bits - self.granule) // stride) - 1) * stride

    def plain(
        self, entries: NDArray[np.uint64], index: NDArray[np.int64], shift: int
    ) -> NDArray[np.uint64]:
        """Return entries at places of a table, each with an address of its own.

        Those of a run may say in their address how long it is; they lead to where an entry that is
        in none would lead (RISC-V Privileged, Svnapot).
        """
        form = self.format
        if not form.coded or shift != self.granule:
            return entries
        within = np.flatnonzero(entries & np.uint64(form.run))
        if not len(within):
            return entries
        lowest = np.uint64(self.granule - form.shift)
        numbers = (entries[within] & np.uint64(form.frame)) >> lowest
        inside = 2 * (numbers & (~numbers + np.uint64(1))) - np.uint64(1)
        numbers = numbers & ~inside | index[within].astype(np.uint64) & inside
        found = entries.copy()
        found[within] = found[within] & ~np.uint64(form.frame) | numbers << lowest
        return found

    def leaves(self, entries: NDArray[np.uint64], shift: int) -> NDArray[np.bool_]:
        """Return which entries map memory of `1 << shift` bytes themselves, given they are valid."""
        if shift == self.granule:
            return np.ones(len(entries), bool)
        bits, leads = self.format.table or self.format.leaf, bool(self.format.table)
        found: NDArray[np.bool_] = ((entries & np.uint64(bits)) != 0) != leads
        return found


class Own:
    """Page tables of our own: a kernel's, but for memory that is not there, and with more.

    Tables all of whose memory is there stay the kernel's, so that it may change them; of others
    there are copies without it. Nothing of the kernel's is written.

    Parameters
    ----------
    tables
        The kernel's.
    words
        Returns words at a physical address that can be written.
    there
        Whether each page of 4 KiB is there.
    start
        Physical address of the first.
    room
        Where tables may be made: physical address of pages that nobody has, and their end.
    """

    def __init__(
        self,
        tables: Tables,
        words: Words,
        there: NDArray[np.bool_],
        start: int,
        room: tuple[int, int],
    ) -> None:
        self._tables, self._words, self._start = tables, words, start
        self._format, self._granule = tables.format, tables.granule
        self._stride = tables.granule - _ENTRY
        self._lacks = np.concatenate(([0], np.cumsum(~there)))
        self._at, self._end = room
        self._copies: dict[tuple[int, int], int | None] = {}
        top = tables.top
        count = 1 << tables.bits - top
        self._top = top
        entries = words(tables.root, count)
        if entries is None:
            raise LookupError(f"no memory at {tables.root:#x}")
        self.root = self._take()
        self._root = self._table(self.root, max(count, 2))[:count]
        self._root[:] = self._without(entries, top, 0)

    @property
    def end(self) -> int:
        """The physical address behind what tables took."""
        return self._at

    def tables(self) -> Tables:
        """Return them."""
        return attrs.evolve(self._tables, root=self.root)

    def add(self, physical: int, size: int, gap: int) -> int:
        """Map memory of ours, as data of the kernel's, where nothing is mapped; its address.

        Parameters
        ----------
        gap
            Bytes from the begin that stay unmapped.
        """
        tables, free = self._tables, np.flatnonzero(self._root == 0)
        first = len(self._root) // 2 if self._format.shared else 0
        free = free[free >= first]
        if not len(free):
            raise LookupError("no room among its addresses")
        index = int(free[len(free) // 2])
        address = _WHOLE - (1 << tables.bits) + (index << self._top)
        for offset in range(gap, size, 1 << self._granule):
            self._map(address + offset, physical + offset)
        return address

    def _map(self, address: int, physical: int) -> None:
        table, shift = self._root, self._top
        mask = len(table) - 1
        while shift > self._granule:
            index = address >> shift & mask
            if not table[index]:
                table[index] = self._entry(self._take(), self._format.link)
            at = self._frame(int(table[index]))
            mask = (1 << self._stride) - 1
            table, shift = self._table(at, mask + 1), shift - self._stride
        table[address >> shift & mask] = self._entry(physical, self._format.page)

    def _entry(self, physical: int, bits: int) -> int:
        return physical >> self._format.shift | bits

    def _frame(self, entry: int) -> int:
        return (entry & self._format.frame) << self._format.shift

    def _take(self) -> int:
        at, self._at = self._at, self._at + (1 << self._granule)
        if self._at > self._end:
            raise LookupError("no room for its page tables")
        return at

    def _table(self, at: int, count: int) -> NDArray[np.uint64]:
        found = self._words(at, count)
        if found is None:
            raise LookupError(f"no memory at {at:#x}")
        return found

    def _missing(self, frames: NDArray[np.uint64], shift: int) -> NDArray[np.int64]:
        """Return how many pages of 4 KiB each leaf has that are not there."""
        pages = 1 << shift - _PAGE_BITS
        first = (frames.astype(np.int64) - self._start) >> _PAGE_BITS
        most = len(self._lacks) - 1
        low, high = np.clip(first, 0, most), np.clip(first + pages, 0, most)
        found: NDArray[np.int64] = self._lacks[high] - self._lacks[low]
        return found

    def _without(self, entries: NDArray[np.uint64], shift: int, depth: int) -> NDArray[np.uint64]:
        """Return a table's entries without memory that is not there."""
        found = entries.copy()
        index = np.flatnonzero(entries & np.uint64(1))
        chosen = self._tables.plain(entries[index], index, shift)
        if self._format.coded and shift == self._granule:  # the CPU here may know no runs
            found[index] = chosen = chosen & ~np.uint64(self._format.run)
        maps = self._tables.leaves(chosen, shift)
        frames = (chosen & np.uint64(self._format.frame)) << np.uint64(self._format.shift)
        frames &= ~np.uint64((1 << self._granule) - 1)
        leaves, below = index[maps], index[~maps]
        of_leaves = frames[maps] & ~np.uint64((1 << shift) - 1)
        missing = self._missing(of_leaves, shift)
        pages = 1 << shift - _PAGE_BITS
        for number in np.flatnonzero(missing).tolist():
            entry, at = int(entries[leaves[number]]), int(of_leaves[number])
            if shift == self._granule or missing[number] == pages:
                found[leaves[number]] = 0
            else:
                found[leaves[number]] = self._split(entry, at, shift - self._stride)
        for number, at in zip(below.tolist(), frames[~maps].tolist(), strict=True):
            copy = self._copy(at, shift - self._stride, depth + 1)
            if copy is None:
                found[number] = 0
            elif copy != at:
                bits = int(entries[number]) & ~self._format.frame
                found[number] = self._entry(copy, bits)
        return found

    def _copy(self, at: int, shift: int, depth: int) -> int | None:
        """Return a table without what is not there: itself where all is; None: it is not there."""
        key = at, shift
        if key not in self._copies:
            count = 1 << self._stride
            entries = self._words(at, count)
            here = np.array([at], np.uint64)
            if entries is None or self._missing(here, self._granule)[0] or shift < self._granule:
                self._copies[key] = None
            else:
                self._copies[key] = at
                found = self._without(entries, shift, depth)
                if not np.array_equal(found, entries):
                    self._copies[key] = made = self._take()
                    self._table(made, count)[:] = found
        return self._copies[key]

    def _split(self, entry: int, physical: int, shift: int) -> int:
        """Return an entry that leads to a table of what one large leaf maps, less what is missing."""
        bits = entry & ~self._format.frame
        if shift == self._granule:
            bits = bits & ~self._format.large | self._format.table
        count = 1 << self._stride
        steps = np.arange(count, dtype=np.uint64) << np.uint64(shift)
        entries = ((np.uint64(physical) + steps) >> np.uint64(self._format.shift)) | np.uint64(bits)
        made = self._take()
        self._table(made, count)[:] = self._without(entries, shift, 0)
        return self._entry(made, self._format.link)


def _joined(found: list[tuple[NDArray[np.uint64], NDArray[np.uint64], int]]) -> list[Run]:
    if not found:
        return []
    at = np.concatenate([each[0] for each in found])
    to = np.concatenate([each[1] for each in found])
    size = np.concatenate([np.full(len(each[0]), each[2], np.uint64) for each in found])
    order = np.argsort(at, kind="stable")
    at, to, size = at[order], to[order], size[order]
    if not len(at):
        return []
    cut = (at[1:] != at[:-1] + size[:-1]) | (to[1:] != to[:-1] + size[:-1])
    starts = np.concatenate(([0], np.flatnonzero(cut) + 1))
    ends = np.concatenate((starts[1:], [len(at)])) - 1
    return [
        Run(first, where, last + length - first)
        for first, where, last, length in zip(
            at[starts].tolist(),
            to[starts].tolist(),
            at[ends].tolist(),
            size[ends].tolist(),
            strict=True,
        )
    ]
