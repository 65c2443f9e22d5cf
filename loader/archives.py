# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules in packages and tarballs, read one after the other and never unpacked to disk.

A distribution's kernel is a `.deb` (an `ar` archive with a tarball in it), an `.rpm` (a cpio
archive behind headers) or a tarball, and what is in them is compressed as one stream. So an
archive is read from front to back, again for each purpose: what modules need (`Archive`
looks for that first), then the modules themselves. Only modules that others need are kept.

Every read is bounded: what an archive says of sizes decides nothing about memory.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import attrs

from allocator.errors import ExecmemError
from allocator.files import open_regular, reason_of
from loader.depends import depends_of
from loader.errors import BadModule
from loader.files import SUFFIXES, ModuleFile, module_name

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_MEMBER = 1 << 28  # bytes of one file as it is stored
MAX_HEADER = 1 << 20  # bytes of one name or extended header of a tarball
XZ_MEMORY = 1 << 28  # what the decompressor may take; xz -9 needs a quarter
_CHUNK = 1 << 16
_SUFFIX = re.compile(r"\.(deb|rpm|tar|tar\.(gz|xz|bz2|zst)|tgz|txz|tbz2?)$")
_TREE = re.compile(r"(?:.*/)?lib/modules/[^/]+(?=/)")
_LONG = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def is_archive(path: str | Path) -> bool:
    """Return whether a file is an archive by its name."""
    return _SUFFIX.search(Path(path).name) is not None


@attrs.frozen
class ArchiveMember:
    """A module's file in an archive.

    Parameters
    ----------
    path
        Where it lies in the archive.
    size
        Bytes as stored.
    file
        What is stored; None where it is larger than `MAX_MEMBER`.
    """

    path: str
    size: int
    file: ModuleFile | None

    @property
    def key(self) -> tuple[str, str]:
        """The tree that it belongs to, and the module's name."""
        tree = _TREE.match(self.path)
        return tree[0] if tree else "", module_name(self.path)


@attrs.frozen
class Archive:
    """An archive whose modules' dependencies are known.

    Parameters
    ----------
    path
        The archive.
    needs
        A member's key -> the keys of what it needs, in the order to load them.
    kept
        Key -> file, of all that others need.
    """

    path: Path
    needs: Mapping[tuple[str, str], tuple[tuple[str, str], ...]]
    kept: Mapping[tuple[str, str], ModuleFile]

    def needed(self, member: ArchiveMember) -> tuple[ModuleFile, ...]:
        """Return the files to load before a member; what is not in the archive is left out."""
        return tuple(self.kept[key] for key in self.needs.get(member.key, ()) if key in self.kept)


def open_archive(path: Path) -> Archive:
    """Return an archive after reading what its modules depend on (`depends=` in `.modinfo`).

    Raises
    ------
    BadModule
        The archive is damaged, or a library that reads such ones is not installed.
    """
    direct = {
        member.key: tuple((member.key[0], name) for name in depends_of(member.file))
        for member in modules_in(path)
        if member.file is not None
    }
    needs = {key: tuple(_order(key, direct)) for key in direct}
    wanted = {needed for keys in needs.values() for needed in keys}
    kept = {m.key: m.file for m in modules_in(path) if m.key in wanted and m.file is not None}
    return Archive(path, needs, kept)


def _order(
    key: tuple[str, str], direct: Mapping[tuple[str, str], tuple[tuple[str, str], ...]]
) -> list[tuple[str, str]]:
    """Return all that a module needs, deepest first; a cycle ends where it began."""
    order: dict[tuple[str, str], None] = {}
    seen, todo = {key}, [iter(direct[key])]
    path = [key]
    while todo:
        needed = next(todo[-1], None)
        if needed is None:
            todo.pop()
            order[path.pop()] = None
        elif needed not in seen:
            seen.add(needed)
            path.append(needed)
            todo.append(iter(direct.get(needed, ())))
    return [found for found in order if found != key]


def modules_in(path: Path) -> Iterator[ArchiveMember]:
    """Yield the modules in an archive, in its order.

    Raises
    ------
    BadModule
        The archive is damaged from here on, or a library that reads it is not installed.
    """
    return files_in(path, lambda name: name.endswith(SUFFIXES))


def files_in(path: Path, wanted: Callable[[str], bool]) -> Iterator[ArchiveMember]:
    """Yield the files in an archive whose paths are wanted, in its order; raises as `modules_in`."""
    reader = _READERS.get(path.suffix, _tarball)
    with ExitStack() as stack:
        try:
            found = reader(stack.enter_context(open_regular(path)), stack)
            while (member := next(found, None)) is not None:
                if wanted(member[0].removeprefix("./")):
                    yield _member(*member)
        except ExecmemError:
            raise
        except ImportError as error:
            reason = f"needs the '{error.name}' package: pip install 'execmem[archives]'"
            raise BadModule(path.name, "archive", reason) from None
        except OSError as error:
            if error.errno is None:  # a library's own
                raise BadModule(path.name, "archive", f"damaged: {error}") from None
            raise BadModule(path.name, "archive", reason_of(error)) from None
        except Exception as error:  # noqa: BLE001 -- the libraries raise whatever damage leads to
            reason = f"damaged: {error or type(error).__name__}"
            raise BadModule(path.name, "archive", reason) from None


