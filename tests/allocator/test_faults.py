# SPDX-License-Identifier: GPL-2.0-or-later
"""Every internal step refuses once, under every design: nothing is lost, and the next try works."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from allocator.designs import DESIGNS
from allocator.errors import AllocationError, ExecmemError
from allocator.execmem import Execmem
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory, repeat
from allocator.types import MIB, PAGE_SIZE, Consumer, MemType, Prot
from archs import archs
from tests.support.faults import POINTS, Faults

# DATA goes the way of RO_AFTER_INIT, without the seal.
KINDS = (MemType.TEXT, MemType.RODATA, MemType.RO_AFTER_INIT)


def make(arch, design, *, poke):
    """Return Execmem over 16 MiB of an architecture."""
    memory = KernelMemory(PhysicalMemory(16 * MIB), arch.loads.address_map(None))
    text_poke = arch.text_poke if poke else None
    return Execmem(memory, trap=arch.loads.trap, text_poke=text_poke, design=design)


def mapping(memory):
    """Return what is mapped where and how, whatever the sizes of leaves."""
    spans = []
    for leaf in memory.page_table.leaves():
        if spans:
            va, size, pa, prot = spans[-1]
            if (va + size, pa + size, prot) == (leaf.va, leaf.pa, leaf.prot):
                spans[-1] = (va, size + leaf.size, pa, prot)
                continue
        spans.append((leaf.va, leaf.size, leaf.pa, leaf.prot))
    return spans


def snapshot(execmem):
    """Return what a refused operation must not change."""
    memory = execmem.memory
    live = execmem.allocations()
    return (
        memory.physical.free_bytes,
        list(memory.free_space),
        sorted(execmem.design.free_intervals()),
        mapping(memory),
        live,
        [memory.read(allocation.address, allocation.size) for allocation in live],
    )


def first(execmem, kind):
    """Take memory where there is none yet."""
    return lambda: execmem.alloc(kind, 3 * PAGE_SIZE)


def scattered(execmem, kind):
    """Take memory where there is none yet, and no 2 MiB of frames lie together."""
    execmem.memory.physical.fragment()
    return first(execmem, kind)


def another(execmem, kind):
    """Take memory beside some that is there."""
    live(execmem, kind)
    return lambda: execmem.alloc(kind, 3 * PAGE_SIZE)


def write(execmem, kind):
    """Write over a page boundary."""
    pending = execmem.alloc(kind, 2 * PAGE_SIZE)
    return lambda: pending.write(4000, b"w" * 300)


def finish(execmem, kind):
    """Finish what was written."""
    live(execmem, kind)
    pending = execmem.alloc(kind, 3 * PAGE_SIZE - 10)
    pending.write(7, b"pending")
    return pending.finish


def abandon(execmem, kind):
    """Abandon what was written."""
    live(execmem, kind)
    pending = execmem.alloc(kind, 2 * PAGE_SIZE)
    pending.write(0, b"doomed")
    return pending.abandon


def seal(execmem, kind):
    """Seal one of two."""
    live(execmem, kind)
    chosen = live(execmem, kind)
    return lambda: execmem.seal(chosen)


def free(execmem, kind):
    """Free one of two; the other keeps what they share."""
    live(execmem, kind)
    chosen = live(execmem, kind)
    return lambda: execmem.free(chosen.address)


def free_sealed(execmem, kind):
    """Free one of two that was sealed."""
    step = free(execmem, kind)
    execmem.seal(execmem.allocations()[-1])
    return step


def last(execmem, kind):
    """Free all there is."""
    chosen = live(execmem, kind)
    return lambda: execmem.free(chosen.address)


def poke(execmem, kind):
    """Poke over a page boundary."""
    chosen = live(execmem, kind)
    return lambda: execmem.poke(chosen.address + 4000, b"poke" * 100)


def live(execmem, kind):
    """Return finished memory of three pages."""
    with execmem.alloc(kind, 3 * PAGE_SIZE) as pending:
        pending.write(0, b"x" * 3 * PAGE_SIZE)
        return pending.finish()


def quiet(execmem, kind):
    """Let leaves heal."""
    chosen = live(execmem, kind)
    if kind is MemType.RO_AFTER_INIT:
        execmem.seal(chosen)
    return execmem.quiet


def operations(kind, *, with_poke):
    """Return what can be done to memory of a type."""
    found = [first, scattered, another, write, finish, abandon, free, last, quiet]
    found += [seal, free_sealed] if kind is MemType.RO_AFTER_INIT else []
    return found + ([poke] if kind.is_text and with_poke else [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("design", DESIGNS)
def test_whichever_step_refuses_all_is_as_before_and_the_next_try_works(design, kind):
    """One refusal at the n-th call of each step, up to the fifth: no trace, no W and X, no leak."""
    fired = set()
    for arch, with_poke in zip(archs(), (True, False), strict=False):
        for prepare in operations(kind, with_poke=with_poke):
            execmem = make(arch, design, poke=with_poke)
            faults = Faults(execmem.memory)
            step = prepare(execmem, kind)
            faults.calls.clear()
            step()
            execmem.check()
            for point, calls in list(faults.calls.items()):
                for nth in range(1, min(calls, 5) + 1):
                    execmem = make(arch, design, poke=with_poke)
                    faults = Faults(execmem.memory)
                    step = prepare(execmem, kind)
                    before = snapshot(execmem)
                    refused = False
                    with faults.at(point, nth):
                        try:
                            step()
                        except ExecmemError:
                            refused = True
                    execmem.check()
                    fired |= faults.fired
                    if refused:
                        where = f"{arch.name}, {prepare.__name__}, {point}, call {nth}"
                        assert before == snapshot(execmem), where
                        step()
                        execmem.check()
    assert {"out of range", "out of frames", "map", "unmap"} <= fired
    if design == "strata" and kind is MemType.TEXT:
        assert fired == set(POINTS)


def test_what_ran_out_before_anything_changed_is_given_back_without_a_change(arch):
    """Frames end in the middle of a chunk: the direct map, still whole, has nothing to take back."""
    memory = make(arch, "strata", poke=False).memory
    faults, large = Faults(memory), memory.large_size
    while memory.physical.free_bytes >= 2 * large:
        memory.physical.alloc_run(memory.paging.large_order)
    memory.physical.alloc_frames(1)  # a chunk and most of another are left
    free, leaves = memory.physical.free_bytes, mapping(memory)
    place = memory.reserve(2 * large, memory.address_map.vmalloc, alignment=large)
    with faults.at("protect", 1), pytest.raises(AllocationError):
        memory.populate(place.start, 2 * large, Prot.R, large=True)
    assert (memory.physical.free_bytes, mapping(memory)) == (free, leaves)
    assert not faults.fired


class Churn(RuleBasedStateMachine):
    """All types and consumers come and go, and any step of any operation may refuse."""

    def __init__(self, arch, design, *, poke):
        super().__init__()
        self.execmem = make(arch, design, poke=poke)
        self.memory = self.execmem.memory
        self.faults = Faults(self.memory)
        self.trap = arch.loads.trap
        self.frames = self.memory.physical.free_bytes
        self.space = list(self.memory.free_space)
        self.pending = []  # [Pending, content]
        self.live = {}  # Allocation -> content
        self.sealed = set()

    def attempt(self, fault, step):
        """Carry out a step; where it is refused, see that nothing changed, and return None."""
        put_off = self.put_off()
        before = snapshot(self.execmem)
        point, nth = fault
        with self.faults.at(point, nth):
            try:
                return step() or True
            except ExecmemError:
                # A free that was put off earlier may have been carried out first.
                assert put_off or before == snapshot(self.execmem)
                return None

    def put_off(self):
        """Return areas that were freed and are not free yet."""
        return list(getattr(self.execmem.design.stores()[0], "put_off", ()))

    faults_or_none = st.one_of(
        st.just((None, 1)), st.tuples(st.sampled_from(list(POINTS)), st.integers(1, 4))
    )

    @rule(
        fault=faults_or_none,
        mem_type=st.sampled_from(MemType),
        consumer=st.sampled_from(Consumer),
        size=st.one_of(st.integers(1, 300), st.integers(1, 5 * PAGE_SIZE), st.just(2 * MIB + 1)),
        align=st.sampled_from([None, 64, 4 * PAGE_SIZE]),
    )
    def alloc(self, fault, mem_type, consumer, size, align):
        """Take memory: what is new is clean."""
        pending = self.attempt(
            fault, lambda: self.execmem.alloc(mem_type, size, consumer=consumer, align=align)
        )
        if pending:
            content = bytearray(self.content(pending))
            assert content in (bytes(size), repeat(self.trap, size, pending.address))
            self.pending.append((pending, content))

    @rule(fault=faults_or_none, data=st.data(), keep=st.sampled_from(["finish", "abandon"]))
    def settle(self, fault, data, keep):
        """Write, then finish or abandon; refused, it is as pending as before."""
        if not self.pending:
            return
        pending, content = data.draw(st.sampled_from(self.pending))
        start = data.draw(st.integers(0, pending.size - 1))
        if self.attempt(fault, lambda: pending.write(start, b"w" * (pending.size - start))):
            content[start:] = b"w" * (pending.size - start)
        allocation = self.attempt(fault, getattr(pending, keep))
        if allocation:
            self.pending.remove((pending, content))
            if keep == "finish":
                self.live[allocation] = content

    @rule(fault=faults_or_none, data=st.data())
    def free(self, fault, data):
        """Free; text that stays mapped traps."""
        if not self.live:
            return
        allocation = data.draw(st.sampled_from(list(self.live)))
        if self.attempt(fault, lambda: self.execmem.free(allocation.address)):
            del self.live[allocation]
            self.sealed.discard(allocation)
            taken = allocation.taken
            if allocation.type.is_text and taken not in self.put_off():
                for span in self.memory.page_table.spans(taken.start, taken.size):
                    traps = repeat(self.trap, span.size, span.va)
                    assert span.pa is None or self.memory.read(span.va, span.size) == traps

    @rule(fault=faults_or_none, data=st.data())
    def seal(self, fault, data):
        """Seal what is sealed once."""
        chosen = [a for a in self.live if a.type is MemType.RO_AFTER_INIT]
        chosen = [a for a in chosen if a not in self.sealed]
        if chosen:
            allocation = data.draw(st.sampled_from(chosen))
            if self.attempt(fault, lambda: self.execmem.seal(allocation)):
                self.sealed.add(allocation)

    @rule(fault=faults_or_none, data=st.data())
    def poke(self, fault, data):
        """Poke text that is finished."""
        texts = [a for a in self.live if a.type.is_text and a.size >= 4]
        if texts and self.execmem.text_poke:
            allocation = data.draw(st.sampled_from(texts))
            length = allocation.size & -4
            if self.attempt(
                fault, lambda: self.execmem.poke(allocation.address, b"pppp" * (length // 4))
            ):
                self.live[allocation][:length] = b"p" * length

    @invariant()
    def consistent(self):
        """Every invariant holds, every byte is what was written, protections are final."""
        self.execmem.check()
        for allocation, content in self.live.items():
            assert self.memory.read(allocation.address, allocation.size) == content
            unsealed = allocation.type is MemType.RO_AFTER_INIT and allocation not in self.sealed
            expected = Prot.RW if unsealed else allocation.type.final_prot
            assert self.memory.translate(allocation.address).prot is expected
        for pending, content in self.pending:
            assert self.content(pending) == content

    def content(self, pending):
        """Return what was written so far, wherever the design keeps it."""
        staged = self.execmem.design.staged(pending._allocation)
        return self.memory.read(staged, pending.size)

    def teardown(self):
        """Give everything back: frames and address space are as at the start."""
        for pending, _ in self.pending:
            pending.abandon()
        for allocation in self.live:
            self.execmem.free(allocation.address)
        self.execmem.check()
        kept = sum(area.size for area in self.execmem.design.free_intervals())
        assert self.frames == self.memory.physical.free_bytes + kept
        assert not kept or self.execmem.design.name.startswith("rox_cache")
        assert kept or self.space == list(self.memory.free_space)


@pytest.mark.parametrize("design", DESIGNS)
def test_churn_with_faults(arch, design):
    """No order of operations and refusals breaks an invariant or loses a byte or a frame."""
    # Each design does with text_poke on some architectures and without on the others.
    poke = (list(DESIGNS).index(design) + archs().index(arch)) % 2 == 0
    run_state_machine_as_test(
        lambda: Churn(arch, design, poke=poke),
        settings=settings(max_examples=2, stateful_step_count=16, deadline=None),
    )
