# SPDX-License-Identifier: GPL-2.0-or-later
"""How long reading, planning and linking a module takes, beside the floor.

The floor does what no linker can do without: one numpy view per relocation table, read
once, and one copy of every allocated section. Both run in this process, on the same bytes,
in turn; the figure is the ratio of medians of CPU time.

    python benchmarks/link.py [MODULE...]      # default: the sample modules
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from archs import archs
from loader.elf import RELA, SHT_NOBITS, ElfView, parse
from loader.files import read_module
from loader.layout import plan
from loader.link import link_view
from samples.modules import names, path


def timed(function: Callable[[], object], runs: int) -> float:
    """Return the median CPU time of `function` in milliseconds."""
    times = []
    for _ in range(runs):
        start = time.process_time_ns()
        function()
        times.append(time.process_time_ns() - start)
    return statistics.median(times) / 1e6


def ours(image: bytes) -> None:
    """Parse, plan and link at the start of the architecture's window."""
    view = parse(image)
    layout = plan(view)
    start = view.arch.address_map().image.start - (64 << 20)
    if view.arch.plt is None:
        start = 0xFFFF_FFFF_C000_0000
    bases, at = {}, start
    for kind, size in layout.page_sizes().items():
        bases[kind] = at
        at += size
    places = {i: bases.get(p.type, start) + p.offset for i, p in layout.placements.items()}
    link_view(view, layout, places, dict.fromkeys(view.undefined, start), percpu=start)


def floor(view: ElfView) -> int:
    """Read every relocation table once and copy every allocated section once."""
    total = 0
    for table in view.tables:
        section = table.section
        records = np.frombuffer(view.data, RELA, table.records.size, section.offset)
        total += int(records["offset"].max(initial=0) ^ records["addend"].max(initial=0))
    copies = [
        bytes(view.contents(section))
        for section in view.sections
        if section.allocated and section.type != SHT_NOBITS
    ]
    return total + len(copies)


def main() -> None:
    """Print one line per module."""
    files = [Path(word) for word in sys.argv[1:]]
    if not files:
        files = [path(arch.name, name) for arch in archs() for name in names()]
    print(f"{'module':28} {'arch':8} {'relocations':>11} {'ms':>8} {'floor ms':>8} {'ratio':>7}")
    for file in files:
        image = read_module(file)
        view = parse(image, file.name)
        relocations = sum(table.records.size for table in view.tables)
        runs = 5 if relocations > 10_000 else 50
        mine, least = timed(lambda i=image: ours(i), runs), timed(lambda v=view: floor(v), runs)
        print(
            f"{file.name:28} {view.arch.name:8} {relocations:11} {mine:8.2f} {least:8.2f} "
            f"{mine / least:7.1f}"
        )


if __name__ == "__main__":
    main()
