# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that modules ask for (mm/slub.c, mm/slab_common.c, mm/util.c, mm/vmalloc.c, mm/percpu.c).

All of it comes from the kernel's heap, so that what a failed load leaves behind can be
taken back. Giving back what is not memory, or no longer is, stops the guest with the name
of who did it: the kernel might go on for hours before it noticed.

A slab cache is 40 bytes of guest memory that only the entries here look into.
"""

from __future__ import annotations

import struct

from allocator import AllocationError
from allocator.types import KIB
from kernels.modelled.api.common import INT_MAX, copy, fill, pieces, stop, text
from kernels.modelled.heap import ZERO_SIZE_PTR
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import offset_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import data, function

GFP_ZERO = 1 << 8  # ___GFP_ZERO_BIT of include/linux/gfp_types.h, 6.12
# MAX_PAGE_ORDER by the bytes of a page (CONFIG_ARCH_FORCE_MAX_ORDER of arm64 and mips).
ORDERS = {4 * KIB: 10, 16 * KIB: 11, 64 * KIB: 13}
LEAST_ALIGN = 8
PCPU_MIN_UNIT_SIZE = 32 * KIB
declare("kmem_cache_args", "align ctor")
ARGS_ALIGN, ARGS_CTOR = (offset_of("kmem_cache_args", member) for member in ("align", "ctor"))

declare("sysinfo", "totalram freeram mem_unit")

# Our struct kmem_cache: object size, alignment, constructor, name, live objects.
_CACHE = struct.Struct("<QQQQq")


def max_page_order(k: Kernel) -> int:
    """Return the order of the largest run of pages (MAX_PAGE_ORDER)."""
    return ORDERS[k.memory.page_size]


def kmalloc_max_size(k: Kernel) -> int:
    """Return the bytes of the largest object (KMALLOC_MAX_SIZE): a run of MAX_PAGE_ORDER."""
    return k.memory.page_size << max_page_order(k)


def kmalloc(k: Kernel, size: int, gfp: int) -> int:
    """Return `size` bytes of the heap, zeroed if `gfp` says so; 0 where kmalloc would fail."""
    if size > kmalloc_max_size(k):
        return 0
    return k.heap.alloc(size, zero=bool(gfp & GFP_ZERO))


def duplicate(k: Kernel, contents: bytes, gfp: int) -> int:
    """Return new memory that holds `contents`; 0 where kmalloc would fail."""
    found = kmalloc(k, len(contents), gfp & ~GFP_ZERO)
    if found and contents:
        k.memory.write(found, contents)
    return found


def kfree(k: Kernel, address: int) -> None:
    """Free what kmalloc returned, or stop the guest."""
    if address in (0, ZERO_SIZE_PTR):
        return
    size = k.heap.size(address)
    if size == 0:
        stop(k, f"kfree of {address:#x}: never allocated, or freed before")
    if address not in k.memory.direct_map and size <= k.memory.large_size:
        stop(k, f"kfree of {address:#x}: vmalloc memory, which vfree frees")
    k.heap.free(address)


def kvfree(k: Kernel, address: int) -> None:
    """Free what kvmalloc returned, or stop the guest."""
    if not k.heap.free(address):
        stop(k, f"kvfree of {address:#x}: never allocated, or freed before")


# kmalloc -----------------------------------------------------------------------------------


@function(
    "void *__kmalloc_noprof(size_t size, gfp_t flags)",
    "void *__kmalloc_large_noprof(size_t size, gfp_t flags)",
)
def _kmalloc(k: Kernel, size: int, gfp: int) -> int:
    return kmalloc(k, size, gfp)


@function("void *__kmalloc_large_node_noprof(size_t size, gfp_t flags, int node)")
def _kmalloc_large_node(k: Kernel, size: int, gfp: int, _node: int) -> int:
    return kmalloc(k, size, gfp)


@function("void *__kmalloc_node_noprof(size_t size, kmem_buckets *b, gfp_t flags, int node)")
def _kmalloc_node(k: Kernel, size: int, _buckets: int, gfp: int, _node: int) -> int:
    return kmalloc(k, size, gfp)


@function(
    "void *__kmalloc_node_track_caller_noprof(size_t size, kmem_buckets *b, gfp_t flags, int node,"
    " unsigned long caller)"
)
def _kmalloc_node_track_caller(
    k: Kernel, size: int, _buckets: int, gfp: int, _node: int, _caller: int
) -> int:
    return kmalloc(k, size, gfp)


@function("void *__kmalloc_cache_noprof(struct kmem_cache *s, gfp_t flags, size_t size)")
def _kmalloc_cache(k: Kernel, _cache: int, gfp: int, size: int) -> int:
    return kmalloc(k, size, gfp)


@function(
    "void *__kmalloc_cache_node_noprof(struct kmem_cache *s, gfp_t flags, int node, size_t size)"
)
def _kmalloc_cache_node(k: Kernel, _cache: int, gfp: int, _node: int, size: int) -> int:
    return kmalloc(k, size, gfp)


@function("void *krealloc_noprof(const void *objp, size_t new_size, gfp_t flags)")
def _krealloc(k: Kernel, old: int, size: int, gfp: int) -> int:
    if size == 0:
        kfree(k, old)
        return ZERO_SIZE_PTR
    if old in (0, ZERO_SIZE_PTR):
        return kmalloc(k, size, gfp)
    room = k.heap.size(old)
    if room == 0:
        stop(k, f"krealloc of {old:#x}: never allocated, or freed before")
    if room >= size:
        if gfp & GFP_ZERO:
            fill(k, old + size, room - size, 0)
        return old
    new = kmalloc(k, size, gfp)
    if new:
        copy(k, new, old, room)
        kfree(k, old)
    return new


@function("size_t ksize(const void *objp)")
def _ksize(k: Kernel, address: int) -> int:
    return k.heap.size(address)


@function("size_t kmalloc_size_roundup(size_t size)")
def _kmalloc_size_roundup(k: Kernel, size: int) -> int:
    if size == 0 or size > kmalloc_max_size(k):
        return size
    buckets = _buckets(k)
    if size > buckets[-1]:
        return 1 << (size - 1).bit_length()
    return min(room for room in buckets if room >= size)


@function("void kfree(const void *objp)", "void kfree_const(const void *x)")
def _kfree(k: Kernel, address: int) -> None:
    kfree(k, address)


@function("void kfree_sensitive(const void *objp)")
def _kfree_sensitive(k: Kernel, address: int) -> None:
    fill(k, address, k.heap.size(address), 0)
    kfree(k, address)


@function("void *kmemdup_noprof(const void *src, size_t len, gfp_t gfp)")
def _kmemdup(k: Kernel, src: int, size: int, gfp: int) -> int:
    return duplicate(k, k.memory.read(src, size), gfp) if size <= kmalloc_max_size(k) else 0


@function(
    "void *kmemdup_array(const void *src, size_t count, size_t element_size, gfp_t gfp)",
)
def _kmemdup_array(k: Kernel, src: int, count: int, size: int, gfp: int) -> int:
    return _kmemdup(k, src, count * size, gfp)


@function("char *kmemdup_nul(const char *s, size_t len, gfp_t gfp)")
def _kmemdup_nul(k: Kernel, src: int, size: int, gfp: int) -> int:
    return duplicate(k, k.memory.read(src, size) + b"\0", gfp) if src else 0


@function(
    "char *kstrdup(const char *s, gfp_t gfp)",
    "char *kstrdup_noprof(const char *s, gfp_t gfp)",
    "const char *kstrdup_const(const char *s, gfp_t gfp)",
)
def _kstrdup(k: Kernel, src: int, gfp: int) -> int:
    return duplicate(k, text(k, src) + b"\0", gfp) if src else 0


@function("char *kstrndup(const char *s, size_t max, gfp_t gfp)")
def _kstrndup(k: Kernel, src: int, most: int, gfp: int) -> int:
    return duplicate(k, text(k, src, most) + b"\0", gfp) if src else 0


# Slab caches -------------------------------------------------------------------------------


def _cache(k: Kernel, cache: int) -> tuple[int, int, int, int, int]:
    size, align, ctor, name, live = _CACHE.unpack(k.memory.read(cache, _CACHE.size))
    return size, align, ctor, name, live


def _count(k: Kernel, cache: int, change: int) -> None:
    at = cache + _CACHE.size - 8
    k.store(at, k.word(at) + change)


# enum kmalloc_cache_type has four kinds where there are ZONE_DMA and memory cgroups, and
# KMALLOC_SHIFT_HIGH + 1 sizes each: none, 96, 192, then powers of two to two pages.
_KINDS = 4
_TITLE = 16  # bytes


def _buckets(k: Kernel) -> tuple[int, ...]:
    """Return the sizes of the caches of kmalloc, by their numbers; the largest has two pages."""
    return 96, 192, *(1 << shift for shift in range(3, k.memory.page_size.bit_length() + 1))


def _table_size(k: Kernel) -> int:
    return _KINDS * (1 + len(_buckets(k))) * 8


def _kmalloc_caches(k: Kernel) -> bytes:
    """Return the table, then the caches that it points at, then their names."""
    buckets = _buckets(k)
    caches = k.address("kmalloc_caches") + _table_size(k)
    titles = caches + len(buckets) * _CACHE.size
    kind = b"".join(
        (caches + index * _CACHE.size).to_bytes(8, "little") for index in range(len(buckets))
    )
    return b"".join(
        (
            (bytes(8) + kind) * _KINDS,
            *(
                _CACHE.pack(size, LEAST_ALIGN, 0, titles + index * _TITLE, 0)
                for index, size in enumerate(buckets)
            ),
            *((b"kmalloc-%d" % size).ljust(_TITLE, b"\0") for size in buckets),
        )
    )


data(
    "kmalloc_caches",
    lambda k: _table_size(k) + len(_buckets(k)) * (_CACHE.size + _TITLE),
    fill=_kmalloc_caches,
)


@function(
    "struct kmem_cache *__kmem_cache_create_args(const char *name, unsigned int object_size,"
    " struct kmem_cache_args *args, slab_flags_t flags)"
)
def _kmem_cache_create_args(k: Kernel, name: int, size: int, args: int, _flags: int) -> int:
    return create_cache(
        k,
        name,
        size,
        max(k.word(args + ARGS_ALIGN(k), 4), LEAST_ALIGN),
        k.word(args + ARGS_CTOR(k)),
    )


def create_cache(k: Kernel, name: int, size: int, align: int = LEAST_ALIGN, ctor: int = 0) -> int:
    """Return a new slab cache; 0 where there can be none."""
    if not name or size > kmalloc_max_size(k):
        return 0
    title = duplicate(k, text(k, name) + b"\0", 0)
    return duplicate(k, _CACHE.pack(size, align, ctor, title, 0), 0)


@function("void kmem_cache_destroy(struct kmem_cache *s)")
def destroy_cache(k: Kernel, cache: int) -> None:
    """Free a slab cache, and say so where objects of it still live."""
    if not cache:
        return
    _, _, _, name, live = _cache(k, cache)
    if live:
        title = text(k, name).decode("utf-8", "replace")
        k.print(
            f"kmem_cache_destroy {title}: Slab cache still has objects when called from"
            f" {k.caller()}\n".encode(),
            4,
        )
    kfree(k, name)
    kfree(k, cache)


@function("void *kmem_cache_alloc_noprof(struct kmem_cache *s, gfp_t flags)")
def cache_alloc(k: Kernel, cache: int, gfp: int) -> int:
    """Return an object of a slab cache, constructed; 0 without memory."""
    size, align, ctor, _, _ = _cache(k, cache)
    found = kmalloc(k, max(size, align), gfp)
    if found:
        _count(k, cache, 1)
        if ctor:
            k.call(ctor, found)
    return found


@function(
    "void *kmem_cache_alloc_lru_noprof(struct kmem_cache *s, struct list_lru *lru, gfp_t flags)"
)
def _kmem_cache_alloc_lru(k: Kernel, cache: int, _lru: int, gfp: int) -> int:
    return cache_alloc(k, cache, gfp)


@function("void *kmem_cache_alloc_node_noprof(struct kmem_cache *s, gfp_t flags, int node)")
def _kmem_cache_alloc_node(k: Kernel, cache: int, gfp: int, _node: int) -> int:
    return cache_alloc(k, cache, gfp)


@function("void kmem_cache_free(struct kmem_cache *s, void *x)")
def cache_free(k: Kernel, cache: int, address: int) -> None:
    """Give an object back to its slab cache, or stop the guest."""
    if not k.heap.size(address):
        name = text(k, _cache(k, cache)[3]).decode("utf-8", "replace")
        stop(k, f"kmem_cache_free of {address:#x} to {name}: no live object")
    kfree(k, address)
    _count(k, cache, -1)


@function("unsigned int kmem_cache_size(struct kmem_cache *s)")
def _kmem_cache_size(k: Kernel, cache: int) -> int:
    return _cache(k, cache)[0]


@function("int kmem_cache_shrink(struct kmem_cache *s)")
def _kmem_cache_shrink(_k: Kernel, _s: int) -> int:
    return 0


# Pages and virtually contiguous memory -----------------------------------------------------


@function(
    "unsigned long get_free_pages_noprof(gfp_t gfp_mask, unsigned int order)",
    "unsigned long __get_free_pages_noprof(gfp_t gfp_mask, unsigned int order)",
)
def get_free_pages(k: Kernel, gfp: int, order: int) -> int:
    """Return a run of pages; 0 where there is none, or there can be none."""
    return kmalloc(k, k.memory.page_size << order, gfp) if order <= max_page_order(k) else 0


@function("unsigned long get_zeroed_page_noprof(gfp_t gfp_mask)")
def _get_zeroed_page(k: Kernel, gfp: int) -> int:
    return kmalloc(k, k.memory.page_size, gfp | GFP_ZERO)


@function("void free_pages(unsigned long addr, unsigned int order)")
def _free_pages(k: Kernel, address: int, order: int) -> None:
    if address and (
        order > max_page_order(k) or k.heap.size(address) != k.memory.page_size << order
    ):
        stop(k, f"free_pages of {address:#x}, order {order}: no such run of pages")
    k.heap.free(address)


@function("void *vmalloc_noprof(unsigned long size)", "void *vzalloc_noprof(unsigned long size)")
def _vmalloc(k: Kernel, size: int) -> int:
    return k.heap.vmalloc(size)


@function("void *__vmalloc_noprof(unsigned long size, gfp_t gfp_mask)")
def _vmalloc_gfp(k: Kernel, size: int, _gfp: int) -> int:
    return k.heap.vmalloc(size)


@function("void *vmalloc_node_noprof(unsigned long size, int node)")
def _vmalloc_node(k: Kernel, size: int, _node: int) -> int:
    return k.heap.vmalloc(size)


@function(
    "void *vcalloc_noprof(size_t n, size_t size)",
)
def _vcalloc(k: Kernel, count: int, size: int) -> int:
    return k.heap.vmalloc(count * size)


@function("void vfree(const void *addr)", "void vfree_atomic(const void *addr)")
def _vfree(k: Kernel, address: int) -> None:
    if address and (address in k.memory.direct_map or not k.heap.free(address)):
        stop(k, f"vfree of {address:#x}: no vmalloc area, or freed before")


@function("bool is_vmalloc_addr(const void *x)")
def _is_vmalloc_addr(k: Kernel, address: int) -> int:
    return int(address in k.memory.address_map.vmalloc)


@function("void *__kvmalloc_node_noprof(size_t size, kmem_buckets *b, gfp_t flags, int node)")
def _kvmalloc_node(k: Kernel, size: int, _buckets: int, gfp: int, _node: int) -> int:
    if size > INT_MAX:
        return 0
    if size > kmalloc_max_size(k):
        return k.heap.vmalloc(size)
    return kmalloc(k, size, gfp)


@function("void *kvrealloc_noprof(const void *p, size_t size, gfp_t flags)")
def _kvrealloc(k: Kernel, old: int, size: int, gfp: int) -> int:
    room = k.heap.size(old)
    if old and room >= size:
        return old
    new = _kvmalloc_node(k, size, 0, gfp, -1)
    if new and room:
        copy(k, new, old, room)
        kvfree(k, old)
    return new


@function("void kvfree(const void *addr)")
def _kvfree(k: Kernel, address: int) -> None:
    kvfree(k, address)


@function("void kvfree_sensitive(const void *addr, size_t len)")
def _kvfree_sensitive(k: Kernel, address: int, size: int) -> None:
    if address not in (0, ZERO_SIZE_PTR):
        fill(k, address, size, 0)
        kvfree(k, address)


@function("void si_meminfo(struct sysinfo *val)")
def _si_meminfo(k: Kernel, info: int) -> None:
    page = k.memory.page_size
    pages = k.memory.physical.size // page
    found = view(k, "sysinfo", info)
    k.memory.write(info, bytes(found.size))
    for member, value in (("totalram", pages), ("freeram", pages), ("mem_unit", page)):
        found.put(member, value)


# Per-cpu memory ----------------------------------------------------------------------------


@function("void __percpu *pcpu_alloc_noprof(size_t size, size_t align, bool reserved, gfp_t gfp)")
def _pcpu_alloc(k: Kernel, size: int, align: int, _reserved: int, _gfp: int) -> int:
    if not 0 < size <= PCPU_MIN_UNIT_SIZE or align > k.memory.page_size:
        return 0
    try:
        return k.percpu.alloc(size, align)
    except AllocationError:
        return 0


@function("void free_percpu(void __percpu *ptr)")
def free_percpu(k: Kernel, base: int) -> None:
    """Free per-cpu memory, or stop the guest."""
    if base:
        try:
            k.percpu.free(base)
        except KeyError:
            stop(k, f"free_percpu of {base:#x}: never allocated, or freed before")


# Copies to and from user memory (mm/usercopy.c) --------------------------------------------------


@function("void __check_object_size(const void *ptr, unsigned long n, bool to_user)")
def _check_object_size(k: Kernel, address: int, size: int, _to_user: int) -> None:
    for _ in pieces(k, address, size):
        pass
