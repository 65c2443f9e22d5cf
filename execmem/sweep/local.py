# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep on this machine: worker processes, each with one task at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.connection import wait

from execmem.sweep.job import Job, Options, Row, blank, examine
from execmem.sweep.tasks import Task
from execmem.worker.jobs import Worker


def worker(options: Options, job: Job) -> Worker:
    """Return a process that works on one task after the other."""
    return Worker(
        partial(_call, job, options),
        memory=options.memory,
        seconds=options.seconds + options.grace,
    )


def _call(job: Job, options: Options, task: Task) -> Row:
    return job(task, options)


def answer(found: Worker, task: Task, timeout: float | None = None) -> Row:
    """Return a worker's row for a task, or the row of a task that cost a worker."""
    spent = found.spent
    row, reason = found.result(timeout)
    if row is None:
        row = blank(task, "fault", reason) | {"seconds": round(spent, 3)}
    done: Row = row
    return done


def rows(
    tasks: Iterable[Task], options: Options, jobs: int | None = None, job: Job = examine
) -> Iterator[Row]:
    """Yield a row for each task as it is done.

    Parameters
    ----------
    tasks
        Taken one by one, no sooner than a worker is free.
    jobs
        Processes at a time; None: one for each CPU that this process may use.
    """
    waiting = iter(tasks)
    workers: list[Worker] = []
    busy: dict[Worker, Task] = {}

    def give(free: Worker) -> None:
        task = next(waiting, None)
        if task is None:
            busy.pop(free, None)
        else:
            busy[free] = task
            free.give(task)

    try:
        for _ in range(jobs or len(os.sched_getaffinity(0))):
            workers.append(worker(options, job))  # noqa: PERF401 -- each is ended if a next fails
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
