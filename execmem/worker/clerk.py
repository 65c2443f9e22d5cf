# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that stays outside of a fence, and does there what one inside asks for by name.

What it can be asked for is settled before the fence is made. Files are open for who is inside, and
only whether they are complete is said later. So a guest that got out of the emulator has what the
command line named to be written, and no more.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from allocator.errors import ExecmemError
from allocator.files import hand, replacing
from execmem.worker.watch import flush

_LONGEST = 1 << 12  # bytes of a request, and of what is said of a file
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@attrs.frozen
class Outside:
    """What is done outside of a fence, beside putting files in their places.

    Parameters
    ----------
    does
        What can be asked for: name -> a function, whose result is what JSON has.
    reads
        Files and folders that are read inside, beside those that are named.
    begins, ends
        Called outside, before anything is asked for and when nobody can ask any more.
    leaves
        Called inside, before the fence: what a copy of the process has now is closed here.
    """

    does: Mapping[str, Callable[[], object]] = attrs.field(factory=dict)
    reads: Sequence[Path] = ()
    begins: Callable[[], object] = lambda: None
    ends: Callable[[], object] = lambda: None
    leaves: Callable[[], object] = lambda: None


class Clerk:
    """The end of the socket that is going to be inside.

    Parameters
    ----------
    files
        Files that may be written, through `allocator.files`, once each.
    outside
        What else it does.

    Raises
    ------
    ExecmemError
        A file cannot be written.
    """

    def __init__(self, files: Iterable[str | Path], outside: Outside) -> None:
        paths = list(dict.fromkeys(map(str, files)))
        here, there = socket.socketpair()
        flush()
        if not os.fork():
            with suppress(BaseException):  # who asks sees that nobody answers
                here.close()
                _serve(there, paths, outside)
            os._exit(0)
        there.close()
        outside.leaves()
        for path in paths:
            said, descriptors, _, _ = socket.recv_fds(here, _LONGEST, 1)
            if not descriptors:
                raise ExecmemError(said.decode())
            hand(path, descriptors[0], partial(self.ask, path))
        self._descriptor = here.detach()  # read and written as a file: all that a fence allows

    def ask(self, name: str) -> Any:
        """Let it do something, and return what came of it.

        Raises
        ------
        ExecmemError
            It could not, or is gone.
        """
        told = b""
        with suppress(OSError):
            os.write(self._descriptor, name.encode())
            while not told.endswith(b"\n"):
                more = os.read(self._descriptor, 1 << 16)
                if not more:
                    break
                told += more
        if not told:
            raise ExecmemError("the process outside of the fence is gone")
        done, result = json.loads(told)
        if not done:
            raise ExecmemError(result)
        return result


class _GivenUp(Exception):
    """Nobody said that a file is complete."""


def _serve(there: socket.socket, paths: Iterable[str], outside: Outside) -> None:
    """Open files, and do what is asked for until nobody can ask."""
    for number in _ENDS:  # who is inside decides when it is over
        signal.signal(number, signal.SIG_IGN)
    opened = {}
    try:
        for path in paths:
            file = replacing(path)
            try:
                socket.send_fds(there, [b"+"], [file.__enter__().fileno()])
            except ExecmemError as error:
                there.sendall(str(error).encode()[:_LONGEST])
                return
            opened[path] = file
        outside.begins()
        while asked := there.recv(_LONGEST).decode():
            try:
                if asked in opened:
                    opened.pop(asked).__exit__(None, None, None)
                answer = True, outside.does[asked]() if asked in outside.does else None
            except ExecmemError as error:
                answer = False, str(error)
            there.sendall(json.dumps(answer).encode() + b"\n")
    finally:
        for file in opened.values():
            with suppress(_GivenUp):
                file.__exit__(_GivenUp, _GivenUp(), None)
        outside.ends()
