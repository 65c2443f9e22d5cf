# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep on a cluster: dask.distributed hands tasks to its workers, this file keeps order.

A worker that goes away with its machine is the scheduler's business: its tasks run elsewhere. No more
tasks are under way than keep the cluster busy, so neither side holds many modules in memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import Any

from allocator.errors import ExecmemError
from execmem.sweep.job import Job, Options, Row, blank, examine
from execmem.sweep.local import answer, worker
from execmem.sweep.reading import readable
from execmem.sweep.tasks import Task
from execmem.worker.cluster import close, connected, drop, held

DEPTH = 2  # tasks under way for each thread of the cluster


def _work(task: Task, options: Options, job: Job) -> Row:
    """Work on a task in this thread's process; runs in a worker of the cluster."""
    process = held(
        (options, job),
        lambda: worker(options, job, readable(options) if options.sandbox != "no" else ()),
    )
    process.give(task)
    try:
        return answer(process, task)
    except ExecmemError:  # it did not start
        drop()
        raise


def rows(
    tasks: Iterable[Task], options: Options, address: str, job: Job = examine
) -> Generator[Row, None, None]:
    """Yield a row for each task as it is done.

    Parameters
    ----------
    tasks
        Taken one by one, no sooner than the cluster can use them.
    address
        The scheduler's, such as `tcp://10.0.0.1:8786`.

    Raises
    ------
    ExecmemError
        No cluster answers there, or `dask.distributed` is not installed.
    """
    with connected(address) as client:
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        under_way: dict[str, Task] = {}
        done = as_completed(loop=client.loop)

        def finished() -> Row:
            future: Any = next(done)
            task = under_way.pop(future.key)
            try:
                row: Row = future.result()
            except KilledWorker as error:
                row = blank(task, "fault", f"workers of the cluster died: {error}")
            future.release()
            return row

        for task in tasks:
            future = client.submit(_work, task.carried(), options, job, pure=False)
            under_way[future.key] = Task(task.file, None)
            done.add(future)
            while len(under_way) >= DEPTH * max(1, sum(client.nthreads().values())):
                yield finished()
        while under_way:
            yield finished()
        with suppress(OSError):  # a worker that is gone has no processes left
            client.run(close, on_error="ignore")
