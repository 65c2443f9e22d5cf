# SPDX-License-Identifier: GPL-2.0-or-later
"""Control of a machine whose kernel is Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import attrs

from allocator import KernelMemory
from emulator.calls import Calls
from emulator.cpu import Cpu
from emulator.faults import BadCall
from emulator.governor import Governor
from emulator.stops import Event, Seat
from kernels.modelled.kernel import Kernel
from machine.control import Control, Handler
from machine.controlling import Controlling
from machine.places import Places
from machine.watching import Touch, Watch


class Controllable(Protocol):
    """A machine, as far as it is put under control."""

    memory: KernelMemory
    calls: Calls
    cpus: tuple[Cpu, ...]
    kernel: Kernel
    places: Places

    def watch(
        self,
        what: int,
        size: int | None = ...,
        kinds: str = ...,
        callback: Callable[[Touch], object] | None = ...,
        *,
        limit: int = ...,
    ) -> Watch:
        """Watch memory."""
        ...

    def symbolize(self, address: int) -> str | None:
        """Return what lies at an address."""
        ...


@contextmanager
def controlled(machine: Controllable, handler: Handler) -> Iterator[Control]:
    """Put a machine under control for a while; BadCall in the middle of a call."""
    if machine.cpus[0].governor is not None:
        raise BadCall("control", "somebody controls this machine already")
    if any(stack.depth for stack in machine.calls.stacks):
        raise BadCall("control", "a call is under way", "begin before it")
    body = _Body(machine)
    control = Controlling(machine.cpus, body, machine.calls.limits, handler)
    body.past = _Past(machine, control.governor)
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


@attrs.frozen(kw_only=True)
class _Base:
    """Where a guest can be gone back to.

    Parameters
    ----------
    count, level, serial
        The governor's, then.
    seat
        The CPU.
    registers
        Its.
    pages
        Memory that somebody has: the first page of each run, and the bytes from there on.
    """

    count: int
    level: int
    serial: int
    seat: Cpu
    registers: Any
    pages: list[tuple[int, bytes]] = attrs.field(repr=False)


class _Past:
    """What can be gone back to: the first stop after the last thing that Python did.

    A kernel function that is Python has changed more than memory and registers, and is not done a
    second time.
    """

    def __init__(self, machine: Controllable, governor: Governor) -> None:
        self._machine, self._governor = machine, governor
        self._base: _Base | None = None

    def settle(self) -> None:
        """Remember the guest as it is, where nothing is known that can be gone back to."""
        governor = self._governor
        if governor.seat is not None and not self._valid():
            seat: Any = governor.seat
            self._base = _Base(
                count=governor.count,
                level=governor.level,
                serial=governor.serial,
                seat=seat,
                registers=seat.context(),
                pages=self._machine.memory.physical.copy(),
            )

    def _valid(self) -> bool:
        base, governor = self._base, self._governor
        return base is not None and (base.level, base.serial, base.seat) == (
            governor.level,
            governor.serial,
            governor.seat,
        )

    def reach(self, _seat: Seat, /) -> tuple[int, str]:
        """Return how far the guest can be gone back with, and why no further."""
        what, address = self._governor.happening
        if address is not None:
            what = f"{self._machine.symbolize(address) or hex(address)} is Python"
        reason = f"{what}, and what it did is not undone" if what else "the call begins here"
        if not self._valid():
            return self._governor.count, reason
        assert self._base is not None
        return self._base.count, reason

    def back(self, _seat: Seat, /) -> None:
        """Go back as far as that."""
        base = self._base
        assert base is not None
        self._machine.memory.physical.restore(base.pages)
        base.seat.restore(base.registers)
        base.seat.take(base.count - self._governor.count)


class _Body:
    """The machine, for its control."""

    past: _Past

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

    def settle(self, _event: Event, /) -> None:
        """Remember where the guest has stopped."""
        self.past.settle()

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
