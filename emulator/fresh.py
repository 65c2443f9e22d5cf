# SPDX-License-Identifier: GPL-2.0-or-later
"""Which code is executed for the first time: for who runs the same thing again and again.

The emulator says when it translates a block, and from where it came to it; it translates one when it
is about to execute it, and keeps it. So what is new costs something, and what is not costs nothing: a
hook that is called for each block takes several times as long as a short function does. What it
forgets and translates again is told again; who listens knows what it has seen.

A block is known by the address behind it. Where an access in its middle has to be made again (a page
that is looked up, a watched one), the emulator goes on with a block that begins there, or does not,
as it has executed other things before; where it ends is the code's alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import unicorn
from unicorn import unicorn_const as uc_const

Edge = tuple[int, int]  # the ends of two blocks


class Fresh:
    """Notes the ends of blocks that an engine translates, until `stop`.

    Parameters
    ----------
    uc
        The engine.
    spans
        Addresses that count: first, and end.
    """

    def __init__(self, uc: unicorn.Uc, spans: Iterable[tuple[int, int]]) -> None:
        self._uc = uc
        self._spans = tuple(spans)
        self.found: list[int] = []
        self._hooks = [
            uc.hook_add(uc_const.UC_HOOK_EDGE_GENERATED, self._translated, None, start, end - 1)
            for start, end in self._spans
        ]

    def _translated(self, _uc: unicorn.Uc, block: Any, before: Any, _data: object) -> None:
        self.found.append(block.pc + block.size)
        self.found.append(
            before.pc + before.size
        )  # the first of a run is told of as what came before another

    def take(self) -> list[int]:
        """Return what was translated since the last time, and what led to it."""
        if not self.found:
            return []
        found = list(dict.fromkeys(self.found))
        self.found.clear()
        return [at for at in found if any(start < at <= end for start, end in self._spans)]

    def stop(self) -> None:
        """Note nothing more."""
        for hook in self._hooks:
            self._uc.hook_del(hook)


class Taken:
    """Counts the edges between blocks as they are executed, until `stop`: exact, and slow.

    Of a block that leads to itself it is not told: that may be one that is begun again.

    Parameters
    ----------
    uc
        The engine; somebody lets its code be translated again, before and after.
    spans
        Addresses that count: first, and end.
    """

    def __init__(self, uc: unicorn.Uc, spans: Iterable[tuple[int, int]]) -> None:
        self._uc = uc
        self._before = 0
        self.counts: dict[Edge, int] = {}
        self._hooks = [
            uc.hook_add(uc_const.UC_HOOK_BLOCK, self._begun, None, start, end - 1)
            for start, end in spans
        ]

    def _begun(self, _uc: unicorn.Uc, address: int, size: int, _data: object) -> None:
        end = address + size
        if end != self._before:
            edge = self._before, end
            self._before = end
            self.counts[edge] = self.counts.get(edge, 0) + 1

    def take(self) -> dict[Edge, int]:
        """Return how often each edge was taken since the last time; the next begins at none."""
        found, self.counts = self.counts, {}
        self._before = 0
        return found

    def stop(self) -> None:
        """Count nothing more."""
        for hook in self._hooks:
            self._uc.hook_del(hook)
