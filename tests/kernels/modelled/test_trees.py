# SPDX-License-Identifier: GPL-2.0-or-later
"""XArrays, radix trees and numbers handed out, against Python's dictionaries."""

from __future__ import annotations

import errno
import functools
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import archs
from emulator.faults import Fault
from tests.support.guest import EACH, GFP_KERNEL, guest_of

TRACK_FREE = 1 << 2
INDEXES = st.one_of(
    st.integers(0, 70),
    st.integers(0, 5000),
    st.sampled_from([63, 64, 4095, 4096, 1 << 18, (1 << 30) - 1, 1 << 40, (1 << 64) - 1]),
)


class Tree(RuleBasedStateMachine):
    """An xarray behaves as a dict, whose marks behave as a set of keys each."""

    def __init__(self):
        super().__init__()
        self.guest = guest_of(archs.arch("x86_64"))
        self.before = self.guest.kernel.heap.live()
        self.tree = self.guest.alloc(16)
        self.model, self.marks = {}, {1: set(), 2: set()}

    @initialize()
    def empty(self):
        """Find nothing in a zeroed structure."""
        assert self.guest("xa_load", self.tree, 0) == 0

    @rule(index=INDEXES, entry=st.integers(1, 1 << 40).map(lambda n: n << 3))
    def store(self, index, entry):
        """Get back what was there."""
        got = self.guest("xa_store", self.tree, index, entry, GFP_KERNEL)
        assert got == self.model.get(index, 0)
        self.model[index] = entry

    @rule(index=INDEXES)
    def erase(self, index):
        """Erasing returns what was there, and drops its marks."""
        assert self.guest("xa_erase", self.tree, index) == self.model.pop(index, 0)
        for marked in self.marks.values():
            marked.discard(index)

    @rule(index=INDEXES, entry=st.integers(1, 99).map(lambda n: n << 3))
    def insert(self, index, entry):
        """Replace nothing."""
        got = self.guest("__xa_insert", self.tree, index, entry, GFP_KERNEL, returns="int")
        assert got == (-errno.EBUSY if index in self.model else 0)
        self.model.setdefault(index, entry)

    @rule(index=INDEXES, mark=st.sampled_from([1, 2]), on=st.booleans())
    def mark(self, index, mark, on):
        """Only what is there can be marked."""
        self.guest("xa_set_mark" if on else "xa_clear_mark", self.tree, index, mark)
        if on and index in self.model:
            self.marks[mark].add(index)
        else:
            self.marks[mark].discard(index)

    @rule(first=INDEXES, last=INDEXES)
    def find(self, first, last):
        """xa_find and xa_find_after find the next one in a range."""
        at = self.guest.alloc(8)
        for name, start in (("xa_find", first), ("xa_find_after", first + 1)):
            self.guest.kernel.store(at, first)
            got = self.guest(name, self.tree, at, last, 8)
            found = min((i for i in self.model if start <= i <= last), default=None)
            assert got == (0 if found is None else self.model[found])
            if found is not None:
                assert self.guest.kernel.word(at) == found
        self.guest.machine.free(at)

    @invariant()
    def the_same(self):
        """Whatever the order of changes, reading all of it gives the model."""
        room = self.guest.alloc(8 * (len(self.model) + 1))
        for mark, indexes in ((8, set(self.model)), *self.marks.items()):
            count = self.guest(
                "xa_extract", self.tree, room, 0, (1 << 64) - 1, len(self.model) + 1, mark
            )
            got = struct.unpack(f"<{count}Q", self.guest.machine.read(room, 8 * count))
            assert list(got) == [self.model[i] for i in sorted(indexes)]
        self.guest.machine.free(room)

    def teardown(self):
        """Destroying frees every node."""
        self.guest("xa_destroy", self.tree)
        self.guest.machine.free(self.tree)
        assert self.guest.kernel.heap.live() == self.before


Tree.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
TestTree = Tree.TestCase


def test_one_entry_at_zero_needs_no_node(guest):
    """The head is the entry itself (XA_HEAD), which inlined code relies on."""
    tree = guest.alloc(16)
    before = len(guest.kernel.heap.live())
    guest("xa_store", tree, 0, 0x1238, GFP_KERNEL)
    assert guest.view("xarray", tree).number("xa_head") == 0x1238
    assert len(guest.kernel.heap.live()) == before
    guest("xa_store", tree, 5, 0x4560, GFP_KERNEL)
    entry = guest.view("xarray", tree).number("xa_head")
    assert entry & 3 == 2  # xa_is_node()
    node = guest.view("xa_node", entry & ~3)
    members = ("shift", "offset", "count", "nr_values")
    assert [node.number(member) for member in members] == [0, 0, 2, 0]
    guest("xa_erase", tree, 5)
    assert guest.view("xarray", tree).number("xa_head") == 0x1238
    guest("xa_erase", tree, 0)
    guest.machine.free(tree)


