# SPDX-License-Identifier: GPL-2.0-or-later
"""fit: whether all of Debian's modules fit where arm64's direct calls reach.

The direct window has 128 MiB, minus the kernel image. The sizes of every module are added
up in alphabetical order, by five rules; what fills the window first decides how many modules
load before the first needs a PLT entry.
"""

from __future__ import annotations

from collections.abc import Callable

from allocator.types import PAGE_SIZE, ExecmemType, MemType, align_up, size_text
from allocator.workloads.table import debian
from archs import arch as arch_by_name
from samples.story import Grid, Story, Text

RULES: tuple[tuple[str, Callable[[MemType], bool], int, int], ...] = (
    ("all types, page + guard page", lambda kind: not kind.is_init, PAGE_SIZE, PAGE_SIZE),
    ("all types, page", lambda kind: not kind.is_init, PAGE_SIZE, 0),
    ("text only, page + guard page", lambda kind: kind is MemType.TEXT, PAGE_SIZE, PAGE_SIZE),
    ("text only, page", lambda kind: kind is MemType.TEXT, PAGE_SIZE, 0),
    ("text only, 64 bytes", lambda kind: kind is MemType.TEXT, 64, 0),
)


def main() -> Story:
    """Fill the direct window by each rule."""
    arch = arch_by_name("arm64")
    here = arch.loads.address_map()
    window = here.range_of(ExecmemType.MODULE_TEXT).range
    room = here.image.start - window.start
    modules = debian(arch.name)
    story = Story("fit", "4,350 modules and 91 MiB")
    rows = []
    for name, counts, unit, guard in RULES:
        total = fit = 0
        full = False
        for key in sorted(modules):
            regions = [r for r in modules[key].regions if counts(r.type)]
            total += sum(align_up(region.size, unit) + guard for region in regions)
            full = full or total > room
            fit += not full
        story.facts[name] = {"fit": fit, "total": total}
        rows.append((name, size_text(total), f"{fit:,} of {len(modules):,}"))
    story.facts["room"] = room
    story.parts = [
        Text(
            f"Debian's kernel for arm64 leaves {size_text(room)} of the window in which every call "
            "reaches it. In alphabetical order, until the window is full:"
        ),
        Grid(
            ("what lies in the window", "all of it", "modules that fit"),
            tuple(rows),
            "all of it,modules that fit",
        ),
        Text(
            "Data reaches 4 GiB by ADRP and need not be there. Text alone, without guard pages, "
            "fits whole: no module of the distribution needs a PLT."
        ),
    ]
    return story
