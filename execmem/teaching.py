# SPDX-License-Identifier: GPL-2.0-or-later
"""Lessons, the course and its tasks, as a terminal and as JSON show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from execmem.picture import slide
from execmem.report import table
from samples.story import Heading, Lines, Story, Text

WORDS = 24  # letters of what is still shown in a column


def story_document(story: Story) -> dict[str, Any]:
    """Return a lesson as JSON has it: its texts, tables, facts and picture."""
    parts = []
    for part in story.parts:
        kind = type(part).__name__.lower()
        told: dict[str, Any] = {"kind": kind, "lines": [], "columns": [], "rows": []}
        if isinstance(part, Heading | Text):
            told["lines"] = [part.text]
        elif isinstance(part, Lines):
            told["lines"] = list(part.lines)
        else:
            told |= {"columns": list(part.columns), "rows": [list(row) for row in part.rows]}
        parts.append(told)
    drawn = slide(story) if story.lesson is not None else None
    return {**story.as_json(), "parts": parts, "picture": drawn}


def print_course(out: Console, found: Mapping[str, Any]) -> None:
    """Show the lessons by chapter, and those that packages bring."""
    for chapter in [*found["chapters"], {"number": "", "title": "", "about": "Of packages"}]:
        lessons = [one for one in found["demos"] if one["chapter"] == chapter["title"]]
        if not lessons:
            continue
        out.print(f"{chapter['number']} {chapter['title']}".strip() or "Others", style="bold")
        out.print(chapter["about"])
        rows = [(one["number"], one["name"], one["title"]) for one in lessons]
        shown = table(("", "demo", "what it shows"), rows)
        shown.show_header = False
        out.print(shown)
        out.print()
    out.print("A name or a number runs a lesson: execmem demo 1.1")


def print_tasks(out: Console, found: Mapping[str, Any]) -> None:
    """Show the tasks by chapter: what was passed, with which score, beside the best one known."""
    for chapter in found["chapters"]:
        tasks = [one for one in found["tasks"] if one["chapter"] == chapter["title"]]
        out.print(f"{chapter['number']} {chapter['title']}", style="bold")
        rows = []
        for one in tasks:
            done = [(name, each) for name, each in one["archs"].items() if each["passed"]]
            told = ", ".join(
                name
                if each["score"] is None
                else f"{name} with {each['score']:,} {one['unit']}, best known {each['best']:,}"
                for name, each in done
            )
            passed = f" Passed: {told}." if told else ""
            rows.append((one["number"], one["name"], one["title"] + passed))
        shown = table(("", "task", "what to do"), rows)
        shown.show_header = False
        out.print(shown)
        out.print()
    total = sum(len(one["archs"]) for one in found["tasks"])
    done = sum(each["passed"] for one in found["tasks"] for each in one["archs"].values())
    out.print(f"Passed: {done} of {total}, each architecture counted.")
    left = [one for one in found["tasks"] if not any(a["passed"] for a in one["archs"].values())]
    if left:
        out.print(f"Next: execmem demo {left[0]['number']}, execmem course new {left[0]['name']}")


def print_verdict(out: Console, verdict: Mapping[str, Any]) -> None:
    """Show what became of an answer: each thing that is asked, with numbers."""
    head = "passed" if verdict["passed"] else "not yet"
    out.print(f"{verdict['task']} on {verdict['arch']}: {head}", style="bold")
    rows = [
        ("ok" if each["passed"] else "no", each["what"], each["found"], each["wanted"])
        for each in verdict["checks"]
    ]
    if max(map(len, (row[2] for row in rows)), default=0) > WORDS:
        for mark, what, found, wanted in rows:
            out.print(f"{mark}  {what}: {found}")
            if mark == "no":
                out.print(f"    wanted: {wanted}")
    else:
        out.print(table(("", "what", "yours", "wanted"), rows))
    if verdict["passed"] and verdict["score"] is not None:
        best = f"best known: {verdict['best']:,}"
        out.print(f"score: {verdict['score']:,} {verdict['unit']} ({best})")
    if not verdict["passed"]:
        out.print(f"help: execmem course hint {verdict['task']}")


def print_story(out: Console, story: Story) -> None:
    """Show a demo."""
    number = f"{story.lesson.number}  " if story.lesson else ""
    out.print(f"{number}{story.title}", style="bold")
    for part in story.parts:
        out.print()
        if isinstance(part, Heading):
            out.print(part.text, style="bold")
        elif isinstance(part, Text):
            out.print(part.text)
        elif isinstance(part, Lines):
            for line in part.lines:
                out.print(line)
        else:
            out.print(table(part.columns, part.rows, right=part.right))
