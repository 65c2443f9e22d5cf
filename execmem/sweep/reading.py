# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files a fenced worker of a sweep may read, and how it gets the others: it is sent them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from allocator.designs import choose
from execmem.sweep.job import Options
from execmem.sweep.tasks import Task
from kernels.booted import cache
from loader.kernel.find import find_kernel


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
        found |= dict.fromkeys(files_of(options.kernel))
        if not options.modelled:
            found[cache.folder()] = None
            found |= dict.fromkeys(_trees(files))
    return tuple(found)


def files_of_design(name: str) -> Iterator[Path]:
    """Yield the Python files of a design, and those beside it, where it is none of ours."""
    chosen = choose(name)
    file = getattr(sys.modules.get(chosen.design.__module__), "__file__", None)
    if chosen.outside and file is not None:
        yield from Path(file).parent.glob("*.py")


def files_of(kernel: str) -> list[Path]:
    """Return the files that reading a kernel reads; BadKernel where there is none."""
    files = find_kernel(kernel)
    return [Path(kernel), *map(Path, files.sources.values()), *filter(None, [files.vmlinux])]


def _trees(files: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders of the trees that files lie in; one that has no such folder is none."""
    for folder in dict.fromkeys(path.resolve().parent for path in files):
        for above in (folder, *folder.parents):
            if (above / "modules.dep").is_file() or above.parent.parts[-2:] == ("lib", "modules"):
                yield above
                break


def for_worker(task: Task, roots: Iterable[Path]) -> Task:
    """Return a task with the bytes of files that lie below none of some folders."""
    if isinstance(task.module, Path):
        path = task.module.resolve()
        if any(path.is_relative_to(root.resolve()) for root in roots):
            return task
    return task.carried()
