# SPDX-License-Identifier: GPL-2.0-or-later
"""No flush too few, and none too many: designs over the worst TLB that there can be."""

from __future__ import annotations

import random

import pytest

from allocator.execmem import Execmem
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import KIB, MIB, MemType, size_text
from tests.support.tlb import WorstTlb

STEPS = 40


def make(arch, design, *, poke, size=32 * MIB, page=4 * KIB, pieces=False):
    """Return Execmem of an architecture; `pieces`: no large leaf is to be had, but runs are."""
    physical = PhysicalMemory(size, paging=arch.loads.paging(page))
    paged = {} if page == 4 * KIB else {"page": page}
    memory = KernelMemory(physical, arch.loads.address_map(None, **paged))
    if pieces:
        physical.fragment()
    text_poke = arch.text_poke if poke else None
    return Execmem(memory, trap=arch.loads.trap, text_poke=text_poke, design=design)


def watched(execmem, arch, **more):
    """Return the worst TLB, but for the alias of pokes: nobody pokes here who would look it up."""
    poke = arch.text_poke
    return WorstTlb(execmem.memory, aside=None if poke is None else poke.alias, **more)


def schedule(execmem, seed, *, steps=STEPS):
    """Load, settle and unload modules of random sizes, as they come; yield after each operation."""
    chance = random.Random(seed)
    coming, live = [], []
    for number in range(steps):
        what = chance.random()
        if coming and what < 0.35:
            module = coming.pop(chance.randrange(len(coming)))
            if MemType.RO_AFTER_INIT in module:
                execmem.seal(module[MemType.RO_AFTER_INIT])
                yield f"{number}: seal"
            init = [module.pop(kind) for kind in list(module) if kind.is_init]
            execmem.free_many(one.address for one in init)
            live.append(module)
            yield f"{number}: free init"
        elif live and what < 0.6:
            module = live.pop(chance.randrange(len(live)))
            execmem.free_many(one.address for one in module.values())
            yield f"{number}: unload"
        elif what < 0.66:
            execmem.quiet()
            yield f"{number}: quiet"
        else:
            kinds = [kind for kind in MemType if kind is MemType.TEXT or chance.random() < 0.7]
            large = chance.random() < 0.05
            sizes = {kind: chance.randrange(1, 40 * KIB) for kind in kinds}
            if large:
                sizes[chance.choice(kinds)] = 2 * MIB + 1
            pending = {kind: execmem.alloc(kind, size) for kind, size in sizes.items()}
            yield f"{number}: alloc"
            if chance.random() < 0.1:
                for one in pending.values():
                    one.abandon()
                yield f"{number}: abandon"
                continue
            execmem.write_many((one, 0, b"w" * one.size) for one in pending.values())
            yield f"{number}: write"
            finished = execmem.finish_many(pending.values())
            coming.append(dict(zip(pending, finished, strict=True)))
            yield f"{number}: finish"
    for module in coming + live:
        for one in module.values():
            execmem.free(one.address)
            yield "the end"


@pytest.mark.parametrize("poke", [True, False], ids=["poke", "no poke"])
@pytest.mark.parametrize("seed", [1])
def test_strata_leaves_nothing_stale_and_flushes_nothing_for_nothing(arch, seed, poke):
    """Whatever a CPU looked up at whatever moment: behind each operation it is what holds."""
    if poke and arch.text_poke is None:
        pytest.skip(f"{arch.name} has no text_poke")
    execmem = make(arch, "strata", poke=poke)
    tlb = watched(execmem, arch)
    for step in schedule(execmem, seed):
        assert not tlb.stale(), f"{step}: {tlb.stale()[:3]}"
        assert not execmem.memory.wx_aliases()
    execmem.check()
    assert tlb.heard
    assert not tlb.needless


