# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a module's text until it is live, as a race: no moment may make it W and X.

Recorded is what a design does between write and finish. The other CPUs try to execute the text at
any moment, as somebody would who has found a way to lead them there; a CPU that can write to it
by the page table, or by what its TLB holds, is enough for a window.
"""

from __future__ import annotations

from allocator.types import PAGE_SIZE, MemType
from archs import Arch
from machine.machine import ModelledMachine
from machine.racing.model import Race
from machine.racing.recording import Recorder
from machine.racing.scenarios import Scenario, race_of
from machine.racing.state import Done, FlushText, Op, Place, Protect, Put

WINDOW = ("window",)


def loading(arch: Arch, design: str, *, executors: int = 1, visits: int = 1) -> Scenario:
    """Return what a design does with a page of text from its first byte written until it is live."""
    machine = ModelledMachine(arch, design=design)
    size = max(arch.loads.function_alignment, len(arch.loads.trap))
    # Somebody was there before, so that what a design keeps ready is there.
    machine.execmem.alloc(MemType.TEXT, PAGE_SIZE).finish()
    pending = machine.execmem.alloc(MemType.TEXT, PAGE_SIZE, align=PAGE_SIZE)
    at, new = pending.address, _nops(arch, size)
    granule = arch.text_poke.granule if arch.text_poke is not None else 1
    old = machine.read(at, len(new))
    one = (len(new),)
    place = Place(at, tuple(range(len(new) // granule)), old, new, one, one)
    recorder = Recorder(machine, [place], executors, text=at)
    born = recorder.allowed()
    with recorder.watching():
        pending.write(0, new)
        pending.finish()
    program = (*recorder.program, Done((0,)))
    race = race_of(recorder, [program], rights=born, visits=visits)
    return Scenario(arch=arch, title=f"text under {design}", race=race, expected=WINDOW)


def born_rwx(scenario: Scenario) -> Scenario:
    """Return another design's load as it was when text was born writable and executable.

    module_alloc() mapped it so (x86-64 until 5.2, f2c65fb3221a), and load_module() took W when all
    was written.
    """
    race = scenario.race
    written = [Put(None, op.cell, op.data) for op in race.programs[0] if isinstance(op, Put)]
    program: list[Op] = [*written, Protect("R-X"), FlushText(broadcast=True), Done((0,))]
    return Scenario(
        arch=scenario.arch,
        title="text born RWX",
        race=Race(
            places=race.places,
            programs=(tuple(program),),
            live=race.live,
            granule=race.granule,
            frames=race.frames,
            executors=race.executors,
            visits=race.visits,
            rights="RWX",
        ),
        name="born-rwx",
        expected=WINDOW,
    )


def _nops(arch: Arch, size: int) -> bytes:
    """Return a NOP of the architecture, of one granule at least."""
    patching = arch.patch.text if arch.patch is not None else None
    nops = patching.jump_labels.nops if patching is not None else {}
    return next(iter(nops.values()), bytes(size))
