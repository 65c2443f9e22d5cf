# SPDX-License-Identifier: GPL-2.0-or-later
"""The address spaces to scale: where modules may live, and how far a call reaches.

`python -m execmem.figure FILE` writes the picture that the README shows; everything in it
comes from the architectures' records.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from allocator.errors import ExecmemError, printable
from allocator.files import replacing, write_file
from allocator.markup import COLOURS
from allocator.types import GIB, ExecmemType, size_text
from archs import Arch, archs

if TYPE_CHECKING:
    from machine.machine import ModelledMachine
    from machine.module import Module

WIDTH, LEFT, ROW = 880, 96, 120
SPAN = 7.4 * GIB  # what the width shows, centred on the start of the kernel image
SPACE_COLOURS = {"image": "#8a6d3b", "window": "#2b6cb0", "fallback": "#bcd4ec", "reach": "#b83280"}

STYLE = (
    "text{fill:#444;font-family:sans-serif}.name{font-size:15px;font-weight:bold}"
    ".note{font-size:12px}@media(prefers-color-scheme:dark){text{fill:#ccc}}"
)


def _x(delta: float) -> float:
    """Return the horizontal place of a distance from the start of the kernel image."""
    return LEFT + (WIDTH - LEFT - 16) * min(max(delta / SPAN + 0.5, 0), 1)


def _bar(colour: str, lo: float, hi: float, y: int, title: str) -> str:
    x, width = _x(lo), max(_x(hi) - _x(lo), 1.5)
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="22" fill="{SPACE_COLOURS[colour]}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _row(arch: Arch, top: int) -> list[str]:
    here = arch.loads.address_map()
    base = here.image.start
    text = here.range_of(ExecmemType.MODULE_TEXT)
    bars = [(text.fallback, "fallback"), (text.range, "window"), (here.image, "image")]
    y = top + 62
    parts = [f'<text x="8" y="{y + 16}" class="name">{escape(arch.title)}</text>']
    for interval, kind in bars:
        if interval is not None:
            lo, hi = interval.start - base, interval.end - base
            title = f"{kind}: {interval}, {size_text(interval.size)}"
            parts.append(_bar(kind, lo, hi, y, title))
    note = f"window {size_text(text.range.size)}"
    if (call := arch.link.call) is not None:
        # The arc stands over the middle of the window: a call from there gets to its feet.
        span = call.span((text.range.start + text.range.end) // 2)
        left, right = _x(span.start - base), _x(span.end - base)
        radius = (right - left) / 2
        parts.append(
            f'<path d="M{left:.1f},{y} A{radius:.1f},{min(radius, 54):.1f} 0 0 1 {right:.1f},{y}" '
            f'fill="none" stroke="{SPACE_COLOURS["reach"]}" stroke-width="2"/>'
        )
        reach = call.reach if call.region is None else call.text()
        note += f"; {call.mnemonic} reaches {reach}"
    parts.append(f'<text x="{LEFT}" y="{y + 38}" class="note">{escape(note)}</text>')
    return parts


def address_spaces() -> str:
    """Return an SVG of every architecture's module window, kernel image and call reach."""
    known = [arch for arch in archs() if arch.load is not None]
    height = ROW * len(known) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Where modules may live, to scale around the kernel image</title>",
        f"<style>{STYLE}</style>",
    ]
    for number, arch in enumerate(known):
        parts += _row(arch, number * ROW)
    y = ROW * len(known) + 28
    for number, (kind, label) in enumerate(
        (
            ("image", "kernel image"),
            ("window", "window for module text"),
            ("fallback", "fallback window (PLT)"),
            ("reach", "reach from mid-window"),
        )
    ):
        x = LEFT + number * 196
        colour = SPACE_COLOURS[kind]
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="{y}" class="note">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def figure_class(path: str | Path) -> Any:
    """Return matplotlib's Figure; ExecmemError without it (extra `plots`)."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ExecmemError(
            f"{path}: a PNG needs matplotlib: pip install 'execmem[plots]', or use --svg"
        ) from None
    return Figure


def write_png(path: str | Path, figure: Any) -> None:
    """Write matplotlib's figure; ExecmemError where that fails."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)


def save(
    machine: ModelledMachine, modules: Sequence[Module], *, svg: str | None, png: str | None
) -> None:
    """Write the address map of a machine's modules.

    Raises
    ------
    ExecmemError
        A file cannot be written, or matplotlib (extra `plots`) is missing for a PNG.
    """
    from machine import drawing

    if svg is not None:
        write_file(svg, drawing.svg(machine, modules))
    if png is None:
        return
    plot = figure_class(png)(figsize=(11, 2 + 0.3 * len(modules) * 4), layout="constrained")
    axis = plot.subplots()
    found = drawing.address_map(machine, modules)
    lo = min(bar.start for bar in found)
    for number, bar in enumerate(found):
        width = max((bar.end - bar.start) / GIB, 0.004)
        axis.barh(number, width, left=(bar.start - lo) / GIB, color=COLOURS[bar.colour])
    labels = [printable(f"{bar.label}  {bar.note}") for bar in found]
    axis.set_yticks(range(len(found)), labels, parse_math=False)
    axis.invert_yaxis()
    axis.set_xlabel(f"GiB from {lo:#x}")
    names = ", ".join(module.name for module in modules)
    title = printable(f"{names} on {machine.arch.title}, design {machine.design}")
    axis.set_title(title, parse_math=False)
    write_png(png, plot)


if __name__ == "__main__":
    write_file(sys.argv[1], address_spaces())
