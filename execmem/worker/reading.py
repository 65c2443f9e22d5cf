# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files working on modules reads: what a fenced process must be left."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from allocator.designs import choose
from kernels.booted import cache
from loader.files import SUFFIXES
from loader.kernel import dwarf
from loader.kernel.find import RUNNING, find_kernel, read_kernel


def files_of_design(name: str) -> Iterator[Path]:
    """Yield the Python files of a design, and those beside it, where it is none of ours."""
    chosen = choose(name)
    file = getattr(sys.modules.get(chosen.design.__module__), "__file__", None)
    if chosen.outside and file is not None:
        yield from Path(file).parent.glob("*.py")


def files_of_kernel(kernel: str | Path, *, modelled: bool) -> Iterator[Path]:
    """Yield the files that machines read for a kernel; BadKernel where there is none.

    Types that a program makes are made now: behind the fence none is started.

    Parameters
    ----------
    modelled
        Whether it is not booted: then its image is read.
    """
    files = find_kernel(kernel)
    if modelled:
        image = read_kernel(kernel)
        if image.debug is not None:
            image.btf_blob()
    else:
        yield cache.folder()
    yield dwarf.folder()
    if str(kernel) != RUNNING:
        yield Path(kernel)
    yield from map(Path, files.sources.values())
    if files.vmlinux is not None:
        yield files.vmlinux


def tree_of(folder: Path) -> Path | None:
    """Return the tree of modules that a folder lies in, as a kernel's loader or build has it."""
    for above in (folder, *folder.parents):
        if (above / "modules.dep").is_file() or above.parent.parts[-2:] == ("lib", "modules"):
            return above
        if (above / "modules.order").is_file() and (above / ".config").is_file():
            return above
    return None


def trees_of(files: Iterable[Path]) -> Iterator[Path]:
    """Yield the trees of modules that files lie in; a folder that is none is not of them."""
    for folder in dict.fromkeys(path.resolve().parent for path in files):
        tree = tree_of(folder)
        if tree is not None:
            yield tree


def modules_beside(file: Path) -> Iterator[Path]:
    """Yield the modules in a file's folder."""
    for path in file.resolve().parent.iterdir():
        if path.name.endswith(SUFFIXES):
            yield path
