# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory as the emulator maps it: in pieces, where code is executed or not.

Unicorn sees that code is overwritten through whatever address, and translates it anew, only in
pages that a memory hook is for; and of these it makes each store slow. Else a page is looked
after until the first store by each address that it is not executed by. Kernels change their
code by such addresses (aliases, the direct map) or use its pages for something else, so there
are hooks, which are never called, for where code was executed; and until then memory may not be
executed, so that the emulator says when (tests/emulator/test_unicorn_faults.py). Where a whole piece is
mapped as one, as a kernel's text is, it counts as executed; else the next pages that follow each other,
because what a kernel allocates lies right beside a module's code. Each part that is told apart makes
all changes of the map slower, so there are a few of them in a piece.
"""

from __future__ import annotations

from collections.abc import Callable

import unicorn
from unicorn import unicorn_const as uc_const

from emulator.ram import Ram

_SIZE, _MOST = 2 << 20, 256  # bytes of a piece, at least; pieces, at most
_PARTS, _NEXT = 4, 16  # parts of a piece that are told apart; pages of one, at most
_PAGE = 4096
_DATA = uc_const.UC_PROT_READ | uc_const.UC_PROT_WRITE


class Pieces:
    """The pieces of a guest's memory; making it maps them.

    Parameters
    ----------
    uc
        The emulator.
    ram
        The memory.
    """

    def __init__(self, uc: unicorn.Uc, ram: Ram) -> None:
        self._uc, self._ram = uc, ram
        self._size = -(-ram.size // (_MOST * _SIZE)) * _SIZE
        self._executed: dict[
            int, list[tuple[int, int]]
        ] = {}  # of pieces, by number: offsets in memory
        self.apart: set[int] = set()  # where regions begin that something else decides about
        for at in range(0, ram.size, self._size):
            size = min(self._size, ram.size - at)
            uc.mem_map_ptr(ram.start + at, size, _DATA, ram.address + at)

    def leave_out(self, start: int, size: int) -> None:
        """Unmap memory that something else answers for."""
        self._uc.mem_unmap(start, size)
        self.apart.add(start)

    def is_executed(self, physical: int) -> bool:
        """Return whether code was executed around a physical address."""
        at = physical - self._ram.start
        return any(start <= at < end for start, end in self._executed.get(at // self._size, ()))

    def execute(self, address: int, translate: Callable[[int], int | None]) -> bool:
        """Let code be executed at a virtual address; False where it is, or is no memory.

        Parameters
        ----------
        translate
            Returns the physical address of a virtual one, None where there is no memory.
        """
        page = address & -_PAGE
        physical = translate(page)
        if physical is None or not 0 <= physical - self._ram.start < self._ram.size:
            return False
        if self.is_executed(physical):
            return False
        at = physical - self._ram.start
        piece = at // self._size
        known = self._executed.setdefault(piece, [])
        start, end = piece * self._size, min((piece + 1) * self._size, self._ram.size)
        if len(known) < _PARTS and not self._as_one(page, physical, start, end, translate):
            start, most = at, min(at + _NEXT * _PAGE, end)
            end = start + _PAGE
            while end < most and translate(page + end - start) == self._ram.start + end:
                end += _PAGE
        known.append((start, end))
        self._let(self._ram.start + start, self._ram.start + end)
        return True

    def _as_one(
        self,
        page: int,
        physical: int,
        start: int,
        end: int,
        translate: Callable[[int], int | None],
    ) -> bool:
        """Return whether first and last page of a piece lie as far from a page as in memory."""
        first = self._ram.start + start
        return all(
            translate((page - physical + each) % (1 << 64)) == each
            for each in (first, first + (end - start) // 2, self._ram.start + end - _PAGE)
        )

    def _let(self, start: int, end: int) -> None:
        for first, last, _ in list(self._uc.mem_regions()):
            low, high = max(first, start), min(last + 1, end)
            if low < high and first not in self.apart:
                self._uc.mem_protect(low, high - low, uc_const.UC_PROT_ALL)
        self._uc.hook_add(uc_const.UC_HOOK_MEM_FETCH_UNMAPPED, _never, None, start, end - 1)
        # Pages that are stored to without a look are looked after again.
        self._uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)


def _never(*_args: object) -> bool:
    """Stand there."""
    return False
