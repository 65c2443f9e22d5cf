# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules by name: a tree as `modprobe -d` takes it, with its `modules.dep`.

`modules.dep` lists, for each file, the files that it needs, deepest last; paths are
relative to `lib/modules/VERSION`. Where nobody ran depmod, the modules' own `depends=` lines
say the same, and are read when they are needed. Names compare as the kernel compares them,
with `-` and `_` equal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import attrs

from allocator.errors import ExecmemError, did_you_mean
from allocator.files import read_regular, reason_of
from loader.elf import parse
from loader.errors import BadModule, NoModule
from loader.files import SUFFIXES, ModuleFile, is_file, module_name, read_module

_DEPENDS = re.compile(rb"\0depends=([^\0]{0,65536})\0")


@attrs.frozen
class ModuleTree:
    """One `lib/modules/VERSION` folder.

    Parameters
    ----------
    folder
        The folder that holds `modules.dep`.
    files
        Module name -> path relative to `folder`.
    needs
        Module name -> names of the modules it needs, in the order to load them.
    indexed
        Whether `modules.dep` says so, and not the modules themselves.
    """

    folder: Path
    files: Mapping[str, str]
    needs: Mapping[str, tuple[str, ...]]
    indexed: bool = True

    def path(self, name: str) -> Path | None:
        """Return the file of the module called `name`, or None."""
        file = self.files.get(module_name(name))
        return None if file is None else self.folder / file

    def to_load(self, name: str) -> tuple[str, ...]:
        """Return the names to load for `name`, dependencies first, `name` last."""
        return (*self.needs.get(module_name(name), ()), module_name(name))


def open_tree(root: str | Path) -> ModuleTree:
    """Return the module tree under `root`: `root/lib/modules/VERSION` or that folder itself.

    A folder of modules without `modules.dep` will do, too, and one that they were built in.

    Raises
    ------
    BadModule
        Where there are no modules, several versions to choose from, or a bad line.
    """
    folder = _folder(Path(root))
    index = folder / "modules.dep"
    if not is_file(index) and _is_built_in(folder):
        return _without_index(folder, _ordered(folder))
    if not is_file(index):
        return _without_index(folder, _modules_under(folder))
    files: dict[str, str] = {}
    needs: dict[str, tuple[str, ...]] = {}
    try:
        lines = read_regular(index).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise BadModule(str(index), "file", "not a text file") from None
    except OSError as error:
        raise BadModule(str(index), "file", reason_of(error)) from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        file, colon, rest = line.partition(":")
        if not colon:
            raise BadModule(str(index), f"line {number}", "is not 'FILE: NEEDED...'")
        name = module_name(file)
        files[name] = file.strip()
        # The closest dependency stands first, so the order to load is the reverse.
        needs[name] = tuple(module_name(needed) for needed in reversed(rest.split()))
    return ModuleTree(folder, files, needs)


def tree_around(path: str | Path) -> ModuleTree | None:
    """Return the module tree that a file lies in; None where it lies in none.

    Modules in the same folder are a tree where they are all that the file needs.
    """
    file = Path(path).resolve()
    for folder in file.parents:
        if is_file(folder / "modules.dep"):
            return open_tree(folder)
        if folder.parent.name == "modules" and folder.parent.parent.name == "lib":
            return _without_index(folder, _modules_under(folder))
        if _is_built_in(folder):
            return open_tree(folder)
    beside = _without_index(file.parent, [*_listed(file.parent), file.name])
    needs = beside.needs[module_name(file)]
    return beside if needs and all(name in beside.files for name in needs) else None


def tree_of(release: str, folders: Iterable[Path]) -> ModuleTree | None:
    """Return the tree of a kernel's modules in the first of several folders that has it, or None.

    Parameters
    ----------
    release
        The kernel's.
    folders
        Each holds `lib/modules/RELEASE`, or folders that do.
    """
    for folder in folders:
        for pattern in ("", "*/"):
            for place in ("lib", "usr/lib"):
                found = sorted(folder.glob(f"{pattern}{place}/modules/{release}"))
                if found:
                    return open_tree(found[0])
        if folder.name == release and folder.is_dir():
            return open_tree(folder)
    return None


