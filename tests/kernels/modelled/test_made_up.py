# SPDX-License-Identifier: GPL-2.0-or-later
"""What other architectures have, and none of the registry: real ones that differ in one thing."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from archs import Arch
from emulator.faults import Fault, FaultKind
from kernels.modelled.percpu import CANARY
from loader.files import ModuleFile
from machine.face import Machine
from samples.modules import path
from tests.archs.facts import facts
from tests.support.written import built


def _with(arch: Arch, **emulation: object) -> Arch:
    changed = attrs.evolve(arch.runs.emulation, **emulation)
    return attrs.evolve(arch, run=attrs.evolve(arch.runs, emulation=changed))


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_canary_that_is_a_global(arch: Arch, cpus: int, tmp_path: Path) -> None:
    """One variable holds it for every CPU and task, and no register leads to it (mips, arm)."""
    made_up = _with(arch, canary=None, guard_globals=("__stack_chk_guard",))
    machine = Machine(made_up, cpus=cpus)
    image = built(arch.machine, {"read": facts(arch).run.read_guard}, tmp_path, arch.loads.vermagic)
    module = machine.load(ModuleFile("mini.ko", image))
    for cpu in range(cpus):
        assert module.call("read", cpu=cpu) == CANARY
    assert not machine.missing


def test_a_canary_that_nothing_reads(arch: Arch) -> None:
    """A kernel without a stack protector has none, and its threads begin without one."""
    if arch.runs.emulation.canary is None:
        pytest.skip(f"{arch.name} has one at no place")
    machine = Machine(_with(arch, canary=None))
    task = machine.kernel.percpu.new_task()
    here, structure = arch.runs.emulation.canary
    offset = machine.kernel.layouts.offset_of(structure, "stack_canary")
    before = Machine(arch)
    theirs = before.kernel.percpu.new_task()
    assert machine.memory.read(task + offset, 8) == bytes(8)
    assert (before.memory.read(theirs + offset, 8) != bytes(8)) is (here.name == "CURRENT")


def test_a_return_of_two_instructions(arch: Arch) -> None:
    """A kernel function may return by two, as where a return has a delay slot."""
    # What follows a return runs only on CPUs with delay slots: here it comes first.
    two = bytes.fromhex(facts(arch).run.nop) + arch.runs.emulation.ret
    plain, made_up = Machine(arch), Machine(_with(arch, ret=two))
    logs = []
    for machine in (plain, made_up):
        machine.load(path(arch.name, "hello"))
        logs.append([line.text for line in machine.log])
    assert logs[0] == logs[1]
    assert logs[0]
    stub = made_up.memory.translate(made_up.kernel.address("_printk"))
    assert stub is not None
    assert made_up.memory.physical.read(stub.address, len(two)) == two


def test_text_that_cannot_be_patched(arch: Arch) -> None:
    """What patches text, and what only trampolines call, stops a guest that has neither."""
    machine = Machine(attrs.evolve(arch, patch=None))
    for name, *args in (
        ("static_key_enable", machine.alloc(16)),
        ("ftrace_enter",),
        ("ftrace_exit",),
    ):
        with pytest.raises(Fault, match="this architecture's text cannot be patched") as caught:
            machine.call(machine.kernel.address(name), *args)
        assert caught.value.kind is FaultKind.PANIC
