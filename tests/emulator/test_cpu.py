# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPU is as stale as hardware: until somebody flushes, and not a moment longer.

Oracles are the manuals' rules (a TLB entry lives until it is invalidated, an instruction
cache until it is maintained) and functions of a few instructions whose results are plain.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from allocator import DESIGNS, Interval, Prot
from allocator.types import PAGE_SIZE
from emulator.calls import NESTING
from emulator.cpu import Cpu
from emulator.faults import Fault, FaultKind
from emulator.tlb import PHYSICAL_WINDOW
from emulator.watchdog import WATCHDOG
from machine.face import Machine
from samples import modules
from tests.archs.facts import facts
from tests.machine.snippets import code, put, snippet


@pytest.fixture
def machine(arch):
    """Return a machine of each architecture."""
    return Machine(arch)


def page(machine, code, offset=0):
    """Return the address of code at `offset` of an executable page of its own."""
    memory = machine.memory
    va = memory.vmalloc(PAGE_SIZE)
    memory.write(va + offset, code)
    memory.set_memory_rox(va, PAGE_SIZE)
    memory.sync_icache(va, va + PAGE_SIZE)
    return va + offset


def faults(kind, call, *args, **limits):
    """Assert that a call stops for the reason `kind`; return the fault."""
    with pytest.raises(Fault) as caught:
        call(*args, **limits)
    assert caught.value.kind is kind
    return caught.value


def whole(va):
    """Return the page that starts at `va`."""
    return Interval(va, va + PAGE_SIZE)


# The TLB -------------------------------------------------------------------------------------


def test_code_runs_until_the_tlb_is_flushed(machine):
    """Taking X from a page stops its code at the flush, not before."""
    va = page(machine, code(machine.arch, "one"))
    assert machine.call(va) == 1
    machine.memory.page_table.change(va, PAGE_SIZE, off=Prot.X)
    assert machine.call(va) == 1
    machine.memory.flush_tlb(whole(va))
    assert faults(FaultKind.FETCH, machine.call, va).address == va


def test_stores_land_until_the_tlb_is_flushed(machine):
    """Taking W from a page stops stores to it at the flush, not before."""
    memory, store = machine.memory, snippet(machine, "store")
    va = memory.vmalloc(PAGE_SIZE)
    machine.call(store, va, 1)
    memory.page_table.change(va, PAGE_SIZE, off=Prot.W)
    machine.call(store, va, 2)
    assert machine.kernel.word(va) == 2
    memory.flush_tlb(whole(va))
    assert faults(FaultKind.WRITE, machine.call, store, va, 3).address == va
    assert machine.kernel.word(va) == 2


@pytest.mark.parametrize("offset", [0, 0x3F8, 0x800, 0xFF8], ids=hex)
def test_a_page_is_flushed_alone(machine, offset):
    """Data that was flushed is looked up again, wherever in the page; what lies beside it is not."""
    memory, load, store = machine.memory, snippet(machine, "load"), snippet(machine, "store")
    first = memory.vmalloc(3 * PAGE_SIZE)
    pages = [first + number * PAGE_SIZE + offset for number in range(3)]
    for at in pages:
        machine.call(store, at, 7)
    memory.page_table.protect(first, 3 * PAGE_SIZE, Prot.NONE)
    memory.flush_tlb(whole(pages[1] & -PAGE_SIZE))
    assert faults(FaultKind.READ, machine.call, load, pages[1]).address == pages[1]
    assert [machine.call(load, at) for at in (pages[0], pages[2])] == [7, 7]
    assert faults(FaultKind.WRITE, machine.call, store, pages[1], 8).address == pages[1]
    memory.page_table.protect(first, 3 * PAGE_SIZE, Prot.R)
    assert machine.call(load, pages[1]) == 7
    faults(FaultKind.WRITE, machine.call, store, pages[1], 8)
    assert faults(FaultKind.FETCH, machine.call, pages[1] & -16).reason == "mapped R--"


