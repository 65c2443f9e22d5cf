# SPDX-License-Identifier: GPL-2.0-or-later
"""The event record."""

from __future__ import annotations

from collections import Counter

import attrs

from allocator.events import Events, Flush, Step, flush_costs
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import MIB, Interval, Prot, TlbRules


def test_a_difference_is_what_happened_in_between():
    """Snapshots do not move with the record, and subtract counter by counter."""
    events = Events(pokes=2, tlb_flushes_local=1)
    before = events.copy()
    events.pokes += 3
    events.tlb_flushes_all += 4
    cost = events - before
    assert {k: v for k, v in cost.as_dict().items() if v} == {"pokes": 3, "tlb_flushes_all": 4}
    assert (cost.tlb_flushes, events.tlb_flushes, before.pokes) == (4, 5, 2)


def test_flush_costs_follow_from_ceiling_and_interrupts():
    """Up to the ceiling pages go one by one, above it whole TLBs; only broadcasts interrupt nobody."""
    flushes = Counter(
        {
            Flush(Step.SEAL, all_cpus=True, pages=33): 2,
            Flush(Step.FREE, all_cpus=True, pages=34): 1,
            Flush(Step.WRITE, all_cpus=False, pages=100): 5,
        }
    )
    rules = TlbRules(name="", interrupts=True, ceiling=33)
    cost = flush_costs(flushes, rules, cpus=4)
    assert cost.steps["seal"] == {"local": 0, "all": 2}
    assert cost.steps["write"] == {"local": 5, "all": 0}
    assert (cost.full, cost.instructions) == (1, 2 * 33 + 1 + 5)
    assert (cost.rounds, cost.targets) == (3, 9)
    silent = flush_costs(flushes, attrs.evolve(rules, interrupts=False), cpus=4)
    assert (silent.rounds, silent.targets, silent.full) == (0, 0, 1)


def test_flushes_are_put_down_to_the_innermost_step(x86_map):
    """What nobody names is `other`; steps nest, and the outer one goes on behind the inner."""
    memory = KernelMemory(PhysicalMemory(4 * MIB), x86_map)
    page = Interval(x86_map.vmalloc.start, x86_map.vmalloc.start + memory.page_size)
    memory.flush_tlb(page)
    with memory.during(Step.FREE):
        with memory.during(Step.POKE):
            memory.flush_tlb(page, page, all_cpus=False)
        memory.flush_tlb(page)
    assert memory.flushes == {
        Flush(Step.OTHER, all_cpus=True, pages=1): 1,
        Flush(Step.POKE, all_cpus=False, pages=2): 1,
        Flush(Step.FREE, all_cpus=True, pages=1): 1,
    }


def test_updates_of_entries_are_counted_by_what_must_follow(x86_map):
    """Mapping makes entries, rights change them, unmapping clears them; a split resizes a leaf."""
    memory = KernelMemory(PhysicalMemory(8 * MIB), x86_map)
    before, page = memory.events.copy(), memory.page_size
    va = x86_map.vmalloc.start
    memory.populate(va, 3 * page, Prot.RW)
    memory.page_table.change(va, 2 * page, off=Prot.W)
    memory.depopulate(va, 3 * page)
    cost = memory.events - before
    assert (cost.entries_made, cost.entries_changed, cost.entries_cleared) == (3, 2, 3)
    assert cost.resized == 0
    direct = memory.direct_map.start
    memory.page_table.change(direct, page, off=Prot.W)
    assert (memory.events - before).resized == 1
