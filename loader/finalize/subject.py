# SPDX-License-Identifier: GPL-2.0-or-later
"""What passes see and edit of a module: the link's buffer, and which bytes each has decided."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import MemType
from archs.environment import Environment
from archs.passes.subject import U8, U64, Index, Section, Table
from loader.elfview import STT_FUNC, ElfView
from loader.errors import BadModule
from loader.extable import relocated
from loader.layout import Layout
from loader.linked import Linked

SITE = np.dtype([("site", "<i4")])


@attrs.frozen(eq=False)
class Edits:
    """The bytes that one pass decides.

    Parameters
    ----------
    at, width
        Where each run of bytes starts in the link's buffer, and how long it is.
    """

    at: Index
    width: Index

    def mask(self, size: int) -> NDArray[np.bool_]:
        """Return which of `size` bytes of the buffer are covered."""
        change = np.zeros(size + 1, np.int32)
        np.add.at(change, self.at, 1)
        np.add.at(change, self.at + self.width, -1)
        return np.asarray(np.cumsum(change[:-1]) > 0)


@attrs.define(eq=False)
class Subject:
    """A module in the link's buffer, as passes see it (`archs.passes.subject.Subject`).

    `notes` is what they did not do, for a person.
    """

    view: ElfView
    layout: Layout
    addresses: Mapping[int, int]
    linked: Linked
    environment: Environment
    notes: list[str] = attrs.field(factory=list, init=False)
    _edits: dict[str, list[tuple[Index, int | Index]]] = attrs.field(factory=dict, init=False)
    _pass: str = attrs.field(default="", init=False)

    @property
    def image(self) -> U8:
        """The buffer that holds every section."""
        return self.linked.image

    def begin(self, name: str) -> None:
        """Attribute the edits that follow to a pass."""
        self._pass = name

    def note(self, at: Index, width: int | Index, owner: str = "") -> None:
        """Claim `width` bytes at each offset of the buffer, for the current pass if no other."""
        self._edits.setdefault(owner or self._pass, []).append((at, width))

    def claim(self, table: Table) -> None:
        """Claim a whole table for the current pass."""
        self.note(np.array([table.at], np.intp), table.entries.nbytes)

    def report(self, reason: str) -> None:
        """Tell a person what was left as compiled, and why."""
        self.notes.append(reason)

    def refusal(self, where: str, reason: str) -> BadModule:
        """Return what to raise where the module makes no sense."""
        return BadModule(self.view.name, where, reason)

    def edits(self) -> dict[str, Edits]:
        """Return what was claimed, by pass."""
        return {
            name: Edits(
                np.concatenate([at for at, _ in runs]),
                np.concatenate([np.broadcast_to(np.intp(width), at.shape) for at, width in runs]),
            )
            for name, runs in self._edits.items()
        }

    # Sections and addresses --------------------------------------------------------------------

    def section(self, name: str) -> Section | None:
        """Return the first section called `name`; None where it has no address."""
        found = self.view.section(name)
        if found is None or found.index not in self.linked.offsets:
            return None
        return Section(
            index=found.index,
            address=self.addresses[found.index],
            at=self.linked.offsets[found.index],
            size=self.layout.size_of(found),
        )

    def relocated(self, name: str) -> frozenset[int]:
        """Return the offsets in the first section called `name` that a relocation names."""
        return relocated(self.view, name)

    def table(self, name: str, dtype: np.dtype[np.void]) -> Table | None:
        """Return the first section called `name` as a table; None without one, or an empty one.

        Raises
        ------
        BadModule
            When its size is no multiple of an entry's.
        """
        section = self.section(name)
        if section is None or not section.size:
            return None
        if section.size % dtype.itemsize:
            where = f"section {section.index} ({name})"
            raise self.refusal(where, f"size {section.size:#x} is no multiple of {dtype.itemsize}")
        entries = self.image[section.at : section.at + section.size].view(dtype)
        return Table(entries, section.address, section.at)

    def sites(self, name: str) -> U64:
        """Return the addresses that a table of 32-bit self-relative words points at."""
        table = self.table(name, SITE)
        return np.empty(0, np.uint64) if table is None else table.targets("site")

    def offsets(self, addresses: U64, width: int | Index = 1) -> Index:
        """Return where addresses lie in the buffer.

        Raises
        ------
        BadModule
            When `width` bytes at any of them are not within a section.
        """
        starts, sizes, where = self._map
        number = np.searchsorted(starts, addresses, side="right") - 1
        inside = addresses - starts[number]
        outside = (number < 0) | (inside + np.asarray(width, np.uint64) > sizes[number])
        if outside.any():
            first = int(addresses[outside.argmax()])
            raise self.refusal(self._pass, f"{first:#x} is outside the module's sections")
        return np.asarray(where[number] + inside.view(np.int64))

    def room(self, addresses: U64, width: int | Index) -> NDArray[np.bool_]:
        """Return at which addresses the module has so many bytes in one section."""
        starts, sizes, _ = self._map
        number = np.searchsorted(starts, addresses, side="right") - 1
        inside = addresses - starts[number]
        return np.asarray((number >= 0) & (inside + np.asarray(width, np.uint64) <= sizes[number]))

    def within(self, addresses: U64, *kinds: MemType) -> NDArray[np.bool_]:
        """Return which addresses lie in the module, in memory of one of `kinds` if any is given."""
        starts, sizes, _ = self._map
        number = np.searchsorted(starts, addresses, side="right") - 1
        found = (number >= 0) & (addresses - starts[number] < sizes[number])
        if kinds:
            wanted = np.array([self._type(index) in kinds for index in self._placed], np.bool_)
            found &= wanted[number]
        return np.asarray(found)

    def bytes_at(self, at: Index, width: int) -> U8:
        """Return `width` bytes at each offset of the buffer, one row each."""
        return np.asarray(self.image[at[:, None] + np.arange(width)])

    def write(self, at: Index, rows: U8) -> None:
        """Write a row of bytes at each offset of the buffer and claim it."""
        self.image[at[:, None] + np.arange(rows.shape[-1])] = rows
        self.note(at, rows.shape[-1])

    @cached_property
    def imported(self) -> Mapping[str, int]:
        """The undefined symbols' values, by name."""
        given = self.linked.values.given.tolist()
        return dict(zip(self.view.undefined_names, given, strict=True))

    @cached_property
    def functions(self) -> U64:
        """Where the module's functions begin, in ascending order."""
        symbols = self.view.symbols
        placed = np.isin(symbols["shndx"], np.array(list(self.addresses), np.uint16))
        return np.unique(self.linked.symbols[(symbols["info"] & 0xF == STT_FUNC) & placed])

    def name_at(self, address: int) -> str:
        """Return the name of a symbol with this value; empty without one."""
        return self.view.symbol_name(self._named[address]) if address in self._named else ""

    def size_at(self, address: int) -> int:
        """Return the bytes that a symbol with this value says it has; 0 without one."""
        number = self._named.get(address)
        return 0 if number is None else int(self.view.symbols["size"][number])

    @cached_property
    def _named(self) -> Mapping[int, int]:
        """Value -> the last symbol that has it."""
        return {value: number for number, value in enumerate(self.linked.symbols.tolist())}

    @cached_property
    def _placed(self) -> list[int]:
        """Sections with bytes, in the order of their addresses."""
        found = [index for index in self.linked.offsets if self._size(index)]
        return sorted(found, key=lambda index: self.addresses[index])

    @cached_property
    def _map(self) -> tuple[U64, U64, Index]:
        """Address, size and offset in the buffer of every section with bytes, by address."""
        return (
            np.array([self.addresses[index] for index in self._placed], np.uint64),
            np.array([self._size(index) for index in self._placed], np.uint64),
            np.array([self.linked.offsets[index] for index in self._placed], np.intp),
        )

    def _type(self, index: int) -> MemType | None:
        placement = self.layout.placements.get(index)
        return placement.type if placement is not None else None

    def _size(self, index: int) -> int:
        placed = index in self.linked.offsets
        return self.layout.size_of(self.view.sections[index]) if placed else 0