def tree_beside(release: str, kernel: Path) -> ModuleTree | None:
    """Return the tree of a kernel's modules in the folder that it was given as; None: there is none.

    That folder holds `lib/modules/RELEASE`, or is what kernel and modules were built in.
    """
    if not kernel.is_dir():
        return None
    return open_tree(kernel) if _is_built_in(kernel) else tree_of(release, [kernel])


def _is_built_in(folder: Path) -> bool:
    """Return whether a kernel and its modules were built in a folder."""
    return is_file(folder / "modules.order") and is_file(folder / ".config")


def _ordered(folder: Path) -> list[str]:
    """Return the modules that were built in a folder, as its `modules.order` lists them.

    It names the modules' objects in newer kernels (scripts/Makefile.modfinal).
    """
    try:
        lines = read_regular(folder / "modules.order").decode("utf-8", "replace").split()
    except OSError as error:
        raise BadModule(str(folder / "modules.order"), "file", reason_of(error)) from None
    names = [f"{line[:-2]}.ko" if line.endswith(".o") else line for line in lines]
    return [name for name in names if is_file(folder / name)]


class _Needs(Mapping[str, tuple[str, ...]]):
    """What modules need by their own account, read when it is asked for."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self._folder, self._files = folder, files
        self._direct: dict[str, list[str]] = {}

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name not in self._files:
            raise KeyError(name)
        order: dict[str, None] = {}
        entered = {name}
        stack = [(name, iter(self._of(name)))]
        while stack:
            current, rest = stack[-1]
            needed = next(rest, None)
            if needed is None:
                stack.pop()
                order[current] = None
            elif needed not in entered:  # nor twice, nor in circles
                entered.add(needed)
                stack.append((needed, iter(self._of(needed))))
        del order[name]
        return tuple(order)

    def _of(self, name: str) -> list[str]:
        if name not in self._direct:
            path = self._files.get(name)
            try:
                found = [] if path is None else depends_of(ModuleFile.read(self._folder / path))
            except BadModule:
                found = []  # whoever loads it will say why
            self._direct[name] = found
        return self._direct[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files


def _without_index(folder: Path, paths: Iterable[str]) -> ModuleTree:
    files = {module_name(path): path for path in paths}
    return ModuleTree(folder, files, _Needs(folder, files), indexed=False)


def _listed(folder: Path) -> list[str]:
    """Return the names of the modules in a folder, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    except OSError:
        return []


def _modules_under(folder: Path) -> list[str]:
    """Return the modules below a folder, sorted, relative to it."""
    found = (
        str(Path(top, name).relative_to(folder))
        for top, _, names in os.walk(folder)
        for name in names
        if name.endswith(SUFFIXES)
    )
    return sorted(found)


def _holds_modules(folder: Path) -> bool:
    names = (name for _, _, names in os.walk(folder) for name in names)
    return any(name.endswith(SUFFIXES) for name in names)


def _folder(root: Path) -> Path:
    if is_file(root / "modules.dep") or _is_built_in(root):
        return root
    try:
        versions = sorted(
            path
            for pattern in ("lib/modules/*", "usr/lib/modules/*")
            for path in root.glob(pattern)
            if path.is_dir() and (is_file(path / "modules.dep") or _holds_modules(path))
        )
        found = root.is_dir()
        merged = (root / "lib").resolve() == (root / "usr" / "lib").resolve()
    except (OSError, ValueError) as error:  # too long; a NUL in it
        raise BadModule(root.name, "module tree", reason_of(error)) from None
    if merged:
        versions = [path for path in versions if path.parts[: len(root.parts) + 1][-1] == "lib"]
    if not versions and not found:
        raise BadModule(str(root), "module tree", "no such folder")
    if not versions and _holds_modules(root):
        trees = sorted({path.parents[2] for path in root.glob("*/lib/modules/*") if path.is_dir()})
        if len(trees) > 1:  # of several architectures: their modules have the same names
            names = ", ".join(path.name for path in trees)
            reason = f"holds several trees ({names}); name one: {trees[0]}"
            raise BadModule(str(root), "module tree", reason)
        return root
    if not versions:
        reason = "holds no lib/modules/VERSION, and no modules anywhere"
        raise BadModule(str(root), "module tree", reason)
    if len(versions) > 1:
        names = ", ".join(path.name for path in versions)
        reason = f"holds several versions ({names}); name one: {versions[0]}"
        raise BadModule(str(root), "module tree", reason)
    return versions[0]


