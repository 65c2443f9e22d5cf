# SPDX-License-Identifier: GPL-2.0-or-later
"""Rounds of a machine whose kernel is booted; see `machine.rounds`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from emulator.boards.board import Board
from emulator.boards.breaks import Break
from emulator.budget import Limits
from emulator.compares import COMPARING, Compares
from emulator.faults import BadCall, Fault
from kernels.booted.kernel import BootedKernel
from machine.booted.brief import AGAIN, Brief
from machine.rounds import PAGE, Buffer, Round, Rounds

# What takes what is printed, and how much, as second and third argument, and lets a byte go at a
# time: that costs the emulator more than all else that a short function does.
_PRINTING = ("serial8250_console_write", "uart_console_write")
_GUARDED = ("vzalloc_noprof", "vzalloc")  # with a page behind that nobody has


class Repeatable(Protocol):
    """A machine, as far as it is put back."""

    kernel: BootedKernel
    interposing: Any
    sanitizer: Any

    @property
    def modules(self) -> Any:
        """The modules that are there, by name."""
        ...

    def snapshot(self) -> Any:
        """Return the machine as it is now."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Become what the machine was."""
        ...


class BootedRounds(Rounds):
    """Rounds of a booted kernel: all of it is memory and registers, and put back.

    Parameters
    ----------
    machine
        The machine; no call may be under way.
    options
        As of `Rounds`.
    """

    _snapshot: Any
    _oopses: Brief

    def __init__(self, machine: Repeatable, spans: Any, **options: Any) -> None:
        super().__init__(spans, **options)
        if machine.kernel.guest.depth:
            raise BadCall("rounds", "a call is under way", "begin before it")
        self._machine = machine
        self._kernel = machine.kernel
        self._console = 0
        self._printing: list[tuple[int, Break]] = []

    @property
    def engine(self) -> Board:
        """The computer."""
        return self._kernel.board

    def buffer(self, size: int) -> Buffer:
        """Return memory for inputs of up to so many bytes."""
        kernel, board = self._kernel, self._kernel.board
        pages = max(1, -(-size // PAGE))
        with kernel.watched(), kernel.guest.unwatched():
            address = kernel.guest.call_by_name(_GUARDED, pages * PAGE)
        if not address:
            raise BadCall("rounds", f"no {pages * PAGE:#x} bytes of guest memory")
        pieces = []
        for at in range(address, address + pages * PAGE, PAGE):
            physical = board.translate(at)
            assert physical is not None
            start = physical - board.ram.start
            pieces.append(board.ram.view[start : start + PAGE])
        return Buffer(address, pages * PAGE, pieces)

    def call(self, address: int, slots: Sequence[int]) -> int:
        """Call a function."""
        return self._kernel.call(address, slots, instructions=None, seconds=None)

    def run(self, work: Callable[[], int]) -> Round:
        """Do something, and put the machine back."""
        self._oopses.begin(self.brief)
        found = super().run(work)
        self._oopses.learn(found.fault)
        return found

    def _comparing(self) -> AbstractContextManager[Compares]:
        symbols = self._kernel.symbols
        functions = {symbols[name]: name for name in COMPARING if name in symbols}
        return nullcontext(self.engine.note_compares(self.spans, functions))

    def _is_known(self, fault: Fault | None) -> bool:
        return fault is not None and fault.reason == AGAIN

    @property
    def limits(self) -> Limits:
        """What calls of the machine may take."""
        return self._kernel.guest.limits

    def _do(self, work: Callable[[], int]) -> int:
        with self._kernel.watched():  # a call that is a part of another may come to the limit
            return work()

    def _keep(self) -> None:
        checks = self._machine.sanitizer
        self._found = 0 if checks is None else len(checks.findings)
        for name in _PRINTING:
            if name in self._kernel.symbols:
                at = self._kernel.symbols[name]
                made = self._kernel.board.break_at(at, self._print, inside=True)
                self._printing.append((at, made))
        self._snapshot = self._machine.snapshot()
        self._console = len(self._kernel.board.wires.console)
        machine = self._machine
        self._oopses = Brief(self._kernel, machine.interposing.functions, machine.modules)
        self._lines = len(self._kernel.log)

    def _back(self) -> None:
        self._machine.restore(self._snapshot)

    def _said(self) -> list[tuple[str, str, tuple[str, ...], str]]:
        said = self._checks_found(self._machine.sanitizer)
        if len(self._kernel.board.wires.console) != self._console:
            for each in self._kernel.reports_since(self._lines):
                said.append((each.kind.value, each.where, each.backtrace, each.text))
        return said

    def _end(self) -> None:
        for at, made in self._printing:
            self._kernel.board.no_break_at(at, made)
        self._printing.clear()
        self._oopses.stop()

    def _print(self) -> int | None:
        """Let the console have a text at one stroke, as the UART would."""
        guest, board = self._kernel.guest, self._kernel.board
        _, text, size = map(board.get, board.arch.runs.calling.arguments[:3])
        try:
            said = board.read(text, size & 0xFFFF_FFFF)
        except LookupError:
            return None
        board.wires.print(said.replace(b"\n", b"\r\n"))
        return guest.return_from(guest.return_address(), 0)
