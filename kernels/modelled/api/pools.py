# SPDX-License-Identifier: GPL-2.0-or-later
"""Reserves and counters (mm/mempool.c, lib/percpu_counter.c, lib/percpu-refcount.c, mm/shrinker.c).

A reserve is filled when it is made, as the kernel does, and used when the allocator behind
it has nothing. Per-cpu counters are counted in their sum at once, whatever the CPU.
"""

from __future__ import annotations

from allocator import AllocationError
from kernels.modelled.api.common import empty_list, errno, nothing, stop
from kernels.modelled.api.memory import (
    GFP_ZERO,
    cache_alloc,
    cache_free,
    free_percpu,
    kfree,
    kmalloc,
)
from kernels.modelled.api.rcu import call_rcu
from kernels.modelled.api.wait import init_head, wake_up
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import POINTER, made, offset_of, size_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import Arguments, data, function

# Mempools ------------------------------------------------------------------------------------

declare("mempool_t", "min_nr curr_nr elements pool_data alloc free wait")
MEMPOOL, MEMPOOL_WAIT = size_of("mempool_t"), offset_of("mempool_t", "wait")


def _fill(k: Kernel, pool: int, least: int, alloc: int, free: int, argument: int) -> int:
    found = view(k, "mempool_t", pool)
    k.memory.write(pool, bytes(MEMPOOL(k)))
    elements = kmalloc(k, POINTER * max(least, 1), GFP_ZERO)
    if not elements:
        return errno("ENOMEM")
    init_head(k, pool + MEMPOOL_WAIT(k))
    for member, value in (
        ("min_nr", least),
        ("elements", elements),
        ("pool_data", argument),
        ("alloc", alloc),
        ("free", free),
    ):
        found.put(member, value)
    for n in range(least):
        element = k.call(alloc, 0xCC0, argument)
        if not element:
            _drain(k, pool)
            return errno("ENOMEM")
        k.store(elements + POINTER * n, element)
        found.put("curr_nr", n + 1)
    return 0


def _drain(k: Kernel, pool: int) -> None:
    found = view(k, "mempool_t", pool)
    elements = found.number("elements")
    for n in reversed(range(found.number("curr_nr"))):
        k.call(found.number("free"), k.word(elements + POINTER * n), found.number("pool_data"))
    kfree(k, elements)
    found.put("curr_nr", 0)
    found.put("elements", 0)


@function(
    "int mempool_init_noprof(mempool_t *pool, int min_nr, void *alloc_fn, void *free_fn,"
    " void *pool_data)"
)
def _mempool_init(k: Kernel, pool: int, least: int, alloc: int, free: int, argument: int) -> int:
    return _fill(k, pool, least, alloc, free, argument)


@function(
    "mempool_t *mempool_create_node_noprof(int min_nr, void *alloc_fn, void *free_fn,"
    " void *pool_data, gfp_t gfp_mask, int node_id)"
)
def _mempool_create_node(
    k: Kernel, least: int, alloc: int, free: int, argument: int, _gfp: int, _node: int
) -> int:
    pool = kmalloc(k, MEMPOOL(k), GFP_ZERO)
    if pool and _fill(k, pool, least, alloc, free, argument):
        kfree(k, pool)
        return 0
    return pool


@function("void mempool_exit(mempool_t *pool)")
def _mempool_exit(k: Kernel, pool: int) -> None:
    if view(k, "mempool_t", pool).number("elements"):
        _drain(k, pool)


@function("void mempool_destroy(mempool_t *pool)")
def _mempool_destroy(k: Kernel, pool: int) -> None:
    if pool:
        _mempool_exit(k, pool)
        kfree(k, pool)


@function("void *mempool_alloc_noprof(mempool_t *pool, gfp_t gfp_mask)")
def _mempool_alloc(k: Kernel, pool: int, gfp: int) -> int:
    found = view(k, "mempool_t", pool)
    element = k.call(found.number("alloc"), gfp, found.number("pool_data"))
    left = found.number("curr_nr")
    if element or not left:
        return element
    found.put("curr_nr", left - 1)
    return k.word(found.number("elements") + POINTER * (left - 1))


