# SPDX-License-Identifier: GPL-2.0-or-later
"""What tells the designs apart; what they have in common stands in test_execmem."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest

from allocator.designs import COUNTEREXAMPLES, DESIGNS
from allocator.errors import AccessError, AllocationError
from allocator.execmem import Execmem
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory, repeat
from allocator.types import (
    GIB,
    KIB,
    LARGE_PAGE_SIZE,
    MIB,
    PAGE_SIZE,
    AddressMap,
    Consumer,
    ExecmemRange,
    ExecmemType,
    Interval,
    MemType,
    Paging,
    Prot,
)

TRAP = b"\xcc"
CORE = (MemType.TEXT, MemType.DATA, MemType.RODATA, MemType.RO_AFTER_INIT)
INIT = (MemType.INIT_TEXT, MemType.INIT_DATA, MemType.INIT_RODATA)
IMAGE = Interval(0xFFFF800080000000, 0xFFFF8000824F0000)
DIRECT = Interval(IMAGE.end - 128 * MIB, IMAGE.end)
PLT = Interval(IMAGE.end - 2 * GIB, IMAGE.end)


@pytest.fixture(scope="session")
def arm64_map():
    """Return arm64 with KASLR off: 91 MiB of direct window beside the image, 2 GiB with PLT."""
    vmalloc = Interval(0xFFFF800080000000, 0xFFFFFDFFC0000000)
    return AddressMap(
        image=IMAGE,
        direct_map=0xFFFF000000000000,
        vmalloc=vmalloc,
        ranges={
            ExecmemType.MODULE_TEXT: ExecmemRange(range=DIRECT, fallback=PLT),
            ExecmemType.KPROBES: ExecmemRange(range=vmalloc),
            ExecmemType.BPF: ExecmemRange(range=vmalloc),
        },
    )


@pytest.fixture(scope="session")
def riscv_map():
    """Return riscv64 with KASLR off: a BPF window of 128 MiB at the end of the modules'."""
    start, end = 0xFFFFFFFF80000000, 0xFFFFFFFF81E6B000
    vmalloc = Interval(0xFFFFFFC600000000, 0xFFFFFFD600000000)
    return AddressMap(
        image=Interval(start, end),
        direct_map=0xFFFFFFD600000000,
        vmalloc=vmalloc,
        ranges={
            ExecmemType.MODULE_TEXT: ExecmemRange(range=Interval(end - 2 * GIB, start)),
            ExecmemType.KPROBES: ExecmemRange(range=vmalloc),
            ExecmemType.BPF: ExecmemRange(range=Interval(start - 128 * MIB, start)),
        },
    )


GRANULES = pytest.mark.parametrize("page", [PAGE_SIZE, 16 * KIB], ids=["4KiB", "16KiB"])


def make(design, address_map, poke=None, size=64 * MIB, page=PAGE_SIZE):
    """Return Execmem over fresh memory; with larger pages, more of it."""
    size *= page // PAGE_SIZE
    memory = KernelMemory(PhysicalMemory(size, paging=Paging(page)), address_map)
    return Execmem(memory, trap=TRAP, text_poke=poke, design=design)


def take(execmem, mem_type, size, **kwargs):
    """Allocate and finish without writing."""
    return execmem.alloc(mem_type, size, **kwargs).finish()


def window(execmem):
    """Return the range of module text."""
    return execmem.memory.address_map.range_of(ExecmemType.MODULE_TEXT).range


# vmalloc_else -----------------------------------------------------------------------------------


def test_text_of_the_else_branch_is_out_of_reach(x86_map, arm64_map, riscv_map):
    """In the vmalloc range no 32-bit displacement reaches the image; data stays in its range."""
    for address_map in (x86_map, riscv_map):
        execmem = make("vmalloc_else", address_map)
        text = take(execmem, MemType.TEXT, 100)
        assert text.address in address_map.vmalloc
        assert abs(text.address - address_map.image.start) > 1 << 31
        assert take(execmem, MemType.DATA, 100).address in window(execmem)
        execmem.check()
    # The image of arm64 lies in the vmalloc range: what comes first is near by chance, but
    # 128 MiB of other vmalloc memory are enough to end that.
    execmem = make("vmalloc_else", arm64_map)
    execmem.memory.reserve(128 * MIB, arm64_map.vmalloc)
    assert take(execmem, MemType.TEXT, 100).address - IMAGE.start > 128 * MIB


# top_down ---------------------------------------------------------------------------------------


