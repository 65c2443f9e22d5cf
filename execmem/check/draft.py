# SPDX-License-Identifier: GPL-2.0-or-later
"""A case while it is being made: sections, symbols and records as data, and the text they become.

Several cases stand in one draft, because a link costs more than a relocation. Each has a number,
its own bytes and its own records, and may be taken out without moving the others.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Sequence

import attrs

from allocator.types import ADDRESS_MASK
from execmem.check.reading import FIRST_LINE

_LINE = 64  # bytes of a section on one line


@attrs.frozen(kw_only=True)
class Area:
    """A section: its flags as a case writes them, its address and its bytes."""

    name: str
    flags: str
    address: int
    data: bytes = b""
    align: int = 1


@attrs.frozen(kw_only=True)
class Name:
    """A symbol.

    Parameters
    ----------
    where
        Name of its section; "absolute", or "undefined".
    value
        Offset in the section, or address; None: undefined, and nobody gives it a value.
    words
        What else a label says: local, weak, func, object, section, size=N.
    """

    name: str
    where: str
    value: int | None
    words: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Record:
    """A relocation of a case; `type` is its name, `symbol` empty for none."""

    case: int
    section: str
    offset: int
    type: str
    symbol: str
    addend: int


@attrs.frozen(kw_only=True)
class Piece:
    """The bytes that are a case's own."""

    case: int
    section: str
    offset: int
    size: int


@attrs.frozen(kw_only=True)
class Run:
    """Code of a case to execute.

    Parameters
    ----------
    section, offset
        Where it begins.
    register
        What holds the address that it forms; empty: it goes there.
    goal
        That address.
    """

    case: int
    section: str
    offset: int
    register: str
    goal: int


@attrs.frozen(kw_only=True)
class Draft:
    """Cases of one architecture in one object.

    Parameters
    ----------
    notes
        Lines of comment at its beginning.
    asks
        Directives at its end.
    """

    arch: str
    areas: tuple[Area, ...]
    names: tuple[Name, ...] = ()
    pieces: tuple[Piece, ...] = ()
    records: tuple[Record, ...] = ()
    runs: tuple[Run, ...] = ()
    notes: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()

    @property
    def cases(self) -> Sequence[int]:
        """The numbers of its cases, ascending."""
        return sorted({piece.case for piece in self.pieces})

    def area(self, name: str) -> Area:
        """Return a section by its name."""
        return next(area for area in self.areas if area.name == name)

    def symbol(self, name: str) -> Name | None:
        """Return a symbol by its name; None for no symbol."""
        return next((one for one in self.names if one.name == name), None)

    def only(self, cases: Collection[int]) -> Draft:
        """Return the same with the records of some cases alone, nothing moved."""
        return attrs.evolve(
            self,
            pieces=tuple(each for each in self.pieces if each.case in cases),
            records=tuple(each for each in self.records if each.case in cases),
            runs=tuple(each for each in self.runs if each.case in cases),
        )

    def address(self, section: str, offset: int) -> int:
        """Return the address of an offset in a section."""
        return (self.area(section).address + offset) & ADDRESS_MASK

    def text(self) -> str:
        """Return the case file."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield FIRST_LINE
        for note in self.notes:
            yield from (f"# {line}" for line in textwrap.wrap(note, 96))
        yield f"arch {self.arch}"
        for area in self.areas:
            align = f" align={area.align}" if area.align != 1 else ""
            yield f"section {area.name} {area.flags}{align} {area.data[:_LINE].hex()}".rstrip()
            for at in range(_LINE, len(area.data), _LINE):
                yield f"section {area.name} {area.data[at : at + _LINE].hex()}"
        for name in self.names:
            if name.where == "undefined":
                if name.words:
                    yield f"label {name.name} = undefined {' '.join(name.words)}"
                continue
            place = f"{name.value or 0:#x}"
            if name.where != "absolute":
                place = f"{name.where}+{place}"
            yield f"label {name.name} = {place} {' '.join(name.words)}".rstrip()
        for record in self.records:
            addend = f"{record.addend:+#x}" if record.addend else ""
            symbol = record.symbol or "0"
            yield f"reloc {record.section}+{record.offset:#x} {record.type} {symbol}{addend}"
        for area in self.areas:
            yield f"at {area.name} {area.address:#x}"
        for name in self.names:
            if name.where == "undefined" and name.value is not None:
                yield f"symbol {name.name} = {name.value:#x}"
        yield from self.asks
