# SPDX-License-Identifier: GPL-2.0-or-later
"""A module in memory, and where in its life it is."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import cached_property

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator import Allocation
from allocator.types import MemType
from archs import Arch
from archs.layouts import Layouts
from loader.build import Build
from loader.elfview import STT_FUNC, STT_OBJECT, ElfView
from loader.gate import Notice
from loader.layout import Layout
from loader.linked import Linked
from loader.symbols import Export
from loader.this_module import ThisModule


@attrs.frozen(eq=False)
class Written:
    """What of a livepatch's late relocations stands in memory.

    Parameters
    ----------
    values
        Object -> symbol (its whole name) -> address, of the objects that are there.
    image
        The buffer of the linked module with their relocations.
    """

    values: Mapping[str, Mapping[str, int]]
    image: NDArray[np.uint8]


_KNOWN = 1 << 12  # addresses whose symbols are kept


class State(enum.Enum):
    """enum module_state, and what comes after it."""

    UNFORMED = "unformed"
    COMING = "coming"
    LIVE = "live"
    GOING = "going"
    UNLOADED = "unloaded"


@attrs.frozen
class LoadedSection:
    """One section in memory; `type` is None for the per-cpu section."""

    name: str
    type: MemType | None
    address: int
    size: int


@attrs.define(eq=False)
class LoadedModule:
    """A module in memory, with everything that was decided about it.

    Parameters
    ----------
    name
        The module's name (`crc_itu_t`).
    view, layout, linked
        What the phases before gave.
    relocated
        What the link gave, before finalisation.
    regions
        Memory type -> allocation; init types vanish when they are freed.
    sections
        Section index -> where it lies.
    providers
        Modules whose symbols this one uses; each holds a reference on its provider.
    users
        Modules that use this one.
    unknown
        Kernel symbols that nobody implements; calling one stops the guest.
    exports
        What this module offers to others.
    percpu
        Symbol base and size of the per-cpu section, or None.
    livepatch
        What of a livepatch's relocations was written after the load; None: nothing.
    this
        What is known of its struct module.
    build
        What it was built for.
    layouts
        Where members of its kernel's structures lie.
    taints
        How the module taints the kernel: letters, in the kernel's order.
    notices
        What is assumed about it.
    notes
        What of its finalisation was left undone, and why.
    """

    name: str
    view: ElfView
    layout: Layout
    linked: Linked
    relocated: Linked
    regions: dict[MemType, Allocation]
    sections: Mapping[int, LoadedSection]
    unknown: tuple[str, ...]
    exports: tuple[Export, ...]
    percpu: int | None
    state: State = State.COMING
    providers: frozenset[str] = frozenset()
    users: set[str] = attrs.field(factory=set)
    livepatch: Written | None = None
    this: ThisModule | None = None
    build: Build | None = None
    layouts: Layouts | None = None
    taints: str = ""
    notices: tuple[Notice, ...] = ()
    notes: tuple[str, ...] = ()
    _around: dict[int, tuple[str, int, int] | None] = attrs.field(
        init=False, repr=False, factory=dict
    )

    @property
    def foreign(self) -> bool:
        """Whether it says that it was built for another kernel than the one that is modelled."""
        named = "vermagic" in self.view.modinfo
        return named and self.build is not None and not self.build.modelled

    @property
    def arch(self) -> Arch:
        """The architecture the module was built for."""
        return self.view.arch

    def member(self, name: str | None = None) -> int | None:
        """Return the address of struct module or of a member; None where that is not known."""
        place = None if self.this is None else self.sections.get(self.this.section.index)
        if self.this is None or place is None:
            return None
        if name is None:
            return place.address
        offset = self.this.members.get(name)
        return None if offset is None else place.address + offset

    @cached_property
    def symbols(self) -> Mapping[str, int]:
        """Functions, objects and global symbols by name -> address; globals win over locals."""
        info, shndx = self.view.symbols["info"], self.view.symbols["shndx"]
        kind, bind = info & 0xF, info >> 4
        wanted = ((kind == STT_FUNC) | (kind == STT_OBJECT) | (bind != 0)) & (shndx != 0)
        placed = np.isin(shndx, np.array(list(self.sections), np.uint16))
        found: dict[str, int] = {}
        for index in np.flatnonzero(wanted & placed).tolist():
            name = self.view.symbol_name(index)
            if name not in found or bind[index]:
                found[name] = int(self.linked.symbols[index])
        return found

    @cached_property
    def names(self) -> Mapping[int, str]:
        """Address -> the symbol there; of several, the first of the symbol table."""
        return {address: name for name, address in reversed([*self.symbols.items()])}

    @cached_property
    def _functions(self) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], tuple[int, ...]]:
        symbols = self.view.symbols
        placed = np.isin(symbols["shndx"], np.array(list(self.sections), np.uint16))
        chosen = np.flatnonzero((symbols["info"] & 0xF == STT_FUNC) & placed)
        chosen = chosen[np.argsort(self.linked.symbols[chosen], kind="stable")]
        return self.linked.symbols[chosen], tuple(chosen.tolist())

    def symbol_at(self, address: int) -> tuple[str, int, int] | None:
        """Return name, offset and size of the function around `address`, or None."""
        if address not in self._around:
            if len(self._around) >= _KNOWN:
                self._around.clear()
            self._around[address] = self._symbol_at(address)
        return self._around[address]

    def _symbol_at(self, address: int) -> tuple[str, int, int] | None:
        starts, indices = self._functions
        at = int(np.searchsorted(starts, np.uint64(address), side="right")) - 1
        if at < 0:
            return None
        size = int(self.view.symbols["size"][indices[at]])
        offset = address - int(starts[at])
        return (self.view.symbol_name(indices[at]), offset, size) if offset < max(size, 1) else None

    def region_at(self, address: int) -> Allocation | None:
        """Return the region that holds `address`, or None."""
        for region in self.regions.values():
            if region.address <= address < region.address + region.size:
                return region
        return None
