# SPDX-License-Identifier: GPL-2.0-or-later
r"""Booted machines in files: what has become of a kernel since its boot, as plain data.

    execmem snapshot 1\n | SHA-256 of the rest | length of the head, 4 bytes | head: JSON | parts

A boot is a function of the kernel's file, its parameters and this program, so a file holds the
pages that differ from it, registers by name, and what the machine knows beside: no kernel's
bytes but those. The parts stand there compressed (zlib), one behind the other. Nothing of a file
is believed: whoever reads one knows what form everything must have, and how much of it there may
be.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from allocator.files import open_regular, reason_of
from kernels.errors import BadSnapshot

MAGIC = b"execmem snapshot "
VERSION = 1
_START = MAGIC + b"%d\n"
_DIGEST, _LENGTH = 32, struct.Struct("<I")
_LARGEST = 1 << 32  # bytes of a file
_HEAD = 1 << 24  # of its head
_LEVEL = 1  # of compression: others take ten times as long for a tenth less


@attrs.frozen
class Saved:
    """A file's contents.

    Parameters
    ----------
    name
        The file.
    head
        What is told of the machine, and what its parts are.
    """

    name: str
    head: Mapping[str, Any] = attrs.field(repr=False)
    _parts: memoryview = attrs.field(repr=False)

    def part(self, name: str, most: int) -> bytes:
        """Return a part, of at most so many bytes; BadSnapshot."""
        try:
            start, size, whole = (int(each) for each in self.head["parts"][name])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise BadSnapshot(self.name, f"has no part {name!r} as it should be") from None
        if not (start >= 0 and 0 <= size <= len(self._parts) - start and 0 <= whole <= most):
            raise BadSnapshot(self.name, f"part {name!r} lies outside of it, or is too large")
        unpacked = zlib.decompressobj()
        try:
            data = unpacked.decompress(self._parts[start : start + size], whole + 1)
        except zlib.error as error:
            raise BadSnapshot(self.name, f"part {name!r}: {error}") from None
        if len(data) != whole or not unpacked.eof or unpacked.unused_data:
            raise BadSnapshot(self.name, f"part {name!r} is not as long as is said of it")
        return data


def write(path: str | Path, head: Mapping[str, Any], parts: Mapping[str, bytes]) -> None:
    """Write a file; it is there when it is whole. Equal contents give equal bytes.

    Raises
    ------
    BadSnapshot
        It cannot be written.
    """
    packed = {name: zlib.compress(data, _LEVEL) for name, data in parts.items()}
    places: dict[str, tuple[int, int, int]] = {}
    at = 0
    for name, data in packed.items():
        places[name] = at, len(data), len(parts[name])
        at += len(data)
    text = json.dumps({**head, "parts": places}, sort_keys=True, separators=(",", ":")).encode()
    pieces = [_LENGTH.pack(len(text)), text, *packed.values()]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    place = Path(path)
    try:
        fd, busy = tempfile.mkstemp(prefix=f".{place.name}-", dir=place.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.writelines([_START % VERSION, digest.digest(), *pieces])
            mask = os.umask(0)
            os.umask(mask)
            Path(busy).chmod(0o666 & ~mask)  # as `open` would have made it
            Path(busy).replace(place)
        except BaseException:
            with suppress(OSError):
                Path(busy).unlink()
            raise
    except (OSError, ValueError) as error:
        raise BadSnapshot(str(path), reason_of(error)) from None


def read(path: str | Path) -> Saved:
    """Return what a file holds, if it is whole.

    Raises
    ------
    BadSnapshot
        There is none, it is damaged, or of another kind.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise BadSnapshot(str(path), reason_of(error)) from None
    return parse(str(path), data)


def parse(name: str, data: bytes) -> Saved:
    """Return what a file's bytes hold; BadSnapshot."""
    start, line, _ = data[:64].partition(b"\n")
    version = start.removeprefix(MAGIC)
    if not start.startswith(MAGIC) or not line or not version.isdigit():
        raise BadSnapshot(name, "is no snapshot of execmem")
    if int(version) != VERSION:
        reason = f"has format {int(version)}, and this execmem reads {VERSION}"
        raise BadSnapshot(name, f"{reason}: use the version that saved it")
    at = len(start) + 1
    view = memoryview(data)
    digest, rest = data[at : at + _DIGEST], view[at + _DIGEST :]
    if len(data) > _LARGEST or hashlib.sha256(rest).digest() != digest:
        raise BadSnapshot(name, "is damaged or not whole: its digest is another")
    size = _LENGTH.unpack_from(rest)[0] if len(rest) >= _LENGTH.size else _HEAD + 1
    if size > min(_HEAD, len(rest) - _LENGTH.size):
        raise BadSnapshot(name, "is damaged: its head is longer than it can be")
    end = _LENGTH.size + size
    try:
        head = json.loads(bytes(rest[_LENGTH.size : end]))
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise BadSnapshot(name, "is damaged: its head is not what it should be")
    return Saved(name, head, rest[end:])
