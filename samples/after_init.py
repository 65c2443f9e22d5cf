# SPDX-License-Identifier: GPL-2.0-or-later
"""after_init: data that init may write and nobody after it.

__ro_after_init variables lie in a region of their own, because they become read-only at
another moment than rodata. The module's own function tries to write one: before the seal it
stores, after it the guest faults.
"""

from __future__ import annotations

from typing import Any

from allocator.types import MemType
from archs import Arch, archs
from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.modules import root
from samples.story import Grid, Heading, Lines, Story, StoryPart, Text


def main() -> Story:
    """Write a __ro_after_init variable before and after init."""
    story = Story("after_init", "ro_after_init: writable until init returns")
    rows: list[tuple[str, ...]] = []
    said: list[StoryPart] = []
    for arch in archs():
        facts = _visit(arch)
        story.facts[arch.name] = facts
        rows.append(
            (
                arch.title,
                facts["before"][0],
                facts["before"][1],
                facts["after"][0],
                facts["after"][1],
            )
        )
        said += [Heading(arch.title), Lines((facts["fault"],))]
    story.parts = [
        Text(
            "sealed_try_write(7) stores to a __ro_after_init variable of sealed.ko and returns "
            "what is there then: once before init runs, once after."
        ),
        Grid(("arch", "before", "store", "after init", "store"), tuple(rows)),
        *said,
        Text(
            "Were such data in one leaf with rodata, sealing would have to wait for the slowest "
            "init, or split the leaf."
        ),
    ]
    return story


def _visit(arch: Arch) -> dict[str, Any]:
    machine = ModelledMachine(arch, root=root(arch.name))
    early = machine.load("sealed", init=False)
    region = early.report.regions[MemType.RO_AFTER_INIT]
    before = (_prot(machine, region.address), f"{early.call('sealed_try_write', 7)} is there")
    early.unload()
    late = machine.load("sealed")
    region = late.report.regions[MemType.RO_AFTER_INIT]
    value = late.call("sealed_get")
    fault = ""
    try:
        late.call("sealed_try_write", 7)
    except Fault as error:
        fault = str(error).splitlines()[0]
    return {
        "before": before,
        "after": (_prot(machine, region.address), "faults" if fault else "stored"),
        "fault": fault,
        "kept": late.call("sealed_get") == value,
    }


def _prot(machine: ModelledMachine, address: int) -> str:
    found = machine.memory.translate(address)
    assert found is not None
    return str(found.prot)
