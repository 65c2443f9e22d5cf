# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sweep works on: one task per module, with all that it needs.

A task names files on this machine, or carries them: what lies in an archive is carried, and
for a cluster everything is, so that its machines need no files of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import attrs

from allocator.errors import ExecmemError
from allocator.files import check_regular, reason_of
from loader.archives import MAX_MEMBER, is_archive, modules_in, open_archive
from loader.depends import ModuleTree, depends_of, open_tree, tree_around
from loader.errors import MissingDependency
from loader.files import SUFFIXES, ModuleFile, module_name

TaskSource: TypeAlias = Path | ModuleFile


@attrs.frozen
class Task:
    """A module to work on.

    Parameters
    ----------
    file
        What its row calls it: the path, or `ARCHIVE:PATH` for a member of an archive.
    module
        The file; None where there is nothing to work on.
    needed
        What is loaded before it, in order.
    problem
        Why it is refused whatever it holds; empty for none.
    """

    file: str
    module: TaskSource | None = attrs.field(repr=False)
    needed: tuple[TaskSource, ...] = attrs.field(default=(), repr=False)
    problem: str = ""

    def carried(self) -> Task:
        """Return the task with its files' bytes instead of their paths."""
        if self.module is None:
            return self
        try:
            module = contents(self.module)
            return attrs.evolve(self, module=module, needed=tuple(map(contents, self.needed)))
        except ExecmemError as error:
            return Task(self.file, None, problem=str(error))


def contents(source: TaskSource) -> ModuleFile:
    """Return a file's bytes, from the disk if need be; BadModule."""
    return source if isinstance(source, ModuleFile) else ModuleFile.read(source)


def files_under(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files given, and modules and archives below the folders given, sorted by path.

    Raises
    ------
    ExecmemError
        For a path where nothing is, or something that is no file.
    """
    found: dict[Path, None] = {}
    for given in map(Path, paths):
        if given.is_dir():
            below = (p for p in given.rglob("*") if p.name.endswith(SUFFIXES) or is_archive(p))
            found |= dict.fromkeys(sorted(path for path in below if path.is_file()))
            continue
        try:
            check_regular(given)
        except FileNotFoundError:
            raise ExecmemError(f"{given}: no such file or folder") from None
        except (OSError, ValueError) as error:
            raise ExecmemError(f"{given}: {reason_of(error)}") from None
        found[given] = None
    return list(found)


def tasks_for(files: Iterable[Path]) -> Iterator[Task]:
    """Yield a task for each module in files and archives, in their order."""
    for path in files:
        yield from _in_archive(path) if is_archive(path) else (_on_disk(path),)


def _in_archive(path: Path) -> Iterator[Task]:
    """Yield what is in an archive; where it is damaged, a last task says so."""
    names: Counter[str] = Counter()
    try:
        archive = open_archive(path)
        for member in modules_in(path):
            names[member.path] += 1
            again = f"#{names[member.path]}" if names[member.path] > 1 else ""
            file = f"{path}:{member.path}{again}"
            if member.file is None:
                size = f"{member.size:#x} bytes, more than {MAX_MEMBER:#x}"
                yield Task(file, None, problem=f"{member.path}: {size}")
            else:
                yield Task(file, member.file, archive.needed(member))
    except ExecmemError as error:
        yield Task(str(path), None, problem=str(error))
    except OSError as error:
        yield Task(str(path), None, problem=f"{path.name}: {error.strerror or error}")


def _on_disk(path: Path) -> Task:
    """Return the task of a module on disk; its `modules.dep` says what it needs."""
    try:
        tree = _tree_at(path.resolve().parent) or tree_around(path)
    except ExecmemError as error:
        return Task(str(path), path, problem=str(error))
    if tree is None:
        return Task(str(path), path)
    name = module_name(path)
    if name in tree.needs:
        needed = list(tree.needs[name])
    else:
        try:
            direct = depends_of(ModuleFile.read(path))
        except ExecmemError:
            direct = []  # reading it says why
        needed = list(dict.fromkeys(n for d in direct for n in tree.to_load(d)))
    missing = tuple(n for n in needed if n not in tree.files)
    if missing:
        refused = MissingDependency(path.name, missing, (), f"not in {tree.folder}")
        return Task(str(path), path, problem=str(refused))
    return Task(str(path), path, tuple(tree.folder / tree.files[n] for n in needed))


@lru_cache(maxsize=1024)
def _tree_at(folder: Path) -> ModuleTree | None:
    """Return the module tree that a folder lies in, if it lies in one."""
    if (folder / "modules.dep").is_file():
        return open_tree(folder)
    return _tree_at(folder.parent) if folder != folder.parent else None
