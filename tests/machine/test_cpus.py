# SPDX-License-Identifier: GPL-2.0-or-later
"""Several CPUs over one memory: each has its registers, stack, task, TLB and translated code."""

from __future__ import annotations

import pytest

from allocator.types import ADDRESS_MASK, PAGE_SIZE, Interval
from archs import Anchor
from emulator.faults import BadCall, Fault, FaultKind
from emulator.tlb import STALE_RANGES, TLB_ENTRIES
from kernels.modelled.percpu import CANARY
from kernels.modelled.structs import POINTER, view
from machine.face import Machine
from machine.thread import interleave
from samples import modules
from tests.machine.snippets import code, put, snippet


@pytest.fixture
def machine(arch):
    """Return a machine of three CPUs of each architecture."""
    return Machine(arch, cpus=3)


def refused(function, *args, **kwargs):
    """Return the text of the BadCall that a call raises."""
    with pytest.raises(BadCall) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_how_many_there_may_be(arch):
    """A machine has 1 to 64 CPUs, and says so; a CPU that is not there cannot be used."""
    for count in (0, 65):
        with pytest.raises(ValueError, match="1 to 64"):
            Machine(arch, cpus=count)
    machine = Machine(arch)
    assert len(machine.cpus) == 1
    one = snippet(machine, "one")
    assert "no CPU 1" in refused(machine.call, one, cpu=1)
    assert "no CPU -1" in refused(machine.call, one, cpu=-1)


def test_each_cpu_computes_on_its_own(machine):
    """A module's function gives the same result on each CPU; CPU 0 is the one by default."""
    module = machine.load(modules.path(machine.arch.name, "mathlib"))
    gcd = module.symbols["mathlib_gcd"]
    assert [machine.call(gcd, 12, 18, cpu=n) for n in range(3)] == [6, 6, 6]
    assert module.call("mathlib_gcd", 10, 15, cpu=2) == 5
    assert machine.cpu.number == machine.memory.this_cpu == 0
    with machine.on(2) as cpu:
        assert (machine.cpu, machine.memory.this_cpu) == (cpu, 2)
        assert machine.call(gcd, 10, 15) == 5
    assert machine.cpu.number == machine.memory.this_cpu == 0


def test_each_cpu_has_its_own_per_cpu_memory_and_task(machine):
    """Initial contents are in every copy; a copy is reached by the CPU's own registers."""
    kernel, anchors = machine.kernel, machine.arch.runs.emulation.anchors
    base = kernel.percpu.alloc(16, 16)
    kernel.percpu.write(base, b"initial contents")
    copies, tasks = set(), set()
    for number in range(3):
        with machine.on(number) as cpu:
            copies.add(kernel.percpu.address(base))
            tasks.add(kernel.current)
            assert machine.read(kernel.percpu.address(base), 16) == b"initial contents"
            held = {anchor: cpu.read(name) & ADDRESS_MASK for name, anchor in anchors.items()}
            assert held[Anchor.PERCPU] == kernel.percpu.offset if Anchor.PERCPU in held else True
            if machine.arch.runs.emulation.canary is not None:
                anchor, structure = machine.arch.runs.emulation.canary
                offset = kernel.layouts.offset_of(structure, "stack_canary")
                assert kernel.word(held[anchor] + offset) == CANARY
    assert len(copies) == len(tasks) == 3


def test_variables_tell_of_all_cpus(machine):
    """nr_cpu_ids, the masks and __per_cpu_offset count the CPUs; this_cpu_off is each one's own."""
    kernel = machine.kernel
    assert kernel.word(kernel.address("nr_cpu_ids"), 4) == 3
    assert kernel.word(kernel.address("__cpu_online_mask")) == 0b111
    table = kernel.address("__per_cpu_offset")
    offsets = [kernel.word(table + POINTER * n) for n in range(4)]
    assert len(set(offsets[:3])) == 3
    assert offsets[3] == 0
    symbol = kernel.address("this_cpu_off")
    for number in range(3):
        with machine.on(number):
            assert kernel.word(kernel.percpu.address(symbol)) == offsets[number]
    if machine.arch.runs.emulation.percpu_from_zero:
        hot = kernel.address("pcpu_hot")
        for number in range(3):
            with machine.on(number):
                copy = view(kernel, "pcpu_hot", kernel.percpu.address(hot))
                assert copy.number("cpu_number") == number


