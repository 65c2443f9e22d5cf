# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of what the guest does with kmalloc memory, to the byte (mm/kasan/ in spirit).

Every object lies between red zones, and a freed one stays out of use for a while. A shadow
says of each byte around them whether it may be touched; every access of the guest, and every
access of a kernel function on its behalf, looks there. That costs a callback for each load and
store, so none of it exists unless it is asked for.

The emulator reports accesses by physical address, so the shadow is by physical address too:
objects are found whichever mapping was used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NoReturn

import attrs

from allocator import KernelMemory
from emulator.faults import FaultKind
from kernels.modelled.heap import LIMIT, POISON_FREE, ZERO_SIZE_PTR, Heap

SHADOWED = 4096  # bytes of memory that a piece of shadow is for, whatever a page has
RED_ZONE = 64  # bytes on each side of an object
QUARANTINE = 1024  # freed objects that are not used again yet
OBJECT_COST = 1024  # what the record of an object takes, beside a byte of shadow for each byte
FINE, RED, FREED, FRESH = 0, 1, 2, 3
_WRITTEN = bytes.maketrans(bytes((FRESH,)), bytes((FINE,)))
# Functions whose memory the module itself must free.
ALLOCATORS = (
    "__kmalloc kmem_cache_alloc __kvmalloc kvmalloc krealloc kstrdup kstrndup kmemdup kvmemdup"
    " kasprintf kvasprintf memdup_user vmemdup_user"
).split()


@attrs.define(eq=False)
class Origin:
    """Where an object was allocated or freed: `function+0xoff/0xsize [module]`, and by what."""

    place: str
    module: str
    function: str


@attrs.define(eq=False)
class Object:
    """One kmalloc object.

    Parameters
    ----------
    address, size
        What was asked for.
    base
        What the heap gave, with the red zone in front.
    room
        Bytes of that.
    allocated, freed
        Who did it.
    """

    address: int
    size: int
    base: int
    room: int
    allocated: Origin
    freed: Origin | None = None

    def __str__(self) -> str:
        told = f"the {self.size}-byte object at {self.address:#x}, allocated at "
        told += self.allocated.place
        return told if self.freed is None else f"{told}, freed at {self.freed.place}"


# Kind, reason, address -> the fault.
OnFault = Callable[[FaultKind, str, int], NoReturn]


