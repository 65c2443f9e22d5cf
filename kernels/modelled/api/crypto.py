# SPDX-License-Identifier: GPL-2.0-or-later
"""Checksums and ciphers that library modules find in the kernel (lib/crc32.c, lib/crypto/chacha.c)."""

from __future__ import annotations

import struct
import zlib

from kernels.modelled.api.common import each_byte
from kernels.modelled.kernel import Kernel
from kernels.modelled.table import function

MASK = 0xFFFF_FFFF
CRC32C = 0x82F6_3B78  # Castagnoli, lowest bit first
CRC32_BE = 0x04C1_1DB7


def _crc_table(polynomial: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (polynomial if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def _crc_table_be(polynomial: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << 24
        for _ in range(8):
            crc = (crc << 1 & MASK) ^ (polynomial if crc >> 31 else 0)
        table.append(crc)
    return tuple(table)


_CRC32C = _crc_table(CRC32C)
_CRC32_BE = _crc_table_be(CRC32_BE)


@function("u32 crc32_le(u32 crc, const unsigned char *p, size_t len)")
def _crc32_le(k: Kernel, crc: int, data: int, size: int) -> int:
    # The kernel leaves the inversions before and after to the caller.
    for _, piece in k.pieces(data, size):
        crc = ~zlib.crc32(piece, ~crc & MASK) & MASK
    return crc


@function("u32 __crc32c_le(u32 crc, const unsigned char *p, size_t len)")
def crc32c(k: Kernel, crc: int, data: int, size: int) -> int:
    """Return the CRC-32C of guest memory, continuing from `crc`."""
    for byte in each_byte(k, data, size):
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc


@function("u32 crc32_be(u32 crc, const unsigned char *p, size_t len)")
def _crc32_be(k: Kernel, crc: int, data: int, size: int) -> int:
    for byte in each_byte(k, data, size):
        crc = (crc << 8 & MASK) ^ _CRC32_BE[crc >> 24 ^ byte]
    return crc


def _rotate(value: int, count: int) -> int:
    return value << count & MASK | value >> 32 - count


# A double round of ChaCha (RFC 8439, 2.3): the columns, then the diagonals.
_QUARTERS = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),
)


def _permute(k: Kernel, words: tuple[int, ...], rounds: int) -> list[int]:
    x = list(words)
    for _ in range(rounds // 2):
        k.spend(64)
        for a, b, c, d in _QUARTERS:
            for to, plus, turn, count in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[to] = (x[to] + x[plus]) & MASK
                x[turn] = _rotate(x[turn] ^ x[to], count)
    return x


COUNTER = 12  # which of the 16 words of the state counts blocks


@function("void chacha_block_generic(u32 *state, u8 *stream, int nrounds)")
def _chacha_block(k: Kernel, state: int, stream: int, rounds: int) -> None:
    words = struct.unpack("<16I", k.memory.read(state, 64))
    mixed = _permute(k, words, rounds)
    sums = ((one + two) & MASK for one, two in zip(mixed, words, strict=True))
    k.memory.write(stream, struct.pack("<16I", *sums))
    k.store(state + 4 * COUNTER, words[COUNTER] + 1, 4)


@function("void hchacha_block_generic(const u32 *state, u32 *out, int nrounds)")
def _hchacha_block(k: Kernel, state: int, out: int, rounds: int) -> None:
    mixed = _permute(k, struct.unpack("<16I", k.memory.read(state, 64)), rounds)
    k.memory.write(out, struct.pack("<8I", *mixed[:4], *mixed[12:]))
