# SPDX-License-Identifier: GPL-2.0-or-later
"""What Linux did after 6.16, and what is proposed for arm64; to be chosen by name.

`rox_cache` gives a free area back that starts and ends at multiples of 2 MiB, also where that is the
middle of a larger vmalloc area. Linux does so, too, until 2026: vfree() of an address inside of an area
takes the whole of it away, under everything else that lives there (seen on 7.2;
`execmem compare --workload middle-slice --kernel`). `rox_cache_7x` is what became of it: a refill is
always a multiple of 2 MiB, and is given back as a whole or not at all.

`bbml2` is `vmalloc` on arm64 with the direct map in large leaves. Such a leaf may be split while it is in
use only by a CPU with FEAT_BBM level 2 that takes no conflict abort; else break-before-make would make
the kernel's own memory disappear for a moment, and Linux maps it in pages from the start. What made
that safe is a rule: the first change of protections of an area with VM_FLUSH_RESET_PERMS covers all of
it, so that no part of its memory has another protection in the direct map than the rest.

`rox_rfc` is the cache on such an arm64 (RFC of June 2026): slices of large leaves of text are remapped
in place, which splits leaves that are executed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from sortedcontainers import SortedDict

from allocator.designs.areas import Areas
from allocator.designs.base import Allocation, Context, Place, Store
from allocator.designs.rox_cache import Cache, RoxCache
from allocator.designs.vmalloc import Vmalloc
from allocator.errors import DesignError
from allocator.types import Interval, Prot, align_up

LIVE_SPLITS = "splitting leaves that are in use (FEAT_BBM level 2 without conflict aborts)"


@attrs.define(eq=False)
class WholeRefills(Cache):
    """A cache whose refills are given back as they came."""

    # First address of what vmalloc gave -> its end.
    _areas: SortedDict = attrs.field(factory=SortedDict, init=False)

    def refill(self, size: int, align: int, place: Place) -> Interval | None:
        """Add a multiple of what a large leaf maps, in pages where no large leaf can be had."""
        fresh = super().refill(align_up(size, self.memory.large_size), align, place)
        if fresh is not None:
            self._areas[fresh.start] = fresh.end
        return fresh

    def surplus(self, area: Interval) -> list[int]:
        """Return the chunks of refills that lie wholly inside, and no part of another."""
        found: list[int] = []
        for start in self._areas.irange(area.start, area.end, (True, False)):
            if self._areas[start] <= area.end:
                found += self.chunks.irange(start, self._areas[start], (True, False))
        return found

    def trim(self, area: Interval) -> None:
        """Give them back, and forget where they came from."""
        super().trim(area)
        for start in [start for start in self._areas if start not in self.chunks]:
            del self._areas[start]


class RoxCache7x(RoxCache):
    """The cache of 2026: refills of whole large leaves, given back only as they came."""

    name = "rox_cache_7x"

    def cache(self) -> Store:
        """Return the store of text."""
        page, trap = self.memory.page_size, self.context.trap
        live = self.memory.page_table.live_splits
        return WholeRefills(self.memory, page, Prot.RX, trap, guard=True, runs=live)


@attrs.define(eq=False)
class WholeAreas(Areas):
    """Areas whose memory has one protection in the direct map."""

    def check(self, live: Iterable[Allocation]) -> None:
        """Assert that the first change of protections of every area covered all of it."""
        live = list(live)
        super().check(live)
        memory = self.memory
        for allocation in live:
            frames = memory.page_table.frames(allocation.address, allocation.reserved)
            found = {
                memory.translate(memory.direct_map.start + frame).prot  # type: ignore[union-attr]  # all RAM is mapped there
                for frame in frames.tolist()
            }
            assert len(found) == 1, (
                f"the direct map of the area at {allocation.address:#x} is"
                f" {' and '.join(sorted(map(str, found)))}: a change covered a part of it"
            )


def _needs_live_splits(context: Context, name: str) -> None:
    """Refuse memory of an architecture whose leaves cannot be split while they are in use."""
    if not context.memory.address_map.live_splits:
        reason = f"needs {LIVE_SPLITS}, which is not to be had here"
        raise DesignError(name, "start", "", 0, None, reason)


class Bbml2(Vmalloc):
    """Areas of their own, on arm64 with a direct map in large leaves that are split in use."""

    name = "bbml2"
    mixes = False  # a part of an area would be changed first

    def __init__(self, context: Context) -> None:
        _needs_live_splits(context, self.name)
        super().__init__(context)
        self.areas = WholeAreas(context.memory)


class RoxRfc(RoxCache7x):
    """The cache on arm64 with BBML2: text in large leaves, split in use where a slice is opened."""

    name = "rox_rfc"

    def __init__(self, context: Context) -> None:
        _needs_live_splits(context, self.name)
        super().__init__(context)
        self.areas = WholeAreas(context.memory)
