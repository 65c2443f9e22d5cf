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
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import attrs

from allocator import Execmem, ExecmemError, PageTable, PokeStep, Site
from archs import Emulator, LivePatch
from emulator.budget import SECONDS
from emulator.calls import Calls
from emulator.cpu import Cpu
from kernels.modelled.guest import Guest
from kernels.modelled.kernel import Kernel
from machine.calling import Caller
from machine.places import Places


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


class Patcher:
    """Writes to text that CPUs of one machine may be executing.

    Parameters
    ----------
    execmem
        Whose text it is.
    kernel, places
        What is there.
    calls, caller
        The CPUs, and what runs on them.
    breakpoints
        What the trap handler does, by address.
    """

    def __init__(
        self,
        execmem: Execmem,
        kernel: Kernel,
        places: Places,
        calls: Calls,
        caller: Caller,
        breakpoints: dict[int, Callable[[Cpu], int]],
    ) -> None:
        self._execmem = execmem
        self._arch = kernel.arch
        self._kernel = kernel
        self._places = places
        self._calls = calls
        self._caller = caller
        self._breakpoints = breakpoints

    def poke(
        self,
        address: int,
        data: bytes,
        *,
        expected: bytes | None = None,
        omit: Collection[PokeStep] = (),
        cpu: int | None = None,
    ) -> None:
        """Poke as `Execmem.poke` does, by stores that a CPU executes; PokeError, Fault."""
        with ExitStack() as stack:
            if cpu is not None:
                stack.enter_context(self._calls.on(cpu))
            self._execmem.poke(address, data, expected, omit=omit, store=self.store)

    def store(self, mm: PageTable | None, address: int, data: bytes) -> None:
        """Let this CPU store `data` at an address of an address space."""
        buffer = self._caller.alloc(data)
        cpu = self._calls.stack.cpu
        cpu.switch_mm(mm)
        try:
            # The kernel's own work, which a guest without budget may not stop half way.
            with self._calls.limits.apart(SECONDS):
                self._calls.run(self._kernel.copy, [address, buffer, len(data)])
        finally:
            cpu.switch_mm(None)
            self._caller.free(buffer)

    def patch(
        self,
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
        self._execmem.check_poke(sites)
        sites = [site for site in sites if site.new]
        if not sites:
            return
        live = self._arch.live_patch
        if live is None:
            raise ExecmemError(f"{self._arch.name}: nobody knows how to patch text that runs")
        olds = [self._caller.read(site.address, len(site.new)) for site in sites]
        phase = on_phase or (lambda _phase: None)
        if way is None:
            way = _usual(live, sites, olds)
        if not force:
            if way is not Way.STOP_MACHINE:
                self._require_outside(way, sites)
            for site, old in zip(sites, olds, strict=True):
                if (broken := self._broken_rule(live, way, site, old)) is not None:
                    raise LivePatchError(site.address, len(site.new), way, broken)
        with self._undone(sites, olds):
            if way is Way.STOP_MACHINE:
                with self._calls.stop_machine():
                    phase(Phase.STOPPED)
                    # Only now nobody can step inside behind our back.
                    if not force:
                        self._require_outside(way, sites)
                    self._execmem.poke_many(sites)
            elif way is Way.BREAKPOINT:
                self._by_breakpoint(live, sites, phase)
            elif force:
                self._by_granule(sites, phase)
            else:
                self._execmem.poke_many(sites)
            phase(Phase.DONE)

    @contextmanager
    def _undone(self, sites: Sequence[Site], olds: Sequence[bytes]) -> Iterator[None]:
        """Put the old bytes back where a patch does not come to its end."""
        try:
            yield
        except BaseException:
            self._execmem.poke_many(
                [Site(site.address, old) for site, old in zip(sites, olds, strict=True)]
            )
            raise

    def _require_outside(self, way: Way, sites: Sequence[Site]) -> None:
        """Refuse to replace what another CPU stands inside of."""
        standing = list(self._caller.threads.items())
        for site in sites:
            for number, thread in standing:
                inside = site.address < thread.pc < site.address + len(site.new)
                if inside and thread.cpu is not self._calls.stack.cpu:
                    rule = f"CPU {number} stands at {thread.pc:#x}, inside what would be replaced"
                    raise LivePatchError(site.address, len(site.new), way, rule)

    def _broken_rule(self, live: LivePatch, way: Way, site: Site, old: bytes) -> str | None:
        """Return the rule that a patch would break, or None."""
        if way is Way.NOSYNC and not live.concurrent(old, site.new):
            return f"other CPUs may be executing it: {live.rule} ({live.name})"
        if way is Way.BREAKPOINT:
            if live.breakpoint is None:
                return "this architecture has no such protocol"
            if live.emulator(site.new) is None:
                return f"the breakpoint's handler can only emulate {live.emulates}"
            first = self._places.instruction_size(site.address)
            if old[first:].strip(live.breakpoint):
                return f"it replaces more than one instruction: the first has {first} bytes"
        return None

    def _by_breakpoint(self, live: LivePatch, sites: Sequence[Site], phase: OnPhase) -> None:
        """Breakpoints, tails, first bytes; all CPUs are synchronised after each."""
        mark = live.breakpoint or self._arch.loads.trap
        poke, size = self._execmem.poke_many, len(mark)
        with self._handlers({s.address: live.emulator(s.new) for s in sites}):
            poke([Site(s.address, mark) for s in sites])
            phase(Phase.BREAKPOINT)
            poke([Site(s.address + size, s.new[size:]) for s in sites if len(s.new) > size])
            phase(Phase.TAIL)
            poke([Site(s.address, s.new[:size], mark) for s in sites])

    @contextmanager
    def _handlers(self, emulators: dict[int, Emulator | None]) -> Iterator[None]:
        """Let the trap handler do what the new instructions will do, while that is needed."""
        before = {at: self._breakpoints.get(at) for at in emulators}
        for at, emulate in emulators.items():
            if emulate is not None:
                self._breakpoints[at] = partial(self._emulate, emulate, at)
        try:
            yield
        finally:
            for at, handler in before.items():
                self._breakpoints.pop(at, None)
                if handler is not None:
                    self._breakpoints[at] = handler

    def _emulate(self, emulate: Emulator, address: int, cpu: Cpu) -> int:
        emulate(address, Guest(cpu, self._kernel))
        return cpu.read(self._arch.runs.calling.program_counter)

    def _by_granule(self, sites: Sequence[Site], phase: OnPhase) -> None:
        """Store one granule after the other, and synchronise only at the end: what is not safe."""
        granule = self._execmem.text_poke.granule if self._execmem.text_poke else 1
        for site in sites:
            for at in range(0, len(site.new), granule):
                piece = Site(site.address + at, site.new[at : at + granule])
                self._execmem.poke_many((piece,), omit={PokeStep.SYNC})
                phase(Phase.PIECE)
        for site in sites:
            self._execmem.memory.sync_icache(site.address, site.address + len(site.new))


def _usual(live: LivePatch, sites: Sequence[Site], olds: Sequence[bytes]) -> Way:
    """Return the way that the kernel takes."""
    if live.breakpoint is not None:
        return Way.BREAKPOINT
    safe = all(live.concurrent(old, site.new) for site, old in zip(sites, olds, strict=True))
    return Way.NOSYNC if safe else Way.STOP_MACHINE
