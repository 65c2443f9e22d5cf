# SPDX-License-Identifier: GPL-2.0-or-later
"""A lesson's picture as an SVG of a slide: question, picture, idea; nothing is fetched for it.

`python -m execmem.picture FOLDER` writes one for each lesson of the course.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from textwrap import wrap

from allocator.errors import ExecmemError
from allocator.files import write_file
from allocator.markup import escape
from samples import DEMOS, story_of
from samples.course.pictures import Bars, Cell, Lanes, Picture, Tone, picture
from samples.story import Grid, Story

WIDTH, HEIGHT, LEFT, EDGE = 960, 540, 270, 32
NOTE, SMALL = 17, 14  # sizes of letters
TOP, BOTTOM = 132, 470  # where the picture lies on the slide
LETTER = 0.56  # of the size, as wide as a letter is on the average

# Okabe and Ito's colours: told apart with any colour vision; each has words beside it, too.
FILLS = {Tone.PLAIN: "#56b4e9", Tone.GOOD: "#009e73", Tone.BAD: "#d55e00", Tone.REST: "#e69f00"}
MARKS = {Tone.PLAIN: "", Tone.GOOD: "✓ ", Tone.BAD: "✗ ", Tone.REST: ""}
STYLE = (
    "text{fill:#222;font-family:sans-serif}.head{font-size:24px;font-weight:bold}"
    ".ask{font-size:18px}.note{font-size:17px}.small{font-size:14px}.axis{stroke:#888}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}}"
)


def slide(story: Story) -> str:
    """Return an SVG of a lesson; ExecmemError for a story that is no lesson of the course."""
    if story.lesson is None:
        raise ExecmemError(f"{story.name}: only lessons of the course have a picture")
    lesson = story.lesson.lesson
    grids = [part for part in story.parts if isinstance(part, Grid)]
    columns, rows = (grids[0].columns, grids[0].rows) if grids else ((), ())
    found = picture(story.name, story.facts, columns, rows)
    title = f"{story.lesson.number}  {story.title}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}: {escape(lesson.question)}</title>",
        f"<desc>{escape(described(found))} {escape(lesson.idea)}</desc>",
        f"<style>{STYLE}</style>",
        *_lines(title, 44, "head", 24),
        *_lines(lesson.question, 78, "ask", 18),
        *(_bars(found) if isinstance(found, Bars) else _lanes(found)),
        *_lines(lesson.idea, 500, "ask", 18),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def described(found: Picture) -> str:
    """Return a picture in words, for whoever cannot see it."""
    if isinstance(found, Bars):
        limit = f" The line is at {found.limit[1]}." if found.limit is not None else ""
        told = "; ".join(f"{bar.label}: {bar.note}" for bar in found.bars)
        return f"{found.what}. {told}.{limit}"
    rows = []
    for name, cells in found.rows:
        pairs = zip(found.heads, cells, strict=False)
        rows.append(f"{name}: " + ", ".join(f"{head or 'then'} {c.text}" for head, c in pairs))
    return "; ".join(rows) + "."


def _lines(text: str, y: int, kind: str, size: int) -> list[str]:
    """Return a text in as many lines as it takes."""
    found = wrap(text, int((WIDTH - 2 * EDGE) / (size * LETTER)))
    return [
        f'<text x="{EDGE}" y="{y + n * round(size * 1.3)}" class="{kind}">{escape(line)}</text>'
        for n, line in enumerate(found)
    ]


def _length(value: float, found: Bars, most: float) -> float:
    """Return which share of the width a value has."""
    if not found.logarithmic:
        return value / most
    least = min((bar.value for bar in found.bars if bar.value > 0), default=1.0)
    low = math.log(least) - 0.15 * (math.log(most) - math.log(least) or 1)
    return max(0.0, (math.log(value) - low) / (math.log(most) - low)) if value > 0 else 0.0


def _bars(found: Bars) -> list[str]:
    limit = found.limit[0] if found.limit is not None else 0
    most = max([bar.value for bar in found.bars] + [limit]) or 1
    room = WIDTH - LEFT - EDGE
    step = min(64, (BOTTOM - TOP - 24) // len(found.bars))
    parts = []
    for number, bar in enumerate(found.bars):
        y, long = TOP + number * step, _length(bar.value, found, most) * room
        high = step - 8
        middle = y + high / 2 + 6
        parts.append(
            f'<text x="{LEFT - 10}" y="{middle:.0f}" class="note" text-anchor="end">'
            f"{escape(bar.label)}</text>"
        )
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{max(long, 1):.1f}" height="{high}" '
            f'fill="{FILLS[bar.tone]}" fill-opacity="0.55"/>'
        )
        note = f"{MARKS[bar.tone]}{bar.note}"
        inside = long + 8 + len(note) * NOTE * LETTER > room
        x, anchor = (LEFT + max(long, 0) - 8, "end") if inside else (LEFT + long + 8, "start")
        if inside and len(note) * NOTE * LETTER > long:
            x, anchor = LEFT + 8, "start"
        parts.append(
            f'<text x="{x:.1f}" y="{middle:.0f}" class="note" text-anchor="{anchor}">'
            f"{escape(note)}</text>"
        )
    end = TOP + len(found.bars) * step
    if found.limit is not None:
        x = LEFT + _length(limit, found, most) * room
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{end}" class="axis" '
            'stroke-dasharray="5 4"/>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{end + 16}" class="small" text-anchor="middle">'
            f"{escape(found.limit[1])}</text>"
        )
    scale = ", on a logarithmic scale" if found.logarithmic else ""
    parts.append(
        f'<text x="{LEFT}" y="{end + 16}" class="small">{escape(found.what)}{scale}</text>'
    )
    return parts


def _lanes(found: Lanes) -> list[str]:
    columns = max(len(cells) for _, cells in found.rows)
    wide = (WIDTH - LEFT - EDGE) / columns
    step = min(76, (BOTTOM - TOP - 18) // len(found.rows))
    parts = [
        f'<text x="{LEFT + n * wide + 6:.1f}" y="{TOP - 8}" class="small">{escape(head)}</text>'
        for n, head in enumerate(found.heads)
    ]
    for number, (name, cells) in enumerate(found.rows):
        y = TOP + number * step
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + step / 2 + 2:.0f}" class="note" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        for place, cell in enumerate(cells):
            parts += _cell(cell, LEFT + place * wide, y, wide - 6, step - 8)
    return parts


def _cell(cell: Cell, x: float, y: float, wide: float, high: float) -> list[str]:
    text = f"{MARKS[cell.tone]}{cell.text}"
    small = len(text) * NOTE * LETTER > wide - 8
    size = SMALL if small else NOTE
    lines = wrap(text, max(4, int((wide - 8) / (size * LETTER))))[:2] or [""]
    top = y + high / 2 + 5 - (len(lines) - 1) * size / 2
    return [
        (
            f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{high}" rx="3" '
            f'fill="{FILLS[cell.tone]}" fill-opacity="0.35"/>'
        ),
        *(
            f'<text x="{x + 6:.1f}" y="{top + n * (size + 1):.0f}" '
            f'class="{"small" if small else "note"}">{escape(line)}</text>'
            for n, line in enumerate(lines)
        ),
    ]


if __name__ == "__main__":
    for each in DEMOS:
        write_file(Path(sys.argv[1]) / f"{each}.svg", slide(story_of(each)))
