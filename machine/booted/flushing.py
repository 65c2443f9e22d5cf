# SPDX-License-Identifier: GPL-2.0-or-later
"""How often a booted kernel drops translations: each instruction that does, where it executes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from allocator.types import Interval
from archs.levels.boot import FlushInstruction
from kernels.booted.kernel import BootedKernel

_WORD = (1 << 64) - 1
_NUMBER = 44  # bits of a page's number in what TLBI takes
_ORDER = 1 << 20  # behind all who change something
_TEXT = ("_stext", "_etext")

Told: TypeAlias = Callable[[FlushInstruction, int | None], object]


def _nobody(_each: FlushInstruction, _page: int | None) -> None:
    """Tell nobody of an instruction."""


class Flushes:
    """What a kernel executes to drop translations, by kind, and the functions that have it do so.

    Its text is searched for the instructions as it stands in memory, alternatives taken. Bytes that look
    like one and are the middle of another are never begun at, so they do not count.

    Parameters
    ----------
    kernel
        It needs symbols for the bounds of its text.
    theirs
        Where addresses are whose flushes are told apart from others.

    Flushes of single pages are `pages`, and those of everything `whole`, each only of memory at
    `theirs`; what is dropped for memory elsewhere is in `elsewhere`. Whether a flush of everything is
    for memory elsewhere is known where the kernel has a function that is given the range.
    """

    def __init__(self, kernel: BootedKernel, theirs: Sequence[Interval] = ()) -> None:
        assert kernel.arch.boot is not None
        self._kernel = kernel
        self._rules = kernel.arch.boot.flushing
        self.instructions: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()
        self.pages, self.elsewhere, self.whole = 0, 0, 0.0
        self._theirs = theirs
        self._told: Told = _nobody
        self._sites = self._found()
        self._entries = {
            name: kernel.symbols[name] for name in self._rules.functions if name in kernel.symbols
        }

    @property
    def known(self) -> tuple[str, ...]:
        """The functions that are counted: those that this kernel has."""
        return tuple(self._entries)

    @contextmanager
    def counting(self, told: Told = _nobody) -> Iterator[Flushes]:
        """Count what is executed in a `with` block.

        Parameters
        ----------
        told
            Called with each instruction, and the page that it drops: None is no single one.
        """
        self._told = told
        handlers = [(at, self._counter(these)) for at, these in self._sites.items()]
        handlers += [(at, self._entry(name)) for name, at in self._entries.items()]
        end = self._kernel.board.breaks.add_inside(handlers, _ORDER)
        try:
            yield self
        finally:
            end()
            self._told = _nobody

    def _entry(self, name: str) -> Callable[[], None]:
        board, arguments = self._kernel.board, self._kernel.arch.runs.calling.arguments
        page, ceiling = 1 << board.tables().granule, self._kernel.arch.loads.tlb.ceiling

        def entered() -> None:
            self.functions[name] += 1
            if name == self._rules.ranged:
                start, end = board.get(arguments[0]), board.get(arguments[1])
                if end - start > ceiling * page and not self._touches(start, end):
                    self.whole -= 1
                    self.elsewhere += 1

        return entered

    def _touches(self, start: int, end: int) -> bool:
        return any(start < each.end and each.start < end for each in self._theirs)

    def clear(self) -> None:
        """Begin to count anew."""
        self.instructions.clear()
        self.functions.clear()
        self.pages, self.elsewhere, self.whole = 0, 0, 0.0

    def _counter(self, these: list[FlushInstruction]) -> Callable[[], None]:
        board = self._kernel.board

        def executed() -> None:
            for each in these:
                if all(board.get(name) == value for name, value in each.when.items()):
                    self.instructions[each.kind] += 1
                    self.whole += each.whole
                    page = None
                    if each.operand is not None:
                        code = board.read(board.pc, len(each.code))
                        page = self._one(*each.operand(code))
                    self._told(each, page)
                    return

        return executed

    def _one(self, register: str, shift: int) -> int:
        """Note a flush of the page whose address, shifted, a register has, and return the address."""
        at = self._kernel.board.get(register) << shift & _WORD if register else 0
        if shift:  # the number of a page, below bits of an address space and a size
            at |= _WORD & ~((1 << _NUMBER + shift) - 1)
        if self._touches(at, at + 1):
            self.pages += 1
        else:
            self.elsewhere += 1
        return at

    def _found(self) -> dict[int, list[FlushInstruction]]:
        """Return where instructions may be that drop translations."""
        symbols, board = self._kernel.symbols, self._kernel.board
        if not all(name in symbols for name in _TEXT):
            raise LookupError(f"no {' and '.join(_TEXT)} among the kernel's symbols")
        start, end = (symbols[name] for name in _TEXT)
        text = np.frombuffer(board.read(start, end - start), np.uint8)
        found: dict[int, list[FlushInstruction]] = {}
        for each in self._rules.instructions:
            for offset in _places(text, each, self._rules.step).tolist():
                these = found.setdefault(start + offset, [])
                if not these or these[-1].when:  # the first counts
                    these.append(each)
        return found


def _places(text: NDArray[np.uint8], each: FlushInstruction, step: int) -> NDArray[np.int64]:
    """Return the offsets at which an instruction's bytes stand."""
    count = max(len(text) - len(each.code) + 1, 0)
    bits = list(zip(each.code, each.mask, strict=True))
    # Most places are out by one byte, and the more of its bits count the more are.
    first = max(range(len(bits)), key=lambda at: bits[at][1].bit_count())
    byte, mask = bits[first]
    places = np.flatnonzero(text[first : first + count : step] & mask == byte & mask) * step
    for offset, (byte, mask) in enumerate(bits):
        places = places[text[places + offset] & mask == byte & mask]
    return places
