# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and bars as HTML and SVG, for notebooks and figures: text only, nothing is imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as html_escape

import attrs

from allocator.errors import printable


def escape(text: str) -> str:
    """Return text as HTML and XML have it; XML has no control characters."""
    return html_escape(printable(text))


# Okabe and Ito's colours: told apart with any colour vision, and in grey by their labels.
COLOURS = {
    "text": "#0072b2",
    "data": "#e69f00",
    "rodata": "#009e73",
    "ro_after_init": "#cc79a7",
    "init": "#56b4e9",
    "kernel": "#7a7a7a",
    "window": "#c9dcec",
    "fallback": "#e6e9ec",
}
WIDTH, LEFT, ROW = 880, 190, 26
_STYLE = (
    "text{fill:#444;font:12px sans-serif}.title{font-size:15px;font-weight:bold}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}}"
)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return an HTML table."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def grouped(rows: Iterable[tuple[str, object, object]]) -> list[tuple[str, int, object, object]]:
    """Return runs of rows that differ in their first cell only: that cell, how many, the others."""
    found: list[tuple[str, int, object, object]] = []
    for first, *others in rows:
        if found and list(found[-1][2:]) == others:
            found[-1] = (found[-1][0], found[-1][1] + 1, *found[-1][2:])
        else:
            found.append((first, 1, others[0], others[1]))
    return found


@attrs.frozen
class Bar:
    """A stretch of addresses [start, end): its label, its colour (of `COLOURS`), a note."""

    label: str
    start: int
    end: int
    colour: str
    note: str = ""


def bars(title: str, found: Sequence[Bar], caption: str = "") -> str:
    """Return an SVG with one row per stretch, all on one scale of addresses."""
    lo, hi = min(bar.start for bar in found), max(bar.end for bar in found)
    scale = (WIDTH - LEFT - 16) / max(hi - lo, 1)
    height = ROW * len(found) + 84
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<text x="8" y="22" class="title">{escape(title)}</text>',
    ]
    for number, bar in enumerate(found):
        x, y = LEFT + (bar.start - lo) * scale, 36 + number * ROW
        width = max((bar.end - bar.start) * scale, 2)
        parts.append(f'<text x="8" y="{y + 14}">{escape(bar.label)}</text>')
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" '
            f'fill="{COLOURS[bar.colour]}"><title>{escape(bar.note)}</title></rect>'
        )
        # Behind the bar where there is room, else in front of it.
        behind = x + width < WIDTH - 260
        at, anchor = (x + width + 6, "start") if behind else (x - 6, "end")
        if x < LEFT + 250 and not behind:
            at, anchor = x + 6, "start"
        parts.append(
            f'<text x="{at:.1f}" y="{y + 14}" text-anchor="{anchor}">{escape(bar.note)}</text>'
        )
    y = 36 + len(found) * ROW + 16
    parts.append(f'<text x="{LEFT}" y="{y}">{lo:#x}</text>')
    parts.append(f'<text x="{WIDTH - 16}" y="{y}" text-anchor="end">{hi:#x}</text>')
    parts.append(f'<text x="8" y="{y + 20}">{escape(caption)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
