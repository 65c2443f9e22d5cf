# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules by name, file or alias, with what they depend on, as modprobe loads them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from allocator import ExecmemError
from archs import Arch
from emulator.budget import one_budget
from kernels.protocol import Kernel
from loader.build import with_kernel
from loader.depends import ModuleTree, find, modules_for, open_tree, tree_around
from loader.elf import parse as parse_elf
from loader.errors import MissingDependency
from loader.files import SUFFIXES, ModuleFile, decompress, is_file, module_name, read_module
from loader.kernel.image import KernelImage
from loader.kernel.own import folders_of, own_kernel
from loader.loaded import LoadedModule
from loader.versions import TreeFacts, facts_of
from machine.insmod import Insmod
from machine.module import Module

_one_budget = one_budget(lambda modprobe: modprobe.limits)


class Modprobe:
    """Finds modules, and loads them after those that they need.

    Parameters
    ----------
    arch, kernel
        What modules are for.
    loaded
        Modules that are there.
    insmod
        Loads one.
    root
        Folder that holds `lib/modules/VERSION`; None: names are not looked up.
    image
        The kernel that the modules are for, where it is given.
    """

    def __init__(
        self,
        arch: Arch,
        kernel: Kernel,
        loaded: Mapping[str, LoadedModule],
        insmod: Insmod,
        root: str | Path | None,
        image: KernelImage | None = None,
    ) -> None:
        self._arch = arch
        self._kernel = kernel
        self._loaded = loaded
        self._insmod = insmod
        self.limits = insmod.limits
        self.tree: ModuleTree | None = None if root is None else open_tree(root)
        self._image = image
        self._asked = False
        self._facts: TreeFacts | None = None
        self._folders: dict[Path, None] = {}  # that modules came from

    @_one_budget
    def load(
        self,
        module: str | Path | bytes | ModuleFile,
        *,
        init: bool = True,
        params: Mapping[str, object] | None = None,
    ) -> Module:
        """Load a module with the modules it depends on; see `Machine.load`."""
        image, name, tree = self._source(module)
        mark, before = self._kernel.mark(), set(self._insmod.modules)
        with ExitStack() as undo:
            undo.callback(self._kernel.roll_back, mark)
            try:
                for needed in self._needed(image, name, tree):
                    path = find(tree, needed)
                    self._insmod.load(read_module(path), path.name, init=init, params={})
                loaded = self._insmod.load(image, name, init=init, params=params or {})
            except BaseException:
                # What it needed, and what the guest asked for meanwhile; users come last.
                for other in reversed(
                    [m for n, m in self._insmod.modules.items() if n not in before]
                ):
                    self._insmod.remove(other)
                raise
            undo.pop_all()
        return loaded

    def load_alias(self, alias: str) -> None:
        """Load the modules that have an alias, as the kernel would request them."""
        for name in modules_for(self.tree, alias) if self.tree is not None else ():
            if name not in self._insmod.modules:
                self.load(name)

    def request(self, name: str) -> bool:
        """Load the module that the guest asks for by name or alias; False where that fails.

        Aliases are looked up in `modules.alias` only: to read every module would take long.
        """
        tree, title = self.tree, module_name(name)
        if title in self._loaded:
            return True
        if tree is None:
            return False
        found = [title] if title in tree.files else []
        if not found and (tree.folder / "modules.alias").is_file():
            found = modules_for(tree, name)
        for each in found:
            if each not in self._loaded:
                try:
                    self.load(each)
                except ExecmemError as error:
                    self._kernel.print(f"request_module {name}: {error}\n".encode(), 4)
                    return False
        return bool(found)

    def facts(self) -> TreeFacts | None:
        """Return what the kernel that was given, or the tree that was named, says of a kernel."""
        if self._facts is None and self.tree is not None:
            self._facts = facts_of(self.tree, self._arch)
        if self._image is not None and not self._asked:
            self._facts = with_kernel(self._facts, self._image)
            self._asked = True
        return self._facts

    def own_kernel(self, loaded: LoadedModule) -> str:
        """Say where the kernel is that a module was built for; empty where it is not at hand."""
        if self._image is not None:
            return ""
        found = own_kernel(loaded.view.modinfo.get("vermagic", "").strip(), self._folders).path
        if found is None:
            return ""
        return f"this module's kernel is {found}: give --kernel auto (Machine(kernel=PATH))"

    def _source(
        self, module: str | Path | bytes | ModuleFile
    ) -> tuple[bytes, str, ModuleTree | None]:
        """Return a module's bytes, its file's name, and the tree that its dependencies are in."""
        if isinstance(module, ModuleFile):
            return module.image(), module.name, self.tree
        if isinstance(module, bytes | bytearray | memoryview):
            return decompress(bytes(module), "<bytes>"), "<bytes>", self.tree
        text = str(module)
        path = Path(module)
        if isinstance(module, Path) or "/" in text or text.endswith(SUFFIXES) or is_file(path):
            self._folders |= dict.fromkeys(folders_of(path))
            return read_module(path), path.name, self.tree or tree_around(path)
        path = find(self.tree, text)
        self._folders |= dict.fromkeys(folders_of(path))
        return read_module(path), path.name, self.tree

    def _needed(self, image: bytes, name: str, tree: ModuleTree | None) -> list[str]:
        """Return the modules to load first, in order, without those that are loaded."""
        if tree is None:
            return []
        title = module_name(name)
        if title in tree.needs:
            order = list(tree.to_load(title)[:-1])
        else:
            depends = parse_elf(image, name).modinfo.get("depends", "").split(",")
            order = [n for d in depends if d for n in tree.to_load(d)]
        missing = [n for n in order if n not in tree.files and n not in self._loaded]
        if missing:
            hint = f"not in {tree.folder}"
            raise MissingDependency(name, tuple(dict.fromkeys(missing)), (), hint)
        return [n for n in dict.fromkeys(order) if n not in self._loaded]
