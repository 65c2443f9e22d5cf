# SPDX-License-Identifier: GPL-2.0-or-later
"""What is executed: the emulator's blocks as they are begun, and how far each one came.

The emulator translates a block at once and tells when it begins one. It may leave it early: for an
exception, a breakpoint, a limit, or because somebody sets the program counter; who notices that
says so (`Blocks.left`), and only what came before is counted. Where its blocks end depends on
pages, hooks and limits, so they are put together to blocks of the program by who reads them.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import unicorn
from unicorn import unicorn_const as uc_const

Begun = tuple[int, int]  # address and size of a block of the emulator


@attrs.define
class Executed:
    """How often what was executed, in blocks of the emulator.

    Parameters
    ----------
    counts
        Block -> times that it was executed to its end.
    partly
        Block and bytes of it -> times that it was left there.
    edges
        Block, and the one that was begun when it had come to its end -> times.
    code
        Block -> what stood there when it was begun for the first time.
    """

    counts: dict[Begun, int] = attrs.field(factory=dict)
    partly: dict[tuple[Begun, int], int] = attrs.field(factory=dict)
    edges: dict[tuple[Begun, Begun], int] = attrs.field(factory=dict)
    code: dict[Begun, bytes] = attrs.field(factory=dict)

    def add(self, other: Executed) -> None:
        """Count what another has counted, too."""
        for mine, its in (
            (self.counts, other.counts),
            (self.partly, other.partly),
            (self.edges, other.edges),
        ):
            for key, count in its.items():
                mine[key] = mine.get(key, 0) + count  # type: ignore[index, arg-type]  # of one kind
        self.code.update(other.code)


class Blocks:
    """Notes what one engine executes, until `stop`.

    Parameters
    ----------
    uc
        The engine.
    anew
        Lets all code be translated again.
    read
        Returns the bytes at an address; empty where they are not there.
    leavers
        Whoever is told where blocks are left.
    without
        Addresses whose blocks are not noted, and run as fast as ever; an edge then leads over them.
    """

    def __init__(
        self,
        uc: unicorn.Uc,
        anew: Callable[[], object],
        read: Callable[[int, int], bytes],
        leavers: list[Callable[[int], object]],
        without: range,
    ) -> None:
        self._uc, self._anew, self._leavers = uc, anew, leavers
        self._read, self._known = read, set[Begun]()
        self._now: Begun | None = None  # the block under way
        self._edge: tuple[Begun, Begun] | None = None  # by which it was come to
        self._executed = Executed()
        spans: tuple[tuple[int, int], ...] = ((1, 0),)  # all addresses, to the emulator
        if without:
            spans = (0, without.start - 1), (without.stop, (1 << 64) - 1)
        self._hooks = [
            uc.hook_add(uc_const.UC_HOOK_BLOCK, self._begun, None, *span) for span in spans
        ]
        leavers.append(self.left)
        anew()

    def _begun(self, _uc: unicorn.Uc, address: int, size: int, _data: object) -> None:
        before, now = self._now, (address, size)
        self._now = now
        if now not in self._known:
            self._known.add(now)
            self._executed.code[now] = self._read(address, size)
        if before is None:
            self._edge = None
            return
        counts, edges = self._executed.counts, self._executed.edges
        counts[before] = counts.get(before, 0) + 1
        self._edge = edge = before, now
        edges[edge] = edges.get(edge, 0) + 1

    def left(self, at: int) -> None:
        """Note that the block under way was left, and everything before an address executed.

        Where that is no address in it, it came to its end.
        """
        now = self._now
        if now is None:
            return
        self._now = None
        offset = at - now[0]
        if not 0 <= offset < now[1]:
            counts = self._executed.counts
            counts[now] = counts.get(now, 0) + 1
            return
        if offset:
            partly = self._executed.partly
            partly[now, offset] = partly.get((now, offset), 0) + 1
        elif self._edge is not None:  # it was not begun at all: it will be when that goes on
            edges = self._executed.edges
            edges[self._edge] -= 1
            if not edges[self._edge]:
                del edges[self._edge]

    def take(self) -> Executed:
        """Return what was executed since the last time; the block under way counts next time."""
        found, self._executed = self._executed, Executed()
        self._edge = None
        self._known.clear()  # there may be other code afterwards
        now = self._now
        if now is not None and now in found.code:
            self._executed.code[now] = found.code[now]
        return found

    def stop(self) -> None:
        """Note nothing more."""
        for hook in self._hooks:
            self._uc.hook_del(hook)
        self._leavers.remove(self.left)
        self._anew()