def test_a_flush_of_one_cpu_leaves_the_others_stale(machine):
    """flush_tlb(all_cpus=False) is heard by the CPU that does it; the default by all."""
    memory, load = machine.memory, snippet(machine, "load")
    va = memory.vmalloc(PAGE_SIZE)
    memory.write(va, b"\1" + bytes(7))
    assert [machine.call(load, va, cpu=n) for n in range(3)] == [1, 1, 1]
    other = memory.vmalloc(PAGE_SIZE)
    memory.write(other, b"\2" + bytes(7))
    table, frame = memory.page_table, memory.translate(other).address
    old = table.unmap(va, PAGE_SIZE)
    table.set_pte(va, frame, memory.translate(other).prot)
    page = Interval(va, va + PAGE_SIZE)
    with machine.on(1):
        memory.flush_tlb(page, all_cpus=False)
    assert [machine.call(load, va, cpu=n) for n in range(3)] == [1, 2, 1]
    # Cache maintenance is no TLB flush.
    memory.sync_icache(load, load + 16)
    assert [machine.call(load, va, cpu=n) for n in range(3)] == [1, 2, 1]
    memory.flush_tlb(page)
    assert [machine.call(load, va, cpu=n) for n in range(3)] == [2, 2, 2]
    table.clear_pte(va)
    table.set_pte(va, int(old[0]), memory.translate(other).prot)


@pytest.mark.parametrize("others", [0, STALE_RANGES - 2, STALE_RANGES + 2])
def test_an_idle_cpu_catches_up_with_any_number_of_syncs(machine, others):
    """What was maintained while a CPU stood still holds when it goes on, however much it was."""
    memory, one, two = machine.memory, code(machine.arch, "one"), code(machine.arch, "two")
    va, jump = put(machine, one), snippet(machine, "jump")
    assert machine.call(jump, va, cpu=1) == 1
    memory.physical.write(memory.translate(va).address, two)
    assert machine.call(jump, va, cpu=1) == 1
    memory.sync_icache(va, va + len(two))
    for n in range(others):
        memory.sync_icache(machine.kernel.image.start + n, machine.kernel.image.start + n + 1)
    assert machine.call(jump, va, cpu=1) == 2


