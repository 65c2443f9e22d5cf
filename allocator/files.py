# SPDX-License-Identifier: GPL-2.0-or-later
"""Files, read and written so that nothing hangs and nothing is half there.

What is read is a file, not something that may never answer. What is written lies beside its
place until all of it is on the disk, so that whatever goes wrong, what was there before is
there still.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

from allocator.errors import ExecmemError

_KINDS = {
    stat.S_IFIFO: "a pipe: write what comes out of it to a file first",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
    stat.S_IFSOCK: "a socket, not a file",
}


def reason_of(error: OSError | ValueError) -> str:
    """Return what went wrong with a file, without its name."""
    return getattr(error, "strerror", None) or str(error)


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a file for reading; OSError, at once, where it is a pipe, a device or a folder.

    ValueError where `path` is none that a system takes.
    """
    check_regular(path)  # opening a pipe alone would disturb its writer
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor), path)  # it may have been exchanged meanwhile
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | Path) -> None:
    """Raise, as `open_regular` does, where there is no file at `path`."""
    _check(os.stat(path), path)  # noqa: PTH116 -- a number or bytes are no paths here


def _check(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise OSError(errno.EINVAL, f"is {kind}", str(path))


def read_regular(path: str | Path) -> bytes:
    """Return a file's bytes; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


# Files that are open for who cannot open any: what they are for -> one, and what puts it there.
_handed: dict[str, tuple[int, Callable[[], object]]] = {}


def hand(path: str | Path, descriptor: int, done: Callable[[], object]) -> None:
    """Let `replacing` write to a file that is open already, once, and call what puts it in its place."""
    _handed[str(path)] = descriptor, done


def write_file(path: str | Path, contents: bytes | str) -> None:
    """Write a file whole or not at all; text as UTF-8. Raises as `replacing`."""
    data = contents.encode("utf-8", "backslashreplace") if isinstance(contents, str) else contents
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Give a file to write to, which takes the place of `path` once the block is done.

    A link stays, and what it leads to is replaced; a pipe or device is written to as it is.

    Raises
    ------
    ExecmemError
        It cannot be written. What was there is as before.
    """
    try:
        with _replacing(path) as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise ExecmemError(f"{path}: {reason_of(error)}") from None


@contextmanager
def _replacing(path: str | Path) -> Iterator[IO[bytes]]:
    handed = _handed.pop(str(path), None)
    if handed is not None:
        descriptor, done = handed
        with os.fdopen(descriptor, "wb") as file:
            yield file
        done()
        return
    try:
        before = os.stat(path)  # noqa: PTH116 -- a path with a NUL is refused here
    except FileNotFoundError:
        before = None
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if before is not None and (_ours(before) or not stat.S_ISREG(before.st_mode)):
        with _as_it_is(path, before) as file:
            yield file
        return
    if before is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    place = Path(os.path.realpath(path))
    beside = place.with_name(f".execmem-{os.getpid()}-{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(beside, flags, 0o666), "wb") as file:
            if before is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(place)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every file system syncs folders
        folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _ours(status: os.stat_result) -> TextIO | None:
    """Return stdout or stderr, where a file is what those are, or were when we started."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with suppress(OSError, ValueError, AttributeError):  # closed, or a test's
            both = (os.fstat(number), os.fstat(stream.fileno()))
            if any(os.path.samestat(status, each) for each in both):
                return stream
    return None


@contextmanager
def _as_it_is(path: str | Path, before: os.stat_result) -> Iterator[IO[bytes]]:
    """Give what cannot be replaced: our own stdout or stderr, a pipe that somebody reads, a device."""
    ours = _ours(before)
    if ours is not None:
        ours.flush()
        descriptor = os.dup(ours.fileno())
    else:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO and stat.S_ISFIFO(before.st_mode):
                raise OSError(errno.ENXIO, "is a pipe that nobody reads") from None
            raise
        os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        yield file