@GRANULES
def test_top_down_never_mixes_text_and_data(x86_map, page):
    """Text grows from the start, everything else from the end, whatever the order."""
    execmem = make("top_down", x86_map, page=page)
    taken = [take(execmem, kind, page + 1000) for _ in range(10) for kind in MemType]
    text = [item.address for item in taken if item.type.is_text]
    other = [item.address for item in taken if not item.type.is_text]
    assert text == sorted(text)
    assert other == sorted(other, reverse=True)
    assert window(execmem).start == text[0]
    assert window(execmem).end - 3 * page == other[0]
    large = execmem.memory.large_size
    assert execmem.report().leaves[MemType.TEXT] == {page: 20, large: 0}


def test_top_down_is_full_only_when_both_sides_meet(tiny_map):
    """No share has to be guessed: data alone may fill the whole range."""
    execmem = make("top_down", tiny_map)
    pages = window(execmem).size // PAGE_SIZE
    data = take(execmem, MemType.DATA, (pages - 3) * PAGE_SIZE)
    text = take(execmem, MemType.TEXT, 1)
    assert not data.fallback
    assert not text.fallback
    assert take(execmem, MemType.TEXT, 1).fallback


# Blocks -----------------------------------------------------------------------------------------


@GRANULES
@pytest.mark.parametrize(("design", "blocks"), [("two_block", 2), ("three_block", 3)])
def test_blocks_hold_one_kind_each(x86_map, design, blocks, page):
    """Kinds are divided by fixed boundaries of large leaves that cover the range."""
    execmem = make(design, x86_map, page=page)
    cuts = {execmem.design.where(kind, Consumer.MODULE).range for kind in MemType}
    assert len(cuts) == blocks
    ordered = sorted(cuts)
    assert (ordered[0].start, ordered[-1].end) == (window(execmem).start, window(execmem).end)
    for left, right in pairwise(ordered):
        assert left.end == right.start
        assert left.end % execmem.memory.large_size == 0
    for kind in MemType:
        cut = execmem.design.where(kind, Consumer.MODULE).range
        assert cut.holds(take(execmem, kind, 5000).taken)


@GRANULES
@pytest.mark.parametrize(
    ("design", "large"),
    [("two_block", {MemType.TEXT}), ("three_block", {MemType.TEXT, MemType.DATA})],
)
def test_blocks_preserve_large_leaves_where_nothing_is_sealed(
    x86_map, x86_poke, design, large, page
):
    """Text is large; data only where rodata has a block of its own; rodata never."""
    execmem = make(design, x86_map, x86_poke, page=page)
    for kind in CORE:
        take(execmem, kind, 5000)
    shares = execmem.report().large_share
    assert {kind for kind, share in shares.items() if share == 1.0} == large
    assert {kind for kind, share in shares.items() if share == 0.0} == set(CORE) - large


@pytest.mark.parametrize("kind", [MemType.TEXT, MemType.RODATA])
def test_a_full_block_is_named_while_others_are_empty(tiny_map, kind):
    """The risk of fixed shares: one block is full, and the error says which."""
    execmem = make("three_block", tiny_map)
    name = "text" if kind is MemType.TEXT else "rodata"
    taken = []
    with pytest.raises(AllocationError, match=f"the {name} block is full"):
        taken += iter(lambda: take(execmem, kind, 256 * 1024), None)
    execmem.check()
    assert not take(execmem, MemType.DATA, 256 * 1024).fallback


# rox_cache --------------------------------------------------------------------------------------


@GRANULES
def test_guard_pages_put_chunks_two_leaves_apart(x86_map, page):
    """Two chunks of the cache never touch, and never serve one larger area."""
    execmem = make("rox_cache", x86_map, size=128 * MIB, page=page)
    large = execmem.memory.large_size
    areas = [take(execmem, MemType.TEXT, large) for _ in range(3)]
    first = areas[0].address
    assert [first, first + 2 * large, first + 4 * large] == [area.address for area in areas]
    # vmalloc's small areas live in between: text and data interleave.
    data = take(execmem, MemType.DATA, 100)
    assert first < data.address < areas[2].address
    assert execmem.report().large_share == {MemType.TEXT: 1.0, MemType.DATA: 0.0}


