# SPDX-License-Identifier: GPL-2.0-or-later
"""Many modules, each by itself: parse, link, load, and on request init, in parallel.

Tasks (`tasks`) go to worker processes (`worker`), here (`local`) or on a cluster (`cluster`);
what one does with a module is in `job`. Rows are kept on disk as they are done (`journal`)
and given out in the order of the modules, whatever the order in which workers finish, so that
two sweeps of the same files differ in nothing but seconds: with one process or many, here or
there, in one go or interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from execmem.sweep import cluster, local
from execmem.sweep.job import Job as Job
from execmem.sweep.job import Options as Options
from execmem.sweep.job import Row as Row
from execmem.sweep.job import examine as examine
from execmem.sweep.journal import Journal as Journal
from execmem.sweep.summary import Summary as Summary
from execmem.sweep.tasks import Task as Task
from execmem.sweep.tasks import files_under as files_under
from execmem.sweep.tasks import tasks_for as tasks_for


def sweep(
    tasks: Iterable[Task],
    options: Options,
    journal: Journal,
    *,
    jobs: int | None = None,
    scheduler: str | None = None,
    job: Job = examine,
    files: Iterable[Path] = (),
) -> Generator[Row, None, None]:
    """Yield one row for each task, in their order; those in the journal are not done again.

    Parameters
    ----------
    jobs
        Processes at a time on this machine; None: one for each CPU that may be used.
    scheduler
        Address of a dask scheduler, whose cluster works instead of this machine.
    job
        What is done with each task.
    files
        What is swept, where it is files: fenced workers of this machine read the trees around
        them for a booted kernel. Whatever else a task needs they are sent.
    """
    order: deque[str] = deque()
    known: set[str] = set()

    def fresh() -> Iterator[Task]:
        for task in tasks:
            if task.file in known:
                continue
            known.add(task.file)
            order.append(task.file)
            if task.file not in journal:
                yield task

    def ready() -> Iterator[Row]:
        while order and order[0] in journal:
            yield journal.row(order.popleft())

    done = (
        partial(local.rows, jobs=jobs, files=files)
        if scheduler is None
        else partial(cluster.rows, address=scheduler)
    )
    with closing(done(fresh(), options, job=job)) as found:  # not when its memory is freed
        for row in found:
            journal.add(row)
            yield from ready()
    yield from ready()
