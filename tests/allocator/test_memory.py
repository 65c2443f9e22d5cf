# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel virtual memory: access, vmalloc, protections, flushes and text_poke."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.errors import AccessError, AllocationError, LifecycleError, MappingError, PokeError
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import (
    HUGE_PAGE_SIZE,
    LARGE_PAGE_SIZE,
    MIB,
    PAGE_SIZE,
    AddressMap,
    ExecmemRange,
    ExecmemType,
    Interval,
    Memory,
    PokeStep,
    Prot,
    Site,
    TextPoke,
)

DIRECT = 0xFFFF888000000000


def direct_map_of(memory, va):
    """Return the direct-map address of what `va` reaches."""
    return DIRECT + memory.translate(va).address


def scattered(memory, pages):
    """Return a vmalloc area none of whose frames are neighbours."""
    single = [memory.physical.alloc_frame() for _ in range(2 * pages)]
    for frame in single[::2]:
        memory.physical.free(frame)
    va = memory.vmalloc(pages * PAGE_SIZE)
    frames = memory.page_table.frames(va, pages * PAGE_SIZE)
    assert not (frames[1:] == frames[:-1] + PAGE_SIZE).any()
    return va


def test_kernel_memory_is_the_loaders_memory(memory):
    """KernelMemory serves as the `Memory` protocol of `allocator.types`."""
    door: Memory = memory
    va = memory.vmalloc(100)
    door.write(va, b"x")
    assert door.read(va, 2) == b"x\0"


def test_a_gigabyte_is_mapped_by_one_leaf(x86_map):
    """The direct map starts with leaves as large as memory allows."""
    memory = KernelMemory(PhysicalMemory(), x86_map)
    assert memory.page_table.leaf_counts()[HUGE_PAGE_SIZE] == 1
    assert memory.translate(DIRECT + 0x1234) == (0x1234, Prot.RW, HUGE_PAGE_SIZE)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5 * PAGE_SIZE), st.binary(max_size=3 * PAGE_SIZE))
def test_bytes_cross_pages_whose_frames_do_not_touch(offset, data):
    """A write is read back at its address and nowhere else, whatever frames lie below."""
    memory = fragmented()
    memory.fill(AREA, 8 * PAGE_SIZE, b"\xaa")
    memory.write(AREA + offset, data)
    expected = b"\xaa" * offset + data + b"\xaa" * (8 * PAGE_SIZE - offset - len(data))
    assert memory.read(AREA, 8 * PAGE_SIZE) == expected
    assert memory.read(AREA + offset, len(data)) == data


AREA = 0xFFFFC90000000000
_MADE = []


def fragmented():
    """Return one memory, made once, with 8 scattered pages at AREA."""
    if not _MADE:
        empty = AddressMap(
            image=Interval(0xFFFFFFFF81000000, 0xFFFFFFFF82000000),
            direct_map=DIRECT,
            vmalloc=Interval(AREA, AREA + 64 * MIB),
            ranges={ExecmemType.MODULE_TEXT: ExecmemRange(range=Interval(1, 2))},
        )
        memory = KernelMemory(PhysicalMemory(4 * MIB), empty)
        assert scattered(memory, 8) == AREA
        _MADE.append(memory)
    return _MADE[0]


def test_an_access_names_the_first_bad_address(memory):
    """Nothing is stored by a write that ends in a hole or in read-only memory."""
    va = memory.vmalloc(3 * PAGE_SIZE)
    memory.set_memory_ro(va + 2 * PAGE_SIZE, PAGE_SIZE)
    with pytest.raises(AccessError, match="mapped R--") as caught:
        memory.write(va + 100, bytes([1]) * 3 * PAGE_SIZE)
    assert (va + 2 * PAGE_SIZE, "write") == (caught.value.address, caught.value.access)
    assert memory.read(va, 3 * PAGE_SIZE) == bytes(3 * PAGE_SIZE)
    with pytest.raises(AccessError, match="not mapped") as caught:
        memory.read(va, 3 * PAGE_SIZE + 1)
    assert va + 3 * PAGE_SIZE == caught.value.address
    with pytest.raises(AccessError, match="not mapped"):
        memory.read(0, 1 << 62)


