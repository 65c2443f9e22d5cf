# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel under modules: what it is asked for, and what it says."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import attrs

from archs import Arch
from emulator.boards.board import Board, Halt
from emulator.budget import DEFAULT
from emulator.faults import LIMIT_HINTS, Fault, FaultKind
from kernels.booted import reports
from kernels.booted.guest import Ended, Guest
from kernels.booted.modules import Modules
from kernels.booted.opening import Standing
from kernels.booted.reports import Report
from kernels.log import LogLine

# The console's prefixes: level (printk.console_msg_format=syslog), time.
_LINE = re.compile(rb"(?:<(\d+)>)?(?:\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ?)?(.*)", re.DOTALL)
_UNMARKED = 4  # KERN_WARNING: the level of a message that says none
_DEAD = ("do_exit",)
# Before that x86-64 begins the stack anew (5.17 renamed it), over the calls around a handler's.
_REWINDS = ("rewind_stack_and_make_dead", "rewind_stack_do_exit")
_KINDS = {
    Halt.EXPIRED: FaultKind.TIME_LIMIT,
    Halt.SPENT: FaultKind.INSTRUCTION_LIMIT,
    Halt.STUCK: FaultKind.CHECK,
}


class BootedKernel:
    """A kernel that stands in its first process, to be called.

    Parameters
    ----------
    standing
        Where it stands.
    """

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.board: Board = standing.board
        self.arch: Arch = standing.arch
        self.symbols = standing.symbols
        self.guest = Guest(standing.started, standing.symbols)
        self.modules = Modules(self.guest, lambda: standing.types)
        self._log: list[LogLine] = []
        self._ends: list[int] = []  # of each line: bytes of the console
        self._died = False
        self.symbolize: Callable[[int], str | None] = self.name_at  # or what knows modules, too
        # The lines of source of a place and a backtrace, for what knows those of modules.
        self.sourced: Callable[[str, Sequence[str]], tuple[str, ...]] = _of_none
        self.told = 0  # bytes of the console up to the last report that became a Fault
        for name in _DEAD:
            if name in self.symbols:
                self.board.break_at(self.symbols[name], self._dying)
        for name in _REWINDS:
            if name in self.symbols:
                self.board.break_at(self.symbols[name], self._rewinding)

    @property
    def release(self) -> str:
        """As `uname -r` prints it."""
        return str(self.standing.facts["release"])

    # The log ------------------------------------------------------------------------------------

    @property
    def log(self) -> list[LogLine]:
        """What the kernel has logged, from its first line on."""
        wires = self.board.wires
        console, ends = wires.console, self._ends
        if ends and wires.kept < ends[-1]:  # some of it was taken back
            left = bisect_right(ends, wires.kept)
            del ends[left:], self._log[left:]
        begin, end = ends[-1] if ends else 0, console.rfind(b"\n") + 1
        if end > begin:
            new = console[begin:end]
            self._log += lines_of(new)
            lengths = (len(line) + 1 for line in new.split(b"\n")[:-1])
            ends += list(accumulate(lengths, initial=begin))[1:]
            wires.kept = end
        return self._log

    @property
    def warnings(self) -> list[Report]:
        """What the kernel warned of (WARN), from its first line on."""
        return list(reports.warnings(line.text for line in self.log))

    @property
    def reports(self) -> list[Report]:
        """What the kernel found wrong, warnings included, from its first line on."""
        return list(self.reports_since(0))

    def reports_since(self, line: int) -> tuple[Report, ...]:
        """Return what the kernel found wrong since its log had so many lines."""
        found = reports.every(each.text for each in self.log[line:])
        return tuple(map(self._named, found))

    def _named(self, report: Report) -> Report:
        """Return a report with names for addresses, and without where calls return to."""
        found = reports.named(report, self.symbolize)
        if found.backtrace[-1:] == (self.name_at(self.guest.trap),):
            found = attrs.evolve(found, backtrace=found.backtrace[:-1])
        return attrs.evolve(found, sources=self.sourced(found.where, found.backtrace))

    # Calls --------------------------------------------------------------------------------------

    def call(
        self,
        address: int,
        args: Sequence[int] = (),
        *,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
    ) -> int:
        """Return what a function leaves in the result register.

        Raises
        ------
        Fault
            It did not come back: the kernel found something wrong, or a limit was reached.
        """
        before = len(self.board.wires.console)
        self._died = False
        try:
            return self.guest.call(address, args, instructions=instructions, seconds=seconds)
        except Ended as ended:
            raise self._fault(ended, before) from None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Let what goes wrong in calls of the kernel meanwhile be a Fault.

        After an oops of the process the machine goes on: the call is given up as the kernel
        would give up the process, with whatever it held.
        """
        before = len(self.board.wires.console)
        self._died = False
        try:
            yield
        except Ended as ended:
            raise self._fault(ended, before) from None

    def restored(self) -> None:
        """Take note that the machine is another now: what it had said it has not said."""
        self.told = min(self.told, len(self.board.wires.console))
        self._died = False

    def _dying(self) -> None:
        """End the call whose process the kernel is about to end."""
        if self.guest.depth and self.guest.on_own_stack():
            self._died = True
            self.board.stop_here()

    def _rewinding(self) -> None:
        """End a call that a handler made, as above, but with the stack as it is."""
        if self.guest.depth > 1:
            self._dying()

    def _fault(self, ended: Ended, before: int) -> Fault:
        fault = self.described(ended, before)
        self.told = len(self.board.wires.console)  # what follows is not of this one
        if self._died:
            self._died = False
            if not self.guest.depth:  # else the registers are those of the call around it again
                self.guest.give_up("")
                self._unpoison()
        return fault

    def described(self, ended: Ended, before: int = 0) -> Fault:
        """Return why a call did not come back, by what the kernel has said since `before`."""
        console = self.board.wires.console
        said = lines_of(console[max(before, self.told) if self.told <= len(console) else before :])
        report = reports.find(line.text for line in said)
        where = self.name_at(ended.pc) or f"{ended.pc:#x}"
        if report is not None:
            report = self._named(report)
            return Fault(
                kind=report.kind,
                pc=ended.pc,
                where=report.where or where,
                address=report.address,
                reason=report.text,
                backtrace=report.backtrace,
                sources=report.sources,
            )
        kind = _KINDS.get(ended.halt, FaultKind.EMULATOR)
        reason = ended.reason or ended.halt.value
        hint = LIMIT_HINTS.get(kind, "")
        sources = self.sourced(where, ())
        return Fault(kind=kind, pc=ended.pc, where=where, reason=reason, hint=hint, sources=sources)

    def _unpoison(self) -> None:
        """Let the frames of calls that never returned be no longer poisoned, as longjmp() does."""
        name = "kasan_unpoison_task_stack_below"
        if name in self.symbols and not self.board.broken:
            self.guest.call(self.symbols[name], (self.guest.base,))

    # Names --------------------------------------------------------------------------------------

    def name_at(self, address: int) -> str | None:
        """Return `name+0xoff/0xsize` of the kernel's own symbol around an address, or None."""
        found = self.symbols.around(address)
        if found is None or found[1] >= found[2]:
            return None
        return f"{found[0]}+{found[1]:#x}/{found[2]:#x}"

    def find(self, names: Sequence[str]) -> int:
        """Return the address of the first of several names that the kernel has; LookupError."""
        return self.guest.find(names)


def _of_none(_where: str, _frames: Sequence[str]) -> tuple[str, ...]:
    return ()


def lines_of(console: bytes | bytearray) -> list[LogLine]:
    """Return the whole lines of what was printed."""
    found = []
    for line in bytes(console).replace(b"\r", b"").split(b"\n")[:-1]:
        match = _LINE.fullmatch(line)
        assert match is not None
        level = _UNMARKED if match[1] is None else int(match[1]) & 7
        found.append(LogLine(level, match[2].decode("utf-8", "backslashreplace")))
    return found
