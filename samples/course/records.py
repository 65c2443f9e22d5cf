# SPDX-License-Identifier: GPL-2.0-or-later
"""What a course is made of: chapters of lessons, each with a question first and one idea."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Lesson:
    """One idea, shown by something that is computed on the spot.

    Parameters
    ----------
    name
        What `execmem demo` calls it; `main` of the file of that name in `samples` tells it.
    title
        What it shows, in a line.
    question
        What a reader should wonder about before the lesson answers.
    idea
        The answer, in one sentence to take home.
    try_next
        A command to go on with, besides the next lesson's.
    read
        A page of the documentation, from `docs`.
    tasks
        What the tool checks, by name.
    minutes
        How long it takes in a class room.
    """

    name: str
    title: str
    question: str
    idea: str
    try_next: str
    read: str
    tasks: tuple[str, ...] = ()
    minutes: int = 4


@attrs.frozen
class Chapter:
    """Lessons about one thing, in their order."""

    title: str
    about: str
    lessons: tuple[Lesson, ...]


@attrs.frozen
class Placed:
    """A lesson and its place in the course.

    Parameters
    ----------
    number
        Of chapter and lesson: `1.2`.
    chapter
        The title of its chapter.
    following
        The name of the lesson after it; None: it is the last.
    """

    number: str
    chapter: str
    lesson: Lesson
    following: str | None

    def commands(self) -> tuple[str, ...]:
        """Return what to type next: the task, the next lesson, then a command to explore."""
        tasks = [f"execmem course new {name}" for name in self.lesson.tasks]
        more = [f"execmem demo {self.following}"] if self.following else []
        return (*tasks, *more, self.lesson.try_next)

    def as_json(self) -> dict[str, Any]:
        """Return what programs, the web page among them, show of it."""
        return {
            "name": self.lesson.name,
            "title": self.lesson.title,
            "number": self.number,
            "chapter": self.chapter,
            "question": self.lesson.question,
            "idea": self.lesson.idea,
            "tasks": list(self.lesson.tasks),
            "next": list(self.commands()),
            "read": self.lesson.read,
            "minutes": self.lesson.minutes,
        }


def placed(chapters: tuple[Chapter, ...]) -> dict[str, Placed]:
    """Return every lesson with its place, by name, in the order of the course."""
    every = [
        (f"{n}.{m}", chapter.title, lesson)
        for n, chapter in enumerate(chapters, 1)
        for m, lesson in enumerate(chapter.lessons, 1)
    ]
    after = [*(lesson.name for _, _, lesson in every[1:]), None]
    return {
        lesson.name: Placed(number, chapter, lesson, following)
        for (number, chapter, lesson), following in zip(every, after, strict=True)
    }
