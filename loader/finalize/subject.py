# SPDX-License-Identifier: GPL-2.0-or-later
"""A linked module while it is finalised: its tables as arrays, its text by address.

A driver has a hundred thousand sites to edit, so nothing here works on one of them:
tables are structured views of the link's buffer, sites are arrays of addresses, and the
buffer is read and written through arrays of offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import MemType
from archs import Arch
from archs.arch import Finalisation
from archs.environment import Environment
from loader.elf import ElfView
from loader.errors import BadModule
from loader.layout import Layout

if TYPE_CHECKING:  # the link finalises on request
    from loader.linked import Linked

RUNNING = "running_kernel"  # decides what cannot be predicted, such as addresses on its heap
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Index = NDArray[np.intp]


@attrs.frozen(eq=False)
class Edits:
    """The bytes that one mechanism decides.

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


@attrs.frozen(eq=False)
class Table:
    """A section that is an array: its entries, the address of each, and where they lie.

    `entries` is a view: writing to it edits the module.
    """

    section: int
    entries: NDArray[np.void]
    address: int
    at: int

    def addresses(self, field: str) -> U64:
        """Return the address of `field` in every entry."""
        dtype = self.entries.dtype
        offset = dtype.fields[field][1] if dtype.fields else 0
        steps = np.arange(self.entries.size, dtype=np.uint64) * np.uint64(dtype.itemsize)
        return steps + np.uint64(self.address + offset)

    def _absolute(self, field: str) -> bool:
        """Return whether `field` holds pointers."""
        return self.entries.dtype[field] == np.uint64

    def targets(self, field: str) -> U64:
        """Return what the self-relative words, or pointers, in `field` point at."""
        if self._absolute(field):
            return self.entries[field].astype(np.uint64)
        words = self.entries[field].astype(np.int64).view(np.uint64)
        return words + self.addresses(field)

    def point(self, field: str, targets: U64) -> None:
        """Make the self-relative words, or pointers, in `field` point at `targets`."""
        if self._absolute(field):
            self.entries[field] = targets
            return
        words = targets - self.addresses(field)
        self.entries[field] = words.view(np.int64).astype(self.entries.dtype[field])


@attrs.define(eq=False)
class Subject:
    """A module in the link's buffer, and what its mechanisms have done so far.

    `notes` is what they did not do, for a person.
    """

    view: ElfView
    layout: Layout
    addresses: Mapping[int, int]
    linked: Linked
    environment: Environment
    notes: list[str] = attrs.field(factory=list, init=False)
    _edits: dict[str, list[tuple[Index, int | Index]]] = attrs.field(factory=dict, init=False)
    _mechanism: str = attrs.field(default="", init=False)

    @property
    def arch(self) -> Arch:
        """The architecture."""
        return self.view.arch

    @property
    def rules(self) -> Finalisation:
        """What the architecture says about finalisation."""
        assert self.arch.finalisation is not None
        return self.arch.finalisation

    @property
    def image(self) -> U8:
        """The buffer that holds every section."""
        return self.linked.image

    def begin(self, mechanism: str) -> None:
        """Attribute the edits that follow to `mechanism`."""
        self._mechanism = mechanism

    def note(self, at: Index, width: int | Index, mechanism: str = "") -> None:
        """Claim `width` bytes at each offset of the buffer, for the current mechanism if none."""
        self._edits.setdefault(mechanism or self._mechanism, []).append((at, width))

    def claim(self, table: Table) -> None:
        """Claim a whole table for the current mechanism."""
        self.note(np.array([table.at], np.intp), table.entries.nbytes)

    def edits(self) -> dict[str, Edits]:
        """Return what was claimed, by mechanism."""
        return {
            name: Edits(
                np.concatenate([at for at, _ in runs]),
                np.concatenate([np.broadcast_to(np.intp(width), at.shape) for at, width in runs]),
            )
            for name, runs in self._edits.items()
        }

    # Sections and addresses --------------------------------------------------------------------

    def table(self, name: str, dtype: np.dtype[np.void]) -> Table | None:
        """Return the first section called `name` as a table; None without one, or an empty one.

        Raises
        ------
        BadModule
            When its size is no multiple of an entry's.
        """
        section = self.view.section(name)
        size = 0 if section is None else self._size(section.index)
        if section is None or not size:
            return None
        if size % dtype.itemsize:
            where = f"section {section.index} ({name})"
            raise BadModule(
                self.view.name, where, f"size {size:#x} is no multiple of {dtype.itemsize}"
            )
        at = self.linked.offsets[section.index]
        entries = self.image[at : at + size].view(dtype)
        return Table(section.index, entries, self.addresses[section.index], at)

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
            raise BadModule(
                self.view.name, self._mechanism, f"{first:#x} is outside the module's sections"
            )
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


SITE = np.dtype([("site", "<i4")])
