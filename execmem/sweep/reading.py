# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files a fenced worker of a sweep may read, and how it gets the others: it is sent them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from allocator.errors import ExecmemError
from execmem.sweep.job import Options
from execmem.sweep.tasks import Task
from execmem.worker.reading import files_of_design, files_of_kernel, trees_of


def readable(options: Options, files: Iterable[Path] = ()) -> tuple[Path, ...]:
    """Return what the workers of a sweep read by themselves.

    Parameters
    ----------
    options
        The sweep's.
    files
        What is swept: a booted kernel asks the tree around a module for more.
    """
    found = dict.fromkeys(files_of_design(options.design))
    if options.kernel is not None:
        with suppress(ExecmemError):  # each row says why
            found |= dict.fromkeys(files_of_kernel(options.kernel, modelled=options.modelled))
        if not options.modelled:
            found |= dict.fromkeys(trees_of(files))
    return tuple(found)


def for_worker(task: Task, roots: Iterable[Path]) -> Task:
    """Return a task with the bytes of files that lie below none of some folders."""
    if isinstance(task.module, Path):
        path = task.module.resolve()
        if any(path.is_relative_to(root.resolve()) for root in roots):
            return task
    return task.carried()
