# SPDX-License-Identifier: GPL-2.0-or-later
"""bug-wx: text that could be written and executed at once while a module was loaded.

module_alloc() of x86-64 mapped text writable and executable until f2c65fb3221a (5.2); later
text is born writable, and set_memory_ro() and set_memory_x() turn it round one after the other.
One call that does both (set_memory_rox) leaves TLBs of other CPUs behind until it flushes. Text that
is read-only from birth (the ROX cache of 6.13, and strata) is never writable where it is executed.
"""

from __future__ import annotations

from typing import Any

from archs import archs
from machine.racing.finding import Finding, search
from machine.racing.loading import born_rwx, loading
from machine.racing.scenarios import Scenario
from samples.story import Grid, Lines, Story, Text

DESIGNS = ("vmalloc", "rox_cache", "rox_cache_613", "strata")


def main() -> Story:
    """Search the loading of a page of text, by design, for a moment when it is W and X."""
    story = Story("bug-wx", "Writable and executable: module loading before 5.2, and after")
    rows, shown = [], None
    for arch in archs():
        if arch.live_patch is None:
            continue
        facts = story.facts[arch.name] = {}
        loads = {name: loading(arch, name) for name in DESIGNS}
        for name, scenario in ({"born RWX": born_rwx(loads["vmalloc"])} | loads).items():
            found = search(scenario)
            facts[name] = _facts(scenario, found)
            rows.append((arch.title, name, scenario.race.rights, str(found.states), _told(found)))
            if name == "rox_cache":
                shown = arch, found
    story.parts = [
        Text(
            "Memory that can be written (W) and executed (X) turns any stray write into code of "
            "the attacker's. What a page allows stands in the page table, and each CPU keeps what it "
            "has looked up there in its TLB until it is told to forget it, by a flush. So Linux "
            "takes W, flushes, and only then gives X: in one step, one CPU might still write what "
            "another may execute already."
        ),
        Text(
            "A page of text from its first byte written until it is live. CPU 1 tries to execute "
            "it at any moment; a window is one in which some CPU may write to it, by its TLB."
        ),
        Grid(("arch", "design", "born", "states", "every interleaving"), tuple(rows), "states"),
    ]
    if shown is not None:
        story.parts += [
            Text(
                f"rox_cache on {shown[0].title}: no page table ever says W and X, but CPU 1 sees "
                "what it says now and what it said before the flush:"
            ),
            Lines(tuple(f"CPU {step.actor}  {step.text}" for step in shown[1].schedule)),
        ]
    story.parts.append(
        Text(
            "Nobody should lead a CPU there before set_memory_rox() returns; text that is never "
            "written at its own address does not depend on it. execmem race searches the same of "
            "the default design, beside two CPUs that load, seal and unload at once."
        )
    )
    return story


def _told(found: Finding) -> str:
    return "no window" if found.bad is None else f"a window after {len(found.schedule) - 1} steps"


def _facts(scenario: Scenario, found: Finding) -> dict[str, Any]:
    return {
        "born": scenario.race.rights,
        "states": found.states,
        "complete": found.complete,
        "outcome": None if found.bad is None else found.bad.kind,
    }
