# SPDX-License-Identifier: GPL-2.0-or-later
"""Every system register that an instruction can name gives a value or a fault, never the host's.

Each is read, and written and read again, in two processes whose memory lies elsewhere: what
comes from the host (an address, a clock, entropy) would differ. What a kernel reads of a few
comes from the manuals.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from allocator.types import MIB
from emulator.faults import Fault, FaultKind
from machine.face import Machine
from samples import modules
from tests.archs.facts import cases, facts
from tests.machine.snippets import put

SLOT = 32  # bytes for the longest of the functions


def survey(name):
    """Return what each register holds and takes, or how that ends."""
    machine = Machine(name, memory=64 * MIB)
    machine.seconds = 10.0
    functions = [
        (f"{number:#x} {what}", code)
        for number, *both in facts(name).run.registers()
        for what, code in zip(("read", "written"), both, strict=True)
    ]
    start = put(machine, b"".join(code.ljust(SLOT, b"\0") for _, code in functions))
    found = {}
    for index, (title, _) in enumerate(functions):
        try:
            found[title] = machine.call(start + index * SLOT, (1 << 64) - 1)
        except Fault as fault:
            found[title] = fault.kind.name
    module = machine.load(modules.path(name, "checksums"))
    assert module.call("checksums_crc32", b"123456789", 9, 0, returns="u32") == 0xCBF43926
    return found


def test_registers_hold_nothing_of_the_host(arch):
    """Two processes read and write the same in every system register there is."""
    assert facts(arch).run
    code = "import json; from tests.emulator.test_registers import survey; print(json.dumps(survey({!r})))"
    command = [sys.executable, "-c", code.format(arch.name)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    first, second = (json.loads(child.communicate()[0]) for child in children)
    assert [child.returncode for child in children] == [0, 0]
    assert first == second
    assert any(isinstance(value, int) for value in first.values())


@pytest.mark.parametrize(("arch", "what"), cases("run", "seen"))
def test_a_kernel_sees_its_own_level(arch, what):
    """Control registers read as they do in a kernel that runs at its own privilege."""
    code, holds = facts(arch).run.seen[what]
    machine = Machine(arch, memory=64 * MIB)
    assert holds(machine.call(put(machine, bytes.fromhex(code))))


@pytest.mark.parametrize(("arch", "what"), cases("run", "refused"))
def test_what_belongs_to_others_is_refused(arch, what):
    """Registers and returns of other privilege levels are invalid instructions, where they stand."""
    machine = Machine(arch, memory=64 * MIB)
    at = put(machine, bytes.fromhex(facts(arch).run.refused[what]))
    with pytest.raises(Fault) as caught:
        machine.call(at, 0)
    assert (caught.value.kind, caught.value.pc) == (FaultKind.INSTRUCTION, at)


@pytest.mark.parametrize(("arch", "what"), cases("run", "traps"))
def test_calls_of_other_levels_trap_where_they_stand(arch, what):
    """An instruction that calls another privilege level or a debugger is a trap at its address."""
    machine = Machine(arch, memory=64 * MIB)
    at = put(machine, bytes.fromhex(facts(arch).run.traps[what]))
    with pytest.raises(Fault) as caught:
        machine.call(at)
    assert (caught.value.kind, caught.value.pc) == (FaultKind.TRAP, at)
