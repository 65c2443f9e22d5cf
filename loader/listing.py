# SPDX-License-Identifier: GPL-2.0-or-later
"""Every relocation of a linked module, one by one, with the numbers that went into it.

The engine applies relocations as arrays and keeps no story; this module tells it again for
a reader. It shares nothing with the engine but the rows: X is computed from the same
operation that prints the formula, of whole numbers and letter by letter, and what stands in
the final bytes is decoded through the row's own fields. Where a formula leads elsewhere than
the bytes do, the branch goes through a stub, and the record says through which.

A GPU driver has half a million relocations, so filters work on the arrays, and a record is
made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import ADDRESS_MASK, Interval
from archs.op import Got, OpKind, signed
from archs.reloc import Reloc
from loader.elfview import (
    SHT_NOBITS,
    STT_FUNC,
    ElfView,
    RelocationTable,
    Section,
)
from loader.linked import Linked
from loader.loaded import LoadedModule

Index = NDArray[np.intp]


def decode(row: Reloc, code: bytes) -> int:
    """Return the X that stands in the words of `row`, from the bytes at P.

    See `Reloc.held`.
    """
    return signed(row.held(lambda part: part.load(code)))


def insert(row: Reloc, code: bytes, x: int) -> bytes:
    """Return the bytes at P with X placed in the fields of `row`; bits that do not fit are lost."""
    out = bytearray(code)
    for part in row.parts:
        span = slice(part.offset, part.offset + part.size)
        out[span] = part.insert(part.load(out), x).to_bytes(part.size, part.order)
    return bytes(out)


@attrs.frozen
class Slot:
    """A place in the module that a relocation goes through: a PLT or GOT entry."""

    section: str
    offset: int
    address: int

    def __str__(self) -> str:
        return f"{self.section}+{self.offset:#x}"


@attrs.frozen(kw_only=True)
class Relocation:
    """One relocation and what became of it.

    Parameters
    ----------
    section, offset
        Where its place is in the file.
    containing
        `function+0xoffset` around the place; empty outside every function.
    function
        Offsets in the section that the function occupies.
    place, value, addend
        P and S as addresses, A as a signed number.
    letters
        What the formula's letters stand for: S may be a slot of the GOT, V is what the
        records before this one at the same place added up to, Z the symbol's size.
    row
        The type; None where the architecture's table has no such number.
    number
        The type's number.
    symbol
        Name; of a section symbol the section's.
    x
        The formula's result as a signed number; None where there is none.
    before, after
        Bytes of the word or words, in the file and in the end.
    via
        The entry that the final bytes lead to instead of S+A.
    """

    section: Section
    offset: int
    containing: str
    function: Interval | None
    place: int
    row: Reloc | None
    number: int
    symbol: str
    value: int
    addend: int
    letters: Mapping[str, int]
    x: int | None
    before: bytes
    after: bytes
    via: Slot | None

    @property
    def type(self) -> str:
        """The type's name, or its number."""
        return self.row.name if self.row else f"type {self.number}"

    @property
    def formula(self) -> str:
        """How the psABI computes X."""
        return self.row.op.formula if self.row else ""

    @property
    def computation(self) -> str:
        """The formula with this relocation's numbers; empty where it has no letters."""
        if self.x is None or not self.row or not self.row.op.terms:
            return ""

        def number(sign: str, letter: str) -> str:
            value = self.letters[letter]
            if sign == "+" or value < 0:
                return f"{-value if sign == '-' else value:+#x}"
            return f"{sign}{value:#x}"

        return self.row.op.render(number)

    @property
    def target(self) -> int:
        """S+A as an address."""
        return (self.value + self.addend) & ADDRESS_MASK

    @property
    def reason(self) -> str:
        """Why the type is not supported; empty where it is."""
        return self.row.unsupported if self.row else "unknown relocation type"


@attrs.frozen(eq=False)
class Selection:
    """Relocations that passed the filters; iterating makes the records, in file order."""

    listing: Listing
    chosen: tuple[tuple[RelocationTable, Index], ...]

    def __len__(self) -> int:
        return sum(index.size for _, index in self.chosen)

    def __iter__(self) -> Iterator[Relocation]:
        for table, index in self.chosen:
            listed = self.listing.of_table(table)
            yield from listed.records(index)

    @property
    def counts(self) -> Mapping[str, int]:
        """Type name -> how many, most frequent first."""
        found: dict[str, int] = {}
        for table, index in self.chosen:
            types, counts = np.unique(table.records["type"][index], return_counts=True)
            for number, count in zip(types.tolist(), counts.tolist(), strict=True):
                row = self.listing.view.arch.link.relocations.get(number)
                name = row.name if row else f"type {number}"
                found[name] = found.get(name, 0) + count
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


