# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of a booted kernel, as its first process has them: devices by their nodes, /proc, /sys.

Everything here is a system call. `/dev` is the kernel's own devtmpfs, so a node is there as soon
as a driver has registered its device.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, Self

import attrs

from kernels.errors import ErrnoError
from machine.arguments import Argument, Out

AT_FDCWD = -100
CHUNK = 1 << 16
_MOUNTS = (("/dev", "devtmpfs"), ("/proc", "proc"), ("/sys", "sysfs"))
_MODE = 0o600
_SEEK_SET = 0
_MAP_SHARED = 1
_RECLEN, _NAME = 16, 19  # struct linux_dirent64: d_reclen, d_name


class FileError(ErrnoError):
    """A file refused what it was asked for, or there is no such file."""


class Process(Protocol):
    """The machine whose first process has files."""

    def syscall(self, name: str, *args: Argument) -> int:
        """Make a system call."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of memory."""
        ...

    def user(self, contents: bytes | int) -> AbstractContextManager[int]:
        """Give user memory for a while."""
        ...


@attrs.define(eq=False)
class File:
    """A file of the process; open from `open`, or the first use, until `close`.

    Parameters
    ----------
    process
        Whose it is.
    path
        Where it is.
    flags
        As open(2) takes them.
    """

    process: Process
    path: str
    flags: int = os.O_RDWR
    _fd: int | None = attrs.field(default=None, init=False)

    @property
    def name(self) -> str:
        """What it is called in its folder."""
        return self.path.rpartition("/")[2]

    def open(self) -> Self:
        """Open it; FileError where that is refused, or it is open."""
        if self._fd is not None:
            raise FileError(self.path, "open", 0, "it is open already")
        self._fd = self._checked("open", "openat", AT_FDCWD, self.path, self.flags, _MODE)
        return self

    def close(self) -> None:
        """Close it, if it is open; what is said to that does not count."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self.process.syscall("close", fd)

    def __enter__(self) -> Self:
        if self._fd is None:
            self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes from the file's position on; none at the end."""
        buffer = Out(size)
        count = self._checked("read", "read", self._opened(), buffer, size)
        return bytes(buffer)[:count]

    def read_all(self) -> bytes:
        """Return everything from the file's position on."""
        found = bytearray()
        while piece := self.read(CHUNK):
            found += piece
        return bytes(found)

    def names(self) -> list[str]:
        """Return the names that a folder holds from its position on, sorted (getdents64)."""
        found: list[str] = []
        buffer = Out(CHUNK)
        while count := self._checked("list", "getdents64", self._opened(), buffer, CHUNK):
            data, at = bytes(buffer)[:count], 0
            while at < count:  # struct linux_dirent64
                size = int.from_bytes(data[at + _RECLEN : at + _RECLEN + 2], "little")
                name = data[at + _NAME : at + size].partition(b"\0")[0]
                found.append(name.decode("utf-8", "backslashreplace"))
                at += max(size, _NAME)
        return sorted(name for name in found if name not in (".", ".."))

    def write(self, data: bytes) -> int:
        """Write `data` at the file's position; return how many bytes of it were taken."""
        return self._checked("write", "write", self._opened(), bytes(data), len(data))

    def seek(self, offset: int, whence: int = _SEEK_SET) -> int:
        """Set the file's position, and return it (lseek)."""
        return self._checked("seek", "lseek", self._opened(), offset, whence)

    def ioctl(self, command: int, argument: int | bytes | bytearray | Out = 0) -> int:
        """Do what `command` says, and return the file's answer.

        Parameters
        ----------
        argument
            A number, or contents of user memory whose address is the argument: `bytes`; an `Out`
            is filled with what is stored there, a `bytearray` is read and filled.

        Raises
        ------
        FileError
            It was refused; ENOTTY where the command is not known.
        """
        title, fd = f"ioctl {command:#x}", self._opened()
        if isinstance(argument, int):
            return self._checked(title, "ioctl", fd, command & 0xFFFF_FFFF, argument)
        with self.process.user(bytes(argument) or b"\0") as address:
            try:
                return self._checked(title, "ioctl", fd, command & 0xFFFF_FFFF, address)
            finally:
                found = self.process.read(address, len(argument)) if len(argument) else b""
                if isinstance(argument, Out):
                    argument.data = found
                elif isinstance(argument, bytearray):
                    argument[:] = found

    @contextmanager
    def mmap(self, size: int, offset: int = 0, *, protection: int = 3) -> Iterator[int]:
        """Map `size` bytes of it into the process for a while; yield their address."""
        fd = self._opened()
        address = self._checked("mmap", "mmap", 0, size, protection, _MAP_SHARED, fd, offset)
        try:
            yield address
        finally:
            self.process.syscall("munmap", address, size)

    def _opened(self) -> int:
        if self._fd is None:
            self.open()
        assert self._fd is not None
        return self._fd

    def _checked(self, title: str, call: str, *args: Argument) -> int:
        result = self.process.syscall(call, *args)
        if result < 0:
            raise FileError(self.path, title, -result)
        return result


# What is below a folder -> a function that kernels with it have, and the option.
_OPTIONS = {
    "/proc/": ("proc_pid_lookup", "CONFIG_PROC_FS"),
    "/sys/": ("sysfs_create_file_ns", "CONFIG_SYSFS"),
}


def opened(process: Process, path: str, flags: int, symbols: Container[str]) -> File:
    """Return a file that is open; FileError says which option a kernel lacks, if that is why."""
    try:
        return File(process, path, flags).open()
    except FileError as error:
        for folder, (function, option) in _OPTIONS.items():
            if path.startswith(folder) and function not in symbols:
                reason = f"the kernel is built without {option}"
                raise attrs.evolve(error, reason=reason) from None
        raise


def mount(process: Process) -> None:
    """Let /dev, /proc and /sys be there, as far as the kernel has them.

    Raises
    ------
    FileError
        Something else than that they are there already, or are not built in.
    """
    for path, kind in _MOUNTS:
        process.syscall("mkdirat", AT_FDCWD, path, 0o755)
        result = process.syscall("mount", kind, path, kind, 0, 0)
        if -result not in (0, errno.EBUSY, errno.ENODEV):
            raise FileError(path, f"mount {kind}", -result)
