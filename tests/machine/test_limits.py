# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that run away end in a typed fault, and the machine goes on as if nothing had been."""

from __future__ import annotations

import time

import pytest

from emulator.calls import STACK_SIZE
from emulator.faults import Fault, FaultKind
from kernels.modelled import kernel as kernel_module
from kernels.modelled import printk
from kernels.modelled.heap import COST
from machine.face import Machine
from tests.archs.facts import facts
from tests.machine.snippets import put, snippet


@pytest.fixture
def machine(arch):
    """Return a machine of each architecture with little memory for its guest."""
    return Machine(arch, heap_limit=1 << 20)


def ends(machine, name, *args, **limits):
    """Return the fault that an endless snippet ends in; the next call must work."""
    at = snippet(machine, name)
    with pytest.raises(Fault) as caught:
        machine.call(at, *args, **limits)
    assert machine.call(snippet(machine, "one")) == 1
    assert machine.calls.stack.depth == 0
    return caught.value


def test_instructions(machine):
    """A loop ends at the instruction limit."""
    fault = ends(machine, "spin", instructions=12_345)
    assert fault.kind is FaultKind.INSTRUCTION_LIMIT


def test_time(machine):
    """A loop ends at the time limit, the machine's own where the call has none."""
    machine.seconds = 0.1
    assert ends(machine, "spin").kind is FaultKind.TIME_LIMIT


def test_a_loop_that_looks_at_the_time(machine, capfd, arch):
    """A loop over `jiffies`, which the kernel computes, ends at the limit, and in silence."""
    jiffies = machine.kernel.address("jiffies")
    at = put(machine, bytes.fromhex(facts(arch).run.watch))
    with pytest.raises(Fault) as caught:
        machine.call(at, jiffies, seconds=0.2)
    assert caught.value.kind is FaultKind.TIME_LIMIT
    assert machine.call(snippet(machine, "one")) == 1
    assert capfd.readouterr() == ("", "")


def test_a_loop_of_questions(machine, arch):
    """A guest that is seldom executing when its time is looked at ends in time all the same."""
    at = put(machine, bytes.fromhex(facts(arch).run.ask))
    start = time.monotonic()
    with pytest.raises(Fault) as caught:
        machine.call(at, seconds=0.5)
    assert caught.value.kind is FaultKind.TIME_LIMIT
    assert time.monotonic() - start < 1.5  # others use this computer too


def test_the_kernel_stack(machine):
    """Endless recursion runs into the guard page below the stack."""
    fault = ends(machine, "recurse")
    assert (fault.kind, fault.reason) == (
        FaultKind.WRITE,
        "stack overflow: below the kernel stack",
    )
    assert machine.calls.stack.start - STACK_SIZE < fault.address < machine.calls.stack.start


def test_recursion_through_the_kernel(machine):
    """A function that a kernel function calls back, and that calls it again, ends."""
    again = machine.kernel.address
    machine.stub("again", lambda: machine.kernel.call(loop, again("again")))
    loop = snippet(machine, "loop")
    fault = ends(machine, "loop", machine.kernel.address("again"))
    assert (fault.kind, fault.reason) == (FaultKind.PANIC, "callbacks nest too deep")


def test_the_heap(machine):
    """A guest that only allocates gets NULL at the limit; what it frees it can have again."""
    kmalloc, kfree = (machine.kernel.address(n) for n in ("__kmalloc_noprof", "kfree"))
    for size in (8, 3000, 100_000):
        taken = []
        while address := machine.call(kmalloc, size, 0xCC0):
            taken.append(address)
        room = 1 << (size - 1).bit_length()
        assert len(taken) == (1 << 20) // (room + COST)
        for address in taken:
            machine.call(kfree, address)
    assert machine.kernel.heap.used == 0
    vmalloc = machine.kernel.address("vmalloc_noprof")
    assert machine.call(vmalloc, 2 << 20) == 0
    assert machine.call(vmalloc, 1 << 19) != 0


def test_the_log(machine, monkeypatch):
    """A guest that only prints is not stopped by it: the newest lines are there, and a count."""
    monkeypatch.setattr(printk, "LOG_LINES", 100)
    said = iter(range(1 << 62))
    machine.stub("chat", lambda: machine.kernel.print(b"line %d\n" % next(said)))
    fault = ends(machine, "loop", machine.kernel.address("chat"), instructions=10_000)
    assert fault.kind is FaultKind.INSTRUCTION_LIMIT
    total = next(said)
    dropped, *lines = [line.text for line in machine.log]
    assert 75 <= len(lines) <= 100
    assert dropped == f"{total - len(lines)} lines dropped"
    assert lines == [f"line {n}" for n in range(total - len(lines), total)]
    assert machine.log.total == total
    assert machine.log.since(total - 5) == tuple(machine.log[-5:])
    machine.log.clear()
    machine.kernel.print(b"again\n")
    assert [line.text for line in machine.log] == ["again"]


def test_registrations(machine, monkeypatch):
    """A guest that only registers ends."""
    monkeypatch.setattr(kernel_module, "RECORDS", 50)
    machine.stub("enlist", lambda: machine.kernel.register("class", 0x1000, "c") and None)
    fault = ends(machine, "loop", machine.kernel.address("enlist"))
    assert (fault.kind, fault.reason) == (FaultKind.MEMORY_LIMIT, "50 registrations")
    assert len(machine.registry) == 50