@GRANULES
def test_the_cache_relocates_in_place_and_heals(x86_map, page):
    """The slice is RW while pending, its neighbour keeps executing, the leaf is large at the end."""
    execmem = make("rox_cache", x86_map, page=page)
    keep = take(execmem, MemType.TEXT, 10)
    pending = execmem.alloc(MemType.TEXT, 10)
    assert pending.address == keep.address + page
    assert execmem.memory.translate(pending.address)[1:] == (Prot.RW, page)
    assert execmem.memory.translate(keep.address).prot is Prot.RX
    pending.write(0, b"x")
    pending.finish()
    assert execmem.memory.translate(keep.address)[1:] == (Prot.RX, execmem.memory.large_size)


def test_one_slice_pins_a_chunk_and_chunks_go_back_whole(x86_map):
    """2 MiB stay mapped for a page; a free area that is not whole multiples stays, too."""
    execmem = make("rox_cache", x86_map)
    free = execmem.memory.physical.free_bytes
    first = take(execmem, MemType.TEXT, 5 * MIB)  # three chunks with one guard page
    tail = take(execmem, MemType.TEXT, 1)
    assert tail.address == first.address + 5 * MIB
    execmem.free(first.address)
    # Two chunks are wholly free, but the free area ends at 5 MiB.
    assert sum(area.size for area in execmem.design.free_intervals()) == 6 * MIB - PAGE_SIZE
    assert execmem.memory.events.chunks_returned == 0
    execmem.free(tail.address)
    assert execmem.memory.events.chunks_returned == 3
    assert free == execmem.memory.physical.free_bytes


