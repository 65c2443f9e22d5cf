# SPDX-License-Identifier: GPL-2.0-or-later
"""What bounds the host's part in a guest: memory as kernel functions reach it, and the log.

A kernel function is Python that acts for the guest, over addresses and sizes that the guest
chose. Whatever it reads passes through here: an address has 64 bits, whatever was computed;
each access is paid for; and no more is held at once than an eighth of what the guest's heap may
come to. What is larger is worked on in pieces (`Kernel.pieces`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import attrs

from allocator import KernelMemory
from allocator.types import ADDRESS_MASK, KIB

PIECE = 256 * KIB  # bytes that are worked on between two looks at the limits
SMALL = 4 * KIB  # bytes that are not worth counting
HELD = 8  # a function may hold this part of the heap's limit
WORK = 64  # bytes that cost as much as a load does
LINE_COST = 128  # of a line beside its text


class GuestMemory(KernelMemory):
    """The memory for kernel functions that act for the guest.

    Parameters
    ----------
    memory
        The memory itself, which may have checks of its own.
    spend
        Lets the guest pay for work.
    hold
        Says that the bytes at an address, so many, are held while the function works.
    """

    __slots__ = ("_hold", "_memory", "_spend")

    def __init__(
        self,
        memory: KernelMemory,
        spend: Callable[[int], None],
        hold: Callable[[int, int], None],
    ) -> None:
        self.__dict__ = memory.__dict__  # one memory, seen in two ways
        self._memory = memory
        self._spend = spend
        self._hold = hold

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at `address`; a Fault where that is more than may be held."""
        if size > SMALL:
            self._hold(size, address)
        self._spend(1 + size // WORK)
        return self._memory.read(address & ADDRESS_MASK, size)

    def write(self, address: int, data: bytes) -> None:
        """Store `data` at `address`."""
        self._spend(1 + len(data) // WORK)
        self._memory.write(address & ADDRESS_MASK, data)


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
