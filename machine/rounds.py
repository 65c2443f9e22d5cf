# SPDX-License-Identifier: GPL-2.0-or-later
"""The same thing again and again, each time on the machine as it was: `Machine.rounds`.

What differs from a call is what is done between two: memory and what the kernel knows are put back,
and only what was touched costs. Memory for inputs lies so that they end where a page ends, and
behind it is nothing: one byte too far is a fault at its instruction, and costs nothing before.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import attrs

from allocator.types import ADDRESS_MASK
from emulator.budget import Limits
from emulator.compares import Compares, Pair
from emulator.faults import BadCall, Fault, FaultKind
from emulator.fresh import Edge, Fresh, Taken

PAGE = 4096
INSTRUCTIONS = 10_000_000  # of one round, when it counts as endless
SECONDS = 0.03  # of the host, after which they are counted
# No host executes so many in a second: who took less time than they would need took fewer.
_FASTEST = 5_000_000_000
_TELLING = 10  # times as long, where telling of what is known is most of what was executed
_COUNTED = 60.0  # seconds that counting may take
_ENDLESS = (FaultKind.INSTRUCTION_LIMIT, FaultKind.TIME_LIMIT)


@attrs.define(eq=False)
class Buffer:
    """Guest memory whose end is the end of a page, with nothing mapped behind it.

    Parameters
    ----------
    address, size
        Where it is.
    pieces
        Its pages: host memory of each, in order.
    """

    address: int
    size: int
    pieces: Sequence[memoryview] = attrs.field(repr=False)

    def put(self, data: bytes, align: int = 1) -> int:
        """Store bytes at the end, and return where they begin.

        For what a round executes (`Rounds.run`) call it inside of that: a round begins with memory as it
        was, so that what is stored before is gone.

        Parameters
        ----------
        align
            What the address is a multiple of; as many bytes less one may then follow that are no
            part of it.
        """
        if len(data) > self.size:
            raise BadCall("rounds", f"{len(data)} bytes of input in memory of {self.size}")
        start = (self.size - len(data)) // align * align
        at, end = start, start + len(data)
        while at < end:
            page, offset = divmod(at, PAGE)
            length = min(PAGE - offset, end - at)
            self.pieces[page][offset : offset + length] = data[at - start : at - start + length]
            at += length
        return self.address + start


@attrs.frozen(kw_only=True)
class Round:
    """What became of one round.

    Parameters
    ----------
    fault
        What stopped it; None: it came back.
    result
        Of the function; 0 where it did not come back.
    blocks
        Ends of blocks that were executed for the first time, as far as the emulator tells.
    edges
        How often each edge between blocks was taken, where that is counted.
    said
        What the kernel has found wrong meanwhile, though it went on: kind, place, who called it,
        and the text.
    """

    fault: Fault | None
    result: int
    blocks: Sequence[int]
    edges: Mapping[Edge, int]
    said: Sequence[tuple[str, str, tuple[str, ...], str]]


class Rounds(abc.ABC):
    """A machine that is put back after each round; a context manager.

    `spoiled` says why the machine cannot be put back any more; empty: it can. Where `brief` is set, what
    a booted kernel has reported in full before may be a Fault of the same kind, place and backtrace
    without the rest: its address, its text.

    Parameters
    ----------
    spans
        Code whose blocks are noted: first address, and end.
    exact
        Begin with counting each edge, in several times the time; see `watch`.
    instructions
        What one round may execute. They are counted only where it takes long enough.
    seconds
        Time of the host after which a round is made again, counted.
    """

    def __init__(
        self,
        spans: Iterable[tuple[int, int]],
        *,
        exact: bool = False,
        instructions: int = INSTRUCTIONS,
        seconds: float = SECONDS,
    ) -> None:
        self.spans, self.exact = tuple(spans), exact
        self.instructions, self.seconds = instructions, seconds
        self.spoiled = ""
        self.brief = False
        self._found = 0  # of checks, before the first round
        self._fresh: Fresh | None = None
        self._taken: Taken | None = None
        self._suspicious = min(instructions / _FASTEST, seconds)

    @property
    @abc.abstractmethod
    def engine(self) -> Any:
        """What executes: `note_fresh`, `count_edges`."""

    @abc.abstractmethod
    def buffer(self, size: int) -> Buffer:
        """Return memory for inputs of up to so many bytes; before the first round."""

    @abc.abstractmethod
    def call(self, address: int, slots: Sequence[int]) -> int:
        """Call a function with what registers hold; Fault where it does not come back."""

    @property
    @abc.abstractmethod
    def limits(self) -> Limits:
        """What calls of the machine may take."""

    @abc.abstractmethod
    def _keep(self) -> None:
        """Remember the machine as it is."""

    @abc.abstractmethod
    def _back(self) -> None:
        """Put the machine back."""

    @abc.abstractmethod
    def _said(self) -> list[tuple[str, str, tuple[str, ...], str]]:
        """Return what the kernel has found wrong in the round, though it went on."""

    @abc.abstractmethod
    def _end(self) -> None:
        """Let the machine be as any other again, as it is now."""

    def __enter__(self) -> Self:
        self.watch(self.exact)
        self._keep()
        return self

    def __exit__(self, *_: object) -> None:
        self._unwatch()
        self._end()

    def watch(self, edges: bool) -> None:
        """Count each edge from now on, or else note blocks that are executed for the first time."""
        if edges and self._taken is None:
            self._unwatch()
            self._taken = self.engine.count_edges(self.spans)
        elif not edges and self._fresh is None:
            self._unwatch()
            self._fresh = self.engine.note_fresh(self.spans)

    def _unwatch(self) -> None:
        for each in (self._fresh, self._taken):
            if each is not None:
                each.stop()
        self._fresh = self._taken = None

    def run(self, work: Callable[[], int]) -> Round:
        """Do something, and put the machine back.

        Parameters
        ----------
        work
            Calls the guest; a Fault that comes out of it is the round's.
        """
        fault, result, taken = self._try(work, None, self.seconds)
        if self._suspects(fault, taken) and not _late(fault):
            self._forget()  # what was translated is there now, and others' use of the processor is left out
            fault, result, taken = self._try(work, None, self.seconds, time.thread_time)
        if self._suspects(fault, taken) or _late(fault):  # how long it took may be the host's doing
            fault, result = self._counted(work, late=_late(fault))
        said = self._said()
        blocks = self._fresh.take() if self._fresh is not None else ()
        edges = self._taken.take() if self._taken is not None else {}
        self._back()
        return Round(fault=fault, result=result, blocks=blocks, edges=edges, said=said)

    def _counted(self, work: Callable[[], int], *, late: bool) -> tuple[Fault | None, int]:
        """Do something again, and count its instructions.

        Where it does not end, how far it got before that, and by which way, was the host's doing.
        """
        self._forget()
        early = self._fresh.take() if self._fresh is not None else []
        apart = late and self._taken is not None
        if apart:  # whether it ends is told sooner without
            self.watch(edges=False)
        fault, result, _ = self._try(work, self.instructions, _COUNTED)
        endless = fault is not None and fault.kind in _ENDLESS
        if apart:
            self.watch(edges=True)
            if not endless:
                self._forget()
                fault, result, _ = self._try(work, self.instructions, _COUNTED)
        if endless and self._taken is not None:
            self._taken.take()
        if not endless and self._fresh is not None:
            self._fresh.found[:0] = early
        return fault, result

    def compared(self, work: Callable[[], int]) -> list[Pair]:
        """Do something, put the machine back, and return the values that were compared."""
        with self._comparing() as notes:
            try:
                self._try(work, self.instructions, _COUNTED)
                self._said()
            finally:
                notes.stop()
                self._forget()
        return notes.found

    @abc.abstractmethod
    def _comparing(self) -> AbstractContextManager[Compares]:
        """Note what is compared meanwhile, by code and by the kernel's functions that do that."""

    def _checks_found(self, sanitizer: Any) -> list[tuple[str, str, tuple[str, ...], str]]:
        """Return what checks have found and let go on, and let them forget it."""
        if sanitizer is None or len(sanitizer.findings) == self._found:
            return []
        new = sanitizer.findings[self._found :]
        del sanitizer.findings[self._found :]
        return [
            (each.kind.value, each.where, each.backtrace, str(each))
            for each in new
            if each.fault is None
        ]

    def _suspects(self, fault: Fault | None, taken: float) -> bool:
        """Return whether a round may have executed too much, by its time."""
        return taken > self._suspicious * (_TELLING if self._is_known(fault) else 1)

    def _is_known(self, _fault: Fault | None) -> bool:
        """Return whether a fault was reported in full before, and was counted then."""
        return False

    def _forget(self) -> None:
        self._back()
        if self._taken is not None:
            self._taken.take()

    def _do(self, work: Callable[[], int]) -> int:
        """Return what work returns; Fault whatever of the guest does not come back."""
        return work()

    def _try(
        self,
        work: Callable[[], int],
        instructions: int | None,
        seconds: float,
        clock: Callable[[], float] = time.perf_counter,  # of all, as it costs least
    ) -> tuple[Fault | None, int, float]:
        limits = self.limits
        began = clock()
        outer = limits.enter(instructions, seconds)
        try:
            result = self._do(work) & ADDRESS_MASK
        except Fault as fault:
            return fault, 0, clock() - began
        finally:
            limits.leave(outer)
        return None, result, clock() - began


def _late(fault: Fault | None) -> bool:
    return fault is not None and fault.kind is FaultKind.TIME_LIMIT
