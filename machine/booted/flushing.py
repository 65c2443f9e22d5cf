# SPDX-License-Identifier: GPL-2.0-or-later
"""How often a booted kernel drops translations: each instruction that does, where it executes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from archs.levels.boot import FlushInstruction
from kernels.booted.kernel import BootedKernel

_ORDER = 1 << 20  # behind all who change something
_TEXT = ("_stext", "_etext")


class Flushes:
    """What a kernel executes to drop translations, by kind, and the functions that have it do so.

    Its text is searched for the instructions as it stands in memory, alternatives taken. Bytes that look
    like one and are the middle of another are never begun at, so they do not count.

    Parameters
    ----------
    kernel
        It needs symbols for the bounds of its text.
    """

    def __init__(self, kernel: BootedKernel) -> None:
        assert kernel.arch.boot is not None
        self._kernel = kernel
        self._rules = kernel.arch.boot.flushing
        self.instructions: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()
        self._sites = self._found()
        self._entries = {
            name: kernel.symbols[name] for name in self._rules.functions if name in kernel.symbols
        }

    @property
    def known(self) -> tuple[str, ...]:
        """The functions that are counted: those that this kernel has."""
        return tuple(self._entries)

    @contextmanager
    def counting(self) -> Iterator[Flushes]:
        """Count what is executed in a `with` block."""
        handlers = [(at, self._counter(these)) for at, these in self._sites.items()]
        handlers += [(at, self._entry(name)) for name, at in self._entries.items()]
        end = self._kernel.board.breaks.add_inside(handlers, _ORDER)
        try:
            yield self
        finally:
            end()

    def _entry(self, name: str) -> Callable[[], None]:
        def entered() -> None:
            self.functions[name] += 1

        return entered

    def _counter(self, these: list[FlushInstruction]) -> Callable[[], None]:
        board = self._kernel.board

        def executed() -> None:
            for each in these:
                if all(board.get(name) == value for name, value in each.when.items()):
                    self.instructions[each.kind] += 1
                    return

        return executed

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
    places = np.arange(0, count, step)
    for offset, (byte, mask) in enumerate(zip(each.code, each.mask, strict=True)):
        places = places[text[places + offset] & mask == byte & mask]
    return places