class CheckedHeap(Heap):
    """The heap with red zones, a quarantine and a shadow.

    Parameters
    ----------
    memory
        Where pages come from.
    origin
        Returns who is allocating or freeing.
    report
        Raises a fault.
    limit
        As in `Heap`.
    """

    def __init__(
        self,
        memory: KernelMemory,
        origin: Callable[[], Origin],
        report: OnFault,
        limit: int = LIMIT,
    ) -> None:
        super().__init__(memory, limit)
        self.cost = OBJECT_COST
        self._origin = origin
        self._report = report
        self._objects: dict[int, Object] = {}
        self._freed: dict[int, Object] = {}
        self._quarantine: deque[Object] = deque()
        self._shadow: dict[int, bytearray] = {}
        self._around: dict[int, list[Object]] = {}  # by page of the direct map
        # Told of reads of what nobody has written since it was allocated: its address and bytes,
        # and the object. None: nobody wants to know.
        self.on_fresh: Callable[[int, int, Object], object] | None = None

    def alloc(self, size: int, *, zero: bool = False) -> int:
        """Return the address of `size` bytes between red zones, or 0 where there is no memory."""
        if size == 0:
            return ZERO_SIZE_PTR
        base = super().alloc(size + 2 * RED_ZONE, zero=zero)
        if not base or base not in self.memory.direct_map:
            if base:
                self._objects[base] = Object(base, size, base, 0, self._origin())
            return base
        found = Object(base + RED_ZONE, size, base, super().size(base), self._origin())
        self._objects[found.address] = found
        self._mark(base, found.room, RED)
        self._mark(found.address, size, FINE if zero or self.on_fresh is None else FRESH)
        for page in self._pages_of(found):
            self._around.setdefault(page, []).append(found)
        return found.address

    def vmalloc(self, size: int) -> int:
        """Return virtually contiguous memory; its guard page is the red zone."""
        address = super().vmalloc(size)
        if address:
            self._objects[address] = Object(address, size, address, 0, self._origin())
        return address

    def free(self, address: int) -> bool:
        """Put an object into quarantine; a fault where it is there already."""
        if address in (0, ZERO_SIZE_PTR):
            return True
        found = self._objects.pop(address, None)
        if found is None:
            self._twice(address)
            return False
        if not found.room:
            return super().free(found.base)
        found.freed = self._origin()
        self._mark(found.address, found.size, FREED)
        self.memory.fill(found.address, found.size, bytes([POISON_FREE]))
        self._freed[address] = found
        self._quarantine.append(found)
        if len(self._quarantine) > QUARANTINE:
            self._release_first()
        return True

    def _release_first(self) -> None:
        """Give the object that was freed longest ago back to the heap."""
        found = self._quarantine.popleft()
        del self._freed[found.address]
        for page in self._pages_of(found):
            self._around[page].remove(found)
        self._mark(found.base, found.room, FINE)
        super().free(found.base)

    def size(self, address: int) -> int:
        """Return the bytes of an object, no more than asked for; a fault for a freed one."""
        found = self._objects.get(address)
        if found is None:
            self._twice(address)
            return 0
        return found.size

    def live(self) -> dict[int, int]:
        """Return live objects: address -> bytes asked for."""
        return {found.address: found.size for found in self._objects.values()}

    def mark(self) -> frozenset[int]:
        """Return which objects live now."""
        return frozenset(self._objects)

    def roll_back(self, mark: frozenset[int]) -> None:
        """Free every object that did not live at `mark`."""
        for address in [a for a in self._objects if a not in mark]:
            self.free(address)

    def leaks(self, module: str) -> list[Object]:
        """Return what a module allocated itself and did not free."""
        return [
            found
            for found in self._objects.values()
            if found.allocated.module == module
            and found.allocated.function.startswith(tuple(ALLOCATORS))
        ]

    def _twice(self, address: int) -> None:
        if (found := self._freed.get(address)) is not None:
            self._report(FaultKind.DOUBLE_FREE, f"already freed: {found}", address)

    def _pages_of(self, found: Object) -> range:
        start = found.base - self.memory.direct_map.start
        return range(start // SHADOWED, (start + found.room - 1) // SHADOWED + 1)

    def _mark(self, address: int, size: int, state: int) -> None:
        at = address - self.memory.direct_map.start
        while size:
            page, offset = divmod(at, SHADOWED)
            count = min(size, SHADOWED - offset)
            shadow = self._shadow.setdefault(page, bytearray(SHADOWED))
            shadow[offset : offset + count] = bytes([state]) * count
            at, size = at + count, size - count

    def check(self, physical: int, size: int, write: bool, *, copies: bool = False) -> None:
        """Report an access of [physical, physical + size) that touches what it may not.

        `copies` says that a read passes on what it finds, and decides nothing by it.
        """
        at, end = physical, physical + size
        while at < end:
            page, offset = divmod(at, SHADOWED)
            count = min(end - at, SHADOWED - offset)
            shadow = self._shadow.get(page)
            if shadow is not None:
                touched = shadow[offset : offset + count]
                if touched.count(FINE) < count:
                    bad = touched.translate(_WRITTEN).lstrip(b"\0")
                    if bad:
                        self._bad(at + count - len(bad), bad[0], size, write)
                    if write:
                        shadow[offset : offset + count] = bytes(count)
                    elif not copies and touched.count(FRESH) == size:
                        shadow[offset : offset + count] = bytes(count)  # told once
                        self._fresh(at, size)
            at += count

    def _fresh(self, physical: int, size: int) -> None:
        address = self.memory.direct_map.start + physical
        for found in self._around[physical // SHADOWED]:
            if found.address <= address < found.address + found.size and self.on_fresh is not None:
                self.on_fresh(address, size, found)

    def _bad(self, physical: int, state: int, size: int, write: bool) -> NoReturn:
        address = self.memory.direct_map.start + physical
        near = self._around[physical // SHADOWED]
        found = min(
            near, key=lambda o: max(o.address - address, address - o.address - o.size + 1, 0)
        )
        what = f"{'write' if write else 'read'} of {size} bytes"
        if state == FREED:
            reason = f"{what}, {address - found.address} bytes into {found}"
            self._report(FaultKind.USE_AFTER_FREE, reason, address)
        if address < found.address:
            where = f"{found.address - address} bytes before"
        else:
            where = f"{address - found.address - found.size} bytes behind"
        self._report(FaultKind.OUT_OF_BOUNDS, f"{what}, {where} {found}", address)


class CheckedMemory(KernelMemory):
    """The same memory for kernel functions that act for the guest: every access is checked."""

    def __init__(self, memory: KernelMemory, heap: CheckedHeap) -> None:
        self.__dict__ = memory.__dict__  # one memory, seen in two ways
        self.checked_heap = heap

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at `address`, if they may be read."""
        self._check(address, size, write=False)
        return super().read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store `data` at `address`, if that may be written."""
        self._check(address, len(data), write=True)
        super().write(address, data)

    def _check(self, address: int, size: int, *, write: bool) -> None:
        if address in self.direct_map:
            self.checked_heap.check(address - self.direct_map.start, size, write, copies=True)
