# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads and stores while a function is under way, beside what the algorithm must do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from archs import Arch
from kernels.tracing import PatchRefused
from machine.booted.machine import BootedMachine
from machine.machine import ModelledMachine
from samples.modules import root
from tests.support import booted

KERNELS = booted.some()


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def real(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a booted kernel."""
    _, folder, _ = request.param
    with booted.fresh(Path(folder), booted.tree(Path(folder))) as machine:
        yield machine


def test_a_parser_reads_its_text_and_stores_the_number(real: BootedMachine) -> None:
    """Each byte of the text is read, the result is stored once; nothing before, nothing behind."""
    text, result = real.alloc(b"4711\0"), real.new("int")
    with real.trace_memory("kstrtoint") as trace:
        real.read(text, 5)
        real.call(real.function("strlen"), text)
        assert trace.accesses == []
        assert real.functions.kstrtoint(text, 10, result) == 0
        real.call(real.function("strlen"), text)
    read = {each.address: each.value for each in trace.accesses if each.kind == "read"}
    assert [read[text + n] for n in range(5)] == [*b"4711", 0]
    stores = [each for each in trace.accesses if each.address == result.address_]
    assert [(each.kind, each.value, each.size) for each in stores] == [("write", 4711, 4)]
    assert stores[0].where.startswith("kstrtoint+")
    assert not any("strlen" in each.where for each in trace.accesses)
    stack: dict[int, int] = {}
    for each in trace.accesses:  # what is read from the stack is what was stored there
        if each.named == "stack" and each.kind == "write":
            stack[each.address] = each.value
        elif each.address in stack and each.size == 8:
            assert stack[each.address] == each.value, each
    assert stack
    assert trace.calls == 1
    with real.trace_memory() as all_of_it:
        real.functions.kstrtoint(text, 10, result)
    assert [a.value for a in all_of_it.accesses[: len(trace.accesses)]] == [
        a.value for a in trace.accesses
    ]
    with real.trace_memory("kstrtoint", limit=3) as short:
        real.functions.kstrtoint(text, 10, result)
    assert (len(short.accesses), short.dropped) == (3, len(trace.accesses) - 3)


def test_a_function_of_a_module(arch: Arch) -> None:
    """Where a call site tells of returns; nothing of the tracer's own code; else it is refused."""
    if arch.patch is None:
        pytest.skip(f"{arch.name} has no level 'patch'")
    machine = ModelledMachine(arch, root=root(arch.name))
    module = machine.load("patchable")
    with machine.trace_memory("patchable_digits") as trace:
        plain = module.call("patchable_digits", 321)
    assert plain == module.call("patchable_digits", 321)
    assert trace.calls == 1
    assert {each.named for each in trace.accesses} == {"stack"}
    assert all("[patchable]" in each.where for each in trace.accesses)
    machine.load("mathlib")
    with pytest.raises(PatchRefused, match="call site"):
        machine.trace_memory("mathlib_gcd")
