# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel that a server was given: who is asked about it, once for all pages.

It is whoever serves that names it, as they would in a terminal, and it boots as it does there: in a
process of its own that keeps to limits, outside of the fence of pages. Pages know it by the name of its
file or folder, and say what they want of it (`questions`); an answer is kept, as it stays the same.
Modules that are dropped on a page, or named of its tree, it loads and runs at that page's desk, behind
the fence.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from allocator.errors import ExecmemError
from allocator.types import GIB
from execmem.serve.desks import Gone
from execmem.serve.questions import KERNEL, NotAsked
from execmem.serve.work import answer, without
from execmem.worker.jobs import Worker
from execmem.worker.reading import files_of_kernel
from loader.depends import ModuleTree, open_tree
from loader.errors import BadModule

SECONDS = 600.0  # of an answer: a kernel that was not booted before takes its time
KEPT = 64  # answers


class Kernel:
    """A kernel, and a process that answers questions about it.

    Parameters
    ----------
    path
        An image, a package, or a tree of one.
    root
        Where its modules are; None: in the tree that it is, if it is one.

    Raises
    ------
    ExecmemError
        There is nothing there; BadModule where `root` has no modules.
    """

    def __init__(self, path: str, root: str | None = None) -> None:
        self._path = Path(path).resolve()
        if not self._path.exists():
            raise ExecmemError(f"--kernel {path}: there is no such file or folder")
        self._tree: ModuleTree | None = None
        if root is not None:
            self._tree = open_tree(Path(root).resolve())
        elif self._path.is_dir():
            with suppress(BadModule):
                self._tree = open_tree(self._path)
        self._turn = threading.Lock()
        self._kept: dict[tuple[str, ...], dict[str, Any]] = {}
        self._worker: Worker | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """What pages call it."""
        return self._path.name

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules of its tree."""
        return () if self._tree is None else tuple(sorted(self._tree.files))

    def ask(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the answer to a question (`questions.checked`) in which `KERNEL` stands for it."""
        asked = tuple(words)
        if asked[0] != "kernel":
            raise NotAsked("modules run at the page's own desk")
        with self._turn:
            if self._closed:
                raise Gone
            if self._worker is None:
                self._worker = Worker(answer, memory=2 * GIB, seconds=SECONDS)
            if asked not in self._kept:
                self._worker.give([str(self._path) if w == KERNEL else w for w in asked])
                found, why = self._worker.result()
                if self._closed:
                    raise Gone
                if why:
                    return {"code": 1, "document": None, "said": [f"execmem: {why}"]}
                while len(self._kept) >= KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[asked] = self.hidden(found)
            return self._kept[asked]

    def given(self, words: Sequence[str]) -> tuple[str, ...]:
        """Return the words of a question for a desk, where --kernel names it, and --root its modules.

        It has booted then, and is kept as it stands there, where a fenced process finds it.
        """
        self.ask(("kernel", "--json", KERNEL, "--ptdump"))
        root = () if self._tree is None else ("--root", str(self._tree.folder))
        found: list[str] = []
        for option, word in zip(("", *words), words, strict=False):
            meant = (option, word) == ("--kernel", KERNEL)
            found += (str(self._path), *root) if meant else (word,)
        return tuple(found)

    def hidden(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return an answer of a desk that does not say where it lies."""
        folders = (
            [self._path.parent] if self._tree is None else [self._tree.folder, self._path.parent]
        )
        cleaned: dict[str, Any] = without([f"{folder}/" for folder in folders], found)
        return cleaned

    @property
    def files(self) -> tuple[Path, ...]:
        """What machines read for it."""
        tree = () if self._tree is None else (self._tree.folder,)
        return (*files_of_kernel(self._path, modelled=False), *tree)

    def close(self) -> None:
        """End its process."""
        self._closed = True
        if self._worker is not None:  # who waits for its answer is told
            self._worker.close()