def test_small_chunks_are_never_returned(x86_map):
    """Without 2 MiB of memory a chunk is as small as the request, and stays for good."""
    execmem = make("rox_cache", x86_map, size=4 * MIB)
    physical = execmem.memory.physical
    physical.alloc_frames(physical.free_bytes // PAGE_SIZE - 16)
    area = take(execmem, MemType.TEXT, 3 * PAGE_SIZE)
    execmem.free(area.address)
    assert list(execmem.design.free_intervals()) == [area.taken]
    assert take(execmem, MemType.TEXT, 3 * PAGE_SIZE).address == area.address
    execmem.check()


def test_a_free_without_memory_is_put_off_and_done_later(x86_map):
    """No page to split the large leaf with: the slice stays as it is until there is one."""
    execmem = make("rox_cache", x86_map)
    execmem.memory.physical.alloc_frames(8)
    keep = take(execmem, MemType.TEXT, PAGE_SIZE)
    with execmem.alloc(MemType.TEXT, PAGE_SIZE) as pending:
        pending.write(0, b"\x90")
        area = pending.finish()
    physical = execmem.memory.physical
    held = physical.alloc_frames(physical.free_bytes // PAGE_SIZE)
    execmem.free(area.address)
    assert execmem.find(area.address) is None
    assert execmem.design.text.put_off == [area.taken]
    assert execmem.memory.read(area.address, 1) == b"\x90"
    execmem.check()
    physical.free_frames(held)
    assert take(execmem, MemType.TEXT, 1).address == area.address
    assert execmem.design.text.put_off == []
    execmem.free(keep.address)
    execmem.check()


def test_the_shadow_copy_becomes_text_by_one_poke(x86_map, x86_poke):
    """Until finish() the text traps at its address; no leaf is ever opened."""
    execmem = make("rox_cache_613", x86_map, x86_poke)
    keep = take(execmem, MemType.TEXT, 10)
    pokes = execmem.memory.events.pokes
    pending = execmem.alloc(MemType.TEXT, 9000)
    shadow = execmem.design.staged(pending._allocation)
    assert shadow in x86_map.vmalloc
    for offset in range(0, 9000, 100):
        pending.write(offset, b"\x90" * 100)
    assert execmem.memory.read(pending.address, 9000) == repeat(TRAP, 9000)
    assert execmem.memory.events.pokes == pokes
    text = pending.finish()
    assert execmem.memory.events.pokes == pokes + 1
    assert execmem.memory.read(text.address, 9000) == b"\x90" * 9000
    assert execmem.memory.translate(shadow) is None
    assert execmem.design.staged(text) == text.address
    assert execmem.memory.events.leaf_splits == 0
    # The cache of 6.13 had no direct-map alias.
    alias = execmem.memory.direct_map.start + execmem.memory.translate(keep.address).address
    with pytest.raises(AccessError):
        execmem.memory.read(alias, 1)
    for area in (keep, text):
        execmem.free(area.address)
    assert execmem.memory.read(alias, 1) == TRAP


def test_the_shadow_copy_needs_text_poke(x86_map):
    """Without it, 6.13 is plain vmalloc."""
    execmem = make("rox_cache_613", x86_map)
    take(execmem, MemType.TEXT, 10)
    assert execmem.report().leaves == {MemType.TEXT: {PAGE_SIZE: 1, LARGE_PAGE_SIZE: 0}}


# bpf_prog_pack ----------------------------------------------------------------------------------


@GRANULES
def test_programs_share_a_pack_and_nobody_else_does(x86_map, x86_poke, page):
    """Programs lie 64 bytes apart in one area of small leaves; others have their own pages."""
    execmem = make("bpf_prog_pack", x86_map, x86_poke, page=page)
    programs = [take(execmem, MemType.TEXT, 300, consumer=Consumer.BPF) for _ in range(100)]
    start = programs[0].address
    assert [start + 320 * n for n in range(100)] == [program.address for program in programs]
    leaves = {page: 32 * KIB // page, execmem.memory.large_size: 0}
    assert execmem.report().leaves == {MemType.TEXT: leaves}
    for consumer in set(Consumer) - {Consumer.BPF}:
        assert take(execmem, MemType.TEXT, 300, consumer=consumer).reserved == page
    # A pack has 2 MiB whatever a large leaf has (BPF_PROG_PACK_SIZE, kernel/bpf/core.c).
    large = take(execmem, MemType.TEXT, 2 * MIB + 1, consumer=Consumer.BPF)
    assert large.reserved == 2 * MIB + page
    assert execmem.memory.events.refills == 1
    for program in programs:
        execmem.free(program.address)
    assert execmem.memory.events.chunks_returned == 1
    execmem.check()


def test_packs_spare_the_direct_map(x86_map, x86_poke):
    """A thousand programs split what the first one split; each of vmalloc's splits more."""
    splits = {}
    for design in ("vmalloc", "bpf_prog_pack", "strata"):
        execmem = make(design, x86_map, x86_poke)
        # Scattered frames, as in a machine that has run for a while.
        frames = execmem.memory.physical.fragment(leave=20)
        execmem.memory.physical.free_frames(frames[::37])
        counts = []
        for _ in range(300):
            take(execmem, MemType.TEXT, 300, consumer=Consumer.BPF)
            counts.append(execmem.memory.events.direct_map_splits_2m)
        splits[design] = counts[-1] - counts[0]
    assert splits["vmalloc"] > 0
    assert splits["bpf_prog_pack"] == splits["strata"] == 0


# strata -----------------------------------------------------------------------------------------


@GRANULES
@pytest.mark.parametrize("poke", ["x86_poke", None])
@pytest.mark.parametrize("where", ["x86_map", "arm64_map", "riscv_map"])
def test_strata_puts_every_kind_under_large_leaves(request, where, poke, page):
    """Text, data, rodata and sealed memory; large leaves only, and no two kinds in one."""
    text_poke = request.getfixturevalue(poke) if poke else None
    execmem = make("strata", request.getfixturevalue(where), text_poke, page=page)
    large = execmem.memory.large_size
    taken = [take(execmem, kind, 3000) for _ in range(20) for kind in MemType]
    for item in taken:
        if item.type is MemType.RO_AFTER_INIT:
            assert execmem.memory.translate(item.address).leaf == page
    for item in taken:
        if item.type is MemType.RO_AFTER_INIT:
            execmem.seal(item)
    execmem.quiet()
    report = execmem.report()
    assert set(report.large_share.values()) == {1.0}
    assert {kind: held[large] for kind, held in report.leaves.items()} == dict.fromkeys(MemType, 1)
    held = {}
    for item in taken:
        kind = item.type if item.type is MemType.RO_AFTER_INIT else item.type.final_prot
        held.setdefault(item.address // large, set()).add(kind)
    assert len(held) == 4
    assert all(len(kinds) == 1 for kinds in held.values())
    execmem.check()


@pytest.mark.parametrize("poke", ["x86_poke", None])
def test_strata_changes_the_direct_map_once_per_chunk(request, x86_map, poke):
    """No alias of a chunk is ever split to pages: not by slices, seals, init or frees."""
    text_poke = request.getfixturevalue(poke) if poke else None
    execmem = make("strata", x86_map, text_poke, size=2 * GIB)
    chance = random.Random(4)
    live = []
    for _ in range(150):
        live += [take(execmem, kind, chance.randint(1, 100_000)) for kind in MemType]
        for item in live:
            if item.type is MemType.RO_AFTER_INIT and item.address not in execmem._sealed:
                execmem.seal(item)
        while len(live) > 200:
            execmem.free(live.pop(chance.randrange(len(live))).address)
    for item in live:
        execmem.free(item.address)
    events = execmem.memory.events
    assert events.direct_map_splits_2m == 0
    assert events.direct_map_splits_1g <= 2
    assert events.chunks_returned == events.refills > 4
    assert execmem.memory.page_table.leaf_counts(execmem.memory.direct_map)[PAGE_SIZE] == 0


def test_strata_leaves_the_direct_window_to_text(arm64_map, arm64_poke):
    """Text packs towards the image where BL reaches; data lies beyond, in reach of ADRP."""
    execmem = make("strata", arm64_map, arm64_poke)
    taken = [take(execmem, kind, 40_000) for _ in range(100) for kind in CORE]
    text = [item for item in taken if item.type.is_text]
    assert max(item.taken.end for item in text) == IMAGE.start
    assert sum(item.size for item in text) > IMAGE.start - min(item.address for item in text) - MIB
    assert not any(item.fallback for item in taken)
    for item in taken:
        assert item.type.is_text is DIRECT.holds(item.taken)
        assert PLT.holds(item.taken)


def test_strata_takes_scarce_room_last(tiny_map, riscv_map, arm64_poke):
    """Data enters the text window only when nothing else is left; modules keep out of BPF's."""
    execmem = make("strata", tiny_map, arm64_poke)
    apart = take(execmem, MemType.DATA, 6 * MIB)
    second = take(execmem, MemType.DATA, 3 * MIB)
    where = tiny_map.range_of(ExecmemType.MODULE_TEXT)
    assert where.fallback.holds(apart.taken)
    assert not apart.fallback
    assert where.range.holds(second.taken)
    assert second.fallback
    execmem.check()
    execmem = make("strata", riscv_map, arm64_poke)
    bpf = riscv_map.range_of(ExecmemType.BPF).range
    text = take(execmem, MemType.TEXT, 4096)
    assert text.taken.end == bpf.start
    assert take(execmem, MemType.TEXT, 4096, consumer=Consumer.BPF).taken.end == bpf.end
    assert take(execmem, MemType.DATA, 4096).address < text.address - GIB


def test_strata_keeps_probes_out_of_a_random_module_window(arm64_map):
    """With KASLR the modules' window lies inside the vmalloc range; probes leave it free."""
    image = Interval(0xFFFF900000000000, 0xFFFF9000024F0000)
    box = Interval(image.end - GIB, image.end + GIB)
    address_map = AddressMap(
        image=image,
        direct_map=arm64_map.direct_map,
        vmalloc=arm64_map.vmalloc,
        ranges={
            ExecmemType.MODULE_TEXT: ExecmemRange(range=box),
            ExecmemType.KPROBES: ExecmemRange(range=arm64_map.vmalloc),
        },
    )
    execmem = make("strata", address_map)
    probe = take(execmem, MemType.TEXT, 16, consumer=Consumer.KPROBES)
    assert not box.overlaps(probe.taken)
    assert min(abs(probe.address - box.end), abs(probe.taken.end - box.start)) <= LARGE_PAGE_SIZE
    text = take(execmem, MemType.TEXT, 16)
    assert box.holds(text.taken)
    assert min(abs(text.address - image.end), abs(text.taken.end - image.start)) <= LARGE_PAGE_SIZE


@pytest.mark.parametrize("where", ["x86_map", "arm64_map"])
def test_init_leaves_room_and_no_hole(request, where, x86_poke):
    """When init memory of many modules is freed, each kind has one free area per chunk."""
    execmem = make("strata", request.getfixturevalue(where), x86_poke)
    core, init = [], []
    for number in range(200):
        init += [take(execmem, kind, 100 + number) for kind in INIT]
        core += [take(execmem, kind, 1000 + number) for kind in CORE]
        if number % 5 == 4:  # a few modules are in init at the same time
            while init:
                execmem.free(init.pop().address)
    design = execmem.design
    for pool in (design.text, design.rodata, design.data):
        assert len(pool.free_areas) == len(pool.chunks) == 1
    refills = execmem.memory.events.refills
    room = next(iter(design.text.free_areas))
    consumer = Consumer.KPROBES if where == "x86_map" else Consumer.FTRACE
    slots = [take(execmem, MemType.TEXT, 16, consumer=consumer) for _ in range(2000)]
    assert all(room.holds(slot.taken) for slot in slots)
    assert refills == execmem.memory.events.refills
    for item in [*core, *slots]:
        execmem.free(item.address)
    assert execmem.memory.events.chunks_returned == refills


def test_init_does_not_pin_a_chunk(x86_map, x86_poke):
    """A module whose init failed leaves nothing; its neighbours' chunk is shared meanwhile."""
    execmem = make("strata", x86_map, x86_poke)
    keep = take(execmem, MemType.TEXT, 1000)
    init = take(execmem, MemType.INIT_TEXT, 1000)
    assert keep.address // LARGE_PAGE_SIZE == init.address // LARGE_PAGE_SIZE
    assert init.taken.end % LARGE_PAGE_SIZE == 0
    execmem.free(keep.address)
    assert execmem.memory.events.chunks_returned == 0
    execmem.free(init.address)
    assert execmem.memory.events.chunks_returned == 1
    execmem.check()


@pytest.mark.parametrize(
    ("consumer", "pitch"),
    [
        (Consumer.MODULE, 64),
        (Consumer.KPROBES, 8),
        (Consumer.FTRACE, 16),
        (Consumer.BPF, 16),
        (Consumer.THUNK, 16),
    ],
)
def test_strata_granularity_suits_the_consumer(x86_map, x86_poke, consumer, pitch):
    """Neighbours lie one granule apart, or what alignment they ask for."""
    execmem = make("strata", x86_map, x86_poke)
    first, second = (take(execmem, MemType.TEXT, 7, consumer=consumer) for _ in range(2))
    assert second.address - first.address == pitch
    third = take(execmem, MemType.TEXT, 7, consumer=consumer, align=128)
    assert third.address % 128 == 0
    execmem.check()


def test_strata_has_no_pitch(x86_map, x86_poke):
    """Chunks touch: forty areas of 1 MiB are twenty leaves without a gap."""
    execmem = make("strata", x86_map, x86_poke, size=128 * MIB)
    areas = [take(execmem, MemType.TEXT, MIB) for _ in range(40)]
    start = window(execmem).start
    assert [start + n * MIB for n in range(40)] == [area.address for area in areas]
    assert execmem.memory.events.guard_pages == 0


@pytest.mark.parametrize("design", ["strata", "per_type"])
def test_churn_returns_chunks(x86_map, x86_poke, design):
    """After many loads and unloads memory is near what lives, and nothing stays at the end."""
    execmem = make(design, x86_map, x86_poke, size=256 * MIB)
    free = execmem.memory.physical.free_bytes
    chance = random.Random(11)
    live = []
    for _ in range(600):
        size = int(chance.paretovariate(0.9) * 2000) % 400_000 + 1
        init = take(execmem, MemType.INIT_TEXT, 500)
        live.append(take(execmem, MemType.TEXT, size))
        execmem.free(init.address)
        while sum(item.size for item in live) > 8 * MIB:
            execmem.free(live.pop(chance.randrange(len(live))).address)
        mapped = free - execmem.memory.physical.free_bytes
        assert mapped <= 14 * MIB
    for item in live:
        execmem.free(item.address)
    events = execmem.memory.events
    assert events.chunks_returned == events.refills
    assert free == execmem.memory.physical.free_bytes


# Cost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_cost_does_not_grow_with_what_lives(x86_map, x86_poke, design):
    """Ten times as many areas and holes cost at most half as many calls again per operation."""
    costs = {}
    for count in (200, 2000):
        execmem = make(design, x86_map, x86_poke)
        chance = random.Random(count)
        live = [
            take(execmem, MemType.TEXT, chance.randint(64, 2000), consumer=Consumer.BPF).address
            for _ in range(count)
        ]
        chance.shuffle(live)
        for address in live[: count // 2]:
            execmem.free(address)
        calls = [0]

        def count_call(frame, event, arg, calls=calls):
            calls[0] += event in ("call", "c_call")

        sys.setprofile(count_call)
        for address in live[-60:]:
            execmem.free(address)
            take(execmem, MemType.TEXT, chance.randint(64, 2000), consumer=Consumer.BPF)
        sys.setprofile(None)
        costs[count] = calls[0]
    assert costs[2000] < 1.5 * costs[200]


def test_every_design_has_a_name_of_its_own():
    """The registries are keyed by the designs' own names; what cannot work stands apart."""
    assert not set(DESIGNS) & set(COUNTEREXAMPLES)
    for name, design in (DESIGNS | COUNTEREXAMPLES).items():
        assert name == design.name
        assert design.__doc__
    assert set(COUNTEREXAMPLES) == {"vmalloc_else"}
