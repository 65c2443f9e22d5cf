# SPDX-License-Identifier: GPL-2.0-or-later
"""A computer under control: what its governor asks of it."""

from __future__ import annotations

from functools import cached_property

from archs import Arch
from emulator.boards.access import Access
from emulator.boards.breaks import Break, Breaks
from emulator.budget import Budget, Counter
from emulator.governor import Governor
from emulator.registerfile import RegisterFile


def _nothing() -> None:
    """Look on: the governor is asked whenever a run has ended."""


class Steering(Access):
    """What a computer does under control; all else it has itself."""

    breaks: Breaks
    _budget: Budget
    _meter: Counter

    seat = 0  # there is one CPU

    def __init__(self, arch: Arch) -> None:
        super().__init__(arch)
        self.governor: Governor | None = None
        self._armed = 0  # instructions that the emulator was told to execute at most
        self._looks: dict[int, Break] = {}

    @cached_property
    def file(self) -> RegisterFile:
        """The registers by name."""
        return RegisterFile(self.uc, self.arch, self._constants)

    def code(self, address: int, size: int) -> bytes:
        """Return up to so many bytes that stand at an address."""
        while size:
            try:
                return self.read(address, size)
            except (LookupError, IndexError):
                size //= 2
        return b""

    def general(self) -> tuple[int, ...]:
        """Return the registers that a program computes with."""
        return tuple(map(self.get, self.arch.runs.registers.general))

    def late(self) -> bool:
        """Return that no instruction takes the one behind it along."""
        return False

    def cut(self) -> None:
        """Let the run under way end before its next instruction: from a hook."""
        self._armed = self._meter.value
        self._meter.limit(0)

    @property
    def now(self) -> int:
        """Instructions before the one under way: from a hook."""
        assert self.governor is not None
        return self.governor.count + self._meter.value - 1

    def take(self, instructions: int) -> None:
        """Pay for instructions, and count them where somebody wants to know."""
        self._budget.take(instructions)
        if self.governor is not None:
            self.governor.count += instructions

    def happened(self, what: str, /) -> None:
        """Take note of something that a run made anew would do once more."""
        if self.governor is not None and not self.governor.replays:
            self.governor.happened(what)

    def raised(self, pc: int) -> None:
        """Take note of an exception of the instruction at an address, from a hook."""
        if self.governor is not None:
            self.governor.exceptions.append((self.now, pc))

    def stop_at(self, address: int) -> None:
        """Ask the governor at an instruction."""
        if address not in self._looks:
            self._looks[address] = self.breaks.add(address, Break(_nothing, looks=True))

    def stop_nowhere(self, address: int | None = None) -> None:
        """Do so no longer; None: nowhere."""
        for each in [address] if address is not None else list(self._looks):
            made = self._looks.pop(each, None)
            if made is not None:
                self.breaks.remove(each, made)

    def _looked(self, governor: Governor) -> bool:
        """Return whether the run has ended for who looks on, and for nobody else."""
        at = self.breaks.at
        if at is None:
            return False
        self.take(-1)  # what stands there counts, and has not been executed
        if governor.reaches(at, governor.count):
            self.pc = at
            return True
        if not self.breaks.is_looked_at(at):
            return False
        self.pc = at
        self.breaks.go_on(at)
        return True
