# SPDX-License-Identifier: GPL-2.0-or-later
"""How far calls get: between stretches of addresses, directly and through PLT entries."""

from __future__ import annotations

import attrs

from allocator.types import Interval, align_down


@attrs.frozen(kw_only=True)
class BranchReach:
    """How far calls get.

    Parameters
    ----------
    direct
        The call instruction's own reach: displacements from the call, or from the start of
        the region that it is in.
    plt
        The reach of a call through a PLT entry, as displacements; None where modules have none.
    region
        Size of the aligned regions that calls do not leave; 0 where they hold displacements.
    """

    direct: Interval
    plt: Interval | None = None
    region: int = 0

    def reaches(self, source: Interval, target: Interval) -> bool:
        """Return whether a call anywhere in `source` gets anywhere in `target`."""
        if not self.region:
            return within(source, target, self.direct)
        first, last = self._regions(source)
        return first == last and (
            first + self.direct.start <= target.start and target.end <= first + self.direct.end
        )

    def touches(self, source: Interval, target: Interval) -> bool:
        """Return whether some call in `source` gets somewhere in `target`."""
        if not self.region:
            return touching(source, target, self.direct)
        first, last = self._regions(source)
        return target.start < last + self.direct.end and first + self.direct.start < target.end

    def _regions(self, source: Interval) -> tuple[int, int]:
        """Return where the first and the last region of `source` begin."""
        return align_down(source.start, self.region), align_down(source.end - 1, self.region)


def within(source: Interval, target: Interval, reach: Interval) -> bool:
    """Return whether a branch anywhere in `source` gets anywhere in `target`."""
    nearest, furthest = target.start - (source.end - 1), target.end - 1 - source.start
    return reach.start <= nearest and furthest < reach.end


def touching(source: Interval, target: Interval, reach: Interval) -> bool:
    """Return whether some branch in `source` gets somewhere in `target`."""
    return target.start - (source.end - 1) < reach.end and (
        target.end - 1 - source.start >= reach.start
    )
