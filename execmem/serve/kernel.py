# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel that a server was given: who is asked about it, once for all pages.

It is whoever serves that names it, as they would in a terminal, and it boots as it does there: in a
process of its own that keeps to limits, outside of the fence of pages. Pages know it by the name of its
file or folder, and say what they want of it (`questions`); an answer is kept, as it stays the same.
Modules that are dropped on a page it loads and runs at that page's desk, behind the fence.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allocator.errors import ExecmemError
from allocator.types import GIB
from execmem.serve.questions import KERNEL, NotAsked
from execmem.serve.work import answer, without
from execmem.worker.jobs import Worker
from execmem.worker.reading import files_of_kernel

SECONDS = 600.0  # of an answer: a kernel that was not booted before takes its time
KEPT = 64  # answers


class Kernel:
    """A kernel, and a process that answers questions about it.

    Parameters
    ----------
    path
        An image, a package, or a tree of one.

    Raises
    ------
    ExecmemError
        There is nothing there.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path).resolve()
        if not self._path.exists():
            raise ExecmemError(f"--kernel {path}: there is no such file or folder")
        self._turn = threading.Lock()
        self._kept: dict[tuple[str, ...], dict[str, Any]] = {}
        self._worker: Worker | None = None

    @property
    def name(self) -> str:
        """What pages call it."""
        return self._path.name

    def ask(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the answer to a question (`questions.checked`) in which `KERNEL` stands for it."""
        asked = tuple(words)
        if asked[0] != "kernel":
            raise NotAsked("modules run at the page's own desk")
        with self._turn:
            if self._worker is None:
                self._worker = Worker(answer, memory=2 * GIB, seconds=SECONDS)
            if asked not in self._kept:
                self._worker.give([str(self._path) if w == KERNEL else w for w in asked])
                found, why = self._worker.result()
                if why:
                    return {"code": 1, "document": None, "said": [f"execmem: {why}"]}
                while len(self._kept) >= KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[asked] = self.hidden(found)
            return self._kept[asked]

    def given(self, words: Sequence[str]) -> tuple[str, ...]:
        """Return the words of a question for a desk, where --kernel names it; it has booted then.

        What it is like when it has booted is kept, so that a fenced process finds it there.
        """
        self.ask(("kernel", "--json", KERNEL, "--ptdump"))
        before = ("", *words)
        return tuple(
            str(self._path) if (option, word) == ("--kernel", KERNEL) else word
            for option, word in zip(before, words, strict=False)
        )

    def hidden(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return an answer of a desk that does not say where it lies."""
        cleaned: dict[str, Any] = without((f"{self._path.parent}/",), found)
        return cleaned

    @property
    def files(self) -> tuple[Path, ...]:
        """What machines read for it."""
        return tuple(files_of_kernel(self._path, modelled=False))

    def close(self) -> None:
        """End its process."""
        with self._turn:
            if self._worker is not None:
                self._worker.close()
                self._worker = None
