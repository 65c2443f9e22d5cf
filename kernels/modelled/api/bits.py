# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmaps and bit counts (lib/bitmap.c, lib/find_bit.c, lib/hweight.c).

A bitmap is an array of unsigned longs, read here as numbers of many words each.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernels.modelled.api.common import fill
from kernels.modelled.bounds import PIECE
from kernels.modelled.kernel import Kernel
from kernels.modelled.table import function


def _pieces(k: Kernel, address: int, bits: int, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yield (first bit, how many, their value) of a bitmap from the word with `start` on.

    Bits of its last word that do not belong to it are left out.
    """
    at = start // 64 * 64
    size = (bits + 63) // 64 * 8 - at // 8
    for _, piece in k.pieces(address + at // 8, size):
        count = min(8 * len(piece), bits - at)
        yield at, count, int.from_bytes(piece, "little") & (1 << count) - 1
        at += count


def _next(k: Kernel, address: int, bits: int, start: int, *, on: bool) -> int:
    """Return the first bit from `start` on that is set, or clear; `bits` for none."""
    for at, count, value in _pieces(k, address, bits, start) if start < bits else ():
        sought = value if on else ~value & (1 << count) - 1
        if at < start:
            sought = sought >> start - at << start - at
        if sought:
            return at + (sought & -sought).bit_length() - 1
    return bits


@function("unsigned long _find_first_bit(const unsigned long *addr, unsigned long size)")
def _find_first_bit(k: Kernel, address: int, bits: int) -> int:
    return _next(k, address, bits, 0, on=True)


@function("unsigned long _find_first_zero_bit(const unsigned long *addr, unsigned long size)")
def _find_first_zero_bit(k: Kernel, address: int, bits: int) -> int:
    return _next(k, address, bits, 0, on=False)


@function(
    "unsigned long _find_next_bit(const unsigned long *addr, unsigned long n, unsigned long start)"
)
def _find_next_bit(k: Kernel, address: int, bits: int, start: int) -> int:
    return _next(k, address, bits, start, on=True)


@function(
    "unsigned long _find_next_zero_bit(const unsigned long *addr, unsigned long n,"
    " unsigned long start)"
)
def _find_next_zero_bit(k: Kernel, address: int, bits: int, start: int) -> int:
    return _next(k, address, bits, start, on=False)


@function("unsigned long _find_last_bit(const unsigned long *addr, unsigned long size)")
def _find_last_bit(k: Kernel, address: int, bits: int) -> int:
    end = bits
    while end:
        start = max(end - 8 * PIECE, 0) // 64 * 64
        found = 0
        for at, _, value in _pieces(k, address, end, start):
            found = at + value.bit_length() if value else found
        if found:
            return found - 1
        end = start
    return bits


@function("unsigned int __bitmap_weight(const unsigned long *bitmap, unsigned int bits)")
def _bitmap_weight(k: Kernel, address: int, bits: int) -> int:
    return sum(value.bit_count() for _, _, value in _pieces(k, address, bits))


def _change(k: Kernel, address: int, start: int, count: int, *, on: bool) -> None:
    """Set or clear bits: words at both ends, whole ones between them."""
    end = start + max(count, 0)
    while start < end and (start % 64 or end - start < 64):
        some = min(end - start, 64 - start % 64)
        mask, at = (1 << some) - 1 << start % 64, address + start // 64 * 8
        k.store(at, k.word(at) | mask if on else k.word(at) & ~mask)
        start += some
    size = (end - start) // 64 * 8
    if size:
        fill(k, address + start // 8, size, 0xFF * on)
        _change(k, address, start + 8 * size, end - start - 8 * size, on=on)


@function("void __bitmap_set(unsigned long *map, unsigned int start, int len)")
def _bitmap_set(k: Kernel, address: int, start: int, count: int) -> None:
    _change(k, address, start, count, on=True)


@function("void __bitmap_clear(unsigned long *map, unsigned int start, int len)")
def _bitmap_clear(k: Kernel, address: int, start: int, count: int) -> None:
    _change(k, address, start, count, on=False)


# Inlined code calls these with registers of its own live; an entry changes only the result.


@function("unsigned int __sw_hweight8(unsigned int w)")
def _sw_hweight8(_k: Kernel, word: int) -> int:
    return (word & 0xFF).bit_count()


@function("unsigned int __sw_hweight16(unsigned int w)")
def _sw_hweight16(_k: Kernel, word: int) -> int:
    return (word & 0xFFFF).bit_count()


@function("unsigned int __sw_hweight32(unsigned int w)", "unsigned long __sw_hweight64(u64 w)")
def _sw_hweight(_k: Kernel, word: int) -> int:
    return word.bit_count()
