# SPDX-License-Identifier: GPL-2.0-or-later
"""Branches that go late: what the emulator forgets around them is remembered here.

A stop between such a branch and where it leads leaves the emulator in the middle of it, and a page
that it looks up there makes it lose that (Unicorn issue 2272). So every page that a load or a
store needs is put off (`Tlb.careful`), looked up while nothing executes, and the branch is
executed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import unicorn

from allocator.types import ADDRESS_MASK
from archs.levels.run import Run
from emulator.tlb import Tlb

_STRAIGHT = 64  # instructions that are looked through at once


class _Registers(Protocol):
    """The registers of a CPU, by name."""

    def read(self, name: str) -> int:
        """Return one."""
        ...

    def write(self, name: str, value: int) -> None:
        """Set one."""
        ...

    def bank(self, names: Sequence[str]) -> Callable[[list[int]], None]:
        """Return what sets several at once."""
        ...

    def reader(self, names: Sequence[str]) -> Callable[[], list[int]]:
        """Return what reads several at once."""
        ...


class _Payer(Protocol):
    """Who pays for instructions."""

    def take(self, instructions: int) -> None:
        """Pay for so many."""
        ...


class Slots:
    """The delay slots of one CPU.

    Parameters
    ----------
    run
        What the architecture says of them.
    uc, tlb, registers
        Of the CPU.
    code
        Returns so many bytes at an address.
    """

    def __init__(
        self,
        run: Run,
        uc: unicorn.Uc,
        tlb: Tlb,
        registers: _Registers,
        code: Callable[[int, int], bytes],
    ) -> None:
        record = run.emulation.delay_slots
        assert record is not None
        self._record = record
        self._uc = uc
        self._tlb = tlb
        self._registers = registers
        self._program_counter = run.calling.program_counter
        self._code = code
        tlb.careful = True
        self._computed, self._read = (
            registers.bank(record.registers),
            registers.reader(record.registers),
        )
        self._untouched = uc.context_save()

    def before(self, at: int) -> bool:
        """Return whether the instruction at an address goes late."""
        return self._record.before(self._code(at & ADDRESS_MASK, 4))

    def straight(self, at: int, most: int) -> int:
        """Return how many instructions to execute from an address, of `most` that may follow.

        A run that is told to end in a slot ends behind it, and says nothing of that. So it ends
        behind a branch's slot or before the branch; alone the two are executed together.
        """
        code = self._code(at & ADDRESS_MASK, 4 * min(most, _STRAIGHT))
        for count in range(len(code) // 4):
            if self._record.before(code[4 * count : 4 * count + 4]):
                return count + 2 if count + 2 <= most or not count else count
        return max(len(code) // 4, 1)

    def whole(self, at: int, payer: _Payer) -> int:
        """Return where to go on after a stop that may come at any moment: not behind half a branch."""
        if not self.before(at - 4):
            return at
        self.leave()
        payer.take(-1)  # the branch is executed again
        return at - 4 & ADDRESS_MASK

    def leave(self) -> None:
        """Let the emulator forget that it was stopped between a branch and where it leads."""
        values = self._read()
        at = self._registers.read(self._program_counter)
        self._uc.context_restore(self._untouched)
        self._computed(values)
        self._registers.write(self._program_counter, at)

    def look_up(self, payer: _Payer) -> int:
        """Look up the page that was put off; return where to go on: in a slot, at its branch."""
        assert self._tlb.put_off is not None
        self._tlb.look_up(*self._tlb.put_off)
        at = self._registers.read(self._program_counter)
        slot = self.before(at - 4)
        payer.take(-2 if slot else -1)  # what is counted again
        return at - 4 & ADDRESS_MASK if slot else at
