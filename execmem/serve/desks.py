# SPDX-License-Identifier: GPL-2.0-or-later
"""Desks: what a page has of the server, and no other page sees.

A desk is a folder for files that were dropped, and a fenced process that may read that folder and
no other. Whoever knows its name, which is random, sits at it. There are so many; the one that was
idle for longest goes first.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from allocator.errors import ExecmemError
from allocator.files import reason_of
from allocator.types import GIB, MIB, size_text
from execmem.serve.work import answer
from execmem.worker.fence import Fence
from execmem.worker.jobs import Worker

FILE = 64 * MIB  # bytes of a file that is dropped
FILES = 128 * MIB  # of all files of a desk
WAITING = 8  # questions of a desk that may wait for one that is answered


@attrs.frozen(kw_only=True)
class Limits:
    """What a server gives away.

    Parameters
    ----------
    desks
        How many pages at a time.
    seconds
        Wall-clock time of a question.
    memory
        Bytes that an answer may take beside the emulated machine.
    whole
        Whether to refuse where a host has no whole fence.
    """

    desks: int = 8
    seconds: float = 60.0
    memory: int = GIB
    whole: bool = False


class TooMuch(ExecmemError):
    """A page wants more than there is for one."""


class Gone(ExecmemError):
    """A desk was given to somebody else, or the server ends."""

    def __str__(self) -> str:
        return "this desk is gone: reload the page"


class Desk:
    """A folder and a process for one page.

    Parameters
    ----------
    limits
        Of the process.
    readable
        Files that it reads besides, such as a kernel's.
    """

    def __init__(self, limits: Limits, readable: Iterable[Path] = ()) -> None:
        self._folder = TemporaryDirectory(prefix="execmem-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._sizes: dict[str, int] = {}
        self._turn = threading.Lock()
        self._files = threading.Lock()
        self._closed = False
        self._waiting = 0
        self.used = time.monotonic()
        self._worker = Worker(
            answer,
            memory=limits.memory,
            seconds=limits.seconds,
            fenced=True,
            whole=limits.whole,
            readable=(self.folder, *readable),
            folder=self.folder,
        )

    def started(self) -> Fence:
        """Wait until its process works; return what that gave up.

        Raises
        ------
        NotFenced
            The host keeps something, and must not.
        ExecmemError
            It did not start.
        """
        with self._turn:
            if not self._worker.started and self._worker.pipe.poll(self._worker.left):
                self._worker.starts()
        if self._worker.fence is None:
            raise ExecmemError("a process that answers did not start")
        return self._worker.fence

    @property
    def files(self) -> Mapping[str, int]:
        """Names of the files that were dropped, and their bytes."""
        return dict(self._sizes)

    def put(self, name: str, contents: bytes) -> str:
        """Keep a file; return the name that questions have for it.

        Raises
        ------
        TooMuch
            It is too large, or there are too many.
        Gone
            The desk was closed.
        """
        self.used = time.monotonic()
        plain = (
            re.sub(r"[^\w.-]", "_", re.split(r"[/\\]", name)[-1], flags=re.ASCII).lstrip(".-")[
                -100:
            ]
            or "module.ko"
        )
        with self._files:
            if self._closed:
                raise Gone
            total = sum(self._sizes.values()) - self._sizes.get(plain, 0) + len(contents)
            if len(contents) > FILE or total > FILES:
                most = f"a file has at most {size_text(FILE)}, all together {size_text(FILES)}"
                raise TooMuch(most)
            try:
                (self.folder / plain).write_bytes(contents)
            except OSError as error:
                (self.folder / plain).unlink(missing_ok=True)
                self._sizes.pop(plain, None)
                raise TooMuch(f"it cannot be kept: {reason_of(error)}") from None
            self._sizes[plain] = len(contents)
        return plain

    def ask(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the answer to a question, when it is its turn.

        Raises
        ------
        TooMuch
            Too many wait already.
        Gone
            The desk was closed, before or meanwhile.
        """
        self.used = time.monotonic()
        if self._waiting >= WAITING:
            raise TooMuch(f"{WAITING} questions wait already")
        self._waiting += 1
        try:
            with self._turn:
                if self._closed:
                    raise Gone
                self._worker.give(tuple(words))
                found, why = self._worker.result()
        finally:
            self._waiting -= 1
            self.used = time.monotonic()
        if self._closed:
            raise Gone
        if why:
            return {"code": 1, "document": None, "said": [f"execmem: {why}"]}
        answered: dict[str, Any] = found
        return answered

    def close(self) -> None:
        """End the process, and forget the files; who waits for an answer is told."""
        self._closed = True
        self._worker.close()
        with self._files:
            self._folder.cleanup()


class Desks:
    """All desks of a server.

    Parameters
    ----------
    limits
        How many, and of each.
    readable
        Files that all of their processes read.
    """

    def __init__(self, limits: Limits, readable: Iterable[Path] = ()) -> None:
        self.limits = limits
        self._readable = tuple(readable)
        self._desks: dict[str, Desk] = {}
        self._change = threading.Lock()
        self._spare: Desk | None = None
        self._closed = False

    def prepare(self) -> Fence:
        """Have a desk ready for whoever comes next; return what its process gave up."""
        with self._change:
            self._spare = self._spare or Desk(self.limits, self._readable)
            return self._spare.started()

    def open(self) -> str:
        """Return the name of a new desk."""
        name = secrets.token_urlsafe(24)
        with self._change:
            if self._closed:
                raise Gone
            desk, self._spare = self._spare or Desk(self.limits, self._readable), None
            self._spare = Desk(self.limits, self._readable)  # it starts while the page is shown
            desk.used = time.monotonic()
            self._desks[name] = desk
            gone = []
            while len(self._desks) > self.limits.desks:
                oldest = min(self._desks, key=lambda each: self._desks[each].used)
                gone.append(self._desks.pop(oldest))
        for each in gone:
            each.close()
        return name

    def find(self, name: str) -> Desk | None:
        """Return a desk by its name; None: it is gone, or never was."""
        with self._change:
            return self._desks.get(name)

    def close(self) -> None:
        """Close all of them."""
        with self._change:
            self._closed = True
            every = [*self._desks.values(), *([self._spare] if self._spare else [])]
            self._desks.clear()
            self._spare = None
        for each in every:
            each.close()
