# SPDX-License-Identifier: GPL-2.0-or-later
"""A CPU under control: it runs as far as a governor lets it, counted exactly."""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import cached_property
from types import ModuleType
from typing import Any

import unicorn
from unicorn import unicorn_const as uc_const

from archs import Arch
from emulator.budget import Budget, Counter
from emulator.faults import Fault, FaultKind, Stop
from emulator.governor import Governor
from emulator.registerfile import RegisterFile
from emulator.slots import Slots
from emulator.tlb import Tlb

TICK = 500_000  # instructions between timer ticks: a jiffy, at INSTRUCTION nanoseconds each


class Steered(abc.ABC):
    """What a CPU does under control; all else it has itself."""

    arch: Arch
    number: int
    uc: Any
    on_tick: Callable[[], object] | None
    _budget: Budget
    _armed: int
    _counter: Counter
    _slots: Slots | None
    _since_tick: int
    _tlb: Tlb
    _constants: ModuleType

    def __init__(self) -> None:
        self.governor: Governor | None = None
        self.explain: Callable[[Stop], Fault] | None = None
        self.pauses = False  # whether a limit of instructions only ends a step of a call
        self.resumes = False  # whether a run goes on with such a call
        self._rest = 0  # instructions that the slice may still take
        self._broke = False  # whether it came to a breakpoint, which counts and did not happen
        self._cut = False  # whether somebody has ended the slice
        self._stops: dict[int, Any] = {}  # hooks of breakpoints

    # What it has itself -----------------------------------------------------------------------

    @abc.abstractmethod
    def read(self, name: str) -> int:
        """Return the value of a register."""

    @abc.abstractmethod
    def write(self, name: str, value: int) -> None:
        """Set a register."""

    @abc.abstractmethod
    def wait(self) -> None:
        """Let time pass until the next interrupt."""

    @abc.abstractmethod
    def _slice(self, at: int, end: int, count: int) -> tuple[int, bool] | None: ...

    @abc.abstractmethod
    def _code(self, at: int, size: int) -> bytes: ...

    # For the governor ---------------------------------------------------------------------------

    @property
    def seat(self) -> int:
        """Number of the CPU."""
        return self.number

    @property
    def pc(self) -> int:
        """The next instruction, between slices."""
        return self.read(self.arch.runs.calling.program_counter)

    @pc.setter
    def pc(self, address: int) -> None:
        self.write(self.arch.runs.calling.program_counter, address)

    @cached_property
    def file(self) -> RegisterFile:
        """The registers by name."""
        return RegisterFile(self.uc, self.arch, self._constants)

    def get(self, name: str, /) -> int:
        """Return a register."""
        return self.read(name)

    def code(self, address: int, size: int) -> bytes:
        """Return up to so many bytes that stand at an address."""
        return self._code(address, size)

    def general(self) -> tuple[int, ...]:
        """Return the registers that a program computes with."""
        return tuple(map(self.read, self.arch.runs.registers.general))

    def late(self) -> bool:
        """Return whether the next instruction takes the one behind it along."""
        return self._slots is not None and self._slots.before(self.pc)

    def cut(self) -> None:
        """Let the run under way end before its next instruction: from a hook."""
        self._cut = True
        self._armed = self._counter.value
        self._counter.limit(0)

    @property
    def now(self) -> int:
        """Instructions before the one under way: from a hook."""
        assert self.governor is not None
        return self.governor.count + self._counter.value - 1

    # Running ------------------------------------------------------------------------------------

    def take(self, instructions: int) -> None:
        """Pay for instructions, and count them where somebody wants to know."""
        self._budget.take(instructions)
        if self.governor is not None:
            self.governor.count += instructions

    def _run_steered(self, at: int, end: int, governor: Governor) -> None:
        """Execute until the end, as far as somebody lets it."""
        if governor.level == 1 and not governor.blind:
            governor.begin(entering=not self.resumes)
        while True:
            if at != self.pc:
                self.pc = at
            try:
                found = self._stretch(end, governor)
                if found is None:
                    self.pc = end
                    governor.returned(self, self.read(self.arch.runs.calling.result))
            except (Stop, Fault) as error:
                self._failed(error, governor)
                if not governor.replays:
                    raise
                found = self.pc
            if found is None:
                if not governor.replays and self.pc == end:
                    return
                found = self.pc
            at = found

    def _stretch(self, end: int, governor: Governor) -> int | None:
        """Execute as far as somebody lets it; None at the end, else where it has come to."""
        most = governor.allow(self)
        at, budget = self.pc, self._budget
        if at == end:  # a handler has sent it there
            return None
        if budget.left is not None:
            most = min(most, TICK - self._since_tick, budget.left)
            if budget.left <= 0:  # which is "no limit" to Unicorn
                raise Stop(FaultKind.INSTRUCTION_LIMIT, at)
        if budget.late and not governor.replays:
            raise Stop(FaultKind.TIME_LIMIT, at)
        if self._slots is not None:
            most = self._slots.straight(at, most)
        self._broke = self._cut = False
        found = self._slice(at, end, most)
        if found is None:
            return None
        at, resumed = found
        if resumed:
            return at
        if self._rest and not self._broke and not self._cut:
            self.wait()  # it halted
        while budget.left is not None and self._since_tick >= TICK:
            self._since_tick -= TICK
            if self.on_tick is not None:
                governor.happened("the timer's tick is Python")
                self.on_tick()
        return at

    def _failed(self, error: Stop | Fault, governor: Governor) -> None:
        """Tell of a fault, with the registers as before the instruction."""
        if isinstance(error, Stop):
            if self.pauses and error.kind is FaultKind.INSTRUCTION_LIMIT:
                return
            if not error.kind.is_limit:
                self.take(-1)  # it began, and was not executed
            self.pc = error.pc
            assert self.explain is not None
            error.fault = fault = self.explain(error)
        else:
            fault = error
            if not governor.knows(fault):
                self.take(-1)
        governor.failed(self, fault)

    # Breakpoints --------------------------------------------------------------------------------

    def stop_at(self, address: int) -> None:
        """Ask the governor at an instruction."""
        if address not in self._stops:
            self._stops[address] = self.uc.hook_add(
                uc_const.UC_HOOK_CODE, self._reached, None, address, address
            )
            self._tlb.sync_icache(address, address + 1)

    def stop_nowhere(self, address: int | None = None) -> None:
        """Do so no longer; None: nowhere."""
        for each in [address] if address is not None else list(self._stops):
            handle = self._stops.pop(each, None)
            if handle is not None:
                self.uc.hook_del(handle)

    def _reached(self, _uc: unicorn.Uc, address: int, _size: int, _data: object) -> None:
        if self._tlb.locating is None and self.governor is not None and not self._broke:
            self._breaks(address)

    def _minded(self, work: Callable[[int], None]) -> Callable[[int], None]:
        """Return what does work at an address unless there is a breakpoint, and notes it."""

        def minded(address: int) -> None:
            if self.governor is None or not self._breaks(address, "a kernel function is Python"):
                work(address)

        return minded

    def _breaks(self, address: int, what: str = "") -> bool:
        """End the run at a breakpoint, from a hook; else note what is going to happen there."""
        governor = self.governor
        assert governor is not None
        if address not in governor.breakpoints or not governor.reaches(address, self.now):
            if what:
                governor.happened(what, address)
            return False
        self._broke = True
        self.uc.emu_stop()
        return True
