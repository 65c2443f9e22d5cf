# SPDX-License-Identifier: GPL-2.0-or-later
"""Patched text with several CPUs: all of them see it, and none is patched under its feet."""

from __future__ import annotations

import pytest

from kernels.tracing import PatchRefused
from machine.face import Machine
from machine.thread import interleave
from samples import modules
from tests.kernels.modelled.text.test_ftrace import fib, tree


@pytest.fixture
def machine(arch):
    """Return a machine of three CPUs that knows the samples by name."""
    return Machine(arch, cpus=3, root=modules.root(arch.name))


def test_every_cpu_sees_a_key(machine, patchable):
    """A branch that a CPU has executed before is flipped for it by another CPU."""
    likely = patchable.symbols["patchable_likely"]
    assert [machine.call(likely, cpu=n) for n in range(3)] == [1, 1, 1]
    patchable.static_key("patchable_key").enable()
    assert [machine.call(likely, cpu=n) for n in range(3)] == [2, 2, 2]


def test_a_probe_is_hit_on_any_cpu(machine, patchable, unchanged):
    """The registers are those of the CPU that arrived."""
    check = unchanged("patchable")
    double, first = patchable.symbols["patchable_double"], machine.arch.runs.calling.arguments[0]
    with patchable.probe("patchable_double") as probe:
        assert [machine.call(double, 10 + n, cpu=n) for n in range(3)] == [20, 22, 24]
    assert [hit.registers[first] for hit in probe.hits] == [10, 11, 12]
    check()


def test_trees_of_interleaved_cpus(machine, patchable, unchanged):
    """Two CPUs that recurse by turns give two trees, with the durations that each has alone."""
    check = unchanged("patchable")
    function = patchable.symbols["patchable_fib"]
    with patchable.trace("patchable_fib") as alone:
        machine.call(function, 6)
    with patchable.trace("patchable_fib") as trace:
        threads = [machine.start(function, 6, cpu=n) for n in (1, 2)]
        assert interleave(*threads, quantum=7) == [8, 8]
    assert len(list(trace.walk())) == 2 * len(list(alone.walk()))
    outer = [call for _, call in trace.walk() if call.arguments[0] == 6]
    assert [call.instructions for call in outer] == [alone.calls[0].instructions] * 2
    assert [call.result for call in outer] == [8, 8]
    assert {tree(call)[:2] for call in outer} == {fib(6)[:2]}
    check()


def test_a_slot_outlives_its_probe_while_a_cpu_is_in_it(machine, patchable, unchanged):
    """A CPU that waits in a slot goes on properly after the probe is gone; then the slot goes."""
    check = unchanged("patchable")
    start = patchable.symbols["patchable_sum"]
    with machine.probe(start) as probe:
        armed = machine.text.kprobes._armed[start]
        if armed.slot is None:
            pytest.skip("the first instruction is imitated")
        thread = machine.start(start, *range(1, 11), cpu=1)
        thread.step()  # the breakpoint
        assert thread.pc == armed.slot.address
    assert thread.finish() == 385
    assert len(probe.hits) == 1
    with patchable.probe("patchable_double"):
        pass
    check()


def test_no_cpu_is_patched_under_its_feet(machine, patchable):
    """A site is not written while a CPU waits inside it; a step further it is."""
    site = next(s for s in machine.text.ftrace.sites(patchable.loaded) if "double" in s.function)
    size = machine.arch.patching.ftrace.size
    thread = machine.start(patchable.symbols["patchable_double"], 4, cpu=1)
    while thread.pc <= site.address:
        thread.step()
    if not site.address < thread.pc < site.address + size:
        pytest.skip("a site is one instruction")
    with pytest.raises(PatchRefused, match="CPU 1 waits at"):
        patchable.trace("patchable_double")
    while thread.pc < site.address + size:
        thread.step()
    with patchable.trace("patchable_double") as trace:
        assert thread.finish() == 8
        assert trace.calls == []
        patchable.call("patchable_next", 1)
    assert len(trace.calls) == 1
