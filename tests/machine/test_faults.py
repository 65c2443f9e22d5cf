# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever stops the guest is said exactly: what, where, at which instruction, on what.

Addresses are worked out from where things were put; instructions by capstone, set up here
from the architecture's record; nothing is left behind, and everything can be called again.
"""

from __future__ import annotations

import re

import capstone
import pytest

from allocator.types import PAGE_SIZE, MemType
from emulator.faults import BadCall, Fault, FaultKind
from machine.arguments import Out
from machine.face import Machine
from samples import modules
from tests.archs.facts import facts
from tests.machine.snippets import code, put, snippet
from tests.support.modules import module as mini_module

NOWHERE = 0xFFFF_FFFF_0000_0000  # between direct map, vmalloc, modules and image everywhere


@pytest.fixture
def machine(arch):
    """Return a machine of each architecture."""
    return Machine(arch)


@pytest.fixture
def fault(machine):
    """Return a function that makes a call that must fault, and checks what holds afterwards."""

    def call(function, *args, **limits):
        before = machine.kernel.heap.live()
        if isinstance(function, int):
            args, function = (function, *args), machine.call
        with pytest.raises(Fault) as caught:
            function(*args, **limits)
        assert machine.kernel.heap.live() == before
        machine.check()
        return caught.value

    return call


def load(machine, name):
    """Load a sample."""
    return machine.load(modules.path(machine.arch.name, name))


def disassembled(machine, address):
    """Return the instruction at `address` by a capstone of our own."""
    emulation = machine.arch.runs.emulation
    mode = 0
    for name in emulation.capstone_mode:
        mode |= getattr(capstone, name)
    engine = capstone.Cs(getattr(capstone, emulation.capstone_prefix), mode)
    found = next(engine.disasm(machine.read(address, 16), address, 1))
    return f"{found.mnemonic} {found.op_str}".strip()


def check_place(machine, fault, module, function):
    """Assert that a fault's place is an instruction of a module's function."""
    offset = fault.pc - module.symbols[function]
    assert 0 <= offset < 0x200
    assert fault.where == f"{function}+{offset:#x} [{module.name}]"
    assert fault.instruction == disassembled(machine, fault.pc)
    assert f"at {fault.where} (pc {fault.pc:#x}): {fault.instruction}" in str(fault)


# Data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["load", "store"])
@pytest.mark.parametrize("address", [NOWHERE, NOWHERE + 0x123, 0x1234_5678_9ABC_DEF1])
def test_memory_that_is_not_mapped(machine, fault, name, address):
    """A load or store where nothing is mapped gives its address to the byte."""
    address &= -8 if facts(machine.arch).run.aligned else -1
    at = snippet(machine, name)
    found = fault(at, address, 5)
    assert found.kind is (FaultKind.READ if name == "load" else FaultKind.WRITE)
    assert (found.pc, found.address, found.reason) == (at, address, "not mapped")
    assert found.instruction == disassembled(machine, at)
    assert found.where == f"{at:#x}"


def test_the_first_byte_that_fails(machine, fault):
    """An access that runs out of mapped memory fails at the first byte outside."""
    if facts(machine.arch).run.aligned:
        pytest.skip(f"no access of {machine.arch.name} spans two pages")
    end = machine.memory.direct_map.end
    for name in ("load", "store"):
        assert fault(snippet(machine, name), end - 4, 1).address == end
    assert machine.read(end - 4, 4) == bytes(4)


def test_null_pointer(machine, fault):
    """A NULL pointer is called one, with the function of the module that followed it."""
    module = load(machine, "checksums")
    found = fault(module.call, "checksums_adler32", 0, 4)
    assert (found.kind, found.address, found.reason) == (FaultKind.READ, 0, "NULL pointer")
    check_place(machine, found, module, "checksums_adler32")
    found = fault(module.call, "checksums_adler32", 0x21, 4)
    assert (found.address, found.reason) == (0x21, "NULL pointer")
    assert module.call("checksums_adler32", b"Wikipedia", 9) == 0x11E60398


def test_data_sealed_after_init(machine, fault):
    """A store to ro_after_init data is refused and says why; the value stays."""
    module = load(machine, "sealed")
    value = module.call("sealed_get")
    found = fault(module.call, "sealed_try_write", value ^ 1)
    assert found.kind is FaultKind.WRITE
    assert found.address == module.symbols["sealed_value"]
    assert found.reason == "mapped R--: ro_after_init of sealed (sealed after init)"
    check_place(machine, found, module, "sealed_try_write")
    assert module.call("sealed_get") == value


@pytest.mark.parametrize(
    ("symbol", "reason"),
    [
        ("crc_table", "mapped R--: rodata of tables"),
        ("tables_dispatch", "mapped R-X: text of tables"),
    ],
)
def test_stores_to_what_is_read_only(machine, fault, symbol, reason):
    """Rodata and text of a module are not writable, and the fault names them."""
    module = load(machine, "tables")
    at = module.symbols[symbol] + (8 if facts(machine.arch).run.aligned else 3)
    before = machine.read(at, 8)
    found = fault(snippet(machine, "store"), at, 0)
    assert (found.kind, found.address, found.reason) == (FaultKind.WRITE, at, reason)
    assert machine.read(at, 8) == before


def test_stack_overflow(machine, fault):
    """Recursion without end is called a stack overflow."""
    at = snippet(machine, "recurse")
    found = fault(at)
    assert found.kind is FaultKind.WRITE
    assert found.reason == "stack overflow: below the kernel stack"
    assert machine.calls.stack.start - PAGE_SIZE <= found.address < machine.calls.stack.start
    assert at <= found.pc < at + len(code(machine.arch, "recurse"))
    assert found.instruction == disassembled(machine, found.pc)


# Instructions --------------------------------------------------------------------------------


def test_calls_of_what_is_not_executable(machine, fault):
    """A jump to data, to nothing and to NULL faults at its target."""
    jump = snippet(machine, "jump")
    module = load(machine, "sorting")
    swaps, heap = module.symbols["swaps"], machine.alloc(64)
    for target, reason in (
        (0, "NULL pointer"),
        (NOWHERE + 0x100, "not mapped"),
        (heap, "mapped RW-"),
        (swaps, "mapped RW-: data of sorting"),
    ):
        found = fault(jump, target)
        assert (found.kind, found.pc, found.address) == (FaultKind.FETCH, target, target)
        assert found.reason == reason


def test_a_corrupted_function_pointer(machine, fault):
    """A module that calls through a pointer that somebody overwrote faults at its value."""
    module = load(machine, "sorting")
    orders = module.symbols["orders"]
    kept = machine.read(orders, 8)
    machine.write(orders, (NOWHERE + 8).to_bytes(8, "little"))
    found = fault(module.call, "sorting_sort", bytes(range(16)), 4)
    assert (found.kind, found.pc) == (FaultKind.FETCH, NOWHERE + 8)
    assert found.instruction == ""
    machine.write(orders, kept)
    assert module.call("sorting_sort", bytes(16), 4) >= 3


def test_running_off_the_end_of_text(machine, fault):
    """Code that runs into the next page faults at the first byte there."""
    returns = len(machine.arch.runs.emulation.ret)
    body = code(machine.arch, "one")[:-returns]
    va = _last_in_page(machine, body, len(body))
    found = fault(va)
    edge = va + len(body)
    assert (found.kind, found.address) == (FaultKind.FETCH, edge)
    assert va <= found.pc <= edge  # the emulator translates a block before it executes it


def test_an_instruction_across_pages(machine, fault):
    """An instruction of which the second half is missing faults on the half that is."""
    body = code(machine.arch, "straddle")
    va = _last_in_page(machine, body, len(machine.arch.loads.trap))
    found = fault(va)
    edge = (va | PAGE_SIZE - 1) + 1
    assert (found.kind, found.pc, found.address) == (FaultKind.FETCH, va, edge)


def test_disassembly_across_pages(machine):
    """An instruction that lies across two pages is shown whole."""
    body = code(machine.arch, "straddle")
    start = machine.memory.vmalloc(2 * PAGE_SIZE)
    at = start + PAGE_SIZE - len(machine.arch.loads.trap)
    machine.write(at, body)
    assert machine.disassemble(at) == disassembled(machine, at)
    assert machine.disassemble(NOWHERE) == machine.disassemble((1 << 64) - 1) == ""


def _last_in_page(machine, body, count):
    """Return the address of code of which `count` bytes lie in an executable page, at its end."""
    memory = machine.memory
    start = memory.vmalloc(PAGE_SIZE)
    va = start + PAGE_SIZE - count
    memory.write(va, body[:count])
    memory.set_memory_rox(start, PAGE_SIZE)
    return va


def test_invalid_instruction(machine, fault):
    """An undefined instruction is one, anywhere in a page, whatever lies before the page."""
    body = code(machine.arch, "invalid")
    memory = machine.memory
    start = memory.vmalloc(PAGE_SIZE)
    for offset in (0, 0x40, 0x800):
        memory.write(start + offset, body)
    memory.set_memory_rox(start, PAGE_SIZE)
    for offset in (0, 0x40, 0x800):
        found = fault(start + offset)
        assert (found.kind, found.pc) == (FaultKind.INSTRUCTION, start + offset)
        assert found.address is None
        assert found.instruction == machine.places.disassembler.one(body, start + offset)


@pytest.mark.parametrize("repeat", [1, 4])
def test_trap_instruction(machine, fault, repeat):
    """A trap stops at the trap, also in memory that is full of them."""
    trap = machine.arch.loads.trap
    at = put(machine, trap * repeat + machine.arch.runs.emulation.ret)
    found = fault(at)
    assert (found.kind, found.pc) == (FaultKind.TRAP, at)
    assert found.instruction == disassembled(machine, at)


def test_the_kernel_image_is_full_of_traps(machine, fault):
    """A jump into a part of the kernel that does not exist traps there."""
    at = machine.kernel.image.start + 0x10_0000
    found = fault(at)
    assert (found.kind, found.pc, found.where) == (FaultKind.TRAP, at, "the kernel image")


# The kernel's symbols ------------------------------------------------------------------------


def test_a_call_of_an_unknown_symbol(machine, fault):
    """A function that nobody has stops at the call, by its name, and can then be supplied."""
    image = mini_module(machine.arch.machine, undefined=["nobody_has_this"])
    module = machine.load(image)
    assert module.report.unknown == ("nobody_has_this",)
    assert module.report.init_fault.kind is FaultKind.UNKNOWN_SYMBOL
    assert module.report.init_result is None
    found = fault(module.call, "mini_work")
    assert found.kind is FaultKind.UNKNOWN_SYMBOL
    assert found.pc == machine.kernel.address("nobody_has_this")
    assert found.reason.startswith("'nobody_has_this'")
    assert re.match(r"mini_work\+0x[0-9a-f]+\b.* \[mini\]$", found.where)
    called = []
    machine.stub("nobody_has_this", lambda: called.append(1))
    with pytest.raises(Fault):  # the snippet saves no return address where there is a link
        module.call("mini_work", instructions=1)
    machine.call(snippet(machine, "jump"), machine.kernel.address("nobody_has_this"))
    assert called


@pytest.mark.parametrize(("name", "offset"), [("load", 0), ("load", 24), ("store", 8)])
def test_an_unknown_symbol_used_as_a_variable(machine, fault, name, offset):
    """A load or store at a symbol that nobody has says its name and the offset."""
    for other in ("nobody_a", "nobody_b", "nobody_c"):
        machine.kernel.address(other)
    at = snippet(machine, name)
    found = fault(at, machine.kernel.address("nobody_b") + offset, 1)
    assert (found.kind, found.pc) == (FaultKind.UNKNOWN_SYMBOL, at)
    shown = "nobody_b" + (f"+{offset:#x}" if offset else "")
    verb = "read" if name == "load" else "write"
    assert found.reason == f"'{shown}', {verb} as a variable"


def test_a_kernel_function_read_as_data(machine, fault):
    """Functions of the kernel are execute-only, and the fault names them."""
    at = machine.kernel.address("strlen")
    found = fault(snippet(machine, "load"), at)
    assert (found.kind, found.address) == (FaultKind.READ, at)
    assert found.reason == "mapped --X: kernel symbol 'strlen'"


def test_a_bad_pointer_given_to_the_kernel(machine, fault):
    """A kernel function that follows a bad pointer faults for its caller, with the address."""
    module = load(machine, "checksums")
    found = fault(machine.kernel.address("strlen"), NOWHERE + 5)
    assert (found.kind, found.address) == (FaultKind.READ, NOWHERE + 5)
    assert "strlen" in found.reason
    assert module.call("checksums_adler32", b"Wikipedia", 9) == 0x11E60398


def test_a_jump_behind_a_kernel_function(machine, fault):
    """Behind a stub's return instruction stands a trap, and the function does not run."""
    called = []
    machine.stub("counted", lambda: called.append(1))
    at = machine.kernel.address("counted") + len(machine.arch.runs.emulation.ret)
    at += -at % len(machine.arch.loads.trap)
    found = fault(at)
    assert (found.kind, found.pc, called) == (FaultKind.TRAP, at, [])
    assert found.where.startswith("counted+")


