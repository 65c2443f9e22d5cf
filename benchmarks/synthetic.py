# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects of any size, to see how a link grows.

Distribution modules end at some number of relocations, and the largest are not at hand
everywhere. An object here repeats one group per architecture: a call of an undefined name,
an address of data formed by code, a pointer and a self-relative word. That is the mix of a
driver; the local labels that riscv64 objects are full of come as padding symbols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.dialect import NATIVE, RELA, SYMBOL

X86_64, AARCH64, RISCV = 62, 183, 243

WORK, TABLE, FAR, LABEL = range(4)  # what a record's symbol is; see `write`
MOST_NAMES = 900  # undefined names; amdgpu has 874


@attrs.frozen
class Group:
    """The code and data that repeat, and records as (offset, type, symbol, addend)."""

    text: bytes
    code: Sequence[tuple[int, int, int, int]]
    data: Sequence[tuple[int, int, int, int]]

    @property
    def size(self) -> int:
        """Records in one group."""
        return len(self.code) + len(self.data)


DATA = 16  # bytes of data in a group
GROUPS: Mapping[int, Group] = {
    X86_64: Group(  # call far; lea table(%rip), %rax; mov $table, %rax; nop
        bytes.fromhex("e800000000 488d0500000000 48c7c000000000 90 90909090"),
        ((1, 4, FAR, -4), (8, 2, TABLE, -4), (15, 11, TABLE, 8)),
        ((0, 1, WORK, 0), (8, 2, WORK, 0)),
    ),
    AARCH64: Group(  # bl far; adrp x0, table; add x0, x0, :lo12:table
        bytes.fromhex("00000094 00000090 00000091"),
        ((0, 283, FAR, 0), (4, 275, TABLE, 0), (8, 277, TABLE, 0)),
        ((0, 257, WORK, 0), (8, 261, WORK, 0)),
    ),
    RISCV: Group(  # call far; la a0, table
        bytes.fromhex("97000000 e7800000 17050000 13050500"),
        ((0, 19, FAR, 0), (8, 23, TABLE, 0), (12, 24, LABEL, 0)),
        ((0, 2, WORK, 0), (8, 35, WORK, 4), (8, 39, TABLE, 0)),
    ),
}


def minimal(machine: int) -> bytes:
    """Return an object with one empty function: what is left when a linker has no work."""
    return write(machine, 0)


def write(machine: int, relocations: int, symbols: int = 0) -> bytes:
    """Return an object with about `relocations` records and at least `symbols` symbols.

    Its symbols are `table` (all data), one local label per group, padding labels, `work`
    (all code) and up to MOST_NAMES undefined names that calls take in turn.
    """
    group = GROUPS[machine]
    count = -(-relocations // group.size)
    names = min(MOST_NAMES, count)
    labels = max(count, symbols - names - 3)
    entry = np.arange(count, dtype=np.uint64)
    number = {  # symbol kind -> symbol index in each group
        TABLE: np.uint64(1),
        LABEL: entry + np.uint64(2),
        WORK: np.uint64(2 + labels),
        FAR: np.uint64(3 + labels) + entry % np.uint64(max(names, 1)),
    }

    def table(records: Sequence[tuple[int, int, int, int]], size: int) -> bytes:
        rows = np.zeros((count, len(records)), RELA)
        for column, (offset, kind, symbol, addend) in enumerate(records):
            rows["offset"][:, column] = entry * np.uint64(size) + np.uint64(offset)
            rows["type"][:, column] = kind
            rows["symbol"][:, column] = number[symbol]
            rows["addend"][:, column] = np.uint64(addend & 0xFFFF_FFFF_FFFF_FFFF)
        return rows.tobytes()

    text = group.text * max(count, 1)
    strings, (label_names, far_names) = _names((".L", labels), ("far", names))
    strings = b"\0table\0work\0" + strings
    rows = np.zeros(3 + labels + names, SYMBOL)
    rows["name"][2 : 2 + labels] = label_names + 12
    rows["value"][2 : 2 + labels] = 8 + np.arange(labels) * len(group.text) % len(text)
    rows["shndx"][2 : 2 + labels] = 1
    rows[1] = (1, 0x01, 0, 3, 0, DATA * count)
    rows[2 + labels] = (7, 0x12, 0, 1, 0, len(text))
    rows["name"][3 + labels :] = far_names + 12
    rows["info"][3 + labels :] = 0x10
    titles = b"\0.text\0.rela.text\0.data\0.rela.data\0.symtab\0.strtab\0.shstrtab\0"
    contents = (
        # name, type, flags, contents, link, info, alignment, entry size
        (1, 1, 6, text, 0, 0, 16, 0),
        (7, 4, 0, table(group.code, len(group.text)), 5, 1, 8, 24),
        (18, 1, 3, bytes(DATA * count), 0, 0, 16, 0),
        (24, 4, 0, table(group.data, DATA), 5, 3, 8, 24),
        (35, 2, 0, rows.tobytes(), 6, 2 + labels, 8, 24),
        (43, 3, 0, strings, 0, 0, 1, 0),
        (51, 3, 0, titles, 0, 0, 1, 0),
    )
    headers = [bytes(NATIVE.section.size)]
    pieces, at = [], 64
    for name, kind, flags, data, link, info, align, size in contents:
        row = (name, kind, flags, 0, at, len(data), link, info, align, size)
        headers.append(NATIVE.section.pack(*row))
        pieces += [data, bytes(-len(data) % 16)]
        at += len(data) + -len(data) % 16
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    numbers = ((1, 2), (machine, 2), (1, 4), (0, 8), (0, 8), (at, 8), (0, 4))
    sizes = ((64, 2), (0, 2), (0, 2), (64, 2), (len(headers), 2), (7, 2))
    header = ident + b"".join(n.to_bytes(width, "little") for n, width in numbers + sizes)
    return b"".join((header, *pieces, *headers))


def _names(*stems: tuple[str, int]) -> tuple[bytes, list[NDArray[np.uint32]]]:
    """Return strings made of each stem and seven digits, and where each of them starts."""
    pieces, starts, at = [], [], 0
    for stem, count in stems:
        width = len(stem) + 8
        letters = np.zeros((count, width), np.uint8)
        letters[:, : len(stem)] = np.frombuffer(stem.encode(), np.uint8)
        for digit in range(7):
            tens = np.arange(count) // 10 ** (6 - digit) % 10
            letters[:, len(stem) + digit] = tens + ord("0")
        pieces.append(letters.tobytes())
        starts.append((at + width * np.arange(count)).astype(np.uint32))
        at += letters.size
    return b"".join(pieces), starts
