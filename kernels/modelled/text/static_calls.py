# SPDX-License-Identifier: GPL-2.0-or-later
"""Static calls: the target of a call, kept in the call itself.

`DEFINE_STATIC_CALL(name, f)` makes a key `__SCK__name` that holds the target, and a trampoline
`__SCT__name` that jumps to it. `.static_call_sites` lists the calls of a module with their
keys; a module that may not see the key names the trampoline, and `.static_call_tramp_key` says
whose it is (kernel/static_call_inline.c). Where an architecture has none of this a static call
is a call through the key, and updating it is a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import attrs
import numpy as np

from allocator.types import ADDRESS_MASK, Memory
from archs.text import StaticCalls as Encoding
from kernels.modelled.text.patches import Patches
from kernels.tracing import PatchRefused
from loader.loaded import LoadedModule

TAIL, FLAGS = 1, 3


@attrs.frozen
class CallSite:
    """One static call."""

    address: int
    key: int
    tail: bool


class StaticCallSites:
    """Every static call of the loaded modules.

    Parameters
    ----------
    encoding
        The instructions; None: calls go through the key.
    memory, patches, modules
        As for static keys.
    zero
        Returns the address of the function that returns 0, or None.
    """

    def __init__(
        self,
        encoding: Encoding | None,
        memory: Memory,
        patches: Patches,
        modules: Callable[[], Iterable[LoadedModule]],
        zero: Callable[[], int | None],
    ) -> None:
        self._encoding = encoding
        self._memory = memory
        self._patches = patches
        self._modules = modules
        self._zero = zero

    def _pairs(self, module: LoadedModule, title: str) -> Iterator[tuple[int, int]]:
        """Yield the entries of a table of two self-relative words."""
        for section in module.sections.values():
            if section.name == title:
                words = np.frombuffer(self._memory.read(section.address, section.size), "<i4")
                for at, word in enumerate(words.tolist()[: len(words) & ~1 : 2]):
                    place, other = section.address + 8 * at, int(words[2 * at + 1])
                    yield place + word & ADDRESS_MASK, place + 4 + other & ADDRESS_MASK

    def table(self, module: LoadedModule) -> list[CallSite]:
        """Return the static calls of one module that are in memory."""
        if self._encoding is None:
            return []
        keys: dict[int, int] = {}
        for each in self._modules():
            keys.update(self._pairs(each, self._encoding.tramp_keys))
        found = []
        for address, key in self._pairs(module, self._encoding.sites):
            pointer = key & ~FLAGS
            if module.region_at(address) is not None:
                found.append(CallSite(address, keys.get(pointer, pointer), bool(key & TAIL)))
        return found

    def sites(self, key: int) -> list[CallSite]:
        """Return the calls that go through a key."""
        return [
            site for module in self._modules() for site in self.table(module) if site.key == key
        ]

    def reserved(self, module: LoadedModule, address: int, size: int) -> bool:
        """Return whether [address, address + size) touches a static call of `module`."""
        return any(
            site.address < address + size and address < site.address + 5
            for site in self.table(module)
        )

    def update(self, key: int, trampoline: int, target: int) -> None:
        """Let a static call call `target` from now on, 0 for nothing (__static_call_update).

        PatchRefused where a call does not reach it, or is none; nothing was changed.
        """
        changes = []
        if self._encoding is not None:
            places = [(site.address, site.tail) for site in self.sites(key)]
            if trampoline:
                places.append((trampoline, True))
            zero = target == self._zero()
            for address, tail in places:
                old = self._patches.read(address, 6)
                # A trampoline keeps jumping to the function that returns 0.
                new = self._encoding.encode(
                    address, old, target, tail, zero and address != trampoline
                )
                if new is None:
                    reason = f"no static call there, or {target:#x} is out of reach"
                    where = self._patches.where(address)
                    raise PatchRefused("update", address, where, reason)
                changes.append((address, new, old[: len(new)]))
        self._patches.poke("update", (c for c in changes if c[1] != c[2]))
        self._memory.write(key, target.to_bytes(8, "little"))


@attrs.frozen(kw_only=True)
class StaticCall:
    """One static call, for Python.

    Parameters
    ----------
    name
        As in `static_call(name)`.
    key, trampoline
        Addresses; trampoline 0: there is none.
    """

    name: str
    key: int
    trampoline: int
    _calls: StaticCallSites = attrs.field(repr=False)
    _memory: Memory = attrs.field(repr=False)

    @property
    def target(self) -> int:
        """The function that is called now."""
        return int.from_bytes(self._memory.read(self.key, 8), "little")

    @property
    def sites(self) -> list[CallSite]:
        """Its calls in the modules that are loaded."""
        return self._calls.sites(self.key)

    def update(self, target: int) -> None:
        """Let it call `target` from now on; 0: nothing."""
        self._calls.update(self.key, self.trampoline, target)
