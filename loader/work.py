# SPDX-License-Identifier: GPL-2.0-or-later
"""What a link works on: symbol values and relocations as arrays, copied as little as possible.

A driver may have a million local symbols of which its relocations name a tenth, and its
relocation tables usually adjoin in the file. So values are computed for the symbols that
are named, and the tables are read as one array without being put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import ADDRESS_MASK
from archs.reloc import Batches, Op, Records, by_type
from loader.elf import GOT_SYMBOL, RELA, SHN_ABS, SHN_UNDEF, ElfView, RelocationTable
from loader.layout import PERCPU_SECTION

UNIFORM = 256  # records from which a table of one type is worth a pass of its own


@attrs.frozen(eq=False)
class SymbolValues:
    """S of every symbol of a module, computed for those that are asked for.

    Parameters
    ----------
    bases, known
        By section number (ABS and friends included): what is added to st_value, and
        whether symbols of that section have a value at all.
    undefined
        Indices of the undefined symbols.
    given, is_given
        Their values, and which of them have one.
    """

    view: ElfView
    bases: NDArray[np.uint64]
    known: NDArray[np.bool_]
    undefined: NDArray[np.intp]
    given: NDArray[np.uint64]
    is_given: NDArray[np.bool_]

    @classmethod
    def of_module(
        cls,
        view: ElfView,
        addresses: Mapping[int, int],
        symbols: Mapping[str, int],
        percpu: int | None,
    ) -> SymbolValues:
        """Prepare the values of a module's symbols (kernel: simplify_symbols)."""
        bases = np.zeros(1 << 16, np.uint64)
        known = np.zeros(1 << 16, np.bool_)
        where = list(addresses)
        bases[where], known[where] = list(addresses.values()), True
        section = view.section(PERCPU_SECTION)
        if section is not None and percpu is not None:
            bases[section.index], known[section.index] = percpu, True
        known[SHN_ABS] = True
        table = view.section(view.arch.got_section) if view.arch.got_section else None
        if table is not None and table.index in addresses:
            symbols = {GOT_SYMBOL: addresses[table.index], **symbols}
        found = [symbols.get(name) for name in view.undefined_names]
        weak = view.weak_undefined
        given = np.array([(value or 0) & ADDRESS_MASK for value in found], np.uint64)
        is_given = np.array(
            [
                value is not None or name in weak
                for value, name in zip(found, view.undefined_names, strict=True)
            ],
            np.bool_,
        )
        return cls(view, bases, known, view.undefined_indices, given, is_given)

    @cached_property
    def all(self) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """The value of every symbol, and whether it has one."""
        shndx = self.view.symbols["shndx"].astype(np.intp)
        values = self.view.symbols["value"] + self.bases[shndx]
        defined = self.known[shndx]
        values[self.undefined], defined[self.undefined] = self.given, self.is_given
        values[0], defined[0] = 0, True
        return values, defined

    def of(self, index: NDArray[np.intp]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return the values of the symbols at `index`, and which of them have one."""
        if self.view.symbols.size < 4 * index.size:
            values, defined = self.all
            return values[index], defined[index]
        # Field by field: numpy copies whole records ten times slower.
        shndx = self.view.symbols["shndx"][index].astype(np.intp)
        values = self.view.symbols["value"][index] + self.bases[shndx]
        defined = self.known[shndx]
        open_ones = np.flatnonzero((shndx == SHN_UNDEF) & (index > 0))
        if open_ones.size and self.undefined.size:
            wanted = index[open_ones]
            at = np.minimum(np.searchsorted(self.undefined, wanted), self.undefined.size - 1)
            hit = self.undefined[at] == wanted
            values[open_ones] = np.where(hit, self.given[at], 0)
            defined[open_ones] = hit & self.is_given[at]
        defined[index == 0] = True
        return values, defined


@attrs.frozen(eq=False)
class Work:
    """The relocations of a module, ready for the engine.

    Parameters
    ----------
    tables, starts
        Indices into `view.tables`, and the first record of each.
    records
        What the engine gets.
    offset, symbol
        The file's r_offset and symbol index of each record.
    defined
        Whether each record's symbol has a value.
    batches
        The records by type.
    """

    tables: tuple[int, ...]
    starts: NDArray[np.intp]
    records: Records
    offset: NDArray[np.uint64]
    symbol: NDArray[np.intp]
    defined: NDArray[np.bool_]
    batches: Batches

    @classmethod
    def of_module(
        cls,
        view: ElfView,
        addresses: Mapping[int, int],
        offsets: Mapping[int, int],
        values: SymbolValues,
    ) -> Work:
        """Gather the tables that apply to sections in `offsets`, without copying where possible."""
        tables = tuple(
            number
            for number, table in enumerate(view.tables)
            if table.target.index in offsets and table.records.size
        )
        chosen = [view.tables[number] for number in tables]
        sizes = [table.records.size for table in chosen]
        starts = np.concatenate((np.zeros(1, np.intp), np.cumsum(sizes, dtype=np.intp)))
        origin = _one_array(view, chosen)
        offset, addend = origin["offset"].copy(), origin["addend"].copy()
        symbol = origin["symbol"].astype(np.intp)
        place, at = np.empty_like(offset), np.empty(offset.size, np.intp)
        signed = offset.view(np.int64)
        for table, (start, end) in zip(chosen, pairwise(starts.tolist()), strict=True):
            address, there = addresses[table.target.index], offsets[table.target.index]
            np.add(offset[start:end], np.uint64(address), out=place[start:end])
            np.add(signed[start:end], there, out=at[start:end])
        group = np.repeat(np.arange(len(chosen), dtype=np.int32), sizes)
        value, defined = values.of(symbol)
        kinds = origin["type"].copy()
        batches = by_type(kinds, _uniform(kinds, starts))
        for kind, index in batches:
            row = view.arch.relocations.get(kind)
            if row is not None and row.op is Op.SIZE:
                value[index] = view.symbols["size"][symbol[index]]
        records = Records(at, place, value, addend, kinds, group)
        return cls(tables, starts[:-1], records, offset, symbol, defined, batches)


def _uniform(types: NDArray[np.uint32], starts: NDArray[np.intp]) -> list[slice]:
    """Return the long tables whose records are all of one type."""
    runs = []
    for start, end in pairwise(starts.tolist()):
        kinds = types[start:end]
        if end - start >= UNIFORM and kinds.min() == kinds.max():
            runs.append(slice(start, end))
    return runs


def _one_array(view: ElfView, tables: list[RelocationTable]) -> NDArray[np.void]:
    """Return the records of the tables as one array: a view where they adjoin in the file."""
    if not tables:
        return np.empty(0, RELA)
    end = tables[0].section.offset
    for table in tables:
        if table.section.offset != end:
            return np.concatenate([table.records for table in tables])
        end += table.section.size
    start = tables[0].section.offset
    return np.frombuffer(view.data, RELA, (end - start) // RELA.itemsize, start)
