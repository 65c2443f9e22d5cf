# SPDX-License-Identifier: GPL-2.0-or-later
"""The tour: the same module on every architecture, from file to result.

`mathuser` calls functions that `mathlib` exports and prints through the kernel's printk, so
one load shows a dependency, calls within reach and calls into the kernel.
"""

from __future__ import annotations

import math
from typing import Any

from allocator.types import ExecmemType, Hex, size_text
from archs import Arch, archs
from loader.link import extents
from machine.machine import ModelledMachine
from machine.module import Module
from samples.modules import root
from samples.story import Grid, Heading, Lines, Story, Text

MODULE, FUNCTION, ARGUMENTS = "mathuser", "mathuser_lcm", (123456, 7890)


def main() -> Story:
    """Load the module on every architecture and tell what is different."""
    story = Story("tour", "One module, every architecture")
    expected = math.lcm(*ARGUMENTS)
    story.parts.append(
        Text(
            f"{MODULE}.c, compiled for each architecture as the kernel compiles its modules, is "
            f"loaded with the module it needs, initialised, and called: "
            f"{FUNCTION}({', '.join(map(str, ARGUMENTS))})."
        )
    )
    for arch in archs():
        story.facts[arch.name] = _visit(story, arch, expected)
    results = {facts["result"] for facts in story.facts.values()}
    same = "the same on all of them" if results == {expected} else f"NOT the same: {results}"
    story.parts += [
        Heading("What is the same, and what is not"),
        Text(
            f"The result is {same}, and equal to Python's math.lcm. The code, its "
            "relocations and how far they may reach differ: that is why a module cannot live "
            "anywhere."
        ),
    ]
    return story


def _visit(story: Story, arch: Arch, expected: int) -> dict[str, Any]:
    machine = ModelledMachine(arch, root=root(arch.name))
    module = machine.load(MODULE)
    result = module.call(FUNCTION, *ARGUMENTS)
    machine.check()
    verdict = "equal" if result == expected else "DIFFERENT"
    story.parts += [
        Heading(f"{arch.title}: code model {arch.link.code_model}"),
        _address_map(machine),
        _relocations(module),
        Lines(tuple(f"| {line.text}" for line in machine.log)),
        Grid(
            ("who computed", "result", ""),
            (
                (f"{FUNCTION}{ARGUMENTS} on {arch.title}", str(result), ""),
                (f"math.lcm{ARGUMENTS} in Python", str(expected), verdict),
            ),
            "result",
        ),
    ]
    module.unload()
    return {
        "result": Hex(result),
        "expected": Hex(expected),
        "relocations": dict(module.report.relocations),
        "text": next(Hex(r.address) for k, r in module.report.regions.items() if k.is_text),
    }


def _address_map(machine: ModelledMachine) -> Grid:
    """List what lies where, lowest address first, with the distance to the kernel's text."""
    here = machine.memory.address_map
    window = here.range_of(ExecmemType.MODULE_TEXT).range
    places = [
        (here.image.start, size_text(here.image.size), "kernel image"),
        (window.start, size_text(window.size), "window for module text begins"),
    ]
    for one in machine.modules.values():
        places += [
            (region.address, size_text(region.size), f"{one.name} {kind.name.lower()}")
            for kind, region in one.report.regions.items()
        ]
    rows = (
        (f"{at:#x}", size, what, _distance(at - here.image.start))
        for at, size, what in sorted(places)
    )
    return Grid(("address", "size", "what", "from the kernel"), tuple(rows), "size,from the kernel")


def _distance(delta: int) -> str:
    return "0" if delta == 0 else f"{'-' if delta < 0 else '+'}{size_text(abs(delta))}"


def _relocations(module: Module) -> Grid:
    """List the relocations with how far the farthest one reaches, and how far it could."""
    rows = []
    for extent in extents(module.loaded.arch, module.loaded.linked.records):
        far = extent.lo if -extent.lo > extent.hi else extent.hi
        relative = extent.row.op.relative
        reach = extent.row.reach
        rows.append(
            (
                extent.row.name,
                str(extent.count),
                extent.row.op.formula,
                _distance(far) if relative else "",
                reach.text() if relative and reach else "",
            )
        )
    columns = ("relocation", "count", "value", "farthest", "reach")
    return Grid(columns, tuple(rows), "count,farthest,reach")
