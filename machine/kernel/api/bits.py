# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmaps and bit counts (lib/bitmap.c, lib/find_bit.c, lib/hweight.c).

A bitmap is an array of unsigned longs, read here as one number.
"""

from __future__ import annotations

from machine.kernel.kernel import Kernel
from machine.kernel.table import function


def _bytes(bits: int) -> int:
    """Return the bytes of the unsigned longs that hold `bits` bits."""
    return (bits + 63) // 64 * 8


def _load(k: Kernel, address: int, bits: int) -> int:
    """Return a bitmap without the bits of its last word that do not belong to it."""
    return k.word(address, _bytes(bits)) & (1 << bits) - 1 if bits else 0


def _next(bitmap: int, bits: int, start: int) -> int:
    rest = bitmap >> start
    return start + (rest & -rest).bit_length() - 1 if rest and start < bits else bits


@function("unsigned long _find_first_bit(const unsigned long *addr, unsigned long size)")
def _find_first_bit(k: Kernel, address: int, bits: int) -> int:
    return _next(_load(k, address, bits), bits, 0)


@function("unsigned long _find_first_zero_bit(const unsigned long *addr, unsigned long size)")
def _find_first_zero_bit(k: Kernel, address: int, bits: int) -> int:
    return _find_next_zero_bit(k, address, bits, 0)


@function(
    "unsigned long _find_next_bit(const unsigned long *addr, unsigned long n, unsigned long start)"
)
def _find_next_bit(k: Kernel, address: int, bits: int, start: int) -> int:
    return _next(_load(k, address, bits), bits, start) if start < bits else bits


@function(
    "unsigned long _find_next_zero_bit(const unsigned long *addr, unsigned long n,"
    " unsigned long start)"
)
def _find_next_zero_bit(k: Kernel, address: int, bits: int, start: int) -> int:
    if start >= bits:
        return bits
    return _next(~_load(k, address, bits) & (1 << bits) - 1, bits, start)


@function("unsigned long _find_last_bit(const unsigned long *addr, unsigned long size)")
def _find_last_bit(k: Kernel, address: int, bits: int) -> int:
    found = _load(k, address, bits)
    return found.bit_length() - 1 if found else bits


@function("unsigned int __bitmap_weight(const unsigned long *bitmap, unsigned int bits)")
def _bitmap_weight(k: Kernel, address: int, bits: int) -> int:
    return _load(k, address, bits).bit_count()


def _change(k: Kernel, address: int, start: int, count: int, *, on: bool) -> None:
    if count > 0:
        size = _bytes(start + count)
        mask = (1 << count) - 1 << start
        value = k.word(address, size)
        k.store(address, value | mask if on else value & ~mask, size)


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
