# SPDX-License-Identifier: GPL-2.0-or-later
"""What appends to the kernel log: printk, and the kernel's loader."""

from __future__ import annotations

from collections.abc import Callable

from allocator.types import MIB
from kernels.log import Log, LogLine
from kernels.modelled.printf import split_level

LOG_LINES = 200_000
LOG_LIMIT = 16 * MIB  # bytes of the host's memory that the log of a guest takes
LINE_LIMIT = MIB
WARNING = 4  # KERN_WARNING, the default


class Printk:
    """The kernel log, and the line that is not complete yet.

    Parameters
    ----------
    spend
        Lets the guest pay for a line.

    `on_line` is called with each line.
    """

    def __init__(self, spend: Callable[[], None]) -> None:
        self._spend = spend
        self.log = Log()
        self.on_line: Callable[[LogLine], None] | None = None
        self._partial = ""
        self._level = WARNING

    def print(self, message: bytes, level: int | None = None) -> None:
        """Append to the log; a message without newline waits for its continuation."""
        found, text = split_level(message)
        if not message.startswith(b"\x01c"):  # KERN_CONT
            self.flush()
        if not self._partial:
            self._level = found if found is not None else (level if level is not None else WARNING)
        whole = self._partial + text.decode("utf-8", "replace")
        self._partial = ""
        *lines, rest = whole.split("\n")
        if len(rest) > LINE_LIMIT:
            lines, rest = [*lines, rest], ""
        for line in lines:
            self._spend()
            self._emit(line)
        self._partial = rest

    def say(self, level: int, text: str, *, loading: bool = True) -> None:
        """Append a line of the kernel's own; by default one of its loader's about a module."""
        self.flush()
        self._level = level
        self._emit(text, loading=loading)

    def flush(self) -> None:
        """Complete a line that no newline ended."""
        if self._partial:
            text, self._partial = self._partial, ""
            self._emit(text)

    def _emit(self, text: str, *, loading: bool = False) -> None:
        line = LogLine(self._level, text, loading)
        self.log.add(line, LOG_LINES, LOG_LIMIT)
        if self.on_line is not None:
            self.on_line(line)
