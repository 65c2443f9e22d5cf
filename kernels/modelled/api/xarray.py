# SPDX-License-Identifier: GPL-2.0-or-later
"""XArrays and radix trees (lib/xarray.c, lib/radix-tree.c): two interfaces to one tree."""

from __future__ import annotations

from kernels.modelled.api.common import errno
from kernels.modelled.api.tree import (
    FLAGS,
    LIMIT,
    NODE_TAG,
    TRACK_FREE,
    XA_PRESENT,
    ZERO_BUSY,
    ZERO_ENTRY,
    chosen,
    clear,
    free_index,
    load,
    marked,
    set_mark,
    slot,
    store,
    tree_marked,
    visible,
)
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import POINTER
from kernels.modelled.table import function

# XArray ------------------------------------------------------------------------------------


def _error(name: str) -> int:
    """Return xa_mk_internal(errno): the error entry of the advanced functions."""
    return errno(name) << 2 | NODE_TAG


@function("void *xa_load(struct xarray *xa, unsigned long index)")
def _xa_load(k: Kernel, tree: int, index: int) -> int:
    return visible(load(k, tree, index))


@function(
    "void *xa_store(struct xarray *xa, unsigned long index, void *entry, gfp_t gfp)",
    "void *__xa_store(struct xarray *xa, unsigned long index, void *entry, gfp_t gfp)",
)
def _xa_store(k: Kernel, tree: int, index: int, entry: int, _gfp: int) -> int:
    if k.word(tree + FLAGS(k), 4) & TRACK_FREE and not entry:
        entry = ZERO_ENTRY
    try:
        return visible(store(k, tree, index, entry))
    except MemoryError:
        return _error("ENOMEM")


@function(
    "void *xa_erase(struct xarray *xa, unsigned long index)",
    "void *__xa_erase(struct xarray *xa, unsigned long index)",
)
def _xa_erase(k: Kernel, tree: int, index: int) -> int:
    return visible(store(k, tree, index, 0))


@function(
    "void *__xa_cmpxchg(struct xarray *xa, unsigned long index, void *old, void *entry, gfp_t g)",
)
def _xa_cmpxchg(k: Kernel, tree: int, index: int, old: int, entry: int, gfp: int) -> int:
    found = visible(load(k, tree, index))
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


@function(
    "int __xa_alloc(struct xarray *xa, u32 *id, void *entry, u64 limit, gfp_t gfp)",
)
def _xa_alloc(k: Kernel, tree: int, at: int, entry: int, limit: int, gfp: int) -> int:
    # struct xa_limit, two u32 by value, comes in one register: max, then min.
    last, first = limit & 0xFFFF_FFFF, limit >> 32
    if k.word(tree + FLAGS(k), 4) & ZERO_BUSY and not first:
        first = 1
    index = free_index(k, tree, first, last)
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
    for index, entry in chosen(k, tree, first, last, mark):
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
    for _, entry in chosen(k, tree, first, last, mark):
        if found == most:
            break
        k.store(dst + POINTER * found, entry)
        found += 1
    return found


@function("void xa_destroy(struct xarray *xa)")
def _xa_destroy(k: Kernel, tree: int) -> None:
    clear(k, tree)


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
