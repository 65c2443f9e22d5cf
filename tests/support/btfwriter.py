# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes BTF blobs, record by record, for tests: what a compiler or pahole would write."""

from __future__ import annotations

import struct
from contextlib import suppress

from loader.btf import BadBtf, Btf

INT_SIGNED = 1 << 24


class Writer:
    """Collects records and strings; numbers and offsets go on from a base's.

    Parameters
    ----------
    order
        `<` or `>`.
    first, strings_from
        Number of the first type, and offset of the first string.
    """

    def __init__(self, order: str = "<", first: int = 1, strings_from: int = 0) -> None:
        self.order = order
        self.next = first
        self.strings_from = strings_from
        self.strings = b"" if strings_from else b"\0"
        self.types = b""

    def string(self, text: str) -> int:
        """Return the offset of a string, which is added."""
        if not text:
            return 0
        at = self.strings_from + len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(
        self, kind: int, name: str = "", last: int = 0, *words: int, vlen: int = 0, flag: int = 0
    ) -> int:
        """Add a record with the words behind it and return its number."""
        info = flag << 31 | kind << 24 | vlen
        record = (self.string(name), info, last, *words)
        self.types += struct.pack(f"{self.order}{len(record)}I", *(w % 2**32 for w in record))
        self.next += 1
        return self.next - 1

    def blob(self, **changed: int) -> bytes:
        """Return the blob; `changed` replaces fields of the header."""
        fields = {
            "magic": 0xEB9F,
            "version": 1,
            "flags": 0,
            "header": 24,
            "types_at": 0,
            "types_size": len(self.types),
            "strings_at": len(self.types),
            "strings_size": len(self.strings),
        } | changed
        return struct.pack(f"{self.order}HBBIIIII", *fields.values()) + self.types + self.strings


def blob(order: str = "<") -> Writer:
    """Return a blob with every kind; numbers are as the comments say."""
    w = Writer(order)
    w.add(1, "int", 4, INT_SIGNED | 32)  # 1
    w.add(1, "char", 1, 2 << 24 | 8)  # 2
    w.add(2, "", 5)  # 3: struct node *
    w.add(3, "", 0, 2, 1, 16)  # 4: char [16]
    name, nextp, flags, wide = (w.string(text) for text in ("name", "next", "flags", "wide"))
    w.add(
        4,
        "node",
        32,
        name,
        4,
        0,
        nextp,
        3,
        128,
        flags,
        1,
        3 << 24 | 192,
        wide,
        1,
        224,
        vlen=4,
        flag=1,
    )  # 5
    low, high = w.string("low"), w.string("high")
    w.add(5, "both", 4, low, 1, 0, high, 1, 0, vlen=2)  # 6
    minus, one = w.string("MINUS"), w.string("ONE")
    w.add(6, "sign", 4, minus, -1, one, 1, vlen=2, flag=1)  # 7
    w.add(7, "later", 0)  # 8
    w.add(7, "other", 0, flag=1)  # 9
    w.add(8, "number", 1)  # 10
    w.add(9, "", 10)  # 11: volatile
    w.add(10, "", 11)  # 12: const
    w.add(11, "", 3)  # 13: struct node *restrict
    first, rest = w.string("first"), w.string("rest")
    w.add(13, "", 1, first, 12, rest, 13, 0, 0, vlen=3)  # 14
    w.add(12, "work", 14, vlen=1)  # 15
    w.add(14, "counter", 10, 1)  # 16
    w.add(15, ".data", 4, 16, 0, 4, vlen=1)  # 17
    w.add(16, "double", 8)  # 18
    w.add(17, "kfunc", 15, -1)  # 19
    w.add(18, "user", 5)  # 20
    big = w.string("BIG")
    w.add(19, "wide", 8, big, 0xFFFF_FFFF, 0x7FFF_FFFF, vlen=1)  # 21
    w.add(4, "", 4, w.string("inner"), 1, 0, vlen=1)  # 22: without a name
    w.add(4, "outer", 24, w.string("a"), 1, 0, 0, 22, 32, w.string("pairs"), 24, 64, vlen=3)  # 23
    w.add(3, "", 0, 6, 1, 4)  # 24: union both [4]
    return w


def ask_everything(raw: bytes) -> bool:
    """Ask a blob everything there is to ask; BadBtf is an answer. Return whether it was taken."""
    try:
        b = Btf.parse(raw)
    except BadBtf:
        return False
    for number in b.numbers:
        for question in (b.type, b.resolved, b.size_of, b.c_type, b.definition):
            with suppress(BadBtf):
                question(number)
        with suppress(BadBtf):
            for member in b.type(number).members:
                b.place(number, member.name)
            b.find(b.type(number).name)
    return True
