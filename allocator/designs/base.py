# SPDX-License-Identifier: GPL-2.0-or-later
"""What a design of executable memory is, and what designs have in common.

`Execmem` owns the life cycle (pending, finished, sealed, freed) and the lookup by address;
it calls a design only in legal order. A design decides where an allocation lies and how its
memory is mapped, written, made final and given back. Seven types go in, and each design
answers the thread's four parameters per type: initial mapping, alignment, granularity,
address range.

Shared here: the trees of *mapped but unused* memory that Song Liu's proposal introduced
(`Pool`), filled by chunks of 2 MiB, and the walk over a request's ranges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, TypeVar

import attrs
from sortedcontainers import SortedDict

from allocator.errors import AllocationError, ExecmemError
from allocator.intervals import IntervalSet
from allocator.memory import KernelMemory
from allocator.types import (
    LARGE_PAGE_SIZE,
    PAGE_SIZE,
    Consumer,
    ExecmemRange,
    Interval,
    MemType,
    Prot,
    TextPoke,
    align_up,
)

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Request:
    """One call of `Execmem.alloc`, with the ranges that its type and consumer may use.

    Parameters
    ----------
    size
        Bytes, positive.
    align
        A power of two; 1 when the caller does not care.
    where
        The address ranges and the page-granular alignment of the architecture's row.
    """

    type: MemType
    consumer: Consumer
    size: int
    align: int
    where: ExecmemRange

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """The ranges to try, in order."""
        fallback = self.where.fallback
        return (self.where.range,) if fallback is None else (self.where.range, fallback)


@attrs.frozen(kw_only=True)
class Allocation:
    """Executable memory that is ready for use.

    Parameters
    ----------
    size, reserved
        Bytes that were asked for, and bytes that are taken from `address` on.
    fallback
        Whether it lies in the fallback range.
    """

    address: int
    size: int
    type: MemType
    consumer: Consumer
    fallback: bool
    reserved: int

    @property
    def interval(self) -> Interval:
        """The addresses that were asked for."""
        return Interval(self.address, self.address + self.size)

    @property
    def taken(self) -> Interval:
        """The addresses that are taken, padding included."""
        return Interval(self.address, self.address + self.reserved)


@attrs.frozen(kw_only=True)
class Context:
    """What a design works with: memory, and what the architecture can do.

    Parameters
    ----------
    trap
        The bytes of an instruction that traps, repeated over unused text.
    text_poke
        How finished text is written; None on an architecture that cannot.
    """

    memory: KernelMemory
    trap: bytes
    text_poke: TextPoke | None


class Design(ABC):
    """A way to place and map executable memory.

    Every method leaves all as it was when it raises. `Execmem` calls `alloc` first, then
    `write` any number of times, then `finish` or `abandon` once; after `finish`, `seal` at
    most once (RO_AFTER_INIT only) and `free` once.
    """

    name: ClassVar[str]

    def __init__(self, context: Context) -> None:
        self.context = context
        self.memory = context.memory

    @abstractmethod
    def alloc(self, request: Request) -> Allocation:
        """Take memory for `request`; AllocationError when there is none."""

    @abstractmethod
    def write(self, allocation: Allocation, offset: int, data: bytes) -> None:
        """Store `data` in an allocation that is not finished; the bounds were checked."""

    @abstractmethod
    def finish(self, allocation: Allocation) -> None:
        """Give it its final protection and make instruction fetch see it."""

    def seal(self, allocation: Allocation) -> None:
        """Make RO_AFTER_INIT memory read-only; by default page by page."""
        self.memory.set_memory_ro(allocation.address, align_up(allocation.size, PAGE_SIZE))

    def abandon(self, allocation: Allocation) -> None:
        """Give back an allocation that was not finished; by default as `free` does."""
        self.free(allocation)

    @abstractmethod
    def free(self, allocation: Allocation) -> None:
        """Give the memory back."""

    @abstractmethod
    def check(self, live: Iterable[Allocation]) -> None:
        """Assert the design's own invariants; `live` is all that was not freed."""

    def free_intervals(self) -> Iterable[Interval]:
        """Return mapped memory that no allocation uses; a design without pools has none."""
        return ()


def allocate(
    request: Request, memory: KernelMemory, place: Callable[[Interval], T | None]
) -> tuple[T, bool]:
    """Return the first answer of `place(range)` and whether the fallback range gave it.

    AllocationError, naming the ranges and the largest free run, when no range gives one.
    """
    for fallback, interval in enumerate(request.intervals):
        placed = place(interval)
        if placed is not None:
            return placed, bool(fallback)
    largest = max(memory.free_space.largest(interval) for interval in request.intervals)
    raise AllocationError(
        f"{request.type.name} for {request.consumer.value}",
        request.size,
        request.intervals,
        f"the largest free run of address space has {largest:#x} bytes",
        hint="free memory of this range or choose a design that packs closer",
    )


