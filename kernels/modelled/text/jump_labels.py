# SPDX-License-Identifier: GPL-2.0-or-later
"""Static keys: a condition that is a NOP or a jump, rewritten when the key changes.

Each `__jump_table` entry of a module names a site, where the site jumps to, the key, and in
the key's low bit whether the branch is taken when the key is false. A site jumps when key and
bit differ (kernel/jump_label.c, jump_label_type). The key may belong to another module, or
to the kernel; its first int counts who enabled it, and guest memory holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from weakref import WeakKeyDictionary

import attrs
import numpy as np

from allocator import AccessError
from allocator.types import ADDRESS_MASK, Memory
from archs.text import JumpLabels
from kernels.modelled.text.patches import Patches
from kernels.tracing import PatchRefused
from loader.loaded import LoadedModule

TABLE = "__jump_table"
_ENTRY = np.dtype([("code", "<i4"), ("target", "<i4"), ("key", "<i8")])
TYPE_BITS = 3  # JUMP_TYPE_MASK


@attrs.frozen
class JumpSite:
    """One static branch: it jumps from `code` to `target` when the key differs from `branch`."""

    code: int
    target: int
    key: int
    branch: bool


class StaticKeys:
    """Every static branch of the loaded modules, by key.

    Parameters
    ----------
    labels
        The instructions.
    memory, patches
        Where keys and tables lie, and how text is changed.
    modules
        Returns the modules that are loaded now.
    """

    def __init__(
        self,
        labels: JumpLabels,
        memory: Memory,
        patches: Patches,
        modules: Callable[[], Iterable[LoadedModule]],
    ) -> None:
        self._labels = labels
        self._memory = memory
        self._patches = patches
        self._modules = modules
        self._tables: WeakKeyDictionary[LoadedModule, dict[int, list[JumpSite]]] = (
            WeakKeyDictionary()
        )

    def table(self, module: LoadedModule) -> Mapping[int, list[JumpSite]]:
        """Return the sites of one module by the address of their key."""
        found = self._tables.get(module)
        if found is None:
            found = self._tables[module] = {}
            for site in self._entries(module):
                found.setdefault(site.key, []).append(site)
        return found

    def _entries(self, module: LoadedModule) -> Iterator[JumpSite]:
        for section in module.sections.values():
            if section.name != TABLE or not section.size:
                continue
            table = np.frombuffer(self._memory.read(section.address, section.size), _ENTRY)
            for index, (code, target, key) in enumerate(table.tolist()):
                at = section.address + index * _ENTRY.itemsize
                pointer = at + 8 + key
                yield JumpSite(
                    code=at + code & ADDRESS_MASK,
                    target=at + 4 + target & ADDRESS_MASK,
                    key=pointer & ~TYPE_BITS & ADDRESS_MASK,
                    branch=bool(pointer & 1),
                )

    def sites(self, key: int) -> list[JumpSite]:
        """Return the sites of a key that are in memory (init text may be gone)."""
        return [
            site
            for module in self._modules()
            for site in self.table(module).get(key, ())
            if module.region_at(site.code) is not None
        ]

    def reserved(self, module: LoadedModule, address: int, size: int) -> bool:
        """Return whether [address, address + size) touches a static branch of `module`."""
        return any(
            site.code < address + size and address < site.code + self._size(site)
            for sites in self.table(module).values()
            for site in sites
            if abs(site.code - address) < 16 and module.region_at(site.code) is not None
        )

    def _size(self, site: JumpSite) -> int:
        return self._labels.size(self._code(site.code))

    def _code(self, address: int) -> bytes:
        """Return what a static branch at an address may consist of, less where memory ends."""
        for size in sorted(self._labels.nops, reverse=True):
            with suppress(AccessError):
                return self._patches.read(address, size)
        return b""

    # What the kernel offers ------------------------------------------------------------------

    def count(self, key: int) -> int:
        """Return how many enabled a key; one that is being enabled counts as enabled."""
        enabled = int.from_bytes(self._memory.read(key, 4), "little", signed=True)
        return enabled if enabled >= 0 else 1

    def enable(self, key: int) -> None:
        """Make a key true, once (static_key_enable)."""
        if self.count(key) == 0:
            self._set(key, 1)

    def disable(self, key: int) -> None:
        """Make a key false, however it became true (static_key_disable)."""
        if self.count(key) == 1:
            self._set(key, 0)

    def inc(self, key: int) -> None:
        """Count one more user of a key (static_key_slow_inc)."""
        self._set(key, self.count(key) + 1)

    def dec(self, key: int) -> bool:
        """Count one user less (static_key_slow_dec); False where there was none."""
        count = self.count(key)
        if count:
            self._set(key, count - 1)
        return count > 0

    def _set(self, key: int, count: int) -> None:
        before = self.count(key)
        self._memory.write(key, count.to_bytes(4, "little"))
        if bool(before) != bool(count):
            try:
                changes = self._changes(self.sites(key), self._code, enabled=bool(count))
                self._patches.poke("flip", changes)
            except BaseException:
                self._memory.write(key, before.to_bytes(4, "little"))
                raise

    def add_module(self, module: LoadedModule) -> None:
        """Give a new module's sites the state that their keys have already."""
        texts = {
            region.address: self._patches.read(region.address, region.size)
            for region in module.regions.values()
            if region.type.is_text
        }

        def code(address: int) -> bytes:
            start = max((start for start in texts if start <= address), default=address)
            return texts.get(start, b"")[address - start :][: max(self._labels.nops)]

        changes = []
        for key, sites in self.table(module).items():
            try:
                enabled = self.count(key) > 0
            except AccessError:
                continue  # a key of the kernel's that this kernel does not have
            changes += self._changes(sites, code, enabled=enabled)
        if changes:
            self._patches.poke("flip", changes)

    def _changes(
        self, sites: Iterable[JumpSite], code: Callable[[int], bytes], *, enabled: bool
    ) -> list[tuple[int, bytes, bytes]]:
        changes = []
        for site in sites:
            there = code(site.code)
            size = self._labels.size(there)
            if not size:
                raise self._refusal(site, "neither a NOP nor a jump is there")
            nop, jump = self._labels.nops[size], self._labels.jump(site.code, site.target, size)
            if jump is None:
                raise self._refusal(site, f"{site.target:#x} is out of reach")
            old = there[:size]
            if old not in (nop, jump):
                raise self._refusal(site, "it jumps somewhere else")
            new = jump if enabled != site.branch else nop
            if old != new:
                changes.append((site.code, new, old))
        return changes

    def _refusal(self, site: JumpSite, reason: str) -> PatchRefused:
        return PatchRefused("flip", site.code, self._patches.where(site.code), reason)


@attrs.frozen(kw_only=True)
class StaticKey:
    """One static key, for Python: `enable`, `disable`, `inc`, `dec`, `count`, `sites`."""

    name: str
    address: int
    _keys: StaticKeys = attrs.field(repr=False)

    @property
    def count(self) -> int:
        """How many enabled it."""
        return self._keys.count(self.address)

    @property
    def sites(self) -> list[JumpSite]:
        """Its branches in the modules that are loaded."""
        return self._keys.sites(self.address)

    def enable(self) -> None:
        """Make it true, once."""
        self._keys.enable(self.address)

    def disable(self) -> None:
        """Make it false."""
        self._keys.disable(self.address)

    def inc(self) -> None:
        """Count one more user."""
        self._keys.inc(self.address)

    def dec(self) -> None:
        """Count one user less."""
        self._keys.dec(self.address)
