# SPDX-License-Identifier: GPL-2.0-or-later
"""XArrays, radix trees, and numbers handed out (lib/xarray.c, lib/radix-tree.c, lib/idr.c).

The tree stands in guest memory in the kernel's own layout, because loops over it are inlined:
a node has 64 slots, each level six bits of the index; one entry at index 0 needs no node.
Below stands one walk for all three interfaces. Marks are kept in the nodes, and for the
whole tree in the root's flags.

An IDR is a radix tree in which mark 0 says that something below is free; here it says that
something is taken, and nothing inlined looks at it. An IDA is a tree of bitmaps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kernels.modelled.api.common import INT_MAX, errno, stop
from kernels.modelled.api.memory import duplicate, kfree
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import layout, offset_of
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import function

# struct xarray: lock, flags, head (a radix_tree_root is the same). struct xa_node: shift,
# offset, count, number of values, parent, array, list, slots, marks (include/linux/xarray.h).
declare("xarray", "xa_lock:u32 xa_flags:u32 xa_head:ptr")
declare(
    "xa_node",
    "shift:u8 offset:u8 count:u8 nr_values:u8 parent:ptr array:ptr private_list:list"
    " slots:ptr[64] marks:u64[3]",
)
FLAGS, HEAD = offset_of("xarray", "xa_flags"), offset_of("xarray", "xa_head")
PARENT, SLOTS, MARKS = (offset_of("xa_node", member) for member in ("parent", "slots", "marks"))
NODE_SIZE = layout("xa_node").size
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


def _shift(k: Kernel, node: int) -> int:
    return k.word(node, 1)


def _new_node(k: Kernel, tree: int, shift: int, parent: int, offset: int) -> int:
    head = struct.pack("<BBBxxxxxQQQQ", shift, offset, 0, parent, tree, 0, 0)
    return duplicate(k, head.ljust(NODE_SIZE, b"\0"), 0)


def _holds(k: Kernel, entry: int) -> int:
    """Return the highest index that the subtree `entry` has room for."""
    if not _is_node(entry):
        return 0
    return (1 << _shift(k, entry - NODE_TAG) + SHIFT) - 1


def load(k: Kernel, tree: int, index: int) -> int:
    """Return the entry at an index; 0 for none."""
    entry = k.word(tree + HEAD)
    if index > _holds(k, entry):
        return 0
    while _is_node(entry):
        node = entry - NODE_TAG
        entry = k.word(node + SLOTS + 8 * (index >> _shift(k, node) & WIDTH - 1))
    return entry


def slot(k: Kernel, tree: int, index: int) -> int:
    """Return the address of the slot of an index; 0 where there is none."""
    entry = k.word(tree + HEAD)
    at = tree + HEAD
    if index > _holds(k, entry):
        return 0
    while _is_node(entry):
        node = entry - NODE_TAG
        at = node + SLOTS + 8 * (index >> _shift(k, node) & WIDTH - 1)
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
    while index > _holds(k, head := k.word(tree + HEAD)) or (head == 0 and index):
        if not head:
            shift = max((index.bit_length() - 1) // SHIFT * SHIFT, 0)
            k.store(tree + HEAD, _node_or_fail(k, tree, shift, 0, 0) | NODE_TAG)
            continue
        shift = _shift(k, head - NODE_TAG) + SHIFT if _is_node(head) else 0
        node = _node_or_fail(k, tree, shift, 0, 0)
        k.store(node + SLOTS, head)
        k.store(node + 2, 1, 1)
        if _is_node(head):
            k.store(head - NODE_TAG + PARENT, node)
        for mark in range(MARK_KINDS):
            if tree_marked(k, tree, mark):
                k.store(node + MARKS + 8 * mark, 1)
        k.store(tree + HEAD, node | NODE_TAG)


def _node_or_fail(k: Kernel, tree: int, shift: int, parent: int, offset: int) -> int:
    node = _new_node(k, tree, shift, parent, offset)
    if not node:
        raise MemoryError
    return node


def _put(k: Kernel, tree: int, index: int, entry: int) -> None:
    """Set a slot that the tree has levels for, making and dropping nodes on the way."""
    head = k.word(tree + HEAD)
    if not _is_node(head):
        k.store(tree + HEAD, entry)
        return
    node = head - NODE_TAG
    while shift := _shift(k, node):
        offset = index >> shift & WIDTH - 1
        at = node + SLOTS + 8 * offset
        below = k.word(at)
        if not below:
            if not entry:
                return
            below = _node_or_fail(k, tree, shift - SHIFT, node, offset) | NODE_TAG
            k.store(at, below)
            k.store(node + 2, k.word(node + 2, 1) + 1, 1)
        node = below - NODE_TAG
    at = node + SLOTS + 8 * (index & WIDTH - 1)
    was = k.word(at)
    k.store(at, entry)
    k.store(node + 2, k.word(node + 2, 1) + bool(entry) - bool(was), 1)
    values = (entry & 1) - (was & 1)
    k.store(node + 3, k.word(node + 3, 1) + values, 1)
    while not k.word(node + 2, 1):
        parent, offset = k.word(node + PARENT), k.word(node + 1, 1)
        kfree(k, node)
        if not parent:
            k.store(tree + HEAD, 0)
            return
        k.store(parent + SLOTS + 8 * offset, 0)
        k.store(parent + 2, k.word(parent + 2, 1) - 1, 1)
        node = parent


def _shrink(k: Kernel, tree: int) -> None:
    """Drop top levels that hold nothing but index 0 below."""
    while _is_node(head := k.word(tree + HEAD)):
        node = head - NODE_TAG
        only = k.word(node + SLOTS)
        if k.word(node + 2, 1) != 1 or not only or (not _shift(k, node) and only & 3 == NODE_TAG):
            return
        if _is_node(only):
            k.store(only - NODE_TAG + PARENT, 0)
        k.store(tree + HEAD, only)
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
    entry = k.word(tree + HEAD)
    if not _is_node(entry):
        return (0, entry) if entry and not index else None
    if index > _holds(k, entry):
        return None
    return _next_below(k, entry - NODE_TAG, index, 0)


def _next_below(k: Kernel, node: int, index: int, base: int) -> tuple[int, int] | None:
    shift = _shift(k, node)
    start = max(index - base, 0) >> shift
    slots = struct.unpack("<64Q", k.memory.read(node + SLOTS, 8 * WIDTH))
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
    return bool(k.word(tree + FLAGS, 4) & _root_mark(mark))


def _path(k: Kernel, tree: int, index: int) -> list[tuple[int, int]]:
    """Return (node, offset) from the root down to the slot of an index."""
    path = []
    entry = k.word(tree + HEAD)
    while _is_node(entry):
        node = entry - NODE_TAG
        offset = index >> _shift(k, node) & WIDTH - 1
        path.append((node, offset))
        entry = k.word(node + SLOTS + 8 * offset)
    return path


def set_mark(k: Kernel, tree: int, index: int, mark: int, *, on: bool) -> None:
    """Set or clear a mark of the entry at an index; without an entry nothing happens."""
    if not load(k, tree, index):
        return
    for node, offset in reversed(_path(k, tree, index)):
        at = node + MARKS + 8 * mark
        word = k.word(at)
        word = word | 1 << offset if on else word & ~(1 << offset)
        k.store(at, word)
        if word and not on:
            return
    flags = k.word(tree + FLAGS, 4)
    flags = flags | _root_mark(mark) if on else flags & ~_root_mark(mark)
    k.store(tree + FLAGS, flags, 4)


def marked(k: Kernel, tree: int, index: int, mark: int) -> bool:
    """Return whether the entry at an index has a mark."""
    if not load(k, tree, index):
        return False
    path = _path(k, tree, index)
    if not path:
        return tree_marked(k, tree, mark)
    node, offset = path[-1]
    return bool(k.word(node + MARKS + 8 * mark) >> offset & 1)


def _chosen(k: Kernel, tree: int, first: int, last: int, mark: int) -> Iterator[tuple[int, int]]:
    """Yield the entries with a mark; XA_PRESENT is every entry."""
    for index, entry in walk(k, tree, first, last):
        if entry != ZERO_ENTRY and (mark == XA_PRESENT or marked(k, tree, index, mark)):
            yield index, entry


# XArray ------------------------------------------------------------------------------------


def _visible(entry: int) -> int:
    return 0 if entry == ZERO_ENTRY else entry


def _error(name: str) -> int:
    """Return xa_mk_internal(errno): the error entry of the advanced functions."""
    return errno(name) << 2 | NODE_TAG


@function("void *xa_load(struct xarray *xa, unsigned long index)")
def _xa_load(k: Kernel, tree: int, index: int) -> int:
    return _visible(load(k, tree, index))


@function(
    "void *xa_store(struct xarray *xa, unsigned long index, void *entry, gfp_t gfp)",
    "void *__xa_store(struct xarray *xa, unsigned long index, void *entry, gfp_t gfp)",
)
def _xa_store(k: Kernel, tree: int, index: int, entry: int, _gfp: int) -> int:
    if k.word(tree + FLAGS, 4) & TRACK_FREE and not entry:
        entry = ZERO_ENTRY
    try:
        return _visible(store(k, tree, index, entry))
    except MemoryError:
        return _error("ENOMEM")


@function(
    "void *xa_erase(struct xarray *xa, unsigned long index)",
    "void *__xa_erase(struct xarray *xa, unsigned long index)",
)
def _xa_erase(k: Kernel, tree: int, index: int) -> int:
    return _visible(store(k, tree, index, 0))


@function(
    "void *__xa_cmpxchg(struct xarray *xa, unsigned long index, void *old, void *entry, gfp_t g)",
)
def _xa_cmpxchg(k: Kernel, tree: int, index: int, old: int, entry: int, gfp: int) -> int:
    found = _visible(load(k, tree, index))
    return _xa_store(k, tree, index, entry, gfp) if found == old else found


@function("int __xa_insert(struct xarray *xa, unsigned long index, void *entry, gfp_t gfp)")
def _xa_insert(k: Kernel, tree: int, index: int, entry: int, _gfp: int) -> int:
    if load(k, tree, index):
        return errno("EBUSY")
    try:
        store(k, tree, index, entry or ZERO_ENTRY)
    except MemoryError:
        return errno("ENOMEM")
    return 0


def _free_index(k: Kernel, tree: int, first: int, last: int) -> int | None:
    """Return the first index in [first, last] that has no entry."""
    for index, _ in walk(k, tree, first, last):
        if index != first:
            break
        first += 1
    return first if first <= last else None


@function(
    "int __xa_alloc(struct xarray *xa, u32 *id, void *entry, u64 limit, gfp_t gfp)",
)
def _xa_alloc(k: Kernel, tree: int, at: int, entry: int, limit: int, gfp: int) -> int:
    # struct xa_limit, two u32 by value, comes in one register: max, then min.
    last, first = limit & 0xFFFF_FFFF, limit >> 32
    if k.word(tree + FLAGS, 4) & ZERO_BUSY and not first:
        first = 1
    index = _free_index(k, tree, first, last)
    if index is None:
        return errno("EBUSY")
    k.store(at, index, 4)
    return _xa_insert(k, tree, index, entry, gfp)


@function(
    "int __xa_alloc_cyclic(struct xarray *xa, u32 *id, void *entry, u64 limit, u32 *next,"
    " gfp_t gfp)",
)
def _xa_alloc_cyclic(
    k: Kernel, tree: int, at: int, entry: int, limit: int, following: int, gfp: int
) -> int:
    last, first = limit & 0xFFFF_FFFF, limit >> 32
    start = max(first, k.word(following, 4))
    result = _xa_alloc(k, tree, at, entry, start << 32 | last, gfp)
    wrapped = result == errno("EBUSY") and start > first
    if wrapped:
        result = _xa_alloc(k, tree, at, entry, first << 32 | last, gfp)
    if result == 0:
        k.store(following, k.word(at, 4) + 1, 4)
    return 1 if wrapped and result == 0 else result


def _find(k: Kernel, tree: int, at: int, first: int, last: int, mark: int) -> int:
    for index, entry in _chosen(k, tree, first, last, mark):
        k.store(at, index)
        return entry
    return 0


@function(
    "void *xa_find(struct xarray *xa, unsigned long *index, unsigned long max, u32 filter)",
)
def _xa_find(k: Kernel, tree: int, at: int, last: int, mark: int) -> int:
    return _find(k, tree, at, k.word(at), last, mark)


@function(
    "void *xa_find_after(struct xarray *xa, unsigned long *index, unsigned long max, u32 filter)",
)
def _xa_find_after(k: Kernel, tree: int, at: int, last: int, mark: int) -> int:
    return _find(k, tree, at, k.word(at) + 1, last, mark) if k.word(at) < LIMIT else 0


@function(
    "unsigned int xa_extract(struct xarray *xa, void **dst, unsigned long start,"
    " unsigned long max, unsigned int n, u32 filter)"
)
def _xa_extract(k: Kernel, tree: int, dst: int, first: int, last: int, most: int, mark: int) -> int:
    found = 0
    for _, entry in _chosen(k, tree, first, last, mark):
        if found == most:
            break
        k.store(dst + 8 * found, entry)
        found += 1
    return found


@function("void xa_destroy(struct xarray *xa)")
def _xa_destroy(k: Kernel, tree: int) -> None:
    clear(k, tree)


def clear(k: Kernel, tree: int) -> None:
    """Take every entry out."""
    for index, _ in walk(k, tree):
        store(k, tree, index, 0)


@function(
    "void xa_set_mark(struct xarray *xa, unsigned long index, u32 mark)",
    "void __xa_set_mark(struct xarray *xa, unsigned long index, u32 mark)",
)
def _xa_set_mark(k: Kernel, tree: int, index: int, mark: int) -> None:
    set_mark(k, tree, index, mark, on=True)


@function(
    "void xa_clear_mark(struct xarray *xa, unsigned long index, u32 mark)",
    "void __xa_clear_mark(struct xarray *xa, unsigned long index, u32 mark)",
)
def _xa_clear_mark(k: Kernel, tree: int, index: int, mark: int) -> None:
    set_mark(k, tree, index, mark, on=False)


@function("bool xa_get_mark(struct xarray *xa, unsigned long index, u32 mark)")
def _xa_get_mark(k: Kernel, tree: int, index: int, mark: int) -> int:
    return int(marked(k, tree, index, mark))


# Radix trees -------------------------------------------------------------------------------


@function("int radix_tree_insert(struct radix_tree_root *root, unsigned long index, void *item)")
def _radix_tree_insert(k: Kernel, tree: int, index: int, item: int) -> int:
    if load(k, tree, index):
        return errno("EEXIST")
    try:
        store(k, tree, index, item)
    except MemoryError:
        return errno("ENOMEM")
    return 0


@function("void *radix_tree_lookup(const struct radix_tree_root *root, unsigned long index)")
def _radix_tree_lookup(k: Kernel, tree: int, index: int) -> int:
    return load(k, tree, index)


@function("void **radix_tree_lookup_slot(const struct radix_tree_root *r, unsigned long index)")
def _radix_tree_lookup_slot(k: Kernel, tree: int, index: int) -> int:
    return slot(k, tree, index)


@function("void *radix_tree_delete(struct radix_tree_root *root, unsigned long index)")
def _radix_tree_delete(k: Kernel, tree: int, index: int) -> int:
    return store(k, tree, index, 0)


@function(
    "void *radix_tree_delete_item(struct radix_tree_root *root, unsigned long index, void *item)"
)
def _radix_tree_delete_item(k: Kernel, tree: int, index: int, item: int) -> int:
    found = load(k, tree, index)
    return store(k, tree, index, 0) if not item or found == item else 0


@function(
    "unsigned int radix_tree_gang_lookup(const struct radix_tree_root *root, void **results,"
    " unsigned long first_index, unsigned int max_items)"
)
def _radix_tree_gang_lookup(k: Kernel, tree: int, results: int, first: int, most: int) -> int:
    return _xa_extract(k, tree, results, first, LIMIT, most, XA_PRESENT)


@function(
    "unsigned int radix_tree_gang_lookup_tag(const struct radix_tree_root *root, void **results,"
    " unsigned long first_index, unsigned int max_items, unsigned int tag)"
)
def _radix_tree_gang_lookup_tag(
    k: Kernel, tree: int, results: int, first: int, most: int, tag: int
) -> int:
    return _xa_extract(k, tree, results, first, LIMIT, most, tag)


@function(
    "void *radix_tree_tag_set(struct radix_tree_root *root, unsigned long index, unsigned int tag)"
)
def _radix_tree_tag_set(k: Kernel, tree: int, index: int, tag: int) -> int:
    set_mark(k, tree, index, tag, on=True)
    return load(k, tree, index)


@function(
    "void *radix_tree_tag_clear(struct radix_tree_root *root, unsigned long index,"
    " unsigned int tag)"
)
def _radix_tree_tag_clear(k: Kernel, tree: int, index: int, tag: int) -> int:
    set_mark(k, tree, index, tag, on=False)
    return load(k, tree, index)


@function(
    "int radix_tree_tag_get(const struct radix_tree_root *root, unsigned long index,"
    " unsigned int tag)"
)
def _radix_tree_tag_get(k: Kernel, tree: int, index: int, tag: int) -> int:
    return int(marked(k, tree, index, tag))


@function("int radix_tree_tagged(const struct radix_tree_root *root, unsigned int tag)")
def _radix_tree_tagged(k: Kernel, tree: int, tag: int) -> int:
    return int(tree_marked(k, tree, tag))


@function(
    "int radix_tree_preload(gfp_t gfp_mask)",
    "int radix_tree_maybe_preload(gfp_t gfp_mask)",
    "void idr_preload(gfp_t gfp_mask)",
)
def _preload(_k: Kernel, _gfp: int) -> int:
    return 0


# IDR: struct idr adds the lowest number and the next one -----------------------------------

declare("idr", "idr_rt:xarray idr_base:u32 idr_next:u32")
IDR_BASE, IDR_NEXT = offset_of("idr", "idr_base"), offset_of("idr", "idr_next")


def _idr_alloc(k: Kernel, idr: int, item: int, first: int, last: int) -> int:
    base = k.word(idr + IDR_BASE, 4)
    index = _free_index(k, idr, max(first - base, 0), last - base)
    if index is None:
        return errno("ENOSPC")
    try:
        # A number may be taken for nothing yet: NULL reads back, and is not free.
        store(k, idr, index, item or ZERO_ENTRY)
    except MemoryError:
        return errno("ENOMEM")
    return index + base


@function("int idr_alloc(struct idr *idr, void *ptr, int start, int end, gfp_t gfp)")
def _idr_alloc_range(k: Kernel, idr: int, item: int, start: int, end: int, _gfp: int) -> int:
    if start < 0:
        return errno("EINVAL")
    return _idr_alloc(k, idr, item, start, end - 1 if end > 0 else INT_MAX)


@function(
    "int idr_alloc_u32(struct idr *idr, void *ptr, u32 *nextid, unsigned long max, gfp_t gfp)"
)
def _idr_alloc_u32(k: Kernel, idr: int, item: int, at: int, last: int, _gfp: int) -> int:
    found = _idr_alloc(k, idr, item, k.word(at, 4), last)
    if found < 0:
        return found
    k.store(at, found, 4)
    return 0


@function("int idr_alloc_cyclic(struct idr *idr, void *ptr, int start, int end, gfp_t gfp)")
def _idr_alloc_cyclic(k: Kernel, idr: int, item: int, start: int, end: int, _gfp: int) -> int:
    last = end - 1 if end > 0 else INT_MAX
    following = k.word(idr + IDR_NEXT, 4)
    found = _idr_alloc(k, idr, item, max(following, start), last)
    if found == errno("ENOSPC") and following > start:
        found = _idr_alloc(k, idr, item, start, last)
    if found >= 0:
        k.store(idr + IDR_NEXT, found + 1, 4)
    return found


@function("void *idr_find(const struct idr *idr, unsigned long id)")
def _idr_find(k: Kernel, idr: int, number: int) -> int:
    index = number - k.word(idr + IDR_BASE, 4)
    return _visible(load(k, idr, index)) if index >= 0 else 0


@function("void *idr_remove(struct idr *idr, unsigned long id)")
def _idr_remove(k: Kernel, idr: int, number: int) -> int:
    index = number - k.word(idr + IDR_BASE, 4)
    return _visible(store(k, idr, index, 0)) if index >= 0 else 0


@function("void *idr_replace(struct idr *idr, void *ptr, unsigned long id)")
def _idr_replace(k: Kernel, idr: int, item: int, number: int) -> int:
    index = number - k.word(idr + IDR_BASE, 4)
    if index < 0 or not load(k, idr, index):
        return errno("ENOENT")
    return _visible(store(k, idr, index, item or ZERO_ENTRY))


@function("int idr_for_each(const struct idr *idr, void *fn, void *data)")
def _idr_for_each(k: Kernel, idr: int, func: int, argument: int) -> int:
    base = k.word(idr + IDR_BASE, 4)
    for index, entry in walk(k, idr):
        result = k.call(func, index + base, _visible(entry), argument) & 0xFFFF_FFFF
        if result:
            return result
    return 0


def _idr_next(k: Kernel, idr: int, first: int) -> tuple[int, int]:
    base = k.word(idr + IDR_BASE, 4)
    for index, entry in walk(k, idr, max(first - base, 0)):
        if entry != ZERO_ENTRY:
            return index + base, entry
    return 0, 0


@function("void *idr_get_next(struct idr *idr, int *nextid)")
def _idr_get_next(k: Kernel, idr: int, at: int) -> int:
    number, entry = _idr_next(k, idr, k.word(at, 4))
    if entry:
        k.store(at, number, 4)
    return entry


@function("void *idr_get_next_ul(struct idr *idr, unsigned long *nextid)")
def _idr_get_next_ul(k: Kernel, idr: int, at: int) -> int:
    number, entry = _idr_next(k, idr, k.word(at))
    if entry:
        k.store(at, number)
    return entry


@function("void idr_destroy(struct idr *idr)")
def _idr_destroy(k: Kernel, idr: int) -> None:
    clear(k, idr)


# IDA: a tree of bitmaps of 1024 numbers ----------------------------------------------------

declare("ida_bitmap", "bitmap:u64[16]")
BITMAP_BITS, BITMAP_SIZE = 1024, layout("ida_bitmap").size


@function("int ida_alloc_range(struct ida *ida, unsigned int min, unsigned int max, gfp_t gfp)")
def _ida_alloc_range(k: Kernel, ida: int, first: int, last: int, _gfp: int) -> int:
    if first > INT_MAX:
        return errno("ENOSPC")
    last = min(last, INT_MAX)
    for index in range(first // BITMAP_BITS, last // BITMAP_BITS + 1):
        bitmap = load(k, ida, index)
        taken = k.word(bitmap, BITMAP_SIZE) if bitmap else 0
        free = ~taken >> max(first - index * BITMAP_BITS, 0)
        bit = max(first - index * BITMAP_BITS, 0) + (free & -free).bit_length() - 1
        number = index * BITMAP_BITS + bit
        if bit >= BITMAP_BITS:
            continue
        if number > last:
            break
        if not bitmap:
            bitmap = duplicate(k, bytes(BITMAP_SIZE), 0)
            if not bitmap:
                return errno("ENOMEM")
            store(k, ida, index, bitmap)
        k.store(bitmap, taken | 1 << bit, BITMAP_SIZE)
        return number
    return errno("ENOSPC")


@function("void ida_free(struct ida *ida, unsigned int id)")
def _ida_free(k: Kernel, ida: int, number: int) -> None:
    index, bit = divmod(number, BITMAP_BITS)
    bitmap = load(k, ida, index)
    taken = k.word(bitmap, BITMAP_SIZE) if bitmap else 0
    if not taken >> bit & 1:
        stop(k, f"ida_free called for id={number} which is not allocated.")
    taken ^= 1 << bit
    k.store(bitmap, taken, BITMAP_SIZE)
    if not taken:
        store(k, ida, index, 0)
        kfree(k, bitmap)


@function("void ida_destroy(struct ida *ida)")
def _ida_destroy(k: Kernel, ida: int) -> None:
    for index, bitmap in walk(k, ida):
        store(k, ida, index, 0)
        kfree(k, bitmap)
