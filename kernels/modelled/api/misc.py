# SPDX-License-Identifier: GPL-2.0-or-later
"""Small things of many places: who may do what, counts with locks, checksums, pages by struct page."""

from __future__ import annotations

from kernels.modelled.api.common import nothing
from kernels.modelled.api.locks import mutex_lock, spin_lock
from kernels.modelled.api.memory import GFP_ZERO, get_free_pages, kfree, kmalloc
from kernels.modelled.api.scatterlist import page_address, page_of
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import size_of
from kernels.modelled.table import data, function

data("init_user_ns", size_of("user_namespace"))
data("nop_mnt_idmap", size_of("mnt_idmap"))
data("USER_PTR_MAX", 8, fill=lambda k: ((1 << 47) - k.memory.page_size).to_bytes(8, "little"))
data("hugetlb_optimize_vmemmap_key", 16)


@function(
    "bool capable(int cap)",
    "bool ns_capable(struct user_namespace *ns, int cap)",
    "int net_ratelimit(void)",
)
def _yes(_k: Kernel, *_args: int) -> int:
    return 1


nothing(
    "void fput(struct file *file)",
    "void blk_start_plug(struct blk_plug *plug)",
    "void blk_finish_plug(struct blk_plug *plug)",
    "void __put_cred(struct cred *cred)",
    "void flush_dcache_page(struct page *page)",
    "void flush_dcache_folio(struct folio *folio)",
)


# Ids of the one user name space ------------------------------------------------------------------


@function(
    "u32 make_kuid(struct user_namespace *ns, uid_t uid)",
    "u32 make_kgid(struct user_namespace *ns, gid_t gid)",
    "u32 from_kuid(struct user_namespace *ns, u32 uid)",
    "u32 from_kgid(struct user_namespace *ns, u32 gid)",
    "u32 from_kuid_munged(struct user_namespace *ns, u32 uid)",
    "u32 from_kgid_munged(struct user_namespace *ns, u32 gid)",
)
def _same_id(_k: Kernel, _space: int, number: int) -> int:
    return number


# Counts whose last reference takes a lock (lib/refcount.c) ------------------------------------------


@function("bool refcount_dec_and_lock(refcount_t *r, spinlock_t *lock)")
def _refcount_dec_and_lock(k: Kernel, count: int, lock: int) -> int:
    left = k.word(count, 4) - 1
    if left == 0:
        spin_lock(k, lock)
    k.store(count, left, 4)
    return int(left == 0)


@function("bool refcount_dec_and_mutex_lock(refcount_t *r, struct mutex *lock)")
def _refcount_dec_and_mutex_lock(k: Kernel, count: int, lock: int) -> int:
    left = k.word(count, 4) - 1
    if left == 0:
        mutex_lock(k, lock)
    k.store(count, left, 4)
    return int(left == 0)


@function("bool refcount_dec_not_one(refcount_t *r)")
def _refcount_dec_not_one(k: Kernel, count: int) -> int:
    value = k.word(count, 4)
    if value == 1:
        return 0
    k.store(count, value - 1, 4)
    return 1


@function("bool llist_add_batch(void *new_first, void *new_last, struct llist_head *head)")
def _llist_add_batch(k: Kernel, first: int, last: int, head: int) -> int:
    before = k.word(head)
    k.store(last, before)
    k.store(head, first)
    return int(before == 0)


# Bitmaps and checksums -------------------------------------------------------------------------------


@function("unsigned long *bitmap_zalloc(unsigned int nbits, gfp_t flags)")
def _bitmap_zalloc(k: Kernel, bits: int, gfp: int) -> int:
    return kmalloc(k, (bits + 63) // 64 * 8, gfp | GFP_ZERO)


@function("unsigned long *bitmap_alloc(unsigned int nbits, gfp_t flags)")
def _bitmap_alloc(k: Kernel, bits: int, gfp: int) -> int:
    return kmalloc(k, (bits + 63) // 64 * 8, gfp)


@function("void bitmap_free(const unsigned long *bitmap)")
def _bitmap_free(k: Kernel, bitmap: int) -> None:
    kfree(k, bitmap)


@function("__wsum csum_partial(const void *buff, int len, __wsum sum)")
def _csum_partial(k: Kernel, buffer: int, size: int, start: int) -> int:
    total, done = start, 0
    for _, piece in k.pieces(buffer, size):
        low = done % 2  # of a word, where the first byte of this piece is its high one
        total += sum(piece[low::2]) + (sum(piece[1 - low :: 2]) << 8)
        done += len(piece)
    while total >> 32:
        total = (total & 0xFFFF_FFFF) + (total >> 32)
    return total


# Pages by their struct page: only its address means something ----------------------------------------


@function(
    "struct page *alloc_pages_noprof(gfp_t gfp, unsigned int order)",
)
def _alloc_pages(k: Kernel, gfp: int, order: int) -> int:
    found = get_free_pages(k, gfp, order)
    return page_of(k, found) if found else 0


@function(
    "struct page *__alloc_pages_noprof(gfp_t gfp, unsigned int order, int nid, nodemask_t *mask)"
)
def _alloc_pages_node(k: Kernel, gfp: int, order: int, _node: int, _mask: int) -> int:
    return _alloc_pages(k, gfp, order)


@function("void __free_pages(struct page *page, unsigned int order)")
def _free_pages(k: Kernel, page: int, _order: int) -> None:
    kfree(k, page_address(k, page))


@function("struct page *vmalloc_to_page(const void *addr)")
def _vmalloc_to_page(k: Kernel, address: int) -> int:
    found = k.memory.translate(address & -k.memory.page_size)
    return page_of(k, k.memory.direct_map.start + found.address) if found else 0
