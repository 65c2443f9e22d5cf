# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables gone through entry by entry, holes too, as a kernel's ptdump goes through its own."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.levels.boot import Dump
from emulator.paging import Tables, Words

_ENTRY = 3  # log2 of an entry's bytes
_U = np.uint64
Column = NDArray[np.uint64]


@attrs.frozen(eq=False)
class Noted:
    """Stretches of addresses whose entries are alike, in order and without gaps.

    Parameters
    ----------
    starts
        Where each begins.
    depths
        The level of its entries, counted from the pages.
    kept
        What is kept of them; 0 for a hole.
    effective
        What the tables above leave of that, where it counts (`Dump.narrows`, `Dump.closes`).
    physical
        Where the first entry of each leads.
    end
        Where the last one ends.
    """

    starts: Column
    depths: NDArray[np.int8]
    kept: Column
    effective: Column
    physical: Column
    end: int

    def moved(self, by: int) -> Noted:
        """Return the same at other addresses."""
        return attrs.evolve(self, starts=self.starts + _U(by), end=self.end + by)

    def taken(self, index: slice | NDArray[np.int64], end: int) -> Noted:
        """Return some of them, the last of which ends at `end`."""
        return Noted(
            self.starts[index],
            self.depths[index],
            self.kept[index],
            self.effective[index],
            self.physical[index],
            end,
        )


def joined(parts: Sequence[Noted]) -> Noted:
    """Return parts that follow each other as one, what is alike in one stretch."""
    whole = Noted(
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.depths for part in parts]),
        kept := np.concatenate([part.kept for part in parts]),
        effective := np.concatenate([part.effective for part in parts]),
        np.concatenate([part.physical for part in parts]),
        parts[-1].end,
    )
    depths = whole.depths
    cut = (kept[1:] != kept[:-1]) | (depths[1:] != depths[:-1]) | (effective[1:] != effective[:-1])
    return whole.taken(np.concatenate(([0], np.flatnonzero(cut) + 1)), whole.end)


class Walk:
    """Goes through page tables.

    Tables that several entries lead to (KASAN's shadow, x86's espfix) are read once.

    Parameters
    ----------
    tables
        The page tables; their format must say how the kernel prints them.
    words
        Returns so many words at a physical address, or None where there is no memory.
    """

    def __init__(self, tables: Tables, words: Words) -> None:
        assert tables.format.dump is not None
        self._tables, self._words = tables, words
        self._dump: Dump = tables.format.dump
        self._stride = tables.granule - _ENTRY
        self._known: dict[tuple[int, int, int], Noted] = {}

    def all(self) -> list[Noted]:
        """Return what the kernel would go through: the lower half where it does, and its own."""
        tables, dump = self._tables, self._dump
        top = tables.top
        count = 1 << tables.bits - top
        depth = (top - tables.granule) // self._stride
        entries = self._words(tables.root, count)
        if entries is None:
            return []
        first = count // 2 if tables.format.shared else 0
        halves = [(first + dump.over, count, (1 << 64) - (1 << tables.bits))]
        if dump.lower and first:
            halves.insert(0, (0, first, 0))
        return [
            self._table(entries[low:high], low, depth, None).moved(base)
            for low, high, base in halves
        ]

    def _table(self, entries: Column, first: int, depth: int, above: int | None) -> Noted:
        """Return what some entries of a table map, `first` the index of the first of them.

        `above` is what the tables above leave of rights; None: this is the first table.
        """
        tables, dump = self._tables, self._dump
        shift = tables.granule + depth * self._stride
        index = np.arange(first, first + len(entries), dtype=_U)
        starts = index << _U(shift)
        kept = entries & _U(dump.kept)
        counted = dump.narrows | dump.closes
        effective = entries & _U(dump.kept if above is None else counted)
        if above is not None:
            narrowed = entries & _U(above) & _U(dump.narrows)
            effective = narrowed | ((entries | _U(above)) & _U(dump.closes))
        if not counted:
            effective = np.zeros_like(entries)
        effective = np.where(entries == 0, _U(0), effective)
        plain = tables.plain(entries, index.astype(np.int64), shift)
        frames = (plain & _U(tables.format.frame)) << _U(tables.format.shift)
        valid = (entries & _U(1)) != 0
        leads = valid & ~tables.leaves(entries, shift)
        end = (first + len(entries)) << shift
        depths = np.full(len(entries), depth, np.int8)
        here = Noted(starts, depths, kept, effective, frames, end)
        places = np.flatnonzero(leads)
        if not len(places):
            return joined([here])
        parts: list[Noted] = []
        before = 0
        for place in places.tolist():
            if place > before:
                parts.append(_slice(here, before, place))
            rights = int(effective[place]) if counted else 0
            parts.append(self._below(int(frames[place]), depth - 1, rights, int(starts[place])))
            before = place + 1
        if before < len(entries):
            parts.append(_slice(here, before, len(entries)))
        return joined(parts)

    def _below(self, at: int, depth: int, above: int, start: int) -> Noted:
        """Return what a table below another maps, from `start` on."""
        at &= -(1 << self._tables.granule)
        key = at, depth, above
        if key not in self._known:
            count = 1 << self._stride
            entries = self._words(at, count)
            if entries is None:  # as nothing: where there is no memory is no table
                entries = np.zeros(count, _U)
            self._known[key] = self._table(entries, 0, depth, above)
        return self._known[key].moved(start)


def _slice(noted: Noted, low: int, high: int) -> Noted:
    end = int(noted.starts[high]) if high < len(noted.starts) else noted.end
    return noted.taken(slice(low, high), end)