@pytest.mark.parametrize(("address", "size"), [(-1, 4), (0, -4), ((1 << 64) - 2, 4)])
def test_addresses_have_64_bits(memory, address, size):
    """An access that leaves the address space is refused as an access."""
    with pytest.raises(AccessError):
        memory.read(address, size)


def test_vmalloc_takes_the_lowest_gap_and_leaves_guards(memory):
    """Areas are zeroed, page granular, one unmapped page apart; a freed gap is reused."""
    before = memory.physical.free_bytes
    areas = [memory.vmalloc(size) for size in (1, PAGE_SIZE + 1, PAGE_SIZE)]
    start = memory.address_map.vmalloc.start
    assert [start, start + 2 * PAGE_SIZE, start + 5 * PAGE_SIZE] == areas
    assert memory.translate(start + PAGE_SIZE) is None
    memory.write(areas[0], b"dirty")
    memory.vfree(areas[0])
    assert memory.vmalloc(2 * PAGE_SIZE) == start + 7 * PAGE_SIZE
    assert memory.vmalloc(5) == start
    assert memory.read(start, 5) == bytes(5)
    assert memory.events.guard_pages == 5
    memory.check()
    for va in (*areas, start + 7 * PAGE_SIZE):
        memory.vfree(va)
    assert before == memory.physical.free_bytes
    memory.check()
    with pytest.raises(LifecycleError):
        memory.vfree(start)


def test_vmalloc_wishes_for_large_leaves_and_may_not_get_them(memory):
    """Without a 2 MiB run the area has small leaves and the same contents."""
    large = memory.vmalloc(5 * MIB, large=True)
    counts = memory.page_table.leaf_counts(Interval(large, large + 5 * MIB))
    assert counts == {PAGE_SIZE: 256, LARGE_PAGE_SIZE: 2, HUGE_PAGE_SIZE: 0}
    memory.physical.fragment()
    small = memory.vmalloc(2 * MIB, large=True)
    assert memory.translate(small).leaf == PAGE_SIZE
    memory.check()


def test_vmalloc_at_a_fixed_address(memory):
    """A range as long as the request is a fixed address, once."""
    page = Interval(0xFFFFC90000123000, 0xFFFFC90000124000)
    assert memory.vmalloc(PAGE_SIZE, within=page, guard=False) == page.start
    with pytest.raises(AllocationError, match="largest free run has 0x0"):
        memory.vmalloc(PAGE_SIZE, within=page, guard=False)


def test_a_failed_vmalloc_keeps_nothing(memory):
    """Without frames neither address space nor memory is taken."""
    before = memory.physical.free_bytes
    with pytest.raises(AllocationError):
        memory.vmalloc(memory.physical.size)
    with pytest.raises(AllocationError, match="positive"):
        memory.vmalloc(0)
    assert before == memory.physical.free_bytes
    assert memory.vmalloc(1) == memory.address_map.vmalloc.start
    memory.check()


def test_pages_in_the_direct_map(memory):
    """alloc_pages gives aligned, zeroed, contiguous pages by their direct-map address."""
    va = memory.alloc_pages(3)
    assert (va - DIRECT) % (8 * PAGE_SIZE) == 0
    assert memory.read(va, 8 * PAGE_SIZE) == bytes(8 * PAGE_SIZE)
    memory.free_pages(va)
    with pytest.raises(LifecycleError):
        memory.free_pages(va)
    with pytest.raises(AllocationError):
        memory.alloc_pages(18)
    memory.check()