def test_xa_alloc_gives_the_lowest_free_number(guest):
    """Limits are kept; the cyclic form goes on behind the last one and wraps."""
    tree, number, following = guest.alloc(16), guest.alloc(4), guest.alloc(4)
    guest.view("xarray", tree).put("xa_flags", TRACK_FREE)
    limit = 3 << 32 | 6  # struct xa_limit { .max = 6, .min = 3 }
    taken = []
    for _ in range(4):
        assert guest("__xa_alloc", tree, number, 0x88, limit, GFP_KERNEL, returns="int") == 0
        taken.append(guest.kernel.word(number, 4))
    assert taken == [3, 4, 5, 6]
    assert guest("__xa_alloc", tree, number, 0x88, limit, GFP_KERNEL, returns="int") == -16
    guest("xa_erase", tree, 4)
    guest.kernel.store(following, 5, 4)
    call = functools.partial(
        guest, "__xa_alloc_cyclic", tree, number, 0x88, limit, following, GFP_KERNEL
    )
    assert call(returns="int") == 1  # it wrapped
    assert guest.kernel.word(number, 4) == 4
    assert call(returns="int") == -errno.EBUSY
    guest("xa_destroy", tree)


@EACH
@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("alloc"), st.integers(0, 8), st.integers(0, 12)),
            st.tuples(st.just("remove"), st.integers(0, 12), st.just(0)),
        ),
        max_size=20,
    )
)
def test_idr_is_a_dict_of_the_lowest_free_numbers(arch, steps):
    """idr_alloc takes the lowest number in [start, end), also for NULL; idr_remove frees it."""
    guest = guest_of(arch)
    idr, model = guest.alloc(24), {}
    for step, (kind, one, two) in enumerate(steps):
        item = (step % 5) * 8  # NULL among them
        if kind == "alloc":
            got = guest("idr_alloc", idr, item, one, two, GFP_KERNEL, returns="int")
            free = [n for n in range(one, two or 1 << 10) if n not in model]
            assert got == (free[0] if free else -errno.ENOSPC)
            if free:
                model[got] = item
        else:
            assert guest("idr_remove", idr, one) == model.pop(one, 0)
        assert all(guest("idr_find", idr, n) == model.get(n, 0) for n in range(13))
    seen = []
    func = guest.callback(
        "idr_seen", lambda n, p, _d: seen.append((n, p)), "int idr_seen(int n, void *p, void *d)"
    )
    assert guest("idr_for_each", idr, func, 0, returns="int") == 0
    assert seen == sorted(model.items())
    guest("idr_destroy", idr)
    guest.machine.free(idr)


def test_ida_gives_numbers_back(guest):
    """Numbers come lowest first across bitmaps of 1024; freeing what is free stops."""
    before = guest.kernel.heap.live()
    ida, chance, taken = guest.alloc(16), random.Random(7), set()
    for _ in range(60):
        first = chance.choice([0, 3, 1020, 2047])
        got = guest("ida_alloc_range", ida, first, 5000, GFP_KERNEL, returns="int")
        assert got == next(n for n in range(first, 5001) if n not in taken)
        taken.add(got)
        if chance.random() < 0.4:
            gone = chance.choice(sorted(taken))
            taken.remove(gone)
            guest("ida_free", ida, gone)
    assert guest("ida_alloc_range", ida, 3, 3, GFP_KERNEL, returns="int") == (
        -errno.ENOSPC if 3 in taken else 3
    )
    with pytest.raises(Fault, match="id=4999 which is not allocated"):
        guest("ida_free", ida, 4999)
    guest("ida_destroy", ida)
    guest.machine.free(ida)
    assert guest.kernel.heap.live() == before


def test_radix_tree_tags(guest):
    """Tagged items are found by tag; a tag ends with its item."""
    tree, room = guest.alloc(16), guest.alloc(64)
    for index in (1, 70, 5000):
        assert guest("radix_tree_insert", tree, index, index * 8, returns="int") == 0
    assert guest("radix_tree_insert", tree, 70, 8, returns="int") == -errno.EEXIST
    guest("radix_tree_tag_set", tree, 70, 1)
    guest("radix_tree_tag_set", tree, 5000, 1)
    assert guest("radix_tree_tagged", tree, 1) == 1
    assert guest("radix_tree_gang_lookup_tag", tree, room, 0, 8, 1) == 2
    assert struct.unpack("<2Q", guest.machine.read(room, 16)) == (560, 40000)
    guest("radix_tree_delete", tree, 70)
    assert guest("radix_tree_tag_get", tree, 70, 1) == 0
    guest("radix_tree_delete", tree, 5000)
    assert guest("radix_tree_tagged", tree, 1) == 0
    assert guest("radix_tree_delete", tree, 1) == 8
    assert guest.view("xarray", tree).number("xa_head") == 0


def test_a_level_that_the_guest_made_up(guest):
    """A node's `shift` is guest memory: whatever it is, levels below come to an end."""
    tree = guest.alloc(16)
    for index in (0, 5000):
        assert guest("radix_tree_insert", tree, index, 8, returns="int") == 0
    node = guest.view("xarray", tree).number("xa_head") & ~3
    guest.view("xa_node", node).put("shift", 3)
    assert guest("radix_tree_insert", tree, 9 << 3, 24, returns="int") == 0
    assert guest("radix_tree_lookup", tree, 9 << 3) == 24
