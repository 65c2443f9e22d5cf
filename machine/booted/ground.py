# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a booted machine, for those who watch it."""

from __future__ import annotations

from collections.abc import Callable

from emulator.boards.board import Board
from emulator.faults import BadCall
from emulator.watching import Range


class BootedGround:
    """Memory that the kernel and its modules touch.

    Parameters
    ----------
    board
        The computer.
    """

    order = "little"

    def __init__(self, board: Board) -> None:
        self._board = board

    def frame(self, address: int) -> int | None:
        """Return the physical address of a virtual one; None where there is no memory."""
        physical = self._board.translate(address)
        ram = self._board.ram
        if physical is None or not ram.start <= physical < ram.start + ram.size:
            return None
        return physical

    def read(self, physical: int, size: int) -> bytes:
        """Return bytes of physical memory."""
        return self._board.ram.read(physical, size)

    def function(self) -> str:
        """Return nothing: all accesses are guest code's."""
        return ""

    def attach(self, watched: Range) -> Callable[[], None]:
        """Let a range be told of accesses; BadCall in the middle of code that would not tell."""
        watching = self._board.watching
        if not watching.ready:
            raise BadCall("watch", "code that is under way would not tell", "begin before the call")
        watching.add(watched)
        return lambda: watching.remove(watched)