@pytest.mark.parametrize("last", [0, 1])
def test_a_page_is_flushed_in_every_view(machine, last):
    """Memory that was looked up with user memory open and closed, and is flushed in one of them."""
    loads = [put(machine, code) for code in facts(machine.arch).run.views]
    if not loads:
        pytest.skip(f"code of {machine.arch.name} looks memory up in one way")
    va = machine.memory.vmalloc(PAGE_SIZE)
    assert [machine.call(load, va) for load in (*loads, loads[last])] == [0, 0, 0]
    machine.memory.page_table.protect(va, PAGE_SIZE, Prot.NONE)
    machine.memory.flush_tlb(whole(va))
    for load in loads:
        assert faults(FaultKind.READ, machine.call, load, va).address == va


def test_data_that_was_flushed_becomes_code(machine):
    """What is executable only later is fetched where it lies then."""
    memory = machine.memory
    va = memory.vmalloc(PAGE_SIZE)
    machine.call(snippet(machine, "store"), va, 1)
    memory.flush_tlb(whole(va))
    assert faults(FaultKind.FETCH, machine.call, snippet(machine, "jump"), va).address == va
    memory.flush_tlb(whole(va))
    memory.write(va, code(machine.arch, "one"))
    memory.page_table.protect(va, PAGE_SIZE, Prot.RX)  # nobody can have looked that up
    assert machine.call(snippet(machine, "jump"), va) == 1


def test_a_load_does_not_license_a_store(machine):
    """A TLB entry made by a load of a read-only page gives no right to store."""
    memory = machine.memory
    va = memory.vmalloc(PAGE_SIZE, prot=Prot.R)
    assert machine.call(snippet(machine, "load"), va) == 0
    faults(FaultKind.WRITE, machine.call, snippet(machine, "store"), va, 1)


def test_another_frame_shows_after_the_flush(machine):
    """An address that is mapped to another frame reads and runs the old one until the flush."""
    memory, load = machine.memory, snippet(machine, "load")
    one, two = (page(machine, code(machine.arch, name)) for name in ("one", "two"))
    words = [machine.kernel.word(va) for va in (one, two)]
    assert (machine.call(one), machine.call(load, one)) == (1, words[0])
    frames = memory.page_table.frames(two, PAGE_SIZE)
    memory.page_table.unmap(one, PAGE_SIZE)
    memory.page_table.map(one, frames, Prot.RX, size=PAGE_SIZE)
    assert (machine.call(one), machine.call(load, one)) == (1, words[0])
    memory.flush_tlb(whole(one))
    assert (machine.call(one), machine.call(load, one)) == (2, words[1])


def test_unmapped_code_is_gone_after_the_flush(machine):
    """Freeing a page flushes it: its code faults at once, and again after a new allocation."""
    memory = machine.memory
    va = page(machine, code(machine.arch, "one"))
    assert machine.call(va) == 1
    memory.vfree(va)
    assert faults(FaultKind.FETCH, machine.call, va).reason == "not mapped"
    assert memory.vmalloc(PAGE_SIZE) == va
    assert faults(FaultKind.FETCH, machine.call, va).reason == "mapped RW-"


@pytest.mark.parametrize("offset", range(0x400, 0xC01, 0x200), ids=hex)
def test_code_anywhere_in_a_page(machine, offset):
    """A page has 4 KiB everywhere: code and data in its middle belong to it, not to a smaller one."""
    memory = machine.memory
    va = page(machine, code(machine.arch, "one"), offset)
    assert machine.call(va) == 1
    assert machine.call(snippet(machine, "load"), va) == machine.kernel.word(va)
    memory.page_table.change(va - offset, PAGE_SIZE, off=Prot.X)
    memory.flush_tlb(whole(va - offset))
    assert faults(FaultKind.FETCH, machine.call, va).address == va


# Translated code -----------------------------------------------------------------------------


def _by_alias(machine, va, data):
    """Store through a second, writable mapping of the frame, which goes away again."""
    memory = machine.memory
    other = memory.reserve(PAGE_SIZE, memory.address_map.vmalloc).start
    memory.page_table.set_pte(other, memory.translate(va).address & -PAGE_SIZE, Prot.RW)
    memory.write(other + va % PAGE_SIZE, data)
    memory.page_table.clear_pte(other)
    memory.flush_tlb(whole(other))


def _by_frame(machine, va, data):
    """Store to physical memory, as a device would."""
    machine.memory.physical.write(machine.memory.translate(va).address, data)


