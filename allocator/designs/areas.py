# SPDX-License-Identifier: GPL-2.0-or-later
"""Areas of their own: how vmalloc keeps memory, one mapping for one allocation.

Whole pages, single frames, one guard page behind each area, RW and not executable at
birth, zeroed. Finishing is set_memory_ro() and set_memory_x(); each area therefore costs
page-table changes, TLB flushes on all CPUs, and splits of the direct map that are never
undone. Freeing takes the way of VM_FLUSH_RESET_PERMS. No text_poke is needed.

An area may hold memory of several types, each in pages of its own, as a module's core and init
did before Linux 6.4: protections are those of the parts, and it is freed once, as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from allocator.designs.base import Allocation, Place, Request, Store, allocate
from allocator.errors import ExecmemError
from allocator.memory import KernelMemory
from allocator.types import Interval, MemType, Prot, align_up


@attrs.define(eq=False)
class Areas(Store):
    """Page-granular areas with guard pages (mm/vmalloc.c)."""

    memory: KernelMemory
    # Start of an area of several types -> how many of its parts are not freed yet.
    _parts: dict[int, int] = attrs.field(factory=dict, init=False)

    def alloc(self, request: Request, places: Iterable[Place]) -> Allocation:
        """Take whole pages, RW and zeroed, and leave a guard page behind them."""
        page = self.memory.page_size
        size = align_up(request.size, page)
        alignment = max(page, request.align, request.where.alignment)

        def take(place: Place) -> Interval | None:
            return self.memory.reserve(
                size + page, place.interval, alignment=alignment, highest=place.highest
            )

        reserved, fallback = allocate(request, self.memory, places, take)
        try:
            self.memory.populate(reserved.start, size, Prot.RW)
        except ExecmemError:
            self.memory.release(reserved)
            raise
        self.memory.events.guard_pages += 1
        taken = Interval(reserved.start, reserved.start + size)
        return Allocation.of(request, taken, fallback=fallback)

    def alloc_area(self, requests: Sequence[Request], places: Iterable[Place]) -> list[Allocation]:
        """Take one area for several requests, in their order, each in whole pages."""
        sizes = [align_up(request.size, self.memory.page_size) for request in requests]
        align = max(request.align for request in requests)
        whole = self.alloc(attrs.evolve(requests[0], size=sum(sizes), align=align), places)
        found, at = [], whole.address
        for request, size in zip(requests, sizes, strict=True):
            part = Allocation.of(request, Interval(at, at + size), fallback=whole.fallback)
            found.append(attrs.evolve(part, area=whole.taken))
            at += size
        self._parts[whole.address] = len(found)
        return found

    def write(self, allocation: Allocation, offset: int, data: bytes) -> None:
        """Store plainly: the memory is RW until `finish`."""
        self.memory.write(allocation.address + offset, data)

    def finish(self, allocation: Allocation) -> None:
        """Change protections: rodata RO; text synced, RO, then X; data and RO_AFTER_INIT keep RW."""
        address, size = allocation.address, allocation.reserved
        if allocation.type.is_text:
            self.memory.sync_icache(address, address + allocation.size)
            self.memory.set_memory_ro(address, size)
            try:
                self.memory.set_memory_x(address, size)
            except ExecmemError:
                self.memory.set_memory_rw(address, size)
                raise
        elif allocation.type in (MemType.RODATA, MemType.INIT_RODATA):
            self.memory.set_memory_ro(address, size)

    def seal(self, allocation: Allocation) -> None:
        """Take W from its pages."""
        self.memory.set_memory_ro(allocation.address, allocation.reserved)

    def free(self, allocation: Allocation) -> None:
        """Unmap, reset the direct map where it changed, return frames and address space.

        Of an area that others share nothing happens before the last of them is freed.
        """
        area = allocation.area
        if area is not None and self._parts[area.start] > 1:
            self._parts[area.start] -= 1
            return
        taken = allocation.taken if area is None else area
        self.memory.depopulate(taken.start, taken.size)
        self.memory.release(Interval(taken.start, taken.end + self.memory.page_size))
        self._parts.pop(taken.start, None)

    def check(self, live: Iterable[Allocation]) -> None:
        """Assert that every area has its pages and its unmapped guard page."""
        page = self.memory.page_size
        parts: dict[int, int] = {}
        for allocation in live:
            if allocation.area is not None:
                assert allocation.area.holds(allocation.taken)
                parts[allocation.area.start] = parts.get(allocation.area.start, 0) + 1
            end = (allocation.area or allocation.taken).end
            assert allocation.address % page == allocation.reserved % page == 0
            assert self.memory.translate(end) is None, f"no guard page at {end:#x}"
            assert self.memory.free_space.holding(end) is None, f"guard page {end:#x} is free"
            for leaf in self.memory.page_table.leaves(allocation.taken):
                assert leaf.size == page, f"large leaf at {leaf.va:#x}"
        assert parts == self._parts, f"parts that live: {parts}, counted: {self._parts}"
