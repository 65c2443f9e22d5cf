# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapped memory of one kind that nobody uses, refilled and given back by the chunk.

A vmalloc area and its mapping are born and die together. Here they do not: a chunk as large
as a large leaf is mapped once, alike from end to end, and many areas come and go inside it. What is
in the chunk's free part is mapped already and holds the pattern (traps in text), so taking
an area out changes no page table.

How an area is written follows from the chunk's protection:

    chunk is   with `poke`                  without
    RW         plain stores                 plain stores
    R or RX    through the text_poke alias  the slice is opened: not executable, then RW;
                                            closed at the end, and the large leaf heals

An open slice takes its direct-map alias along, as set_memory_rw() does, and so splits the
leaf of the direct map; with `lone` the alias stays read-only all the time and whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import attrs
from sortedcontainers import SortedDict

from allocator.designs.base import Allocation, Place, Request, Store, allocate
from allocator.errors import ExecmemError
from allocator.intervals import IntervalSet
from allocator.memory import KernelMemory
from allocator.physical import repeat
from allocator.types import (
    MIB,
    Consumer,
    Interval,
    MemType,
    Prot,
    Site,
    TextPoke,
    align_down,
    align_up,
)

CHUNK = 2 * MIB  # where a large leaf is none of this size, and too much
SHARE = 8  # of physical memory, a chunk takes at most one in so many parts


def chunk_size(memory: KernelMemory) -> int:
    """Return the bytes of a chunk: a large leaf, or 2 MiB where that is too much of the memory.

    "It doesn't make sense to reserve too much memory in one allocation", as BPF_PROG_PACK_SIZE.
    """
    large = memory.large_size
    return large if large * SHARE <= memory.physical.size else CHUNK


