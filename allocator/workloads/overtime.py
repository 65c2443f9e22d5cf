# SPDX-License-Identifier: GPL-2.0-or-later
"""How memory fares over a workload: how it stands at moments, and what single operations cost.

Moments are evenly many operations apart, so they are the same in every run. A cost is counted
in what the operation made CPUs do; the host's time stands beside, and is another in every run.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs

from allocator.designs.pool import chunk_size
from allocator.events import Events
from allocator.execmem import Execmem
from allocator.types import ExecmemType, align_down, size_text
from allocator.workloads.operations import Operation

PINNED = 16  # a chunk that is used by less than one in so many parts is held by something tiny
COSTS = ("flushes_all", "flushes_local", "entries", "bytes")


@attrs.frozen(kw_only=True)
class Moment:
    """How memory stands after so many operations.

    Parameters
    ----------
    live_bytes
        Bytes that were asked for and are not freed.
    free_mapped_bytes, largest_free_mapped
        Mapped memory that no allocation uses, and its largest run.
    window_free, window_largest
        Address space left in the range of module text, and its largest run.
    memory_free, memory_whole
        Bytes of physical memory that nobody holds, and those of them in free runs of a large leaf.
    chunks_pinned, pinned_by
        2 MiB regions mapped as a whole of which less than a sixteenth is in use, and the bytes in
        use there.
    leaves, direct_map
        Leaves by size: those of the direct map, and all others.
    leaf_splits, direct_map_splits, tlb_flushes_all, tlb_flushes_local
        Events until now.
    """

    operation: int
    live_bytes: int
    free_mapped_bytes: int
    largest_free_mapped: int
    window_free: int
    window_largest: int
    memory_free: int
    memory_whole: int
    chunks_pinned: int
    pinned_by: int
    leaves: dict[str, int]
    direct_map: dict[str, int]
    leaf_splits: int
    direct_map_splits: int
    tlb_flushes_all: int
    tlb_flushes_local: int

    @property
    def window_fragmentation(self) -> float:
        """Share of the free address space that is not in its largest run, 0..1."""
        return 1 - self.window_largest / self.window_free if self.window_free else 0.0

    @property
    def memory_fragmentation(self) -> float:
        """Share of free memory in which no large leaf fits, 0..1."""
        return 1 - self.memory_whole / self.memory_free if self.memory_free else 0.0


@attrs.frozen
class Spread:
    """How a cost is spread over operations: the median, the 99th percentile, the most."""

    median: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Iterable[tuple[float, int]]) -> Spread:
        """Return the spread of values, each with how often it occurs; nearest rank."""
        rows = sorted(values)
        count = sum(often for _, often in rows)

        def rank(percent: int) -> float:
            wanted, seen = -(-count * percent // 100), 0
            for value, often in rows:
                seen += often
                if seen >= wanted:
                    return value
            return 0

        return cls(rank(50), rank(99), rows[-1][0] if rows else 0)


@attrs.frozen(kw_only=True)
class Costs:
    """What the operations of one kind cost.

    Parameters
    ----------
    kind
        As in a trace: `load`, `alloc`, `free`.
    counted
        By name: flushes of all CPUs and of one, entries of page tables written, bytes written.
    microseconds
        Of the host's processor, not of those who wait for it.
    """

    kind: str
    operations: int
    counted: dict[str, Spread]
    microseconds: Spread


class OverTime:
    """Watches a run: `look` at a moment, `note` an operation.

    Parameters
    ----------
    moments
        How many are wanted beside the one before everything.
    """

    def __init__(self, moments: int) -> None:
        self.wanted = moments
        self.moments: list[Moment] = []
        self._counted: dict[type[Operation], list[Counter[int]]] = {}
        self._seconds: dict[type[Operation], array[float]] = {}
        self._before: tuple[int, ...] = (0,) * len(COSTS)
        self._began = 0.0

    def ends(self, total: int) -> list[int]:
        """Return after how many operations of `total` there is a moment."""
        return sorted({total * number // self.wanted for number in range(1, self.wanted + 1)} - {0})

    def look(self, execmem: Execmem, operation: int) -> None:
        """Keep how memory stands after so many operations."""
        self.moments.append(moment(execmem, operation))
        self._before = _spent(execmem.memory.events)
        self._began = time.thread_time()

    def note(self, operation: Operation, execmem: Execmem) -> None:
        """Add what an operation cost that was carried out since the last one, or since a look."""
        took = time.thread_time() - self._began
        kind = type(operation)
        if kind not in self._counted:
            self._counted[kind] = [Counter() for _ in COSTS]
            self._seconds[kind] = array("d")
        now, before = _spent(execmem.memory.events), self._before
        for counts, after, until in zip(self._counted[kind], now, before, strict=True):
            counts[after - until] += 1
        self._before = now
        self._seconds[kind].append(took)
        self._began = time.thread_time()

    def costs(self) -> list[Costs]:
        """Return what operations cost, by kind, in the order in which kinds came first."""
        return [
            Costs(
                kind=kind.__name__.lower(),
                operations=len(self._seconds[kind]),
                counted={
                    name: Spread.of(counts.items())
                    for name, counts in zip(COSTS, counted, strict=True)
                },
                microseconds=Spread.of((one * 1e6, 1) for one in self._seconds[kind]),
            )
            for kind, counted in self._counted.items()
        ]


def moment(execmem: Execmem, operation: int) -> Moment:
    """Return how memory stands now."""
    memory, events = execmem.memory, execmem.memory.events
    window = memory.address_map.range_of(ExecmemType.MODULE_TEXT).range
    free = [area.size for area in execmem.design.free_intervals()]
    chunks, used = pinned(execmem)
    mapped = memory.page_table.leaf_counts()
    direct = memory.page_table.leaf_counts(memory.direct_map)
    return Moment(
        operation=operation,
        live_bytes=sum(held.size for held in execmem.allocations()),
        free_mapped_bytes=sum(free),
        largest_free_mapped=max(free, default=0),
        window_free=sum(part.size for part in memory.free_space.clipped(window)),
        window_largest=memory.free_space.largest(window),
        memory_free=memory.physical.free_bytes,
        memory_whole=memory.physical.free_in_runs(memory.paging.large_order),
        chunks_pinned=chunks,
        pinned_by=used,
        leaves=_named({size: count - direct[size] for size, count in mapped.items()}),
        direct_map=_named(direct),
        leaf_splits=events.leaf_splits,
        direct_map_splits=events.direct_map_splits,
        tlb_flushes_all=events.tlb_flushes_all,
        tlb_flushes_local=events.tlb_flushes_local,
    )


def pinned(execmem: Execmem) -> tuple[int, int]:
    """Return how many chunks are mapped as a whole and hardly used, and the bytes in use there."""
    whole = chunk_size(execmem.memory)
    idle: dict[int, int] = {}
    for area in execmem.design.free_intervals():
        at = area.start
        while at < area.end:
            chunk = align_down(at, whole)
            stop = min(area.end, chunk + whole)
            idle[chunk] = idle.get(chunk, 0) + stop - at
            at = stop
    used: Sequence[int] = [whole - size for size in idle.values()]
    hardly = [size for size in used if 0 < size < whole // PINNED]
    return len(hardly), sum(hardly)


def leaf_name(size: int) -> str:
    """Return what JSON calls leaves of `size` bytes."""
    return size_text(size).replace(" ", "")


def _named(leaves: dict[int, int]) -> dict[str, int]:
    return {leaf_name(size): count for size, count in leaves.items()}


def _spent(events: Events) -> tuple[int, ...]:
    """Return the counters that `COSTS` names."""
    return (
        events.tlb_flushes_all,
        events.tlb_flushes_local,
        events.entries_made + events.entries_cleared + events.entries_changed,
        events.copied_bytes + events.filled_bytes + events.poked_bytes,
    )
