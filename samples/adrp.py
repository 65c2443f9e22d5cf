# SPDX-License-Identifier: GPL-2.0-or-later
"""adrp: why arm64 code may move by pages, and not by less.

ADRP counts in pages: it adds (page of the target - page of the instruction) to the page of
the instruction. The ADD behind it brings the low twelve bits of the target. The same bytes
copied elsewhere still work while both keep their place within their pages.
"""

from __future__ import annotations

from archs import arch as arch_by_name
from machine.machine import ModelledMachine
from samples.bench import adrp_pair, listing, put
from samples.story import Grid, Lines, Story, Text

START, TARGET = 0xF80, 0x5ABC  # the first place in its page; the target, from that page


def main() -> Story:
    """Copy a relocated pair to other places, unchanged, and execute it there."""
    arch = arch_by_name("arm64")
    machine = ModelledMachine(arch)
    page = put(machine, bytes(4), skip=0) & -0x1000
    code = adrp_pair(arch, place=page + START, target=page + TARGET)
    rows = []
    for moved in (0, 0x40, 0x7C, 0x80, 0x1000, 0x3000):
        where, inside = divmod(START + moved, 0x1000)
        here = put(machine, code, skip=inside)
        origin = (here & -0x1000) - where * 0x1000  # what `page` would be, seen from here
        wanted, got = TARGET + where * 0x1000, machine.call(here) - origin
        stays = TARGET if moved < 0x1000 else wanted
        verdict = "right" if got == stays else f"off by {got - stays:+#x}"
        rows.append((f"+{moved:#x}", f"{inside:#x}", f"{stays:#x}", f"{got:#x}", verdict))
    story = Story("adrp", "arm64: ADRP counts pages")
    story.facts = {"rows": [list(r) for r in rows]}
    story.parts = [
        Text(
            f"adrp x0 ; add x0, x0 ; ret is relocated once, at offset {START:#x} of a page, for "
            f"a target {TARGET:#x} behind that page's start. Then its bytes are copied."
        ),
        Lines(tuple(listing(arch, code[:8], page + START))),
        Grid(("copied to", "in page", "wanted", "x0", ""), tuple(rows), "copied to,in page"),
        Text(
            "Within the page nothing changes. From the next page on the same bytes lead a page "
            "too far, unless the target moved along by whole pages: so a module is placed by "
            "whole pages, and text and data may move apart only if ADRP is computed again."
        ),
    ]
    return story
