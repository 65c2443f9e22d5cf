# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules by name: a tree as `modprobe -d` takes it, with its `modules.dep`.

`modules.dep` lists, for each file, the files that it needs, deepest last; paths are
relative to `lib/modules/VERSION`. Names compare as the kernel compares them, with `-`
and `_` equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from loader.errors import BadModule, MissingDependency
from loader.files import module_name


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
    if (root / "modules.dep").is_file():
        return root
    versions = sorted(path.parent for path in root.glob("lib/modules/*/modules.dep"))
    if not versions:
        raise BadModule(str(root), "module tree", "holds no lib/modules/VERSION/modules.dep")
    if len(versions) > 1:
        names = ", ".join(path.name for path in versions)
        reason = f"holds several versions ({names}); name one: {versions[0]}"
        raise BadModule(str(root), "module tree", reason)
    return versions[0]


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
    if path is None or not path.is_file():
        raise MissingDependency(name, (name,), (), f"not in {tree.folder}")
    return path
