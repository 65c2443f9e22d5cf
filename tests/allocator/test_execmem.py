# SPDX-License-Identifier: GPL-2.0-or-later
"""Execmem over every design, with and without text_poke.

Long because all of it runs over the same designs, the states of a whole life included.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from allocator.designs import DESIGNS
from allocator.designs.pool import Pool
from allocator.errors import (
    AccessError,
    AllocationError,
    ExecmemError,
    LifecycleError,
    MappingError,
    PokeError,
)
from allocator.execmem import Execmem
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory, repeat
from allocator.types import (
    KIB,
    LARGE_PAGE_SIZE,
    MIB,
    PAGE_SIZE,
    Consumer,
    ExecmemType,
    Interval,
    MemType,
    Paging,
    Prot,
    align_up,
    size_text,
)

TRAP = b"\x00\x00\x20\xd4"  # BRK #0 of arm64, little endian
TEXT_TYPES = [MemType.TEXT, MemType.INIT_TEXT]
MODES = [(design, poke) for design in DESIGNS for poke in ("x86_poke", None)]
MODES += [("per_type", "arm64_poke"), ("strata", "arm64_poke")]
# With larger pages each design once each way. Leaves of 512 MiB are too much for the memory here;
# rox_cache needs large ones, as what is smaller is never given back.
GRANULES = [(*mode, PAGE_SIZE) for mode in MODES]
GRANULES += [(design, "x86_poke", 16 * KIB) for design in DESIGNS]
GRANULES += [(design, None, 64 * KIB) for design in DESIGNS if design != "rox_cache"]
GRANULES += [(design, None, 16 * KIB) for design in ("rox_cache", "strata")]


def make(design, poke, address_map, size=64 * MIB, page=PAGE_SIZE):
    """Return Execmem over fresh memory."""
    memory = KernelMemory(PhysicalMemory(size, paging=Paging(page)), address_map)
    return Execmem(memory, trap=TRAP, text_poke=poke, design=design)


def done(execmem, mem_type, data, **kwargs):
    """Allocate, write at offset 0 and finish."""
    with execmem.alloc(mem_type, len(data), **kwargs) as pending:
        pending.write(0, data)
        return pending.finish()


@pytest.fixture(params=GRANULES, ids=lambda mode: "-".join(map(str, mode)))
def execmem(request, x86_map):
    """Return Execmem in each mode, over one window of 1008 MiB."""
    design, poke, page = request.param
    size = (256 if page == 16 * KIB else 64) * MIB  # eight leaves of 32 MiB
    return make(design, request.getfixturevalue(poke) if poke else None, x86_map, size, page)


class Churn(RuleBasedStateMachine):
    """All types and consumers come and go; every byte and every invariant is looked at."""

    def __init__(self, design, poke, address_map, page):
        super().__init__()
        size = (256 if page == 16 * KIB else 32) * MIB  # large leaves are worth it from 256 on
        self.execmem = make(design, poke, address_map, size, page)
        self.memory = self.execmem.memory
        self.poke = poke
        self.free_bytes = self.memory.physical.free_bytes
        self.free_space = list(self.memory.free_space)
        self.pending = []  # [Pending, bytearray or None where text was not written]
        self.live = {}  # Allocation -> bytes
        self.sealed = set()

    @rule(
        mem_type=st.sampled_from(MemType),
        consumer=st.sampled_from(Consumer),
        size=st.one_of(
            st.integers(1, 300),
            st.integers(1, 5 * PAGE_SIZE),
            st.sampled_from([PAGE_SIZE, LARGE_PAGE_SIZE - 64, LARGE_PAGE_SIZE + 1]),
            st.sampled_from([16 * KIB, 64 * KIB + 1]),
        ),
        align=st.sampled_from([None, 1, 64, 256, PAGE_SIZE, 4 * PAGE_SIZE, 32 * PAGE_SIZE]),
    )
    def alloc(self, mem_type, consumer, size, align):
        """Take memory, or be told that there is none and see nothing changed."""
        before, put_off = self.snapshot(), self.put_off()
        try:
            pending = self.execmem.alloc(mem_type, size, consumer=consumer, align=align)
        except AllocationError:
            # A design that put a free off may have carried it out first.
            assert put_off or before == self.snapshot()
            return
        assert (size, mem_type, consumer) == (pending.size, pending.type, pending.consumer)
        assert pending.address % (align or 1) == 0
        found = self.content(pending)
        trap = repeat(TRAP, size, pending.address)
        if mem_type.is_text:
            assert found in (trap, bytes(size))
        else:
            assert found == bytes(size)
        self.pending.append((pending, bytearray(found)))

    @rule(data=st.data())
    def write(self, data):
        """Write anywhere inside a pending allocation, on no particular alignment."""
        if not self.pending:
            return
        pending, content = self.pending[data.draw(st.integers(0, len(self.pending) - 1))]
        start = data.draw(st.integers(0, pending.size))
        length = data.draw(st.integers(0, pending.size - start))
        seed = data.draw(st.integers(1, 255))
        written = repeat(bytes([seed, seed ^ 0x5A, 7]), length)
        pending.write(start, written)
        content[start : start + length] = written

    @rule(data=st.data(), keep=st.booleans())
    def settle(self, data, keep):
        """Finish or abandon; neither is possible twice."""
        if not self.pending:
            return
        index = data.draw(st.integers(0, len(self.pending) - 1))
        pending, content = self.pending.pop(index)
        if keep:
            allocation = pending.finish()
            assert pending.address == allocation.address
            self.live[allocation] = content
        else:
            pending.abandon()
        for again in (pending.finish, pending.abandon, lambda: pending.write(0, b"x")):
            with pytest.raises(LifecycleError):
                again()

    @rule(data=st.data())
    def free(self, data):
        """Free by address; text that stays mapped traps, the allocation is unknown then."""
        if not self.live:
            return
        allocation = list(self.live)[data.draw(st.integers(0, len(self.live) - 1))]
        del self.live[allocation]
        self.sealed.discard(allocation)
        self.execmem.free(allocation.address)
        taken = allocation.taken
        put_off = taken in self.put_off()
        for span in self.memory.page_table.spans(taken.start, taken.size):
            if span.pa is not None and allocation.type.is_text and not put_off:
                found = self.memory.read(span.va, span.size)
                assert found == repeat(TRAP, span.size, span.va)
        assert self.execmem.find(allocation.address) is None
        with pytest.raises(LifecycleError):
            self.execmem.free(allocation.address)

    @rule(data=st.data())
    def seal(self, data):
        """Seal RO_AFTER_INIT once; everything else is refused."""
        if not self.live:
            return
        allocation = list(self.live)[data.draw(st.integers(0, len(self.live) - 1))]
        if allocation.type is MemType.RO_AFTER_INIT and allocation not in self.sealed:
            self.execmem.seal(allocation)
            self.sealed.add(allocation)
        else:
            with pytest.raises(LifecycleError):
                self.execmem.seal(allocation)

    @rule(data=st.data())
    def poke_text(self, data):
        """Poke whole granules into finished text where the architecture can."""
        texts = [item for item in self.live if item.type.is_text and item.size >= 4]
        if not texts:
            return
        allocation = data.draw(st.sampled_from(texts))
        start = data.draw(st.integers(0, allocation.size // 4 - 1)) * 4
        old = bytes(self.live[allocation][start : start + 4])
        if self.poke is None:
            with pytest.raises(PokeError, match="no text_poke"):
                self.execmem.poke(allocation.address + start, b"\1\2\3\4", expected=old)
            return
        self.execmem.poke(allocation.address + start, b"\1\2\3\4", expected=old)
        self.live[allocation][start : start + 4] = b"\1\2\3\4"

    @invariant()
    def consistent(self):
        """Every invariant holds, every live byte is what was written."""
        self.execmem.check()
        assert sorted(self.live, key=lambda item: item.address) == self.execmem.allocations()
        for allocation, content in self.live.items():
            assert self.memory.read(allocation.address, allocation.size) == content
            assert self.execmem.find(allocation.interval.end - 1) == allocation
            prot = self.memory.translate(allocation.address).prot
            if allocation.type is MemType.RO_AFTER_INIT and allocation not in self.sealed:
                assert prot is Prot.RW
            else:
                assert prot is allocation.type.final_prot
        for pending, content in self.pending:
            assert self.content(pending) == content

    def content(self, pending):
        """Return what was written so far, wherever the design keeps it."""
        staged = self.execmem.design.staged(pending._allocation)
        return self.memory.read(staged, pending.size)

    def put_off(self):
        """Return the areas whose free was put off."""
        stores = self.execmem.design.stores()
        return [area for store in stores if isinstance(store, Pool) for area in store.held()]

    def snapshot(self):
        """Return what a refused operation must not change."""
        direct = self.memory.direct_map
        return (
            self.memory.physical.free_bytes,
            list(self.memory.free_space),
            [leaf for leaf in self.memory.page_table.leaves() if leaf.va not in direct],
            list(self.execmem.design.free_intervals()),
        )

    def teardown(self):
        """Give everything back: frames and address space are as at the start."""
        for pending, _ in self.pending:
            pending.abandon()
        for allocation in self.live:
            self.execmem.free(allocation.address)
        self.execmem.check()
        kept = sum(area.size for area in self.execmem.design.free_intervals())
        assert self.free_bytes == self.memory.physical.free_bytes + kept
        if kept:  # mm/execmem.c returns no small chunks
            assert self.execmem.design.name.startswith("rox_cache")
            return
        assert self.free_space == list(self.memory.free_space)
        direct = self.memory.direct_map
        assert all(leaf.va in direct for leaf in self.memory.page_table.leaves())
        assert all(leaf.prot is Prot.RW for leaf in self.memory.page_table.leaves())


@pytest.mark.parametrize(
    ("design", "poke", "page", "where"),
    [
        *((design, poke, page, "x86_map") for design, poke, page in GRANULES),
        ("vmalloc", "x86_poke", PAGE_SIZE, "tiny_map"),
        ("vmalloc_else", None, PAGE_SIZE, "x86_map"),
        ("per_type", "arm64_poke", PAGE_SIZE, "tiny_map"),
        ("three_block", "arm64_poke", PAGE_SIZE, "tiny_map"),
        ("three_block", "arm64_poke", 64 * KIB, "tiny_map"),
        ("rox_cache", None, PAGE_SIZE, "tiny_map"),
        ("rox_cache", None, 16 * KIB, "tiny_map"),
        ("rox_cache", None, 64 * KIB, "x86_map"),
        ("rox_cache_613", "arm64_poke", PAGE_SIZE, "tiny_map"),
        ("strata", "arm64_poke", PAGE_SIZE, "tiny_map"),
        ("strata", "arm64_poke", 16 * KIB, "tiny_map"),
        ("strata", None, PAGE_SIZE, "tiny_map"),
        ("strata", None, 64 * KIB, "tiny_map"),
    ],
)
def test_churn(request, design, poke, page, where):
    """No order of operations breaks an invariant or loses a byte, a frame or an address."""
    text_poke = request.getfixturevalue(poke) if poke else None
    address_map = request.getfixturevalue(where)
    run_state_machine_as_test(
        lambda: Churn(design, text_poke, address_map, page),
        settings=settings(max_examples=3, stateful_step_count=20, deadline=None),
    )


# Life cycle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mem_type", MemType)
def test_finished_memory_has_its_final_protection_and_is_not_written(execmem, mem_type):
    """After finish() the protection is final, write() is refused and text is not writable."""
    pending = execmem.alloc(mem_type, 100)
    pending.write(10, b"hello")
    allocation = pending.finish()
    with pytest.raises(LifecycleError, match="finished"):
        pending.write(0, b"x")
    if mem_type is MemType.RO_AFTER_INIT:
        execmem.seal(allocation)
    prot = execmem.memory.translate(allocation.address).prot
    assert mem_type.final_prot is prot
    assert execmem.memory.read(allocation.address + 10, 5) == b"hello"
    if Prot.W not in prot:
        with pytest.raises(AccessError):
            execmem.memory.write(allocation.address, b"x")


@pytest.mark.parametrize("mem_type", TEXT_TYPES)
def test_text_is_never_writable_and_executable(execmem, mem_type):
    """Neither at birth, nor while pending, nor at any flush that a CPU hears of."""
    seen = set()

    def look(*_):
        for leaf in execmem.memory.page_table.leaves():
            seen.add(leaf.prot)

    execmem.memory.on_tlb_flush(look)
    pending = execmem.alloc(mem_type, 5000)
    look()
    pending.write(0, b"\x90" * 5000)
    look()
    execmem.free(pending.finish().address)
    assert seen
    assert not any(Prot.W in prot and Prot.X in prot for prot in seen)


WINDOW = Interval(0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000)


def test_finish_makes_instruction_fetch_see_the_text(execmem):
    """An icache sync covers all of the text after its last byte was written."""
    pending = execmem.alloc(MemType.TEXT, 3 * PAGE_SIZE)
    pending.write(0, b"\x90" * 3 * PAGE_SIZE)
    synced = []
    execmem.memory.on_icache_sync(lambda start, end: synced.append(Interval(start, end)))
    allocation = pending.finish()
    assert any(interval.holds(allocation.interval) for interval in synced)


def test_leaving_the_block_without_finish_abandons(execmem):
    """By exception or not, unfinished memory goes back."""
    free = execmem.memory.physical.free_bytes
    with pytest.raises(ZeroDivisionError), execmem.alloc(MemType.TEXT, 100) as pending:
        raise ZeroDivisionError
    with execmem.alloc(MemType.TEXT, 100) as second:
        second.write(0, b"x")
    assert pending.address == second.address
    for settled in (pending, second):
        with pytest.raises(LifecycleError, match="abandoned"):
            settled.write(0, b"x")
    assert free == execmem.memory.physical.free_bytes
    assert execmem.allocations() == []
    execmem.check()


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (100, 1), (0, 101), (99, 2)])
def test_a_write_stays_inside(execmem, offset, size):
    """Not even padding of the own allocation is written."""
    pending = execmem.alloc(MemType.DATA, 100)
    with pytest.raises(AccessError, match="outside the allocation"):
        pending.write(offset, bytes(size))
    pending.write(100, b"")
    assert pending.finish().size == 100


def test_free_names_what_is_wrong(execmem):
    """Pending, inside, unknown and freed addresses are different mistakes."""
    pending = execmem.alloc(MemType.TEXT, 100)
    with pytest.raises(LifecycleError, match="pending"):
        execmem.free(pending.address)
    address = pending.finish().address
    with pytest.raises(LifecycleError, match=f"inside the allocation at {address:#x}"):
        execmem.free(address + 1)
    execmem.free(address)
    with pytest.raises(LifecycleError, match="no allocation"):
        execmem.free(address)
    with pytest.raises(LifecycleError, match="no allocation"):
        execmem.free(0)


def test_seal_is_for_live_ro_after_init_once(execmem):
    """Other types, dead allocations and a second time are refused."""
    allocation = done(execmem, MemType.RO_AFTER_INIT, b"x")
    execmem.seal(allocation)
    with pytest.raises(LifecycleError, match="already"):
        execmem.seal(allocation)
    data = done(execmem, MemType.DATA, b"x")
    with pytest.raises(LifecycleError, match="DATA is not sealed"):
        execmem.seal(data)
    execmem.free(allocation.address)
    with pytest.raises(LifecycleError, match="not a live"):
        execmem.seal(allocation)
    again = done(execmem, MemType.RO_AFTER_INIT, b"y")
    execmem.memory.write(again.address, b"z")


def test_find_knows_every_address_of_an_allocation_and_no_other(execmem):
    """The end is outside, as is what is still pending."""
    allocation = done(execmem, MemType.TEXT, bytes(100))
    assert allocation == execmem.find(allocation.address)
    assert allocation == execmem.find(allocation.address + 99)
    assert execmem.find(allocation.address + 100) is None
    assert execmem.find(allocation.address - 1) is None
    assert execmem.find(execmem.alloc(MemType.TEXT, 100).address) is None


@pytest.mark.parametrize(("size", "align"), [(0, None), (-1, None), (8, 3), (8, -4)])
def test_a_request_that_means_nothing_is_refused(execmem, size, align):
    """Sizes are positive, alignments powers of two."""
    with pytest.raises(AllocationError, match="TEXT for bpf"):
        execmem.alloc(MemType.TEXT, size, align=align, consumer=Consumer.BPF)


def test_unknown_designs_and_odd_traps_are_refused(memory):
    """The error lists the designs there are."""
    with pytest.raises(ExecmemError) as refused:
        Execmem(memory, trap=b"\xcc", text_poke=None, design="best")
    listed = str(refused.value).partition("there are ")[2].partition(", or ")[0].split(", ")
    assert listed == sorted(listed)
    assert set(listed) >= set(DESIGNS)
    with pytest.raises(ExecmemError, match="1, 2 or 4"):
        Execmem(memory, trap=b"abc", text_poke=None)


# Poke ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_poke_stays_inside_one_finished_allocation(design, x86_map, x86_poke):
    """Pending memory, padding, neighbours and free memory are refused."""
    execmem = make(design, x86_poke, x86_map)
    text = done(execmem, MemType.TEXT, b"\x90" * 60)
    done(execmem, MemType.TEXT, b"\x90" * 60)
    execmem.poke(text.address + 58, b"\xcc\xcc", expected=b"\x90\x90")
    assert execmem.memory.read(text.address + 58, 2) == b"\xcc\xcc"
    with pytest.raises(PokeError, match="beyond"):
        execmem.poke(text.address + 58, b"abc")
    with pytest.raises(PokeError, match="not in a finished"):
        execmem.poke(text.address + 60, b"a")
    pending = execmem.alloc(MemType.TEXT, 10)
    with pytest.raises(PokeError, match="not in a finished"):
        execmem.poke(pending.address, b"a")
    with pytest.raises(PokeError, match="expected 91"):
        execmem.poke(text.address, b"\x92", expected=b"\x91")


@pytest.mark.parametrize("design", DESIGNS)
def test_poke_writes_sealed_and_read_only_data_too(design, x86_map, x86_poke):
    """Rodata and sealed memory are poked; writable data is not."""
    execmem = make(design, x86_poke, x86_map)
    rodata = done(execmem, MemType.RODATA, b"abc")
    execmem.poke(rodata.address, b"x", expected=b"a")
    late = done(execmem, MemType.RO_AFTER_INIT, b"abc")
    with pytest.raises(PokeError, match="plainly"):
        execmem.poke(late.address, b"x")
    execmem.seal(late)
    execmem.poke(late.address, b"x")
    assert execmem.memory.read(late.address, 3) == execmem.memory.read(rodata.address, 3) == b"xbc"


# Ranges and exhaustion -------------------------------------------------------------------------------


@pytest.mark.parametrize(("design", "poke"), MODES)
def test_a_full_range_falls_back_and_then_says_so(request, tiny_map, design, poke):
    """First the range, then the fallback range, then an error with both and the largest run."""
    text_poke = request.getfixturevalue(poke) if poke else None
    execmem = make(design, text_poke, tiny_map)
    where = execmem.design.where(MemType.TEXT, Consumer.MODULE)
    taken = []
    with pytest.raises(AllocationError) as caught:
        taken += iter(lambda: done(execmem, MemType.TEXT, b"x" * 0x41000), None)
    execmem.check()
    assert (where.range, where.fallback) == caught.value.ranges
    largest = max(execmem.memory.free_space.largest(interval) for interval in caught.value.ranges)
    assert f"{largest:#x}" in caught.value.reason
    inside = [item for item in taken if not item.fallback]
    outside = [item for item in taken if item.fallback]
    assert all(where.range.holds(item.taken) for item in inside)
    assert all(where.fallback.holds(item.taken) for item in outside)
    assert taken == inside + outside
    assert len(outside) == execmem.memory.events.fallbacks
    # Steps of 260 or 264 KiB; chunks may waste some.
    assert len(inside) >= where.range.size // 0x42000 * 3 // 4
    assert len(outside) >= where.fallback.size // 0x42000 * 3 // 4
    execmem.free(inside[0].address)
    assert not done(execmem, MemType.TEXT, b"y" * 0x41000).fallback


@pytest.mark.parametrize(("design", "poke"), MODES)
def test_each_consumer_stays_in_its_range(request, tiny_map, design, poke):
    """Text of kprobes has a range of its own; data may lie wherever the modules' may."""
    text_poke = request.getfixturevalue(poke) if poke else None
    execmem = make(design, text_poke, tiny_map)
    for consumer in Consumer:
        kind = ExecmemType.KPROBES if consumer is Consumer.KPROBES else ExecmemType.MODULE_TEXT
        text = done(execmem, MemType.TEXT, b"x", consumer=consumer)
        assert tiny_map.range_of(kind).range.holds(text.taken)
        data = done(execmem, MemType.DATA, b"x", consumer=consumer)
        legal = tiny_map.range_of(ExecmemType.MODULE_DATA)
        assert legal.range.holds(data.taken) or legal.fallback.holds(data.taken)
    execmem.check()


