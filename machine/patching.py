# SPDX-License-Identifier: GPL-2.0-or-later
"""Live patching: replacing an instruction that another CPU may be executing just now.

A store is whole only up to a granule, and no CPU fetches anew because another one stored.
So an instruction that is simply overwritten can be met half old and half new, or be missed
altogether. There are three ways not to let that happen:

    nosync        write, then synchronise. For what a CPU may meet in either form: one byte
                  on x86-64, one branch or NOP by another on arm64.
    breakpoint    x86-64 (text_poke_bp): INT3 over the first byte, synchronise; the other
                  bytes, synchronise; the first byte, synchronise. Who arrives meanwhile traps,
                  and the handler does the work of the new instruction.
    stop_machine  let no other CPU run, write, and make each fetch anew.

What an architecture may do stands in its record (`archs.LivePatch`). A way that is not safe
is refused by the rule that it breaks; `force` takes it anyway, granule by granule, which is
how a torn instruction is shown.

Sources: arch/x86/kernel/alternative.c, arch/arm64/kernel/patching.c,
arch/riscv/kernel/patch.c, kernel/stop_machine.c.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs

from allocator import ExecmemError, PokeStep, Site
from archs import Emulator, LivePatch
from emulator.cpu import Cpu
from kernels.modelled.guest import Guest

if TYPE_CHECKING:
    from machine.machine import Machine


class Way(enum.Enum):
    """How a live patch is made."""

    NOSYNC = "nosync"
    BREAKPOINT = "breakpoint"
    STOP_MACHINE = "stop_machine"


class Phase(enum.Enum):
    """What has just been done when other CPUs get a chance to run."""

    BREAKPOINT = "breakpoints written"
    TAIL = "tails written"
    STOPPED = "other CPUs stopped"
    PIECE = "one granule written"
    DONE = "all written"


OnPhase = Callable[[Phase], object]


@attrs.define(auto_exc=True, str=False)
class LivePatchError(ExecmemError):
    """A live patch that is not safe; nothing was changed."""

    address: int
    size: int
    way: Way
    rule: str

    def __str__(self) -> str:
        return (
            f"live patch ({self.way.value}) of {self.size} bytes at {self.address:#x}: {self.rule}"
        )


def patch(
    machine: Machine,
    sites: Sequence[Site],
    *,
    way: Way | None = None,
    force: bool = False,
    on_phase: OnPhase | None = None,
) -> None:
    """Replace instructions while other CPUs may execute them.

    Parameters
    ----------
    sites
        Address, new bytes, and the old bytes where they are to be checked.
    way
        How; by default as the architecture's kernel does.
    force
        Take a way that is not safe, storing granule by granule.
    on_phase
        Called after each phase: a place to let other CPUs run.

    Raises
    ------
    LivePatchError
        The way is not safe here, or another CPU stands inside what would be written.
    PokeError
        As `Execmem.poke_many`.

    Nothing is changed in either case, nor when `on_phase` raises.
    """
    live = machine.arch.live_patch
    machine.execmem.check_poke(sites)
    sites = [site for site in sites if site.new]
    if live is None or not sites:
        return
    olds = [machine.read(site.address, len(site.new)) for site in sites]
    phase = on_phase or (lambda _phase: None)
    if way is None:
        way = _usual(live, sites, olds)
    if not force:
        for site, old in zip(sites, olds, strict=True):
            if (broken := _broken_rule(machine, live, way, site, old)) is not None:
                raise LivePatchError(site.address, len(site.new), way, broken)
    try:
        if way is Way.STOP_MACHINE:
            with machine.stop_machine():
                phase(Phase.STOPPED)
                machine.execmem.poke_many(sites)
        elif way is Way.BREAKPOINT:
            _by_breakpoint(machine, live, sites, phase)
        elif force:
            _by_granule(machine, sites, phase)
        else:
            machine.execmem.poke_many(sites)
        phase(Phase.DONE)
    except BaseException:
        machine.execmem.poke_many(
            [Site(site.address, old) for site, old in zip(sites, olds, strict=True)]
        )
        raise


def _usual(live: LivePatch, sites: Sequence[Site], olds: Sequence[bytes]) -> Way:
    """Return the way that the kernel takes."""
    if live.breakpoint is not None:
        return Way.BREAKPOINT
    safe = all(live.concurrent(old, site.new) for site, old in zip(sites, olds, strict=True))
    return Way.NOSYNC if safe else Way.STOP_MACHINE


def _broken_rule(machine: Machine, live: LivePatch, way: Way, site: Site, old: bytes) -> str | None:
    """Return the rule that a patch would break, or None."""
    for number, thread in machine.threads.items():
        inside = site.address < thread.pc < site.address + len(site.new)
        if inside and thread.cpu is not machine.cpu:
            return f"CPU {number} stands at {thread.pc:#x}, inside what would be replaced"
    if way is Way.NOSYNC and not live.concurrent(old, site.new):
        return f"other CPUs may be executing it: {live.rule} ({live.name})"
    if way is Way.BREAKPOINT:
        if live.breakpoint is None:
            return "this architecture has no such protocol"
        if live.emulator(site.new) is None:
            return f"the breakpoint's handler can only emulate {live.emulates}"
        first = machine.instruction_size(site.address)
        if old[first:].strip(live.breakpoint):
            return f"it replaces more than one instruction: the first has {first} bytes"
    return None


def _by_breakpoint(
    machine: Machine, live: LivePatch, sites: Sequence[Site], phase: OnPhase
) -> None:
    """Breakpoints, tails, first bytes; all CPUs are synchronised after each."""
    mark = live.breakpoint or machine.arch.loads.trap
    poke, size = machine.execmem.poke_many, len(mark)
    with _handlers(machine, {s.address: live.emulator(s.new) for s in sites}):
        poke([Site(s.address, mark) for s in sites])
        phase(Phase.BREAKPOINT)
        poke([Site(s.address + size, s.new[size:]) for s in sites if len(s.new) > size])
        phase(Phase.TAIL)
        poke([Site(s.address, s.new[:size], mark) for s in sites])


@contextmanager
def _handlers(machine: Machine, emulators: dict[int, Emulator | None]) -> Iterator[None]:
    """Let the trap handler do what the new instructions will do, while that is needed."""
    before = {at: machine.breakpoints.get(at) for at in emulators}
    for at, emulate in emulators.items():
        if emulate is not None:
            machine.breakpoints[at] = partial(_emulate, machine, emulate, at)
    try:
        yield
    finally:
        for at, handler in before.items():
            machine.breakpoints.pop(at, None)
            if handler is not None:
                machine.breakpoints[at] = handler


def _emulate(machine: Machine, emulate: Emulator, address: int, cpu: Cpu) -> int:
    emulate(address, Guest(cpu, machine.kernel))
    return cpu.read(machine.arch.runs.calling.program_counter)


def _by_granule(machine: Machine, sites: Sequence[Site], phase: OnPhase) -> None:
    """Store one granule after the other, and synchronise only at the end: what is not safe."""
    granule = machine.execmem.text_poke.granule if machine.execmem.text_poke else 1
    for site in sites:
        for at in range(0, len(site.new), granule):
            piece = Site(site.address + at, site.new[at : at + granule])
            machine.execmem.poke_many((piece,), omit={PokeStep.SYNC})
            phase(Phase.PIECE)
    for site in sites:
        machine.memory.sync_icache(site.address, site.address + len(site.new))
