# SPDX-License-Identifier: GPL-2.0-or-later
"""bug-unsorted: Linux 6.16-rc1 looks a breakpoint up in a table that is not sorted.

smp_text_poke_single() put its site behind those that were queued without asking whether the
order stays; the handler of INT3 searches by halves, finds nothing and the kernel panics. Mended
in 6.16-rc3 by 2aebf5ee43bf: what is queued is patched first.
"""

from __future__ import annotations

from typing import Any

from allocator.types import PAGE_SIZE, Hex, MemType
from archs import arch as arch_by_name
from emulator.faults import Fault
from machine.machine import ModelledMachine
from machine.patching import Phase
from machine.racing.finding import search
from machine.racing.scenarios import Ground, plants
from machine.racing.state import bsearch
from samples.jump import ARGUMENTS, FROM, TO
from samples.modules import root
from samples.story import Grid, Lines, Story, Text


def main() -> Story:
    """Patch two sites with a table in either order; then search for the order that goes wrong."""
    story = Story("bug-unsorted", "A breakpoint that nobody finds: Linux 6.16-rc1")
    rows = []
    for order in ("queued and single", "sorted"):
        facts = story.facts[order] = patch(order == "sorted")
        for phase, got in facts["phases"].items():
            rows.append((order, phase, *got))
    found = search(next(p for p in plants(Ground(arch_by_name("x86_64"))) if p.name == "unsorted"))
    story.facts["search"] = {
        "states": found.states,
        "outcome": found.bad.kind if found.bad else None,
        "steps": [step.text for step in found.schedule],
    }
    sites = story.facts["sorted"]["sites"]
    story.parts = [
        Text(
            "An instruction of several bytes cannot be written at once. So its first byte becomes a "
            "breakpoint (INT3), then the rest is written, then the first byte. Who comes by meanwhile "
            "traps, and a handler does what the new instruction will do, if it finds the place in "
            "its table. A breakpoint that is in no table is nobody's: the kernel panics. The table is "
            "searched by halves, which finds what is there if it is sorted."
        ),
        Text(
            f"Two jumps at {sites[0]} and {sites[1]} are patched at once. The upper one was queued "
            "first. CPU 1 calls both in each phase; the handler knows what bsearch() finds."
        ),
        Grid(("table", "CPU 0 has", "lower site", "upper site"), tuple(rows)),
        Text(
            "Only the first half of an unsorted table of two is looked at for the upper site. The "
            "window is open from the first INT3 until the last synchronisation. execmem race "
            f"finds it after {found.states} states; these steps are enough:"
        ),
        Lines(tuple(f"CPU {step.actor}  {step.text}" for step in found.schedule)),
    ]
    return story


def patch(in_order: bool) -> dict[str, Any]:
    """Return what CPU 1 gets at both sites in each phase, by the order of the handler's table."""
    arch = arch_by_name("x86_64")
    assert arch.live_patch is not None
    machine = ModelledMachine(arch, root=root(arch.name), cpus=2)
    gcd, lcm = [machine.load(module).symbols[name] for module, name in (FROM, TO)]
    pending = machine.execmem.alloc(MemType.TEXT, 2 * PAGE_SIZE, align=PAGE_SIZE)
    places = [pending.address, pending.address + PAGE_SIZE]
    olds, news = ([arch.live_patch.jump(at, to) or b"" for at in places] for to in (gcd, lcm))
    for at, old in zip(places, olds, strict=True):
        pending.write(at - pending.address, old)
    pending.finish()
    table = places if in_order else places[::-1]
    phases: dict[str, tuple[str, ...]] = {}

    def arrive(at: int) -> str:
        try:
            return str(machine.call(at, *ARGUMENTS, cpu=1, instructions=10_000))
        except Fault as fault:
            return fault.kind.value

    def meet(phase: Phase) -> None:
        for at in places:
            if not bsearch(table, at):
                machine.breakpoints.pop(at, None)
        phases[phase.value] = tuple(map(arrive, places))

    before = tuple(map(arrive, places))
    machine.patch_many(list(zip(places, news, olds, strict=True)), on_phase=meet)
    machine.check()
    return {"sites": [Hex(at) for at in places], "before": before, "phases": phases}
