# SPDX-License-Identifier: GPL-2.0-or-later
"""What a demo tells: headings, sentences, tables, lines of output; how it looks is not its job."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

from samples.course.records import Placed


@attrs.frozen
class Heading:
    """The start of a chapter."""

    text: str


@attrs.frozen
class Text:
    """A paragraph."""

    text: str


@attrs.frozen
class Lines:
    """Output or code, line by line, shown as it is."""

    lines: tuple[str, ...]


@attrs.frozen
class Grid:
    """A table: column names and rows of text; `right` names columns aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: str = ""


StoryPart: TypeAlias = Heading | Text | Lines | Grid


@attrs.define
class Story:
    """A demo's result.

    Parameters
    ----------
    facts
        The numbers that the story rests on, for programs and tests.
    lesson
        What it is in the course, which frames it; None: it stands alone.
    """

    name: str
    title: str
    parts: list[StoryPart] = attrs.field(factory=list)
    facts: dict[str, Any] = attrs.field(factory=dict)
    lesson: Placed | None = None

    def framed(self, lesson: Placed) -> Story:
        """Return the story with its lesson's question first, and what to take home at the end."""
        first, *more = lesson.commands()
        parts = [
            Text(f"Question: {lesson.lesson.question}"),
            *self.parts,
            Text(f"Idea: {lesson.lesson.idea}"),
            Lines((f"Try next: {first}", *(f"{'':<10}{each}" for each in more))),
        ]
        return attrs.evolve(self, parts=parts, lesson=lesson)

    def as_json(self) -> dict[str, Any]:
        """Return the facts with name and title, and with the texts of its lesson."""
        told = {"name": self.name, "title": self.title, "facts": self.facts}
        return told if self.lesson is None else {**self.lesson.as_json(), **told}
