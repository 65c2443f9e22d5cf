# SPDX-License-Identifier: GPL-2.0-or-later
"""Damages inputs: bytes blindly, ELF objects by their structure, text by its words.

Every mutation takes a `random.Random`, so that one implementation serves three drivers: a
seeded run that anybody can repeat, hypothesis (whose `randoms` strategy shrinks what it
found) and a coverage-guided engine that seeds it.
"""

from __future__ import annotations

import gzip
import lzma
import struct
from random import Random

from execmem.check.elfwriter import HEADER, RELOCATION, SECTION_HEADER, SYMBOL

EDGES = (0, 1, 2, 3, 4, 7, 8, 16, 23, 24, 25, 63, 64, 0xFF, 0x100, 0xFFF, 0x1000, 0xFF00, 0xFFF1)
EDGES += (0xFFFF, 1 << 21, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 47, (1 << 63) - 1)
EDGES += (1 << 63, (1 << 64) - 4096, (1 << 64) - 8, (1 << 64) - 1)
MOST = 1 << 20  # bytes that an input may grow to


def number(random: Random, bits: int, near: int = 0) -> int:
    """Return an interesting number of so many bits, often one near another."""
    kind = random.randrange(4)
    if kind == 0:
        found = random.choice(EDGES)
    elif kind == 1:
        found = near + random.choice((-8, -1, 1, 4, 8, 24, 64, 4096))
    elif kind == 2:
        found = near ^ 1 << random.randrange(bits)
    else:
        found = random.getrandbits(random.randrange(1, bits + 1))
    return found & (1 << bits) - 1


def raw(data: bytes, random: Random) -> bytes:
    """Return `data` with bytes flipped, replaced, inserted, removed, repeated or cut off."""
    found = bytearray(data)
    at = random.randrange(len(found) + 1)
    size = random.choice((1, 1, 2, 4, 8, 24, 64, 300))
    kind = random.randrange(7)
    if kind == 0 and found:
        found[at % len(found)] ^= 1 << random.randrange(8)
    elif kind == 1:
        found[at : at + size] = random.randbytes(size)
    elif kind == 2:
        found[at:at] = random.randbytes(size)
    elif kind == 3:
        del found[at : at + size]
    elif kind == 4:
        found[at:at] = found[at : at + size] * random.randrange(1, 9)
    elif kind == 5:
        width = random.choice((1, 2, 4, 8))
        near = int.from_bytes(found[at : at + width], "little")
        found[at : at + width] = number(random, 8 * width, near).to_bytes(width, "little")
    else:
        del found[at:]
    return bytes(found[:MOST])


def _set(image: bytearray, at: int, field: tuple[int, int], random: Random) -> None:
    start, width = at + field[0], field[1]
    near = int.from_bytes(image[start : start + width], "little")
    image[start : start + width] = number(random, 8 * width, near).to_bytes(width, "little")


def elf(data: bytes, random: Random) -> bytes:
    """Return an ELF object with a field of a record, or bytes of a section, changed.

    Nine in ten changes hit a record that a loader reads; the header's identity rarely.
    """
    if len(data) < 64 or random.random() < 0.04:
        return raw(data, random)
    image = bytearray(data)
    table = int.from_bytes(image[40:48], "little")
    count = min(int.from_bytes(image[60:62], "little"), (len(image) - table) // 64)
    if count < 1:
        return raw(data, random)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        kind = random.randrange(20)
        if kind == 0:
            _set(image, 0, random.choice(list(HEADER.values())), random)
            continue
        at = table + 64 * random.randrange(count)
        _, section, _, _, offset, size, *_ = struct.unpack_from("<IIQQQQIIQQ", image, at)
        if kind < 5:
            _set(image, at, random.choice(list(SECTION_HEADER.values())), random)
        elif kind == 5:  # sections change places, or become each other
            other = table + 64 * random.randrange(count)
            image[at : at + 64] = image[other : other + 64]
        elif offset + size > len(image) or not size:
            continue
        elif section == 2:
            record = offset + random.randrange(size) // 24 * 24
            if record + 24 <= len(image):
                _set(image, record, random.choice(list(SYMBOL.values())), random)
        elif section == 4:
            record = offset + random.randrange(size) // 24 * 24
            if record + 24 <= len(image):
                _set(image, record, random.choice(list(RELOCATION.values())), random)
        else:
            width = random.choice((1, 2, 4, 8))
            start = offset + random.randrange(size) // width * width
            _set(image, start, (0, min(width, offset + size - start) or 1), random)
    return bytes(image[:MOST])


WORDS = [b"", b" ", b"\t", b"\n", b":", b"..", b"/", b"\0", b"-", b"_", b"*", b"[", b"[!a-", b"]"]
WORDS += [b"?", b".ko", b".ko.zst", b"#", b"a" * 300, b"\xff", "ü".encode(), b"kernel/", b"{", b"}"]
WORDS += [b'"', b",", b"null", b"true", b"-1", b"1e400", b"9" * 30, b"0", b"281474976710656", b"[]"]
WORDS += [b'"TEXT"', b'"op"', b'"load"', b'"pages"', b'"count"', b"NaN", b"%", b"%s", b"%pV", b"%*"]
WORDS += [
    b"%-2147483648d",
    b"%.2147483647s",
    b"%pISpc",
    b"%*pbl",
    b"%99999999999999c",
    b"%ll",
    b"%n",
]


def text(data: bytes, random: Random) -> bytes:
    """Return text with words of the formats put in, moved, doubled or taken out."""
    if random.random() < 0.25:
        return raw(data, random)
    at, kind = random.randrange(len(data) + 1), random.randrange(4)
    if kind == 0:
        return (data[:at] + random.choice(WORDS) + data[at:])[:MOST]
    if kind == 1:
        end = at + random.choice((1, 2, 5, 20))
        return (data[:at] + random.choice(WORDS) + data[end:])[:MOST]
    lines = data.splitlines(keepends=True) or [b""]
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    if kind == 2:
        lines[one], lines[other] = lines[other], lines[one]
    else:
        lines.insert(other, lines[one])
    return b"".join(lines)[:MOST]


def packed(data: bytes, random: Random) -> bytes:
    """Return a compressed stream, damaged, or packed a second time."""
    if random.random() < 0.003:
        return random.choice((gzip.compress, lzma.compress))(data[:4096])
    return raw(data, random)
