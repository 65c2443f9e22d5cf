# SPDX-License-Identifier: GPL-2.0-or-later
"""What a link works on: symbol values and relocations as arrays, copied as little as possible.

A driver may have a million local symbols of which its relocations name a tenth, and its
relocation tables usually adjoin in the file. So values are computed for the symbols that
are named, and the tables are read as one array without being put together.

Most modules link without anything special: then the relocations are taken in pieces that
caches hold, and forgotten (`Work.pieces`). Whatever needs all of them at once, PLT entries,
errors and reports, asks for `Work.records`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import ADDRESS_MASK
from archs.engine import U64, Index, Records, by_number, having, numbers_in
from archs.reloc import Rows
from loader.elfview import GOT_SYMBOL, SHN_ABS, ElfView
from loader.layout import PERCPU_SECTION, Layout

ALONE = 4096  # records from which a table is worth a piece of its own
PIECE = 1 << 15  # records whose arrays fit into caches
SECTION_CODE = 0x10000 - SHN_ABS  # added to a section number of 16 bits: ABS becomes 0
NO_VALUE = 0xFFFF_FFFF_FFFF_FFFF  # stands for "none"; who finds it must look whether it is one


@attrs.frozen(eq=False)
class SymbolValues:
    """S of every symbol of a module, computed for those that are asked for.

    Parameters
    ----------
    bases, known
        By section code (see SECTION_CODE): what is added to st_value, and whether symbols of
        that section have a value at all. The last entry stands for every code beyond.
    given, is_given
        Values of the undefined symbols in the order of their indices, and which have one.
    """

    view: ElfView
    bases: U64
    known: NDArray[np.bool_]
    given: U64
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
        count = len(view.sections) + SECTION_CODE + 1
        bases, known = np.zeros(count, np.uint64), np.zeros(count, np.bool_)
        found = dict(addresses)
        section = view.find(PERCPU_SECTION)
        if section is not None and percpu is not None:
            found[section.index] = percpu
        where = np.fromiter(found, np.intp, len(found)) + SECTION_CODE
        bases[where] = np.fromiter(found.values(), np.uint64, len(found))
        known[where] = known[0] = True
        table = view.section(view.arch.got_section) if view.arch.got_section else None
        if table is not None and table.index in addresses:
            symbols = {GOT_SYMBOL: addresses[table.index], **symbols}
        names = view.undefined_names
        values = list(map(symbols.get, names))
        is_given = np.ones(len(names), np.bool_)
        if None in values:
            weak = view.weak_undefined
            pairs = zip(names, values, strict=True)
            is_given[:] = [value is not None or name in weak for name, value in pairs]
            values = [value or 0 for value in values]
        try:
            given = np.fromiter(values, np.uint64, len(names))
        except OverflowError:
            wrapped = [(value or 0) & ADDRESS_MASK for value in values]
            given = np.fromiter(wrapped, np.uint64, len(names))
        return cls(view, bases, known, given, is_given)

    @cached_property
    def all(self) -> tuple[U64, NDArray[np.bool_]]:
        """The value of every symbol, and whether it has one."""
        # numpy takes four times as long by indices of any other size.
        code = (self.view.symbols["shndx"] + np.uint16(SECTION_CODE)).astype(np.intp)
        values, defined = self.bases.take(code, mode="clip"), self.known.take(code, mode="clip")
        values += self.view.symbols["value"]
        undefined = self.view.undefined_indices
        values[undefined], defined[undefined] = self.given, self.is_given
        values[0], defined[0] = 0, True
        return values, defined

    @cached_property
    def _marked(self) -> U64:
        """The value of every symbol, NO_VALUE where it has none."""
        values, defined = self.all
        values = values.copy()
        values[(~defined).nonzero()[0]] = NO_VALUE
        return values

    @cached_property
    def _worth_all(self) -> bool:
        """Whether to compute every value once is cheaper than those of each record."""
        return 2 * self.view.symbols.size < sum(t.records.size for t in self.view.tables)

    @cached_property
    def _open(self) -> U64:
        """Values of the undefined symbols, by how far they stand behind the local ones."""
        first = self.view.first_global
        found = np.full(self.view.symbols.size - first + 1, NO_VALUE, np.uint64)
        found[self.view.undefined_indices - first] = np.where(
            self.is_given, self.given, np.uint64(NO_VALUE)
        )
        return found

    def of(self, index: NDArray[np.uint32]) -> U64:
        """Return the values of the symbols at `index`, NO_VALUE for those that have none."""
        symbols = self.view.symbols
        at = index.astype(np.intp)
        if self._worth_all:
            return self._marked.take(at, mode="clip")
        # Field by field: numpy copies whole records ten times slower.
        code = (symbols["shndx"][at] + np.uint16(SECTION_CODE)).astype(np.intp)
        values = symbols["value"][at]
        values += self.bases.take(code, mode="clip")
        rest = (~self.known.take(code, mode="clip")).nonzero()[0]
        if rest.size:
            behind = at[rest] - self.view.first_global
            late = self._open.take(behind, mode="clip")
            late[behind < 0] = NO_VALUE
            late[at[rest] == 0] = 0
            values[rest] = late
        return values


@attrs.frozen(eq=False)
class Piece:
    """Some of a module's relocations.

    Parameters
    ----------
    records
        What the engine gets.
    numbers
        The types that occur.
    symbol
        Symbol index of each record.
    offset, room
        The file's r_offset, and the bytes that the record's section has (one for all, or each).
    complete
        Whether every symbol surely has a value.
    """

    records: Records
    numbers: Sequence[int]
    symbol: NDArray[np.uint32]
    offset: U64
    room: U64 | np.uint64
    complete: bool

    def outside(self, rows: Rows) -> Index:
        """Return the records whose words do not lie in their sections."""
        if isinstance(self.room, np.uint64):
            # Of one section the last place decides.
            widest = max((rows[n].size for n in self.numbers if n in rows), default=0)
            if int(np.maximum.reduce(self.offset)) + widest <= int(self.room):
                return np.empty(0, np.intp)
        bad = by_number(rows.widths, self.records.type) > self.room - self.offset
        bad |= self.offset > self.room
        index: Index = bad.nonzero()[0]
        return index


@attrs.frozen(eq=False)
class Work:
    """The relocations of a module.

    Parameters
    ----------
    tables
        Indices into `view.tables` of those that apply to loaded sections.
    spots
        A row for each of them: the section's address, its offset in the buffer, its size in
        bytes, and the row's number.
    """

    view: ElfView
    values: SymbolValues
    tables: tuple[int, ...]
    spots: U64

    @classmethod
    def of_module(
        cls,
        view: ElfView,
        layout: Layout,
        addresses: Mapping[int, int],
        offsets: Mapping[int, int],
        values: SymbolValues,
    ) -> Work:
        """Find the tables that apply to sections in `offsets`."""
        tables: list[int] = []
        spots: list[int] = []
        for number, table in enumerate(view.tables):
            section = table.target
            there = offsets.get(section.index)
            if there is not None and table.records.size:
                size = layout.resized.get(section.index, section.size)
                spots += (addresses[section.index], there, size, len(tables))
                tables.append(number)
        columns = np.fromiter(spots, np.uint64, len(spots)).reshape(-1, 4)
        return cls(view, values, tuple(tables), columns)

    @cached_property
    def starts(self) -> Index:
        """The first record of each table, and the number of all."""
        sizes = [self.view.tables[number].records.size for number in self.tables]
        return np.cumsum([0, *sizes], dtype=np.intp)

    @cached_property
    def whole(self) -> Piece:
        """All relocations in file order."""
        return self._piece(range(len(self.tables)))

    @property
    def records(self) -> Records:
        """All relocations in file order, for the engine."""
        return self.whole.records

    def pieces(self) -> Iterator[Piece]:
        """Yield all relocations, in any order of tables, in pieces that caches hold.

        Large tables come by themselves and cut; small ones together.
        """
        small: list[int] = []
        pending = 0
        for number, table in enumerate(self.tables):
            size = self.view.tables[table].records.size
            if size >= ALONE:
                for part in self._parts(self.view.tables[table].records):
                    yield self._piece([number], part)
                continue
            small.append(number)
            pending += size
            if pending >= PIECE:
                yield self._piece(small)
                small, pending = [], 0
        if small:
            yield self._piece(small)

    def _parts(self, records: NDArray[np.void]) -> Iterator[slice]:
        """Yield the parts of a table, cut where records do without those before the cut.

        They may add up with others at the same place, and take X of a HI20, which stands right
        before as compilers write it. One that stands elsewhere is not found then, and the link
        starts over with all records.
        """
        rows, size, start = self.view.arch.link.relocations, records.size, 0
        offset, kinds = records["offset"], records["type"]
        step = PIECE
        if rows.entangled and size > PIECE and np.count_nonzero(offset[1:] < offset[:-1]):
            step = size
        while start < size:
            end = start + step
            while rows.entangled and end < size:
                row = rows.get(int(kinds[end]))
                if offset[end] != offset[end - 1] and (row is None or not row.op.high_half):
                    break
                end += 1
            yield slice(start, end)
            start = end

    def _piece(self, chosen: Sequence[int], part: slice = slice(None)) -> Piece:
        """Return (a part of) the records of the chosen tables."""
        numbers = [self.tables[number] for number in chosen]
        tables = [self.view.tables[number] for number in numbers]
        origin = self.view.joined(numbers)[part]
        rows, kinds, symbol = (
            self.view.arch.link.relocations,
            origin["type"].copy(),
            origin["symbol"],
        )
        offset, addend, numbers = origin["offset"].copy(), origin["addend"], numbers_in(kinds)
        target = self.values.of(symbol)
        complete = not target.size or int(np.maximum.reduce(target)) != NO_VALUE
        for number in rows.sized.intersection(numbers):
            index = having(kinds, [number])
            target[index] = self.view.symbols["size"][symbol[index]]
        target += addend
        address: U64 | np.uint64
        there: U64 | np.uint64
        room: U64 | np.uint64
        if len(chosen) == 1:
            address, there, room, _ = self.spots[chosen[0]]
            group = None
        else:
            sizes = np.array([table.records.size for table in tables], np.intp)
            address, there, room, group = self.spots[list(chosen)].T.repeat(sizes, axis=1)
        at = (offset + there).view(np.intp)
        records = Records(at, offset + address, target, addend, kinds, group)
        return Piece(records, numbers, symbol, offset, room, complete)
