# SPDX-License-Identifier: GPL-2.0-or-later
"""Control of a machine whose kernel is Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from allocator import KernelMemory
from emulator.calls import Calls
from emulator.cpu import Cpu
from emulator.faults import BadCall
from emulator.governor import Governor
from emulator.stops import Event
from kernels.modelled.kernel import Kernel
from machine.control import Control, Handler
from machine.controlling import Controlling, Looked
from machine.past import Past
from machine.places import Places
from machine.watching import Touch, Watch


class Controllable(Looked, Protocol):
    """A machine, as far as it is put under control."""

    memory: KernelMemory
    calls: Calls
    cpus: tuple[Cpu, ...]
    kernel: Kernel
    places: Places


@contextmanager
def controlled(machine: Controllable, handler: Handler) -> Iterator[Control]:
    """Put a machine under control for a while; BadCall in the middle of a call."""
    if machine.cpus[0].governor is not None:
        raise BadCall("control", "somebody controls this machine already")
    if any(stack.depth for stack in machine.calls.stacks):
        raise BadCall("control", "a call is under way", "begin before it")
    body = _Body(machine)
    control = Controlling(machine.cpus, body, machine.calls.limits, handler)
    body.past = Past(control.governor, body.take, body.restore, anew=False, name=machine.symbolize)
    for cpu in machine.cpus:
        cpu.watching.hold()
        cpu.explain = machine.calls.teller.explain
    control.open(body.past)
    try:
        yield control
    finally:
        control.close()
        for cpu in machine.cpus:
            cpu.watching.let_go()
            cpu.explain = None


class _Body:
    """The machine, for its control."""

    past: Past

    def __init__(self, machine: Controllable) -> None:
        self._machine = machine

    def current(self) -> Any:
        """Return the CPU that runs, or would."""
        return self._machine.calls.stack.cpu

    def _pieces(self, what: str, address: int, size: int) -> list[tuple[int, int]]:
        pieces = []
        for span in self._machine.memory.page_table.spans(address, size):
            if span.pa is None:
                raise BadCall(what, f"nothing is mapped at {address:#x}")
            pieces.append((span.pa, span.size))
            address += span.size
        return pieces

    def read(self, address: int, size: int) -> bytes:
        """Return memory, whatever its protection."""
        physical = self._machine.memory.physical
        pieces = self._pieces("read", address, size) if size else []
        return b"".join(bytes(physical.view[at : at + length]) for at, length in pieces)

    def write(self, address: int, data: bytes) -> None:
        """Store in memory, whatever its protection."""
        taken, memory = 0, self._machine.memory
        for at, length in self._pieces("write", address, len(data)) if data else []:
            memory.physical.write(at, data[taken : taken + length])
            taken += length
        memory.sync_icache(address, address + len(data))

    def watch(self, address: int, size: int, kind: str, told: Callable[[Touch], object]) -> Watch:
        """Watch memory."""
        return self._machine.watch(address, size, kind, told, limit=0)

    def called(self) -> tuple[int, int]:
        """Return the function that is under way, and how deep calls nest."""
        stack = self._machine.calls.stack
        return stack.entry, stack.depth

    def settle(self, seat: Any, /) -> None:
        """Remember where the guest has stopped."""
        self.past.settle(seat)

    def take(self, seat: Any, /) -> Any:
        """Return registers and memory."""
        return seat.context(), self._machine.memory.physical.copy()

    def restore(self, seat: Any, taken: Any, /) -> None:
        """Make them that again."""
        registers, memory = taken
        self._machine.memory.physical.restore(memory)
        seat.restore(registers)

    def origin(self, event: Event, _governor: Governor, /) -> int | None:
        """Return the place of the instruction: it is there."""
        return event.count

    def refused(self, address: int) -> str:
        """Return why there can be no breakpoint at an address."""
        cpu = self._machine.cpus[0]
        slots = cpu.arch.runs.emulation.delay_slots
        if slots is None:
            return ""
        try:
            before = self.read(address - 4, 4)
        except BadCall:
            return ""
        if not slots.before(before):
            return ""
        return f"{address:#x} is the delay slot of the branch before it: break there"
