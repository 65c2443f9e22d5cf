# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rules of the scalar model are made of: formulas, words, and the intervals of a word."""

from __future__ import annotations

from collections.abc import Callable

import attrs

MASK64 = (1 << 64) - 1
S32 = (-0x80000000, 0x7FFFFFFF)
U32 = (0, 0xFFFFFFFF)


@attrs.frozen
class Rule:
    """One relocation type of a psABI.

    Parameters
    ----------
    formula
        X from S + A and P, unbounded.
    size
        Bytes that it touches.
    store
        Returns the new bytes from the old ones and X.
    lowest, highest
        The closed interval that X must lie in; None where the document checks nothing.
    align
        X must be a multiple of this.
    """

    formula: Callable[[int, int], int]
    size: int
    store: Callable[[bytes, int], bytes]
    lowest: int | None = None
    highest: int | None = None
    align: int = 1


def signed(x: int) -> int:
    """Return a 64-bit pattern as a signed number."""
    x &= MASK64
    return x - (1 << 64) if x >> 63 else x


def absolute(sa: int, _p: int) -> int:
    """Return S + A."""
    return sa


def relative(sa: int, p: int) -> int:
    """Return S + A - P."""
    return sa - p


def page(sa: int, p: int) -> int:
    """Return Page(S + A) - Page(P)."""
    return (sa >> 12 << 12) - (p >> 12 << 12)


def plain(size: int) -> Callable[[bytes, int], bytes]:
    """Return the writer of a little-endian word."""
    return lambda _old, x: (x & (1 << 8 * size) - 1).to_bytes(size, "little")


def instruction(
    size: int, keep: int, fields: Callable[[int], int]
) -> Callable[[bytes, int], bytes]:
    """Return the writer of an instruction word; `keep` are the bits that stay."""

    def store(old: bytes, x: int) -> bytes:
        word = int.from_bytes(old, "little") & keep
        return (word | fields(x & MASK64)).to_bytes(size, "little")

    return store


def bit(x: int, n: int) -> int:
    """Return bit n of x."""
    return x >> n & 1


def within(bits: int) -> tuple[int, int]:
    """Return -2^bits <= X < 2^bits."""
    return -(1 << bits), (1 << bits) - 1


def either(bits: int) -> tuple[int, int]:
    """Return the interval of a word that is read as signed or as unsigned."""
    return -(1 << bits - 1), (1 << bits) - 1
