# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses and numbers in directives: names, numbers with K, M and G, and sums of them."""

from __future__ import annotations

import re
from collections.abc import Callable

from allocator.types import ADDRESS_MASK

_TERM = re.compile(
    r"\s*([+-]?)\s*(?:(0[xX][0-9a-fA-F_]+|[0-9][0-9_]*)([KMG])?\b|([A-Za-z_.$][\w.$@]*))\s*"
)
_SUFFIXES = {None: 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def value(text: str, look_up: Callable[[str], int]) -> int:
    """Return the sum that a text is, modulo 2^64; a negative number is its two's complement.

    ValueError where it is none; `look_up` raises its own for names that it does not know.

    >>> hex(value("base + 128M - 4", {"base": 0x1000}.__getitem__))
    '0x8000ffc'
    """
    total, at = 0, 0
    while at < len(text):
        found = _TERM.match(text, at)
        if found is None or (at and not found[1]):
            raise ValueError(f"{text[at:].strip()!r} is no number, name or sum")
        if found[4]:
            term = look_up(found[4])
        else:
            term = int(found[2].replace("_", ""), 0) * _SUFFIXES[found[3]]
        total += -term if found[1] == "-" else term
        at = found.end()
    if not at:
        raise ValueError("nothing stands there")
    return total & ADDRESS_MASK