def _member(path: str, size: int, read: Callable[[], bytes]) -> ArchiveMember:
    path = path.removeprefix("./")
    if size > MAX_MEMBER:
        return ArchiveMember(path, size, None)
    return ArchiveMember(path, size, ModuleFile(path.rpartition("/")[2], read()))


_Found = Iterator[tuple[str, int, Callable[[], bytes]]]


def _tarball(file: IO[bytes], stack: ExitStack) -> _Found:
    plain = stack.enter_context(_plain(file))
    opened = tarfile.open(fileobj=plain, mode="r|", bufsize=_CHUNK, tarinfo=_BoundedHeader)  # noqa: SIM115 -- on the stack
    stack.enter_context(opened)
    for info in opened:
        if info.isreg() and not info.issparse():
            yield info.name, info.size, partial(_contents, opened, info)


class _BoundedHeader(tarfile.TarInfo):
    """A header that is refused when what it announces would be read whole and is large."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _BoundedHeader:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _LONG and info.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {info.size:#x} bytes")
        return info


def _contents(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    assert file is not None
    data = file.read()
    if len(data) < info.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _deb(file: IO[bytes], stack: ExitStack) -> _Found:
    """Read `data.tar` of a Debian package; deb(5)."""
    import unix_ar

    for info in unix_ar.ArFile(file).infolist():
        if info.name.startswith(b"data.tar"):
            inner = stack.enter_context(_FileSlice(file, info.offset + 60, info.size))
            return _tarball(cast(IO[bytes], inner), stack)
    raise tarfile.ReadError("no data.tar")


def _rpm(file: IO[bytes], stack: ExitStack) -> _Found:
    """Read an RPM's cpio archive: once for its list, once for what is in it."""
    import rpmfile

    class Rpm(rpmfile.RPMFile):  # type: ignore[misc] # the library has no types
        data_file: Any = None  # the library's own is unbounded

    packages = []
    for _ in range(2):
        file.seek(0)
        package = Rpm(fileobj=file)
        size = file.seek(0, io.SEEK_END) - package.data_offset
        part = stack.enter_context(_FileSlice(file, package.data_offset, size))
        package.data_file = _Forward(stack.enter_context(_plain(cast(IO[bytes], part))))
        packages.append(package)
    listing, reading = packages
    for info in listing.getmembers():
        if not info.issymlink:
            yield info.name, info.size, partial(_rpm_contents, reading, info)


def _rpm_contents(package: Any, info: Any) -> bytes:
    # The library takes a read of nothing for a read of everything.
    data: bytes = package.extractfile(info).read(info.size) if info.size else b""
    if len(data) < info.size:
        raise EOFError("unexpected end of data")
    return data


_READERS: Mapping[str, Callable[[IO[bytes], ExitStack], _Found]] = {".deb": _deb, ".rpm": _rpm}


# Streams ---------------------------------------------------------------------------------------


class _FileSlice(io.RawIOBase):
    """Part of a file, as a file; others may move the file's position meanwhile."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._at, self._start, self._size = file, 0, start, size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(view), self._size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Forward:
    """A stream that can be moved forward, and read in bounded pieces."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._at = file, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        while self._at < target and self.read(min(_CHUNK, target - self._at)):
            pass
        if self._at != target:
            raise EOFError("unexpected end of data")
        return self._at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_MEMBER:
            raise ValueError(f"an entry of {size:#x} bytes")
        data = self._file.read(size)
        self._at += len(data)
        return data


class _Xz(io.RawIOBase):
    """An xz stream whose decompressor has a memory limit, which `lzma.open` does not offer."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        while True:
            if self._stream.eof:
                rest = (self._stream.unused_data + self._file.read(_CHUNK)).lstrip(b"\0")
                if not rest:
                    return 0
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
            else:
                rest = self._file.read(_CHUNK) if self._stream.needs_input else b""
                if not rest and self._stream.needs_input:
                    raise EOFError("unexpected end of data")
            data = self._stream.decompress(rest, len(view))
            if data:
                view[: len(data)] = data
                return len(data)


def _plain(file: IO[bytes]) -> IO[bytes]:
    """Return what a file holds, decompressed where its first bytes say that it is compressed."""
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\xfd7zXZ\x00"):
        return cast(IO[bytes], io.BufferedReader(_Xz(file), _CHUNK))
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        stream = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        return cast(IO[bytes], stream.stream_reader(file, read_across_frames=True))
    return file
