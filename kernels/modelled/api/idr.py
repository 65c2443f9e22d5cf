# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers that are handed out (lib/idr.c).

An IDR is a radix tree in which mark 0 says that something below is free; here it says that
something is taken, and nothing inlined looks at it. An IDA is a tree of bitmaps.
"""

from __future__ import annotations

from kernels.modelled.api.common import INT_MAX, errno, stop
from kernels.modelled.api.memory import duplicate, kfree
from kernels.modelled.api.tree import ZERO_ENTRY, clear, free_index, load, store, visible, walk
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import offset_of, size_of
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import function

# IDR: struct idr adds the lowest number and the next one -----------------------------------

declare("idr", "idr_rt idr_base idr_next")
IDR_BASE, IDR_NEXT = offset_of("idr", "idr_base"), offset_of("idr", "idr_next")


def _idr_alloc(k: Kernel, idr: int, item: int, first: int, last: int) -> int:
    base = k.word(idr + IDR_BASE(k), 4)
    index = free_index(k, idr, max(first - base, 0), last - base)
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
    following = k.word(idr + IDR_NEXT(k), 4)
    found = _idr_alloc(k, idr, item, max(following, start), last)
    if found == errno("ENOSPC") and following > start:
        found = _idr_alloc(k, idr, item, start, last)
    if found >= 0:
        k.store(idr + IDR_NEXT(k), found + 1, 4)
    return found


@function("void *idr_find(const struct idr *idr, unsigned long id)")
def _idr_find(k: Kernel, idr: int, number: int) -> int:
    index = number - k.word(idr + IDR_BASE(k), 4)
    return visible(load(k, idr, index)) if index >= 0 else 0


@function("void *idr_remove(struct idr *idr, unsigned long id)")
def _idr_remove(k: Kernel, idr: int, number: int) -> int:
    index = number - k.word(idr + IDR_BASE(k), 4)
    return visible(store(k, idr, index, 0)) if index >= 0 else 0


@function("void *idr_replace(struct idr *idr, void *ptr, unsigned long id)")
def _idr_replace(k: Kernel, idr: int, item: int, number: int) -> int:
    index = number - k.word(idr + IDR_BASE(k), 4)
    if index < 0 or not load(k, idr, index):
        return errno("ENOENT")
    return visible(store(k, idr, index, item or ZERO_ENTRY))


@function("int idr_for_each(const struct idr *idr, void *fn, void *data)")
def _idr_for_each(k: Kernel, idr: int, func: int, argument: int) -> int:
    base = k.word(idr + IDR_BASE(k), 4)
    for index, entry in walk(k, idr):
        result = k.call(func, index + base, visible(entry), argument) & 0xFFFF_FFFF
        if result:
            return result
    return 0


def _idr_next(k: Kernel, idr: int, first: int) -> tuple[int, int]:
    base = k.word(idr + IDR_BASE(k), 4)
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

declare("ida_bitmap", "bitmap")
BITMAP_BITS, BITMAP_SIZE = 1024, size_of("ida_bitmap")


@function("int ida_alloc_range(struct ida *ida, unsigned int min, unsigned int max, gfp_t gfp)")
def _ida_alloc_range(k: Kernel, ida: int, first: int, last: int, _gfp: int) -> int:
    if first > INT_MAX:
        return errno("ENOSPC")
    last = min(last, INT_MAX)
    for index in range(first // BITMAP_BITS, last // BITMAP_BITS + 1):
        bitmap = load(k, ida, index)
        taken = k.word(bitmap, BITMAP_SIZE(k)) if bitmap else 0
        free = ~taken >> max(first - index * BITMAP_BITS, 0)
        bit = max(first - index * BITMAP_BITS, 0) + (free & -free).bit_length() - 1
        number = index * BITMAP_BITS + bit
        if bit >= BITMAP_BITS:
            continue
        if number > last:
            break
        if not bitmap:
            bitmap = duplicate(k, bytes(BITMAP_SIZE(k)), 0)
            if not bitmap:
                return errno("ENOMEM")
            store(k, ida, index, bitmap)
        k.store(bitmap, taken | 1 << bit, BITMAP_SIZE(k))
        return number
    return errno("ENOSPC")


@function("void ida_free(struct ida *ida, unsigned int id)")
def _ida_free(k: Kernel, ida: int, number: int) -> None:
    index, bit = divmod(number, BITMAP_BITS)
    bitmap = load(k, ida, index)
    taken = k.word(bitmap, BITMAP_SIZE(k)) if bitmap else 0
    if not taken >> bit & 1:
        stop(k, f"ida_free called for id={number} which is not allocated.")
    taken ^= 1 << bit
    k.store(bitmap, taken, BITMAP_SIZE(k))
    if not taken:
        store(k, ida, index, 0)
        kfree(k, bitmap)


@function("void ida_destroy(struct ida *ida)")
def _ida_destroy(k: Kernel, ida: int) -> None:
    for index, bitmap in walk(k, ida):
        store(k, ida, index, 0)
        kfree(k, bitmap)
