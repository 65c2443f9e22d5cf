# SPDX-License-Identifier: GPL-2.0-or-later
"""Probing, tracing, replacing and stubbing mean the same on the modelled and on a booted kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import archs
from archs import Arch
from emulator.faults import BadCall
from kernels.tracing import PatchRefused
from machine.arguments import Out
from machine.face import Machine
from tests.conftest import folders, of_arch
from tests.support import booted

RELEASE = "6.12"  # of the corpus
KEY = bytes(range(16))


@pytest.fixture(params=["modelled", "booted"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return which kernel answers."""
    found: str = request.param
    return found


@pytest.fixture
def machine(kind: str, arch: Arch) -> Iterator[Any]:
    """Return a machine of each kind, under the modules of the corpus."""
    root = of_arch(folders("EXECMEM_CORPUS", "distribution modules"), arch)
    if kind == "modelled":
        yield Machine(arch, root=root)
        return
    found = [f for name, f, a in booted.releases() if a is arch and name.startswith(f"{RELEASE}-")]
    if not found:
        pytest.skip(f"no {RELEASE} of {arch.name} among {os.environ.get('EXECMEM_KERNELS')}")
    machine = booted.machine(Path(found[0]), root)
    with machine.fork():
        yield machine
    machine.interposing.stop()


def crypt(machine: Any, size: int = 32) -> bytes:
    """Return what ARC4 makes of zeros, by the module."""
    module = machine.modules["libarc4"]
    context, out = machine.alloc(2048), Out(size)
    assert module.call("arc4_setkey", context, KEY, len(KEY), returns="int") == 0
    module.call("arc4_crypt", context, out, bytes(size), size)
    return bytes(out)


def test_traces(machine: Any) -> None:
    """A trace has calls in their order, with arguments and results, and changes none of them."""
    module = machine.load("libarc4")
    expected = crypt(machine)
    with module.trace("arc4_*") as trace:
        assert crypt(machine) == expected
    assert [(depth, call.function) for depth, call in trace.walk()] == [
        (0, "arc4_setkey"),
        (0, "arc4_crypt"),
    ]
    setkey, encrypt = trace.calls
    assert setkey.arguments[2] == len(KEY)
    assert setkey.result & 0xFFFF_FFFF == 0
    assert encrypt.arguments[3] == 32
    assert {site.module for site in trace.sites.values()} == {"libarc4"}
    assert (trace.recorded, trace.dropped) == (2, 0)
    with machine.trace("libarc4", limit=1) as limited:
        crypt(machine)
    assert (limited.recorded, limited.dropped) == (1, 1)
    with pytest.raises(PatchRefused, match="no function matches 'nonesuch'"):
        module.trace("nonesuch")
    with pytest.raises(BadCall, match="no such module"):
        machine.trace("nonesuch:*")


def test_handlers_of_traces(machine: Any) -> None:
    """Handlers see each call as it begins and as it has returned, and may call the guest."""
    module = machine.load("libarc4")
    other = machine.load("crc16")
    seen: list[tuple[str, str, bool]] = []

    def entry(call: Any) -> None:
        assert other.call("crc16", 0, b"123456789", 9) == 0xBB3D  # CRC-16/ARC's check value
        seen.append(("in", call.function, call.result is None))

    def leave(call: Any) -> None:
        seen.append(("out", call.function, call.result is None))

    expected = crypt(machine)
    with module.trace(on_entry=entry, on_exit=leave):
        assert crypt(machine) == expected
    assert seen == [
        ("in", "arc4_setkey", True),
        ("out", "arc4_setkey", False),
        ("in", "arc4_crypt", True),
        ("out", "arc4_crypt", False),
    ]


def test_probes(machine: Any) -> None:
    """A probe has registers and arguments at each hit; a handler may change them, and go."""
    calling = machine.arch.runs.calling
    module = machine.load("libarc4")
    expected = crypt(machine)
    with module.probe("arc4_crypt") as probe, machine.probe(probe.address) as second:
        assert crypt(machine) == expected
    assert (probe.count, second.count) == (1, 1)
    (hit,) = probe.hits
    assert hit.arguments[3] == 32
    assert tuple(hit.registers[name] for name in calling.arguments) == hit.arguments
    assert hit.registers[calling.program_counter] == hit.address == probe.address
    assert probe.where == "arc4_crypt+0x0 [libarc4]"

    def shorter(_hit: Any) -> None:
        machine.cpu.write(calling.arguments[3], 4)
        changing.remove()

    changing = machine.probe("libarc4:arc4_crypt", shorter)
    assert crypt(machine) == expected[:4] + bytes(28)
    assert crypt(machine) == expected


def test_places_that_take_no_probe(machine: Any) -> None:
    """The middle of an instruction, data and unknown names are refused alike."""
    module = machine.load("libarc4")
    granule = 1 if machine.arch.runs.calling.link is None else 2
    start = module.symbols["arc4_setkey"]
    refused = []
    for at in range(start, start + 64, granule):
        try:
            machine.probe(at).remove()
        except PatchRefused as error:
            if "middle of an instruction" in str(error):
                refused.append(at)
    assert refused or machine.arch.name not in {"x86_64", "arm64"}
    for at in refused:
        with pytest.raises(PatchRefused, match="one begins at"):
            machine.probe(at)
    with pytest.raises(PatchRefused):
        machine.probe(0x1000)
    for place in ("libarc4:arc4_setkez", "nonesuch:f", "libarc4:arc4_setkey+x"):
        with pytest.raises(BadCall):
            machine.probe(place)


def test_replaced_functions(machine: Any) -> None:
    """Calls of a replaced function go to the other one, with their arguments, until it stops."""
    module = machine.load("libarc4")
    machine.load("crc16")
    with machine.replace({"libarc4:arc4_setkey": "crc16:crc16"}):
        assert module.call("arc4_setkey", 0, b"123456789", 9) == 0xBB3D
    assert module.call("arc4_setkey", machine.alloc(2048), KEY, len(KEY), returns="int") == 0


def test_stubs(machine: Any) -> None:
    """A stub of a kernel function answers a module: here an allocation that fails."""
    needed = {"__kmalloc_cache_noprof", "kmalloc_trace_noprof", "__kmalloc_noprof"}
    module = machine.load("bch")
    view = module.loaded.view if hasattr(module, "loaded") else module.view
    used = needed & set(view.undefined)
    assert module.call("bch_init", 5, 2, 0, 0) != 0
    asked: list[int] = []
    for name in used:
        machine.stub(name, lambda *args: asked.append(len(args)) or 0)
    assert module.call("bch_init", 5, 2, 0, 0) == 0
    assert len(asked) == 1
    assert used <= set(machine.stubbed)


def test_every_architecture_that_boots_is_here() -> None:
    """Every architecture that boots is also modelled, and patched."""
    assert all(arch.patch is not None for arch in archs.ALL if arch.boot is not None)
