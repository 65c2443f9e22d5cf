# SPDX-License-Identifier: GPL-2.0-or-later
"""How `execmem compare --over-time` shows memory at moments of a run, and what operations cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

from allocator.errors import printable
from allocator.types import MIB, size_text
from allocator.workloads import Costs, Moment, OverTime, Spread
from execmem.comparing.compare import DesignRun
from execmem.report import table
from execmem.terminal import WIDTH

if TYPE_CHECKING:
    from rich.console import Console

HEAD = "operations live unused largest pinned by leaves direct window memory".split()
COSTS = ("operation", "how many", "all CPUs", "one CPU", "entries", "bytes", "us")
LEGEND = (
    "operations: done. live: MiB in use. unused: MiB mapped that nobody uses; largest: MiB of its "
    "largest run. pinned: chunks of which less than a sixteenth is in use; by: KiB in use there. "
    "leaves, direct: without the direct map, and of it. window, memory: share of what is free that "
    "is in pieces: not in the window's largest run, or too small for a large leaf."
)
COST_LEGEND = (
    "Of one operation, median / 99th percentile: flushes of all CPUs and of one, entries of page "
    "tables written, bytes written, and microseconds of this host's processor."
)


class Series(NamedTuple):
    """One run as a chart shows it."""

    arch: str
    design: str
    moments: Sequence[Moment]


def watched(runs: Iterable[DesignRun]) -> list[tuple[DesignRun, OverTime]]:
    """Return the runs that were looked at on the way."""
    return [(found, found.over_time) for found in runs if found.over_time is not None]


def series(runs: Iterable[DesignRun]) -> list[Series]:
    """Return what a chart shows of runs."""
    return [Series(run.arch.name, run.design, seen.moments) for run, seen in watched(runs)]


def show(out: Console, runs: Iterable[DesignRun]) -> None:
    """Print a table of moments, and one of costs, for each run."""
    found = watched(runs)
    for run, over_time in found:
        out.print()
        out.print(f"{run.arch.title}, {run.design}, {run.workload.name}", soft_wrap=True)
        out.print()
        rows = [_moment(one) for one in over_time.moments]
        out.print(table(HEAD, rows, right=",".join(HEAD)))
        out.print()
        rows = [_cost(one) for one in over_time.costs()]
        out.print(table(COSTS, rows, right=",".join(COSTS[1:])))
    for legend in (LEGEND, COST_LEGEND) if found else ():
        out.print()
        for line in wrap(legend, WIDTH):
            out.print(line)


def _moment(one: Moment) -> tuple[str, ...]:
    return (
        f"{one.operation:,}",
        *(f"{part / MIB:.1f}" for part in (one.live_bytes, one.free_mapped_bytes)),
        f"{one.largest_free_mapped / MIB:.2f}",
        f"{one.chunks_pinned}",
        f"{one.pinned_by / 1024:.0f}",
        f"{sum(one.leaves.values()):,}",
        f"{sum(one.direct_map.values()):,}",
        f"{one.window_fragmentation:.0%}",
        f"{one.memory_fragmentation:.1%}",
    )


def _cost(one: Costs) -> tuple[str, ...]:
    return (
        one.kind,
        f"{one.operations:,}",
        *(spread(each) for each in one.counted.values()),
        spread(one.microseconds),
    )


def spread(one: Spread) -> str:
    """Return a median and a 99th percentile as tables show them."""
    return f"{one.median:,.0f} / {one.p99:,.0f}"


# Chart -----------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """One measure over time: its title, its value, how a value is written, and the least axis."""

    title: str
    value: Callable[[Moment], float]
    text: Callable[[float], str]
    least: float = 1
    logarithmic: bool = False


def _size(value: float) -> str:
    return size_text(int(value))


PANELS = (
    Panel("Mapped, and used by nobody", lambda m: m.free_mapped_bytes, _size),
    Panel("Chunks pinned by less than a sixteenth", lambda m: m.chunks_pinned, "{:,.0f}".format),
    Panel(
        "Leaves of executable memory (logarithmic)",
        lambda m: sum(m.leaves.values()),
        "{:,.0f}".format,
        logarithmic=True,
    ),
    Panel(
        "Leaves of the direct map (logarithmic)",
        lambda m: sum(m.direct_map.values()),
        "{:,.0f}".format,
        logarithmic=True,
    ),
    Panel("Free module window in pieces", lambda m: m.window_fragmentation, "{:.0%}".format, 0.01),
    Panel(
        "Free memory too small for large leaves",
        lambda m: m.memory_fragmentation,
        "{:.0%}".format,
        0.01,
    ),
)
# Okabe and Ito's, but the yellow one: told apart by everybody, on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
HIGH, WIDE, LEFT, TOP, NAMES, ROW = 90, 260, 70, 30, 110, 150
STYLE = (
    "text{fill:#444;font-family:sans-serif;font-size:11px}.name{font-weight:bold}"
    ".axis{stroke:#999;fill:none}.line{fill:none;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}}"
)


def svg(workload: str, found: Sequence[Series]) -> str:
    """Return an SVG: a row for each measure, a column for each architecture, a line for each design."""
    archs = list(dict.fromkeys(one.arch for one in found))
    designs = list(dict.fromkeys(one.design for one in found))
    colours = dict(zip(designs, cycle(COLOURS), strict=False))
    width = LEFT + (WIDE + NAMES) * len(archs)
    height = ROW * len(PANELS) + 24
    name = escape(printable(f"Memory over time: {workload}"))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{name}</title><style>{STYLE}</style>",
    ]

    def text(x: float, y: float, said: str, more: str = "") -> None:
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(printable(said))}</text>')

    for row, panel in enumerate(PANELS):
        top, bottom = row * ROW + TOP, row * ROW + TOP + HIGH
        text(4, top - 12, panel.title, ' class="name"')
        values = [panel.value(one) for run in found for one in run.moments]
        scale = _logarithm if panel.logarithmic else float
        most = max([panel.least, *values])
        least = min(values, default=0) if panel.logarithmic else 0.0
        room = scale(most) - scale(least) or 1.0
        for shown, y in ((most, top), (least, bottom)):
            text(LEFT - 6, y + 4, panel.text(shown), ' text-anchor="end"')
        for column, arch in enumerate(archs):
            left = LEFT + column * (WIDE + NAMES)
            text(left + WIDE - 4, top - 12, arch, ' text-anchor="end"')
            parts.append(f'<path class="axis" d="M{left} {top}V{bottom}H{left + WIDE}"/>')
            ends: list[tuple[float, str]] = []
            for run in (run for run in found if run.arch == arch):
                last = run.moments[-1].operation or 1
                points = [
                    (
                        left + WIDE * one.operation / last,
                        bottom - HIGH * (scale(panel.value(one)) - scale(least)) / room,
                    )
                    for one in run.moments
                ]
                drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                colour = colours[run.design]
                parts.append(f'<polyline class="line" stroke="{colour}" points="{drawn}"/>')
                ends.append((points[-1][1], run.design))
            for end, design in _apart(ends):
                x = left + WIDE + 6
                parts.append(f'<circle cx="{x}" cy="{end:.1f}" r="3" fill="{colours[design]}"/>')
                text(x + 8, end + 4, design)
            if row == len(PANELS) - 1:
                total = max(run.moments[-1].operation for run in found if run.arch == arch)
                text(left + WIDE, bottom + 16, f"{total:,} operations", ' text-anchor="end"')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _apart(ends: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return the ends of lines with their names a line of text apart, none below its row."""
    placed: list[tuple[float, str]] = []
    for y, design in sorted(ends, reverse=True):
        placed.append((min(y, placed[-1][0] - 13) if placed else y, design))
    return placed


def _logarithm(value: float) -> float:
    return math.log10(1 + value)