@pytest.mark.parametrize("write", [_by_alias, _by_frame])
def test_changed_code_is_stale_until_the_icache_is_synced(machine, write):
    """New code runs after the instruction cache was maintained; a TLB flush is not enough."""
    jump, va = snippet(machine, "jump"), page(machine, code(machine.arch, "one"), 0x100)
    assert machine.call(jump, va) == 1
    write(machine, va, code(machine.arch, "two"))
    assert machine.call(jump, va) == 1
    machine.memory.flush_tlb(whole(va & -PAGE_SIZE))
    assert machine.call(jump, va) == 1
    machine.memory.sync_icache(va, va + 16)
    assert machine.call(jump, va) == 2


def test_cache_maintenance_reaches_every_alias(machine):
    """Caches are maintained by physical address: code at another address of the frame is new too."""
    memory, jump = machine.memory, snippet(machine, "jump")
    va = page(machine, code(machine.arch, "one"))
    other = memory.reserve(PAGE_SIZE, memory.address_map.vmalloc).start
    memory.page_table.set_pte(other, memory.translate(va).address, Prot.RX)
    assert machine.call(jump, other) == machine.call(jump, va) == 1
    _by_frame(machine, va, code(machine.arch, "two"))
    memory.sync_icache(va, va + 16)
    assert machine.call(jump, other) == machine.call(jump, va) == 2


def test_cache_maintenance_makes_nothing_executable(machine):
    """Physical memory cannot be executed at the window through which caches are maintained."""
    va = page(machine, code(machine.arch, "one"))
    at = PHYSICAL_WINDOW + machine.memory.translate(va).address
    machine.memory.sync_icache(va, va + PAGE_SIZE)
    assert faults(FaultKind.FETCH, machine.call, at).address == at


def test_poked_code_runs_at_once(machine):
    """text_poke maintains the cache: the next call runs the new code."""
    if machine.execmem.text_poke is None:
        pytest.skip(f"{machine.arch.name} has no text_poke")
    va = snippet(machine, "one")
    assert machine.call(snippet(machine, "jump"), va) == 1
    machine.execmem.poke(va, code(machine.arch, "two"), expected=code(machine.arch, "one"))
    assert machine.call(snippet(machine, "jump"), va) == 2


@pytest.mark.parametrize("design", sorted(DESIGNS))
@pytest.mark.parametrize("text_poke", [None, False])
def test_reused_text_runs_the_new_module(arch, design, text_poke):
    """A module in the place of an unloaded one runs its own code, whatever the design."""
    machine = Machine(arch, design=design, text_poke=text_poke)
    starts = set()
    for _ in range(2):
        module = machine.load(modules.path(arch.name, "mathlib"))
        starts.add(module.symbols["mathlib_gcd"] & -PAGE_SIZE)
        assert module.call("mathlib_gcd", 12, 18) == 6
        module.unload()
        module = machine.load(modules.path(arch.name, "checksums"))
        starts.add(module.symbols["checksums_adler32"] & -PAGE_SIZE)
        assert module.call("checksums_adler32", b"Wikipedia", 9) == 0x11E60398
        module.unload()
    assert len(starts) == 1
    machine.check()


@pytest.mark.parametrize("design", sorted(DESIGNS))
@pytest.mark.parametrize("text_poke", [None, False])
def test_freed_text_traps_or_is_gone(arch, design, text_poke):
    """A pointer into freed text meets a trap or no mapping, never the old code."""
    machine = Machine(arch, design=design, text_poke=text_poke)
    keeper = machine.load(modules.path(arch.name, "hello"))
    module = machine.load(modules.path(arch.name, "mathlib"))
    gcd = module.symbols["mathlib_gcd"]
    assert machine.call(gcd, 12, 18) == 6
    module.unload()
    with pytest.raises(Fault) as caught:
        machine.call(gcd, 12, 18)
    assert caught.value.kind in (FaultKind.TRAP, FaultKind.FETCH)
    assert caught.value.pc == gcd
    assert keeper.call("hello_greet", 1) == 2


