# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory of a board that may not be touched: guards, and pages that are closed for a while.

It is the emulator's memory that is closed, not the guest's page tables that change: whatever address
leads there, its owner sees no difference, and whoever touches it stops at the instruction. What is
looked up is kept, so closing a page forgets addresses. An access that begins before a guard and
reaches into it is told of by what answers there as hardware does, with an instruction that is not the
exact one but stands before it in the same block: Unicorn checks only where an access begins
(tests/machine/test_sanitizing.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import unicorn
from unicorn import unicorn_const as uc_const

from emulator.boards.board import Board

_DATA = uc_const.UC_PROT_READ | uc_const.UC_PROT_WRITE
_STORES = (uc_const.UC_MEM_WRITE_PROT, uc_const.UC_MEM_WRITE)

# Physical address, bytes, whether it is a store, whether the program counter is exact.
Told = Callable[[int, int, bool, bool], object]


class Guards:
    """Closed memory of one board.

    Parameters
    ----------
    board
        The computer.
    start, size
        Physical bounds of all that is ever closed, of whole pages; no code is executed there.
    told
        Called with each access to what is closed; what it raises comes out of the run, which ends.
    """

    def __init__(self, board: Board, start: int, size: int, told: Told) -> None:
        self._board, self._told = board, told
        self.start, self.size = start, size
        self._guards: list[tuple[int, int]] = []
        self._closed: dict[int, int] = {}  # what is closed now: start -> size
        end = start + size - 1
        self._hook = board.uc.hook_add(uc_const.UC_HOOK_MEM_PROT, self._touched, None, start, end)
        self._ended = False

    def guard(self, physical: int, size: int) -> None:
        """Close pages for good."""
        uc, memory = self._board.uc, self._board.memory
        uc.mem_unmap(physical, size)
        read, write = (
            partial(self._answered, physical, False),
            partial(self._answered, physical, True),
        )
        uc.mmio_map(
            physical,
            size,
            lambda _uc, offset, length, _data: read(offset, length),
            None,
            lambda _uc, offset, length, _value, _data: write(offset, length),
            None,
        )
        uc.mem_protect(physical, size, uc_const.UC_PROT_NONE)
        memory.apart.add(physical)
        self._guards.append((physical, size))

    def divide(self, physical: int, size: int) -> None:
        """Let pages be closed and opened quickly from now on; they are open."""
        self._board.memory.apart.add(physical)
        self._board.uc.mem_protect(physical, size, uc_const.UC_PROT_NONE)
        self._board.uc.mem_protect(physical, size, _DATA)

    def close(self, physical: int, size: int) -> None:
        """Let pages be touched by nobody."""
        self._board.uc.mem_protect(physical, size, uc_const.UC_PROT_NONE)
        self._closed[physical] = size
        self._board.forget_addresses()

    def open(self, physical: int) -> None:
        """Let pages that were closed be touched again."""
        size = self._closed.pop(physical, None)
        if size is not None:
            self._board.uc.mem_protect(physical, size, _DATA)

    def end(self) -> None:
        """Let all be memory again as any other."""
        if self._ended:
            return
        self._ended = True
        board = self._board
        for physical in tuple(self._closed):
            self.open(physical)
        for physical, size in self._guards:
            board.uc.mem_unmap(physical, size)
            at = board.ram.address + physical - board.ram.start
            board.uc.mem_map_ptr(physical, size, _DATA, at)
        board.memory.apart.difference_update(range(self.start, self.start + self.size))
        board.uc.hook_del(self._hook)
        board.forget_addresses()

    def _touched(
        self, _uc: unicorn.Uc, access: int, physical: int, size: int, _value: int, _data: object
    ) -> bool:
        self._tell(physical, size, access in _STORES, True)
        return False

    def _answered(self, start: int, write: bool, offset: int, size: int) -> int:
        self._tell(start + offset, size, write, False)
        return 0

    def _tell(self, physical: int, size: int, write: bool, exact: bool) -> None:
        board = self._board
        if board.failing:  # the rest of an access that was told of
            return
        try:
            self._told(physical, size, write, exact)
        except BaseException as error:  # noqa: BLE001 -- comes out of the run
            board.fail(error)
