# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists, sorting and trees, against Python's own idea of the same."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.faults import FaultKind
from kernels.modelled.api.lists import LEFT, RIGHT
from kernels.modelled.structs import PREV
from tests.support.guest import EACH, FEW, guest_of

# What these tests keep behind the node of a list, and of a tree.
NODE, KEY = 16, 24  # bytes of struct list_head and rb_node


def compare_u32(guest):
    """Return the address of a guest function that compares two u32 by value."""

    def compare(one, two):
        a, b = guest.word(one, 4), guest.word(two, 4)
        return (a > b) - (a < b)

    return guest.callback("api_cmp", compare, "int api_cmp(const void *a, const void *b)")


@EACH
@FEW
@given(values=st.lists(st.integers(0, 50), max_size=20), sought=st.integers(0, 50))
def test_sort_and_bsearch(arch, values, sought):
    """Sorting orders as sorted does; bsearch finds what is there and nothing else."""
    g = guest_of(arch)
    compare = compare_u32(g)
    with g.memory(struct.pack(f"<{len(values)}I", *values)) as base:
        g("sort", base, len(values), 4, compare, 0)
        got = struct.unpack(f"<{len(values)}I", g.machine.read(base, 4 * len(values)))
        assert list(got) == sorted(values)
        at = g("bsearch", struct.pack("<I", sought), base, len(values), 4, compare)
        assert (got[(at - base) // 4] == sought) if at else (sought not in values)


def test_sort_uses_the_callers_swap(guest):
    """A swap function moves every element that moves."""
    values, swaps = [3, 1, 2, 0], []

    def swap(one, two, size):
        a, b = guest.machine.read(one, size), guest.machine.read(two, size)
        guest.machine.write(one, b)
        guest.machine.write(two, a)
        swaps.append(size)

    swapper = guest.callback("api_swap", swap, "void api_swap(void *a, void *b, int size)")
    with guest.memory(struct.pack("<4I", *values)) as base:
        guest("sort", base, 4, 4, compare_u32(guest), swapper)
        assert struct.unpack("<4I", guest.machine.read(base, 16)) == (0, 1, 2, 3)
    assert swaps
    assert set(swaps) == {4}


def ring(guest, head, count):
    """Link `count` nodes of 24 bytes after `head` into a list; return their addresses."""
    nodes = [head + 24 * (n + 1) for n in range(count)]
    around = [head, *nodes]
    for index, node in enumerate(around):
        after, before = around[(index + 1) % len(around)], around[index - 1]
        guest.machine.write(node, struct.pack("<QQ", after, before))
    return nodes


@EACH
@FEW
@given(values=st.lists(st.integers(0, 5), max_size=12))
def test_list_sort_is_stable(arch, values):
    """Equal nodes keep their order, although the comparison only says greater or not."""
    g = guest_of(arch)
    greater = g.callback(
        "api_greater",
        lambda _priv, a, b: g.word(a + NODE) > g.word(b + NODE),
        "int api_greater(void *priv, const void *a, const void *b)",
    )
    with g.memory(24 * (len(values) + 1)) as head:
        nodes = ring(g, head, len(values))
        for node, value in zip(nodes, values, strict=True):
            g.machine.write(node + NODE, struct.pack("<Q", value))
        g("list_sort", 0, head, greater)
        forth, back, at = [], [], head
        while (at := g.word(at)) != head:
            forth.append(at)
        while (at := g.word(at + PREV)) != head:
            back.append(at)
        expected = [node for _, node in sorted(zip(values, nodes, strict=True))]
        assert forth == expected
        assert back == expected[::-1]


def test_list_checks_find_corruption(guest):
    """A sound list passes; a broken link and a node that was deleted stop with the kernel's words."""
    with guest.memory(24 * 4) as head:
        one, two, three = ring(guest, head, 3)
        assert guest("__list_del_entry_valid_or_report", two, returns="bool") == 1
        guest.machine.write(two, struct.pack("<QQ", 0xDEAD000000000100, 0xDEAD000000000122))
        with guest.fails(FaultKind.PANIC, "LIST_POISON1"):
            guest("__list_del_entry_valid_or_report", two)
        with guest.fails(FaultKind.PANIC, "prev->next should be"):
            guest.machine.write(one, struct.pack("<Q", three))
            guest.machine.write(two, struct.pack("<QQ", three, one))
            guest("__list_del_entry_valid_or_report", two)
        with guest.fails(FaultKind.PANIC, "double add"):
            guest.machine.write(head, struct.pack("<QQ", head, head))
            guest("__list_add_valid_or_report", head, head, head)


def rb_check(guest, root):
    """Return the keys in order, having checked parents, colours and black heights."""

    def walk(node, parent, *, red):
        if not node:
            return 1, []
        colour = guest.word(node)
        assert colour & ~3 == parent
        assert not (red and not colour & 1), "a red node has a red child"
        low, left = walk(guest.word(node + LEFT(guest.kernel)), node, red=not colour & 1)
        high, right = walk(guest.word(node + RIGHT(guest.kernel)), node, red=not colour & 1)
        assert low == high, "paths differ in black nodes"
        return low + (colour & 1), [*left, guest.word(node + KEY), *right]

    return walk(guest.word(root), 0, red=True)[1]


def rb_insert(guest, root, node, key):
    """Link a node where its key belongs, then balance."""
    parent, link = 0, root
    while at := guest.word(link):
        parent, link = at, at + (LEFT if key < guest.word(at + KEY) else RIGHT)(guest.kernel)
    guest.machine.write(node, struct.pack("<QQQQ", parent, 0, 0, key))
    guest.machine.write(link, node.to_bytes(8, "little"))
    guest("rb_insert_color", node, root)


@EACH
@settings(max_examples=15, deadline=None)
@given(keys=st.lists(st.integers(0, 1000), unique=True, max_size=20), data=st.data())
def test_trees_stay_balanced(arch, keys, data):
    """After every insertion and removal the rules hold; walking gives the keys in order."""
    g = guest_of(arch)
    with g.memory(8 + 32 * len(keys)) as root:
        nodes = {key: root + 8 + 32 * index for index, key in enumerate(keys)}
        for count, key in enumerate(keys, 1):
            rb_insert(g, root, nodes[key], key)
            assert rb_check(g, root) == sorted(keys[:count])
        walked, node = [], g("rb_first", root)
        while node:
            walked.append(g.word(node + KEY))
            node = g("rb_next", node)
        assert walked == sorted(keys)
        if keys:
            last = g("rb_last", root)
            assert g.word(last + KEY) == max(keys)
            before = g("rb_prev", last)
            assert (g.word(before + KEY) if before else None) == (sorted(keys)[-2:-1] or [None])[0]
        left = set(keys)
        for key in data.draw(st.permutations(keys)):
            g("rb_erase", nodes[key], root)
            left.remove(key)
            assert rb_check(g, root) == sorted(left)
