# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache that Linux built out of the thread (mm/execmem.c), in its two forms.

Only text is cached; data and rodata are plain vmalloc areas in pages. The cache is a tree
of free areas that are mapped read-only and executable and full of traps:

* an allocation is rounded up to pages and cut from the low side of the lowest free area
  that is long enough and in range;
* on a miss, vmalloc is asked for a multiple of 2 MiB in large leaves, or, when there is no
  such memory, for just the size (a small chunk, which is never given back);
* a freed slice is filled with traps and merged with its neighbours; a free area that then
  starts and ends at multiples of 2 MiB is unmapped.

vmalloc puts a guard page behind each refill, so two chunks of 2 MiB never touch: they lie
4 MiB apart, and what is between them serves vmalloc's own small areas only. Every surviving
slice pins its chunk.

`rox_cache` (6.15 and later): the slice is made not executable and writable, relocated in
place, and made read-only and executable again, whereupon the large leaf collapses.
Splitting that leaf to free a slice needs a page for the table; when there is none, the free
is put off (6.17 tries again from a work item every 10 ms; here at the next operation).

`rox_cache_613` (6.13, switched off before the release because of what translating between
two addresses did to alternatives): text is built in a writable shadow copy, a vmalloc area
of the same size, and poked as a whole at the end; the chunk has no direct-map alias. It
exists only with text_poke; elsewhere the configuration leaves plain vmalloc.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from allocator.designs.areas import Areas
from allocator.designs.base import Allocation, Context, Design, Place, Request, Store
from allocator.designs.pool import Pool
from allocator.errors import ExecmemError
from allocator.types import Address, Interval, Prot


class _Cache(Pool):
    """The free areas of cached text (execmem_cache), cleaned as execmem_cache_clean does."""

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """The size of a large leaf, if any: what is not a multiple of it is just the size."""
        return tuple(size for size in super().chunk_sizes if size == self.memory.large_size)

    def surplus(self, area: Interval) -> list[int]:
        """Return all chunks of `area` if it starts and ends where large leaves do, or none."""
        if (area.start | area.end) % self.memory.large_size:
            return []
        return super().surplus(area)


@attrs.define(eq=False)
class Cache(_Cache):
    """Slices remapped to be written in place."""

    # Slices whose free was put off for want of memory (pending_free_cnt).
    put_off: list[Interval] = attrs.field(factory=list, init=False)

    def alloc(self, request: Request, places: Iterable[Place]) -> Allocation:
        """Carve a slice out and make it writable."""
        self.retry()
        return super().alloc(request, places)

    def free(self, allocation: Allocation) -> None:
        """Clean the slice and give it back, now or when memory allows."""
        self.retry()
        if self._short(allocation.taken):
            self.put_off.append(allocation.taken)
        else:
            super().free(allocation)

    def retry(self) -> None:
        """Carry out the frees that were put off, as far as memory allows."""
        while self.put_off and not self._short(self.put_off[-1]):
            area = self.put_off[-1]
            self.clean(area)
            self.give(area)
            self.memory.events.filled_bytes += area.size
            self.put_off.pop()

    def held(self) -> Iterable[Interval]:
        """Return the slices whose free was put off."""
        return self.put_off

    def _short(self, area: Interval) -> bool:
        """Return whether making the slice writable needs a page that is not there."""
        found = self.memory.translate(area.start)
        splits = found is not None and found.leaf > area.size
        return splits and self.memory.physical.free_bytes < self.memory.page_size


@attrs.define(eq=False)
class ShadowCache(_Cache):
    """Slices with a writable shadow copy until it is finished."""

    _shadows: dict[Address, Address] = attrs.field(factory=dict, init=False)

    def alloc(self, request: Request, places: Iterable[Place]) -> Allocation:
        """Carve a slice out, and a shadow of zeroes in the vmalloc range."""
        shadow = self.memory.vmalloc(request.size)
        try:
            allocation = super().alloc(request, places)
        except ExecmemError:
            self.memory.vfree(shadow)
            raise
        self._shadows[allocation.address] = shadow
        return allocation

    def staged(self, allocation: Allocation) -> Address:
        """Return the address of the shadow while there is one."""
        return self._shadows.get(allocation.address, allocation.address)

    def write(self, allocation: Allocation, offset: int, data: bytes) -> None:
        """Store plainly in the shadow."""
        self.memory.write(self._shadows[allocation.address] + offset, data)

    def finish(self, allocation: Allocation) -> None:
        """Poke the whole shadow over the slice, once, and free it."""
        address, size = allocation.address, allocation.size
        before = self.memory.read(address, size)
        super().write(allocation, 0, self.memory.read(self._shadows[address], size))
        super().finish(allocation)
        try:
            self.memory.vfree(self._shadows[address])
        except ExecmemError:
            self.memory.put_back(address, before)
            raise
        del self._shadows[address]

    def free(self, allocation: Allocation) -> None:
        """Free the shadow of a slice that was not finished, and fill the slice."""
        shadow = self._shadows.get(allocation.address)
        if shadow is None:
            super().free(allocation)
            return
        before = self.memory.read(shadow, allocation.size)
        self.memory.vfree(shadow)
        try:
            super().free(allocation)
        except ExecmemError:
            again = self.memory.vmalloc(allocation.size)
            self.memory.write(again, before)
            self._shadows[allocation.address] = again
            raise
        del self._shadows[allocation.address]

    def refill(self, size: int, align: int, place: Place) -> Interval | None:
        """Add chunks and take them out of the direct map, which nobody flushes.

        execmem_cache_populate() unmaps and flushes what it has filled first, and changes the direct map
        by set_direct_map_valid_noflush() then.
        """
        fresh = super().refill(size, align, place)
        if fresh is not None:
            self.memory.flush_tlb(fresh)
            try:
                self.memory.set_direct_map_invalid(fresh.start, fresh.size)
            except ExecmemError:
                self.trim(fresh)
                raise
        return fresh


class RoxCache(Design):
    """Text remapped and relocated in place, in large leaves; everything else in pages."""

    name = "rox_cache"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.areas = Areas(context.memory)
        self.text = self.cache()

    def cache(self) -> Store:
        """Return the store of text."""
        page, live = self.memory.page_size, self.memory.page_table.live_splits
        return Cache(self.memory, page, Prot.RX, self.context.trap, guard=True, runs=live)

    def store(self, what: Request | Allocation) -> Store:
        """Return the cache for text, vmalloc for the rest."""
        return self.text if what.type.is_text else self.areas

    def stores(self) -> tuple[Store, ...]:
        """Return the cache and the areas."""
        return (self.areas,) if self.text is self.areas else (self.text, self.areas)


class RoxCache613(RoxCache):
    """Text in a shadow copy and one poke; without text_poke, all in pages."""

    name = "rox_cache_613"

    def cache(self) -> Store:
        """Return the store of text: the cache needs text_poke."""
        poke = self.context.text_poke
        if poke is None:
            return self.areas
        page = self.memory.page_size
        return ShadowCache(self.memory, page, Prot.RX, self.context.trap, poke=poke, guard=True)
