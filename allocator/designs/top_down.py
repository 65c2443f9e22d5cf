# SPDX-License-Identifier: GPL-2.0-or-later
"""Peter Zijlstra's split: one window, text from its one end, everything else from the other.

    start |text text text ->            free            <- data rodata data| end

Nothing is mixed as long as the two do not meet, no size has to be guessed, and every class
keeps its range. The pages stay small: that is vmalloc from two sides, which solves the
distance between text and data and leaves large leaves for later.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from allocator.designs.base import Place, Request
from allocator.designs.vmalloc import Vmalloc


class TopDown(Vmalloc):
    """Text bottom up, data top down, in pages."""

    name = "top_down"
    mixes = False  # the split is the idea

    def places(self, request: Request) -> Iterable[Place]:
        """Return the ranges, searched from the top for anything but text."""
        highest = not request.type.is_text
        return [attrs.evolve(place, highest=highest) for place in super().places(request)]
