# SPDX-License-Identifier: GPL-2.0-or-later
"""Areas of their own: how vmalloc keeps memory, one mapping for one allocation.

Whole pages, single 4 KiB frames, one guard page behind each area, RW and not executable at
birth, zeroed. Finishing is set_memory_ro() and set_memory_x(); each area therefore costs
page-table changes, TLB flushes on all CPUs, and splits of the direct map that are never
undone. Freeing takes the way of VM_FLUSH_RESET_PERMS. No text_poke is needed.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from allocator.designs.base import Allocation, Place, Request, Store, allocate
from allocator.errors import ExecmemError
from allocator.memory import KernelMemory
from allocator.types import PAGE_SIZE, Interval, MemType, Prot, align_up


@attrs.define(eq=False)
class Areas(Store):
    """Page-granular areas with guard pages (mm/vmalloc.c)."""

    memory: KernelMemory

    def alloc(self, request: Request, places: Iterable[Place]) -> Allocation:
        """Take whole pages, RW and zeroed, and leave a guard page behind them."""
        size = align_up(request.size, PAGE_SIZE)
        alignment = max(PAGE_SIZE, request.align, request.where.alignment)

        def take(place: Place) -> Interval | None:
            return self.memory.reserve(
                size + PAGE_SIZE, place.interval, alignment=alignment, highest=place.highest
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
        """Unmap, reset the direct map where it changed, return frames and address space."""
        taken = allocation.taken
        self.memory.depopulate(taken.start, taken.size)
        self.memory.release(Interval(taken.start, taken.end + PAGE_SIZE))

    def check(self, live: Iterable[Allocation]) -> None:
        """Assert that every area has its pages and its unmapped guard page."""
        for allocation in live:
            end = allocation.taken.end
            assert allocation.address % PAGE_SIZE == allocation.reserved % PAGE_SIZE == 0
            assert self.memory.translate(end) is None, f"no guard page at {end:#x}"
            assert self.memory.free_space.holding(end) is None, f"guard page {end:#x} is free"
            for leaf in self.memory.page_table.leaves(allocation.taken):
                assert leaf.size == PAGE_SIZE, f"large leaf at {leaf.va:#x}"
