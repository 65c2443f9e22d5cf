# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes: a breakpoint in place of an instruction, which is then executed somewhere else.

When the guest runs into the breakpoint, the probe's handler looks on; then what stood there is
imitated, where it depends on its address, or runs in a slot from execmem (consumer kprobes),
behind which a second breakpoint leads back. So a hit changes nothing for the guest.

Not every place can be probed: the middle of an instruction (found by decoding from the
function's start, as can_probe() does), static branches and static calls, which the kernel
rewrites itself, the inside of a tracer's call site, an exclusive access, and what the
architecture cannot imitate (kernel/kprobes.c, arch/*/kernel/kprobes/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import attrs

from allocator import AccessError, Allocation
from allocator.types import ADDRESS_MASK, Consumer
from archs import Arch
from archs.text import Insn
from archs.text import Kprobes as Encoding
from emulator.cpu import Cpu
from emulator.faults import FaultKind, Stop
from kernels.modelled.guest import Guest
from kernels.modelled.services import Services
from kernels.modelled.text.patches import Claim, Patches
from kernels.tracing import Hit, PatchRefused, UntilStopped
from loader.loaded import LoadedModule

LONGEST = 16  # bytes of an instruction, with some to spare
EXCLUSIVE_WINDOW = 32  # instructions, MAX_ATOMIC_CONTEXT_SIZE


class Probe(UntilStopped):
    """One probe, until `remove`; a context manager. Made by `Machine.probe`."""

    def __init__(
        self, kprobes: Prober, address: int, where: str, handler: Callable[[Hit], object] | None
    ) -> None:
        self._kprobes = kprobes
        self.address = address
        self.where = where
        self.handler = handler
        self.hits: list[Hit] = []

    @property
    def count(self) -> int:
        """How often it was hit."""
        return len(self.hits)

    def remove(self) -> None:
        """Take the probe away: every byte is as it was before."""
        self._kprobes.remove(self)

    stop = remove


@attrs.define(eq=False)
class _Armed:
    """A breakpoint in place, and everything needed to go on behind it."""

    patch: Claim
    insn: Insn
    slot: Allocation | None
    probes: list[Probe]


class Prober:
    """The probes of one machine.

    Parameters
    ----------
    arch, encoding
        The architecture, and its instructions.
    patches
        Where slots come from, and how breakpoints get into text.
    kernel
        Whose CPUs run into them.
    breakpoints
        Where a CPU that traps looks for who says how it goes on.
    modules
        Returns the modules that are loaded now.
    reserved
        Returns what of the kernel's own rewrites [address, address + size) of a module
        belongs to, and an empty string for other text.
    """

    def __init__(
        self,
        arch: Arch,
        encoding: Encoding,
        patches: Patches,
        kernel: Services,
        breakpoints: dict[int, Callable[[Cpu], int]],
        modules: Callable[[], Iterable[LoadedModule]],
        reserved: Callable[[LoadedModule, int, int], str],
    ) -> None:
        self._program_counter = arch.runs.calling.program_counter
        self._arguments = arch.runs.calling.arguments
        self._encoding = encoding
        self._patches = patches
        self._kernel = kernel
        self._breakpoints = breakpoints
        self._modules = modules
        self._reserved = reserved
        self._armed: dict[int, _Armed] = {}
        self._retired: dict[int, Allocation] = {}  # slots, by their breakpoint's address

    def add(self, address: int, handler: Callable[[Hit], object] | None = None) -> Probe:
        """Put a probe at an instruction of a module.

        Parameters
        ----------
        handler
            Called at each hit; it may look at and change registers through the CPU, call
            guest functions and remove the probe.

        Raises
        ------
        PatchRefused
            The place cannot be probed.
        AllocationError, PokeError
            There is no slot, or no way to write text.
        """
        self._reap()
        probe = Probe(self, address, self._patches.where(address), handler)
        armed = self._armed.get(address)
        if armed is None or not self._patches.holds(armed.patch):
            self._arm(probe)
        else:
            armed.probes.append(probe)
        return probe

    def _arm(self, probe: Probe) -> None:
        address = probe.address
        insn = self._instruction(address)
        slot = None
        if insn.simulate is None:
            slot = self._slot(address, insn)
        try:
            change = (address, self._encoding.breakpoint(insn.size))
            (patch,) = self._patches.claim("probe", "a probe", [change])
        except BaseException:
            if slot is not None:
                self._patches.drop(slot)
            raise
        self._armed[address] = _Armed(patch, insn, slot, [probe])
        self._breakpoints[address] = partial(self._hit, address)
        if slot is not None:
            behind = address + insn.size
            self._breakpoints[slot.address + insn.size] = lambda _cpu: behind

    def _instruction(self, address: int) -> Insn:
        """Return the instruction at an address; PatchRefused where it cannot be probed."""

        def refuse(reason: str, hint: str = "") -> PatchRefused:
            return PatchRefused("probe", address, self._patches.where(address), reason, hint)

        found = None
        for module in self._modules():
            region = module.region_at(address)
            if region is not None:
                found = module.symbol_at(address) if region.type.is_text else None
                break
        else:
            raise refuse("it lies in no module")
        if found is None:
            raise refuse("it lies in no function")
        start = address - found[1]
        end = min(max(start + found[2], address + LONGEST), region.interval.end)
        code = self._patches.original(start, end - start)
        offset = opened = 0
        while True:
            here = code[offset : offset + LONGEST]
            insn = self._encoding.decode(here, start + offset)
            if start + offset >= address or not insn.size:
                break
            opened = EXCLUSIVE_WINDOW if insn.exclusive > 0 else opened - 1
            if insn.exclusive < 0:
                opened = 0
            offset += insn.size
        if not insn.size and start + offset <= address:
            raise refuse(f"{start + offset:#x} holds no instruction")
        if start + offset != address:
            before = start + offset - self._length_before(code, offset, start)
            raise refuse("the middle of an instruction", f"one begins at {before:#x}")
        if insn.refusal:
            raise refuse(insn.refusal)
        if opened > 0:
            raise refuse("between a load-exclusive and its store, which would then always fail")
        owner = self._reserved(module, address, insn.size)
        if owner:
            raise refuse(f"it belongs to {owner}, which the kernel rewrites")
        return insn

    def _length_before(self, code: bytes, end: int, start: int) -> int:
        """Return the size of the instruction that ends at an offset."""
        offset = 0
        while True:
            size = self._encoding.decode(code[offset : offset + LONGEST], start + offset).size
            if offset + size >= end:
                return end - offset
            offset += size

    def _slot(self, address: int, insn: Insn) -> Allocation:
        """Return a slot that holds an instruction made for its new place, and a breakpoint."""
        back = self._encoding.breakpoint(insn.size)

        def parts(start: int) -> Iterator[tuple[int, bytes]]:
            code: bytes | None = self._patches.original(address, insn.size)
            if insn.copy is not None:
                code = insn.copy(start)
            if code is None:
                where = self._patches.where(address)
                reason = f"its operand is out of reach of the slot at {start:#x}"
                raise PatchRefused("probe", address, where, reason)
            yield 0, code + back

        return self._patches.make(Consumer.KPROBES, insn.size + len(back), 4, parts)

    def remove(self, probe: Probe) -> None:
        """Take a probe away; a second time does nothing."""
        armed = self._armed.get(probe.address)
        if armed is None or probe not in armed.probes:
            return
        if len(armed.probes) == 1:
            self._patches.release([armed.patch])
            del self._armed[probe.address], self._breakpoints[probe.address]
            if armed.slot is not None:
                self._retired[armed.slot.address + armed.insn.size] = armed.slot
        armed.probes.remove(probe)
        self._reap()

    def _reap(self) -> None:
        """Free the slots of removed probes, but none that a CPU waits in."""
        waiting = {pc for _, pc in self._patches.running() if pc is not None}
        for behind, slot in list(self._retired.items()):
            if not any(pc in slot.interval for pc in waiting):
                del self._retired[behind], self._breakpoints[behind]
                self._patches.drop(slot)

    # Traps -----------------------------------------------------------------------------------

    def _hit(self, pc: int, cpu: Cpu) -> int:
        """Tell the probes at an address of a CPU's arrival; return where it goes on."""
        armed = self._armed[pc]
        if not self._patches.holds(armed.patch):
            raise Stop(FaultKind.TRAP, pc)  # of another module, which lies there now
        guest = Guest(cpu, self._kernel)
        cpu.write(self._program_counter, pc)
        for probe in tuple(armed.probes):
            registers = {name: guest.read(name) for name in self._encoding.registers}
            arguments = tuple(registers.get(name, 0) for name in self._arguments)
            hit = Hit(pc, registers, arguments)
            probe.hits.append(hit)
            if probe.handler is not None:
                probe.handler(hit)
        if self._armed.get(pc) is not armed:
            return pc  # removed by its handler
        if armed.slot is not None:
            return armed.slot.address
        assert armed.insn.simulate is not None
        try:
            return armed.insn.simulate(guest) & ADDRESS_MASK
        except AccessError as error:
            kind = FaultKind.WRITE if error.access == "write" else FaultKind.READ
            raise Stop(kind, pc, error.address) from None

    def origin(self, pc: int) -> int:
        """Return where the instruction at `pc` comes from, if it is one in a slot."""
        for address, armed in self._armed.items():
            if armed.slot is not None and pc in armed.slot.interval:
                return address
        return pc
