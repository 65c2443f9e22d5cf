# SPDX-License-Identifier: GPL-2.0-or-later
"""veneer: the 128 MiB wall of arm64, and the PLT entry that leads over it.

The sample module is linked again and again, each time further from the function that it
calls: below the wall its BL goes there by itself, beyond it the linker spends an entry of
the module's .plt, three instructions that reach 4 GiB.
"""

from __future__ import annotations

from allocator.types import MIB, size_text
from archs import arch as arch_by_name
from loader.elf import parse
from loader.layout import plan
from loader.link import link_view
from loader.listing import Listing
from samples.bench import listing
from samples.modules import path
from samples.story import Grid, Heading, Lines, Story, Text

MODULE, SYMBOL = "mathuser", "mathlib_powmod"
BASE = 0xFFFF_8000_7000_0000
DISTANCES = (1 * MIB, 100 * MIB, 128 * MIB - 4, 128 * MIB, 1024 * MIB)


def main() -> Story:
    """Link one call at growing distances from its target."""
    arch = arch_by_name("arm64")
    view = parse(path("arm64", MODULE).read_bytes(), MODULE)
    layout = plan(view)
    start = {kind: BASE + (n << 16) for n, kind in enumerate(layout.sizes)}
    places = {i: start.get(p.type, BASE) + p.offset for i, p in layout.placements.items()}
    rows, entry, call = [], [], []
    for distance in DISTANCES:
        near = dict.fromkeys(view.undefined, BASE + MIB)
        # The call stands somewhere in .text: its own place is learnt from a first link.
        probe = Listing(view, link_view(view, layout, places, near), places)
        site = next(iter(probe.select(symbol=SYMBOL)))
        linked = link_view(view, layout, places, {**near, SYMBOL: site.place + distance})
        told = next(iter(Listing(view, linked, places).select(symbol=SYMBOL)))
        used = linked.plt[False].used if told.via else 0
        rows.append((size_text(distance), f"+{distance:#x}", told.after.hex(" "), str(used)))
        if told.via:
            plt = linked.plt[False]
            entry = listing(arch, bytes(plt.image[:12]), places[plt.section])
            call = listing(arch, told.after, told.place)
    story = Story("veneer", "arm64: the 128 MiB wall, and the way over it")
    story.facts = {"rows": [list(r) for r in rows], "entry": entry}
    story.parts = [
        Text(f"{MODULE}.ko calls {SYMBOL} with BL: 26 bits, counted in words, signed."),
        Grid(
            ("distance", "X", "bytes of BL", "PLT entries"), tuple(rows), "distance,X,PLT entries"
        ),
        Heading("Beyond the wall"),
        Lines((*call, "", *entry)),
        Text(
            "BL reaches the entry, and ADRP + ADD + BR any place within 4 GiB; x16 is the "
            "register that the procedure call standard leaves to such stubs. The limit is "
            "not symmetric: +128 MiB itself is 4 bytes too far, -128 MiB is not."
        ),
    ]
    return story
