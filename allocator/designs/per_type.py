# SPDX-License-Identifier: GPL-2.0-or-later
"""Song Liu's three trees: free areas of mapped memory, one tree per kind, 2 MiB at a time.

Text lives in chunks that are read-only and executable from birth and full of trap
instructions; rodata in chunks that are read-only from birth; data in writable ones. Many
areas share a chunk, so one large leaf serves many modules and its direct-map alias is
split once, not once per page. Init types share the tree of their kind, and the holes they
leave are taken by whatever comes next.

    tree           chunk    granule  written by            unused memory holds
    text           R-X 2M   64 B     text_poke             the trap pattern
    rodata         R-- 2M   64 B     text_poke             zero
    data           RW- 2M   64 B     plain stores          anything; zeroed when taken
    ro_after_init  RW- 4K   4 KiB    plain stores          anything; zeroed when taken

RO_AFTER_INIT is sealed at another time than anything else, one module after the other. It
stays apart from rodata, in whole pages under small leaves, so that sealing one allocation
neither splits a large leaf nor touches a neighbour.

Without text_poke, text and rodata are page granular, and a slice is taken out of its large
leaf to be written: not executable, then writable; at the end read-only (and executable)
again, and the leaf collapses when the whole of it agrees (the upstream cache since 6.15).

The trees are shared by all consumers; a search is confined to the range of its own class,
so a tree may hold chunks of several ranges. Alignments of a page and above in the range's
row are those of page-granular vmalloc; here the granule and the request's alignment rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from allocator.designs.base import Allocation, Context, Design, Pool, Request, allocate
from allocator.errors import ExecmemError
from allocator.physical import repeat
from allocator.types import PAGE_SIZE, Interval, MemType, Prot, TextPoke, align_down, align_up

# Cache-line sized areas: neighbours share no line, and the largest section alignment that
# modules commonly use is honoured for free.
GRANULE = 64


class PerType(Design):
    """Free areas per type, refilled in 2 MiB chunks, several areas in one chunk."""

    name = "per_type"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        written = GRANULE if context.text_poke else PAGE_SIZE
        memory = self.memory
        self.text = Pool(memory, written, Prot.RX, context.trap)
        self.rodata = Pool(memory, written, Prot.R, b"\0")
        self.data = Pool(memory, GRANULE, Prot.RW, b"\0")
        self.ro_after_init = Pool(memory, PAGE_SIZE, Prot.RW, b"\0", large=False)
        self._pools = {
            MemType.TEXT: self.text,
            MemType.INIT_TEXT: self.text,
            MemType.RODATA: self.rodata,
            MemType.INIT_RODATA: self.rodata,
            MemType.DATA: self.data,
            MemType.INIT_DATA: self.data,
            MemType.RO_AFTER_INIT: self.ro_after_init,
        }

    def alloc(self, request: Request) -> Allocation:
        """Carve an area out of the type's tree; text reads as traps, the others as zero."""
        pool = self._pools[request.type]

        def place(within: Interval) -> Interval | None:
            return pool.take(request.size, request.align, within)

        area, fallback = allocate(request, self.memory, place)
        if pool.prot is Prot.RW:
            self.memory.fill(area.start, area.size, b"\0")
        elif self.context.text_poke is None:
            try:
                self._open(area)
            except ExecmemError:
                self._close(area, pool)
                pool.give(area)
                raise
        return Allocation(
            address=area.start,
            size=request.size,
            type=request.type,
            consumer=request.consumer,
            fallback=fallback,
            reserved=area.size,
        )

    def write(self, allocation: Allocation, offset: int, data: bytes) -> None:
        """Poke text and rodata where the architecture can; store plainly elsewhere."""
        address, poke = allocation.address + offset, self.context.text_poke
        if poke is None or self._pools[allocation.type].prot is Prot.RW:
            self.memory.write(address, data)
        else:
            self._poke(address, data, poke)

    def finish(self, allocation: Allocation) -> None:
        """Close the slice where it was opened; make instruction fetch see text."""
        pool = self._pools[allocation.type]
        if allocation.type.is_text:
            self.memory.sync_icache(allocation.address, allocation.address + allocation.size)
        if pool.prot is not Prot.RW and self.context.text_poke is None:
            self._close(allocation.taken, pool)

    def free(self, allocation: Allocation) -> None:
        """Restore protection and filling, merge with the neighbours, return empty chunks."""
        pool, area = self._pools[allocation.type], allocation.taken
        if pool.prot is Prot.RW:
            found = self.memory.translate(area.start)
            if found is not None and found.prot is not Prot.RW:  # sealed
                self.memory.set_memory_rw(area.start, area.size)
        elif self.context.text_poke is not None:
            self.memory.poke(
                area.start,
                repeat(pool.pattern, area.size, area.start),
                self.context.text_poke,
            )
        else:
            self._open(area)
            self.memory.fill(area.start, area.size, pool.pattern)
            if allocation.type.is_text:
                self.memory.sync_icache(area.start, area.end)
            self._close(area, pool)
        if allocation.type.is_text:
            self.memory.events.filled_bytes += area.size
        pool.give(area)

    def check(self, live: Iterable[Allocation]) -> None:
        """Assert that each tree's areas and free memory fill its chunks, trap-filled."""
        live = list(live)
        for pool in self._all():
            pool.check(item.taken for item in live if self._pools[item.type] is pool)
        for pool in (self.text, self.rodata):
            for area in pool.free:
                found = self.memory.read(area.start, area.size)
                assert found == repeat(pool.pattern, area.size, area.start), f"{area} is not clean"

    def free_intervals(self) -> Iterator[Interval]:
        """Yield mapped memory that no allocation uses."""
        for pool in self._all():
            yield from pool.free

    def _all(self) -> tuple[Pool, ...]:
        return self.text, self.rodata, self.data, self.ro_after_init

    def _poke(self, address: int, data: bytes, poke: TextPoke) -> None:
        """Poke whole granules: bytes around `data` are written as they were found."""
        start = align_down(address, poke.granule)
        end = align_up(address + len(data), poke.granule)
        before = self.memory.read(start, address - start)
        after = self.memory.read(address + len(data), end - address - len(data))
        self.memory.poke(start, before + data + after, poke)

    def _open(self, area: Interval) -> None:
        """Make a slice of a chunk writable: first not executable, then RW."""
        self.memory.set_memory_nx(area.start, area.size)
        self.memory.set_memory_rw(area.start, area.size)

    def _close(self, area: Interval, pool: Pool) -> None:
        """Give a slice the protection of its chunk again and try to heal the large leaf."""
        if pool.prot is Prot.RX:
            self.memory.set_memory_rox(area.start, area.size)
        else:
            self.memory.set_memory_ro(area.start, area.size)
            self.memory.collapse(area.start, area.size)
