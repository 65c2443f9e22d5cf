# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that a debugger may fetch from the server: those that were offered, and no others.

They are made when they are asked for first. Numbers of errors are those of gdb's File-I/O
protocol, which are the same as Linux' for the few that are used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from machine.gdb.wire import escaped

_ENOENT, _EBADF, _EPERM, _EINVAL, _EMFILE = 2, 9, 1, 22, 24
_MOST = 64  # files that are open at once
_WRITING = 0x3  # O_WRONLY, O_RDWR of the protocol
_REGULAR = 0o100_444


class Files:
    """Files under names that begin with a slash.

    Parameters
    ----------
    offered
        Returns what makes each file's contents, by its name.
    """

    def __init__(self, offered: Callable[[], Mapping[str, Callable[[], bytes]]]) -> None:
        self._offered = offered
        self._open: dict[int, bytes] = {}

    def answer(self, body: bytes, most: int) -> bytes:
        """Return the answer to a request, which stands behind `vFile:`; ValueError for none.

        Parameters
        ----------
        body
            The request.
        most
            Bytes of an answer.
        """
        what, _, rest = body.partition(b":")
        words = rest.split(b",")
        if what == b"setfs":
            return b"F0"
        if what == b"open":
            return self._opened(words)
        if what in (b"pread", b"fstat", b"close"):
            return self._of_open(what, [int(word, 16) for word in words], most)
        if what in (b"pwrite", b"unlink"):
            return _error(_EPERM)
        if what in (b"readlink", b"stat"):
            return _error(_EINVAL)
        return b""

    def _opened(self, words: list[bytes]) -> bytes:
        name = bytes.fromhex(words[0].decode("ascii")).decode("utf-8", "replace")
        if int(words[1], 16) & _WRITING:
            return _error(_EPERM)
        make = self._offered().get(name)
        if make is None:
            return _error(_ENOENT)
        if len(self._open) >= _MOST:
            return _error(_EMFILE)
        number = next(n for n in range(3, 3 + _MOST) if n not in self._open)
        self._open[number] = make()
        return b"F%x" % number

    def _of_open(self, what: bytes, numbers: list[int], most: int) -> bytes:
        data = self._open.get(numbers[0])
        if data is None:
            return _error(_EBADF)
        if what == b"close":
            del self._open[numbers[0]]
            return b"F0"
        if what == b"fstat":
            return _attached(_stat(len(data)))
        count, offset = numbers[1], numbers[2]
        if count < 0 or offset < 0:
            return _error(_EINVAL)
        # Escaped bytes take two.
        return _attached(data[offset : offset + min(count, most // 2)])


def _error(number: int) -> bytes:
    return b"F-1,%x" % number


def _attached(data: bytes) -> bytes:
    return b"F%x;" % len(data) + escaped(data)


def _stat(size: int) -> bytes:
    """Return struct stat of the protocol, numbers with the high byte first."""
    words = (0, 0, _REGULAR, 1, 0, 0, 0)
    return struct.pack(">7IQQQ3I", *words, size, 4096, (size + 511) // 512, 0, 0, 0)
