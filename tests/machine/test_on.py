# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that are told of with names and types: what goes in and comes out is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archs import Arch
from emulator.faults import BadCall
from kernels.tracing import PatchRefused
from loader.btf_records import Kind
from machine.booted.machine import BootedMachine
from machine.machine import ModelledMachine
from machine.typedcalls import UNKNOWN, Call, arguments_of
from samples.modules import root
from tests.support import booted

KERNELS = booted.some()
MANY = (
    "__kernel_write_iter",
    "kernel_clone",
    "vm_map_ram",
    "__vmalloc_node_range",
    "__vmalloc_node_range_noprof",
)


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def real(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a booted kernel."""
    _, folder, _ = request.param
    with booted.fresh(Path(folder), booted.tree(Path(folder))) as machine:
        yield machine


def test_arguments_by_name_and_results_by_type(real: BootedMachine) -> None:
    """A parser of numbers: text, base and where the result goes; an errno comes back as one."""
    entries: list[tuple[Any, ...]] = []
    exits: list[Any] = []
    result = real.new("int")

    def begins(call: Call) -> None:
        assert not call.returned
        entries.append((call["s"].string_, call["base"], int(call["res"]), call.strings["s"]))
        assert call.result is None

    listening = real.on(
        "kstrtoint", begins, lambda call: exits.append((call.result, result.value_))
    )
    with listening:
        assert real.functions.kstrtoint("4711", 10, result) == 0
        assert real.functions.kstrtoint("nonsense", 16, result) == -22
    real.functions.kstrtoint("1", 10, result)
    assert entries == [
        ("4711", 10, result.address_, "4711"),
        ("nonsense", 16, result.address_, "nonsense"),
    ]
    assert exits == [(0, 4711), (-22, 4711)]
    first, second = listening.calls
    assert str(first).startswith("kstrtoint(s=0x")
    assert " '4711', base=10, res=0x" in str(first)
    assert str(second).endswith(" = -22")
    with pytest.raises(BadCall, match="no argument 'radix'"):
        _ = first["radix"]


def test_a_call_is_made_from_within(real: BootedMachine) -> None:
    """A handler calls the guest, and limits what is kept."""
    lengths = []

    def begins(call: Call) -> None:
        lengths.append(real.functions.kstrtoint(call["s"], call["base"], real.new("int")))

    with real.on(real.functions.kstrtouint, begins, limit=1) as listening:
        for text in ("12", "13", "x"):
            real.functions.kstrtouint(text, 10, real.new("int"))
    assert lengths == [0, 0, -22]
    assert (len(listening.calls), listening.count) == (1, 3)


def test_what_registers_do_not_say(real: BootedMachine) -> None:
    """More arguments than registers, and structures by value: the rest is not known, by name."""
    registers = real.arch.runs.calling.arguments
    checked = 0
    for name in ("snd_hda_codec_build_pcms", "do_mmap", "__do_sys_mount", "mpage_readahead", *MANY):
        function = real.functions.get(name)
        if function is None or function.prototype is None:
            continue
        found = arguments_of(function, range(len(registers)))
        assert list(found) == list(function.parameters)
        wide = [
            number
            for number, kind in enumerate(function.parameters.values())
            if kind.kind is Kind.STRUCT and kind.size > 8
        ]
        first = min([*wide, len(registers)])
        assert list(found.values())[:first] == list(range(min(first, len(found))))
        assert list(found.values())[first:] == [UNKNOWN] * max(len(found) - first, 0)
        checked += len(found) > first
    assert checked


def test_functions_of_modules(arch: Arch) -> None:
    """A function with a call site is traced, one without is probed, and exits are refused there."""
    if arch.patch is None:
        pytest.skip(f"{arch.name} has no level 'patch'")
    machine = ModelledMachine(arch, root=root(arch.name))
    module = machine.load("patchable")
    seen: list[tuple[str, int]] = []
    with machine.on(
        "patchable_digits",
        lambda call: seen.append(("in", call.traced.arguments[0])),
        lambda call: seen.append(("out", call.result)),
    ):
        result = module.call("patchable_digits", 321)
    assert seen == [("in", 321), ("out", result)]
    other = machine.load("mathlib")
    name = "mathlib_gcd"
    with pytest.raises(PatchRefused, match="call site"):
        machine.on(f"mathlib:{name}", None, print)
    hits: list[int] = []
    with machine.on(f"mathlib:{name}", lambda call: hits.append(call.traced.arguments[0])):
        module.call("patchable_digits", 1)
        other.call(name, 12, 18)
    assert hits == [12]
    with pytest.raises(BadCall, match="no module has such a function"):
        machine.on("printk")
    with machine.on(0) as cpu:
        assert cpu is machine.cpus[0]
