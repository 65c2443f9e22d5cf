# SPDX-License-Identifier: GPL-2.0-or-later
"""Rounds of a machine whose kernel is Python; see `machine.rounds`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from allocator import KernelMemory
from emulator.budget import Limits
from emulator.calls import Calls
from emulator.compares import Compares
from emulator.cpu import Cpu
from emulator.faults import BadCall
from emulator.ram import Ram
from kernels.modelled.kernel import Kernel, Remembered
from machine.calling import Caller
from machine.rounds import PAGE, Buffer, Rounds


class Repeatable(Protocol):
    """A machine, as far as it is put back."""

    memory: KernelMemory
    kernel: Kernel
    calls: Calls
    caller: Caller
    cpus: tuple[Cpu, ...]
    limits: Limits
    sanitizer: Any

    @property
    def modules(self) -> Any:
        """The modules that are there, by name."""
        ...


class ModelledRounds(Rounds):
    """Rounds of a modelled kernel: memory is put back by the host, and what Python knows by us.

    That is the heap, frames, registrations, the log, and what subsystems remember. Modules that come
    or go, patched text and tasks of their own are not put back: `spoiled` says so.

    Parameters
    ----------
    machine
        The machine; no call may be under way.
    options
        As of `Rounds`.
    """

    _ram: Ram
    _was: Remembered

    def __init__(self, machine: Repeatable, spans: Any, **options: Any) -> None:
        super().__init__(spans, **options)
        if any(stack.depth for stack in machine.calls.stacks):
            raise BadCall("rounds", "a call is under way", "begin before it")
        self._machine = machine
        self._kernel = machine.kernel
        self._modules = tuple(machine.modules)

    @property
    def engine(self) -> Cpu:
        """The CPU that calls run on."""
        return self._machine.cpus[0]

    def buffer(self, size: int) -> Buffer:
        """Return memory for inputs of up to so many bytes."""
        memory = self._machine.memory
        pages = max(1, -(-size // PAGE))
        address = memory.vmalloc(pages * PAGE)
        view, pieces = memory.physical.view, []
        page = memory.page_size
        pages = -(-pages * PAGE // page) * page // PAGE
        for at in range(address, address + pages * PAGE, PAGE):
            found = memory.translate(at)
            assert found is not None
            pieces.append(view[found.address : found.address + PAGE])
        return Buffer(address, pages * PAGE, pieces)

    def call(self, address: int, slots: Sequence[int]) -> int:
        """Call a function."""
        machine = self._machine
        if machine.caller.around is not None or self._kernel.work_pending:
            return machine.caller.call(address, *slots, instructions=None, seconds=None)
        result = machine.calls.run(address, slots)
        if self._kernel.work_pending and not machine.calls.stack.depth:
            machine.caller.idle()
        return result

    @property
    def limits(self) -> Limits:
        """What calls of the machine may take."""
        return self._machine.limits

    def _keep(self) -> None:
        physical = self._machine.memory.physical
        self._kernel.flush_log()
        checks = self._machine.sanitizer
        self._found = 0 if checks is None else len(checks.findings)
        self._was = self._kernel.remembered()
        self._ram = Ram(0, physical.size, physical.address)
        self._ram.freeze()

    def _back(self) -> None:
        self._ram.drop()
        kernel, was = self._kernel, self._was
        if self._changed(kernel, was):
            self.spoiled = kernel.become(was) or self.spoiled
            if tuple(self._machine.modules) != self._modules:
                self.spoiled = "modules came or went"

    @contextmanager
    def _comparing(self) -> Iterator[Compares]:
        notes = self.engine.note_compares(self.spans)
        serving = self._kernel.serving
        serving.entered = notes.called
        try:
            yield notes
        finally:
            serving.entered = None

    def _changed(self, kernel: Kernel, was: Remembered) -> bool:
        """Return whether a function of the kernel was called, by the guest or from outside."""
        return (
            kernel.calls != was.calls
            or kernel.heap.changes != was.heap["changes"]
            or kernel.plain.physical.changes != was.changes
            or kernel.work_pending != was.pending
            or len(kernel.stopped) != len(was.stopped)
        )

    def _said(self) -> list[tuple[str, str, tuple[str, ...], str]]:
        new = self._kernel.oopses[self._was.oopses :]
        said = [(each.kind.value, each.where, each.backtrace, str(each)) for each in new]
        return said + self._checks_found(self._machine.sanitizer)

    def _end(self) -> None:
        self._ram.melt()
