# SPDX-License-Identifier: GPL-2.0-or-later
"""A cluster of dask: how it is come to, and processes of its workers' threads.

In a worker of the cluster each thread has a process of its own (`execmem.worker.jobs`), so that a guest
cannot take a worker with it, and limits are the same as here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from allocator.errors import ExecmemError
from execmem.worker.jobs import Worker

CONNECT = 30.0  # seconds in which scheduler and first worker must be there

_workers: dict[int, tuple[Any, Worker]] = {}  # by thread, in a worker of the cluster


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a scheduler while this lasts; the client.

    Parameters
    ----------
    address
        The scheduler's, such as `tcp://10.0.0.1:8786`.

    Raises
    ------
    ExecmemError
        No cluster answers there, or `dask.distributed` is not installed.
    """
    try:
        import dask
        from distributed import Client
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
        yield client


def held(key: Any, make: Callable[[], Worker]) -> Worker:
    """Return this thread's process; one for something else ends. Runs in a worker of the cluster."""
    thread = threading.get_ident()
    found = _workers.get(thread)
    if found is None or found[0] != key:
        if found is not None:
            found[1].close()
        found = _workers[thread] = (key, make())
    return found[1]


def drop() -> None:
    """End this thread's process."""
    _workers.pop(threading.get_ident())[1].close()


def close() -> None:
    """End the processes of a worker of the cluster."""
    while _workers:
        _workers.popitem()[1][1].close()
