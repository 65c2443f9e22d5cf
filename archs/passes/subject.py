# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pass may see and edit of a linked module: its tables as arrays, its text by address.

A driver has a hundred thousand sites to edit, so nothing here works on one of them:
tables are structured views of the module's buffer, sites are arrays of addresses, and the
buffer is read and written through arrays of offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import MemType
from archs.environment import Environment

RUNNING = "running_kernel"  # decides what cannot be predicted, such as addresses on its heap
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Index = NDArray[np.intp]


@attrs.frozen(kw_only=True)
class Section:
    """A section of the module: its number, its address, and where it lies in the buffer."""

    index: int
    address: int
    at: int
    size: int


@attrs.frozen(eq=False)
class Table:
    """A section that is an array: its entries, the address of the first, and where they lie.

    `entries` is a view: writing to it edits the module.
    """

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


class Subject(Protocol):
    """A module that is linked, while it is finalised."""

    # What there is -----------------------------------------------------------------------------

    @property
    def environment(self) -> Environment:
        """What the kernel runs on, and with which options."""

    @property
    def imported(self) -> Mapping[str, int]:
        """The undefined symbols' values, by name."""

    @property
    def functions(self) -> U64:
        """Where the module's functions begin, in ascending order."""

    def name_at(self, address: int) -> str:
        """Return the name of a symbol with this value; empty without one."""

    def size_at(self, address: int) -> int:
        """Return the bytes that a symbol with this value says it has; 0 without one."""

    def section(self, name: str) -> Section | None:
        """Return the first section called `name`; None where it has no address."""

    def relocated(self, name: str) -> frozenset[int]:
        """Return the offsets in the first section called `name` that a relocation names."""

    # What it holds -----------------------------------------------------------------------------

    @property
    def image(self) -> U8:
        """The buffer that holds every section."""

    def table(self, name: str, dtype: np.dtype[np.void]) -> Table | None:
        """Return the first section called `name` as a table; None without one, or an empty one.

        What is refused where its size is no multiple of an entry's.
        """

    def sites(self, name: str) -> U64:
        """Return the addresses that a table of 32-bit self-relative words points at."""

    def offsets(self, addresses: U64, width: int | Index = 1) -> Index:
        """Return where addresses lie in the buffer.

        What is refused where `width` bytes at any of them are not within a section.
        """

    def room(self, addresses: U64, width: int | Index) -> NDArray[np.bool_]:
        """Return at which addresses the module has so many bytes in one section."""

    def within(self, addresses: U64, *kinds: MemType) -> NDArray[np.bool_]:
        """Return which addresses lie in the module, in memory of one of `kinds` if any is given."""

    def bytes_at(self, at: Index, width: int) -> U8:
        """Return `width` bytes at each offset of the buffer, one row each."""

    # What is done ------------------------------------------------------------------------------

    def write(self, at: Index, rows: U8) -> None:
        """Write a row of bytes at each offset of the buffer and claim it."""

    def note(self, at: Index, width: int | Index, owner: str = "") -> None:
        """Claim `width` bytes at each offset of the buffer, for the current pass if no other."""

    def claim(self, table: Table) -> None:
        """Claim a whole table for the current pass."""

    def report(self, reason: str) -> None:
        """Tell a person what was left as compiled, and why."""

    def refusal(self, where: str, reason: str) -> Exception:
        """Return what to raise where a module makes no sense."""


@attrs.frozen
class Pass:
    """One step of finalisation: its name, by which its edits are attributed, and what it does."""

    name: str
    run: Callable[[Subject], None]
