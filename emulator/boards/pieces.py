# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory as the emulator maps it: in pieces, where code is executed or not.

Unicorn sees that code is overwritten through whatever address, and translates it anew, only in
pages that a memory hook is for; and of these it makes each store slow. Else a page is looked
after until the first store by each address that it is not executed by. Kernels change their
code by such addresses (aliases, the direct map) or use its pages for something else, so there
are hooks, which are never called, for the pieces that code was executed in; and until then a
piece may not be executed, so that the emulator says when (tests/emulator/test_unicorn_faults.py).
"""

from __future__ import annotations

import unicorn
from unicorn import unicorn_const as uc_const

from emulator.ram import Ram

_SIZE, _MOST = 2 << 20, 256  # bytes of a piece, at least; pieces, at most
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
        self._executed: set[int] = set()
        self.apart: set[int] = set()  # where regions begin that something else decides about
        for at in range(0, ram.size, self._size):
            size = min(self._size, ram.size - at)
            uc.mem_map_ptr(ram.start + at, size, _DATA, ram.address + at)

    def leave_out(self, start: int, size: int) -> None:
        """Unmap memory that something else answers for."""
        self._uc.mem_unmap(start, size)
        self.apart.add(start)

    def is_executed(self, physical: int) -> bool:
        """Return whether code was executed in the piece of a physical address."""
        return (physical - self._ram.start) // self._size * self._size in self._executed

    def execute(self, physical: int) -> bool:
        """Let code be executed at a physical address; False where it is, or is no memory."""
        at = (physical - self._ram.start) // self._size * self._size
        if not 0 <= at < self._ram.size or at in self._executed:
            return False
        self._executed.add(at)
        start, size = self._ram.start + at, min(self._size, self._ram.size - at)
        for first, last, _ in list(self._uc.mem_regions()):
            if start <= first < start + size and first not in self.apart:
                self._uc.mem_protect(first, last - first + 1, uc_const.UC_PROT_ALL)
        end = start + size - 1
        self._uc.hook_add(uc_const.UC_HOOK_MEM_FETCH_UNMAPPED, _never, None, start, end)
        # Pages that are stored to without a look are looked after again.
        self._uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)
        return True


def _never(*_args: object) -> bool:
    """Stand there."""
    return False
