# SPDX-License-Identifier: GPL-2.0-or-later
"""What numpy needs at the least to link a module, by the fastest passes that we know.

The floor of the benchmark reads and copies; this computes and stores, too, with everything
prepared that a linker has to find out: the value of every symbol, which records are stored
alike, which HI20 a record takes its X from, which records add up, and the fastest view of
every place. Nothing is checked, nothing parsed, and small tables are left out. What is left
are passes over the records, and the copies.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import ADDRESS_MASK, PAGE_SIZE
from archs.engine import U64, Index, StorePlaces, having, numbers_in
from archs.op import Op, OpKind
from archs.reloc import Part
from loader.elfview import SHT_NOBITS, ElfView, RelocationTable
from loader.linked import Linked

_PAGE = np.uint64(-PAGE_SIZE & ADDRESS_MASK)
SMALL = 1000  # records below which a table is left out


@attrs.frozen(eq=False)
class _Group:
    """Records that are stored alike, the records before them, their places and words."""

    op: Op
    index: Index | slice
    before: Index
    places: StorePlaces
    parts: tuple[Part, ...]


@attrs.frozen(eq=False)
class _Sums:
    """Records that add up: which, the first of each place, which subtract; sums by their words."""

    index: Index
    first: Index
    negative: NDArray[np.bool_]
    stored: tuple[tuple[Index, StorePlaces, Part], ...]


@attrs.frozen(eq=False)
class _Table:
    records: NDArray[np.void]
    address: U64
    groups: tuple[_Group, ...]
    paired: bool
    sums: _Sums | None


class Least:
    """The passes for one linked module; call it to make them."""

    def __init__(self, view: ElfView, linked: Linked, addresses: Mapping[int, int]) -> None:
        self._values = linked.symbols.copy()
        self._image = linked.image.copy()
        self._tables = [
            self._prepared(view, table, linked.offsets[index], addresses[index])
            for table in view.tables
            if (index := table.target.index) in linked.offsets and table.records.size >= SMALL
        ]
        self._contents = [
            view.contents(section)
            for section in view.sections
            if section.allocated and section.type != SHT_NOBITS
        ]
        self()  # places remember the view that serves them

    def __call__(self) -> list[bytes]:
        """Read, compute and store every record, and copy the sections."""
        for table in self._tables:
            records, place = table.records, None
            target = self._values.take(records["symbol"].astype(np.intp), mode="clip")
            target += records["addend"]
            kept = np.empty(records.size, np.uint64) if table.paired else None
            for group in table.groups:
                if group.op.high_half and kept is not None:
                    x = kept[group.before]
                else:
                    x = target[group.index]
                    if group.op.placed:
                        place = records["offset"] + table.address if place is None else place
                        p, whole = place[group.index], group.op.granule == 1
                        x = x - p if whole else (x & _PAGE) - (p & _PAGE)
                    if kept is not None:
                        kept[group.index] = x
                for part in group.parts:
                    group.places.store(part, x)
            if table.sums is not None:
                x = target[table.sums.index]
                np.negative(x, out=x, where=table.sums.negative)
                total = np.add.reduceat(x, table.sums.first)
                for mine, places, part in table.sums.stored:
                    places.store(part, total[mine])
        return [bytes(contents) for contents in self._contents]

    def _prepared(self, view: ElfView, table: RelocationTable, there: int, address: int) -> _Table:
        rows, types = view.arch.link.relocations, table.records["type"].copy()
        at = (table.records["offset"] + np.uint64(there)).view(np.intp)
        alike: dict[tuple[Op, tuple[Part, ...]], list[int]] = {}
        summed: list[int] = []
        for number in numbers_in(types):
            row = rows[number]
            if row.accumulates:
                summed.append(number)
            elif row.op.kind is not OpKind.NOTHING:
                alike.setdefault((row.op, row.parts), []).append(number)
        groups = []
        for (op, parts), numbers in sorted(alike.items(), key=lambda item: item[0][0].high_half):
            index = having(types, numbers)
            every = index.size == types.size
            places, chosen = StorePlaces(self._image, at[index]), slice(None) if every else index
            groups.append(_Group(op, chosen, index - 1, places, parts))
        sums = self._sums(view, types, at, having(types, summed)) if summed else None
        paired = any(op.high_half for op, _ in alike)
        return _Table(table.records, np.array(address, np.uint64), tuple(groups), paired, sums)

    def _sums(self, view: ElfView, types: NDArray[np.uint32], at: Index, index: Index) -> _Sums:
        index = index[np.argsort(at[index], kind="stable")]
        places = at[index]
        first = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
        rows = view.arch.link.relocations
        negative = np.array([rows[number].op.weight("S") < 0 for number in types[index].tolist()])
        kinds, stored = types[index[first]], []
        for number in numbers_in(kinds):
            mine = having(kinds, [number])
            where = StorePlaces(self._image, places[first[mine]])
            stored += [(mine, where, part) for part in rows[number].parts]
        return _Sums(index, first, negative, tuple(stored))
