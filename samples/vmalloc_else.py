# SPDX-License-Identifier: GPL-2.0-or-later
"""vmalloc_else: the #else of the thread, which puts text where no call gets.

The first sketch of 2022 fell back to the whole vmalloc range on architectures that name no
range of their own. On every architecture that is far from the kernel: a module placed there
is refused, and the refusal says by how far each call misses.
"""

from __future__ import annotations

from allocator.types import Hex, size_text
from archs import archs
from loader.errors import RelocationError
from machine.machine import ModelledMachine
from samples.modules import root
from samples.story import Grid, Heading, Lines, Story, StoryPart, Text

MODULE = "hello"


def main() -> Story:
    """Load a module under the design that takes text from the vmalloc range."""
    story = Story("vmalloc_else", "The #else that puts text out of reach")
    rows: list[tuple[str, ...]] = []
    said: list[StoryPart] = []
    for arch, seed in ((arch, seed) for arch in archs() for seed in (None, 1)):
        machine = ModelledMachine(arch, root=root(arch.name), design="vmalloc_else", kaslr=seed)
        here = machine.memory.address_map
        title = arch.title if seed is None else f"{arch.title}, KASLR"
        away = abs(here.vmalloc.start - here.image.start)
        try:
            module = machine.load(MODULE, init=False)
            entries = module.report.plt_slots
            outcome = f"loads, {entries} PLT entries"
            refused = 0
        except RelocationError as error:
            refused = error.total
            outcome = f"refused: {refused} relocations"
            if seed is None or not said:
                said += [Heading(title), Lines(tuple(str(error).splitlines()[:2]))]
        story.facts[title] = {"refused": refused, "outcome": outcome, "away": Hex(away)}
        rows.append((title, f"{here.vmalloc.start:#x}", size_text(away), outcome))
    story.parts = [
        Text(f"{MODULE}.ko under --design vmalloc_else: text comes from the vmalloc range."),
        Grid(
            ("arch", "vmalloc starts at", "from the kernel", MODULE), tuple(rows), "from the kernel"
        ),
        *said,
        Text(
            "Without KASLR arm64's vmalloc range happens to begin at the kernel, so the first "
            "modules load. mips64el calls through registers, and nothing names this text by "
            "its address. Else an architecture must name a range, or have no modules."
        ),
    ]
    return story
