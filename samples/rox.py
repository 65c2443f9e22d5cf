# SPDX-License-Identifier: GPL-2.0-or-later
"""rox: the ROX cache, the leaf that splits, and the one that need not.

Small texts share a 2 MiB leaf that is read-only and executable from the start. Upstream's
later form remaps a slice to write it in place, which splits the leaf until it is collapsed
again; writing through the alias leaves it whole. Leaves are counted in the page table.
"""

from __future__ import annotations

from typing import Any

from allocator.types import LARGE_PAGE_SIZE, PAGE_SIZE, Interval, MemType, align_down
from archs import arch as arch_by_name
from machine.machine import ModelledMachine
from samples.story import Grid, Story, Text

DESIGNS = ("vmalloc", "rox_cache_613", "rox_cache", "strata")
SIZE = 3000


def main() -> Story:
    """Allocate, write and finish two texts under four designs; count leaves after each step."""
    story = Story("rox", "The ROX cache, and the leaf that splits")
    rows = []
    for name in DESIGNS:
        facts = _life(name)
        story.facts[name] = facts
        rows.append(
            (
                name,
                *(f"{s} + {large}" for s, large in facts["leaves"]),
                str(facts["splits"]),
                str(facts["collapses"]),
                str(facts["flushes"]),
            )
        )
    story.parts = [
        Text(
            f"Two texts of {SIZE} bytes on x86-64, one after the other; leaves of 4 KiB + 2 MiB "
            "that hold the second, after each call."
        ),
        Grid(
            ("design", "alloc", "write", "finish", "splits", "collapses", "flushes"),
            tuple(rows),
            "splits,collapses,flushes",
        ),
        Text(
            "rox_cache splits the shared leaf to make a slice writable and collapses it again, "
            f"and flushes every CPU's TLB {story.facts['rox_cache']['flushes']} times on the way. "
            "strata pokes, and the leaf never changes. vmalloc has nothing to split: it never "
            "had a large leaf."
        ),
    ]
    return story


def _life(design: str) -> dict[str, Any]:
    machine = ModelledMachine(arch_by_name("x86_64"), design=design)
    first = machine.execmem.alloc(MemType.TEXT, SIZE)
    first.write(0, bytes(SIZE))
    first.finish()
    before = machine.memory.events.copy()
    pending = machine.execmem.alloc(MemType.TEXT, SIZE)
    around = align_down(pending.address, LARGE_PAGE_SIZE)

    def leaves() -> tuple[int, int]:
        counts = machine.memory.page_table.leaf_counts(Interval(around, around + LARGE_PAGE_SIZE))
        return counts[PAGE_SIZE], counts[LARGE_PAGE_SIZE]

    found = [leaves()]
    pending.write(0, bytes(SIZE))
    found.append(leaves())
    pending.finish()
    found.append(leaves())
    machine.check()
    events = machine.memory.events - before
    return {
        "leaves": found,
        "splits": events.leaf_splits,
        "collapses": events.collapses,
        "flushes": events.tlb_flushes_all,
    }
