# SPDX-License-Identifier: GPL-2.0-or-later
"""Architectures whose calls jump inside a region, or go through registers: made up of real ones."""

from __future__ import annotations

import io
from xml.etree import ElementTree as ET

import attrs
import pytest
from rich.console import Console

from allocator.types import MIB, PAGE_SIZE, Consumer, MemType
from allocator.workloads import Runner
from allocator.workloads.operations import Alloc, Load, Region
from allocator.workloads.operations import Module as Numbers
from archs import Arch
from archs.levels.link import Branch
from archs.levels.link import Region as Inside
from archs.reloc import Reach
from execmem import Machine, figure, report
from execmem.comparing.compare import branch_reach, execmem_for
from machine import drawing
from samples import nomodules
from samples.modules import root

SIZE = 256 * MIB
JAL = Branch(
    mnemonic="jal", reach=Reach(0, SIZE, 4), what="call", region=Inside(size=SIZE, behind=4)
)
KINDS = {"region": (JAL,), "registers": ()}


@pytest.fixture(params=list(KINDS))
def made_up(arch: Arch, request: pytest.FixtureRequest) -> Arch:
    """Return an architecture of the registry with other calls, and without a PLT."""
    link = attrs.evolve(arch.link, branches=KINDS[request.param])
    return attrs.evolve(arch, link=link, load=attrs.evolve(arch.loads, plt=None))


def test_compare_knows_how_far_calls_get(made_up: Arch) -> None:
    """No module window begins in the image's region; through a register everything is reached."""
    runner = Runner(execmem_for(made_up, "vmalloc"), branch_reach(made_up))
    text = Region(MemType.TEXT, PAGE_SIZE)
    runner.step(Load(Numbers(name="m", regions=(text,), plt_slots=(0, 0), calls=(1, 0, 0))))
    runner.step(Alloc(key="t", size=64, consumer=Consumer.FTRACE))
    measures = runner.measure()
    if made_up.link.call is None:
        assert (measures.modules, measures.out_of_reach, measures.failures) == (1, 0, ())
    else:
        assert (measures.modules, measures.out_of_reach) == (0, 1)
        assert "does not reach the kernel image" in measures.failures[0].reason


def test_pictures_show_what_there_is(made_up: Arch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without calls by displacement there is no arc; a region has its own words."""
    monkeypatch.setattr(figure, "archs", lambda: (made_up,))
    tree = ET.fromstring(figure.address_spaces())
    arcs = tree.findall("{http://www.w3.org/2000/svg}path")
    words = "".join(tree.itertext())
    assert len(arcs) == len(made_up.link.branches)
    assert ("jal reaches its region of 256 MiB" in words) is bool(arcs)
    machine = Machine(made_up, root=root(made_up.name))
    shown = drawing.svg(machine, [machine.load("hello")])
    assert ("A jal reaches its region of 256 MiB." in shown) is bool(arcs)
    assert "Kernel addresses, to scale." in shown


def test_tables_and_lessons(made_up: Arch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of branches names the region; the lesson asks who reaches the image."""
    out = io.StringIO()
    report.print_branches(Console(file=out, width=200), [made_up])
    assert ("its region of 256 MiB" in out.getvalue()) is bool(made_up.link.branches)
    shown = [branch["region"] for branch in report.arch_json(made_up)["branches"]]
    assert shown == [SIZE] * len(made_up.link.branches)
    monkeypatch.setattr(nomodules, "archs", lambda: (made_up,))
    facts = nomodules.main().facts[made_up.name]
    image = made_up.loads.address_map().image
    for found in facts.values():
        if made_up.link.branches:
            start = int(found["address"]) + 4 & -SIZE
            wanted = start <= image.start and image.end <= start + SIZE
        else:
            wanted = True
        assert found["reaches"] is wanted
