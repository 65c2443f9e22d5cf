# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols that nobody implements: what stands in for them, by policy, and what is said of it."""

from __future__ import annotations

import pytest

from emulator.faults import Fault, FaultKind
from execmem.check.elfwriter import A, Rela, Sec, Sym, W
from kernels.modelled.symtab import ZEROS
from machine.face import Machine
from tests.archs.facts import facts
from tests.machine.snippets import snippet
from tests.support.modules import module

LENIENT = ["zero", "trace"]


@pytest.mark.parametrize("policy", LENIENT)
def test_an_unknown_function_returns_zero(arch, policy):
    """The caller goes on with 0; the symbol is reported as missing, with its calls."""
    machine = Machine(arch, unknown=policy)
    odd, apply = machine.kernel.address("odd"), snippet(machine, "apply")
    for _ in range(3):
        assert machine.call(apply, odd, 0x55) == 0x55  # odd(0x55) + 0x55
    assert machine.missing == {"odd": 3}
    lines = [line.text for line in machine.log]
    assert len(lines) == (3 if policy == "trace" else 1)
    assert all(line.startswith("unknown odd(") for line in lines)
    assert ("odd(0x55, " in lines[0]) == (policy == "trace")


@pytest.mark.parametrize("policy", LENIENT)
def test_an_unknown_variable_is_zeroed_memory(arch, policy):
    """What no call leads to is memory that keeps what is stored, and can be called as well."""
    machine = Machine(arch, unknown=policy)
    at = machine.kernel.address("strange", called=False)
    assert machine.read(at, ZEROS) == bytes(ZEROS)
    machine.call(snippet(machine, "store"), at, 0x1234)
    assert machine.call(snippet(machine, "load"), at) == 0x1234
    assert machine.missing == {"strange": 0}
    assert machine.call(snippet(machine, "apply"), at, 7) == 7
    assert machine.missing == {"strange": 1}
    assert machine.kernel.address("strange") == at


def test_only_the_start_of_a_variable_can_be_called(arch):
    """A jump into the middle of zeroed memory faults."""
    machine = Machine(arch, unknown="zero")
    at = machine.kernel.address("strange", called=False)
    with pytest.raises(Fault) as caught:
        machine.call(snippet(machine, "apply"), at + 16, 7)
    assert (caught.value.kind, caught.value.address) == (FaultKind.FETCH, at + 16)


def test_calls_of_unknown_variables_run_into_the_limit(arch):
    """A loop of nothing but such calls ends at the instruction limit."""
    machine = Machine(arch, unknown="zero")
    at = machine.kernel.address("strange", called=False)
    with pytest.raises(Fault) as caught:
        machine.call(snippet(machine, "loop"), at, instructions=2000)
    assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT


def test_what_a_module_points_at_may_be_a_variable(arch):
    """Of a module's unknown symbols, those it calls get stubs and the others memory."""
    if facts(arch).link.more_of_call:
        pytest.skip(f"calls of {arch.name} look like other uses of an address")
    pointer = Rela(0, facts(arch).link.abs64, "strange")
    image = module(
        arch.machine,
        undefined=["odd"],
        extra=[Sec(".data.more", bytes(8), A | W, align=8, relas=[pointer])],
        symbols=[Sym("strange")],
    )
    machine = Machine(arch, unknown="zero")
    loaded = machine.load(image, init=False)
    assert set(loaded.report.unknown) == {"odd", "strange"}
    assert machine.missing == {"odd": 0, "strange": 0}
    assert machine.read(machine.kernel.address("strange"), 8) == bytes(8)
    assert machine.kernel.unknown_at(machine.kernel.address("odd")) == "odd"


def test_a_failed_load_still_says_what_was_missing(arch):
    """The names stay known as missing when everything else was rolled back."""
    machine = Machine(arch, unknown="zero")
    mark = machine.kernel.mark()
    at = machine.kernel.address("strange", called=False)
    machine.kernel.roll_back(mark)
    assert machine.missing == {"strange": 0}
    assert machine.kernel.address("other", called=False) == at


def test_what_was_supplied_is_not_missing(arch):
    """A supplied symbol is listed as stubbed, with its calls."""
    machine = Machine(arch)
    machine.stub("odd", 4)
    assert machine.call(snippet(machine, "apply"), machine.kernel.address("odd"), 1) == 5
    assert (machine.stubbed, machine.missing) == ({"odd": 1}, {})


def test_unknown_policies_are_named(arch):
    """A policy that is none is refused with those that are."""
    with pytest.raises(ValueError, match="'fault', 'zero', 'trace', 'refuse'"):
        Machine(arch, unknown="ignore")
