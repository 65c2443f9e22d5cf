# SPDX-License-Identifier: GPL-2.0-or-later
"""Architectures that stop at a level: what is above it works, and the rest says what it lacks."""

from __future__ import annotations

import attrs
import pytest

import archs
from allocator import DESIGNS, ExecmemError, PokeError, Site
from allocator.types import MemType
from archs import Arch
from archs.arch import LevelMissing
from execmem.cli import main
from machine.face import Machine
from machine.reach import measure
from samples import modules, poke

LOADS = {"load": None, "run": None, "patch": None}
RUNS = {"run": None, "patch": None}


@pytest.mark.parametrize(
    ("lacking", "level"), [(LOADS, "load"), ({"load": None}, "load"), (RUNS, "run")]
)
def test_a_machine_needs_the_levels_load_and_run(arch: Arch, lacking, level) -> None:
    """Without one of them no machine is made, and the error names it, on one line."""
    with pytest.raises(LevelMissing) as caught:
        Machine(attrs.evolve(arch, **lacking))
    assert caught.value.arch == arch.name
    assert caught.value.level == level
    assert str(caught.value).startswith(f"{arch.name} has no level '{level}': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level", ["load", "run"])
@pytest.mark.parametrize(
    "command", [("load",), ("run",), ("run", "hello_greet", "1"), ("trace", "hello_greet", "1")]
)
def test_commands_refuse_an_absent_level(arch, level, command, monkeypatch, capsys) -> None:
    """What needs a machine is refused with the level's name, in one line, by exit code 1."""
    monkeypatch.setattr(archs, "ALL", (attrs.evolve(arch, **{level: None}),))
    name, *rest = command
    module = str(modules.path(arch.name, "hello"))
    with pytest.raises(SystemExit) as ended:
        main([name, module, *rest])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert not out
    (line,) = err.splitlines()
    assert f"{arch.name} has no level '{level}'" in line


def test_reach_is_not_measured_where_nothing_runs(arch: Arch) -> None:
    """An architecture without the level run has its psABI's reach, and none that was measured."""
    found = list(measure(attrs.evolve(arch, **RUNS)))
    assert [one.branch for one in found] == list(arch.link.branches)
    assert [one.measured for one in found] == [None] * len(arch.link.branches)


# Without text_poke ---------------------------------------------------------------------------


def unpoked(arch: Arch) -> Arch:
    """Return the architecture as one whose finished text is never written."""
    return attrs.evolve(arch, patch=None)


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_works_without_text_poke(arch, design, monkeypatch) -> None:
    """Modules load, run and leave nothing behind, and nothing was poked for it."""
    without = unpoked(arch)
    monkeypatch.setattr(archs, "ALL", (without,))
    machine = Machine(without, design=design, root=modules.root(arch.name))
    for name in modules.names():
        if name not in machine.modules:
            machine.load(name, **({"error": 0} if name == "failing" else {}))
    assert machine.modules["mathuser"].call("mathuser_lcm", 6, 4) == 12
    machine.check()
    for module in reversed(list(machine.modules.values())):
        module.unload()
    assert machine.execmem.allocations() == []
    assert machine.memory.events.pokes == 0
    machine.check()


def test_finished_text_cannot_be_changed_without_text_poke(arch: Arch) -> None:
    """Pokes, patches, traces and probes are refused, and change nothing."""
    machine = Machine(unpoked(arch), root=modules.root(arch.name))
    module = machine.load("hello")
    at = module.symbols["hello_greet"]
    before = machine.read(at, 8)
    for attempt in (
        lambda: machine.poke(at, bytes(4)),
        lambda: machine.patch(at, bytes(4)),
        lambda: machine.execmem.poke_many((Site(at, bytes(4)),)),
    ):
        with pytest.raises(PokeError, match="no text_poke"):
            attempt()
    for attempt in (
        lambda: machine.trace("hello"),
        lambda: machine.probe("hello:hello_greet"),
        module.trace,
        lambda: module.probe("hello_greet"),
        lambda: machine.replace({"hello:hello_greet": "hello:hello_greet"}),
    ):
        with pytest.raises(ExecmemError, match=f"{arch.name}: live text cannot be patched"):
            attempt()
    assert machine.read(at, 8) == before
    assert module.call("hello_greet", 1) == 2


def test_text_that_runs_is_not_patched_where_nobody_knows_how(arch: Arch) -> None:
    """An architecture may poke, and have no rule for text that CPUs may be executing."""
    if arch.patch is None:
        pytest.skip(f"{arch.name} has no text_poke")
    only = attrs.evolve(arch, patch=attrs.evolve(arch.patch, live=None, text=None))
    machine = Machine(only)
    pending = machine.execmem.alloc(MemType.TEXT, 64)
    pending.write(0, arch.loads.trap * (64 // len(arch.loads.trap)))
    at = pending.finish().address
    other = bytes(16)
    with pytest.raises(ExecmemError, match=arch.name):
        machine.patch(at, other)
    machine.poke(at, other)
    assert machine.read(at, 16) == other


def test_the_lesson_about_pokes_says_who_has_none(arch, monkeypatch) -> None:
    """It goes on with the others."""
    others = tuple(unpoked(a) if a.name == arch.name else a for a in archs.ALL)
    monkeypatch.setattr(archs, "ALL", others)
    story = poke.main()
    assert set(story.facts) == {a.name for a in others if a.text_poke is not None}
    assert any(f"{arch.title} has no text_poke" in str(part) for part in story.parts)