# What is left behind -------------------------------------------------------------------------


def test_buffers_of_a_failed_call_are_freed(machine, fault):
    """A fault frees the call's buffers; `Out` keeps what it held."""
    out = Out(300)
    found = fault(snippet(machine, "jump"), 0, b"bytes", "text", out, bytes(3 * PAGE_SIZE))
    assert found.kind is FaultKind.FETCH
    assert bytes(out) == bytes(300)


def test_every_design_survives_faults(arch):
    """A jump into every kind of data leaves all invariants whole and the module working."""
    for design in ("vmalloc", "per_type"):
        machine = Machine(arch, design=design)
        module = load(machine, "sorting")
        for kind, region in module.regions.items():
            if kind is not MemType.TEXT:
                with pytest.raises(Fault) as caught:
                    machine.call(snippet(machine, "jump"), region.address)
                assert (caught.value.kind, caught.value.pc) == (FaultKind.FETCH, region.address)
        machine.check()
        assert module.call("sorting_sort", b"", 0) == 0


def test_messages_are_one_line(machine, fault):
    """Faults and refusals read as one line."""
    found = fault(snippet(machine, "load"), 8)
    assert str(found).startswith("read of 0x8: NULL pointer at 0x")
    assert "\n" not in str(found)
    refused = BadCall("f", "has no such symbol", "did you mean g?")
    assert str(refused) == "f: has no such symbol; hint: did you mean g?"


@pytest.mark.parametrize("magic", ["6.1.0-9-none SMP mod_unload ", None])
def test_a_fault_of_a_module_of_another_kernel_says_so(machine, magic):
    """What rests on the modelled kernel may be why; a limit is not, and the kernel's own neither."""
    spin = mini_module(machine.arch.machine, "spinner", spins="init", vermagic=magic)
    trap = mini_module(machine.arch.machine, init=machine.arch.loads.trap, vermagic=magic)
    with pytest.raises(Fault) as caught:
        machine.load(trap)
    told = "mini was built for another kernel, see its notice"
    assert (caught.value.foreign, told in str(caught.value)) == (
        ("mini", True) if magic else ("", False)
    )
    machine.seconds = 0.1
    with pytest.raises(Fault) as caught:
        machine.load(spin)
    assert (caught.value.kind, caught.value.foreign) == (FaultKind.TIME_LIMIT, "")
