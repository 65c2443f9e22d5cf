# SPDX-License-Identifier: GPL-2.0-or-later
"""Module files: plain, or compressed the ways a kernel installs them.

The format is told by the first bytes, not by the name. Beside xz, gzip and zstd, bzip2 and
lzma are read, which Python has; what else is known by its magic is refused by name.
Decompression goes in small steps and stops at a limit, so that a small hostile file cannot
fill the host's memory.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from allocator.files import open_regular, reason_of
from loader.errors import BadModule

MAX_SIZE = 1 << 30
# Bytes that any compressed file may give, and beyond it for each byte that it has: modules come
# to ten, bombs to sixty thousand.
SMALL, RATIO = 1 << 26, 256
MAX_WINDOW = 1 << 28  # bytes that a decompressor may keep; xz -9 needs 65 MiB
ZSTD_WINDOW = 1 << 27  # what the zstd program takes without being asked
PIECE = 1 << 16
_FIRST = 512
SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")

_XZ, _GZIP, _ZSTD = b"\xfd7zXZ\x00", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_BZIP2 = b"BZh"
_BZIP2_BLOCKS = (bytes.fromhex("314159265359"), bytes.fromhex("177245385090"))
_UNSUPPORTED = {
    b"\x04\x22\x4d\x18": "compressed with lz4, as no kernel installs modules; decompress it (lz4 -d)",
    b"\x02\x21\x4c\x18": "compressed with lz4, as no kernel installs modules; decompress it (lz4 -d)",
    b"\x89LZO\x00\r\n\x1a\n": "compressed with lzop; decompress it (lzop -d)",
    b"\x1f\x9d": "compressed with compress; decompress it (gzip -d)",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"!<arch>\n": "an ar archive; unpack it, or give a .deb by that name",
    b"\xed\xab\xee\xdb": "an RPM package; give it by a name that ends in .rpm",
    b"070701": "a cpio archive; unpack it",
}


@attrs.frozen
class ModuleFile:
    """A module's file that is not on disk: its name there, and its bytes as stored there."""

    name: str
    data: bytes = attrs.field(repr=False)

    @classmethod
    def read(cls, path: str | Path) -> ModuleFile:
        """Return what lies at `path`; BadModule where nothing can be read, or too much."""
        name = Path(path).name or str(path)
        try:
            with open_regular(path) as file:
                raw = file.read(MAX_SIZE + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise BadModule(name, "file", reason_of(error)) from None
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
    """Return whether something that is no folder is at `path`, be it a path at all."""
    try:
        return Path(path).exists() and not Path(path).is_dir()
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
    """Return `raw` as it is, or decompressed when it begins with a stream of a known format.

    What follows the first stream is treated as the format's own program does: further streams
    are decompressed too, padding is skipped.
    """
    found = _format_of(raw)
    if found is None:
        if what := unsupported(raw):
            raise BadModule(name, "file", what)
        return raw
    image, room, at = io.BytesIO(), _limit(raw), 0

    def take(piece: bytes) -> None:
        if image.tell() + len(piece) > room:
            raise BadModule(name, "compressed data", _too_large(raw))
        image.write(piece)

    try:
        while at < len(raw):
            at = found.following(raw, found.unpack(raw, at, take))
    except EOFError:
        raise BadModule(name, "compressed data", "truncated") from None
    except found.errors as error:
        raise BadModule(name, "compressed data", f"damaged: {error}") from None
    except ImportError:
        reason = "zstd needs the 'zstandard' package: pip install 'execmem[zstd]'"
        raise BadModule(name, "compressed data", reason) from None
    except _Unreadable as error:
        raise BadModule(name, "compressed data", str(error)) from None
    return image.getvalue()


def _limit(raw: bytes) -> int:
    """Return how many bytes a compressed file may give."""
    return min(MAX_SIZE, max(SMALL, RATIO * len(raw)))


def _too_large(raw: bytes) -> str:
    limit = _limit(raw)
    why = "" if limit == MAX_SIZE else f", the most that {len(raw):#x} compressed ones may give"
    return f"larger than {limit:#x} bytes{why}"


# Formats: what their own programs (xz, gzip, zstd, bzip2) accept -------------------------------


class _Unreadable(Exception):
    """What follows a stream cannot be read, or the file's format is not supported."""


@attrs.frozen(kw_only=True)
class Format:
    """A compressed format.

    Parameters
    ----------
    stream
        Returns a decompressor for one stream.
    errors
        What it raises for damaged data.
    pieces
        Yields what it makes of a chunk, in small pieces.
    following
        Returns where the next stream begins, given the end of one; the file's end for none.
    step
        Bytes to give at most at a time.
    """

    stream: Callable[[], Any]
    errors: tuple[type[Exception], ...] = ()
    pieces: Callable[[Any, bytes], Iterator[bytes]]
    following: Callable[[bytes, int], int]
    step: int = PIECE

    def unpack(self, raw: bytes, at: int, take: Callable[[bytes], object]) -> int:
        """Hand what the stream at `at` gives to `take`, in small pieces; return where it ends.

        Raises
        ------
        EOFError
            It is cut off.
        """
        stream, step = self.stream(), _FIRST
        while not stream.eof:
            chunk = raw[at : at + min(step, self.step)]
            if not chunk:
                raise EOFError
            at, step = at + len(chunk), 2 * step
            for piece in self.pieces(stream, chunk):
                take(piece)
        return at - len(stream.unused_data)


def _by_need(stream: Any, chunk: bytes) -> Iterator[bytes]:
    """Yield what lzma's and bz2's decompressors make of a chunk."""
    yield stream.decompress(chunk, PIECE)
    while not stream.eof and not stream.needs_input:
        yield stream.decompress(b"", PIECE)


def _by_tail(stream: Any, chunk: bytes) -> Iterator[bytes]:
    """Yield what zlib's decompressor makes of a chunk."""
    piece = stream.decompress(chunk, PIECE)
    while piece or stream.unconsumed_tail:
        yield piece
        if stream.eof:
            return
        piece = stream.decompress(stream.unconsumed_tail, PIECE)


def _at_once(stream: Any, chunk: bytes) -> Iterator[bytes]:
    """Yield what zstandard's decompressor makes of a chunk, which must be small."""
    yield stream.decompress(chunk)


def _after_xz(raw: bytes, at: int) -> int:
    """Skip stream padding: zeros, four at a time; nothing else may follow."""
    start = _skip_zeros(raw, at)
    if start < len(raw) and not raw.startswith(_XZ, start):
        raise _Unreadable(f"damaged: no xz stream at {start:#x}, behind one that ends at {at:#x}")
    if (start - at) % 4:
        raise _Unreadable(f"damaged: {start - at} bytes of padding at {at:#x}, no multiple of 4")
    return start


def _after_gzip(raw: bytes, at: int) -> int:
    """Look for another member; anything else is ignored, as gzip does (it warns)."""
    return at if raw.startswith(_GZIP, at) else len(raw)


def _after_bzip2(raw: bytes, at: int) -> int:
    return at if raw.startswith(_BZIP2, at) else len(raw)


def _after_zstd(raw: bytes, at: int) -> int:
    if at < len(raw) and not _is_zstd(raw, at):
        raise _Unreadable(f"damaged: no zstd frame at {at:#x}, behind one that ends there")
    return at


def _after_lzma(raw: bytes, at: int) -> int:
    if at < len(raw):
        raise _Unreadable(f"damaged: {len(raw) - at} bytes behind the only stream, at {at:#x}")
    return at


def _skip_zeros(raw: bytes, at: int) -> int:
    """Return where the first byte stands, from `at` on, that is not zero."""
    while at < len(raw):
        chunk = raw[at : at + PIECE]
        rest = chunk.lstrip(b"\0")
        if rest:
            return at + len(chunk) - len(rest)
        at += len(chunk)
    return at


def _zstd_stream() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()


def _is_zstd(raw: bytes, at: int = 0) -> bool:
    """Return whether a frame begins there, or one to be skipped."""
    return raw.startswith(_ZSTD, at) or (
        raw[at + 1 : at + 4] == _ZSTD_SKIPPABLE and raw[at] & 0xF0 == 0x50
    )


def _is_lzma(raw: bytes) -> bool:
    """Return whether a file begins as .lzma does, which has no magic; the rules are xz's own."""
    if len(raw) < 14 or raw[0] >= 225 or raw[13]:
        return False
    dictionary, size = (int.from_bytes(raw[a:b], "little") for a, b in ((1, 5), (5, 13)))
    top = 1 << dictionary.bit_length() >> 1
    usual = dictionary == 0xFFFF_FFFF or (dictionary >= 4096 and dictionary - top in (0, top // 2))
    return usual and (size == (1 << 64) - 1 or size < 1 << 38)


def _format_of(raw: bytes) -> Format | None:
    """Return the format of a file; None: it is taken for a plain one."""
    if raw.startswith(_XZ):
        return FORMATS["xz"]
    if raw.startswith(_GZIP):
        return FORMATS["gzip"]
    if raw.startswith(_BZIP2) and raw[4:10] in _BZIP2_BLOCKS:
        return FORMATS["bzip2"]
    if _is_zstd(raw):
        return zstd_format()
    return FORMATS["lzma"] if _is_lzma(raw) else None


def zstd_format() -> Format:
    """Return the format zstd, with the library's own error where it is installed."""
    try:
        from zstandard import ZstdError
    except ImportError:
        return FORMATS["zstd"]
    return attrs.evolve(FORMATS["zstd"], errors=(ZstdError,))


def unsupported(raw: bytes) -> str:
    """Return what a file is that nothing here decompresses; empty: not one that is known."""
    return next((what for magic, what in _UNSUPPORTED.items() if raw.startswith(magic)), "")


FORMATS: Mapping[str, Format] = {
    "xz": Format(
        stream=partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MAX_WINDOW),
        errors=(lzma.LZMAError,),
        pieces=_by_need,
        following=_after_xz,
    ),
    "lzma": Format(
        stream=partial(lzma.LZMADecompressor, lzma.FORMAT_ALONE, MAX_WINDOW),
        errors=(lzma.LZMAError,),
        pieces=_by_need,
        following=_after_lzma,
    ),
    "gzip": Format(
        stream=partial(zlib.decompressobj, 31),
        errors=(zlib.error,),
        pieces=_by_tail,
        following=_after_gzip,
    ),
    "bzip2": Format(
        stream=bz2.BZ2Decompressor,
        errors=(OSError,),
        pieces=_by_need,
        following=_after_bzip2,
    ),
    # A block of three bytes and one gives 128 KiB, so that 512 bytes give 16 MiB at the most.
    "zstd": Format(stream=_zstd_stream, pieces=_at_once, following=_after_zstd, step=512),
}
