# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest pays for what the kernel does and keeps for it."""

from __future__ import annotations

from typing import NoReturn

from emulator.budget import Limits
from emulator.faults import LIMIT_HINTS, FaultKind
from kernels.modelled.bounds import HELD, WORK
from kernels.modelled.heap import Heap
from kernels.modelled.serving import Serving
from kernels.registry import Registry

LOOK = 256  # loads and the like, between looks at the limits
ENTRY = 1024  # bytes that an entry which a subsystem remembers costs the host


class Costs:
    """Work, and memory of the host, that the guest pays for.

    Parameters
    ----------
    serving
        Who pays.
    limits
        What the guest may take now, of instructions and time.
    heap, registry
        What the guest's objects come to, which bounds the host's as well.

    `entries` is what subsystems' memories cost the host; `held` what is held at once.
    """

    def __init__(self, serving: Serving, limits: Limits, heap: Heap, registry: Registry) -> None:
        self._serving = serving
        self._limits = limits
        self._heap = heap
        self._registry = registry
        self._spent = 0
        self.held = 0
        self.entries: dict[type, int] = {}

    def spend(self, work: int = 1) -> None:
        """Let the guest pay for what the kernel does; loops whose length it chose call this.

        A CPU cannot be stopped while the kernel works for it, so the limits are looked at here,
        each time that LOOK steps were done since the last look, for the price of an instruction.

        Parameters
        ----------
        work
            Steps, each of about the length of a load from memory.
        """
        self._spent += work
        if self._spent >= LOOK:
            looks, self._spent = divmod(self._spent, LOOK)
            budget = self._limits.budget
            if budget.left is not None:
                budget.take(looks)
                if budget.left <= 0:
                    self._exhausted(FaultKind.INSTRUCTION_LIMIT, budget.instructions)
            if budget.late:
                self._exhausted(FaultKind.TIME_LIMIT, budget.seconds)

    def filled(self, size: int) -> None:
        """Let the guest pay for memory that it gets."""
        if self._serving.function:
            self.spend(size // WORK)

    def hold(self, size: int) -> bool:
        """Say that `size` bytes more of the host's memory are held; return whether it is too much."""
        self.held += size
        return self.held > self._heap.limit // HELD and bool(self._serving.function)

    def account(self, kind: type | None = None, entries: int = 0) -> None:
        """Take what the host keeps for the guest from what the guest's heap may come to.

        Parameters
        ----------
        kind, entries
            A subsystem, and what the entries that it remembers cost by now.
        """
        if kind is not None:
            self.entries[kind] = entries
        before = self._heap.host
        self._heap.host = self._registry.cost + sum(self.entries.values())
        if self._heap.full and self._heap.host > before and self._limits.depth:
            self.overflow(f"{self._heap.limit:#x} bytes of objects and what is kept of them")

    def overflow(self, what: str, hint: str = LIMIT_HINTS[FaultKind.MEMORY_LIMIT]) -> NoReturn:
        """Stop the guest before what it leaves behind outgrows the host."""
        raise self._serving.fault(FaultKind.MEMORY_LIMIT, what, hint=hint)

    def _exhausted(self, kind: FaultKind, limit: float | None) -> NoReturn:
        unit = "seconds" if kind is FaultKind.TIME_LIMIT else "instructions"
        function = self._serving.function
        inside = f"in {function}()" if function else "between calls of the guest"
        raise self._serving.fault(kind, f"{limit} {unit}, {inside}", hint=LIMIT_HINTS[kind])
