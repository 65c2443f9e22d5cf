# SPDX-License-Identifier: GPL-2.0-or-later
"""The way to the terminal: names come from files, and files may be hostile.

All that a command shows goes through here, and comes out as text and nothing else: what could
move a cursor, change a title, forge a line or turn text around is escaped, and what looks
like markup is shown as it stands. Nobody has to remember to escape anything.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from allocator.errors import printable

WIDTH = 80


class Terminal(Console):
    """A console on which text is text: one string is one line, whatever is in it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as it is shown; so before it is measured."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is written; text that came another way is escaped here."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text == "\n" or text.isprintable():
                yield segment
            else:
                lines = map(printable, text.split("\n"))
                yield Segment("\n".join(lines), segment.style)

    def on_broken_pipe(self) -> None:
        """Let the command line decide."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console() -> Terminal:
    """Return where results go: stdout, at most as wide as the terminal, at least readable."""
    found = Terminal(soft_wrap=False)
    return found if found.is_terminal else Terminal(width=WIDTH)


def progress(*columns: ProgressColumn) -> Progress:
    """Return a progress bar on stderr, which is seen only where that is a terminal."""
    errors = Terminal(stderr=True)
    shown = columns or (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*shown, console=errors, transient=True, disable=not errors.is_terminal)
