# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes kernel images for tests: a symbol table in every order there was, and wrappers around.

The tables are written as scripts/kallsyms.c describes them, one name after the other, with a
few tokens that stand for frequent strings.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import attrs

from tests.archs.facts import facts

TOKENS = {0x80: b"sym", 0x81: b"_init", 0xFE: b"tT", 0xFF: b"__start_"}


@attrs.frozen
class Symbol:
    """A symbol as kallsyms has it."""

    address: int
    type: str
    name: str


def symbols(base: int, count: int = 3000, size: int = 0x40) -> list[Symbol]:
    """Return as many symbols from `base` on, `_text` first, and two of one name."""
    found = [Symbol(base, "T", "_text"), Symbol(base, "t", "twice")]
    found += [
        Symbol(base + size * n, "tTdDbB"[n % 6], f"sym_{n}_init" if n % 3 else f"f{n}")
        for n in range(2, count - 2)
    ]
    long = "l" + "o" * 140 + "ng"
    return [
        *found,
        Symbol(base + size * count, "t", "twice"),
        Symbol(base + size * count, "T", long),
    ]


def _aligned(image: bytearray, align: int) -> None:
    image.extend(bytes(-len(image) % align))


def kallsyms(listed: Sequence[Symbol], start: int, base: int, layout: str) -> bytes:
    """Return the tables, which will lie at byte `start` of an image that lies at `base`.

    Parameters
    ----------
    layout
        `6.1`: offsets before the names; `6.2`: the same with an order by name after the
        markers; `6.12`: offsets behind the tokens; `percpu`: as 6.12, absolute where not
        negative; `7.0`: offsets from their own place; `relocated`: as 6.1 with a base that is
        0 in the file.
    """
    image = bytearray(bytes(-start % 8))
    old = layout in ("6.1", "6.2", "relocated")
    align = 4 if layout == "7.0" else 8

    def offsets() -> None:
        _aligned(image, align)
        for number, symbol in enumerate(listed):
            if layout == "7.0":
                value = symbol.address - (base + start + len(image))
            elif layout == "percpu":
                value = symbol.address if symbol.address < 1 << 31 else base - 1 - symbol.address
            else:
                value = symbol.address - base
            del number
            image.extend(struct.pack("<i", value if value < 1 << 31 else value - (1 << 32)))
        if layout != "7.0":
            _aligned(image, 8)
            image.extend(struct.pack("<Q", 0 if layout == "relocated" else base))

    if old:
        offsets()
    _aligned(image, align)
    image.extend(struct.pack("<I", len(listed)))
    _aligned(image, align)
    names, markers = bytearray(), []
    for number, symbol in enumerate(listed):
        if number % 256 == 0:
            markers.append(len(names))
        packed = (symbol.type + symbol.name).encode()
        for code, text in TOKENS.items():
            packed = packed.replace(text, bytes([code]))
        if len(packed) > 0x7F:
            names.extend((len(packed) & 0x7F | 0x80, len(packed) >> 7))
        else:
            names.append(len(packed))
        names.extend(packed)
    image.extend(names)
    _aligned(image, align)
    image.extend(struct.pack(f"<{len(markers)}I", *markers))
    if layout == "6.2":
        _aligned(image, align)
        image.extend(b"\1\2\3" * len(listed))
    _aligned(image, align)
    tokens = [TOKENS.get(code, bytes([code]) if 32 < code < 127 else b"?") for code in range(256)]
    image.extend(b"".join(token + b"\0" for token in tokens))
    _aligned(image, align)
    starts, at = [], 0
    for token in tokens:
        starts.append(at)
        at += len(token) + 1
    image.extend(struct.pack("<256H", *starts))
    if not old:
        offsets()
    return bytes(image)


def export_table(
    entries: Sequence[tuple[str, int, str]], start: int, base: int, strings_at: int
) -> tuple[bytes, bytes]:
    """Return a self-relative `__ksymtab` of (name, address, namespace) and its strings."""
    strings, table = bytearray(b"\0"), bytearray()
    for name, address, space in entries:
        where = [0, 0]
        for index, text in enumerate((name, space)):
            if text:
                where[index] = len(strings)
                strings.extend(text.encode() + b"\0")
        targets = (address, base + strings_at + where[0], base + strings_at + where[1])
        for target in targets:
            table.extend(struct.pack("<i", target - (base + start + len(table))))
    return bytes(table), bytes(strings)


def flat(machine: int, body: bytes, size: int) -> bytes:
    """Return an Image: a header of 64 bytes, then the body."""
    header = bytearray(64)
    header[:2] = b"MZ"
    struct.pack_into("<QQ", header, 8, 0, size)
    for at, mark in (facts(machine).load.image_marks or {}).items():
        header[at : at + len(mark)] = mark
    return bytes(header) + body


def elf(machine: int, body: bytes, base: int, size: int) -> bytes:
    """Return a vmlinux of one segment."""
    at = 64 + 56
    header = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, base, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    return header + struct.pack("<IIQQQQQQ", 1, 7, at, base, 0, len(body), size, 0x1000) + body


def bzimage(payload: bytes, sectors: int = 3) -> bytes:
    """Return a bzImage with a packed payload, some bytes behind the setup code."""
    setup = bytearray((sectors + 1) * 512)
    setup[0x1F1] = sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<II", setup, 0x248, 100, len(payload))
    return bytes(setup) + bytes(100) + payload + b"behind it"


def zboot(payload: bytes, kind: bytes) -> bytes:
    """Return an EFI zboot image with a packed payload."""
    header = b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload)) + bytes(8) + kind
    return header.ljust(64, b"\0") + payload
