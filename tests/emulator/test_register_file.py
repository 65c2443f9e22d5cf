# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers by name, beside the emulator's own binding and what guest code leaves in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from archs import Arch
from emulator.faults import BadCall
from machine.machine import ModelledMachine
from samples.modules import root
from tests.support import booted

KERNELS = booted.some()
COUNTERS = ("cycle", "instret")  # of the host's time


def test_guest_code_and_handlers_see_the_same(arch: Arch) -> None:
    """In a function that the guest calls: arguments, the stack pointer, and a result that is set."""
    machine = ModelledMachine(arch, root=root(arch.name))
    seen: list[dict[str, int]] = []
    calling = arch.runs.calling

    def supplied(first: int, second: int) -> int:
        registers = machine.registers
        assert (registers[calling.arguments[0]], registers[calling.arguments[1]]) == (first, second)
        assert registers["pc"] == registers[calling.program_counter.upper()]
        assert machine.read(registers["sp"] - 8, 8)
        everything = dict(registers)
        seen.append(everything)
        for name, value in everything.items():
            named = name in arch.runs.registers.places or name in COUNTERS
            if isinstance(value, int) and value < 1 << 63 and not named:
                assert machine.uc.reg_read(registers._number(name)) % (1 << 64) == value, name
        return first

    machine.stub("supplied", supplied)
    assert machine.call(machine.kernel.address("supplied"), 0x1234, 0x5678) == 0x1234
    assert len(seen[0]) > 30
    assert {"pc", "sp"} <= set(seen[0])


def test_what_is_set_stays_and_what_cannot_be_is_said(arch: Arch) -> None:
    """Any argument register takes a word; wrong names, sizes and places are refused by name."""
    machine = ModelledMachine(arch)
    registers = machine.registers
    for name in arch.runs.calling.arguments:
        registers[name] = 0x1122_3344_5566_7788
        assert registers[name] == 0x1122_3344_5566_7788
        registers[name] = -1
        assert registers[name] == (1 << 64) - 1
    with pytest.raises(BadCall, match="does not fit 64 bits"):
        registers[arch.runs.calling.arguments[0]] = 1 << 64
    with pytest.raises(BadCall, match="no such register"):
        _ = registers["accumulator"]
    with pytest.raises(BadCall, match="cannot be taken away"):
        del registers["sp"]
    assert arch.name in repr(registers)
    where = (9, 9) if hasattr(machine.uc, "msr_read") else 0x10
    with pytest.raises(BadCall, match=r"has no system register"):
        _ = registers[where]  # type: ignore[index]  # system registers have no name


def test_what_is_left_of_another_is_no_value(arch: Arch) -> None:
    """No two registers that may be read give something of the host, or of each other."""
    registers = ModelledMachine(arch).registers
    for name in arch.runs.emulation.leftovers:
        assert name in set(registers)
    for name in ("mstatus", "ustatus", "time", "mhartid"):
        if arch.runs.emulation.leftovers:
            with pytest.raises(BadCall, match="cannot be read"):
                _ = registers[name]


@pytest.mark.parametrize("folder", [f for _, f, _ in KERNELS], ids=[name for name, _, _ in KERNELS])
def test_a_booted_cpu(folder: Path) -> None:
    """Its stack pointer lies in the stack of process 1, which it runs as."""
    machine = booted.machine(folder, booted.tree(folder))
    registers = machine.registers
    task = machine.view("struct task_struct", machine.functions.find_task_by_vpid(1))
    assert int(task.stack) <= registers["sp"] < int(task.stack) + 0x8000
    assert machine.read(registers["pc"], 4)
