# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree behind XArrays, radix trees and IDRs (lib/xarray.c, lib/radix-tree.c).

It stands in guest memory in the kernel's own because loops over it are inlined:
a node has 64 slots, each level six bits of the index; one entry at index 0 needs no node.
Marks are kept in the nodes, and for the whole tree in the root's flags.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kernels.modelled.api.memory import duplicate, kfree
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import POINTER, made, offset_of
from kernels.modelled.structs import struct as declare

# struct xarray: lock, flags, head (a radix_tree_root is the same). struct xa_node: shift,
# offset, count, number of values, parent, array, list, slots, marks (include/linux/xarray.h).
declare("xarray", "xa_flags xa_head")
declare(
    "xa_node",
    "shift offset count nr_values parent array slots marks",
)
FLAGS, HEAD = offset_of("xarray", "xa_flags"), offset_of("xarray", "xa_head")
LEVELS, OFFSET, COUNT, VALUES, PARENT, SLOTS, MARKS = (
    offset_of("xa_node", member)
    for member in ("shift", "offset", "count", "nr_values", "parent", "slots", "marks")
)
SHIFT, WIDTH = 6, 64
MARK_KINDS = 3
GFP_BITS_SHIFT = 25  # where the root keeps its marks: 6.12 without hardware tags
TRACK_FREE, ZERO_BUSY = 1 << 2, 1 << 3  # XA_FLAGS_ALLOC, and index 0 is never handed out
NODE_TAG = 2
ZERO_ENTRY = 257 << 2 | NODE_TAG  # XA_ZERO_ENTRY: reserved, reads as NULL
XA_PRESENT = 8
LIMIT = (1 << 64) - 1


def _is_node(entry: int) -> bool:
    return entry & 3 == NODE_TAG and entry > 4096


def _slot(k: Kernel, node: int, offset: int) -> int:
    """Return the address of a slot of a node."""
    return node + SLOTS(k) + POINTER * offset


def _marks(k: Kernel, node: int, mark: int) -> int:
    """Return the address of the bits that say which slots of a node have a mark."""
    return node + MARKS(k) + 8 * mark


def _shift(k: Kernel, node: int) -> int:
    return k.word(node + LEVELS(k), 1)


def _new_node(k: Kernel, tree: int, shift: int, parent: int, offset: int) -> int:
    members = {"shift": shift, "offset": offset, "parent": parent, "array": tree}
    return duplicate(k, made(k, "xa_node", members), 0)


def _holds(k: Kernel, entry: int) -> int:
    """Return the highest index that the subtree `entry` has room for."""
    if not _is_node(entry):
        return 0
    return (1 << _shift(k, entry - NODE_TAG) + SHIFT) - 1


def load(k: Kernel, tree: int, index: int) -> int:
    """Return the entry at an index; 0 for none."""
    entry = k.word(tree + HEAD(k))
    if index > _holds(k, entry):
        return 0
    while _is_node(entry):
        node = entry - NODE_TAG
        entry = k.word(_slot(k, node, index >> _shift(k, node) & WIDTH - 1))
    return entry


def slot(k: Kernel, tree: int, index: int) -> int:
    """Return the address of the slot of an index; 0 where there is none."""
    entry = k.word(tree + HEAD(k))
    at = tree + HEAD(k)
    if index > _holds(k, entry):
        return 0
    while _is_node(entry):
        node = entry - NODE_TAG
        at = _slot(k, node, index >> _shift(k, node) & WIDTH - 1)
        entry = k.word(at)
    return at if entry else 0


def store(k: Kernel, tree: int, index: int, entry: int) -> int:
    """Set the entry at an index (0: none); return the one before. MemoryError without memory."""
    old = load(k, tree, index)
    if old == entry:
        return old
    if not entry:
        for mark in range(MARK_KINDS):
            set_mark(k, tree, index, mark, on=False)
        _put(k, tree, index, 0)
        _shrink(k, tree)
    else:
        _grow(k, tree, index)
        _put(k, tree, index, entry)
    return old


