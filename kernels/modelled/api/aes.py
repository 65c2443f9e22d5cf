# SPDX-License-Identifier: GPL-2.0-or-later
"""AES as the kernel has it built in: the tables (crypto/aes_generic.c) and the block cipher.

Modules use the tables for rounds of their own (aegis128), or the cipher by name (ansi_cprng).
Everything follows from the S-box, and the S-box from arithmetic in GF(2^8) (FIPS 197).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kernels.modelled.table import data

POLYNOMIAL = 0x11B


def times(one: int, other: int) -> int:
    """Return the product in GF(2^8)."""
    product = 0
    while other:
        product ^= one * (other & 1)
        one = one << 1 ^ (POLYNOMIAL if one & 0x80 else 0)
        other >>= 1
    return product


def _sbox() -> bytes:
    powers = [1]  # of 3, which generates all but 0
    while len(powers) < 255:
        powers.append(times(powers[-1], 3))
    inverse = {power: powers[-n % 255] for n, power in enumerate(powers)} | {0: 0}
    spread = (inverse[x] | inverse[x] << 8 for x in range(256))
    return bytes((w ^ w >> 4 ^ w >> 5 ^ w >> 6 ^ w >> 7 ^ 0x63) & 0xFF for w in spread)


SBOX = _sbox()
INVERSE = bytes(SBOX.index(x) for x in range(256))


def _tables(word: Callable[[int], Sequence[int]]) -> Callable[[object], bytes]:
    """Return four tables of words, each with the bytes of the one before turned by one place."""

    def fill(_k: object) -> bytes:
        words = [bytes(word(x)) for x in range(256)]
        return b"".join(w[-turn:] + w[:-turn] if turn else w for turn in range(4) for w in words)

    return fill


def _forward(x: int) -> Sequence[int]:
    s = SBOX[x]
    return times(s, 2), s, s, times(s, 3)


def _backward(x: int) -> Sequence[int]:
    s = INVERSE[x]
    return tuple(times(s, factor) for factor in (14, 9, 13, 11))


data("crypto_ft_tab", 4096, fill=_tables(_forward))
data("crypto_it_tab", 4096, fill=_tables(_backward))
data("crypto_aes_sbox", 256, fill=lambda _k: SBOX)
data("crypto_aes_inv_sbox", 256, fill=lambda _k: INVERSE)


def expand(key: bytes) -> list[bytes]:
    """Return the round keys of a key of 16, 24 or 32 bytes (FIPS 197, 5.2)."""
    count = len(key) // 4
    words = [key[at : at + 4] for at in range(0, len(key), 4)]
    constant = 1
    for at in range(count, 4 * (count + 7)):
        word = words[-1]
        if at % count == 0:
            word = (word[1:] + word[:1]).translate(SBOX)
            word = bytes([word[0] ^ constant]) + word[1:]
            constant = times(constant, 2)
        elif count > 6 and at % count == 4:
            word = word.translate(SBOX)
        words.append(_xor(words[at - count], word))
    return [b"".join(words[at : at + 4]) for at in range(0, len(words), 4)]


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def _mix(block: bytes, factors: Sequence[int]) -> bytes:
    """Return every column multiplied by the circulant matrix of `factors`."""
    out = bytearray()
    for at in range(0, 16, 4):
        for row in range(4):
            value = 0
            for n in range(4):
                value ^= times(block[at + n], factors[n - row])
            out.append(value)
    return bytes(out)


def encrypt(keys: Sequence[bytes], block: bytes) -> bytes:
    """Return an encrypted block of 16 bytes."""
    block = _xor(block, keys[0])
    for n, key in enumerate(keys[1:], 1):
        block = bytes(block[(5 * i) % 16] for i in range(16)).translate(SBOX)
        if n < len(keys) - 1:
            block = _mix(block, (2, 3, 1, 1))
        block = _xor(block, key)
    return block


def decrypt(keys: Sequence[bytes], block: bytes) -> bytes:
    """Return a decrypted block of 16 bytes."""
    for n in range(len(keys) - 1, 0, -1):
        block = _xor(block, keys[n])
        if n < len(keys) - 1:
            block = _mix(block, (14, 11, 13, 9))
        block = bytes(block[(-3 * i) % 16] for i in range(16)).translate(INVERSE)
    return _xor(block, keys[0])
