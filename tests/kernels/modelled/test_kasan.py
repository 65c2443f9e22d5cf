# SPDX-License-Identifier: GPL-2.0-or-later
"""Checked kmalloc memory: what is wrong is found at the byte, and what is right is left alone."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.errors import ExecmemError
from emulator.faults import Fault, FaultKind
from kernels.modelled.kasan import QUARANTINE, RED_ZONE
from machine.arguments import Out
from machine.face import Machine
from samples.modules import root
from tests.machine.snippets import snippet


@pytest.fixture
def machine(arch):
    """Return a machine of each architecture that checks."""
    if arch.runs.emulation.delay_slots is not None:
        with pytest.raises(ExecmemError, match="accesses in delay slots cannot be checked"):
            Machine(arch, kasan=True)
        pytest.skip(f"accesses in delay slots of {arch.name} cannot be checked")
    return Machine(arch, kasan=True, root=root(arch.name))


def caught(function, *args):
    """Return the fault that a call ends in."""
    with pytest.raises(Fault) as found:
        function(*args)
    return found.value


@pytest.mark.parametrize("name", ["load", "store"])
@pytest.mark.parametrize("size", [1, 8, 13, 64, 5000])
def test_the_byte_decides(machine, name, size):
    """Eight bytes at any offset around an object are fine exactly when all lie inside it."""
    at, code = machine.alloc(size), snippet(machine, name)
    for offset in (-RED_ZONE, -8, -7, -1, 0, size - 8, size - 7, size - 1, size, size + 8):
        inside = 0 <= offset <= size - 8
        if inside:
            machine.call(code, at + offset, 5)
            continue
        fault = caught(machine.call, code, at + offset, 5)
        assert fault.kind is FaultKind.OUT_OF_BOUNDS
        assert fault.pc == code
        wrong = at + offset if offset < 0 or offset >= size else at + size
        assert fault.address == wrong
        before, behind = f"{at - wrong} bytes before", f"{wrong - at - size} bytes behind"
        what = "write" if name == "store" else "read"
        expected = f"{what} of 8 bytes, {before if offset < 0 else behind} the {size}-byte object"
        assert fault.reason.startswith(expected)


def test_a_callback_is_the_guests_own(machine):
    """What is wrong in a function that the kernel calls back is there, not in who calls it."""
    at, load, apply = machine.alloc(8), snippet(machine, "load"), snippet(machine, "apply")
    machine.stub("calls_back", lambda: machine.kernel.call(load, at + 8))
    fault = caught(machine.call, apply, machine.kernel.address("calls_back"), 0)
    assert (fault.kind, fault.pc) == (FaultKind.OUT_OF_BOUNDS, load)
    assert fault.instruction
    assert "calls_back" not in str(fault)


def test_use_after_free(machine):
    """A freed object is out of use, says who had it, and keeps nothing from the next one."""
    at, load = machine.alloc(24), snippet(machine, "load")
    machine.free(at)
    fault = caught(machine.call, load, at + 8)
    assert (fault.kind, fault.address) == (FaultKind.USE_AFTER_FREE, at + 8)
    assert "8 bytes into the 24-byte object" in fault.reason
    assert "freed at a place outside the guest" in fault.reason
    assert machine.alloc(24) != at
    assert machine.call(snippet(machine, "one")) == 1


def the_table(machine):
    """Return the object that the module checksums allocates in its init."""
    machine.load("checksums")
    (table,) = (at for at, size in machine.kernel.heap.live().items() if size == 1024)
    return table


def test_sites_are_the_modules(machine):
    """What a module does with memory is told with its function, offset and name."""
    table = the_table(machine)
    machine.kernel.heap.free(table)  # behind the module's back
    module = machine.modules["checksums"]
    fault = caught(module.call, "checksums_crc32", b"123456789", 9, 0)
    assert fault.kind is FaultKind.USE_AFTER_FREE
    assert fault.where.startswith("checksums_crc32+0x")
    assert fault.instruction
    assert table <= fault.address < table + 1024
    assert re.search(r"allocated at \w+\+0x\w+/0x\w+ \[checksums\], freed at", fault.reason)
    fault = caught(module.unload)
    assert (fault.kind, fault.address) == (FaultKind.DOUBLE_FREE, table)
    assert fault.reason.endswith("in kfree()")


def test_kernel_functions_are_checked_for_the_guest(machine):
    """A memcpy beyond an object is the caller's fault; a string may end at the last byte."""
    source, target = machine.alloc(b"x" * 100), machine.alloc(10)
    memcpy, strlen = machine.kernel.address("memcpy"), machine.kernel.address("strlen")
    fault = caught(machine.call, memcpy, target, source, 11)
    assert fault.kind is FaultKind.OUT_OF_BOUNDS
    assert fault.address == target + 10
    assert fault.reason.endswith("in memcpy()")
    assert machine.call(memcpy, target, source, 10) == target
    fault = caught(machine.call, strlen, source)  # without its NUL
    assert (fault.kind, fault.address) == (FaultKind.OUT_OF_BOUNDS, source + 100)
    assert machine.call(strlen, machine.alloc(b"twelve bytes\0")) == 12


def test_freed_memory_comes_back(machine):
    """The quarantine is bounded: freed objects are used again when it is full."""
    first = machine.alloc(40)
    machine.free(first)
    seen = set()
    for _ in range(QUARANTINE + 400):
        at = machine.alloc(40)
        machine.call(snippet_once(machine, "load"), at)
        seen.add(at)
        machine.free(at)
    assert len(seen) < QUARANTINE + 400
    machine.check()


_PLACED = {}


def snippet_once(machine, name):
    """Return a snippet's address, placed once in each machine."""
    return _PLACED.setdefault((id(machine), name), snippet(machine, name))


def test_leaks_at_unload(machine):
    """What a module's functions allocated and did not free is listed when it goes."""
    table = the_table(machine)
    machine.stub("kfree", 0)
    machine.modules["checksums"].unload()
    (leak,) = machine.leaks
    assert leak.startswith(f"checksums leaks the 1024-byte object at {table:#x}, allocated at ")
    assert leak.endswith("[checksums]")
    machine.load("hello").unload()
    assert machine.leaks == [leak]


def test_modules_that_do_nothing_wrong(machine):
    """The sample modules run as without checking."""
    plain = Machine(machine.arch, root=root(machine.arch.name))
    for name in ("checksums", "sorting", "tables", "hello", "mathuser"):
        assert machine.load(name).state is plain.load(name).state
    out = Out(16)
    machine.modules["checksums"].call("checksums_crc32", b"123456789", 9, 0)
    assert machine.modules["checksums"].call("checksums_adler32", b"Wikipedia", 9) == 0x11E60398
    assert bytes(out) == bytes(16)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), max_size=60))
def test_the_shadow_agrees_with_a_model(steps):
    """After any allocations and frees, the bytes that may be touched are those of live objects."""
    machine = Machine("riscv64", kasan=True)
    heap, live = machine.kernel.heap, {}
    for frees, size in steps:
        if frees and live:
            address = sorted(live)[size % len(live)]
            assert heap.free(address)
            del live[address]
        else:
            live[heap.alloc(size)] = size
    assert heap.live() == live
    ends = sorted((at, at + size) for at, size in live.items())
    assert all(one[1] + 2 * RED_ZONE <= two[0] for one, two in itertools.pairwise(ends))
    start = machine.memory.direct_map.start
    for at, size in live.items():
        heap.check(at - start, size, write=True)
        for outside in (at - 1, at + size):
            with pytest.raises(Fault):
                heap.check(outside - start, 1, write=False)
