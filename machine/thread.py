# SPDX-License-Identifier: GPL-2.0-or-later
"""A call that is under way on one CPU while others run: as far as it is told, and no further.

A race is an interleaving. Here an interleaving is a list of steps, counted in instructions,
so one that goes wrong can be written down, run again and shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from allocator.types import ADDRESS_MASK
from emulator.cpu import Cpu
from emulator.faults import BadCall, FaultKind, Stop
from kernels.modelled.prototypes import CType

if TYPE_CHECKING:
    from machine.machine import Machine


class Thread:
    """A call on a CPU, made by `Machine.start`; nothing runs until it is stepped."""

    def __init__(self, machine: Machine, cpu: Cpu, address: int, returns: CType) -> None:
        self.cpu = cpu
        self.pc = address
        self.done = False
        self.on_end: Callable[[], None] = lambda: None
        self._machine = machine
        self._returns = returns
        self._running = False
        self._result: int | None = None

    @property
    def result(self) -> int:
        """What the function returned; BadCall while it has not."""
        if self._result is None:
            raise BadCall("result", f"CPU {self.cpu.number} has not returned from the call")
        return self._result

    def step(self, instructions: int = 1) -> bool:
        """Execute so many instructions, or fewer to the end; return whether the call is done.

        A breakpoint counts as one instruction. A step is a call from outside: it has the
        machine's time. BadCall when the call is over, or runs (it cannot step itself); Fault
        when the guest stops, which ends the call.
        """
        if self.done or self._running:
            what = "is over" if self.done else "is running"
            raise BadCall("step", f"the call on CPU {self.cpu.number} {what}")
        machine, finished = self._machine, False
        with machine.on(self.cpu.number), machine.budget(instructions=instructions):
            self._running = True
            try:
                end = machine.kernel.return_address
                self.cpu.run(self.pc, end, instructions=None, seconds=None)
                raw = self.cpu.read(machine.arch.runs.calling.result) & ADDRESS_MASK
                self._result, finished = self._returns.from_register(raw), True
            except Stop as stop:
                self.pc = stop.pc
                finished = stop.kind is not FaultKind.INSTRUCTION_LIMIT
                if finished:
                    raise machine.explain(stop) from None
            except BaseException:
                finished = True
                raise
            finally:
                self._running = False
                if finished:
                    self._end()
        return self.done

    def finish(self, *, instructions: int = 1_000_000_000) -> int:
        """Run the call to its end and return its result; Fault when it is stopped before."""
        if not self.step(instructions):
            with self._machine.budget(instructions=instructions):
                raise self._machine.explain(Stop(FaultKind.INSTRUCTION_LIMIT, self.pc))
        return self.result

    def cancel(self) -> None:
        """Forget the call where it stands."""
        if not self.done:
            self._end()

    def _end(self) -> None:
        self.done = True
        self.on_end()


def interleave(*threads: Thread, quantum: int = 1) -> list[int]:
    """Step calls in turn, `quantum` instructions each, until all are done; return the results."""
    while not all(thread.done for thread in threads):
        for thread in threads:
            if not thread.done:
                thread.step(quantum)
    return [thread.result for thread in threads]