@attrs.define(eq=False, slots=False)
class Listing:
    """The relocations of one linked module.

    Parameters
    ----------
    view, linked
        What parsing and linking gave.
    addresses
        Section index -> address, of every section that was linked.
    """

    view: ElfView
    linked: Linked
    addresses: Mapping[int, int]

    @classmethod
    def of(cls, module: LoadedModule) -> Listing:
        """Return the listing of a module in memory, as it was right after relocation."""
        places = {index: section.address for index, section in module.sections.items()}
        return cls(module.view, module.relocated, places)

    @cached_property
    def tables(self) -> tuple[RelocationTable, ...]:
        """The relocation tables that were applied."""
        linked = self.linked.sections
        return tuple(t for t in self.view.tables if t.target.index in linked and t.records.size)

    def types(self, pattern: str) -> frozenset[int]:
        """Return the numbers of the rows whose name matches, with or without the psABI's prefix.

        Case does not matter: `call26` finds R_AARCH64_CALL26.
        """
        rows = self.view.arch.link.relocations
        names = [row.name for row in rows.values() if not row.unsupported]
        ends = zip(min(names), max(names), strict=False)
        short = next((n for n, (a, b) in enumerate(ends) if a != b), 0)
        wanted = pattern.upper()
        return frozenset(
            number
            for number, row in rows.items()
            if fnmatchcase(row.name, wanted) or fnmatchcase(row.name[short:], wanted)
        )

    def select(
        self, *, section: str | None = None, kind: str | None = None, symbol: str | None = None
    ) -> Selection:
        """Return the relocations whose section, type and symbol match shell patterns."""
        wanted = None if kind is None else np.array(sorted(self.types(kind)), np.uint32)
        names: dict[int, bool] = {}
        chosen = []
        for table in self.tables:
            if section is not None and not fnmatchcase(table.target.name, section):
                continue
            keep = np.ones(table.records.size, np.bool_)
            if wanted is not None:
                keep &= np.isin(table.records["type"], wanted)
            if symbol is not None:
                used, inverse = np.unique(table.records["symbol"][keep], return_inverse=True)
                for number in used.tolist():
                    if number not in names:
                        names[number] = fnmatchcase(self.view.symbol_name(number), symbol)
                keep[keep] = np.array([names[n] for n in used.tolist()], np.bool_)[inverse]
            if keep.any():
                chosen.append((table, np.flatnonzero(keep)))
        return Selection(self, tuple(chosen))

    @cached_property
    def _got(self) -> tuple[int, Mapping[int, int]]:
        """Address of the global offset table, and value -> address of the slot that holds it."""
        name = self.view.arch.got_section
        section = self.view.section(name) if name else None
        if section is None or section.index not in self.linked.sections:
            return 0, {}
        start, contents = self.addresses[section.index], self.linked.sections[section.index]
        dialect = self.view.dialect
        words = np.frombuffer(contents, dialect.pointer, len(contents) // dialect.word).tolist()
        return start, {
            word: start + dialect.word * n for n, word in reversed(list(enumerate(words)))
        }

    def slot_of(self, kind: Got, letters: Mapping[str, int]) -> int | None:
        """Return the address of the GOT slot that a row goes through, if it does."""
        if not kind.holds:
            return None
        content = sum(letters[name] for name in kind.holds) & (1 << self.view.dialect.bits) - 1
        return self._got[1].get(content)

    def through_got(self, kind: Got, letters: Mapping[str, int]) -> dict[str, int]:
        """Return the letters with S as the GOT makes it; without S where it has no slot."""
        start, slots = self._got
        found = dict(letters)
        symbol = kind.symbol(letters, start, slots.get)
        if symbol is None:
            del found["S"]
        else:
            found["S"] = symbol
        if not kind.keeps_addend:
            found["A"] = 0
        return found

    def of_table(self, table: RelocationTable) -> _TableListing:
        """Return what tells the records of one table."""
        return _TableListing(self, table)

    def slot_at(self, address: int) -> Slot | None:
        """Return the section of the module around `address`, as a slot in it."""
        for index, start in self.addresses.items():
            if index in self.linked.sections and 0 <= address - start < len(
                self.linked.sections[index]
            ):
                return Slot(self.view.sections[index].name, address - start, address)
        return None


class _TableListing:
    """Tells the records of one relocation table; what several of them share is made once."""

    def __init__(self, listing: Listing, table: RelocationTable) -> None:
        self._listing = listing
        self._table = table
        self._records = table.records
        self._values = listing.linked.symbols
        self._rows = listing.view.arch.link.relocations
        section = table.target
        self._address = listing.addresses[section.index]
        self._after = listing.linked.sections[section.index]
        self._before = (
            memoryview(bytes(len(self._after)))
            if section.type == SHT_NOBITS
            else listing.view.contents(section)
        )

    def records(self, index: Index) -> Iterator[Relocation]:
        """Yield the records at the indices of the table."""
        records = self._records[index]
        around = np.searchsorted(self._functions[0], records["offset"], side="right") - 1
        for number, function, record in zip(
            index.tolist(), around.tolist(), records.tolist(), strict=True
        ):
            yield self._record(number, function, *record)

    def _record(
        self, number: int, function: int, offset: int, kind: int, symbol: int, addend: int
    ) -> Relocation:
        row = self._rows.get(kind)
        value, place = int(self._values[symbol]), (self._address + offset) & ADDRESS_MASK
        containing, around = self._containing(function, offset)
        true = {"S": value, "A": signed(addend), "P": place}
        letters = self._letters(number)
        size = 0 if row is None else self._size(row, offset)
        before, after = (
            bytes(code[offset : offset + size]) for code in (self._before, self._after)
        )
        x = self._x(number, letters) if row and not row.unsupported else None
        return Relocation(
            section=self._table.target,
            offset=offset,
            containing=containing,
            function=around,
            place=place,
            row=row,
            number=kind,
            symbol=self._listing.view.symbol_name(symbol),
            value=value,
            addend=true["A"],
            letters=letters,
            x=x,
            before=before,
            after=after,
            via=None if row is None or x is None else self._via(row, true, x, before, after),
        )

    def _size(self, row: Reloc, offset: int) -> int:
        """Return the bytes of a record's word or words; a ULEB128 number ends by itself."""
        if not row.uleb:
            return row.size
        end = offset
        while end < len(self._after) and self._after[end] & 0x80:
            end += 1
        return end + 1 - offset

    def _letters(self, number: int) -> dict[str, int]:
        offset, kind, symbol, addend = self._records[number].item()
        row = self._rows.get(kind)
        letters = {
            "S": int(self._values[symbol]),
            "A": signed(addend),
            "P": (self._address + offset) & ADDRESS_MASK,
        }
        if row is None:
            return letters
        if row.op.kind is OpKind.SIZE:
            letters["Z"] = int(self._listing.view.symbols["size"][symbol])
        if row.accumulates:
            letters["V"] = self._accumulated(number, offset)
        return letters if row.got is None else self._listing.through_got(row.got, letters)

    def _x(self, number: int, letters: Mapping[str, int]) -> int | None:
        """Return the formula's result; a low part has that of its HI20."""
        _, kind, symbol, _ = self._records[number].item()
        row = self._rows[kind]
        if not row.op.high_half:
            return row.op.evaluate(letters)
        high = self._high.get((int(self._values[symbol]) - self._address) & ADDRESS_MASK)
        return None if high is None else self._x(high, self._letters(high))

    def _accumulated(self, number: int, offset: int) -> int:
        """Return V: the kernel starts from zero, whatever stands at the place."""
        total = 0
        for earlier in self._together[offset]:
            if earlier >= number:
                break
            _, kind, symbol, addend = self._records[earlier].item()
            letters = {"V": total, "S": int(self._values[symbol]), "A": addend}
            total = self._rows[kind].op.evaluate(letters) or 0
        return total

    def _of(self, kinds: Iterable[int]) -> Index:
        return np.flatnonzero(np.isin(self._records["type"], np.array(list(kinds), np.uint32)))

    @cached_property
    def _together(self) -> Mapping[int, list[int]]:
        """Offset -> records that accumulate there, in order."""
        found: dict[int, list[int]] = {}
        index = self._of(n for n, row in self._rows.items() if row.accumulates)
        for offset, number in zip(
            self._records["offset"][index].tolist(), index.tolist(), strict=True
        ):
            found.setdefault(offset, []).append(number)
        return found

    @cached_property
    def _high(self) -> Mapping[int, int]:
        """Offset -> the HI20 record there."""
        index = self._of(n for n, row in self._rows.items() if row.high)
        return dict(zip(self._records["offset"][index].tolist(), index.tolist(), strict=True))

    def _via(
        self, row: Reloc, true: Mapping[str, int], x: int, before: bytes, after: bytes
    ) -> Slot | None:
        """Return the entry that the final bytes lead to instead of S+A."""
        if row.got is not None:
            slot = self._listing.slot_of(row.got, true)
            return None if slot is None else self._listing.slot_at(slot)
        if row.stub is None or insert(row, before, x) == after:
            return None
        origin = row.op.origin(true)
        if origin is None:
            return None
        return self._listing.slot_at((origin + decode(row, after)) & ADDRESS_MASK)

    @cached_property
    def _functions(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], Index]:
        """Start (ascending), size and symbol of the section's functions."""
        symbols = self._listing.view.symbols
        index = np.flatnonzero(
            (symbols["info"] & 0xF == STT_FUNC) & (symbols["shndx"] == self._table.target.index)
        )
        index = index[np.argsort(symbols["value"][index], kind="stable")]
        return symbols["value"][index], symbols["size"][index], index

    def _containing(self, function: int, offset: int) -> tuple[str, Interval | None]:
        """Return `name+0xoff` and extent of a function, the last to start, if it holds `offset`."""
        starts, sizes, symbols = self._functions
        if function < 0:
            return "", None
        start = int(starts[function])
        around = Interval(start, start + max(int(sizes[function]), 1))
        if offset not in around:
            return "", None
        name = self._listing.view.symbol_name(int(symbols[function]))
        return f"{name}+{offset - start:#x}", around