def test_a_breakpoint_says_where_the_guest_goes_on(machine):
    """A trap with a handler resumes where that set the pc; without one it is a fault."""
    trap, one = machine.arch.loads.trap, code(machine.arch, "one")
    va = put(machine, trap * (8 // len(trap)) + one)
    hits = []

    def handler(cpu):
        hits.append(cpu.number)
        return va + 8

    machine.breakpoints[va] = handler
    assert [machine.call(va, cpu=n) for n in (0, 2)] == [1, 1]
    assert machine.call(snippet(machine, "apply"), va, 2) == 3
    assert hits == [0, 2, 0]
    thread = machine.start(va, cpu=1)
    assert thread.step() is False
    assert thread.pc == va + 8
    assert thread.finish() == 1
    # A handler that goes nowhere ends by either limit.
    machine.breakpoints[va] = lambda _cpu: va
    for limits, kind in (
        ({"instructions": 50}, FaultKind.INSTRUCTION_LIMIT),
        ({"instructions": None, "seconds": 0.05}, FaultKind.TIME_LIMIT),
    ):
        with pytest.raises(Fault) as caught:
            machine.call(va, **limits)
        assert caught.value.kind is kind
    del machine.breakpoints[va]
    with pytest.raises(Fault) as caught:
        machine.call(va)
    assert (caught.value.kind, caught.value.pc) == (FaultKind.TRAP, va)


def test_a_tlb_is_finite(machine):
    """What a CPU looked up stays bounded, however much memory it touches."""
    load, size = snippet(machine, "load"), (TLB_ENTRIES + 10) * PAGE_SIZE
    va = machine.memory.vmalloc(size)
    for page in range(va, va + size, PAGE_SIZE):
        machine.call(load, page)
    assert len(machine.cpu._tlb._looked_up) <= TLB_ENTRIES


# Calls by steps --------------------------------------------------------------------------------


def test_a_call_goes_on_by_exactly_so_many_instructions(machine):
    """Stepping counts instructions: the same call takes the same steps, whatever their size."""
    module = machine.load(modules.path(machine.arch.name, "mathlib"))
    gcd = module.symbols["mathlib_gcd"]
    lengths = []
    for size in (1, 2, 7):
        thread, steps, places = machine.start(gcd, 1071, 462, cpu=1), 0, []
        assert thread.pc == gcd
        while not thread.step(size):
            steps += 1
            places.append(thread.pc)
        assert thread.result == 21
        lengths.append(steps * size)
        assert size > 1 or len(set(places)) > 1
    # Each counts the last, incomplete step as none.
    assert all(abs(n - lengths[0]) <= 7 for n in lengths)
    assert "is over" in refused(thread.step)


def test_two_calls_interleave_and_do_not_disturb_each_other(machine):
    """Any quantum gives both results; memory they share is shared."""
    module = machine.load(modules.path(machine.arch.name, "mathlib"))
    gcd = module.symbols["mathlib_gcd"]
    for quantum in (1, 3, 50):
        pair = [machine.start(gcd, *args, cpu=n) for n, args in ((0, (84, 36)), (2, (35, 49)))]
        assert interleave(*pair, quantum=quantum) == [12, 7]
    assert machine.threads == {}


def test_a_race_is_an_interleaving(machine):
    """Two CPUs that load, add and store lose a count when one runs between the other's steps."""
    count, cell = snippet(machine, "count"), machine.alloc(8)
    threads = [machine.start(count, cell, cpu=n) for n in (1, 2)]
    for _ in range(400):
        for thread in threads:
            thread.step()
    counted = machine.kernel.word(cell)
    for thread in threads:
        thread.cancel()
    whole = machine.arch.runs.calling.link is None  # one instruction counts, on x86-64
    # A round is the loop's instructions: two on x86-64, four elsewhere, of which a branch and its
    # delay slot are one step.
    late = machine.arch.runs.emulation.delay_slots is not None
    assert counted == (400 if whole else 400 // (4 - late))


def test_a_call_on_a_busy_cpu_is_an_interrupt(machine):
    """A call while another stands on the CPU runs on the rest of its stack, and disturbs nothing."""
    module = machine.load(modules.path(machine.arch.name, "mathlib"))
    gcd = module.symbols["mathlib_gcd"]
    thread = machine.start(gcd, 1071, 462, cpu=1)
    thread.step(3)
    assert "busy" in refused(machine.start, gcd, 1, 1, cpu=1)
    assert machine.call(gcd, 12, 18, cpu=1) == 6
    assert "has not returned" in refused(lambda: thread.result)
    assert thread.finish() == 21
    assert thread.done
    assert machine.start(gcd, 4, 6, cpu=1).finish() == 2


def test_a_call_that_faults_is_over(machine):
    """A fault ends the call and names its place; the CPU is free again."""
    load = snippet(machine, "load")
    thread = machine.start(load, 8, cpu=1)
    with pytest.raises(Fault) as caught:
        thread.finish()
    assert (caught.value.kind, caught.value.address, caught.value.pc) == (FaultKind.READ, 8, load)
    assert thread.done
    assert machine.call(snippet(machine, "one"), cpu=1) == 1
    spin = machine.start(snippet(machine, "spin"), cpu=1)
    with pytest.raises(Fault) as caught:
        spin.finish(instructions=1000)
    assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT
    spin.cancel()
    assert machine.call(snippet(machine, "one"), cpu=1) == 1


def test_a_kernel_function_may_let_another_cpu_run(machine):
    """A callback on CPU 0 runs a call on CPU 1, and sees its own registers afterwards."""
    one, seen = snippet(machine, "one"), []

    def visit():
        seen.append((machine.cpu.number, machine.call(one, cpu=1), machine.cpu.number))
        return 40

    machine.stub("visit", visit)
    apply = snippet(machine, "apply")
    assert machine.call(apply, machine.kernel.address("visit"), 2) == 42
    assert seen == [(0, 1, 0)]


def test_stop_machine_holds_every_other_cpu(machine):
    """While the machine is stopped nothing runs but the CPU that stopped it."""
    one, thread = snippet(machine, "one"), machine.start(snippet(machine, "spin"), cpu=2)
    with machine.on(1), machine.stop_machine():
        assert machine.call(one) == 1
        assert "CPU 0 waits in stop_machine()" in refused(machine.call, one, cpu=0)
        assert "CPU 2 waits in stop_machine()" in refused(thread.step)
    assert machine.call(one, cpu=2) == 1
    assert thread.step(10) is False
