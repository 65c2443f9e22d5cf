# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole objects through the scalar model: what the psABI makes of a module's records.

Takes the records of a relocation table as the file has them, looks up S (or Z, or what goes
through a global offset table) by itself, and gives them to `tests.support.scalar`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import numpy as np

from loader.elfview import SHN_ABS, SHN_UNDEF, ElfView, RelocationTable
from loader.layout import PERCPU_SECTION
from tests.support import scalar
from tests.support.scalar import MASK64, Record


@attrs.frozen
class Table:
    """A linker's global offset table: its address, and what its slots hold -> their addresses."""

    got: int
    slots: Mapping[int, int]


@attrs.frozen
class World:
    """What an object is linked against."""

    view: ElfView
    addresses: Mapping[int, int]
    symbols: Mapping[str, int]
    percpu: int = 0

    def value(self, symbol: int) -> int:
        """Return S of a symbol, by index."""
        entry = self.view.symbols[symbol]
        where, value = int(entry["shndx"]), int(entry["value"])
        if symbol == 0:
            return 0
        if where == SHN_UNDEF:
            return self.symbols.get(self.view.symbol_name(symbol), 0)
        if where == SHN_ABS:
            return value
        if self.view.sections[where].name == PERCPU_SECTION:
            return self.percpu + value
        return self.addresses[where] + value

    def records(
        self, table: RelocationTable, chosen: Iterable[int] | None = None, got: Table | None = None
    ) -> list[Record]:
        """Return records of a table (all, or those at the indices `chosen`) in file order."""
        machine, start = self.view.arch.machine, self.addresses[table.target.index]
        records = table.records if chosen is None else table.records[sorted(chosen)]
        found, known = [], scalar.psabi(machine)
        for offset, number, symbol, addend in records.tolist():
            a = scalar.signed(addend)
            if number in known.sized:
                s = int(self.view.symbols["size"][symbol])
            else:
                s = self.value(symbol)
            if number in known.got:
                assert got is not None
                through = known.got[number]
                s, a = through(s, a, got.got, lambda x: got.slots[x & MASK64]), 0
            found.append(Record(offset, start + offset, s & MASK64, a, number))
        return found

    def closure(self, table: RelocationTable, chosen: Iterable[int]) -> list[int]:
        """Return indices with those of the HI20 and of the sums that they depend on."""
        machine, records = self.view.arch.machine, table.records
        kinds, offsets = records["type"], records["offset"]
        found = set(chosen)
        index = np.array(sorted(found), np.intp)
        low = index[np.isin(kinds[index], list(scalar.psabi(machine).paired))]
        if low.size:
            values = np.array([self.value(int(s)) for s in records["symbol"][low]], np.uint64)
            places = values - np.uint64(self.addresses[table.target.index])
            high = np.flatnonzero(np.isin(kinds, list(scalar.psabi(machine).high)))
            found |= set(high[np.isin(offsets[high], places)].tolist())
        sums = [n for n in np.unique(kinds).tolist() if scalar.accumulates(machine, n)]
        added = index[np.isin(kinds[index], sums)]
        if added.size:
            every = np.flatnonzero(np.isin(kinds, sums))
            found |= set(every[np.isin(offsets[every], offsets[added])].tolist())
        return sorted(found)


def slots_of(address: int, contents: bytes) -> Table:
    """Return a table from its bytes; slots that hold 0 are spare."""
    words = [int.from_bytes(contents[at : at + 8], "little") for at in range(0, len(contents), 8)]
    return Table(address, {word: address + 8 * n for n, word in enumerate(words) if word})


def check(world: World, linked: Mapping[int, bytes | memoryview], got: Table) -> int:
    """Assert that linked bytes are what the formulas give; return how many records there were."""
    count = 0
    for table in world.view.tables:
        index = table.target.index
        if index not in world.addresses:  # of a section that takes no memory
            continue
        image = bytearray(world.view.contents(world.view.sections[index]))
        them = world.records(table, got=got)
        scalar.apply(world.view.arch.machine, image, them)
        assert bytes(linked[index]).hex() == image.hex(), world.view.sections[index].name
        count += len(them)
    return count
