# SPDX-License-Identifier: GPL-2.0-or-later
"""What a debugger may transfer: descriptions, lists, and the files that it is told of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from machine.gdb.features import Description
from machine.gdb.files import Files
from machine.gdb.libraries import (
    file_of,
    frames_of,
    frames_path,
    has_frames,
    library_list,
    path_of,
)
from machine.gdb.memory import MOST
from machine.gdb.subject import Present, Subject
from machine.gdb.threads import Threads
from machine.gdb.wire import escaped, numbers

_HALF = 1 << 63
_MAP = "".join(f'<memory type="ram" start="{half:#x}" length="{_HALF:#x}"/>' for half in (0, _HALF))


class Offers:
    """What is offered of a machine.

    Parameters
    ----------
    subject, threads
        The machine, and what the debugger calls threads of it.

    `files` are the files.
    """

    def __init__(self, subject: Subject, threads: Threads) -> None:
        self._subject, self._threads = subject, threads
        self.files = Files(self._named)
        self._told: list[object] | None = None
        self._kernel: bytes | None = None

    @property
    def stale(self) -> bool:
        """Whether other modules are in memory than the debugger was told of, if it has asked."""
        return self._told is not None and self._told != self._modules()

    def _modules(self) -> list[object]:
        return [module.key for module in self._present]

    @property
    def _present(self) -> Sequence[Present]:
        return tuple(self._subject.modules())

    def transfer(self, text: bytes, description: Description) -> bytes:
        """Answer `qXfer`; empty where there is no such thing, ValueError for another form."""
        what, action, annex, window = text.split(b":", 3)
        offset, size = numbers(window)
        data = self._document(what, annex, description, first=not offset)
        if action != b"read" or data is None:
            return b""
        piece = data[offset : offset + min(size, MOST)]
        return (b"l" if offset + len(piece) >= len(data) else b"m") + escaped(piece)

    def _document(
        self, what: bytes, annex: bytes, description: Description, *, first: bool
    ) -> bytes | None:
        if what == b"features" and annex == b"target.xml":
            return description.xml
        if what == b"libraries":
            if first:
                self._told = self._modules()
            return library_list(self._present)
        if what == b"exec-file":
            return self._subject.title.encode()
        if what == b"threads":
            return self._threads.xml
        if what == b"memory-map":
            return f"<memory-map>{_MAP}</memory-map>".encode()
        return None

    def _named(self) -> Mapping[str, Callable[[], bytes]]:
        """Return what makes each file, by its name."""
        modules = self._present
        found: dict[str, Callable[[], bytes]] = {
            path_of(module): partial(file_of, module) for module in modules
        }
        if has_frames(modules):
            read = self._subject.machine.read
            found[frames_path(modules)] = partial(frames_of, modules, read, self._subject.outermost)
        found[self._subject.title] = self._symbols
        return found

    def _symbols(self) -> bytes:
        if self._kernel is None:
            self._kernel = self._subject.symbols()
        return self._kernel