def test_protection_follows_to_the_alias_for_w_and_not_for_x(memory):
    """set_memory_ro takes W from the direct map too; set_memory_x gives it no X."""
    va = memory.vmalloc(PAGE_SIZE)
    alias = direct_map_of(memory, va)
    memory.set_memory_ro(va, PAGE_SIZE)
    memory.set_memory_x(va, PAGE_SIZE)
    assert (memory.translate(va).prot, memory.translate(alias).prot) == (Prot.RX, Prot.R)
    with pytest.raises(MappingError, match="writable and executable"):
        memory.set_memory_rw(va, PAGE_SIZE)
    memory.set_memory_nx(va, PAGE_SIZE)
    memory.set_memory_rw(va, PAGE_SIZE)
    assert (memory.translate(va).prot, memory.translate(alias).prot) == (Prot.RW, Prot.RW)
    memory.check()


def test_protecting_small_pages_splits_the_direct_map_and_freeing_does_not_heal_it(x86_map):
    """One protected page costs a 1 GiB and a 2 MiB split that outlive the area."""
    memory = KernelMemory(PhysicalMemory(), x86_map)
    va = memory.vmalloc(PAGE_SIZE)
    assert memory.events.direct_map_splits == 0
    memory.set_memory_ro(va, PAGE_SIZE)
    assert (memory.events.direct_map_splits_1g, memory.events.direct_map_splits_2m) == (1, 1)
    memory.vfree(va)
    counts = memory.page_table.leaf_counts(memory.direct_map)
    assert counts == {PAGE_SIZE: 512, LARGE_PAGE_SIZE: 511, HUGE_PAGE_SIZE: 0}
    memory.check()


def test_rox_heals_a_split_leaf(memory):
    """A slice taken out of a large leaf for writing collapses when it is ROX again."""
    va = memory.vmalloc(2 * MIB, large=True)
    memory.set_memory_rox(va, 2 * MIB)
    assert memory.events.collapses == 0
    memory.set_memory_nx(va, PAGE_SIZE)
    memory.set_memory_rw(va, PAGE_SIZE)
    assert (memory.translate(va).leaf, memory.events.leaf_splits) == (PAGE_SIZE, 1)
    memory.set_memory_rox(va, PAGE_SIZE)
    assert (memory.translate(va).leaf, memory.translate(va).prot) == (LARGE_PAGE_SIZE, Prot.RX)
    assert memory.events.collapses == 1


def test_a_cpu_hears_of_every_flush_until_it_unsubscribes(memory):
    """set_memory flushes mapping and alias once on all CPUs; the page table alone never does."""
    heard, synced = [], []
    va = memory.vmalloc(PAGE_SIZE)
    alias = direct_map_of(memory, va)
    stop = memory.on_tlb_flush(lambda *event: heard.append(event))
    quiet = memory.on_icache_sync(lambda *event: synced.append(event))
    memory.page_table.protect(va, PAGE_SIZE, Prot.R)
    memory.page_table.protect(va, PAGE_SIZE, Prot.RW)
    assert heard == []
    before = memory.events.copy()
    memory.set_memory_ro(va, PAGE_SIZE)
    assert heard == [(va, va + PAGE_SIZE, True), (alias, alias + PAGE_SIZE, True)]
    cost = memory.events - before
    assert (cost.tlb_flushes, cost.tlb_flushed_pages) == (1, 2)
    memory.sync_icache(va, va + 8)
    assert synced == [(va, va + 8)]
    stop()
    stop()
    quiet()
    memory.vfree(va)
    memory.sync_icache(va, va + 8)
    assert (len(heard), len(synced)) == (2, 1)


def test_freeing_protected_memory_makes_the_alias_invalid_before_the_flush(memory):
    """VM_FLUSH_RESET_PERMS: at the flush the area is gone and its alias allows nothing."""
    va = memory.vmalloc(2 * PAGE_SIZE)
    memory.set_memory_ro(va, PAGE_SIZE)
    alias = direct_map_of(memory, va)
    seen = []
    memory.on_tlb_flush(
        lambda start, *_: seen.append((start, memory.translate(va), memory.translate(alias).prot))
    )
    before = memory.events.copy()
    memory.vfree(va)
    assert (va, None, Prot.NONE) in seen
    assert any(start == alias for start, _, _ in seen)
    assert (memory.events - before).tlb_flushes_all == 1
    assert memory.translate(alias).prot is Prot.RW
    memory.check()


