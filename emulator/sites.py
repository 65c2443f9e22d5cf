# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions in a guest's code that the emulator must not execute before somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import unicorn
from unicorn import unicorn_const as uc_const

from allocator import KernelMemory
from emulator.tlb import PAGE

LONGEST = 16  # bytes of an instruction, and no less


class Sites:
    """Finds them in pages that code is fetched from.

    Parameters
    ----------
    uc
        The CPU's engine.
    memory
        What stands in pages.
    within
        Yields where in code they may be.
    at_site
        Called before each of them.
    """

    def __init__(
        self,
        uc: unicorn.Uc,
        memory: KernelMemory,
        within: Callable[[bytes], Iterator[int]],
        at_site: Callable[[unicorn.Uc, int, int, object], None],
    ) -> None:
        self._uc = uc
        self._memory = memory
        self._within = within
        self._at_site = at_site
        self._scanned: dict[int, int] = {}
        self._sites: set[int] = set()

    def look_for(self, page: int, frame: int) -> None:
        """Find them in a page of the emulator, whose contents lie in a frame."""
        physical = self._memory.physical
        code = physical.read(frame, PAGE)
        follows = self._memory.page_table.translate((page + PAGE) % (1 << 64))
        if follows is not None:
            code += physical.read(follows.address, LONGEST)
        seen = hash(code)
        if self._scanned.get(page) == seen:
            return
        self._scanned[page] = seen
        for offset in self._within(code):
            at = page + offset
            if offset < PAGE and at not in self._sites:
                self._sites.add(at)
                self._uc.hook_add(uc_const.UC_HOOK_CODE, self._at_site, None, at, at)
