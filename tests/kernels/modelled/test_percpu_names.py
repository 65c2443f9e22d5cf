# SPDX-License-Identifier: GPL-2.0-or-later
"""Per-cpu variables that the kernel does not have are named, whichever way code goes to them."""

from __future__ import annotations

import pytest

from emulator.faults import Fault, FaultKind
from kernels.modelled.percpu import CANARY
from loader.files import ModuleFile
from machine.face import Machine
from tests.archs.facts import cases, facts
from tests.support.written import built


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize(("arch", "name"), cases("run", "percpu"))
def test_a_missing_variable_is_named(arch, name, cpus, tmp_path):
    """The fault names the variable and how far in it was read or written, on every CPU."""
    known = facts(arch).run
    functions = {each: code for each, (code, _) in known.percpu.items()}
    image = built(arch.machine, functions, tmp_path, arch.loads.vermagic)
    machine = Machine(arch, cpus=cpus)
    module = machine.load(ModuleFile("mini.ko", image))
    cpu = cpus - 1 if known.percpu_by_register and name != "of_a_cpu" else 0
    with pytest.raises(Fault) as caught:
        module.call(name, 0, 0, cpu=cpu)
    wanted = known.percpu[name][1]
    assert caught.value.kind is FaultKind.UNKNOWN_SYMBOL
    assert f"'{wanted}'" in caught.value.reason
    assert "as a per-cpu variable" in caught.value.reason
    assert caught.value.symbol == wanted.partition("+")[0]
    assert {"one", "two"} <= machine.missing.keys()


def test_a_variable_that_is_not_per_cpu(arch, tmp_path):
    """A variable of the kernel that is taken for a per-cpu one is named as what it is."""
    code = next(iter(facts(arch).run.percpu.values()))[0].replace("one", "jiffies")
    image = built(arch.machine, {"f": code}, tmp_path, arch.loads.vermagic)
    module = Machine(arch).load(ModuleFile("mini.ko", image))
    with pytest.raises(Fault, match="'jiffies', which is no per-cpu variable"):
        module.call("f")


def test_the_canary_by_its_symbol(tmp_path):
    """`__ref_stack_chk_guard` is the canary of each CPU, and can be read alone."""
    forms = {
        "relative": "mov %gs:__ref_stack_chk_guard(%rip), %rax",
        "absolute": "mov %gs:__ref_stack_chk_guard, %rax",
        "compared": (
            "mov %gs:__ref_stack_chk_guard, %rdx; sub %gs:__ref_stack_chk_guard(%rip), %rdx;"
            " mov %rdx, %rax"
        ),
    }
    machine = Machine("x86_64", cpus=2)
    image = built(machine.arch.machine, forms, tmp_path, machine.arch.loads.vermagic)
    module = machine.load(ModuleFile("mini.ko", image))
    for cpu in (0, 1):
        assert module.call("relative", cpu=cpu) == module.call("absolute", cpu=cpu) == CANARY
        assert module.call("compared", cpu=cpu) == 0
    assert not machine.missing
