# SPDX-License-Identifier: GPL-2.0-or-later
"""A call that is under way on one CPU while others run: as far as it is told, and no further.

A race is an interleaving. Here an interleaving is a list of steps, counted in instructions,
so one that goes wrong can be written down, run again and shown.
"""

from __future__ import annotations

from collections.abc import Callable

from allocator.types import ADDRESS_MASK
from emulator.calls import Calls
from emulator.cpu import Cpu
from emulator.faults import BadCall, FaultKind, Stop
from kernels.prototypes import CType


class Thread:
    """A call on a CPU, made by `Machine.start`; nothing runs until it is stepped.

    Parameters
    ----------
    calls
        Has set the CPU up.
    cpu
        Where it runs.
    address
        Of the function.
    returns
        Type of its result.
    on_end
        Called once when the call is over, whatever ended it.
    """

    def __init__(
        self,
        calls: Calls,
        cpu: Cpu,
        address: int,
        returns: CType,
        *,
        on_end: Callable[[], object],
    ) -> None:
        self.cpu = cpu
        self.pc = address
        self.done = False
        self._calls = calls
        self._returns = returns
        self._on_end = on_end
        self._running = self._begun = False
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
        calls, finished = self._calls, False
        with calls.on(self.cpu.number), calls.limits.whole(instructions):
            self._running = self.cpu.pauses = True
            try:
                end = calls.return_address
                self.cpu.resumes, self._begun = self._begun, True
                self.cpu.run(self.pc, end, instructions=None, seconds=None)
                raw = self.cpu.read(self.cpu.arch.runs.calling.result) & ADDRESS_MASK
                self._result, finished = self._returns.from_register(raw), True
            except Stop as stop:
                self.pc = stop.pc
                finished = stop.kind is not FaultKind.INSTRUCTION_LIMIT
                if finished:
                    raise calls.teller.explain(stop) from None
            except BaseException:
                finished = True
                raise
            finally:
                self._running = self.cpu.pauses = self.cpu.resumes = False
                if finished:
                    self._end()
        return self.done

    def finish(self, *, instructions: int = 1_000_000_000) -> int:
        """Run the call to its end and return its result; Fault when it is stopped before."""
        if not self.step(instructions):
            with self._calls.limits.whole(instructions):
                raise self._calls.teller.explain(Stop(FaultKind.INSTRUCTION_LIMIT, self.pc))
        return self.result

    def cancel(self) -> None:
        """Forget the call where it stands."""
        if not self.done:
            self._end()

    def _end(self) -> None:
        self.done = True
        self._on_end()


def interleave(*threads: Thread, quantum: int = 1) -> list[int]:
    """Step calls in turn, `quantum` instructions each, until all are done; return the results."""
    while not all(thread.done for thread in threads):
        for thread in threads:
            if not thread.done:
                thread.step(quantum)
    return [thread.result for thread in threads]
