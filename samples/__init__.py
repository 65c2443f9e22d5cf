# SPDX-License-Identifier: GPL-2.0-or-later
"""Demos, one idea each, and the sample modules that they load."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any, get_args

from allocator.errors import ExecmemError, printable
from allocator.plugins import DEMOS as GROUP
from allocator.plugins import bring, installed, origin, said
from samples.course import CHAPTERS, LESSONS
from samples.story import Story, StoryPart

# In the order of the course.
DEMOS: dict[str, str] = {name: placed.lesson.title for name, placed in LESSONS.items()}


ALONE = ("number", "chapter", "question", "idea", "read")  # what a lesson of a package has not


def titles() -> dict[str, str]:
    """Return every lesson and what it shows, ours first; those of packages that fail say why."""
    found = dict(DEMOS)
    for name, point in sorted(installed(GROUP).items()):
        if name not in found:
            try:
                lines = (bring(point).__doc__ or "").strip().splitlines()
                told = printable(lines[0]) if lines else ""
            except ExecmemError as error:
                told = str(error)
            found[name] = f"{told} ({origin(point)})".strip()
    return found


def listing() -> dict[str, Any]:
    """Return the course and what packages bring besides, for programs: chapters, then demos."""
    chapters = [
        {"number": str(number), "title": each.title, "about": each.about}
        for number, each in enumerate(CHAPTERS, 1)
    ]
    alone = dict.fromkeys(ALONE, "")
    demos = [
        LESSONS[name].as_json()
        if name in LESSONS
        else {**alone, "name": name, "title": title, "tasks": [], "next": [], "minutes": 0}
        for name, title in titles().items()
    ]
    return {"chapters": chapters, "demos": demos}


def named(word: str) -> str:
    """Return the name of the lesson that a word stands for: its number in the course, or a name."""
    return next((name for name, placed in LESSONS.items() if placed.number == word), word)


def story_of(name: str) -> Story:
    """Run the lesson called `name` and return what it tells.

    Raises
    ------
    KeyError
        There is none of this name.
    ExecmemError
        The package that brings it raises something, or returns no story.
    """
    if name in DEMOS:
        story: Story = import_module(f"samples.{name.replace('-', '_')}").main()
        return story.framed(LESSONS[name])
    point = installed(GROUP)[name]
    main = bring(point)
    told: object = None
    where = f"{GROUP} {name!r} of {origin(point)}"
    try:
        told = getattr(main, "main", main)()
    except ExecmemError:
        raise
    except (Exception, SystemExit) as error:
        raise ExecmemError(printable(f"{where}: {said(error)}")) from error
    if not isinstance(told, Story):
        raise ExecmemError(printable(f"{where}: returned {type(told).__name__}, no Story"))
    strange = [part for part in told.parts if not isinstance(part, get_args(StoryPart))]
    if strange:
        kind = type(strange[0]).__name__
        raise ExecmemError(printable(f"{where}: a story has no part of type {kind}"))
    try:
        json.dumps(told.as_json())
    except (TypeError, ValueError) as error:
        raise ExecmemError(printable(f"{where}: its facts are no JSON: {error}")) from None
    return told