def test_the_alias_can_be_made_invalid_and_default(memory):
    """set_direct_map_invalid takes every right from the alias, without a flush."""
    va = memory.vmalloc(PAGE_SIZE)
    alias = direct_map_of(memory, va)
    flushes = memory.events.tlb_flushes
    memory.set_direct_map_invalid(va, PAGE_SIZE)
    with pytest.raises(AccessError, match="mapped ---"):
        memory.read(alias, 1)
    memory.set_direct_map_default(va, PAGE_SIZE)
    assert memory.read(alias, 1) == b"\0"
    assert flushes == memory.events.tlb_flushes


# text_poke -----------------------------------------------------------------------------------


def finished_text(memory, size=2 * MIB):
    """Return ROX memory under large leaves."""
    va = memory.vmalloc(size, large=True)
    memory.set_memory_rox(va, size)
    return va


@pytest.mark.parametrize("pages", [1, 2])
@settings(max_examples=30, deadline=None)
@given(offset=st.integers(0, 3 * PAGE_SIZE), data=st.binary(min_size=1, max_size=3 * PAGE_SIZE))
def test_a_poke_changes_these_bytes_and_no_leaf(pages, offset, data):
    """Any bytes across any pages; the alias is gone afterwards and the leaf still large."""
    window = 0x7FFFF0000000
    poke = TextPoke(name="test", window=window, pages=pages, granule=1)
    memory, va = poked()
    before = memory.read(va, 8 * PAGE_SIZE)
    events, seen = memory.events.copy(), []
    stop = memory.on_tlb_flush(lambda *event: seen.append(event))
    memory.poke(va + offset, data, poke, expected=before[offset : offset + len(data)])
    stop()
    expected = before[:offset] + data + before[offset + len(data) :]
    assert memory.read(va, 8 * PAGE_SIZE) == expected
    assert memory.translate(va).leaf == LARGE_PAGE_SIZE
    assert memory.translate(window) is memory.translate(window + PAGE_SIZE) is None
    assert memory.page_table.wx_aliases() == []
    touched = (offset + len(data) - 1) // PAGE_SIZE - offset // PAGE_SIZE + 1
    steps = -(-touched // pages)
    cost = memory.events - events
    assert (1, len(data), steps, touched) == (
        cost.pokes,
        cost.poked_bytes,
        cost.tlb_flushes_local,
        cost.tlb_flushed_pages,
    )
    assert all(start == window and not all_cpus for start, _, all_cpus in seen)
    assert (1, len(data)) == (cost.icache_syncs, cost.icache_synced_bytes)


_POKED = []


def poked():
    """Return one memory, made once, and ROX text in it."""
    if not _POKED:
        memory = KernelMemory(PhysicalMemory(8 * MIB), fragmented().address_map)
        _POKED.append((memory, finished_text(memory)))
    return _POKED[0]


def test_during_a_poke_the_alias_is_writable_and_the_target_is_not(memory, x86_poke):
    """The write goes through the window, which check() reports; the target stays as it is."""
    va = finished_text(memory)
    seen = []

    def spy(mm, address, data):
        table = memory.page_table if mm is None else mm
        seen.append((mm, table.translate(address), memory.translate(va).prot))
        with pytest.raises(AssertionError, match="writable and executable"):
            memory.check()
        memory.physical.write(table.translate(address).address, data)

    frame = memory.translate(va).address
    for poke, mm in ((x86_poke, None), (attrs.evolve(x86_poke, private=True), memory.poking_mm)):
        memory.poke(va + 0x10, b"abc", poke, store=spy)
        assert seen.pop() == (mm, (frame + 0x10, Prot.RW, PAGE_SIZE), Prot.RX)
        assert memory.wx_aliases() == []
        memory.check()
        assert memory.read(va + 0x10, 3) == b"abc"


@pytest.mark.parametrize(("offset", "size"), [(2, 4), (0, 2), (1, 1), (0, 6)])
def test_a_poke_is_whole_granules(memory, arm64_poke, offset, size):
    """On arm64 the address and the length are multiples of one instruction."""
    va = finished_text(memory)
    with pytest.raises(PokeError, match="granules of 4 bytes"):
        memory.poke(va + offset, bytes(size), arm64_poke)
    memory.poke(va + 4, b"abcd", arm64_poke)
    assert memory.read(va, 8) == b"\0\0\0\0abcd"


def test_a_poke_compares_what_it_expects_first(memory, x86_poke):
    """Other bytes than expected, or another length, change nothing."""
    va = finished_text(memory)
    memory.poke(va, b"\x0f\x1f", x86_poke, expected=b"\0\0")
    for expected in (b"\0\0", b"\x0f", b""):
        with pytest.raises(PokeError, match="expected"):
            memory.poke(va, b"\x90\x90", x86_poke, expected=expected)
    assert memory.read(va, 2) == b"\x0f\x1f"


def test_a_poke_refuses_holes_and_writable_memory(memory, x86_poke):
    """Not a byte is written when the range ends where nothing is mapped."""
    va = finished_text(memory)
    end = va + 2 * MIB
    with pytest.raises(PokeError, match="not mapped"):
        memory.poke(end - 2, b"abcd", x86_poke)
    assert memory.read(end - 2, 2) == b"\0\0"
    with pytest.raises(PokeError, match="write it plainly"):
        memory.poke(memory.vmalloc(8), b"x", x86_poke)
    memory.poke(end, b"", x86_poke)
    assert memory.events.pokes == 0


def test_a_poke_refuses_an_occupied_window(memory, x86_poke):
    """A mapping that stands in the window is neither used nor removed."""
    va = finished_text(memory)
    frame = memory.physical.alloc_frame()
    memory.page_table.map(x86_poke.window + PAGE_SIZE, frame, Prot.R, size=PAGE_SIZE)
    with pytest.raises(PokeError, match="window"):
        memory.poke(va, b"x", x86_poke)
    assert memory.translate(x86_poke.window + PAGE_SIZE).address == frame
    assert memory.read(va, 1) == b"\0"


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 0x300).map(lambda n: n * 16), st.binary(min_size=1, max_size=16), max_size=6
    )
)
def test_a_batch_is_its_pokes_with_one_sync(pokes):
    """Sites in any order give what pokes one by one give; CPUs are synchronised once."""
    memory, va = poked()
    poke = TextPoke(name="test", window=0x7FFFF0000000, pages=2, granule=1, private=True)
    expected = bytearray(memory.read(va, 0x4000))
    sites = [
        Site(va + offset, new, bytes(expected[offset : offset + len(new)]))
        for offset, new in reversed(pokes.items())
    ]
    for offset, new in pokes.items():
        expected[offset : offset + len(new)] = new
    events = memory.events.copy()
    memory.poke_many(sites, poke)
    assert memory.read(va, 0x4000) == expected
    cost = memory.events - events
    assert (len(pokes), sum(map(len, pokes.values()))) == (cost.pokes, cost.poked_bytes)
    assert cost.icache_syncs == bool(pokes)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (Site(0x104, b"bbbb", b"XXXX"), "expected 58585858"),
        (Site(0x102, b"bbbb"), "overlaps the site"),
        (Site(2 * MIB, b"bbbb"), "not mapped"),
    ],
)
def test_a_batch_is_refused_as_a_whole(memory, x86_poke, second, reason):
    """One site that cannot be written keeps all others from being written."""
    va = finished_text(memory)
    sites = [Site(va + 0x100, b"aaaa"), second._replace(address=va + second.address)]
    for batch in (sites, sites[::-1]):
        with pytest.raises(PokeError, match=reason):
            memory.poke_many(batch, x86_poke)
    assert memory.read(va + 0x100, 8) == bytes(8)
    assert memory.events.pokes == memory.events.icache_syncs == 0