@function("void mempool_free(void *element, mempool_t *pool)")
def _mempool_free(k: Kernel, element: int, pool: int) -> None:
    if not element:
        return
    found = view(k, "mempool_t", pool)
    held = found.number("curr_nr")
    if held < found.number("min_nr"):
        k.store(found.number("elements") + POINTER * held, element)
        found.put("curr_nr", held + 1)
        wake_up(k, pool + MEMPOOL_WAIT(k), 3, 1, 0)
    else:
        k.call(found.number("free"), element, found.number("pool_data"))


@function("void *mempool_alloc_slab(gfp_t gfp_mask, void *pool_data)")
def _mempool_alloc_slab(k: Kernel, gfp: int, cache: int) -> int:
    return cache_alloc(k, cache, gfp)


@function("void mempool_free_slab(void *element, void *pool_data)")
def _mempool_free_slab(k: Kernel, element: int, cache: int) -> None:
    cache_free(k, cache, element)


@function("void *mempool_kmalloc(gfp_t gfp_mask, void *pool_data)")
def _mempool_kmalloc(k: Kernel, gfp: int, size: int) -> int:
    return kmalloc(k, size, gfp)


@function("void mempool_kfree(void *element, void *pool_data)")
def _mempool_kfree(k: Kernel, element: int, _size: int) -> None:
    kfree(k, element)


# Per-cpu counters ---------------------------------------------------------------------------------

declare("percpu_counter", "count counters")
COUNTER, COUNT, COUNTERS = (
    size_of("percpu_counter"),
    offset_of("percpu_counter", "count"),
    offset_of("percpu_counter", "counters"),
)

data("percpu_counter_batch", 4, fill=lambda _k: (32).to_bytes(4, "little"))


@function(
    "int __percpu_counter_init_many(struct percpu_counter *fbc, s64 amount, gfp_t gfp,"
    " u32 nr_counters, struct lock_class_key *key)"
)
def _percpu_counter_init_many(
    k: Kernel, counter: int, amount: int, _gfp: int, count: int, _key: int
) -> int:
    try:
        base = k.percpu.alloc(4 * count, 4) if count else 0
    except AllocationError:
        base = 0
    if not base:
        return errno("ENOMEM")
    for n in range(count):
        members = {"count": amount, "counters": base + 4 * n}
        k.memory.write(counter + n * COUNTER(k), made(k, "percpu_counter", members))
    return 0


@function("void percpu_counter_destroy_many(struct percpu_counter *fbc, u32 nr_counters)")
def _percpu_counter_destroy_many(k: Kernel, counter: int, count: int) -> None:
    base = k.word(counter + COUNTERS(k))
    if counter and base:
        free_percpu(k, base)
        for n in range(count):
            k.store(counter + n * COUNTER(k) + COUNTERS(k), 0)


@function(
    "void percpu_counter_add_batch(struct percpu_counter *fbc, s64 amount, s32 batch)",
)
def _percpu_counter_add_batch(k: Kernel, counter: int, amount: int, _batch: int) -> None:
    k.store(counter + COUNT(k), k.word(counter + COUNT(k)) + amount)


@function("void percpu_counter_set(struct percpu_counter *fbc, s64 amount)")
def _percpu_counter_set(k: Kernel, counter: int, amount: int) -> None:
    k.store(counter + COUNT(k), amount)


@function("s64 __percpu_counter_sum(struct percpu_counter *fbc)")
def _percpu_counter_sum(k: Kernel, counter: int) -> int:
    return k.word(counter + COUNT(k))


nothing("void percpu_counter_sync(struct percpu_counter *fbc)")


@function("int __percpu_counter_compare(struct percpu_counter *fbc, s64 rhs, s32 batch)")
def _percpu_counter_compare(k: Kernel, counter: int, other: int, _batch: int) -> int:
    count = k.word(counter + COUNT(k))
    count -= (count >> 63) << 64
    return (count > other) - (count < other)


