# SPDX-License-Identifier: GPL-2.0-or-later
"""Which designs no other one beats: what each is best in, and who is better in everything.

Only designs that loaded all there was are compared; one that refuses does less. A design is beaten
where another is no worse in any column and better in one; what is left is the frontier, on which
one column is paid for with another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import wrap
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import attrs

from allocator.errors import printable
from allocator.types import size_text
from allocator.workloads import Measures
from execmem.comparing.compare import DesignRun
from execmem.report import table
from execmem.terminal import WIDTH

if TYPE_CHECKING:
    from rich.console import Console


def _leaves(measures: Measures) -> int:
    return sum(count for sizes in measures.leaves.values() for count in sizes.values())


# Less is better in all of them.
COLUMNS: Mapping[str, Callable[[Measures], int]] = MappingProxyType(
    {
        "plt_slots": lambda m: m.plt_slots,
        "leaves": _leaves,
        "direct_map_splits": lambda m: m.direct_map_splits,
        "tlb_flushes_all": lambda m: m.tlb_flushes_all,
        "tlb_flushes_local": lambda m: m.tlb_flushes_local,
        "padding_bytes": lambda m: m.padding_bytes,
    }
)
LEGEND = (
    "*: no design has less. all CPUs, one CPU: flushes of TLBs. A design is beaten where another has "
    "no more of anything and less of something; the others are on the frontier."
)
HEAD = ("design", "PLT slots", "leaves", "splits", "all CPUs", "one CPU", "padding")


@attrs.frozen(kw_only=True)
class Standing:
    """How one design stands among those that did the same.

    Parameters
    ----------
    values
        What it has in each column of `COLUMNS`; less is better.
    best
        Columns in which no design has less.
    beaten_by
        Designs that are no worse in any column and better in one; none: it is on the frontier.
    """

    arch: str
    workload: str
    design: str
    values: dict[str, int]
    best: tuple[str, ...]
    beaten_by: tuple[str, ...]


def standings(runs: Iterable[DesignRun]) -> list[Standing]:
    """Return how designs stand, by architecture and workload; those that refused stand nowhere."""
    groups: dict[tuple[str, str], dict[str, dict[str, int]]] = {}
    for found in runs:
        if not found.measures.failures:
            key = (found.arch.name, found.workload.name)
            values = {name: value(found.measures) for name, value in COLUMNS.items()}
            groups.setdefault(key, {})[found.design] = values
    return [
        Standing(
            arch=arch,
            workload=workload,
            design=design,
            values=values,
            best=tuple(
                name
                for name in COLUMNS
                if values[name] == min(each[name] for each in designs.values())
            ),
            beaten_by=tuple(name for name, other in designs.items() if _beats(other, values)),
        )
        for (arch, workload), designs in groups.items()
        for design, values in designs.items()
    ]


def _beats(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return one != other and all(one[name] <= other[name] for name in COLUMNS)


def as_json(found: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return standings as the JSON document shows them."""
    return [attrs.asdict(one) for one in found]


def show(out: Console, found: Sequence[Standing]) -> None:
    """Print a table for each architecture; what is best in a column has a star."""
    groups: dict[tuple[str, str], list[Standing]] = {}
    for one in found:
        groups.setdefault((one.arch, one.workload), []).append(one)
    for (arch, workload), group in groups.items():
        out.print(f"{arch}, {workload}", soft_wrap=True)
        out.print()
        out.print(table(HEAD, map(_row, group), right=",".join(HEAD[1:])))
        out.print()
        for line in wrap(_told(group), WIDTH):
            out.print(line)
        out.print()
    for line in wrap(LEGEND, WIDTH):
        out.print(line)


def _row(one: Standing) -> tuple[str, ...]:
    def cell(name: str) -> str:
        value = one.values[name]
        text = size_text(value) if name == "padding_bytes" else f"{value:,}"
        return text + ("*" if name in one.best else "")

    return (one.design, *map(cell, COLUMNS))


def _told(group: Sequence[Standing]) -> str:
    on = ", ".join(one.design for one in group if not one.beaten_by)
    off = ", ".join(f"{one.design} (by {one.beaten_by[-1]})" for one in group if one.beaten_by)
    return f"On the frontier: {on}." + (f" Beaten: {off}." if off else "")


# Chart -----------------------------------------------------------------------------------------

SIDE, LEFT, TOP, GAP = 240, 64, 40, 110
STYLE = (
    "text{fill:#444;font-family:sans-serif;font-size:11px}.axis{stroke:#999}"
    ".on{fill:#2b6cb0}.off{fill:none;stroke:#2b6cb0}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}}"
)


def svg(found: Sequence[Standing]) -> str:
    """Return an SVG: flushes of one CPU over those of all, a dot a design, full on the frontier.

    Both axes are logarithmic, of one more than the count. One square an architecture and workload.
    """
    groups: dict[tuple[str, str], list[Standing]] = {}
    for one in found:
        groups.setdefault((one.arch, one.workload), []).append(one)
    width = LEFT + (SIDE + GAP) * max(1, len(groups))
    height = TOP + SIDE + 48
    top = max((_log(v) for one in found for v in _flushes(one)), default=1.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>Flushes of TLBs, by design</title><style>{STYLE}</style>",
    ]

    def text(x: float, y: float, said: str) -> None:
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}">{escape(printable(said))}</text>')

    for index, ((arch, workload), group) in enumerate(groups.items()):
        left, bottom = LEFT + index * (SIDE + GAP), TOP + SIDE
        text(left, TOP - 16, f"{arch}, {workload}")
        parts.append(f'<path class="axis" fill="none" d="M{left} {TOP}V{bottom}H{left + SIDE}"/>')
        text(left + SIDE / 3, bottom + 32, "of all CPUs")
        if not index:
            text(4, TOP - 2, "of one CPU")
        for power in range(int(top) + 1):
            at = SIDE * power / top
            text(left + at - 4, bottom + 16, f"{10**power:,}")
            if not index:
                text(LEFT - 48, bottom - at + 4, f"{10**power:,}")
        lines: dict[tuple[float, float], list[Standing]] = {}
        for one in group:
            broad, local = (SIDE * _log(value) / top for value in _flushes(one))
            lines.setdefault((round(broad), round(local)), []).append(one)
        for (broad, local), same in lines.items():
            x, y = left + broad, bottom - local
            kind = "on" if any(not one.beaten_by for one in same) else "off"
            parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="4"/>')
            for number, one in enumerate(same):
                text(x + 7, y - 3 - 11 * number, one.design)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _flushes(one: Standing) -> tuple[int, int]:
    return one.values["tlb_flushes_all"], one.values["tlb_flushes_local"]


def _log(value: int) -> float:
    return math.log10(1 + value)
