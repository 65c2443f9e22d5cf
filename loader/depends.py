# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules by name: a tree as `modprobe -d` takes it, with its `modules.dep`.

`modules.dep` lists, for each file, the files that it needs, deepest last; paths are
relative to `lib/modules/VERSION`. Names compare as the kernel compares them, with `-`
and `_` equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import attrs

from allocator.errors import ExecmemError
from loader.elf import parse
from loader.errors import BadModule, MissingDependency
from loader.files import ModuleFile, is_file, module_name, read_module

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
    """

    folder: Path
    files: Mapping[str, str]
    needs: Mapping[str, tuple[str, ...]]

    def path(self, name: str) -> Path | None:
        """Return the file of the module called `name`, or None."""
        file = self.files.get(module_name(name))
        return None if file is None else self.folder / file

    def to_load(self, name: str) -> tuple[str, ...]:
        """Return the names to load for `name`, dependencies first, `name` last."""
        return (*self.needs.get(module_name(name), ()), module_name(name))


def open_tree(root: str | Path) -> ModuleTree:
    """Return the module tree under `root`: `root/lib/modules/VERSION` or that folder itself.

    Raises
    ------
    BadModule
        Where there is no `modules.dep`, several versions to choose from, or a bad line.
    """
    root = Path(root)
    folder = _folder(root)
    index = folder / "modules.dep"
    files: dict[str, str] = {}
    needs: dict[str, tuple[str, ...]] = {}
    try:
        lines = index.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadModule(str(index), "file", str(error)) from None
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


def _folder(root: Path) -> Path:
    if is_file(root / "modules.dep"):
        return root
    try:
        versions = sorted(path.parent for path in root.glob("lib/modules/*/modules.dep"))
    except (OSError, ValueError) as error:  # too long; a NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise BadModule(root.name, "module tree", reason) from None
    if not versions:
        raise BadModule(str(root), "module tree", "holds no lib/modules/VERSION/modules.dep")
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
            lines = index.read_text("utf-8", "replace").splitlines()
        except OSError as error:
            raise BadModule(str(index), "file", str(error)) from None
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


def _answers(path: Path, alias: str) -> bool:
    """Return whether a module has an alias; a file that is no module has none."""
    try:
        aliases = parse(read_module(path), path.name).aliases
    except ExecmemError:
        return False
    return any(fnmatchcase(alias, pattern) for pattern in aliases)


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
    MissingDependency
        Where there is no tree, or it has no such module.
    """
    if tree is None:
        raise MissingDependency(
            name, (name,), (), "give the folder that holds lib/modules (--root)"
        )
    path = tree.path(name)
    if path is None or not is_file(path):
        raise MissingDependency(name, (name,), (), f"not in {tree.folder}")
    return path


def find_any(tree: ModuleTree | None, name: str) -> Path:
    """Return the file of a module that is asked for by name or alias; raises as `find`."""
    if tree is not None and name not in tree.files:
        answering = modules_for(tree, name)
        if answering:
            return find(tree, answering[0])
    return find(tree, name)