# Per-cpu references: the address of the CPU's count, with two flags, and the rest ---------------

declare("percpu_ref", "percpu_count_ptr data")
declare("percpu_ref_data", "count release")
REF_DEAD, REF_ATOMIC, REF_DATA = 2, 1, size_of("percpu_ref_data")
REF_POINTER, REF_MORE = (offset_of("percpu_ref", m) for m in ("percpu_count_ptr", "data"))
REF_COUNT, REF_RELEASE = (offset_of("percpu_ref_data", m) for m in ("count", "release"))
REF_INIT_ATOMIC, REF_INIT_DEAD = 1, 2


@function(
    "int percpu_ref_init(struct percpu_ref *ref, void *release, unsigned int flags, gfp_t gfp)"
)
def _percpu_ref_init(k: Kernel, ref: int, release: int, flags: int, _gfp: int) -> int:
    try:
        base = k.percpu.alloc(8, 8)
    except AllocationError:
        return errno("ENOMEM")
    more = kmalloc(k, REF_DATA(k), GFP_ZERO)
    if not more:
        free_percpu(k, base)
        return errno("ENOMEM")
    dead = bool(flags & REF_INIT_DEAD)
    # One count is enough: the atomic one.
    k.store(more + REF_COUNT(k), 0 if dead else 1)
    k.store(more + REF_RELEASE(k), release)
    k.store(ref + REF_POINTER(k), base | REF_ATOMIC | REF_DEAD * dead)
    k.store(ref + REF_MORE(k), more)
    return 0


@function("void percpu_ref_exit(struct percpu_ref *ref)")
def _percpu_ref_exit(k: Kernel, ref: int) -> None:
    base, more = k.word(ref + REF_POINTER(k)), k.word(ref + REF_MORE(k))
    if more:
        free_percpu(k, base & ~3)
        kfree(k, more)
        k.store(ref + REF_POINTER(k), REF_ATOMIC | REF_DEAD)
        k.store(ref + REF_MORE(k), 0)


@function("void percpu_ref_kill_and_confirm(struct percpu_ref *ref, void *confirm)")
def _percpu_ref_kill(k: Kernel, ref: int, confirm: int) -> None:
    k.store(ref + REF_POINTER(k), k.word(ref + REF_POINTER(k)) | REF_ATOMIC | REF_DEAD)
    if confirm:
        k.call(confirm, ref)
    more = k.word(ref + REF_MORE(k))
    left = k.word(more + REF_COUNT(k)) - 1
    k.store(more + REF_COUNT(k), left)
    if left == 0:
        k.call(k.word(more + REF_RELEASE(k)), ref)


@function("void percpu_ref_reinit(struct percpu_ref *ref)")
def _percpu_ref_reinit(k: Kernel, ref: int) -> None:
    k.store(ref + REF_POINTER(k), k.word(ref + REF_POINTER(k)) & ~REF_DEAD)
    more = k.word(ref + REF_MORE(k))
    k.store(more + REF_COUNT(k), k.word(more + REF_COUNT(k)) + 1)


@function("void percpu_ref_resurrect(struct percpu_ref *ref)")
def _percpu_ref_resurrect(k: Kernel, ref: int) -> None:
    _percpu_ref_reinit(k, ref)


@function("bool percpu_ref_is_zero(struct percpu_ref *ref)")
def _percpu_ref_is_zero(k: Kernel, ref: int) -> int:
    more = k.word(ref + REF_MORE(k))
    return int(not more or k.word(more + REF_COUNT(k)) == 0)


nothing(
    "void percpu_ref_switch_to_atomic(struct percpu_ref *ref, void *confirm)",
    "void percpu_ref_switch_to_atomic_sync(struct percpu_ref *ref)",
    "void percpu_ref_switch_to_percpu(struct percpu_ref *ref)",
)


# Memory that could be given back, if ever it became scarce ----------------------------------------

