# SPDX-License-Identifier: GPL-2.0-or-later
"""The way to the terminal: names come from files, and files may be hostile.

All that a command shows goes through here, and comes out as text and nothing else: what could
move a cursor, change a title, forge a line or turn text around is escaped, and what looks
like markup is shown as it stands. Nobody has to remember to escape anything.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from allocator.errors import printable
from execmem import streams

WIDTH = 80
BAR = 40  # columns
STEP = 0.1  # seconds between two drawings of a bar


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

    def print(self, *objects: Any, **options: Any) -> None:
        """Write above a bar, if there is one."""
        streams.before_writing()
        super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Let the command line decide."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console() -> Terminal:
    """Return where results go: stdout, at most as wide as the terminal, at least readable."""
    found = Terminal(soft_wrap=False)
    return found if found.is_terminal else Terminal(width=WIDTH)


class Meter:
    """One line on stderr that says how far a command is, where that is a terminal.

    Rows that are printed meanwhile stand above it, whole: it is taken away before anything is
    written (`execmem.streams`), and comes back with the next step.
    """

    def __init__(self) -> None:
        self._visible = sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"
        self._began = time.monotonic()
        self._next = 0.0

    def __enter__(self) -> Self:
        streams.on_write(self.hide)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.hide()
        streams.on_write(None)

    def show(self, what: str, done: int, total: int | None = None) -> None:
        """Say what is done, and how much of it; now and then this is drawn."""
        now = time.monotonic()
        if not self._visible or now < self._next:
            return
        self._next = now + STEP
        width = shutil.get_terminal_size((WIDTH, 24)).columns - 1
        passed = f"{int(now - self._began) // 60}:{int(now - self._began) % 60:02}"
        count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        parts = [printable(what), count, passed]
        room = min(BAR, width - len("  ".join(parts)) - 2)
        if total and room > 3:
            full = min(room, room * done // total)
            parts.insert(1, "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * full + " " * (room - full))
        sys.stdout.flush()
        self._write(f"\r{'  '.join(parts)[:width]}\x1b[K")

    def hide(self) -> None:
        """Take the line away, and with it what a terminal shows of Ctrl-C."""
        if self._visible:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()