def _grow(k: Kernel, tree: int, index: int) -> None:
    """Add levels on top until `index` has a place."""
    while index > _holds(k, head := k.word(tree + HEAD(k))) or (head == 0 and index):
        if not head:
            shift = max((index.bit_length() - 1) // SHIFT * SHIFT, 0)
            k.store(tree + HEAD(k), _node_or_fail(k, tree, shift, 0, 0) | NODE_TAG)
            continue
        shift = _shift(k, head - NODE_TAG) + SHIFT if _is_node(head) else 0
        node = _node_or_fail(k, tree, shift, 0, 0)
        k.store(node + SLOTS(k), head)
        k.store(node + COUNT(k), 1, 1)
        if _is_node(head):
            k.store(head - NODE_TAG + PARENT(k), node)
        for mark in range(MARK_KINDS):
            if tree_marked(k, tree, mark):
                k.store(_marks(k, node, mark), 1)
        k.store(tree + HEAD(k), node | NODE_TAG)


def _node_or_fail(k: Kernel, tree: int, shift: int, parent: int, offset: int) -> int:
    node = _new_node(k, tree, shift, parent, offset)
    if not node:
        raise MemoryError
    return node


def _put(k: Kernel, tree: int, index: int, entry: int) -> None:
    """Set a slot that the tree has levels for, making and dropping nodes on the way."""
    head = k.word(tree + HEAD(k))
    if not _is_node(head):
        k.store(tree + HEAD(k), entry)
        return
    node = head - NODE_TAG
    while shift := _shift(k, node):
        offset = index >> shift & WIDTH - 1
        at = _slot(k, node, offset)
        below = k.word(at)
        if not below:
            if not entry:
                return
            # A guest may have written any shift; each level below is less, so this ends.
            below = _node_or_fail(k, tree, max(shift - SHIFT, 0), node, offset) | NODE_TAG
            k.store(at, below)
            k.store(node + COUNT(k), k.word(node + COUNT(k), 1) + 1, 1)
        node = below - NODE_TAG
    at = _slot(k, node, index & WIDTH - 1)
    was = k.word(at)
    k.store(at, entry)
    k.store(node + COUNT(k), k.word(node + COUNT(k), 1) + bool(entry) - bool(was), 1)
    values = (entry & 1) - (was & 1)
    k.store(node + VALUES(k), k.word(node + VALUES(k), 1) + values, 1)
    while not k.word(node + COUNT(k), 1):
        parent, offset = k.word(node + PARENT(k)), k.word(node + OFFSET(k), 1)
        kfree(k, node)
        if not parent:
            k.store(tree + HEAD(k), 0)
            return
        k.store(_slot(k, parent, offset), 0)
        k.store(parent + COUNT(k), k.word(parent + COUNT(k), 1) - 1, 1)
        node = parent


def _shrink(k: Kernel, tree: int) -> None:
    """Drop top levels that hold nothing but index 0 below."""
    while _is_node(head := k.word(tree + HEAD(k))):
        node = head - NODE_TAG
        only = k.word(node + SLOTS(k))
        if (
            k.word(node + COUNT(k), 1) != 1
            or not only
            or (not _shift(k, node) and only & 3 == NODE_TAG)
        ):
            return
        if _is_node(only):
            k.store(only - NODE_TAG + PARENT(k), 0)
        k.store(tree + HEAD(k), only)
        kfree(k, node)


def walk(k: Kernel, tree: int, first: int = 0, last: int = LIMIT) -> Iterator[tuple[int, int]]:
    """Yield (index, entry) in order; what is stored meanwhile behind the walk is seen."""
    while first <= last:
        found = _next(k, tree, first)
        if found is None or found[0] > last:
            return
        yield found
        first = found[0] + 1


def _next(k: Kernel, tree: int, index: int) -> tuple[int, int] | None:
    """Return the first entry at `index` or behind it."""
    entry = k.word(tree + HEAD(k))
    if not _is_node(entry):
        return (0, entry) if entry and not index else None
    if index > _holds(k, entry):
        return None
    return _next_below(k, entry - NODE_TAG, index, 0)


def _next_below(k: Kernel, node: int, index: int, base: int) -> tuple[int, int] | None:
    shift = _shift(k, node)
    start = max(index - base, 0) >> shift
    slots = struct.unpack("<64Q", k.memory.read(node + SLOTS(k), POINTER * WIDTH))
    for offset in range(start, WIDTH):
        entry = slots[offset]
        if not entry:
            continue
        at = base + (offset << shift)
        if not _is_node(entry):
            return at, entry
        found = _next_below(k, entry - NODE_TAG, index, at)
        if found is not None:
            return found
    return None


# Marks -------------------------------------------------------------------------------------


def _root_mark(mark: int) -> int:
    return 1 << (GFP_BITS_SHIFT + mark) % 32  # as CPUs shift an int


def tree_marked(k: Kernel, tree: int, mark: int) -> bool:
    """Return whether any entry has a mark."""
    return bool(k.word(tree + FLAGS(k), 4) & _root_mark(mark))


def _path(k: Kernel, tree: int, index: int) -> list[tuple[int, int]]:
    """Return (node, offset) from the root down to the slot of an index."""
    path = []
    entry = k.word(tree + HEAD(k))
    while _is_node(entry):
        node = entry - NODE_TAG
        offset = index >> _shift(k, node) & WIDTH - 1
        path.append((node, offset))
        entry = k.word(_slot(k, node, offset))
    return path


def set_mark(k: Kernel, tree: int, index: int, mark: int, *, on: bool) -> None:
    """Set or clear a mark of the entry at an index; without an entry nothing happens."""
    if not load(k, tree, index):
        return
    for node, offset in reversed(_path(k, tree, index)):
        at = _marks(k, node, mark)
        word = k.word(at)
        word = word | 1 << offset if on else word & ~(1 << offset)
        k.store(at, word)
        if word and not on:
            return
    flags = k.word(tree + FLAGS(k), 4)
    flags = flags | _root_mark(mark) if on else flags & ~_root_mark(mark)
    k.store(tree + FLAGS(k), flags, 4)


def marked(k: Kernel, tree: int, index: int, mark: int) -> bool:
    """Return whether the entry at an index has a mark."""
    if not load(k, tree, index):
        return False
    path = _path(k, tree, index)
    if not path:
        return tree_marked(k, tree, mark)
    node, offset = path[-1]
    return bool(k.word(_marks(k, node, mark)) >> offset & 1)


def chosen(k: Kernel, tree: int, first: int, last: int, mark: int) -> Iterator[tuple[int, int]]:
    """Yield the entries with a mark; XA_PRESENT is every entry."""
    for index, entry in walk(k, tree, first, last):
        if entry != ZERO_ENTRY and (mark == XA_PRESENT or marked(k, tree, index, mark)):
            yield index, entry


# Whole trees --------------------------------------------------------------------------------


def free_index(k: Kernel, tree: int, first: int, last: int) -> int | None:
    """Return the first index in [first, last] that has no entry."""
    for index, _ in walk(k, tree, first, last):
        if index != first:
            break
        first += 1
    return first if first <= last else None


def clear(k: Kernel, tree: int) -> None:
    """Take every entry out."""
    for index, _ in walk(k, tree):
        store(k, tree, index, 0)


def visible(entry: int) -> int:
    """Return what a caller sees of an entry."""
    return 0 if entry == ZERO_ENTRY else entry