def test_each_cpu_is_stale_until_it_is_told(machine):
    """Of two CPUs over one memory, one that missed the maintenance still runs the old code."""
    other = Cpu(machine.arch, machine.memory)
    va = page(machine, code(machine.arch, "one"), 0x80)
    calling, kernel = machine.arch.runs.calling, machine.kernel

    def on_other():
        stack = machine.alloc(256) + 128
        other.write(calling.stack_pointer, stack)
        if calling.link is None:
            kernel.store(stack, kernel.return_address)
        else:
            other.write(calling.link, kernel.return_address)
        other.run(va, kernel.return_address, instructions=100, seconds=1)
        return other.read(calling.result)

    assert machine.call(va) == on_other() == 1
    other.close()
    _by_frame(machine, va, code(machine.arch, "two"))
    machine.memory.sync_icache(va, va + 16)
    assert machine.call(va) == 2
    assert on_other() == 1
    other.sync_icache(va, va + 16)
    assert on_other() == 2


# Limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 1000, 100_000])
def test_the_instruction_limit_is_exact(machine, limit):
    """A loop of n instructions goes round limit / n times."""
    count, counter = snippet(machine, "count"), machine.alloc(8)
    body = len(machine.places.disassembler.all(code(machine.arch, "count"), count))
    fault = faults(FaultKind.INSTRUCTION_LIMIT, machine.call, count, counter, instructions=limit)
    assert fault.reason == f"{limit} instructions"
    assert limit // body <= machine.kernel.word(counter) <= -(-limit // body)
    assert machine.call(snippet(machine, "one")) == 1


@pytest.mark.parametrize("limit", [0, -2])
def test_no_instructions_left_is_not_no_limit(machine, limit):
    """A limit of none at all stops before the first instruction."""
    one = snippet(machine, "one")
    fault = faults(FaultKind.INSTRUCTION_LIMIT, machine.call, one, instructions=limit)
    assert fault.pc == one


def test_the_time_limit_stops_an_endless_loop(machine):
    """An endless loop ends soon after its time, and the machine goes on."""
    spin = snippet(machine, "spin")
    start = time.monotonic()
    fault = faults(FaultKind.TIME_LIMIT, machine.call, spin, instructions=None, seconds=0.1)
    assert 0.1 <= time.monotonic() - start < 0.6
    assert (fault.pc, fault.reason) == (spin, "0.1 seconds")
    assert machine.call(snippet(machine, "one"), seconds=0.1) == 1


def test_limits_hold_by_default(machine):
    """A call without limits of its own has the machine's; None takes them away."""
    one, spin = snippet(machine, "one"), snippet(machine, "spin")
    machine.instructions = 1
    faults(FaultKind.INSTRUCTION_LIMIT, machine.call, one)
    assert machine.call(one, instructions=None) == 1
    machine.instructions, machine.seconds = None, 0.05
    faults(FaultKind.TIME_LIMIT, machine.call, spin)
    assert machine.call(one, instructions=None, seconds=None) == 1


def test_an_instruction_limit_survives_callbacks(machine):
    """A loop that calls back into Python and the guest pays for each instruction, once."""
    one, calls = snippet(machine, "one"), []
    machine.stub("limited", lambda: calls.append(machine.call(one, instructions=10)))
    machine.stub("unlimited", lambda: calls.append(machine.call(one, instructions=None)))
    for name in ("limited", "unlimited"):
        calls.clear()
        address = machine.kernel.address(name)
        loop = snippet(machine, "loop")
        faults(FaultKind.INSTRUCTION_LIMIT, machine.call, loop, address, instructions=200)
        # Instructions around the call, the stub's, two of what is called; one or two before.
        rounds = 200 // facts(machine.arch).run.nested
        assert len(calls) in (rounds - 1, rounds)
    assert machine.call(one) == 1


def test_a_smaller_limit_inside_does_not_leak_out(machine):
    """What stops a callback's own call does not stop the function around it."""
    counter, count = machine.alloc(8), snippet(machine, "count")

    def inner(x):
        faults(FaultKind.INSTRUCTION_LIMIT, machine.call, count, counter, instructions=3)
        return x + 1

    machine.stub("inner", inner)
    assert machine.call(snippet(machine, "apply"), machine.kernel.address("inner"), 20) == 41


