# SPDX-License-Identifier: GPL-2.0-or-later
"""What bounds the host's part in a guest: memory as kernel functions reach it.

A kernel function is Python that acts for the guest, over addresses and sizes that the guest
chose. Whatever it reads passes through here: an address has 64 bits, whatever was computed;
each access is paid for; and no more is held at once than an eighth of what the guest's heap may
come to. What is larger is worked on in pieces (`Access.pieces`).
"""

from __future__ import annotations

from collections.abc import Callable

from allocator import KernelMemory
from allocator.types import ADDRESS_MASK, KIB

PIECE = 256 * KIB  # bytes that are worked on between two looks at the limits
SMALL = 4 * KIB  # bytes that are not worth counting
HELD = 8  # a function may hold this part of the heap's limit
WORK = 64  # bytes that cost as much as a load does


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
