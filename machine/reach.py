# SPDX-License-Identifier: GPL-2.0-or-later
"""Reach, measured: how far each branch and address-forming instruction really gets.

The psABI's numbers are claims about fields. Here the guest executes the instruction, with
its field filled by the relocation row that fills it in a module, towards targets ever
farther away, until it no longer arrives; bisection then finds the last step that works.
A field is filled whether or not the value fits, so that the step past the limit is
executed too, and shows where a truncated displacement really leads.

Targets need no preparation: wherever the guest fetches from unmapped memory, a page of
trap instructions is put there, and the trap tells where it arrived. Nothing but the
instruction's own bytes is known beforehand, not the limit that is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from allocator import KernelMemory, PhysicalMemory, Prot
from allocator.types import GIB, MIB, PAGE_SIZE, align_down
from archs import Arch
from archs.levels.link import Branch, Probe
from archs.op import signed
from archs.reloc import Reach
from emulator.cpu import Cpu
from emulator.disassembly import Disassembler
from emulator.faults import FaultKind, Stop
from loader.listing import insert

SPAN = 32 * GIB  # address space around the instruction; targets lie within a quarter of it
NEAREST = 64  # bytes: past the instruction itself, within reach of every instruction
STEPS = 16  # instructions executed at most: a displacement truncated to 0 runs in circles


@attrs.frozen(kw_only=True)
class Measurement:
    """What was found out about one instruction.

    Displacements count from its own address, and those of a region jump from the region's start.

    Parameters
    ----------
    branch
        The record, with the psABI's reach.
    code, text
        The instruction at the greatest displacement that works, and its disassembly.
    measured
        [lo, hi) found by executing; None where it has no probe, or no limit was found.
    step
        Bytes between two displacements that were told apart.
    past_lo, past_hi
        Where the instruction led with the displacement one step below and above; None
        where it led nowhere.
    """

    branch: Branch
    code: bytes
    text: str
    measured: Reach | None
    step: int
    past_lo: int | None = None
    past_hi: int | None = None


def measure(arch: Arch) -> Iterator[Measurement]:
    """Execute each instruction of `arch.link.branches` at its limits and past them.

    Nothing is measured of an architecture that cannot run.
    """
    if arch.run is None:
        yield from map(_unmeasured, arch.link.branches)
        return
    bench = _Bench(arch)
    try:
        for branch in arch.link.branches:
            yield bench.measure(branch, branch.probe)
    finally:
        bench.close()


def _unmeasured(branch: Branch) -> Measurement:
    return Measurement(branch=branch, code=b"", text="", measured=None, step=branch.reach.align)


class _Bench:
    """A CPU in an empty address space, and one place in the middle where instructions run."""

    def __init__(self, arch: Arch) -> None:
        self._arch = arch
        self._memory = KernelMemory(PhysicalMemory(64 * MIB), arch.loads.address_map())
        within = self._memory.address_map.vmalloc
        room = self._memory.reserve(SPAN, within, alignment=GIB)
        assert room is not None
        self._room = room
        # At the start of a page: a pair that counts in pages then counts from here.
        self._middle = self._place = room.start + SPAN // 2
        self._stack = self._memory.vmalloc(PAGE_SIZE) + PAGE_SIZE // 2
        # The emulator looks at the page where a run would end, so it must be executable.
        self._end = self._memory.vmalloc(PAGE_SIZE, prot=Prot.RX) + PAGE_SIZE // 2
        self._cpu = Cpu(arch, self._memory)
        self._landings: list[int] = []

    def close(self) -> None:
        """Let the CPU go."""
        self._cpu.close()

    def measure(self, branch: Branch, probe: Probe | None) -> Measurement:
        """Return how far `probe` gets in both directions."""
        step = branch.reach.align
        if probe is None:
            return _unmeasured(branch)
        if probe.result is None:
            step = max(step, len(self._arch.loads.trap))  # the guest arrives at instructions only
        origin = 0
        if branch.region is not None:  # from its middle, to find both ends
            self._place = self._middle + branch.region.size // 2
            origin = self._place - branch.region.start(self._place)
        try:
            last, first = self._limit(probe, step), self._limit(probe, -step)
            if last is None or first is None:
                return _unmeasured(branch)
            code = self._fill(probe, last)
            disassembler = Disassembler(self._arch)
            past = [self.lead(probe, beyond) for beyond in (first - step, last + step)]
            past_lo, past_hi = (None if led is None else led + origin for led in past)
            return Measurement(
                branch=branch,
                code=code,
                text="; ".join(text for _, _, text in disassembler.all(code, self._place)),
                measured=Reach(first + origin, last + step + origin, step),
                step=step,
                past_lo=past_lo,
                past_hi=past_hi,
            )
        finally:
            self._place = self._middle

    def _limit(self, probe: Probe, step: int) -> int | None:
        """Return the last displacement in the direction of `step` that leads where it should."""
        works = NEAREST if step > 0 else -NEAREST
        if self.lead(probe, works) != works:
            return None
        fails = 2 * works
        while self.lead(probe, fails) == fails:
            works, fails = fails, 2 * fails
            if abs(fails) > SPAN // 4:
                return None
        while fails - works != step:
            middle = works + (fails - works) // step // 2 * step
            if self.lead(probe, middle) == middle:
                works = middle
            else:
                fails = middle
        return works

    def _fill(self, probe: Probe, displacement: int) -> bytes:
        """Return the code with the displacement in its fields, or what they hold of it."""
        code = bytearray(probe.code)
        x = 0
        for fill in probe.fills:
            row = self._arch.link.relocations[fill.relocation]
            if not row.op.high_half:  # which has the X of the one before
                target, place = self._place + displacement, self._place + fill.at
                found = row.op.evaluate({"S": target, "A": fill.addend, "P": place})
                assert found is not None
                x = found
            code[fill.at :] = insert(row, bytes(code[fill.at :]), x)
        return bytes(code)

    def lead(self, probe: Probe, displacement: int) -> int | None:
        """Execute the instruction and return where it led, as a displacement; None: nowhere."""
        code = self._fill(probe, displacement)
        self._map(self._place - PAGE_SIZE, 2, probe.setup, code)
        try:
            stop = self._run(self._place - len(probe.setup))
            while stop.kind is FaultKind.FETCH and stop.pc in self._room:
                page = align_down(stop.pc, PAGE_SIZE)
                if self._memory.translate(page) is not None:
                    return None
                self._map(page, 1)
                stop = self._run(self._place - len(probe.setup))
            if stop.kind is not FaultKind.TRAP:
                return None
            arrived = stop.pc if probe.result is None else self._cpu.read(probe.result)
            return signed(arrived - self._place)
        finally:
            for page in self._landings:
                self._memory.depopulate(page, PAGE_SIZE)
            self._landings.clear()

    def _map(self, start: int, pages: int, setup: bytes = b"", code: bytes = b"") -> None:
        """Map pages of traps, with `setup` and `code` before and at the place."""
        size = pages * PAGE_SIZE
        self._memory.populate(start, size, Prot.RW, pattern=self._arch.loads.trap)
        self._landings += range(start, start + size, PAGE_SIZE)
        if code:
            self._memory.write(self._place - len(setup), setup + code)
        self._memory.set_memory_rox(start, size)
        self._memory.sync_icache(start, start + size)

    def _run(self, start: int) -> Stop:
        """Run until something stops the guest; it never ends by itself."""
        self._cpu.write(self._arch.runs.calling.stack_pointer, self._stack)
        try:
            self._cpu.run(start, self._end, instructions=STEPS, seconds=None)
        except Stop as stop:
            return stop
        raise AssertionError("the guest ran to the end of its address space")
