# SPDX-License-Identifier: GPL-2.0-or-later
"""What a demo tells: headings, sentences, tables, lines of output; how it looks is not its job."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs


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
    """

    name: str
    title: str
    parts: list[StoryPart] = attrs.field(factory=list)
    facts: dict[str, Any] = attrs.field(factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the facts with name and title."""
        return {"name": self.name, "title": self.title, "facts": self.facts}
