# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep on this machine: worker processes, each with one task at a time."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from execmem.sweep.job import OUTCOMES, Job, Options, Row, blank, examine
from execmem.sweep.reading import for_worker, readable
from execmem.sweep.tasks import Task
from execmem.worker.jobs import Worker


def worker(options: Options, job: Job, reads: Iterable[Path]) -> Worker:
    """Return a process that works on one task after the other.

    Parameters
    ----------
    reads
        What it may read, where it is fenced.
    """
    return Worker(
        partial(_call, job, options),
        memory=options.memory,
        seconds=options.seconds + options.grace,
        fenced=options.sandbox != "no",
        whole=options.sandbox == "require",
        readable=reads,
    )


def _call(job: Job, options: Options, task: Task) -> Row:
    return job(task, options)


def answer(found: Worker, task: Task, timeout: float | None = None) -> Row:
    """Return a worker's row for a task, or the row of a task that cost a worker.

    Raises
    ------
    NotFenced
        It was to be fenced entirely, and cannot be here.
    """
    spent = found.spent
    row, reason = found.result(timeout)
    if reason:
        row = blank(task, "fault", reason) | {"seconds": round(spent, 3)}
    elif not _is_row(row, task):
        reason = "the worker's answer is no row: a guest may have spoken for it"
        row = blank(task, "fault", reason) | {"seconds": round(spent, 3)}
    done: Row = row
    fence = found.fence
    done["sandbox"] = None
    if fence is not None:
        done["sandbox"] = "whole" if fence.whole else "partial"
        done["notices"] = [
            *done["notices"],
            *(f"{done['module']}: {_NOT}: {k}" for k in fence.kept),
        ]
    return done


_NOT = "the sandbox does not take away"


def _is_row(row: Any, task: Task) -> bool:
    """Return whether an answer has what everybody expects of the row of a task."""
    if not isinstance(row, dict):
        return False
    expected = blank(task)
    kinds = {key: type(value) for key, value in expected.items() if value is not None}
    lists = ("missing", "notices")
    counts = ("relocation_types", "sizes")
    return (
        row.keys() >= expected.keys()
        and row["file"] == task.file
        and row["outcome"] in OUTCOMES
        and all(isinstance(row[key], kind) for key, kind in kinds.items())
        and all(isinstance(row[key], str | None) for key in ("arch", "error", "models"))
        and all(isinstance(each, str) for key in lists for each in row[key])
        and all(type(each) is int for key in counts for each in row[key].values())
    )


def rows(
    tasks: Iterable[Task],
    options: Options,
    jobs: int | None = None,
    job: Job = examine,
    files: Iterable[Path] = (),
) -> Generator[Row, None, None]:
    """Yield a row for each task as it is done.

    Parameters
    ----------
    tasks
        Taken one by one, no sooner than a worker is free.
    jobs
        Processes at a time; None: one for each CPU that this process may use.
    files
        What is swept, where it is files.
    """
    fenced = options.sandbox != "no"
    reads = readable(options, files) if fenced else ()
    waiting = iter(tasks)
    workers: list[Worker] = []
    busy: dict[Worker, Task] = {}

    def give(free: Worker) -> None:
        task = next(waiting, None)
        if task is None:
            busy.pop(free, None)
        else:
            busy[free] = task
            free.give(for_worker(task, reads) if fenced else task)

    try:
        for _ in range(jobs or len(os.sched_getaffinity(0))):
            workers.append(worker(options, job, reads))  # noqa: PERF401 -- each is ended if a next fails
        for free in workers:
            give(free)
        while busy:
            ready = wait([found.pipe for found in busy], timeout=1.0)
            for found, task in list(busy.items()):
                answered = found.pipe in ready and not found.starts()
                if answered or not found.left:
                    row = answer(found, task, None if answered else 0.0)
                    give(found)
                    yield row
    finally:
        for found in workers:
            found.close()
