# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep on a cluster: dask.distributed hands tasks to its workers, this file keeps order.

In a worker of the cluster each thread has a process of its own (`execmem.worker.jobs`), so
that a module cannot take a worker with it, and limits are the same as here. A worker that
goes away with its machine is the scheduler's business: its tasks run elsewhere. No more tasks
are under way than keep the cluster busy, so neither side holds many modules in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import Any

from allocator.errors import ExecmemError
from execmem.sweep.job import Job, Options, Row, blank, examine
from execmem.sweep.local import answer, worker
from execmem.sweep.reading import readable
from execmem.sweep.tasks import Task
from execmem.worker.jobs import Worker

DEPTH = 2  # tasks under way for each thread of the cluster
CONNECT = 30.0  # seconds in which scheduler and first worker must be there

_workers: dict[int, tuple[Options, Job, Worker]] = {}  # by thread, in a worker of the cluster


def _work(task: Task, options: Options, job: Job) -> Row:
    """Work on a task in this thread's process; runs in a worker of the cluster."""
    thread = threading.get_ident()
    held = _workers.get(thread)
    if held is None or held[:2] != (options, job):
        if held is not None:
            held[2].close()
        reads = readable(options) if options.sandbox != "no" else ()
        held = _workers[thread] = (options, job, worker(options, job, reads))
    held[2].give(task)
    try:
        return answer(held[2], task)
    except ExecmemError:  # it did not start
        _workers.pop(thread)[2].close()
        raise


def _close() -> None:
    """End the processes of a worker of the cluster."""
    while _workers:
        _workers.popitem()[1][2].close()


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
    try:
        import dask
        from distributed import Client, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError:
        reason = "a cluster needs dask.distributed: pip install 'execmem[cluster]'"
        raise ExecmemError(reason) from None
    # Modules travel in tasks, so that a task can be sent again when its worker is lost.
    quiet = dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GiB"})
    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
        client.wait_for_workers(1, timeout=CONNECT)
    except (OSError, ValueError) as error:
        raise ExecmemError(f"{address}: no cluster answers: {error}") from None
    with quiet, client:
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
            client.run(_close, on_error="ignore")