def modules_for(tree: ModuleTree, alias: str) -> list[str]:
    """Return the modules that answer to an alias, in the order of the index.

    `modules.alias` says so where there is one; otherwise the modules' own `alias=` lines do,
    and the folder `crypto` is searched before all others for algorithms.
    """
    index = tree.folder / "modules.alias"
    if is_file(index):
        try:
            lines = read_regular(index).decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise BadModule(str(index), "file", reason_of(error)) from None
        words = (line.split() for line in lines)
        found = [w[2] for w in words if len(w) == 3 and fnmatchcase(alias, w[1])]
        return [name for name in dict.fromkeys(map(module_name, found)) if name in tree.files]
    likely = [name for name, file in tree.files.items() if "/crypto/" in f"/{file}"]
    rest = [name for name in tree.files if name not in set(likely)]
    for group in (likely, rest):
        found = [name for name in group if _answers(tree.folder / tree.files[name], alias)]
        if found:
            return found
    return []


def likely_modules(tree: ModuleTree, alias: str) -> list[str]:
    """Return the modules that have an alias and are called like it, read from a few files.

    For trees that have no index and too many modules to read each: `crypto-md4` is looked for in
    `md4` and `md4_generic`.
    """
    stem = module_name(alias.removeprefix("crypto-"))
    named = [name for name in sorted(tree.files) if name.startswith(stem)]
    return [name for name in named if _answers(tree.folder / tree.files[name], alias)]


def _answers(path: Path, alias: str) -> bool:
    """Return whether a module has an alias; a file that is no module has none."""
    try:
        said = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
    return any(
        fnmatchcase(alias, pattern) for pattern in _aliases(path, said.st_mtime_ns, said.st_size)
    )


@lru_cache(maxsize=4096)
def _aliases(path: Path, _modified: int, _size: int) -> tuple[str, ...]:
    """Return the aliases of a module that has not changed since, which is asked again and again."""
    try:
        return tuple(parse(read_module(path), path.name).aliases)
    except ExecmemError:
        return ()


def depends_of(file: ModuleFile) -> list[str]:
    """Return the modules that a file's `.modinfo` says it needs, found without parsing it.

    Nothing where the file cannot be read: whoever loads it will say why.
    """
    try:
        found = _DEPENDS.search(file.image())
    except ExecmemError:
        return []
    names = found[1].decode("ascii", "replace").split(",") if found else []
    return [module_name(name) for name in names if name]


def find(tree: ModuleTree | None, name: str) -> Path:
    """Return the file of a module that is asked for by name.

    Raises
    ------
    NoModule
        Where there is no tree, or it has no such module.
    """
    if tree is None:
        hint = ": give the folder that holds lib/modules (--root)"
        raise NoModule(name, (name,), (), hint)
    path = tree.path(name)
    if path is None:
        near = did_you_mean(module_name(name), tree.files)
        raise NoModule(name, (name,), (), near, str(tree.folder))
    if not is_file(path):
        raise NoModule(name, (name,), (), ": modules.dep names a file that is gone", str(path))
    return path


def find_any(tree: ModuleTree | None, name: str) -> Path:
    """Return the file of a module that is asked for by name or alias; raises as `find`."""
    if tree is not None and name not in tree.files:
        answering = modules_for(tree, name)
        if answering:
            return find(tree, answering[0])
    return find(tree, name)
