# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel function is being served, on which CPU, and for whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from allocator import AccessError, KernelMemory
from archs import Arch
from emulator.cpu import Cpu
from emulator.faults import Fault, FaultKind
from kernels.guarding import Wrong
from kernels.modelled.kasan import Origin
from kernels.runner import GuestRunner


class Serving:
    """The call of a kernel function under way, if one is.

    Parameters
    ----------
    arch, memory, cpus
        What the kernel runs on; `cpu` is the CPU that it runs on now.
    runner
        Knows the names of what calls.

    `function` is the kernel function that the guest is in; empty between calls.
    """

    def __init__(
        self, arch: Arch, memory: KernelMemory, cpus: Sequence[Cpu], runner: GuestRunner
    ) -> None:
        self._calling = arch.runs.calling
        self._memory = memory
        self._runner = runner
        self.cpu = cpus[0]
        self.function = ""
        # Told of each function that the guest calls, before it is carried out.
        self.entered: Callable[[str], object] | None = None
        # Says what is wrong with an access of a kernel function to a guarded object, and is told.
        self.blame: Callable[[int, bool], Wrong | None] = lambda _address, _write: None
        self.found: Callable[[Wrong, Fault], object] = lambda _wrong, _fault: None

    def return_to(self) -> int:
        """Return where the call being executed returns to."""
        calling = self._calling
        if calling.link is not None:
            return self.cpu.read(calling.link)
        return int.from_bytes(self._memory.read(self.cpu.read(calling.stack_pointer), 8), "little")

    def caller(self) -> str:
        """Return where the call being executed returns to, for messages."""
        try:
            address = self.return_to()
        except AccessError as error:
            return f"an unknown place: no stack at {error.address:#x}"
        return self._runner.symbolize(address) or f"{address:#x}"

    def origin(self) -> Origin:
        """Return who is in which kernel function."""
        if not self.function:
            return Origin("a place outside the guest", "", "")
        at = self.return_to()
        return Origin(
            self._runner.symbolize(at) or f"{at:#x}", self._runner.locate(at)[0], self.function
        )

    def fault(
        self, kind: FaultKind, reason: str, *, hint: str = "", address: int | None = None
    ) -> Fault:
        """Return a fault of the guest where it is: in a kernel function, or where it was last."""
        pc = self.cpu.read(self._calling.program_counter)
        where = self.caller() if self.function else self._runner.symbolize(pc) or f"{pc:#x}"
        return Fault(kind, pc, where, reason=reason, hint=hint, address=address)

    def access_fault(self, error: AccessError, what: str) -> Fault:
        """Return the fault of what the kernel could not reach for the guest, in `what`."""
        kind = FaultKind.WRITE if error.access == "write" else FaultKind.READ
        wrong = self.blame(error.address, kind is FaultKind.WRITE)
        if wrong is not None:
            reason = f"{wrong.reason}, in {what}"
            fault = self.fault(wrong.kind.fault, reason, address=error.address)
            self.found(wrong, fault)
            return fault
        return self.fault(kind, f"{error.reason}, in {what}", address=error.address)