@attrs.define(eq=False)
class Pool(Store):
    """Free areas in chunks of a large leaf (2 MiB), several areas in one chunk.

    Chunks have no guard pages by default, so they lie side by side; guards would force a
    pitch of 4 MiB. A place or a memory that is too small for such a leaf (512 MiB with pages
    of 64 KiB) gets chunks of 2 MiB in pages. Where a place has no aligned 2 MiB left, or
    memory has too few frames, a chunk is as small as the request. Among the free areas that fit, the one nearest to
    the place's end is taken: address order keeps what is far away empty, and whole.

    Parameters
    ----------
    granule
        Bytes; every area starts and ends at a multiple. Whole pages where slices are opened.
    prot, pattern
        How a chunk is mapped at birth, and what unused memory holds.
    poke
        How a chunk that is not writable is written; None to open slices.
    fine
        Smaller granules for some consumers.
    large
        Whether chunks want a large leaf.
    guard
        Whether a guard page stands behind each refill.
    lone
        Whether a slice is opened without its direct-map alias.
    runs
        Whether chunks that get no large leaf get runs of pages: where they never change in part, or
        leaves may be split in use.
    """

    memory: KernelMemory
    granule: int
    prot: Prot
    pattern: bytes
    poke: TextPoke | None = attrs.field(default=None, kw_only=True)
    fine: Mapping[Consumer, int] = attrs.field(default=MappingProxyType({}), kw_only=True)
    large: bool = attrs.field(default=True, kw_only=True)
    guard: bool = attrs.field(default=False, kw_only=True)
    lone: bool = attrs.field(default=False, kw_only=True)
    runs: bool = attrs.field(default=False, kw_only=True)
    free_areas: IntervalSet = attrs.field(factory=IntervalSet, init=False)
    # First address -> end of the mapped part, and end of the address space it holds.
    chunks: SortedDict = attrs.field(factory=SortedDict, init=False)

    # The life of an allocation -------------------------------------------------------------

    def alloc(self, request: Request, places: Iterable[Place]) -> Allocation:
        """Carve an area out; text reads as the pattern, anything else as zero."""
        granule = self.fine.get(request.consumer, self.granule)
        size, align = align_up(request.size, granule), max(request.align, granule)

        def take(place: Place) -> Interval | None:
            return self.take(size, align, place)

        area, fallback = allocate(request, self.memory, places, take)
        if self.prot is Prot.RW:
            self.memory.fill(area.start, area.size, b"\0")
        elif self.poke is None:
            try:
                self.open(area)
            except ExecmemError:
                self.give(area)
                raise
        return Allocation.of(request, area, fallback=fallback)

    def write(self, allocation: Allocation, offset: int, data: bytes) -> None:
        """Poke whole granules, where bytes around `data` stay as found; or store plainly."""
        address, poke = allocation.address + offset, self.poke
        if poke is None or self.prot is Prot.RW:
            self.memory.write(address, data)
            return
        site = self.site(address, data, poke)
        self.memory.poke(site.address, site.new, poke)

    def site(self, address: int, data: bytes, poke: TextPoke) -> Site:
        """Return the whole granules that hold `data`, with the bytes around it as found."""
        start, end = address, address + len(data)
        if (start | end) % poke.granule:
            start, end = align_down(start, poke.granule), align_up(end, poke.granule)
            before = self.memory.read(start, address - start)
            after = self.memory.read(address + len(data), end - address - len(data))
            data = before + data + after
        return Site(start, data)

    def finish(self, allocation: Allocation) -> None:
        """Close the slice where it was opened; make instruction fetch see text."""
        if allocation.type.is_text:
            self.memory.sync_icache(allocation.address, allocation.address + allocation.size)
        if (
            self.prot is not Prot.RW
            and self.poke is None
            and allocation.type is not MemType.RO_AFTER_INIT
        ):
            self.close(allocation.taken)

    def seal(self, allocation: Allocation) -> None:
        """Take W: close the slice that has been open since birth, or change the pages."""
        if self.prot is Prot.RW:
            self.memory.set_memory_ro(allocation.address, allocation.reserved)
        else:
            self.close(allocation.taken)

    def free(self, allocation: Allocation) -> None:
        """Restore protection and pattern, merge with the neighbours, return empty chunks."""
        area, is_open = allocation.taken, self.is_open(allocation.taken)
        before = self.memory.read(area.start, area.size)
        if self.prot is not Prot.RW:
            self.clean(area)
        elif not is_open:  # sealed
            self.memory.set_memory_rw(area.start, area.size)
        try:
            self.give(area)
        except ExecmemError:
            if self.prot is not Prot.RW and is_open:
                self.open(area)
            elif self.prot is Prot.RW and not is_open:
                self.memory.set_memory_ro(area.start, area.size)
            self.memory.put_back(area.start, before)
            raise
        if self.prot is Prot.RX:
            self.memory.events.filled_bytes += area.size

    def check(self, live: Iterable[Allocation]) -> None:
        """Assert that free areas and allocations fill the chunks; what is free is clean."""
        self.free_areas.check()
        used = [*(allocation.taken for allocation in live), *self.held()]
        least = min((self.granule, *self.fine.values()))
        for area in used:
            assert area.start % least == area.size % least == 0, f"{area} granularity"
        chunks = _merged(Interval(start, end) for start, (end, _) in self.chunks.items())
        filled = _merged([*used, *self.free_areas])
        assert filled == chunks, "free areas and allocations do not fill the chunks"
        for area in self.free_areas:
            assert not self.surplus(area), f"a chunk in {area} is wholly free"
            self.check_free(area)

    def check_free(self, area: Interval) -> None:
        """Assert that a free area is mapped as its chunk, and clean where that is not writable."""
        for span in self.memory.page_table.spans(area.start, area.size):
            assert span.prot is self.prot, f"free {span.va:#x} is mapped {span.prot}"
        if self.prot is not Prot.RW:
            self.check_clean(area)

    def check_clean(self, area: Interval) -> None:
        """Assert that an area holds nothing but the pattern."""
        found = self.memory.read(area.start, area.size)
        assert found == repeat(self.pattern, area.size, area.start), f"{area} is not clean"

    def free_intervals(self) -> Iterable[Interval]:
        """Return mapped memory that no allocation uses."""
        return self.free_areas

    def held(self) -> Iterable[Interval]:
        """Return areas that are neither allocated nor free."""
        return ()

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """Bytes that a chunk may have, the preferred first; where none can be had, less."""
        first = chunk_size(self.memory) if self.large else CHUNK
        return (CHUNK,) if first == CHUNK else (first, CHUNK)

    # Areas ---------------------------------------------------------------------------------

    def take(self, size: int, align: int, place: Place) -> Interval | None:
        """Carve `size` bytes out, refilling if need be; None when the place has no room.

        AllocationError when the room is there but the frames are not.
        """
        highest = place.areas_highest
        start = self.free_areas.find(size, alignment=align, within=place.interval, highest=highest)
        if start is None:
            # At the end of the new chunks, though free memory beside them may touch: an area
            # that reached into that could leave one of the new chunks wholly unused.
            fresh = self.refill(size, align, place)
            if fresh is None:
                return None
            start = align_down(fresh.end - size, align) if highest else fresh.start
        area = Interval(start, start + size)
        self.free_areas.remove(area)
        return area

    def give(self, area: Interval) -> None:
        """Put a clean area back, merge it with its neighbours, return chunks that are empty."""
        merged = self.free_areas.add(area)
        try:
            self.trim(merged)
        except ExecmemError:
            self.free_areas.remove(area)
            raise

    def trim(self, area: Interval) -> None:
        """Return the chunks that lie wholly in a free area; they adjoin."""
        empty = self.surplus(area)
        if not empty:
            return
        gone = Interval(empty[0], self.chunks[empty[-1]][0])
        self.memory.depopulate(gone.start, gone.size)
        self.free_areas.remove(gone)
        for start in empty:
            _, reserved_end = self.chunks.pop(start)
            self.memory.release(Interval(start, reserved_end))
            self.memory.events.chunks_returned += 1

    def surplus(self, area: Interval) -> list[int]:
        """Return the chunks to give back when `area` is free: those that lie wholly inside."""
        starts = self.chunks.irange(area.start, area.end, (True, False))
        return [start for start in starts if self.chunks[start][0] <= area.end]

    def refill(self, size: int, align: int, place: Place) -> Interval | None:
        """Add chunks that hold `size` bytes and return them; None without address space."""
        page = self.memory.page_size
        small = align_up(size, page)
        guard = page if self.guard else 0
        for step, unit in (
            *((chunk, chunk) for chunk in self.chunk_sizes),
            (small if small % CHUNK else CHUNK, page),
        ):
            length = align_up(size, unit)
            reserved = self.memory.reserve(
                length + guard,
                place.interval,
                alignment=max(align, unit),
                highest=place.highest,
            )
            if reserved is None:
                continue
            mapped = Interval(reserved.start, reserved.end - guard)
            try:
                whole = self.back(mapped)
            except ExecmemError:
                self.memory.release(reserved)
                if length == small:
                    raise
                continue
            if self.prot is Prot.RX:
                self.memory.sync_icache(mapped.start, mapped.end)
            self.memory.events.guard_pages += self.guard
            for start in range(mapped.start, mapped.end, step):
                end = start + step
                self.chunks[start] = (end, reserved.end if end == mapped.end else end)
                self.memory.events.refills += 1
                leaves = self.memory.page_table.leaf_counts(Interval(start, end))
                self.memory.events.small_refills += (
                    self.large and not whole and not leaves[self.memory.large_size]
                )
            self.free_areas.add(mapped)
            return mapped
        return None

    def back(self, mapped: Interval) -> bool:
        """Map new chunks; return whether all of it is under large leaves, or can be."""
        return self.memory.populate(
            mapped.start,
            mapped.size,
            self.prot,
            large=self.large,
            runs=self.runs,
            pattern=self.pattern,
        )

    # Slices --------------------------------------------------------------------------------

    def is_open(self, area: Interval) -> bool:
        """Return whether a slice is writable."""
        found = self.memory.translate(area.start)
        return found is not None and found.prot is Prot.RW

    def open(self, area: Interval) -> None:
        """Make a slice of a chunk writable, unless it is: first not executable, then RW."""
        if self.is_open(area):
            return
        if self.prot is Prot.RX:
            if self.lone:
                self.memory.remap(area.start, area.size, Prot.R)
            else:
                self.memory.set_memory_nx(area.start, area.size)
        try:
            if self.lone:
                self.memory.remap(area.start, area.size, Prot.RW)
            else:
                self.memory.set_memory_rw(area.start, area.size)
        except ExecmemError:
            self.close(area)
            raise

    def close(self, area: Interval) -> None:
        """Give a slice the protection of its chunk again and try to heal the large leaf."""
        if self.lone:
            self.memory.remap(area.start, area.size, self.prot)
            self.memory.collapse(area.start, area.size)
        elif self.prot is Prot.RX:
            self.memory.set_memory_rox(area.start, area.size)
        else:
            self.memory.set_memory_ro(area.start, area.size)
            self.memory.collapse(area.start, area.size)

    def clean(self, area: Interval) -> None:
        """Write the pattern over an area of a chunk that is not writable."""
        if self.poke is not None:
            content = repeat(self.pattern, area.size, area.start)
            self.memory.poke(area.start, content, self.poke)
            return
        was_open, before = self.is_open(area), self.memory.read(area.start, area.size)
        self.open(area)
        self.memory.fill(area.start, area.size, self.pattern)
        if self.prot is Prot.RX:
            self.memory.sync_icache(area.start, area.end)
        try:
            self.close(area)
        except ExecmemError:
            self.memory.put_back(area.start, before)
            if not was_open:
                self.close(area)
            raise


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Return disjoint intervals sorted, with neighbours that touch made one."""
    merged: list[Interval] = []
    for interval in sorted(intervals):
        assert not merged or merged[-1].end <= interval.start, f"{interval} overlaps {merged[-1]}"
        touches = merged and merged[-1].end == interval.start
        start = merged.pop().start if touches else interval.start
        merged.append(Interval(start, interval.end))
    return merged
