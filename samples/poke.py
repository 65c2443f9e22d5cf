# SPDX-License-Identifier: GPL-2.0-or-later
"""Poke: changing code that runs, and what each step of it is for.

A jump leads to one function of the sample modules; it is poked so that it leads to another,
while a second CPU executes it. First with everything that the kernel does, then with one
step left out each time.
"""

from __future__ import annotations

from typing import Any

from allocator import PokeError, PokeStep
from allocator.types import PAGE_SIZE
from archs import Arch, archs
from emulator.faults import Fault
from machine.patching import LivePatchError, Phase, Way
from samples.jump import ARGUMENTS, FROM, TO, Jump
from samples.story import Grid, Heading, Story, Text

WORDS = (
    ("alias", "a second mapping of the same memory, writable for a moment; text itself never is"),
    ("flush", "make CPUs forget the alias: else the next poke goes where the last one went"),
    ("sync", "make CPUs fetch anew what they may have fetched or decoded before the store"),
    ("granule", "what one store changes as a whole; an instruction of two can be met half new"),
    ("breakpoint", "a trap over the first byte, so that who arrives is led on meanwhile"),
    ("stop_machine", "no other CPU runs while it is written: where nothing else is safe"),
)


def main() -> Story:
    """Poke a jump on every architecture, rightly and wrongly."""
    story = Story("poke", "Changing code that runs, and what each step is for")
    story.parts.append(
        Text(
            f"A jump to {FROM[1]} is changed into one to {TO[1]}; both get {ARGUMENTS}. CPU 1 "
            "calls it while CPU 0 pokes. What the steps are for:"
        )
    )
    story.parts.append(Grid(("step", "what it is for"), WORDS))
    for arch in archs():
        poke, live = arch.text_poke, arch.live_patch
        if poke is None or live is None:
            story.parts.append(Text(f"{arch.title} has no text_poke: its text stays as it is."))
            continue
        facts = story.facts[arch.name] = visit(arch)
        where = "a private address space" if poke.private else "the fixmap"
        met = "CPU 1 gets " + ", ".join(facts["pieces"])
        torn = met if facts["torn"] else "an instruction is one granule"
        story.parts += [
            Heading(
                f"{arch.title}: {poke.name} maps {poke.pages} page{'s' * (poke.pages > 1)} a step "
                f"in {where}; granules of {poke.granule}"
            ),
            Grid(
                ("CPU 0", "then"),
                (
                    ("pokes", f"CPU 1 got {facts['before']}, and gets {facts['poked']}"),
                    ("without the alias", facts["alias"]),
                    ("without the flush", facts["flush"]),
                    ("without the sync", f"CPU 1 gets {facts['stale']}; synced {facts['synced']}"),
                    ("granule by granule", torn),
                    *(
                        (f"{live.name.split(',')[0]}: {phase}", f"CPU 1 gets {got}")
                        for phase, got in facts["phases"].items()
                    ),
                ),
            ),
        ]
    return story


def visit(arch: Arch) -> dict[str, Any]:
    """Return what CPU 1 got, with every step and without each of them."""
    jump = Jump(arch)
    machine, at, old, new = jump.machine, jump.address, jump.old, jump.new
    assert arch.text_poke is not None
    facts: dict[str, Any] = {"before": jump.arrive()}
    machine.poke(at, new, expected=old)
    facts["poked"] = jump.arrive()
    try:
        machine.poke(at, old, omit={PokeStep.ALIAS})
    except Fault as fault:
        facts["alias"] = f"{fault.kind.value} fault: the text is {fault.reason.split(':')[0]}"

    machine.poke(at, old, omit={PokeStep.SYNC})
    facts["stale"] = jump.arrive()
    machine.cpus[1].sync_icache(at, at + len(old))
    facts["synced"] = jump.arrive()

    one, two = jump.start + PAGE_SIZE, jump.start + 2 * PAGE_SIZE
    machine.poke(one, machine.read(one, len(new)), omit={PokeStep.FLUSH})
    try:
        machine.poke(two, new, omit={PokeStep.FLUSH})
    except PokeError:
        where = {machine.read(one, len(new)): "page before", machine.read(two, len(new)): "page"}
        facts["flush"] = f"the next poke lands in the {where[new]}"
    machine.memory.flush_tlb(arch.text_poke.alias)

    facts["torn"], facts["pieces"] = bool(jump.halves()), []
    try:
        machine.patch(at, new, way=Way.NOSYNC)
    except LivePatchError as error:
        facts["refused"] = error.rule

        def met(_phase: Phase) -> None:
            # Caches are small: what CPU 1 had fetched may be gone at any time.
            machine.cpus[1].sync_icache(at, at + len(new))
            facts["pieces"].append(jump.arrive())

        machine.patch(at, new, way=Way.NOSYNC, force=True, on_phase=met)
    machine.patch(at, old, way=Way.STOP_MACHINE)

    facts["phases"] = {}

    def meet(phase: Phase) -> None:
        stopped = phase is Phase.STOPPED
        facts["phases"][phase.value] = "no turn" if stopped else jump.arrive()

    machine.patch(at, new, expected=old, on_phase=meet)
    machine.check()
    return facts
