# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened, counted: one record that every part of the memory model adds to.

Designs are compared by what they cause, so each counter is an event with a size, added
at the line where the thing happens; nothing here is estimated afterwards. Two snapshots
subtract, which gives the cost of whatever ran between them.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import NamedTuple

import attrs

from allocator.types import TlbRules


class Step(enum.Enum):
    """A step in the life of executable memory, to which flushes are put down."""

    ALLOC = "alloc"
    WRITE = "write"
    FINISH = "finish"
    SEAL = "seal"
    POKE = "poke"
    FREE = "free"
    QUIET = "quiet"
    OTHER = "other"

    __hash__ = object.__hash__  # in C, as every flush is looked up by it


class Flush(NamedTuple):
    """One flush as it was asked for: in which step, of which CPUs, and of how many pages."""

    step: Step
    all_cpus: bool
    pages: int


@attrs.frozen(kw_only=True)
class FlushCosts:
    """What CPUs do for a number of flushes.

    Parameters
    ----------
    steps
        By step: flushes of one CPU (`local`) and of all CPUs (`all`).
    full
        Flushes of all CPUs that cover more pages than the architecture drops one by one, so that
        whole TLBs are dropped.
    instructions
        Invalidations that one CPU executes; where it interrupts the others for a flush, each of
        those executes as many.
    rounds
        Flushes for which every other CPU is interrupted and waited for.
    targets
        CPUs that are interrupted, over all rounds.
    """

    steps: dict[str, dict[str, int]]
    full: int
    instructions: int
    rounds: int
    targets: int


def flush_costs(flushes: Counter[Flush], rules: TlbRules, *, cpus: int) -> FlushCosts:
    """Return what an architecture's CPUs do for these flushes.

    Parameters
    ----------
    cpus
        CPUs that are online, the one that flushes included.
    """
    steps = {step.value: {"local": 0, "all": 0} for step in Step}
    full = instructions = rounds = 0
    for flush, count in flushes.items():
        steps[flush.step.value]["all" if flush.all_cpus else "local"] += count
        whole = flush.pages > rules.ceiling
        instructions += count * (1 if whole else flush.pages)
        if flush.all_cpus:
            full += count * whole
            rounds += count * rules.interrupts
    return FlushCosts(
        steps=steps,
        full=full,
        instructions=instructions,
        rounds=rounds,
        targets=rounds * (cpus - 1),
    )


@attrs.define(kw_only=True)
class Events:
    """Count events since boot; subtract a `copy()` to get the events of one stretch.

    Parameters
    ----------
    leaf_splits, collapses
        Large leaves split, and split ones made large again, outside the direct map.
    direct_map_splits_1g, direct_map_splits_2m
        Direct-map leaves split from 1 GiB to 2 MiB, and from 2 MiB to 4 KiB.
    run_splits, folds, direct_map_run_splits
        Runs whose entries became leaves of their own, and entries that became a run, outside the direct
        map; runs of the direct map.
    run_entries
        Entries that were written again for that: all of a run.
    tlb_flushes_local, tlb_flushes_all, tlb_flushed_pages
        Flushes on one CPU, on all CPUs, and 4 KiB pages they covered.
    entries_made, entries_cleared, entries_changed
        Entries of page tables that became valid (nothing to flush), that became invalid (to be
        flushed before the address is used again), and whose rights changed (to be flushed where a
        right went); of a run, all of its entries. Where a leaf's size changes (splits, collapses),
        an arm64 CPU without FEAT_BBM level 2 wants break-before-make.
    icache_syncs, icache_synced_bytes
        Instruction-cache maintenance, and bytes it covered.
    pokes, poked_bytes
        Writes through the text_poke alias.
    copied_bytes
        Bytes that callers wrote into pending allocations.
    guard_pages, padding_bytes
        Pages left unmapped behind areas; bytes reserved beyond what was asked for.
    fallbacks
        Allocations that had to take the fallback range.
    refills, small_refills, chunks_returned
        Chunks taken by a design (2 MiB each), those of them that got no 2 MiB leaf,
        and chunks given back.
    filled_bytes
        Bytes filled with the trap pattern.
    """

    leaf_splits: int = 0
    collapses: int = 0
    direct_map_splits_1g: int = 0
    direct_map_splits_2m: int = 0
    run_splits: int = 0
    folds: int = 0
    direct_map_run_splits: int = 0
    run_entries: int = 0
    tlb_flushes_local: int = 0
    tlb_flushes_all: int = 0
    tlb_flushed_pages: int = 0
    entries_made: int = 0
    entries_cleared: int = 0
    entries_changed: int = 0
    icache_syncs: int = 0
    icache_synced_bytes: int = 0
    pokes: int = 0
    poked_bytes: int = 0
    copied_bytes: int = 0
    guard_pages: int = 0
    padding_bytes: int = 0
    fallbacks: int = 0
    refills: int = 0
    small_refills: int = 0
    chunks_returned: int = 0
    filled_bytes: int = 0

    @property
    def direct_map_splits(self) -> int:
        """Direct-map leaves split, of either size."""
        return self.direct_map_splits_1g + self.direct_map_splits_2m

    @property
    def resized(self) -> int:
        """Leaves whose size changed while they were mapped, those of the direct map too."""
        runs = self.run_splits + self.folds + self.direct_map_run_splits
        return self.leaf_splits + self.collapses + self.direct_map_splits + runs

    @property
    def tlb_flushes(self) -> int:
        """TLB flushes, local and on all CPUs."""
        return self.tlb_flushes_local + self.tlb_flushes_all

    def copy(self) -> Events:
        """Return a snapshot that later events do not change."""
        return attrs.evolve(self)

    def as_dict(self) -> dict[str, int]:
        """Return every counter by name."""
        return attrs.asdict(self)

    def __sub__(self, before: Events) -> Events:
        then = before.as_dict()
        return Events(**{name: count - then[name] for name, count in self.as_dict().items()})
