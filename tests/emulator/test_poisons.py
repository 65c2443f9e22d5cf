# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a module makes of its CPU, the next one finds the CPU that the kernel set up.

Each poison runs as the init of a module three times: it goes on into an undefined
instruction, returns, and returns an error. The oracles are a good module, whose functions
must compute what they always do, and a CPU that nobody has used, register by register.
"""

from __future__ import annotations

import pytest

from allocator.types import MIB
from emulator.faults import Fault, FaultKind
from loader.errors import ExecmemError, InitFailed
from machine.face import Machine
from samples import modules
from tests.archs.facts import cases, facts
from tests.archs.facts.x86_64 import wrmsr
from tests.machine.snippets import put, snippet
from tests.support import tools
from tests.support.modules import module

SECONDS = 2.0  # where a poison waits for something
FAILED = 22  # EINVAL
HEADER = 40  # bytes of a context that are no registers


ENDINGS = ("fault", "return", "refuse")
# Vendor's registers that the emulator keeps apart, and whose effect nothing else shows.
MSRS = (0x200, 0x201, 0x20F, 0x250, 0x26F, 0x277, 0x2FF, 0x17B, 0x401, 0xC000_0103)


def registers(machine):
    """Return all that the emulator saves of a CPU."""
    return bytes(machine.cpu.context().saved)[HEADER:]


def good(machine):
    """Assert that a good module loads and computes what RFC 1950 and CRC-32 say."""
    found = machine.load(modules.path(machine.arch.name, "checksums"))
    assert found.call("checksums_adler32", b"Wikipedia", 9, returns="u32") == 0x11E60398
    assert found.call("checksums_crc32", b"123456789", 9, 0, returns="u32") == 0xCBF43926
    found.unload()


@pytest.mark.parametrize(("arch", "poison"), cases("run", "poisons"))
def test_the_next_module_finds_the_cpu_as_it_was(arch, poison, tmp_path):
    """A module that spoils its CPU and faults, returns or is refused leaves nothing behind."""
    known = facts(arch).run
    machine = Machine(arch, memory=64 * MIB)
    machine.seconds = SECONDS
    fresh = registers(machine)
    body = known.poison_prefix + known.poisons[poison] + "; "
    for ending in ENDINGS:
        end = (
            known.poison_stop
            if ending == "fault"
            else known.poison_return.format(-FAILED * (ending == "refuse"))
        )
        code = tools.code(arch.machine, body + end + "\n", tmp_path)
        image = module(arch.machine, f"poison_{ending}", undefined=(), init=code)
        try:
            machine.load(image).unload()
        except Fault:
            assert registers(machine) == fresh
        except InitFailed:
            assert ending == "refuse"
        else:
            assert ending != "fault"
        good(machine)


def test_registers_that_only_keep_a_value_are_as_before_a_fault(tmp_path):
    """Model specific registers that a copy of the CPU lacks are put back after a fault."""
    machine = Machine("x86_64", memory=64 * MIB)
    read = put(machine, bytes.fromhex("89f90f3248c1e2204809d0c3"))  # rdmsr of %edi; ret
    before = [machine.call(read, number) for number in MSRS]
    spoil = "; ".join(wrmsr(number, 0xAB00_0000_00CD) for number in MSRS)
    code = tools.code(machine.arch.machine, f"{spoil}; ud2\n", tmp_path)
    with pytest.raises(ExecmemError):
        machine.load(module(machine.arch.machine, undefined=(), init=code))
    assert [machine.call(read, number) for number in MSRS] == before


def test_a_task_that_is_current_stays_current_through_a_fault(arch):
    """After a fault the current task and the per-cpu base are the ones the kernel chose."""
    machine = Machine(arch, memory=64 * MIB)
    anchors = {name: machine.cpu.read(name) for name in arch.runs.emulation.anchors}
    with pytest.raises(ExecmemError):
        machine.call(16)
    assert {name: machine.cpu.read(name) for name in anchors} == anchors


def test_a_callback_leaves_the_flags_of_who_called_it(arch, tmp_path):
    """Floating-point flags that a nested call raises are not its caller's."""
    if facts(arch).run.status is None:
        pytest.skip(f"the kernel of {arch.name} has no floating-point flags")
    outer, inner = (
        tools.code(arch.machine, f"{source}\n", tmp_path) for source in facts(arch).run.status
    )
    machine = Machine(arch, memory=64 * MIB)
    other = put(machine, inner)
    machine.stub("nest", lambda: machine.call(other))
    assert machine.call(put(machine, outer), machine.kernel.address("nest")) & 0x3F == 1


def test_a_handler_that_raises_leaves_nothing(arch):
    """An exception of a kernel function, or an interrupt from the keyboard, spoils no CPU."""
    machine = Machine(arch, memory=64 * MIB)
    fresh = registers(machine)
    outer = snippet(machine, "apply")

    def fail():
        raise error

    machine.stub("nest", fail)
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            machine.call(outer, machine.kernel.address("nest"))
        assert registers(machine) == fresh
        good(machine)


def test_hardware_breakpoints_are_refused_at_any_depth(tmp_path):
    """A breakpoint that a callback sets is refused where it stands; to switch them off is not."""
    machine = Machine("x86_64", memory=64 * MIB)
    source = "mov %rdi, %dr0; mov %rsi, %r9; mov %r9, %dr7; mov $7, %eax; ret\n"
    inner = put(machine, tools.code(machine.arch.machine, source, tmp_path))
    outer = put(
        machine,
        tools.code(machine.arch.machine, f"{facts(machine.arch).run.status[0]}\n", tmp_path),
    )
    machine.stub("nest", lambda: machine.call(inner, inner, control))
    nest = machine.kernel.address("nest")
    for control in (0, 0x400, 0xF0000, 1, 0x402, 0xAA, 0xD0080):
        if control & 0xFF == 0:
            assert machine.call(inner, inner, control) == 7
            assert machine.call(outer, nest) & 0x3F == 1
            continue
        with pytest.raises(Fault, match="no hardware debugging") as caught:
            machine.call(outer, nest)
        assert caught.value.kind is FaultKind.INSTRUCTION
        good(machine)


@pytest.mark.parametrize(
    "prefixes", ["66", "67", "f2", "f3", "2e", "65", "48", "49", "4466", "f366674f"]
)
def test_prefixes_do_not_hide_a_breakpoint(prefixes):
    """However an instruction is spelled that sets hardware breakpoints, it is refused."""
    machine = Machine("x86_64", memory=64 * MIB)
    # mov %rdi,%rax and to other registers; mov %rax,%dr7; ret
    every = "4889f84989f84989f9"
    start = put(machine, bytes.fromhex(f"{every}{prefixes}0f23f8c3"))
    with pytest.raises(Fault) as caught:
        machine.call(start, 0x402)
    assert caught.value.pc == start + len(every) // 2
    good(machine)
