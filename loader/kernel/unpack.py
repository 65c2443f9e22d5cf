# SPDX-License-Identifier: GPL-2.0-or-later
"""From a kernel's file to its code: the wrappers that boot loaders and firmware see.

* bzImage (x86): a setup header, then the payload at `payload_offset`
  (Documentation/arch/x86/boot.rst); the payload is a packed ELF file.
* EFI zboot (arm64, riscv64, loongarch): `MZ`, `zimg`, place and size of the payload
  (drivers/firmware/efi/libstub/zboot-header.S).
* Image (arm64, riscv64): flat, with a header of 64 bytes
  (Documentation/arch/arm64/booting.rst, Documentation/arch/riscv/boot-image-header.rst).
* an ELF vmlinux.

Each may be packed as a whole. What packs is told by the first bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import attrs

from loader.errors import BadKernel
from loader.files import FORMATS, Format, zstd_format

MAX_IMAGE = 1 << 30  # bytes of an unpacked image; debug information included
MAX_WRAPPERS = 4
_LZ4_BLOCK = 8 << 20  # uncompressed bytes of a block in the legacy format
_SETUP = 0x1F1  # where the setup header begins
_SECTOR = 512
_HEADER = 4096


@attrs.frozen
class Payload:
    """What was in a kernel's file.

    Parameters
    ----------
    data
        An ELF file, or a flat image.
    wrappers
        What was around it, outermost first: `bzImage`, `EFI zboot`, names of packers.
    header
        The first 4 KiB of a bzImage, where its setup header is.
    """

    data: bytes = attrs.field(repr=False)
    wrappers: tuple[str, ...]
    header: bytes = attrs.field(default=b"", repr=False, eq=False)


def unwrap(raw: bytes, name: str) -> Payload:
    """Return what a kernel's file holds under all its wrappers.

    Raises
    ------
    BadKernel
        Damaged, too large, or packed in a way that nothing here unpacks.
    """
    found: list[str] = []
    header = b""
    while len(found) <= MAX_WRAPPERS:
        if raw[0x202:0x206] == b"HdrS":
            found.append("bzImage")
            header = raw[:_HEADER]
            raw = _payload_of_bzimage(raw, name)
        elif raw[:2] == b"MZ" and raw[4:8] == b"zimg":
            found.append("EFI zboot")
            at, size = struct.unpack_from("<II", raw, 8) if len(raw) >= 16 else (0, 0)
            raw = _cut(raw, at, size, name, "EFI zboot header")
        elif kind := next((k for k in _PACKERS if raw.startswith(_PACKERS[k][0])), None):
            found.append(kind)
            raw = _unpacked(raw, kind, name)
        else:
            return Payload(raw, tuple(found), header)
    raise BadKernel(name, "image", f"more than {MAX_WRAPPERS} wrappers: {', '.join(found)}")


def _payload_of_bzimage(raw: bytes, name: str) -> bytes:
    if len(raw) < 0x268:
        raise BadKernel(name, "setup header", "is cut off")
    (version,) = struct.unpack_from("<H", raw, 0x206)
    if version < 0x208:
        what = f"boot protocol {version >> 8}.{version & 0xFF:02} does not say where the payload is"
        raise BadKernel(name, "setup header", what)
    start = ((raw[_SETUP] or 4) + 1) * _SECTOR
    at, size = struct.unpack_from("<II", raw, 0x248)
    return _cut(raw, start + at, size, name, "setup header")


def _cut(raw: bytes, at: int, size: int, name: str, where: str) -> bytes:
    if not size or at + size > len(raw):
        reason = f"payload [{at:#x}, {at + size:#x}) is not in the file, which has {len(raw):#x}"
        raise BadKernel(name, where, reason)
    return raw[at : at + size]


def _unpacked(raw: bytes, kind: str, name: str) -> bytes:
    """Return what a packer's stream holds; what follows it (sizes, padding) is left."""
    try:
        return _PACKERS[kind][1](raw, name)
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise BadKernel(name, f"{kind} data", f"damaged: {error}") from None


def _stream(raw: bytes, name: str, kind: str, found: Format) -> bytes:
    """Return what the first stream holds, up to the limit."""
    image = bytearray()

    def take(piece: bytes) -> None:
        image.extend(piece)
        if len(image) > MAX_IMAGE:
            raise BadKernel(name, f"{kind} data", f"holds more than {MAX_IMAGE:#x} bytes")

    try:
        found.unpack(raw, 0, take)
    except EOFError:
        raise BadKernel(name, f"{kind} data", "is cut off") from None
    except found.errors as error:
        raise BadKernel(name, f"{kind} data", f"damaged: {error}") from None
    return bytes(image)


