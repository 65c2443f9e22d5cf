# SPDX-License-Identifier: GPL-2.0-or-later
"""Module files: plain, or compressed the ways a kernel installs them.

The format is told by the first bytes, not by the name. Decompression stops at a limit,
so that a small hostile file cannot fill the host's memory.
"""

from __future__ import annotations

import lzma
import zlib
from pathlib import Path

import attrs

from loader.errors import BadModule

MAX_SIZE = 1 << 30
MAX_WINDOW = 1 << 28  # bytes that a decompressor may keep; xz -9 needs 65 MiB
SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")

_XZ, _GZIP, _ZSTD = b"\xfd7zXZ\x00", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@attrs.frozen
class ModuleFile:
    """A module's file that is not on disk: its name there, and its bytes as stored there."""

    name: str
    data: bytes = attrs.field(repr=False)

    @classmethod
    def read(cls, path: str | Path) -> ModuleFile:
        """Return what lies at `path`; BadModule where nothing can be read, or too much."""
        name = Path(path).name
        try:
            with Path(path).open("rb") as file:
                raw = file.read(MAX_SIZE + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise BadModule(name, "file", getattr(error, "strerror", None) or str(error)) from None
        if len(raw) > MAX_SIZE:
            raise BadModule(name, "file", f"larger than {MAX_SIZE:#x} bytes")
        return cls(name, raw)

    def image(self) -> bytes:
        """Return the ELF image; BadModule when compressed data is damaged or too large."""
        return decompress(self.data, self.name)


def module_name(path: str | Path) -> str:
    """Return the module's name as the kernel spells it, from its file's name.

    >>> module_name("kernel/lib/crc-itu-t.ko.xz")
    'crc_itu_t'
    """
    return Path(path).name.split(".ko")[0].replace("-", "_")


def is_file(path: str | Path) -> bool:
    """Return whether there is a file at `path`, which may be no path that a system takes."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long; a NUL in it
        return False


def read_module(path: str | Path) -> bytes:
    """Return the ELF image that the file at `path` holds.

    Raises
    ------
    BadModule
        When the file cannot be read or its compressed data is damaged or too large.
    """
    return ModuleFile.read(path).image()


def decompress(raw: bytes, name: str) -> bytes:
    """Return `raw` as it is, or decompressed when it is an xz, gzip or zstd stream."""
    try:
        if raw.startswith(_XZ):
            return _bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_WINDOW), raw, name)
        if raw.startswith(_GZIP):
            return _bounded(zlib.decompressobj(wbits=31), raw, name)
        if raw.startswith(_ZSTD):
            return _zstd(raw, name)
    except (lzma.LZMAError, zlib.error) as error:
        raise BadModule(name, "compressed data", f"damaged: {error}") from None
    return raw


def _bounded(stream: lzma.LZMADecompressor | zlib._Decompress, raw: bytes, name: str) -> bytes:
    image = stream.decompress(raw, MAX_SIZE)
    if not stream.eof:
        what = f"larger than {MAX_SIZE:#x} bytes" if len(image) >= MAX_SIZE else "truncated"
        raise BadModule(name, "compressed data", what)
    return image


def _zstd(raw: bytes, name: str) -> bytes:
    try:
        import zstandard
    except ImportError:
        reason = "zstd needs the 'zstandard' package: pip install 'execmem[zstd]'"
        raise BadModule(name, "compressed data", reason) from None
    stream = zstandard.ZstdDecompressor().decompressobj()
    image = bytearray()
    try:
        # 4 KiB of input give at most 128 MiB, so the limit is not overrun by more than that.
        for at in range(0, len(raw), 4096):
            image += stream.decompress(raw[at : at + 4096])
            if len(image) >= MAX_SIZE:
                raise BadModule(name, "compressed data", f"larger than {MAX_SIZE:#x} bytes")
            if stream.eof:
                return bytes(image)
    except zstandard.ZstdError as error:
        raise BadModule(name, "compressed data", f"damaged: {error}") from None
    raise BadModule(name, "compressed data", "truncated")
