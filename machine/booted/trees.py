# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a booted machine's modules come from: trees, files, and what the kernel asks for."""

from __future__ import annotations

import abc
from functools import cached_property
from pathlib import Path
from typing import Any

from kernels.booted.kernel import BootedKernel
from loader.depends import (
    ModuleTree,
    find,
    likely_modules,
    modules_for,
    tree_around,
    tree_beside,
)
from loader.errors import LoadError
from loader.files import SUFFIXES, ModuleFile, is_file, module_name
from machine.booted.module import BootedModule

_FEW = 1000  # modules that are read to find who has an alias, where no index tells it


class Trees:
    """A machine that looks modules up."""

    kernel: BootedKernel
    _tree: ModuleTree | None
    _folder: Path | None = None  # what the kernel was given as
    _asked: ModuleTree | None = None  # the tree of the load under way

    @property
    @abc.abstractmethod
    def modules(self) -> dict[str, BootedModule]:
        """The modules that were loaded, by name."""

    @abc.abstractmethod
    def load(self, module: str, /, *, init: bool = True, **params: Any) -> BootedModule:
        """Let the kernel load a module."""

    @property
    def tree(self) -> ModuleTree | None:
        """Where modules are looked up by name, at last in the kernel's own folder; may be set."""
        return self._tree or self._beside

    @tree.setter
    def tree(self, tree: ModuleTree | None) -> None:
        self._tree = tree

    @cached_property
    def _beside(self) -> ModuleTree | None:
        if self._folder is None:
            return None
        return tree_beside(self.kernel.release, self._folder)

    def request(self, name: str) -> bool:
        """Load what the kernel asks for by name or alias; False where that is not possible."""
        tree, title = self._asked or self.tree, module_name(name)
        if title in self.modules:
            return True
        if tree is None:
            return False
        found = [title] if title in tree.files else []
        if not found:
            indexed = (tree.folder / "modules.alias").is_file()
            search = modules_for if indexed or len(tree.files) < _FEW else likely_modules
            found = search(tree, name)
        for each in found:
            if each not in self.modules:
                try:
                    self.load(each)
                except LoadError:
                    return False
        return bool(found)

    def _source(
        self, module: str | Path | bytes | ModuleFile
    ) -> tuple[ModuleFile, ModuleTree | None]:
        """Return a module's file, and the tree that its dependencies are in."""
        known = self._asked or self.tree
        if isinstance(module, ModuleFile):
            return module, known
        if isinstance(module, bytes | bytearray | memoryview):
            return ModuleFile("<bytes>", bytes(module)), known
        text, path = str(module), Path(module)
        if isinstance(module, Path) or "/" in text or text.endswith(SUFFIXES) or is_file(path):
            return ModuleFile.read(path), self._asked or self._tree or tree_around(path) or known
        return ModuleFile.read(find(known, text)), known