@pytest.mark.parametrize("poke", [True, False], ids=["poke", "no poke"])
@pytest.mark.parametrize(("page", "pieces"), [(4 * KIB, True), (64 * KIB, False)])
def test_runs_are_filled_split_and_healed_without_a_stale_entry(arch, page, pieces, poke):
    """The same where chunks are runs; what may not be changed in use never becomes one."""
    paging = arch.loads.paging(page)
    if page not in arch.loads.page_sizes or not paging.run:
        pytest.skip(f"{arch.name} has no runs of pages of {size_text(page)}")
    execmem = make(arch, "strata", poke=poke, size=64 * MIB, page=page, pieces=pieces)
    memory = execmem.memory
    tlb = watched(execmem, arch)
    for step in schedule(execmem, 1):
        assert not tlb.stale(), f"{step}: {tlb.stale()[:3]}"

    kinds = (MemType.TEXT, MemType.RODATA, MemType.DATA, MemType.RO_AFTER_INIT)

    def load():
        """Load a module, seal it, and say how many runs each type has when nobody asks for more."""
        pending = [execmem.alloc(kind, 80 * KIB) for kind in kinds]
        *_, sealed = found = execmem.finish_many(pending)
        execmem.seal(sealed)
        execmem.quiet()
        assert not tlb.stale()
        leaves = execmem.report().leaves
        return found, {kind for kind in kinds if leaves[kind][paging.run]}

    live, before = memory.page_table.live_splits, memory.events.copy()
    in_place = {MemType.RO_AFTER_INIT, *(kinds[:2] if not poke else ())}
    first, runs = load()
    assert runs == {kind for kind in kinds if live or kind not in in_place}
    load()
    execmem.free_many(one.address for one in first)
    assert load()[1] == runs
    cost = memory.events - before
    assert bool(cost.run_splits) is bool(cost.folds) is live
    execmem.check()
    assert not tlb.needless


@pytest.mark.parametrize("poke", [True, False], ids=["poke", "no poke"])
def test_a_flush_that_nobody_hears_is_seen(arch, poke):
    """One range of one flush less, and a CPU may do what the page table does not allow."""
    if poke and arch.text_poke is None:
        pytest.skip(f"{arch.name} has no text_poke")
    deaf = 1
    while deaf:
        execmem = make(arch, "strata", poke=poke)
        tlb = watched(execmem, arch, deaf=deaf)
        seen = any(tlb.stale() for _ in schedule(execmem, 1, steps=12) if tlb.heard >= deaf)
        assert seen or tlb.heard < deaf, f"nobody misses range {deaf}"
        deaf = 0 if tlb.heard < deaf else deaf + 11


def test_the_cache_of_6_13_leaves_the_direct_map_stale(arch):
    """Its refills take memory out of the direct map without a flush (set_direct_map_valid_noflush)."""
    if arch.text_poke is None:
        pytest.skip(f"{arch.name} has no text_poke, so no cache of 6.13")
    execmem = make(arch, "rox_cache_613", poke=True)
    memory = execmem.memory
    tlb = WorstTlb(memory)
    execmem.finish_many([execmem.alloc(MemType.TEXT, 8 * KIB)])
    found = {line.split()[2] for line in tlb.stale(memory.direct_map)}
    assert len(found) == memory.large_size // memory.page_size
    memory.flush_tlb(memory.direct_map)
    assert not tlb.stale(memory.direct_map)


@pytest.mark.parametrize("design", ["vmalloc", "per_type", "rox_cache"])
def test_designs_of_linux_leave_only_what_linux_leaves(arch, design):
    """A CPU may do what the page table says; but riscv64's fixmap is flushed on one hart only."""
    execmem = make(arch, design, poke=arch.text_poke is not None)
    tlb = WorstTlb(execmem.memory)
    poke = execmem.text_poke
    local = poke is not None and not poke.private and not poke.broadcast
    left = set()
    for step in schedule(execmem, 1, steps=8):
        found = tlb.stale()
        if local:
            left |= {line for line in found if int(line.split()[2], 16) in poke.alias}
            found = [line for line in found if line not in left]
        assert not found, f"{step}: {found[:3]}"
    assert bool(left) is (local and design == "per_type")
