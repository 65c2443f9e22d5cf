# SPDX-License-Identifier: GPL-2.0-or-later
"""Oopses that a kernel has reported before, told again without the report.

Most of what an oops costs is its report: registers, names, a backtrace, line by line. Where what the
kernel has said when it is about to print registers, but for numbers, and all places in code on the stack
are those of an oops that was reported in full, it is the same again. What only seems to be
another, because of what else lies on the stack, is reported in full.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain

import attrs
import numpy as np

from emulator.faults import Fault
from kernels.booted.kernel import BootedKernel
from machine.booted.functions import Functions
from machine.booted.module import BootedModule

_PRINTS_REGISTERS = "show_regs_print_info"  # of oopses and warnings, before what takes long
_MOST = 1 << 15  # bytes of a stack
_NUMBERS = re.compile(rb"\[ *\d+\.\d+\]|\b[0-9a-f]{8,}\b|\b(?:PID|pid): *\d+|\[#\d+\]")
AGAIN = "an oops that was reported before in this run"
_Mark = tuple[bytes, bytes]


class Brief:
    """The oopses of a machine that is put back again and again.

    Parameters
    ----------
    kernel
        Its kernel.
    functions
        The kernel's functions.
    modules
        The modules that are loaded, by name.
    """

    def __init__(
        self, kernel: BootedKernel, functions: Functions, modules: Mapping[str, BootedModule]
    ) -> None:
        self._wanted = False
        self._kernel = kernel
        self._known: dict[_Mark, Fault] = {}
        self._last: _Mark | None = None
        self._console = len(kernel.board.wires.console)
        text = [(functions.text.start, functions.text.stop)]
        regions = chain.from_iterable(each.regions.items() for each in modules.values())
        text += [(at.address, at.address + at.size) for kind, at in regions if kind.is_text]
        self._text = np.array(sorted(text), np.uint64)
        at = kernel.symbols.get(_PRINTS_REGISTERS)
        self._break = None if at is None else (at, kernel.board.break_at(at, self._reached))

    def begin(self, wanted: bool) -> None:
        """Take note that a round begins, and whether it may be told of in brief."""
        self._last, self._wanted = None, wanted

    def learn(self, fault: Fault | None) -> None:
        """Take note of what a round ended with."""
        if self._last is not None and fault is not None and not fault.kind.is_limit:
            self._known.setdefault(self._last, fault)

    def stop(self) -> None:
        """Look no more."""
        if self._break is not None:
            self._kernel.board.no_break_at(*self._break)

    def _reached(self) -> None:
        guest = self._kernel.guest
        self._last = self._mark() if guest.on_own_stack() else None
        known = self._known.get(self._last) if self._wanted and self._last is not None else None
        if known is not None:
            raise attrs.evolve(known, address=None, reason=AGAIN, hint="")

    def _mark(self) -> _Mark | None:
        """Return what tells an oops from others; None where the stack cannot be read."""
        board = self._kernel.board
        size = self._kernel.guest.base - board.sp & -8
        if not 0 < size <= _MOST:
            return None
        try:
            words = np.frombuffer(board.read(board.sp, size), "<u8")
        except LookupError:
            return None
        place = np.searchsorted(self._text[:, 0], words, side="right").astype(np.intp) - 1
        inside = (place >= 0) & (words < self._text[np.maximum(place, 0), 1])
        said = bytes(board.wires.console[self._console :])
        return _NUMBERS.sub(b"", said), words[inside].tobytes()