declare("shrinker", "count_objects scan_objects")
declare("list_lru", "node")
declare("list_lru_node", "lru.list")
SHRINKER, LIST_LRU_NODE = size_of("shrinker"), size_of("list_lru_node")


@function("struct shrinker *shrinker_alloc(unsigned int flags, const char *fmt, ...)")
def _shrinker_alloc(k: Kernel, _flags: int, _fmt: int, _args: Arguments) -> int:
    return kmalloc(k, SHRINKER(k), GFP_ZERO)


@function("void shrinker_register(struct shrinker *shrinker)")
def _shrinker_register(k: Kernel, shrinker: int) -> None:
    k.register("shrinker", shrinker, callbacks=view(k, "shrinker", shrinker).functions())


@function("void shrinker_free(struct shrinker *shrinker)")
def _shrinker_free(k: Kernel, shrinker: int) -> None:
    if shrinker:
        k.registry.remove("shrinker", shrinker)
        call_rcu(k, 0, lambda k: kfree(k, shrinker))


@function(
    "int __list_lru_init(struct list_lru *lru, bool memcg_aware, struct lock_class_key *key,"
    " struct shrinker *shrinker)"
)
def _list_lru_init(k: Kernel, lru: int, _aware: int, _key: int, _shrinker: int) -> int:
    node = kmalloc(k, LIST_LRU_NODE(k), GFP_ZERO)
    if not node:
        return errno("ENOMEM")
    empty_list(k, view(k, "list_lru_node", node).at("lru.list"))
    view(k, "list_lru", lru).put("node", node)
    return 0


@function("void list_lru_destroy(struct list_lru *lru)")
def _list_lru_destroy(k: Kernel, lru: int) -> None:
    found = view(k, "list_lru", lru)
    kfree(k, found.number("node"))
    found.put("node", 0)


nothing(
    "int bioset_init(struct bio_set *bs, unsigned int pool_size, unsigned int front_pad, int f)",
    "void bioset_exit(struct bio_set *bs)",
    "int bioset_integrity_create(struct bio_set *bs, int pool_size)",
)


# Per-cpu reader-writer semaphores: an rcu_sync, a count per CPU, and who waits ---------------------

declare("percpu_rw_semaphore", "read_count")
PCPU_RWSEM = size_of("percpu_rw_semaphore")
READ_COUNT = offset_of("percpu_rw_semaphore", "read_count")


@function(
    "int __percpu_init_rwsem(struct percpu_rw_semaphore *sem, const char *name,"
    " struct lock_class_key *key)"
)
def _percpu_init_rwsem(k: Kernel, sem: int, _name: int, _key: int) -> int:
    try:
        base = k.percpu.alloc(4, 4)
    except AllocationError:
        return errno("ENOMEM")
    k.memory.write(sem, bytes(PCPU_RWSEM(k)))
    k.store(sem + READ_COUNT(k), base)
    return 0


@function("void percpu_free_rwsem(struct percpu_rw_semaphore *sem)")
def _percpu_free_rwsem(k: Kernel, sem: int) -> None:
    base = k.word(sem + READ_COUNT(k))
    if base:
        free_percpu(k, base)
        k.store(sem + READ_COUNT(k), 0)


@function("void percpu_down_write(struct percpu_rw_semaphore *sem)")
def _percpu_down_write(k: Kernel, sem: int) -> None:
    if k.word(k.percpu.address(k.word(sem + READ_COUNT(k))), 4):
        stop(k, f"deadlock: percpu_rw_semaphore at {sem:#x} is read, and nobody else runs")


nothing("void percpu_up_write(struct percpu_rw_semaphore *sem)")


@function("bool __percpu_down_read(struct percpu_rw_semaphore *sem, bool try)")
def _percpu_down_read(k: Kernel, sem: int, _try: int) -> int:
    at = k.percpu.address(k.word(sem + READ_COUNT(k)))
    k.store(at, k.word(at, 4) + 1, 4)
    return 1