@pytest.mark.parametrize(("around", "inside"), [(0.1, 30), (0.1, None), (30, 0.1)])
def test_time_inside_is_time_outside(machine, around, inside):
    """A callback's endless loop ends by whichever time runs out first."""
    spin = snippet(machine, "spin")
    machine.stub("slow", lambda _: machine.call(spin, seconds=inside))
    start = time.monotonic()
    apply, slow = snippet(machine, "apply"), machine.kernel.address("slow")
    fault = faults(FaultKind.TIME_LIMIT, machine.call, apply, slow, 0, seconds=around)
    assert time.monotonic() - start < 0.6
    assert fault.reason == "0.1 seconds"


def test_a_late_stop_is_not_taken_for_a_limit(machine):
    """A watchdog's stop that was meant for the run before does not end the next one."""
    machine.cpu._expired = True
    count, counter = snippet(machine, "count"), machine.alloc(8)
    faults(FaultKind.INSTRUCTION_LIMIT, machine.call, count, counter, instructions=100)
    assert machine.call(snippet(machine, "one")) == 1


def test_no_run_ends_while_one_is_stopped(machine):
    """What the watchdog has found late is what it stops: nothing begins in between."""
    one = snippet(machine, "one")
    machine.call(one)
    done = threading.Event()
    run = threading.Thread(target=lambda: (machine.call(one), done.set()))
    with WATCHDOG.stopping:
        run.start()
        assert not done.wait(0.2)
    assert done.wait(10)
    run.join()


# Callbacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", [lambda m: m.call, lambda m: m.kernel.call], ids=["user", "kernel"]
)
def test_registers_survive_a_callback(machine, call):
    """A function that calls Python that calls the guest finds its registers as they were."""
    one = snippet(machine, "one")
    machine.stub("nested", lambda x: call(machine)(one) + 10 * x)
    apply = snippet(machine, "apply")
    assert machine.call(apply, machine.kernel.address("nested"), 7) == 71 + 7


def test_a_fault_that_a_callback_catches_is_over(machine):
    """After Python handled a fault inside, the function around it goes on unharmed."""
    apply = snippet(machine, "apply")
    for kind, name, *args in (
        (FaultKind.READ, "load", 8),
        (FaultKind.INSTRUCTION, "invalid"),
        (FaultKind.TRAP, None),
    ):
        inner = put(machine, machine.arch.loads.trap) if name is None else snippet(machine, name)
        machine.stub("attempt", _attempt(machine, kind, inner, args))
        assert machine.call(apply, machine.kernel.address("attempt"), 5) == 11
    machine.check()


def _attempt(machine, kind, inner, args):
    def attempt(x):
        faults(kind, machine.call, inner, *args)
        return x + 1

    return attempt


def test_an_error_in_a_callback_comes_out_as_it_is(machine):
    """A Python exception in a callback ends the call and reaches the caller unchanged."""

    def broken(_):
        raise LookupError("not here")

    machine.stub("broken", broken)
    with pytest.raises(LookupError, match="not here"):
        machine.call(snippet(machine, "apply"), machine.kernel.address("broken"), 0)
    assert machine.call(snippet(machine, "one")) == 1


def test_callbacks_nest_only_so_deep(machine):
    """Guest and Python that call each other for ever stop with a panic that says so."""
    apply, depth = snippet(machine, "apply"), []

    def deeper(x):
        depth.append(x)
        return machine.call(apply, machine.kernel.address("deeper"), x + 1)

    machine.stub("deeper", deeper)
    fault = faults(FaultKind.PANIC, machine.call, apply, machine.kernel.address("deeper"), 0)
    assert "nest too deep" in fault.reason
    assert len(depth) == NESTING
    assert machine.call(snippet(machine, "one")) == 1


# Lifetime ------------------------------------------------------------------------------------


def test_nothing_keeps_a_machine_alive(arch):
    """A machine that nobody holds goes away, although a watchdog knows its CPU."""
    machine = Machine(arch)
    machine.call(snippet(machine, "one"))
    gone = weakref.ref(machine), weakref.ref(machine.cpu), weakref.ref(machine.memory)
    time.sleep(0.12)  # let the watchdog look at it
    del machine
    for _ in range(20):
        gc.collect()
        if not any(reference() for reference in gone):
            break
        time.sleep(0.02)
    assert [reference() for reference in gone] == [None, None, None]
