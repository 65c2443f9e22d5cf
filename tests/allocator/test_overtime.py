# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory at moments of a run, and what operations cost: held to slow recounts."""

from __future__ import annotations

from collections import Counter

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.execmem import Execmem
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import MIB, Consumer, ExecmemType, Interval, MemType
from allocator.workloads import BranchReach, OverTime, Spread, Workload, run, scale
from allocator.workloads.operations import Alloc, Free, Quiet
from allocator.workloads.overtime import COSTS, moment
from tests.archs.facts import needs

ANYWHERE = BranchReach(direct=Interval(-(1 << 64), 1 << 64))
DESIGNS = ["vmalloc", "per_type", "rox_cache", "strata"]


def fresh(arch, design):
    """Return Execmem over 64 MiB of an architecture."""
    needs(arch, "load")
    memory = KernelMemory(PhysicalMemory(64 * MIB), arch.loads.address_map(None))
    return Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke, design=design)


def programs(arch, count=120):
    """Return a short day of programs, with sealed data between them."""
    sealed = Alloc(
        key="sealed", size=5000, consumer=Consumer.MODULE, type=MemType.RO_AFTER_INIT, align=64
    )
    day = scale.bpf_day(arch.name, programs=count, live=30)
    return Workload(name="day", arch=arch.name, operations=(sealed, *day, Quiet()))


@pytest.mark.parametrize("design", DESIGNS)
def test_a_moment_is_what_a_recount_finds(arch, design):
    """Leaves one by one, frames one by one, chunks page by page, free runs from what is mapped."""
    execmem = fresh(arch, design)
    over_time = OverTime(3)
    run(programs(arch), execmem, ANYWHERE, watch=over_time)
    found, memory, report = over_time.moments[-1], execmem.memory, execmem.report()
    assert found == moment(execmem, found.operation)
    assert found.live_bytes == sum(report.bytes.values())
    leaves: Counter[int] = Counter()
    direct: Counter[int] = Counter()
    for leaf in memory.page_table.leaves():
        (direct if leaf.va in memory.direct_map else leaves)[leaf.size] += 1
    assert sorted(filter(None, found.leaves.values())) == sorted(leaves.values())
    assert sorted(filter(None, found.direct_map.values())) == sorted(direct.values())
    used = memory.physical.used().reshape(-1, memory.large_size // memory.page_size)
    assert found.memory_whole == int((~used.any(axis=1)).sum()) * memory.large_size
    assert found.memory_free == int((~used).sum()) * memory.page_size
    window = memory.address_map.range_of(ExecmemType.MODULE_TEXT).range
    free = [part for part in memory.free_space if window.overlaps(part)]
    sizes = [min(part.end, window.end) - max(part.start, window.start) for part in free]
    assert (found.window_free, found.window_largest) == (sum(sizes), max(sizes))
    taken = sum(held.reserved for held in execmem.allocations())
    if design != "vmalloc":
        mapped = sum(size * count for size, count in leaves.items())
        assert found.free_mapped_bytes == mapped - taken
    granule = 8
    for chunk in range(*_around(execmem, memory.large_size), memory.large_size):
        cells = np.zeros(memory.large_size // granule, np.bool_)
        for area in execmem.design.free_intervals():
            low, high = max(area.start, chunk), min(area.end, chunk + memory.large_size)
            if low < high:
                cells[(low - chunk) // granule : (high - chunk) // granule] = True
        if cells.any():
            left = int((~cells).sum()) * granule
            if 0 < left < memory.large_size // 16:
                found = _without(found, left)
    assert (found.chunks_pinned, found.pinned_by) == (0, 0)


def _around(execmem, large):
    areas = list(execmem.design.free_intervals())
    if not areas:
        return 0, 0
    return min(a.start for a in areas) // large * large, max(a.end for a in areas)


def _without(found, left):
    """Return a moment with one chunk less that is pinned by so much."""
    return attrs.evolve(
        found, chunks_pinned=found.chunks_pinned - 1, pinned_by=found.pinned_by - left
    )


def test_moments_are_evenly_apart_and_the_same_again(arch):
    """One before everything, one at the end; all but the host's time is equal in the next run."""
    told = []
    for _ in range(2):
        over_time = OverTime(5)
        run(programs(arch), fresh(arch, "strata"), ANYWHERE, watch=over_time)
        told.append(over_time)
    first, second = told
    assert first.moments == second.moments
    total = first.moments[-1].operation
    assert [one.operation for one in first.moments] == [total * n // 5 for n in range(6)]
    costs = [[(c.kind, c.operations, c.counted) for c in one.costs()] for one in told]
    assert costs[0] == costs[1]
    assert {kind: count for kind, count, _ in costs[0]} == {
        "alloc": 121,
        "free": total - 122,
        "quiet": 1,
    }
    assert all(one.microseconds.most > 0 for one in first.costs())


def test_more_moments_than_operations_are_one_for_each(arch):
    """There is nothing between two operations."""
    over_time = OverTime(1000)
    load = programs(arch, count=4)
    run(load, fresh(arch, "vmalloc"), ANYWHERE, watch=over_time)
    assert [m.operation for m in over_time.moments] == list(range(len(load.operations) + 1))


def test_costs_are_the_events_of_each_operation(arch):
    """What vmalloc does for one program, step by step: two changes of text, one unmapping."""
    over_time = OverTime(1)
    twice = [
        one
        for key in ("a", "b")
        for one in (Alloc(key=key, size=100, consumer=Consumer.BPF), Free(key))
    ]
    execmem = fresh(arch, "vmalloc")
    run(
        Workload(name="two", arch=arch.name, operations=tuple(twice)),
        execmem,
        ANYWHERE,
        watch=over_time,
    )
    alloc, free = over_time.costs()
    assert (alloc.kind, free.kind) == ("alloc", "free")
    # set_memory_ro and set_memory_x; VM_FLUSH_RESET_PERMS
    assert alloc.counted["flushes_all"] == Spread(2, 2, 2)
    assert free.counted["flushes_all"] == Spread(1, 1, 1)
    # The page made, W gone from it and from its alias, X come; 100 bytes written.
    assert alloc.counted["entries"] == Spread(4, 4, 4)
    assert alloc.counted["bytes"] == Spread(100, 100, 100)
    # The alias without rights, the page gone, the alias as it was.
    assert free.counted["entries"] == Spread(3, 3, 3)
    assert set(alloc.counted) == set(COSTS)


@given(st.lists(st.integers(0, 50), min_size=1))
def test_a_spread_is_of_nearest_ranks(values):
    """As numpy's inverted cumulative distribution has it."""
    found = Spread.of(Counter(values).items())
    expected = np.percentile(values, [50, 99, 100], method="inverted_cdf")
    assert [found.median, found.p99, found.most] == expected.tolist()
