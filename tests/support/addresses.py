# SPDX-License-Identifier: GPL-2.0-or-later
"""Made-up but plausible addresses: each memory type at its own page, behind one another."""

from __future__ import annotations

from allocator.types import align_up
from loader.elfview import ElfView
from loader.layout import Layout


def place(layout: Layout, base: int) -> dict[int, int]:
    """Return an address for every section: types follow each other from `base`, page by page."""
    starts, at = {}, base
    for kind in layout.aligns:
        starts[kind] = at
        at += align_up(layout.sizes.get(kind, 0), 4096) + 4096
    return {index: starts[p.type] + p.offset for index, p in layout.placements.items()}


def resolve(view: ElfView, base: int) -> dict[str, int]:
    """Return an address for every undefined name, 64 bytes apart from `base`."""
    return {name: base + 64 * number for number, name in enumerate(view.undefined)}
