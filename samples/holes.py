# SPDX-License-Identifier: GPL-2.0-or-later
"""holes: what init leaves behind between the texts that stay.

A module's init text is needed once. Where it lies among texts that live on, freeing it leaves
holes that keep chunks from ever coming back; where it has an end of its own, the next init
takes the same place, and the texts that stay lie side by side.
"""

from __future__ import annotations

from typing import Any

from allocator.types import MemType
from machine.machine import ModelledMachine
from samples.bench import free_runs
from samples.modules import names, root
from samples.story import Grid, Story, Text

DESIGNS = ("vmalloc", "rox_cache", "strata")


def main() -> Story:
    """Load every sample module under three designs, and look at what lies between the texts."""
    story = Story("holes", "The holes that init leaves")
    rows = []
    for design in DESIGNS:
        facts = _load_all(design)
        story.facts[design] = facts
        rows.append(
            (
                design,
                str(facts["modules"]),
                f"{facts['text']:,}",
                f"{facts['span']:,}",
                str(facts["holes"]),
                f"{facts['largest']:,}",
                str(facts["init places"]),
            )
        )
    story.parts = [
        Text(
            "All sample modules on x86-64, init run and freed. The texts that stay, what they span "
            "from first to last byte, the holes in between; and at how many addresses init text "
            "had been."
        ),
        Grid(
            ("design", "modules", "text", "span", "holes", "largest", "init places"),
            tuple(rows),
            "modules,text,span,holes,largest,init places",
        ),
        Text(
            "Bytes. vmalloc spends a page and a guard page on a few bytes of init text. rox_cache "
            "lays everything in order, page by page. strata takes init text from the other end "
            "of a chunk: nothing but alignment is left "
            "between texts, and the next init often gets the place of the one before."
        ),
    ]
    return story


def _load_all(design: str) -> dict[str, Any]:
    machine = ModelledMachine("x86_64", root=root("x86_64"), design=design)
    init = set()
    for name in names():
        if name in machine.modules:
            continue
        module = machine.load(name, error=0) if name == "failing" else machine.load(name)
        init |= {
            r.address for kind, r in module.report.regions.items() if kind is MemType.INIT_TEXT
        }
    texts = sorted(
        module.regions[MemType.TEXT].interval
        for module in machine.modules.values()
        if MemType.TEXT in module.regions
    )
    span = (texts[0].start, texts[-1].end)
    between = free_runs(type(texts[0])(*span), texts)
    machine.check()
    return {
        "modules": len(machine.modules),
        "text": sum(text.size for text in texts),
        "span": span[1] - span[0],
        "holes": len(between),
        "largest": max((hole.size for hole in between), default=0),
        "init places": len(init),
    }
