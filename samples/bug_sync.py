# SPDX-License-Identifier: GPL-2.0-or-later
"""bug-sync: a patch without synchronisation, and a CPU that goes on with what it fetched.

arm64 invalidated instruction caches and did not interrupt the other CPUs until 3b8c9f1cdfc5
(2018), whose example this is: a module is unloaded, another loaded in its place, and a CPU executes
what it had fetched of the first. Any exception would have made it fetch anew, so nobody saw it
happen. riscv64 lost the flush of an early patch with c97bf629963e, and cores trapped on half an
instruction until 6ca445d8af0e (2024); where patching calls what it has just patched they went on
to, until every patch flushed, a month later.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from allocator import PokeStep
from allocator.types import MemType
from archs import Arch, archs
from emulator.faults import Fault
from machine.machine import ModelledMachine
from machine.racing.finding import search
from machine.racing.scenarios import Ground, plants
from samples.jump import ARGUMENTS, FROM, TO
from samples.modules import root
from samples.story import Grid, Story, Text

SIZE = 64
OMITTED: dict[str, Collection[PokeStep]] = {"with": (), "without": (PokeStep.SYNC,)}


def main() -> Story:
    """Patch a jump away from a function that is then freed, with and without the last step."""
    story = Story("bug-sync", "Patched, not synchronised: arm64 until 2018, riscv64 in 2024")
    rows, searched = [], []
    for arch in archs():
        if arch.live_patch is None or arch.live_patch.breakpoint is not None:
            continue
        facts = story.facts[arch.name] = {}
        for sync, omit in OMITTED.items():
            facts[sync] = told = free(arch, omit)
            rows.append(
                (arch.title, f"{sync} sync", told["before"], told["patched"], told["freed"])
            )
        seen = set[str]()  # of several ways of patching the first one is shown
        for plant in plants(Ground(arch)):
            if "stale" not in plant.expected or plant.name in seen:
                continue
            seen.add(plant.name)
            found = search(plant)
            comes_to = found.bad.kind if found.bad is not None else "nothing"
            counts = str(found.states), str(len(found.schedule))
            searched.append((arch.title, plant.name, *counts, comes_to))
            if plant.name == "no-sync":
                facts["search"] = {"states": found.states, "outcome": comes_to}
    story.parts = [
        Text(
            "A CPU fetches instructions ahead, from caches of its own. What another one writes "
            "reaches it when that one has done its part (arm64: clean the data cache, wait, "
            "invalidate instruction caches, wait; riscv64: a fence), and when this CPU has then dropped "
            "what it had fetched. On arm64 it does so at any exception, sooner or later; a kernel "
            "that frees the old code has to interrupt every CPU and wait."
        ),
        Text(
            f"CPU 1 has called a jump to {FROM[1]}, by way of a trampoline. CPU 0 pokes it into one "
            f"to {TO[1]} and frees the trampoline, which nobody needs any more. CPU 1 calls again."
        ),
        Grid(("arch", "CPU 0 patches", "CPU 1 got", "gets", "and once freed"), tuple(rows)),
        Text(
            "Each of these steps is needed. What execmem race finds when one is left out "
            "(no-sync: the interrupts), and after how many steps of the CPUs:"
        ),
        Grid(("arch", "left out", "states", "steps", "comes to"), tuple(searched), "states,steps"),
        Text(
            "x86-64 has three synchronisations, and each is missed: execmem race no-sync --arch "
            "x86_64."
        ),
    ]
    return story


def free(arch: Arch, omit: Collection[PokeStep]) -> dict[str, Any]:
    """Return what CPU 1 gets before a patch, after it, and when the old way is gone."""
    assert arch.live_patch is not None
    encode = arch.live_patch.jump
    machine = ModelledMachine(arch, root=root(arch.name), cpus=2)
    gcd, lcm = [machine.load(module).symbols[name] for module, name in (FROM, TO)]
    step, site = (machine.execmem.alloc(MemType.TEXT, SIZE) for _ in range(2))
    step.write(0, encode(step.address, gcd) or b"")
    old, new = (encode(site.address, to) or b"" for to in (step.address, lcm))
    site.write(0, old)
    step.finish()
    at = site.finish().address

    def arrive() -> str:
        try:
            return str(machine.call(at, *ARGUMENTS, cpu=1, instructions=10_000))
        except Fault as fault:
            return fault.kind.value

    found = {"before": arrive()}
    machine.poke(at, new, expected=old, omit=omit)
    found["patched"] = arrive()
    machine.execmem.free(step.address)
    found["freed"] = arrive()
    machine.check()
    return found
