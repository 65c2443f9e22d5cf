# SPDX-License-Identifier: GPL-2.0-or-later
"""trees: three blocks or three trees, the argument of the thread, with a server's modules.

Fixed blocks for text, data and rodata are simple and give large leaves, until one block is
full while another is empty. Trees per type take 2 MiB chunks from one window as they need
them. The default design also keeps text nearest the kernel.
"""

from __future__ import annotations

from allocator import Execmem, KernelMemory, PhysicalMemory
from allocator.types import GIB, LARGE_PAGE_SIZE, PAGE_SIZE, Interval, MemType
from allocator.workloads import BranchReach, run, workload
from archs import arch as arch_by_name
from samples.story import Grid, Story, Text

DESIGNS = ("vmalloc", "two_block", "three_block", "per_type", "strata")


def main() -> Story:
    """Load a server's modules on arm64 under each design."""
    arch = arch_by_name("arm64")
    call = arch.link.call
    assert call is not None
    reach = BranchReach(direct=Interval(call.reach.lo, call.reach.hi))
    story = Story("trees", "Three blocks against three trees")
    rows = []
    for name in DESIGNS:
        memory = KernelMemory(PhysicalMemory(4 * GIB), arch.loads.address_map())
        execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke, design=name)
        run(workload("server", arch.name), execmem, reach)
        report = execmem.report()
        leaves = report.leaves[MemType.TEXT]
        share = {kind: report.large_share[kind] for kind in (MemType.DATA, MemType.RODATA)}
        facts = {
            "modules": report.allocations[MemType.DATA],
            "text": [leaves[PAGE_SIZE], leaves[LARGE_PAGE_SIZE]],
            "flushes": report.events.tlb_flushes_all,
            "splits": report.events.direct_map_splits,
        }
        story.facts[name] = facts
        rows.append(
            (
                name,
                f"{leaves[PAGE_SIZE]:,} + {leaves[LARGE_PAGE_SIZE]}",
                *(f"{share[kind]:.0%}" for kind in share),
                str(facts["splits"]),
                f"{facts['flushes']:,}",
            )
        )
    story.parts = [
        Text(
            "A server's modules on arm64, dependencies first. Leaves that map their text (4 KiB + "
            "2 MiB), shares of data and rodata under 2 MiB leaves, direct-map splits, and flushes "
            "of every CPU's TLB."
        ),
        Grid(
            ("design", "text leaves", "data", "rodata", "splits", "flushes"),
            tuple(rows),
            "text leaves,data,rodata,splits,flushes",
        ),
        Text(
            "Blocks and trees both make text large. Blocks leave rodata in small leaves where "
            "ro_after_init shares it; trees per type keep them apart."
        ),
    ]
    if story.facts["strata"]["flushes"] <= min(one["flushes"] for one in story.facts.values()):
        story.parts.append(
            Text(
                "Blocks and trees flush most: what lies in a large leaf that is read-only from birth "
                "is written through text_poke, and on arm64 each page's alias is dropped with a "
                "flush on every CPU. The default design, strata, maps all of a load in a window that "
                "only one CPU has, and flushes that; what is left is one flush of all CPUs for each "
                "module that seals ro_after_init memory, and that nobody can save."
            )
        )
    return story
