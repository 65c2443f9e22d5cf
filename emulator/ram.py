# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted machine's memory: host pages that can be frozen and gone back to.

Frozen memory is a file that nobody changes, mapped private: what the guest writes are copies
of pages, and dropping them is all that going back takes, however large the memory is. The host
address stays what it is, because the emulator keeps it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FIXED, _NORESERVE = 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value
_PAGE = mmap.PAGESIZE
_CHUNK = 1 << 24  # bytes that are looked through at once
_PRESENT, _SWAPPED, _OF_FILE = (1 << bit for bit in (63, 62, 61))  # of /proc/self/pagemap


class Frozen:
    """Memory as it once was: a file without a name, or of the cache.

    Parameters
    ----------
    fd
        The file; it belongs to this object.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._closed = weakref.finalize(self, os.close, fd)

    def close(self) -> None:
        """Give the file back."""
        self._closed()

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield where it may be other than zero: first offset, end; of whole pages."""
        size = os.fstat(self.fd).st_size
        end = 0
        while end < size:
            try:
                start = os.lseek(self.fd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    return
                raise
            end = os.lseek(self.fd, start, os.SEEK_HOLE)
            end += -end % _PAGE
            yield start - start % _PAGE, end

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield what may be other than zero: offset, whole pages."""
        for first, end in self.extents():
            for start in range(first, end, _CHUNK):
                yield start, os.pread(self.fd, min(_CHUNK, end - start), start)

    def digest(self) -> str:
        """Return a digest of the contents, however the file has its holes."""
        found = hashlib.sha256()
        for start, data in self.pieces():
            pages = np.frombuffer(data, np.uint64).reshape(-1, _PAGE // 8)
            for number in np.flatnonzero(pages.any(axis=1)).tolist():
                found.update((start // _PAGE + number).to_bytes(8, "little"))
                found.update(data[number * _PAGE : (number + 1) * _PAGE])
        return found.hexdigest()


@attrs.define(eq=False)
class Ram:
    """Memory of a guest.

    Parameters
    ----------
    start, size
        Physical address, bytes.
    at
        Where on the host it is already, and somebody else's; None: it is made here.
    """

    start: int
    size: int
    at: int | None = None
    address: int = attrs.field(init=False)  # on the host
    view: memoryview = attrs.field(init=False, repr=False)
    frozen: Frozen | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        address = self.at
        if address is None:
            address = self._map(None, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1)
        self.address = address
        self.view = memoryview((ctypes.c_ubyte * self.size).from_address(address)).cast("B")
        if self.at is None:
            weakref.finalize(self, _LIBC.munmap, address, self.size)

    def _map(self, address: int | None, flags: int, fd: int) -> int:
        found = _LIBC.mmap(address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
        if found is None or found == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"{self.size} bytes of memory: {os.strerror(number)}")
        return int(found)

    # Contents ---------------------------------------------------------------------------------

    def read(self, physical: int, size: int) -> bytes:
        """Return bytes; IndexError where there is no memory."""
        at = self._offset(physical, size)
        return self.view[at : at + size].tobytes()

    def write(self, physical: int, data: bytes) -> None:
        """Store bytes; IndexError where there is no memory."""
        at = self._offset(physical, len(data))
        self.view[at : at + len(data)] = data

    def word(self, physical: int, size: int = 8) -> int:
        """Return a little-endian word; IndexError where there is no memory."""
        return int.from_bytes(self.read(physical, size), "little")

    def words(self, physical: int, count: int) -> NDArray[np.uint64] | None:
        """Return words of eight bytes at an aligned address; None where there is no memory."""
        try:
            at = self._offset(physical, 8 * count)
        except IndexError:
            return None
        return np.frombuffer(self.view, np.uint64, count, at)

    def _offset(self, physical: int, size: int) -> int:
        at = physical - self.start
        if at < 0 or at + size > self.size:
            raise IndexError(f"no memory at {physical:#x}")
        return at

    # Freezing ---------------------------------------------------------------------------------

    def freeze(self) -> Frozen:
        """Return the memory as it is now, and go on from there."""
        fd = os.memfd_create("execmem")
        frozen = Frozen(fd)
        self.save(fd)
        self.thaw(frozen)
        return frozen

    def save(self, fd: int) -> None:
        """Store the contents in an empty file; pages that are zero stay holes."""
        os.ftruncate(fd, self.size)
        words = np.frombuffer(self.view, np.uint64).reshape(-1, _PAGE // 8)
        for first, last in self._asked():
            for start in range(first, last, _CHUNK // _PAGE):
                used = np.any(words[start : min(start + _CHUNK // _PAGE, last)], axis=1)
                for begin, after in _runs(used):
                    at, end = (start + begin) * _PAGE, (start + after) * _PAGE
                    while at < end:
                        at += os.pwrite(fd, self.view[at:end], at)

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield what may be other than zero: offset, whole pages."""
        for first, last in self._asked():
            for start in range(first * _PAGE, last * _PAGE, _CHUNK):
                yield start, self.view[start : min(start + _CHUNK, last * _PAGE)].tobytes()

    def _asked(self) -> list[tuple[int, int]]:
        """Return which pages may be other than zero: first number, and end.

        Looking at a page that nobody wrote would make the host have it.
        """
        if self.frozen is None and self.at is None:
            return [(0, self.size // _PAGE)]
        asked = np.zeros(self.size // _PAGE, bool)
        if self.frozen is None:
            asked[self.changed()] = True
            return _runs(asked)
        asked[self.changed()] = True
        for start, end in self.frozen.extents():
            asked[start // _PAGE : end // _PAGE] = True
        return _runs(asked)

    def thaw(self, frozen: Frozen) -> None:
        """Become what was frozen."""
        self._map(self.address, mmap.MAP_PRIVATE | _FIXED | _NORESERVE, frozen.fd)
        self.frozen = frozen

    def melt(self) -> None:
        """Be memory of its own again, with the contents that it has now."""
        pieces = list(self.pieces())
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED | _NORESERVE
        self._map(self.address, flags, -1)
        self.frozen = None
        for start, data in pieces:
            self.view[start : start + len(data)] = data

    def drop(self) -> None:
        """Go back to what was frozen last."""
        if _LIBC.madvise(self.address, self.size, mmap.MADV_DONTNEED):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def changed(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the numbers of the pages that were written since then."""
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            file.seek(self.address // _PAGE * 8)
            entries = np.frombuffer(file.read(self.size // _PAGE * 8), np.uint64)
        there = entries & np.uint64(_PRESENT | _SWAPPED) != 0
        return np.flatnonzero(there & (entries & np.uint64(_OF_FILE) == 0))

    def pages(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """Yield what stands in pages: the offset of each run of them, and its bytes."""
        chosen = np.zeros(self.size // _PAGE, bool)
        chosen[numbers] = True
        for first, last in _runs(chosen):
            yield first * _PAGE, self.view[first * _PAGE : last * _PAGE].tobytes()

    def differing(self, base: Frozen) -> NDArray[np.int64]:
        """Return the numbers of the pages that are other than in frozen memory, in order."""
        words = np.frombuffer(self.view, np.uint64).reshape(-1, _PAGE // 8)
        if self.frozen is base:
            asked = self.changed()
            before = b"".join(os.pread(base.fd, _PAGE, at * _PAGE) for at in asked.tolist())
            there = np.frombuffer(before, np.uint64).reshape(-1, _PAGE // 8)
            chosen: NDArray[np.int64] = asked[(words[asked] != there).any(axis=1)]
            return chosen
        differs = np.zeros(self.size // _PAGE, bool)
        for first, last in self._asked():  # if base has nothing there: what is other than zero
            differs[first:last] = words[first:last].any(axis=1)
        for start, data in base.pieces():
            first, last = start // _PAGE, (start + len(data)) // _PAGE
            there = np.frombuffer(data, np.uint64).reshape(-1, _PAGE // 8)
            differs[first:last] = (words[first:last] != there).any(axis=1)
        return np.flatnonzero(differs)


def _runs(chosen: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where an array is true: first index, and end, of each run."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    return [(first, last) for first, last in edges.reshape(-1, 2).tolist()]
