# SPDX-License-Identifier: GPL-2.0-or-later
"""Grade answers to the tasks of the course, in a process that can do no harm; keep who passed.

An answer may be Python, whose verdict is what its own process says of it: whoever gives marks
reads the file, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from allocator.errors import ExecmemError, did_you_mean, printable
from allocator.files import open_regular, reason_of, write_file
from allocator.types import MIB
from execmem.documents import EXACT
from execmem.worker.fence import fenced
from execmem.worker.jobs import Worker
from samples.course import CHAPTERS, LESSONS
from samples.course.task import LONGEST, Answer, AnswerError, Task, read
from samples.course.tasks import TASKS

SECONDS, MEMORY = 60.0, 1024 * MIB


def task_of(name: str) -> Task:
    """Return a task; ExecmemError where there is none of this name."""
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise ExecmemError(f"no task {name!r}{did_you_mean(name, TASKS)}; there are {known}")
    return TASKS[name]


def graded(file: str) -> dict[str, Any]:
    """Return the verdict on an answer as JSON has it; what it says runs in this process."""
    try:
        text = _contents(file)
        name, arch, values = read(Path(file).name, text)
        task = task_of(name)
        shown = file if task.suffix == ".py" else Path(file).name
        answer = Answer(shown, text, name, task.arch(arch), values)
        verdict = task.grade(answer)
    except ExecmemError as error:
        return {"refused": str(error)}
    checks = [
        {"what": c.what, "found": c.found, "wanted": c.wanted, "passed": c.passed}
        for c in verdict.checks
    ]
    return {
        "file": Path(file).name,
        "task": name,
        "arch": answer.arch.name,
        "passed": verdict.passed,
        "checks": checks,
        "score": None if verdict.score is None else min(verdict.score, EXACT - 1),
        "best": task.best[answer.arch.name],
        "unit": task.unit,
    }


def _contents(file: str) -> str:
    """Return the text of an answer; AnswerError."""
    name = Path(file).name
    try:
        with open_regular(file) as opened:
            raw = opened.read(LONGEST + 1)
        if len(raw) > LONGEST:
            raise AnswerError(name, f"an answer has at most {LONGEST:,} bytes")
        return raw.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = "no text in UTF-8" if isinstance(error, UnicodeError) else reason_of(error)
        raise AnswerError(name, reason) from None


def check(file: str) -> dict[str, Any]:
    """Return the verdict on an answer, from a process of its own; ExecmemError for none.

    Its process has no network and no files but this one, a minute, and 1 GiB.
    """
    path = str(Path(file).absolute())
    _contents(path)  # what cannot be read needs no process
    here = fenced()
    if here is not None:  # it starts no other, and is one of its own
        return _verdict(file, graded(path), here.kept)
    worker = Worker(graded, memory=MEMORY, seconds=SECONDS, fenced=True, readable=[path])
    try:
        worker.give(path)
        found, reason = worker.result()
        kept = worker.fence.kept if worker.fence is not None else ()
    finally:
        worker.close()
    if reason:
        raise AnswerError(Path(file).name, f"was not graded: {reason}")
    return _verdict(file, found, kept)


def _verdict(file: str, found: Any, kept: Iterable[str]) -> dict[str, Any]:
    """Return what a process says of an answer; ExecmemError where that is no verdict."""
    name = Path(file).name
    if isinstance(found, dict) and isinstance(found.get("refused"), str):
        raise ExecmemError(found["refused"])
    return {**_believed(name, found), "kept": list(kept)}


def _believed(name: str, found: Any) -> dict[str, Any]:
    """Return a verdict that has the form of one: nobody knows who speaks for the process."""
    wrong = AnswerError(name, "its process says what is no verdict")
    try:
        task, score, arch = TASKS[found["task"]], found["score"], found["arch"]
        best = task.best[arch]
        checks = [
            {
                **{key: printable(str(each[key]))[:500] for key in ("what", "found", "wanted")},
                "passed": each["passed"] is True,
            }
            for each in found["checks"]
        ]
    except (KeyError, TypeError):
        raise wrong from None
    if score is not None and (type(score) is not int or not 0 <= score < EXACT):
        raise wrong
    return {
        "file": name,
        "task": task.name,
        "arch": arch,
        "passed": bool(checks) and all(each["passed"] for each in checks),
        "checks": checks,
        "score": score,
        "best": best,
        "unit": task.unit,
    }


# Progress --------------------------------------------------------------------------------------


def progress_file() -> Path:
    """Return where is kept who passed: `execmem/course.json` under XDG_STATE_HOME."""
    base = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state"
    return folder / "execmem" / "course.json"


def progress() -> dict[str, dict[str, int | None]]:
    """Return the best score of each task that was passed, by task and architecture."""
    try:
        found = json.loads(progress_file().read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    passed: dict[str, dict[str, int | None]] = {}
    if not isinstance(found, dict):
        return {}
    for name, task in TASKS.items():
        kept = found.get(name)
        if isinstance(kept, Mapping):
            passed[name] = {
                arch: kept[arch] if type(kept[arch]) is int else None
                for arch in task.best
                if arch in kept
            }
    return {name: scores for name, scores in passed.items() if scores}


def keep(verdict: Mapping[str, Any]) -> str:
    """Remember that a task was passed; return why that cannot be, or nothing."""
    if not verdict["passed"]:
        return ""
    found = progress()
    scores = found.setdefault(verdict["task"], {})
    before, now = scores.get(verdict["arch"]), verdict["score"]
    scores[verdict["arch"]] = now if before is None or now is None else min(before, now)
    file = progress_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(found, indent=1) + "\n")
    except (OSError, ExecmemError) as error:
        why = reason_of(error) if isinstance(error, OSError) else str(error)
        return f"progress is not kept: {why}"
    return ""


def overview() -> dict[str, Any]:
    """Return the tasks by chapter, with what was passed, without computing anything."""
    done = progress()
    return {
        "chapters": _chapters(),
        "tasks": [
            {
                **_place(task),
                "name": task.name,
                "title": task.title,
                "unit": task.unit,
                "archs": {
                    arch.name: {
                        "best": task.best[arch.name],
                        "passed": done.get(task.name, {}).get(arch.name) is not None,
                        "score": done.get(task.name, {}).get(arch.name),
                    }
                    for arch in task.archs
                },
            }
            for task in TASKS.values()
        ],
    }


def _place(task: Task) -> dict[str, str]:
    """Return where in the course a task is."""
    lesson = next(placed for placed in LESSONS.values() if task.name in placed.lesson.tasks)
    return {"lesson": lesson.lesson.name, "number": lesson.number, "chapter": lesson.chapter}


def _chapters() -> list[dict[str, str]]:
    return [
        {"number": str(number), "title": each.title, "about": each.about}
        for number, each in enumerate(CHAPTERS, 1)
    ]


def described(task: Task) -> dict[str, Any]:
    """Return a task as programs, the web page among them, show it."""
    (found,) = [each for each in overview()["tasks"] if each["name"] == task.name]
    for arch in task.archs:
        found["archs"][arch.name] |= {"text": task.text(arch), "template": task.file(arch)}
    return {**found, "file": f"{task.name}{task.suffix}", "hints": list(task.hints)}


def course() -> dict[str, Any]:
    """Return the whole course: chapters, lessons, tasks with what was passed."""
    return {
        "chapters": _chapters(),
        "lessons": [placed.as_json() for placed in LESSONS.values()],
        "tasks": [described(task) for task in TASKS.values()],
    }