@attrs.define(eq=False)
class Pool:
    """Mapped memory of one kind that nobody uses, refilled and given back by the chunk.

    A chunk is 2 MiB of address space (or several, adjacent, for a larger request), without
    a guard page: guards would force a pitch of 4 MiB. Where a range has no aligned 2 MiB
    left, or memory has too few frames, a chunk is as small as the request.

    Parameters
    ----------
    granule
        Bytes; every area starts and ends at a multiple.
    prot, pattern
        How a chunk is mapped at birth, and what unused memory holds.
    large
        Whether chunks want a 2 MiB leaf.
    """

    memory: KernelMemory
    granule: int
    prot: Prot
    pattern: bytes
    large: bool = True
    free: IntervalSet = attrs.field(factory=IntervalSet, init=False)
    # First address -> end.
    chunks: SortedDict = attrs.field(factory=SortedDict, init=False)

    def take(self, size: int, align: int, within: Interval) -> Interval | None:
        """Carve `size` bytes out, refilling if need be; None when `within` has no room.

        AllocationError when the room is there but the frames are not.
        """
        align = max(align, self.granule)
        size = align_up(size, self.granule)
        start = self.free.find(size, alignment=align, within=within)
        if start is None:
            # At the start of the new chunks, though free memory before them may touch: an
            # area that began there could leave the last of the new chunks wholly unused.
            start = self._refill(size, align, within)
        if start is None:
            return None
        area = Interval(start, start + size)
        self.free.remove(area)
        return area

    def give(self, area: Interval) -> None:
        """Put an area back, merge it with its neighbours, return chunks that are wholly free.

        The caller has restored the protection and the pattern already.
        """
        merged = self.free.add(area)
        for start in list(self.chunks.irange(merged.start, merged.end, (True, False))):
            chunk = Interval(start, self.chunks[start])
            if merged.holds(chunk):
                self.free.remove(chunk)
                del self.chunks[start]
                self.memory.depopulate(chunk.start, chunk.size)
                self.memory.release(chunk)
                self.memory.events.chunks_returned += 1

    def check(self, areas: Iterable[Interval]) -> None:
        """Assert that free memory and `areas` together fill the chunks exactly."""
        self.free.check()
        used = list(areas)
        for area in used:
            assert area.start % self.granule == area.size % self.granule == 0, f"{area} granularity"
        filled = _merged([*used, *self.free])
        chunks = _merged(Interval(start, end) for start, end in self.chunks.items())
        assert filled == chunks, "free areas and allocations do not fill the chunks"
        for area in self.free:
            for start in self.chunks.irange(area.start, area.end):
                whole = Interval(start, self.chunks[start])
                assert not area.holds(whole), f"chunk {whole} is wholly free"
            for span in self.memory.page_table.spans(area.start, area.size):
                assert span.prot is self.prot, f"free {span.va:#x} is mapped {span.prot}"

    def _refill(self, size: int, align: int, within: Interval) -> int | None:
        """Add chunks that hold `size` bytes, return their start; None without address space."""
        whole = align_up(size, LARGE_PAGE_SIZE)
        small = align_up(size, PAGE_SIZE)
        for length, alignment in (
            (whole, max(align, LARGE_PAGE_SIZE)),
            (small, max(align, PAGE_SIZE)),
        ):
            reserved = self.memory.reserve(length, within, alignment=alignment)
            if reserved is None:
                continue
            try:
                self.memory.populate(
                    reserved.start, length, self.prot, large=self.large, pattern=self.pattern
                )
            except ExecmemError:
                self.memory.release(reserved)
                if length == small:
                    raise
                continue
            if self.prot & Prot.X:
                self.memory.sync_icache(reserved.start, reserved.end)
            step = LARGE_PAGE_SIZE if length == whole else length
            for start in range(reserved.start, reserved.end, step):
                self.chunks[start] = start + step
                self.memory.events.refills += 1
                leaves = self.memory.page_table.leaf_counts(Interval(start, start + step))
                self.memory.events.small_refills += self.large and not leaves[LARGE_PAGE_SIZE]
            self.free.add(reserved)
            return reserved.start
        return None


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Return disjoint intervals sorted, with neighbours that touch made one."""
    merged: list[Interval] = []
    for interval in sorted(intervals):
        assert not merged or merged[-1].end <= interval.start, f"{interval} overlaps {merged[-1]}"
        touches = merged and merged[-1].end == interval.start
        start = merged.pop().start if touches else interval.start
        merged.append(Interval(start, interval.end))
    return merged