@pytest.mark.parametrize("mem_type", list(MemType)[:4])
def test_without_frames_nothing_is_taken(execmem, mem_type):
    """Memory that is used up is an AllocationError that leaves all as it was."""
    physical, page = execmem.memory.physical, execmem.memory.page_size
    held = physical.alloc_frames(physical.free_bytes // page - 2)
    space = list(execmem.memory.free_space)
    free, whole = size_text(2 * page), size_text(physical.size)
    with pytest.raises(AllocationError, match=f"{free} of {whole} free"):
        execmem.alloc(mem_type, 3 * page)
    assert physical.free_bytes == 2 * page
    assert space == list(execmem.memory.free_space)
    execmem.check()
    # A small request still fits: a chunk may be as small as what is asked for. Twice its
    # size is there, for a design that keeps a copy until finish.
    physical.free_frames(held[:2])
    small = done(execmem, mem_type, b"x" * 5000)
    execmem.check()
    execmem.free(small.address)
    physical.free_frames(held[2:])
    execmem.check()


# Faults in the middle ----------------------------------------------------------------------------------


STEPS = [
    ("memory", "populate"),
    ("memory", "set_memory_nx"),
    ("memory", "set_memory_rw"),
    ("memory", "remap"),
    ("physical", "alloc_frames"),
    ("page_table", "map"),
]


@pytest.mark.parametrize("mem_type", list(MemType)[:4])
def test_a_fault_inside_alloc_leaves_no_trace(execmem, monkeypatch, mem_type):
    """Whichever internal step refuses, frames, mappings and address space are as before."""
    memory = execmem.memory
    owners = {"memory": memory, "physical": memory.physical, "page_table": memory.page_table}
    before = (memory.physical.free_bytes, list(memory.free_space))
    for owner, step in STEPS:
        calls = []

        def refuse(*_args, step=step, calls=calls, **_kwargs):
            calls.append(step)
            raise MappingError(step, 0, 0, "injected")

        with monkeypatch.context() as patched:
            patched.setattr(owners[owner], step, refuse)
            try:
                pending = execmem.alloc(mem_type, 3 * PAGE_SIZE)
            except MappingError:
                assert calls
            else:  # this design does not take that step
                assert not calls
                patched.undo()
                pending.abandon()
        assert before == (memory.physical.free_bytes, list(memory.free_space)), step
        execmem.check()


@pytest.mark.parametrize("mem_type", [MemType.TEXT, MemType.RODATA])
def test_a_fault_inside_finish_leaves_the_memory_pending(execmem, monkeypatch, mem_type):
    """An allocation that could not be finished can still be finished later, or abandoned."""
    for step in ("set_memory_ro", "set_memory_x", "set_memory_rox", "remap"):

        def refuse(*_args, step=step):
            raise MappingError(step, 0, 0, "injected")

        for settle in ("finish", "abandon"):
            pending = execmem.alloc(mem_type, 3 * PAGE_SIZE)
            pending.write(0, b"x")
            with monkeypatch.context() as patched:
                patched.setattr(execmem.memory, step, refuse)
                try:
                    pending.finish()
                except MappingError:
                    assert execmem.find(pending.address) is None
                else:  # this design does not take that step
                    execmem.free(pending.address)
                    continue
            getattr(pending, settle)()
            execmem.check()
            if settle == "finish":
                assert execmem.memory.read(pending.address, 1) == b"x"
                execmem.free(pending.address)
            execmem.check()
            assert not execmem.allocations()


# What the designs are about ------------------------------------------------------------------------------


def test_vmalloc_is_page_granular_with_guards_and_small_leaves(x86_map, x86_poke):
    """Each area has its own pages and one guard page; text costs direct-map splits for ever."""
    execmem = make("vmalloc", x86_poke, x86_map)
    start = WINDOW.start
    areas = [done(execmem, MemType.TEXT, bytes(size)) for size in (1, PAGE_SIZE, 3 * MIB, 5)]
    pages = [1, 1, 768, 1]
    gaps = [start + (sum(pages[:n]) + n) * PAGE_SIZE for n in range(4)]
    assert gaps == [area.address for area in areas]
    report = execmem.report()
    assert report.leaves == {MemType.TEXT: {PAGE_SIZE: 771, LARGE_PAGE_SIZE: 0}}
    assert report.large_share == {MemType.TEXT: 0.0}
    assert report.padding_bytes == 2 * PAGE_SIZE - 6 == report.events.padding_bytes
    assert report.events.guard_pages == 4
    assert report.events.direct_map_splits_2m >= 1
    for area in areas:
        execmem.free(area.address)
    after = execmem.report()
    assert after.direct_map_leaves[PAGE_SIZE] >= 512
    assert after.largest_free_share == 1.0


def test_vmalloc_text_is_zero_and_writable_at_birth(x86_map):
    """RW, not executable and zeroed: plain stores until finish."""
    execmem = make("vmalloc", None, x86_map)
    pending = execmem.alloc(MemType.TEXT, 10)
    assert execmem.memory.translate(pending.address).prot is Prot.RW
    assert execmem.memory.read(pending.address, 10) == bytes(10)


SHARED = {MemType.TEXT: 5000, MemType.RODATA: 10, MemType.RO_AFTER_INIT: 20, MemType.DATA: 4097}


def test_vmalloc_has_several_types_in_one_area(x86_map):
    """As module_alloc before Linux 6.4: one guard page, protections by page, one free."""
    execmem = make("vmalloc", None, x86_map)
    pending = execmem.alloc_area(SHARED, align=2 * PAGE_SIZE)
    start = WINDOW.start
    starts = [start + n * PAGE_SIZE for n in (0, 2, 3, 4)]
    assert [one.address for one in pending.values()] == starts
    assert execmem.memory.events.guard_pages == 1
    for number, one in enumerate(pending.values()):
        one.write(one.size - 1, bytes([number + 1]))
    parts = [one.finish() for one in pending.values()]
    assert {part.area for part in parts} == {Interval(start, start + 6 * PAGE_SIZE)}
    execmem.seal(parts[2])
    translate = execmem.memory.translate
    prots = [str(translate(start + n * PAGE_SIZE).prot) for n in range(6)]
    assert prots == ["R-X", "R-X", "R--", "R--", "RW-", "RW-"]
    assert translate(start + 6 * PAGE_SIZE) is None
    assert [execmem.memory.read(p.address + p.size - 1, 1)[0] for p in parts] == [1, 2, 3, 4]
    flushes = execmem.memory.events.tlb_flushes_all
    for part in parts[:3]:
        execmem.free(part.address)
        execmem.check()
        assert execmem.find(part.address) is None
        assert translate(start) is not None  # it goes as a whole
    execmem.free(parts[3].address)
    execmem.check()
    assert execmem.memory.events.tlb_flushes_all == flushes + 1
    assert translate(start) is None
    assert done(execmem, MemType.TEXT, bytes(6 * PAGE_SIZE)).address == start


def test_an_area_is_abandoned_as_a_whole(x86_map):
    """Finished or not, its parts leave nothing behind."""
    execmem = make("vmalloc", None, x86_map)
    pending = list(execmem.alloc_area(SHARED).values())
    finished = pending[0].finish()
    for one in pending[1:]:
        one.abandon()
    execmem.check()
    execmem.free(finished.address)
    execmem.check()
    assert execmem.report().largest_free_share == 1.0
    with pytest.raises(AllocationError, match="size 0"):
        execmem.alloc_area({**SHARED, MemType.DATA: 0})
    execmem.check()


def test_a_free_of_an_area_that_is_refused_can_be_repeated(x86_map, monkeypatch):
    """The last part stays live where unmapping fails."""
    execmem = make("vmalloc", None, x86_map)
    parts = [one.finish() for one in execmem.alloc_area(SHARED).values()]
    for part in parts[:3]:
        execmem.free(part.address)
    with monkeypatch.context() as patch:
        patch.setattr(execmem.memory, "depopulate", refuse)
        with pytest.raises(MappingError):
            execmem.free(parts[3].address)
    execmem.check()
    execmem.free(parts[3].address)
    execmem.check()
    assert execmem.memory.translate(parts[0].address) is None


def refuse(address, size):
    """Refuse to unmap."""
    raise MappingError("unmap", address, size, "refused by the test")


@pytest.mark.parametrize("design", [d for d in DESIGNS if d != "vmalloc"])
def test_other_designs_keep_types_apart(x86_map, x86_poke, design):
    """Only the design that was module_alloc has areas of several types."""
    execmem = make(design, x86_poke, x86_map)
    assert not execmem.mixes
    with pytest.raises(AllocationError, match="types are kept apart") as caught:
        execmem.alloc_area(SHARED)
    assert caught.value.design == design
    execmem.check()


@pytest.mark.parametrize("mem_type", [MemType.TEXT, MemType.DATA, MemType.RODATA])
def test_per_type_packs_many_areas_under_one_large_leaf(x86_map, x86_poke, mem_type):
    """A thousand small areas are one 2 MiB leaf, 64 bytes apart, and one direct-map split."""
    execmem = make("per_type", x86_poke, x86_map)
    areas = [done(execmem, mem_type, b"x" * 50) for _ in range(1000)]
    assert [areas[0].address + 64 * n for n in range(1000)] == [area.address for area in areas]
    report = execmem.report()
    assert report.leaves == {mem_type: {PAGE_SIZE: 0, LARGE_PAGE_SIZE: 1}}
    assert report.large_share == {mem_type: 1.0}
    assert (report.events.refills, report.events.small_refills) == (1, 0)
    assert report.events.direct_map_splits_2m == 0
    assert report.padding_bytes == 14_000
    assert report.free_mapped_bytes == LARGE_PAGE_SIZE - 64_000


def test_per_type_keeps_types_apart(x86_map, x86_poke):
    """No 2 MiB region of the window holds two kinds of memory."""
    execmem = make("per_type", x86_poke, x86_map)
    kinds = {}
    for _ in range(20):
        for mem_type in MemType:
            area = done(execmem, mem_type, b"x" * 3000)
            kind = mem_type if mem_type is MemType.RO_AFTER_INIT else mem_type.final_prot
            kinds.setdefault(area.address // LARGE_PAGE_SIZE, set()).add(kind)
    assert all(len(held) == 1 for held in kinds.values())
    assert len(kinds) == 4


def test_per_type_seals_without_touching_a_neighbour(x86_map, x86_poke):
    """Sealing one RO_AFTER_INIT area splits no leaf and leaves the next writable."""
    execmem = make("per_type", x86_poke, x86_map)
    first, second = (done(execmem, MemType.RO_AFTER_INIT, b"x" * 80) for _ in range(2))
    splits = execmem.memory.events.leaf_splits
    execmem.seal(first)
    assert splits == execmem.memory.events.leaf_splits
    execmem.memory.write(second.address, b"y")
    with pytest.raises(AccessError):
        execmem.memory.write(first.address, b"y")


def test_per_type_reuses_the_holes_that_init_leaves(x86_map, x86_poke):
    """Small text of any consumer goes where init text was, without a new chunk."""
    execmem = make("per_type", x86_poke, x86_map)
    init = done(execmem, MemType.INIT_TEXT, b"i" * 640)
    done(execmem, MemType.TEXT, b"t" * 640)
    execmem.free(init.address)
    assert execmem.memory.read(init.address, 640) == repeat(TRAP, 640, init.address)
    small = [
        done(execmem, MemType.TEXT, b"k" * 64, consumer=consumer)
        for consumer in Consumer
        for _ in range(2)
    ]
    assert [init.address + 64 * n for n in range(10)] == [area.address for area in small]
    assert execmem.memory.events.refills == 1


def test_per_type_chunks_are_neighbours_and_go_back_when_free(x86_map, x86_poke):
    """5 MiB take three adjacent chunks; a chunk is returned when its last area is freed."""
    execmem = make("per_type", x86_poke, x86_map)
    free = execmem.memory.physical.free_bytes
    large = done(execmem, MemType.TEXT, b"x" * 5 * MIB)
    small = done(execmem, MemType.TEXT, b"y")
    assert small.address == large.address + 5 * MIB
    assert execmem.memory.events.refills == 3
    execmem.free(large.address)
    assert execmem.memory.events.chunks_returned == 2
    assert execmem.memory.translate(large.address) is None
    assert execmem.memory.read(small.address, 1) == b"y"
    execmem.free(small.address)
    assert free == execmem.memory.physical.free_bytes
    assert execmem.memory.events.chunks_returned == 3


@pytest.mark.parametrize("poke", ["x86_poke", None])
def test_per_type_says_when_it_got_no_large_leaf(request, x86_map, poke):
    """Without a 2 MiB run a chunk has small leaves, and that is counted."""
    execmem = make("per_type", request.getfixturevalue(poke) if poke else None, x86_map)
    execmem.memory.physical.fragment(leave=1)
    done(execmem, MemType.DATA, b"x")
    text = done(execmem, MemType.TEXT, b"x")
    assert (execmem.memory.events.refills, execmem.memory.events.small_refills) == (2, 1)
    assert execmem.report().large_share == {MemType.DATA: 1.0, MemType.TEXT: 0.0}
    assert execmem.memory.read(text.address, 1) == b"x"
    execmem.check()


def test_per_type_with_text_poke_never_opens_text(x86_map, x86_poke):
    """Every leaf stays large and read-only from the first write to the free."""
    execmem = make("per_type", x86_poke, x86_map)
    keep = done(execmem, MemType.TEXT, b"k")
    seen = set()
    execmem.memory.on_tlb_flush(
        lambda *_: seen.update(leaf[1::2] for leaf in execmem.memory.page_table.leaves(WINDOW))
    )
    pending = execmem.alloc(MemType.TEXT, 10_000)
    assert execmem.memory.read(pending.address, 8) == repeat(TRAP, 8, pending.address)
    pending.write(0, b"x" * 10_000)
    execmem.free(pending.finish().address)
    assert {size for size, _ in seen} == {LARGE_PAGE_SIZE}
    assert execmem.memory.read(keep.address, 1) == b"k"
    assert execmem.memory.events.leaf_splits == 0


def test_per_type_without_text_poke_opens_one_slice_and_heals_it(x86_map):
    """NX before RW, neighbours untouched, one leaf again at the end; the alias stays split."""
    execmem = make("per_type", None, x86_map)
    keep = done(execmem, MemType.TEXT, b"k")
    events = execmem.memory.events.copy()
    pending = execmem.alloc(MemType.TEXT, 100)
    assert pending.address == keep.address + PAGE_SIZE
    assert execmem.memory.translate(pending.address) == (
        execmem.memory.translate(keep.address).address + PAGE_SIZE,
        Prot.RW,
        PAGE_SIZE,
    )
    assert execmem.memory.translate(keep.address).prot is Prot.RX
    pending.write(0, b"x")
    text = pending.finish()
    assert execmem.memory.translate(text.address)[1:] == (Prot.RX, LARGE_PAGE_SIZE)
    cost = execmem.memory.events - events
    assert (cost.leaf_splits, cost.collapses, cost.direct_map_splits_1g) == (1, 1, 0)
    assert execmem.memory.page_table.leaf_counts(execmem.memory.direct_map)[PAGE_SIZE] >= 512


@pytest.mark.parametrize(("design", "poke"), MODES)
def test_alignment_is_honoured_and_the_gap_is_not_lost(request, x86_map, design, poke):
    """An aligned area skips ahead; what it skipped serves a smaller request."""
    execmem = make(design, request.getfixturevalue(poke) if poke else None, x86_map)
    first = done(execmem, MemType.TEXT, b"a")
    aligned = done(execmem, MemType.TEXT, b"b", align=64 * 1024)
    between = done(execmem, MemType.TEXT, b"c")
    assert aligned.address == align_up(first.address + 1, 64 * 1024)
    assert first.address < between.address < aligned.address
    execmem.check()


def test_a_poke_writer_pads_to_granules_without_harm(x86_map, arm64_poke):
    """Odd writes into pending text keep the bytes around them."""
    execmem = make("per_type", arm64_poke, x86_map)
    pending = execmem.alloc(MemType.TEXT, 30)
    pending.write(5, b"abc")
    pending.write(7, b"X")
    pending.write(29, b"z")
    expected = bytearray(repeat(TRAP, 30, pending.address))
    expected[5:8], expected[29:30] = b"abX", b"z"
    assert execmem.memory.read(pending.address, 30) == expected


def test_check_sees_an_overlap_and_a_wrong_protection(x86_map, x86_poke):
    """Execmem's check() notices what another part broke."""
    execmem = make("per_type", x86_poke, x86_map)
    text = done(execmem, MemType.TEXT, b"x")
    execmem.memory.set_memory_nx(text.address, PAGE_SIZE)
    with pytest.raises(AssertionError, match="R--, not R-X"):
        execmem.check()
    execmem.memory.set_memory_x(text.address, PAGE_SIZE)
    execmem.check()
    alias = execmem.memory.direct_map.start + execmem.memory.translate(text.address).address
    execmem.memory.page_table.protect(alias, PAGE_SIZE, Prot.RW)
    with pytest.raises(AssertionError, match="writable and executable"):
        execmem.check()


def test_check_sees_free_text_that_does_not_trap(x86_map, x86_poke):
    """Unused text is full of traps, or check() says so."""
    execmem = make("per_type", x86_poke, x86_map)
    text = done(execmem, MemType.TEXT, b"x" * 64)
    execmem.memory.poke(text.address + 64, b"\x90", x86_poke)
    with pytest.raises(AssertionError, match="not clean"):
        execmem.check()
