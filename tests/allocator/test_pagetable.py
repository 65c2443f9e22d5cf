# SPDX-License-Identifier: GPL-2.0-or-later
"""The page table against a plain dictionary of pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from allocator.errors import MappingError
from allocator.events import Events
from allocator.pagetable import PageTable
from allocator.types import (
    GIB,
    HUGE_PAGE_SIZE,
    KIB,
    LARGE_PAGE_SIZE,
    MIB,
    PAGE_SIZE,
    Interval,
    Paging,
    Prot,
    align_up,
)

PROTS = [Prot.NONE, Prot.R, Prot.RW, Prot.RX, Prot.X, Prot.W | Prot.X, Prot.R | Prot.W | Prot.X]
WX = Prot.W | Prot.X
REGIONS = st.integers(0, 2)
# Bounds cluster at region borders, where leaves are split. They are counted in 512 parts of a
# region, whatever that has, and a page more or less.
BOUND = st.tuples(
    st.one_of(st.integers(0, 3 * 512), st.sampled_from([0, 512, 1024, 1536])),
    st.sampled_from([0, 0, 1, -1]),
)
RANGES = st.tuples(BOUND, BOUND)


class Model(RuleBasedStateMachine):
    """Every operation, legal or not, on both; a refusal changes nothing."""

    paging = Paging()

    def __init__(self):
        super().__init__()
        self.events = Events()
        self.page, self.region = self.paging.page, self.paging.entries
        # The last region under one entry of the upper level, and the first two under the next.
        self.base = (1 << 64) - self.paging.upper - self.paging.large
        self.count = 3 * self.region
        self.table = PageTable(paging=self.paging, events=self.events)
        self.pages = {}  # page number -> (frame address, Prot)
        self.large = set()  # regions under one leaf
        self.splits = self.collapses = 0

    def range(self, bounds):
        """Return the pages between two bounds, one at least."""
        pages = sorted(part * self.region // 512 + more for part, more in bounds)
        start = min(max(pages[0], 0), self.count - 1)
        return range(start, max(start + 1, min(pages[1], self.count)))

    def attempt(self, legal, operation, *args, **kwargs):
        """Run a legal operation; see an illegal one refused."""
        if legal:
            return operation(*args, **kwargs)
        with pytest.raises(MappingError):
            operation(*args, **kwargs)
        return None

    def split(self, pages, touched):
        """Split regions that are covered in part and where `touched` pages change."""
        for region in list(self.large):
            whole = range(region * self.region, (region + 1) * self.region)
            inside = range(max(whole[0], pages[0]), min(whole[-1], pages[-1]) + 1)
            if 0 < len(inside) < self.region and any(page in touched for page in inside):
                self.large.remove(region)
                self.splits += 1

    @rule(bounds=RANGES, prot=st.sampled_from(PROTS), seed=st.integers(0, 2**32 - 1))
    def map_pages(self, bounds, prot, seed):
        """Small leaves from any frames."""
        pages = self.range(bounds)
        frames = np.random.default_rng(seed).integers(1, 1 << 36, len(pages), np.uint64)
        frames = frames * np.uint64(self.page)
        legal = prot & WX != WX and self.pages.keys().isdisjoint(pages)
        self.attempt(
            legal,
            self.table.map,
            self.base + pages[0] * self.page,
            frames,
            prot,
            size=len(pages) * self.page,
        )
        if legal:
            self.pages.update(zip(pages, ((frame, prot) for frame in frames.tolist()), strict=True))

    @rule(
        bounds=RANGES,
        prot=st.sampled_from(PROTS),
        frame=st.integers(1, 1 << 20),
        offset=st.sampled_from([0, 0, 1]),
    )
    def map_contiguous(self, bounds, prot, frame, offset):
        """Map a run with the largest leaves, in phase with its address or not."""
        pages = self.range(bounds)
        pa = (frame * self.region + pages[0] + offset) * self.page
        legal = prot & WX != WX and self.pages.keys().isdisjoint(pages)
        self.attempt(
            legal,
            self.table.map_contiguous,
            self.base + pages[0] * self.page,
            pa,
            prot,
            size=len(pages) * self.page,
        )
        if legal:
            self.pages.update((page, (pa + i * self.page, prot)) for i, page in enumerate(pages))
            if not offset:
                self.large |= {
                    r
                    for r in range(3)
                    if r * self.region in pages and (r + 1) * self.region - 1 in pages
                }

    @rule(bounds=RANGES)
    def unmap(self, bounds):
        """Unmapping returns the frames."""
        pages = self.range(bounds)
        legal = self.pages.keys() >= set(pages)
        frames = self.attempt(
            legal, self.table.unmap, self.base + pages[0] * self.page, len(pages) * self.page
        )
        if legal:
            self.split(pages, pages)
            self.large -= {r for r in self.large if r * self.region in pages}
            assert [self.pages.pop(page)[0] for page in pages] == frames.tolist()

    @rule(bounds=RANGES, on=st.sampled_from(PROTS), off=st.sampled_from(PROTS))
    def change(self, bounds, on, off):
        """Rights are added and dropped per page."""
        pages = self.range(bounds)
        after = {page: (self.pages[page][1] | on) & ~off for page in pages if page in self.pages}
        legal = len(after) == len(pages) and all(prot & WX != WX for prot in after.values())
        self.attempt(
            legal,
            self.table.change,
            self.base + pages[0] * self.page,
            len(pages) * self.page,
            on=on,
            off=off,
        )
        if legal:
            self.split(pages, {p for p in pages if after[p] != self.pages[p][1]})
            self.pages.update((page, (self.pages[page][0], after[page])) for page in pages)

    @rule(bounds=RANGES, prot=st.sampled_from(PROTS))
    def protect(self, bounds, prot):
        """Rights are set alike."""
        pages = self.range(bounds)
        legal = self.pages.keys() >= set(pages) and prot & WX != WX
        self.attempt(
            legal,
            self.table.protect,
            self.base + pages[0] * self.page,
            len(pages) * self.page,
            prot,
        )
        if legal:
            self.split(pages, {p for p in pages if prot != self.pages[p][1]})
            self.pages.update((page, (self.pages[page][0], prot)) for page in pages)

    @rule(region=REGIONS, page=st.integers(0, (1 << 16) - 1))
    def collapse(self, region, page):
        """Exactly a region that is alike, contiguous and aligned collapses."""
        page %= self.region
        found = [self.pages.get(region * self.region + index) for index in range(self.region)]
        alike = found[0] is not None and found == [
            (found[0][0] + index * self.page, found[0][1]) for index in range(self.region)
        ]
        aligned = found[0] is not None and found[0][0] % self.paging.large == 0
        expected = alike and aligned and region not in self.large
        assert expected == self.table.collapse(
            self.base + (region * self.region + page) * self.page
        )
        if expected:
            self.large.add(region)
            self.collapses += 1

    @invariant()
    def same(self):
        """Leaves, counters and events are the model's."""
        self.table.check()
        seen = {}
        for leaf in self.table.leaves():
            first = (leaf.va - self.base) // self.page
            for index in range(leaf.size // self.page):
                seen[first + index] = (leaf.pa + index * self.page, leaf.prot)
        assert self.pages == seen
        counts = {
            self.page: len(self.pages) - self.region * len(self.large),
            self.paging.large: len(self.large),
        }
        counts = {leaf: counts.get(leaf, 0) for leaf in self.paging.leaves}
        assert counts == self.table.leaf_counts()
        assert counts == self.table.leaf_counts(
            Interval(self.base, self.base + self.count * self.page)
        )
        assert (self.splits, self.collapses) == (self.events.leaf_splits, self.events.collapses)

    @rule(part=BOUND, offset=st.integers(0, (1 << 16) - 1))
    def translate(self, part, offset):
        """One address, and every other address of its frame."""
        page, offset = self.range((part, part))[0], offset % self.page
        found = self.table.translate(self.base + page * self.page + offset)
        if page not in self.pages:
            assert found is None
            return
        frame, prot = self.pages[page]
        assert (frame + offset, prot) == found[:2]
        assert found.leaf == (self.paging.large if page // self.region in self.large else self.page)
        aliases = sorted(p for p, (other, _) in self.pages.items() if other == frame)
        assert [self.base + p * self.page + offset for p in aliases] == self.table.aliases(
            frame + offset
        )

    @rule(bounds=RANGES, head=st.integers(0, (1 << 16) - 1), tail=st.integers(0, (1 << 16) - 1))
    def spans(self, bounds, head, tail):
        """Spans cover the range without a gap."""
        pages = self.range(bounds)
        head, tail = head % self.page, tail % self.page
        start, end = (
            self.base + pages[0] * self.page + head,
            self.base + (pages[-1] + 1) * self.page - tail,
        )
        if end <= start:
            return
        at = start
        for span in self.table.spans(start, end - start):
            assert at == span.va
            assert span.size > 0
            at += span.size
            for va in {span.va, align_up(span.va + 1, self.page), at - 1}:
                if span.va <= va < at:
                    held = self.pages.get((va - self.base) // self.page)
                    if held is None:
                        assert span.pa is None
                    else:
                        assert (held[0] + va % self.page, held[1]) == (
                            span.pa + va - span.va,
                            span.prot,
                        )
        assert end == at


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


class ModelOf16KiB(Model):
    """The same with pages of 16 KiB and large leaves of 32 MiB."""

    paging = Paging(16 * KIB)


class ModelOf64KiB(Model):
    """The same with pages of 64 KiB and large leaves of 512 MiB."""

    paging = Paging(64 * KIB)


TestModelOf16KiB = ModelOf16KiB.TestCase
TestModelOf64KiB = ModelOf64KiB.TestCase
TestModelOf16KiB.settings = settings(TestModel.settings, max_examples=10)
TestModelOf64KiB.settings = settings(TestModel.settings, max_examples=4)


def direct_mapped(size=2 * GIB):
    """Return a table with a direct map of 1 GiB leaves, and its events."""
    events = Events()
    table = PageTable(
        events=events, direct_map=Interval(0xFFFF888000000000, 0xFFFF888000000000 + size)
    )
    table.map_contiguous(0xFFFF888000000000, 0, Prot.RW, size=size)
    return table, events


def test_map_contiguous_uses_the_largest_leaves_that_fit():
    """A run is mapped by small leaves up to a large boundary and large ones after it."""
    table = PageTable()
    va, pa = 0xFFFF8880_3FDF_F000, 0x3FDF_F000
    table.map_contiguous(va, pa, Prot.RW, size=GIB + 4 * MIB + 2 * PAGE_SIZE)
    sizes = [leaf.size for leaf in table.leaves()]
    assert sizes == [PAGE_SIZE, LARGE_PAGE_SIZE, HUGE_PAGE_SIZE, LARGE_PAGE_SIZE, PAGE_SIZE]
    assert table.translate(va + GIB).address == pa + GIB
    table.check()


def test_a_run_out_of_phase_gets_small_leaves_only():
    """Where address and frame differ modulo 2 MiB no large leaf is possible."""
    table = PageTable()
    table.map_contiguous(GIB, GIB + PAGE_SIZE, Prot.R, size=4 * MIB)
    assert table.leaf_counts() == {PAGE_SIZE: 1024, LARGE_PAGE_SIZE: 0, HUGE_PAGE_SIZE: 0}


def test_one_page_splits_the_direct_map_twice():
    """Protecting one page costs a 1 GiB split and a 2 MiB split, counted apart."""
    table, events = direct_mapped()
    table.protect(0xFFFF888000005000, PAGE_SIZE, Prot.R)
    assert (
        events.direct_map_splits_1g,
        events.direct_map_splits_2m,
        events.leaf_splits,
    ) == (1, 1, 0)
    assert events.direct_map_splits == 2
    assert table.leaf_counts() == {PAGE_SIZE: 512, LARGE_PAGE_SIZE: 511, HUGE_PAGE_SIZE: 1}
    table.check()
    # Nothing would change: nothing is split.
    table.protect(0xFFFF8880_4000_0000, PAGE_SIZE, Prot.RW)
    assert events.direct_map_splits == 2


def test_a_whole_large_leaf_is_not_split_to_2m_alignment():
    """Protecting 2 MiB of a 1 GiB leaf splits once, to 2 MiB leaves."""
    table, events = direct_mapped()
    table.change(0xFFFF888000200000, LARGE_PAGE_SIZE, off=Prot.W)
    assert (events.direct_map_splits_1g, events.direct_map_splits_2m) == (1, 0)
    assert table.translate(0xFFFF8880003FFFFF).prot is Prot.R
    assert table.translate(0xFFFF888000400000).prot is Prot.RW


def test_collapse_in_the_direct_map_is_not_counted_as_a_text_collapse():
    """The direct map's leaves may be healed too, under no other counter's name."""
    table, events = direct_mapped()
    table.protect(0xFFFF888000000000, PAGE_SIZE, Prot.R)
    table.protect(0xFFFF888000000000, PAGE_SIZE, Prot.RW)
    assert table.collapse(0xFFFF888000000000)
    assert events.collapses == 0
    table.check()


@pytest.mark.parametrize("prot", [Prot.X, Prot.RX])
def test_the_direct_map_is_never_executable(prot):
    """X is refused in the direct map, even without W."""
    table, _ = direct_mapped()
    with pytest.raises(MappingError, match="never executable"):
        table.protect(0xFFFF888000000000, PAGE_SIZE, prot)
    assert table.translate(0xFFFF888000000000).prot is Prot.RW


def test_unmapping_part_of_a_huge_leaf_keeps_the_rest():
    """A hole of one page in 1 GiB leaves 511 large and 511 small leaves."""
    table = PageTable()
    table.map(GIB, 4 * GIB, Prot.R, size=GIB, leaf=HUGE_PAGE_SIZE)
    assert table.unmap(GIB + 0x201000, PAGE_SIZE).tolist() == [4 * GIB + 0x201000]
    assert table.leaf_counts() == {PAGE_SIZE: 511, LARGE_PAGE_SIZE: 511, HUGE_PAGE_SIZE: 0}
    assert table.translate(GIB + 0x201000) is None
    assert table.translate(GIB + 0x202004).address == 4 * GIB + 0x202004
    table.check()


def test_a_large_leaf_may_follow_small_ones_at_the_same_address():
    """An emptied table makes way for a large leaf, and an emptied GiB for a huge one."""
    table = PageTable()
    table.map(GIB, GIB, Prot.R, size=PAGE_SIZE)
    table.unmap(GIB, PAGE_SIZE)
    table.map(GIB, GIB, Prot.RX, size=LARGE_PAGE_SIZE, leaf=LARGE_PAGE_SIZE)
    table.unmap(GIB, LARGE_PAGE_SIZE)
    table.map(GIB, GIB, Prot.RX, size=GIB, leaf=HUGE_PAGE_SIZE)
    assert table.leaf_counts() == {PAGE_SIZE: 0, LARGE_PAGE_SIZE: 0, HUGE_PAGE_SIZE: 1}
    table.check()


@pytest.mark.parametrize(
    ("va", "frames", "size", "leaf", "reason"),
    [
        (0x1000, 0x1000, 0x1800, PAGE_SIZE, "not aligned"),
        (0x1000, 0x1000, 0, PAGE_SIZE, "not a range"),
        (0x1000, 0x1000, 0x2000, 0x2000, "no leaf"),
        (-0x1000, 0x1000, 0x1000, PAGE_SIZE, "not a range"),
        ((1 << 64) - 0x1000, 0x1000, 0x2000, PAGE_SIZE, "not a range"),
        (0x200000, 0x1000, 0x200000, LARGE_PAGE_SIZE, "frames do not suit"),
        (0x1000, 0x1234, 0x1000, PAGE_SIZE, "frames do not suit"),
        (0x1000, -0x1000, 0x1000, PAGE_SIZE, "frames do not suit"),
        (0x1000, 1 << 52, 0x1000, PAGE_SIZE, "frames do not suit"),
        (0x1000, np.array([0x1000, 0x2000], np.uint64), 0x1000, PAGE_SIZE, "frames do not suit"),
        (0x1000, np.array([0x1001], np.uint64), 0x1000, PAGE_SIZE, "frames do not suit"),
        (
            0x200000,
            np.arange(512, dtype=np.uint64) << np.uint64(12),
            0x200000,
            LARGE_PAGE_SIZE,
            "frames do not suit",
        ),
    ],
)
def test_map_refuses_what_hardware_cannot_map(va, frames, size, leaf, reason):
    """Sizes, addresses and frames that do not suit the leaf are refused."""
    table = PageTable()
    with pytest.raises(MappingError, match=reason):
        table.map(va, frames, Prot.R, size=size, leaf=leaf)
    assert list(table.leaves()) == []


def test_a_single_pte_obeys_the_rules_of_map():
    """set_pte refuses an occupied page, a huge leaf's page, and W with X."""
    table = PageTable()
    table.map(GIB, GIB, Prot.R, size=GIB, leaf=HUGE_PAGE_SIZE)
    table.set_pte(0x1000, 0x5000, Prot.RW)
    table.set_pte(0x2000, 0x6000, Prot.RW)
    for va, prot in ((0x1000, Prot.R), (GIB, Prot.R), (0x3000, Prot.W | Prot.X)):
        with pytest.raises(MappingError):
            table.set_pte(va, 0x7000, prot)
    table.check()
    assert table.leaf_counts() == {PAGE_SIZE: 2, LARGE_PAGE_SIZE: 0, HUGE_PAGE_SIZE: 1}
    table.clear_pte(0x1000)
    assert table.translate(0x1000) is None
    assert table.translate(0x2010) == (0x6010, Prot.RW, PAGE_SIZE)


def test_one_frame_writable_here_and_executable_there_is_reported():
    """W^X across aliases is a report, not a refusal: that is how a poke works."""
    table = PageTable()
    table.map(LARGE_PAGE_SIZE, LARGE_PAGE_SIZE, Prot.RX, size=2 * MIB, leaf=LARGE_PAGE_SIZE)
    assert table.wx_aliases() == []
    table.map(GIB, LARGE_PAGE_SIZE + 0x3000, Prot.RW, size=PAGE_SIZE)
    assert table.wx_aliases() == [LARGE_PAGE_SIZE + 0x3000]
    assert table.aliases(LARGE_PAGE_SIZE + 0x3008) == [LARGE_PAGE_SIZE + 0x3008, GIB + 8]
    table.change(GIB, PAGE_SIZE, off=Prot.W)
    assert table.wx_aliases() == []


def test_walks_step_over_empty_space():
    """Questions about the whole address space cost what is mapped, not what is not."""
    table = PageTable()
    table.map((1 << 64) - PAGE_SIZE, 0x1000, Prot.R, size=PAGE_SIZE)
    everything = Interval(0, 1 << 64)
    assert [leaf.va for leaf in table.leaves(everything)] == [(1 << 64) - PAGE_SIZE]
    assert table.leaf_counts(everything)[PAGE_SIZE] == 1
    assert len(list(table.spans(0, 1 << 64))) < 1100


@pytest.mark.parametrize(
    ("page", "leaves"),
    [
        # Arm ARM, D8.2: what an entry of each lookup level maps, by translation granule.
        (4 * KIB, (4 * KIB, 2 * MIB, GIB)),
        (16 * KIB, (16 * KIB, 32 * MIB)),
        (64 * KIB, (64 * KIB, 512 * MIB)),
    ],
)
def test_leaves_follow_from_the_granule(page, leaves):
    """A run as long as four large leaves is mapped by them, whatever the page."""
    paging = Paging(page)
    assert paging.leaves == leaves
    assert page << paging.large_order == leaves[1]
    table = PageTable(paging=paging)
    table.map_contiguous(0, 0, Prot.RW, size=2 * leaves[1] + 3 * page)
    assert table.leaf_counts() == {leaf: {0: 3, 1: 2}.get(n, 0) for n, leaf in enumerate(leaves)}
    table.protect(page, page, Prot.R)
    assert table.leaf_counts()[page] == 3 + page // 8
    assert table.translate(2 * page - 1) == (2 * page - 1, Prot.R, page)
    for va, leaf in ((page // 2, page), (0, 2 * page), (leaves[1] // 2, leaves[1])):
        with pytest.raises(MappingError):
            table.map(va, 0, Prot.R, size=leaf, leaf=leaf)
    table.check()


@pytest.mark.parametrize("page", [0, 2048, 12288, -4096])
def test_a_granule_is_a_power_of_two(page):
    """Nothing smaller than 4 KiB is a page, nor what is no power of two."""
    with pytest.raises(ValueError, match="power of two"):
        Paging(page)
