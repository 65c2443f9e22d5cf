# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzzing on a cluster: parts of an epoch go to dask.distributed, and come back in any order.

What an epoch makes follows from the corpus and the seed, so it does not matter which machine works at
what, or whether one is lost with its part, which is done elsewhere then. The files of a target (module,
kernel, harness) are read where they are worked with, by the same paths.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Self

import attrs

from execmem.fuzzing.campaign import Part
from execmem.fuzzing.engine import Done
from execmem.fuzzing.mutate import Mutator
from execmem.fuzzing.setting import Setting
from execmem.fuzzing.workers import read, worker
from execmem.worker.cluster import close, connected, held


def _work(setting: Setting, sandbox: str, part: Part, left: float | None) -> tuple[Any, str]:
    """Do a part in this thread's process, in what is left of time; runs in a worker of the cluster."""
    if left is not None:  # clocks of other machines are others
        part = attrs.evolve(part, until=time.monotonic() + left)
    process = held((setting, sandbox), lambda: worker(setting, sandbox))
    process.give(part)
    return process.result()


class Cluster:
    """A cluster that fuzzes; a context manager.

    Parameters
    ----------
    setting, jobs, mutator, sandbox
        As of `Workers`; `jobs` parts are under way at a time.
    address
        The scheduler's.

    Raises
    ------
    ExecmemError
        No cluster answers there, or `dask.distributed` is not installed.
    """

    def __init__(
        self, setting: Setting, jobs: int, mutator: Mutator, sandbox: str, *, address: str
    ) -> None:
        self.size, self.mutator = jobs, mutator
        self._setting, self._sandbox, self._address = setting, sandbox, address
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._client = self._stack.enter_context(connected(self._address))
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(Exception):  # a worker that is gone has no processes left
            self._client.run(close, on_error="ignore")
        self._stack.__exit__(None, None, None)

    def do(self, parts: Sequence[Part]) -> Iterator[tuple[int, Done | str]]:
        """Yield what came of each part, as it is done."""
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        futures = {}
        for number, part in enumerate(parts):
            left = None if part.until is None else part.until - time.monotonic()
            job = self._setting, self._sandbox, part, left
            futures[self._client.submit(_work, *job, pure=False)] = number
        for future in as_completed(list(futures), loop=self._client.loop):
            number = futures[future]
            try:
                found, reason = future.result()
            except KilledWorker as error:
                found, reason = None, f"workers of the cluster died: {error}"
            yield number, reason or read(found, parts[number])
