# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs: entries in a row that count as one leaf, against a plain dictionary of pages and leaves."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import archs
from allocator.errors import MappingError
from allocator.events import Events
from allocator.memory import KernelMemory
from allocator.pagetable import PageTable
from allocator.physical import PhysicalMemory
from allocator.types import GIB, KIB, MIB, Interval, Paging, Prot

PROTS = [Prot.NONE, Prot.R, Prot.RW, Prot.RX]
WX = Prot.W | Prot.X
# In 64 parts of a large leaf, whatever that has, and a page more or less.
BOUND = st.tuples(
    st.one_of(st.integers(0, 3 * 64), st.sampled_from([0, 64, 128, 192])),
    st.sampled_from([0, 0, 0, 1, -1]),
)
RANGES = st.tuples(BOUND, BOUND)


class Runs(RuleBasedStateMachine):
    """Every operation, legal or not, on a table and on a dictionary; a refusal changes nothing."""

    paging = Paging(run=64 * KIB, large_run=4 * MIB)
    live = True

    def __init__(self):
        super().__init__()
        paging = self.paging
        self.page = paging.page
        # In pages, the smallest first; what a leaf is split into is the one before, or pages.
        self.run, self.large, self.wide = (
            size // self.page for size in (paging.run, paging.large, paging.large_run)
        )
        # One large leaf at the end of an upper entry, and two more that can be a run.
        self.base = (1 << 64) - paging.upper - paging.large
        self.count = 3 * self.large
        self.events = Events()
        self.table = PageTable(paging=paging, events=self.events, live_splits=self.live)
        self.pages = {}  # page number -> (frame address, Prot)
        self.leaves = {}  # first page -> pages of the leaf
        self.cut = self.made = self.split = self.collapsed = 0

    def range(self, bounds):
        """Return the pages between two bounds, one at least."""
        pages = sorted(part * self.large // 64 + more for part, more in bounds)
        start = min(max(pages[0], 0), self.count - 1)
        return range(start, max(start + 1, min(pages[1], self.count)))

    def at(self, pages):
        """Return where pages are, and their bytes."""
        return self.base + pages[0] * self.page, len(pages) * self.page

    def attempt(self, legal, operation, *args, **kwargs):
        """Run a legal operation; see an illegal one refused, and nothing changed."""
        if legal:
            return operation(*args, **kwargs)
        before = list(self.table.leaves())
        with pytest.raises(MappingError):
            operation(*args, **kwargs)
        assert before == list(self.table.leaves())
        return None

    def inside(self, pages):
        """Return the leaves that share a page with a range."""
        return [
            (first, size)
            for first, size in self.leaves.items()
            if first < pages[-1] + 1 and first + size > pages[0]
        ]

    def is_run(self, size):
        """Return whether a leaf is a run."""
        return size in (self.run, self.wide)

    def may(self, pages, changed):
        """Return whether runs let it happen: in pages that change."""
        if self.live:
            return True
        return not any(
            self.is_run(size) and any(page in changed for page in range(first, first + size))
            for first, size in self.inside(pages)
        )

    def divide(self, pages, changed):
        """Split leaves that the range covers in part and that change."""
        again = True
        while again:
            again = False
            for first, size in self.inside(pages):
                whole = pages[0] <= first and first + size <= pages[-1] + 1
                touched = any(max(first, p) == p < first + size for p in changed)
                if whole or not touched or size == 1:
                    continue
                smaller = {self.wide: self.large, self.run: 1}.get(size)
                if smaller is None:
                    smaller, self.split = (self.run if self.live else 1), self.split + 1
                else:
                    self.cut += 1
                del self.leaves[first]
                self.leaves.update((at, smaller) for at in range(first, first + size, smaller))
                again = True

    def enter(self, pages, frames, prot, size):
        """Note what is mapped."""
        self.pages.update((page, (frame, prot)) for page, frame in zip(pages, frames, strict=True))
        self.leaves.update((page, size) for page in pages[::size])

    @rule(
        kind=st.integers(0, 3),
        place=st.integers(0, 191),
        count=st.integers(1, 3),
        frame=st.integers(0, 999),
        off=st.sampled_from([0, 0, 0, 1]),
        prot=st.sampled_from(PROTS),
    )
    def map(self, kind, place, count, frame, off, prot):
        """Map leaves of one size; frames or addresses that do not suit them are refused."""
        size = (1, self.run, self.large, self.wide)[kind]
        start = place * self.count // 192 // size * size
        if size == self.wide:
            start = self.large  # where a run of large leaves may begin
        pages = range(start, min(start + count * size, self.count))
        if len(pages) % size:
            return
        first = (frame * self.wide + off) * self.page
        legal = self.pages.keys().isdisjoint(pages) and (not off or size == 1)
        va, length = self.at(pages)
        leaf = size * self.page
        self.attempt(legal, self.table.map, va, first, prot, size=length, leaf=leaf)
        if legal:
            self.enter(pages, range(first, first + length, self.page), prot, size)

    @rule(bounds=RANGES, frame=st.integers(0, 999), prot=st.sampled_from(PROTS))
    def map_contiguous(self, bounds, frame, prot):
        """Map with the largest leaves that fit; runs only where they may change later."""
        pages = self.range(bounds)
        phase = self.base // self.page + pages[0]
        first = (frame * self.wide + phase % self.wide) * self.page
        legal = self.pages.keys().isdisjoint(pages)
        va, length = self.at(pages)
        self.attempt(legal, self.table.map_contiguous, va, first, prot, size=length)
        if not legal:
            return
        sizes = (self.wide, self.large, self.run, 1) if self.live else (self.large, 1)
        at = pages[0]
        while at < pages[-1] + 1:
            absolute = self.base // self.page + at
            size = next(s for s in sizes if absolute % s == 0 and at + s <= pages[-1] + 1)
            frames = [first + (page - pages[0]) * self.page for page in range(at, at + size)]
            self.enter(range(at, at + size), frames, prot, size)
            at += size

    @rule(bounds=RANGES)
    def unmap(self, bounds):
        """Unmap: what reaches out of the range is split, where it may be."""
        pages = self.range(bounds)
        reach_out = {
            page
            for first, size in self.inside(pages)
            if first < pages[0] or first + size > pages[-1] + 1
            for page in range(first, first + size)
        }
        legal = self.pages.keys() >= set(pages) and self.may(pages, reach_out)
        self.attempt(legal, self.table.unmap, *self.at(pages))
        if legal:
            self.divide(pages, set(pages))
            for first, _ in self.inside(pages):
                del self.leaves[first]
            for page in pages:
                del self.pages[page]

    @rule(bounds=RANGES, on=st.sampled_from(PROTS), off=st.sampled_from(PROTS))
    def change(self, bounds, on, off):
        """Change rights: runs that change as a whole stay runs."""
        pages = self.range(bounds)
        after = {page: (self.pages[page][1] | on) & ~off for page in pages if page in self.pages}
        changed = {page for page, prot in after.items() if prot != self.pages[page][1]}
        legal = len(after) == len(pages) and all(prot & WX != WX for prot in after.values())
        legal = legal and self.may(pages, changed)
        self.attempt(legal, self.table.change, *self.at(pages), on=on, off=off)
        if legal:
            self.divide(pages, changed)
            self.pages.update((page, (self.pages[page][0], after[page])) for page in pages)

    def alike(self, first, size):
        """Return whether pages could be one leaf."""
        found = [self.pages.get(page) for page in range(first, first + size)]
        return (
            found[0] is not None
            and found[0][0] % (size * self.page) == 0
            and all(
                each == (found[0][0] + n * self.page, found[0][1]) for n, each in enumerate(found)
            )
        )

    @rule(bounds=RANGES)
    def heal(self, bounds):
        """Leaves become as large as what they map lets them, and what changed is told."""
        pages = self.range(bounds)
        va, size = self.at(pages)
        found = self.table.heal(va, size)
        expected = []
        for region in range(pages[0] // self.large, pages[-1] // self.large + 1):
            first = region * self.large
            held = self.inside(range(first, first + self.large))
            in_leaf = any(length >= self.large for _, length in held)
            blocked = not self.live and any(length == self.run for _, length in held)
            if self.alike(first, self.large) and not in_leaf and not blocked:
                for at, _ in held:
                    del self.leaves[at]
                self.leaves[first] = self.large
                self.collapsed += 1
                expected.append((first, self.large))
            elif self.live:
                for at in range(first, first + self.large, self.run):
                    outside = at + self.run <= pages[0] or at > pages[-1]
                    if not outside and self.alike(at, self.run) and self.leaves.get(at) == 1:
                        for page in range(at, at + self.run):
                            del self.leaves[page]
                        self.leaves[at] = self.run
                        self.made += 1
                        expected.append((at, self.run))
        assert found == [
            Interval(self.base + at * self.page, self.base + (at + size) * self.page)
            for at, size in expected
        ]

    @invariant()
    def same(self):
        """Leaves, translations, counters and events are the dictionary's."""
        self.table.check()
        found = [
            ((leaf.va - self.base) // self.page, leaf.size // self.page)
            for leaf in self.table.leaves()
        ]
        assert found == sorted(self.leaves.items())
        seen = {
            (leaf.va - self.base) // self.page + n: (leaf.pa + n * self.page, leaf.prot)
            for leaf in self.table.leaves()
            for n in range(leaf.size // self.page)
        }
        assert seen == self.pages
        counts = dict.fromkeys(self.paging.leaves, 0)
        for size in self.leaves.values():
            counts[size * self.page] += 1
        window = Interval(self.base, self.base + self.count * self.page)
        assert counts == self.table.leaf_counts() == self.table.leaf_counts(window)
        events = self.events
        assert (self.split, self.collapsed) == (events.leaf_splits, events.collapses)
        assert (self.cut, self.made) == (events.run_splits, events.folds)

    @rule(part=BOUND, offset=st.integers(0, 4095))
    def translate(self, part, offset):
        """One address, and the leaves of a part of the table."""
        pages = self.range((part, part))
        va, _ = self.at(pages)
        found = self.table.translate(va + offset)
        inside = self.inside(pages)
        if not inside:
            assert found is None
            return
        frame, prot = self.pages[pages[0]]
        assert found == (frame + offset, prot, inside[0][1] * self.page)
        near = Interval(va, va + self.page)
        assert [leaf.size for leaf in self.table.leaves(near)] == [found.leaf]
        assert self.table.leaf_counts(near)[found.leaf] == 1


class RunsAtRest(Runs):
    """Where no leaf may be split in use a run is unmapped as it was mapped."""

    live = False


class RunsOf64KiB(Runs):
    """Pages of 64 KiB, runs of 2 MiB; large leaves of 512 MiB."""

    paging = Paging(64 * KIB, run=2 * MIB, large_run=GIB)


TestRuns = Runs.TestCase
TestRunsAtRest = RunsAtRest.TestCase
TestRunsOf64KiB = RunsOf64KiB.TestCase
TestRuns.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestRunsAtRest.settings = settings(TestRuns.settings, max_examples=15)
TestRunsOf64KiB.settings = settings(TestRuns.settings, max_examples=1)


PAGING = Paging(run=64 * KIB, large_run=32 * MIB)


def table(*, live):
    """Return an empty table of arm64's leaves, and its events."""
    events = Events()
    return PageTable(paging=PAGING, events=events, live_splits=live), events


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(("leaf", "entries"), [(64 * KIB, 16), (32 * MIB, 16)])
def test_a_run_is_one_leaf_of_several_entries(leaf, entries, live):
    """16 entries are made and cleared; a leaf is counted, and goes, once."""
    found, events = table(live=live)
    found.map(GIB, GIB, Prot.RX, size=2 * leaf, leaf=leaf)
    assert events.entries_made == 2 * entries == 2 * PAGING.entries_of(leaf)
    assert found.leaf_counts()[leaf] == 2
    assert [each.size for each in found.leaves(Interval(GIB, GIB + 1))] == [leaf]
    found.unmap(GIB, leaf)
    found.check()
    assert events.entries_cleared == entries
    assert (found.leaf_counts()[leaf], events.run_splits) == (1, 0)


def test_a_run_changes_in_part_only_where_it_may():
    """One page of a run that loses a right: 16 entries are written again, or it is refused."""
    found, events = table(live=True)
    found.map(GIB, GIB, Prot.RW, size=128 * KIB, leaf=64 * KIB)
    found.change(GIB + 4 * KIB, 4 * KIB, off=Prot.W)
    assert (events.run_splits, events.run_entries, events.entries_changed) == (1, 16, 1)
    assert found.leaf_counts() == {4 * KIB: 16, 64 * KIB: 1, 2 * MIB: 0, 32 * MIB: 0, GIB: 0}
    assert found.heal(GIB, 64 * KIB) == []
    found.change(GIB + 4 * KIB, 4 * KIB, on=Prot.W)
    assert found.heal(GIB, 4 * KIB) == [Interval(GIB, GIB + 64 * KIB)]
    found.check()

    found, _ = table(live=False)
    found.map(GIB, GIB, Prot.RW, size=128 * KIB, leaf=64 * KIB)
    for size, reason in ((4 * KIB, "may not change"), (64 * KIB, "may not change")):
        with pytest.raises(MappingError, match=reason):
            found.change(GIB, size, off=Prot.W)
    with pytest.raises(MappingError, match="a run of 64 KiB, which may not be split in use"):
        found.unmap(GIB + 64 * KIB, 4 * KIB)
    found.change(GIB, 4 * KIB, on=Prot.W)  # it can be written to already
    assert found.leaf_counts()[64 * KIB] == 2


@pytest.mark.parametrize("live", [True, False])
def test_runs_become_a_large_leaf_only_where_they_may_change(live):
    """32 runs that are alike, as 2 MiB: as many entries are not written one by one."""
    found, events = table(live=live)
    found.map(GIB, GIB, Prot.R, size=2 * MIB, leaf=64 * KIB)
    assert found.collapse(GIB) is live
    assert events.collapses == live
    assert found.leaf_counts()[2 * MIB] == live
    found.check()


def test_what_a_leaf_is_split_into_are_runs():
    """A page of a leaf of 1 GiB: Linux with FEAT_BBM level 2 has 31 + 15 + 31 + 16 leaves then."""
    events = Events()
    found = PageTable(
        paging=PAGING, events=events, direct_map=Interval(GIB, 2 * GIB), live_splits=True
    )
    found.map_contiguous(GIB, 0, Prot.RW, size=GIB)
    found.change(GIB + 20 * KIB, 4 * KIB, off=Prot.W)
    assert found.leaf_counts() == {4 * KIB: 16, 64 * KIB: 31, 2 * MIB: 15, 32 * MIB: 31, GIB: 0}
    assert (events.direct_map_splits, events.direct_map_run_splits) == (2, 2)
    assert events.run_splits == 0
    found.check()


@pytest.mark.parametrize(
    ("page", "more"),
    [
        (4 * KIB, {"run": 4 * KIB}),
        (4 * KIB, {"run": 2 * MIB}),
        (4 * KIB, {"run": 12 * KIB}),
        (4 * KIB, {"large_run": 2 * MIB}),
        (16 * KIB, {"large_run": 96 * MIB}),
    ],
)
def test_a_run_is_more_than_an_entry_and_less_than_a_table(page, more):
    """And its length is a power of two."""
    with pytest.raises(ValueError, match="not a table"):
        Paging(page, **more)


@pytest.mark.parametrize("first", range(18))
@pytest.mark.parametrize("pages", [1, 15, 16, 17, 31, 32, 40])
def test_memory_is_backed_with_the_runs_that_its_address_has(first, pages):
    """As many as begin at multiples of 64 KiB and end before the end; all else is pages."""
    map_ = archs.arch("arm64").loads.address_map(None)
    memory = KernelMemory(PhysicalMemory(16 * MIB, paging=PAGING), map_)
    start = map_.vmalloc.start + -map_.vmalloc.start % (2 * MIB)
    va, size = start + first * 4 * KIB, pages * 4 * KIB
    memory.populate(va, size, Prot.RX, large=True, runs=True)
    rows = sum(first <= at and at + 16 <= first + pages for at in range(0, 64, 16))
    counts = memory.page_table.leaf_counts(Interval(va, va + size))
    assert (counts[64 * KIB], counts[4 * KIB]) == (rows, pages - 16 * rows)
    memory.depopulate(va, size)
    memory.check()
