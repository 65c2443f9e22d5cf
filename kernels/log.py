# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel log, as whoever looks at it finds it."""

from __future__ import annotations

import sys

import attrs

LINE_COST = 128  # of a line beside its text


@attrs.frozen
class LogLine:
    """One record of the kernel log; `level` 0 (KERN_EMERG) to 7 (KERN_DEBUG).

    `loading` marks what the kernel's loader says about a module, not the module itself.
    """

    level: int
    text: str
    loading: bool = attrs.field(default=False, eq=False)


class Log(list[LogLine]):
    """The kernel log: where it is full the oldest lines go, and the first line says how many."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        self._bytes = 0

    @property
    def total(self) -> int:
        """Lines so far, those that were dropped included."""
        return self.dropped + len(self) - (self.dropped > 0 and len(self) > 0)

    def since(self, total: int) -> tuple[LogLine, ...]:
        """Return what is left of the lines after the first `total`."""
        return tuple(self[max(len(self) - (self.total - total), 0) :])

    def add(self, line: LogLine, most_lines: int, most_bytes: int) -> None:
        """Append a line, and keep within the limits."""
        if not self:  # its user may have emptied it
            self._bytes = self.dropped = 0
        self._bytes += _cost(line)
        self.append(line)
        if len(self) > most_lines or self._bytes > most_bytes:
            # A quarter of what there may be, so that it is done seldom.
            self._drop(most_lines * 3 // 4, most_bytes * 3 // 4)

    def _drop(self, lines: int, size: int) -> None:
        """Drop the oldest lines until there are so many, and bytes of them."""
        first = int(self.dropped > 0)  # the line that says so
        count, freed = first, 0
        while count < len(self) - 1 and (len(self) - count > lines or self._bytes - freed > size):
            freed += _cost(self[count])
            count += 1
        self.dropped += count - first
        self._bytes -= freed
        self[:count] = [LogLine(4, f"{self.dropped} lines dropped")]


def _cost(line: LogLine) -> int:
    return sys.getsizeof(line.text) + LINE_COST