def _known(kind: str) -> Callable[[bytes, str], bytes]:
    """Return what unpacks a format that modules are packed with, too."""
    return lambda raw, name: _stream(raw, name, kind, FORMATS[kind])


def _zstd(raw: bytes, name: str) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise BadKernel(name, "zstd data", _needs("zstandard")) from None

    def stream() -> Any:  # images may want larger windows than modules
        return zstandard.ZstdDecompressor(max_window_size=1 << 30).decompressobj()

    # 4 KiB of input give at most 128 MiB, so the limit is not overrun by more than that.
    return _stream(raw, name, "zstd", attrs.evolve(zstd_format(), stream=stream, step=4096))


def _lz4(raw: bytes, name: str) -> bytes:
    """Unpack the legacy format, which the kernel's build uses: blocks with their sizes."""
    import lz4.block

    parts: list[bytes] = []
    at, total = 4, 0
    while at + 4 <= len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        # The build appends the size of the image, which is no block.
        if not size or at + 4 + size > len(raw):
            break
        block = lz4.block.decompress(raw[at + 4 : at + 4 + size], uncompressed_size=_LZ4_BLOCK)
        parts.append(block)
        total += len(block)
        at += 4 + size
        if total > MAX_IMAGE:
            raise BadKernel(name, "lz4 data", f"holds more than {MAX_IMAGE:#x} bytes")
        if len(block) < _LZ4_BLOCK:
            return b"".join(parts)
    if at + 4 < len(raw) or not parts:
        raise BadKernel(name, "lz4 data", "is cut off")
    return b"".join(parts)


def _lzo(raw: bytes, name: str) -> bytes:
    """Unpack lzop's format: a header, then blocks with both sizes and a checksum or two."""
    try:
        from lzallright import LZOCompressor, LZOError
    except ImportError:
        raise BadKernel(name, "lzo data", _needs("lzallright")) from None
    try:
        at = len(_PACKERS["lzo"][0])
        version, _, _, method = struct.unpack_from(">HHHB", raw, at)
        at += 7 + (1 if version >= 0x940 else 0)  # level
        (flags,) = struct.unpack_from(">I", raw, at)
        at += 4 + (4 if flags & 0x800 else 0) + 8  # filter, mode, time
        at += 4 if version >= 0x940 else 0
        at += 1 + raw[at] + 4  # name, checksum
        if method not in (1, 2, 3):
            raise BadKernel(name, "lzo data", f"method {method} is not known")
        parts: list[bytes] = []
        total = 0
        while True:
            (full,) = struct.unpack_from(">I", raw, at)
            if not full:
                return b"".join(parts)
            (size,) = struct.unpack_from(">I", raw, at + 4)
            total += full
            if full > 64 << 20 or total > MAX_IMAGE:
                raise BadKernel(name, "lzo data", f"holds more than {MAX_IMAGE:#x} bytes")
            at += 8 + 4 * ((flags & 1) + (flags >> 8 & 1))
            if size < full:
                at += 4 * ((flags >> 1 & 1) + (flags >> 9 & 1))
            block = _cut(raw, at, size, name, "lzo block")
            parts.append(block if size == full else LZOCompressor.decompress(block, full))
            at += size
    except LZOError as error:
        raise BadKernel(name, "lzo data", f"damaged: {error}") from None
    except (struct.error, IndexError):
        raise BadKernel(name, "lzo data", "is cut off") from None


def _needs(package: str) -> str:
    return f"needs the package '{package}': pip install 'execmem[kernels]'"


_PACKERS: dict[str, tuple[bytes, Callable[[bytes, str], bytes]]] = {
    "gzip": (b"\x1f\x8b", _known("gzip")),
    "xz": (b"\xfd7zXZ\0", _known("xz")),
    "zstd": (b"\x28\xb5\x2f\xfd", _zstd),
    "bzip2": (b"BZh", _known("bzip2")),
    "lzma": (b"\x5d\0\0", _known("lzma")),
    "lz4": (b"\x02\x21\x4c\x18", _lz4),
    "lzo": (b"\x89LZO\0\r\n\x1a\n", _lzo),
}