def test_a_store_that_goes_elsewhere_is_seen(memory, x86_poke):
    """What was written is read back through the text's own address."""
    va = finished_text(memory)
    with pytest.raises(PokeError, match="read back differ: 00"):
        memory.poke(va, b"x", x86_poke, store=lambda *_: None)
    memory.check()


def test_a_step_that_is_left_out_is_not_done(memory, x86_poke):
    """Without the alias the store meets read-only text; without flush and sync nobody hears."""
    va = finished_text(memory)
    with pytest.raises(AccessError, match="mapped R-X"):
        memory.poke(va, b"x", x86_poke, omit={PokeStep.ALIAS})
    assert memory.read(va, 1) == b"\0"
    events = memory.events.copy()
    memory.poke(va, b"x", x86_poke, omit={PokeStep.FLUSH, PokeStep.SYNC})
    cost = memory.events - events
    assert (cost.tlb_flushes, cost.icache_syncs, cost.pokes) == (0, 0, 1)
    memory.poke(va, b"y", attrs.evolve(x86_poke, broadcast=True))
    assert (memory.events - events).tlb_flushes_all == 1


# Invariants ------------------------------------------------------------------------------------


def test_memory_born_read_only_is_read_only_in_the_direct_map_too(memory):
    """populate() without W takes it from the alias before the mapping exists."""
    reserved = memory.reserve(2 * MIB, memory.address_map.vmalloc, alignment=2 * MIB)
    assert memory.populate(reserved.start, 2 * MIB, Prot.RX, large=True, pattern=b"\xcc")
    assert memory.read(reserved.start, 3) == b"\xcc\xcc\xcc"
    assert memory.translate(direct_map_of(memory, reserved.start)).prot is Prot.R
    assert memory.page_table.wx_aliases() == []
    memory.depopulate(reserved.start, 2 * MIB)
    memory.release(reserved)
    memory.check()


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_populate_undoes_everything(memory, monkeypatch, fail_at):
    """Whichever step fails, frames, mappings and the direct map are as before."""
    reserved = memory.reserve(5 * MIB, memory.address_map.vmalloc, alignment=2 * MIB)
    free = memory.physical.free_bytes
    real, calls = memory.page_table.map, []

    def failing(va, *args, **kwargs):
        calls.append(va)
        if len(calls) == fail_at:
            raise MappingError("map", va, 0, "injected")
        real(va, *args, **kwargs)

    monkeypatch.setattr(memory.page_table, "map", failing)
    with pytest.raises(MappingError, match="injected"):
        memory.populate(reserved.start, 5 * MIB, Prot.RX, large=True)
    assert free == memory.physical.free_bytes
    assert list(memory.page_table.leaves(reserved)) == []
    memory.check()


def test_check_sees_a_free_frame_that_is_still_mapped(memory):
    """The invariants tie frames and page table together."""
    va = memory.vmalloc(PAGE_SIZE)
    memory.physical.free(memory.translate(va).address)
    with pytest.raises(AssertionError, match="free frame is mapped"):
        memory.check()


def test_check_sees_a_free_frame_that_is_not_read_write(memory):
    """A frame that was given back must be usable through the direct map."""
    frame = memory.physical.alloc_frame()
    memory.page_table.protect(DIRECT + frame, PAGE_SIZE, Prot.R)
    memory.check()
    memory.physical.free(frame)
    with pytest.raises(AssertionError, match="free frame near"):
        memory.check()


def test_check_sees_a_mapping_in_free_address_space(memory):
    """What maps kernel addresses reserves them first."""
    frame = memory.physical.alloc_frame()
    memory.page_table.map(0xFFFFC90000000000, frame, Prot.R, size=PAGE_SIZE)
    with pytest.raises(AssertionError, match="free address space"):
        memory.check()
