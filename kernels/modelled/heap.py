# SPDX-License-Identifier: GPL-2.0-or-later
"""kmalloc: objects in the direct map, power-of-two sizes up to a page, page runs above.

Objects come back zeroed only when asked for (__GFP_ZERO); fresh ones are filled with the
kernel's poison so that a module that reads what it never wrote shows itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import attrs

from allocator import AllocationError, KernelMemory
from allocator.types import align_down, align_up

POISON_INUSE = 0x5A  # include/linux/poison.h: never-initialised objects
POISON_FREE = 0x6B  # and freed ones
ZERO_SIZE_PTR = 16  # what kmalloc(0) returns: neither NULL nor usable
SMALLEST = 8
LIMIT = 512 << 20  # bytes of all objects together, with what each costs the host
COST = 256


class Apart(Protocol):
    """Objects that are kept elsewhere than in slabs."""

    def __contains__(self, address: int, /) -> bool: ...

    def alloc(self, size: int, /, *, zero: bool) -> int | None:
        """Return the address of an object; None where it is to be a plain one."""
        ...

    def free(self, address: int, /) -> bool:
        """Free the object at an address; False where it is none."""
        ...

    def size(self, address: int, /) -> int:
        """Return the bytes usable at an object; 0 for none."""
        ...

    def live(self) -> Iterable[tuple[int, int]]:
        """Return address and bytes of those that are not freed."""
        ...

    def state(self) -> Any:
        """Return what is held, for `set_state`."""
        ...

    def set_state(self, state: Any, /) -> None:
        """Hold what was held then."""
        ...


@attrs.define
class Heap:
    """The allocator behind kmalloc.

    Parameters
    ----------
    memory
        Where pages come from.
    limit
        Bytes that live objects may come to, `cost` for each of them included: a guest that
        allocates without end gets no memory, and the host keeps its own.

    `host` is what else the host keeps for the guest, which counts as well. `apart` has objects
    that are not in slabs, where there are any; their number is bounded.
    """

    memory: KernelMemory
    limit: int = LIMIT
    used: int = attrs.field(default=0, init=False)
    host: int = attrs.field(default=0, init=False)
    cost: int = attrs.field(default=COST, init=False)
    apart: Apart | None = attrs.field(default=None, init=False)
    changes: int = attrs.field(default=0, init=False)  # objects that came or went
    _free: dict[int, list[int]] = attrs.field(factory=dict, init=False)
    _live: dict[int, tuple[int, int]] = attrs.field(factory=dict, init=False)
    _slabs: list[int] = attrs.field(factory=list, init=False)

    def alloc(self, size: int, *, zero: bool = False) -> int:
        """Return the address of `size` bytes, or 0 where there is no memory."""
        if size == 0:
            return ZERO_SIZE_PTR
        self.changes += 1
        if self.apart is not None and (found := self.apart.alloc(size, zero=zero)) is not None:
            return found
        room = max(SMALLEST, 1 << (size - 1).bit_length())
        if self.used + self.host + room + self.cost > self.limit:
            return 0
        try:
            address = self._pages(room) if room > self.memory.page_size // 2 else self._object(room)
        except AllocationError:
            return 0
        self._live[address] = (size, room)
        self.used += room + self.cost
        self.memory.fill(address, room, b"\0" if zero else bytes([POISON_INUSE]))
        return address

    def vmalloc(self, size: int) -> int:
        """Return the address of `size` zeroed bytes, contiguous only virtually, or 0."""
        self.changes += 1
        room = align_up(size, self.memory.page_size)
        if self.used + self.host + room + self.cost > self.limit:
            return 0
        try:
            address = self.memory.vmalloc(size)
        except AllocationError:
            return 0
        self._live[address] = (size, room)
        self.used += room + self.cost
        return address

    def free(self, address: int) -> bool:
        """Give an object back; False when `address` is not one (freed twice, never allocated)."""
        if address in (0, ZERO_SIZE_PTR):
            return True
        self.changes += 1
        if self.apart is not None and address in self.apart:
            return self.apart.free(address)
        found = self._live.get(address)
        if found is None:
            return False
        room = found[1]
        self.used -= room + self.cost
        if room > self.memory.page_size // 2:
            self._release(address)
        else:
            self.memory.fill(address, room, bytes([POISON_FREE]))
            self._free[room].append(address)
        del self._live[address]
        return True

    @property
    def full(self) -> bool:
        """Whether all that the guest may have is used."""
        return self.used + self.host > self.limit

    def size(self, address: int) -> int:
        """Return the bytes usable at an object (ksize); 0 for none."""
        if self.apart is not None and address in self.apart:
            return self.apart.size(address)
        return self._live.get(address, (0, 0))[1]

    def live(self) -> dict[int, int]:
        """Return live objects: address -> bytes asked for."""
        found = {address: size for address, (size, _) in self._live.items()}
        return found if self.apart is None else found | dict(self.apart.live())

    def mark(self) -> frozenset[int]:
        """Return which objects live now, to be given to `roll_back`; empty slabs go first."""
        self._shrink()
        return frozenset(self.live())

    def roll_back(self, mark: frozenset[int]) -> None:
        """Free every object that did not live at `mark`: what a failed load left behind."""
        for address in [a for a in self.live() if a not in mark]:
            self.free(address)
        self._shrink()

    def state(self) -> dict[str, Any]:
        """Return all that the heap remembers, for `become`."""
        found = self._copied({name: getattr(self, name) for name in self._remembered()})
        return found | {"apart": None if self.apart is None else self.apart.state()}

    def become(self, state: dict[str, Any], *, keep: Callable[[int], bool]) -> None:
        """Remember what it did when `state` was called; what was allocated since is freed.

        Parameters
        ----------
        keep
            Whether what lies at an address comes back with the pages, and needs no freeing.
        """
        for address in [a for a in self._live if a not in state["_live"] and not keep(a)]:
            self._release(address)
        names = self._remembered()
        for name, value in self._copied({name: state[name] for name in names}).items():
            setattr(self, name, value)
        if self.apart is not None and state["apart"] is not None:
            self.apart.set_state(state["apart"])

    def _copied(self, state: dict[str, Any]) -> dict[str, Any]:
        if type(self) is not Heap:  # objects that one part knows another knows, too
            return copy.deepcopy(state)
        free = {room: spare[:] for room, spare in state["_free"].items()}
        copied = {"_free": free, "_live": dict(state["_live"]), "_slabs": state["_slabs"][:]}
        return {**state, **copied}

    def _remembered(self) -> list[str]:
        own = [field.name for field in attrs.fields(Heap) if field.name not in ("memory", "apart")]
        return own + [
            name for name, value in getattr(self, "__dict__", {}).items() if not callable(value)
        ]

    def _shrink(self) -> None:
        """Give slabs back that hold no object (kmem_cache_shrink)."""
        page = self.memory.page_size
        held = {align_down(address, page) for address in self._live}
        empty = {slab for slab in self._slabs if slab not in held}
        for spare in self._free.values():
            spare[:] = [a for a in spare if align_down(a, page) not in empty]
        for slab in empty:
            self.memory.free_pages(slab)
            self._slabs.remove(slab)

    def _object(self, room: int) -> int:
        spare = self._free.setdefault(room, [])
        if not spare:
            slab = self.memory.alloc_pages(0)
            self._slabs.append(slab)
            end = slab + self.memory.page_size
            spare.extend(range(end - room, slab - 1, -room))
        return spare.pop()

    def _pages(self, room: int) -> int:
        page = self.memory.page_size
        order = (align_up(room, page) // page - 1).bit_length()
        if order > self.memory.paging.large_order:
            # Beyond a physical run: kvmalloc's way, contiguous only virtually.
            return self.memory.vmalloc(room)
        return self.memory.alloc_pages(order)

    def _release(self, address: int) -> None:
        if address in self.memory.direct_map:
            self.memory.free_pages(address)
        else:
            self.memory.vfree(address)
