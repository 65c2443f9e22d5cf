# SPDX-License-Identifier: GPL-2.0-or-later
"""XXH64 (lib/xxhash.c): the hash in one go, and with a state that the caller keeps.

The state is the kernel's own structure in guest memory: modules copy it to fork a hash.
"""

from __future__ import annotations

import struct

from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import made, offset_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import function

MASK = (1 << 64) - 1
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
STRIPE = 32
SUMS = ("v1", "v2", "v3", "v4")
declare("xxh64_state", "total_len v1 v2 v3 v4 mem64 memsize")
TAIL = offset_of("xxh64_state", "mem64")  # the bytes not summed yet


def _turn(value: int, count: int) -> int:
    return (value << count | value >> 64 - count) & MASK


def _round(total: int, word: int) -> int:
    return _turn((total + word * P2) & MASK, 31) * P1 & MASK


def _start(seed: int) -> list[int]:
    return [n & MASK for n in (seed + P1 + P2, seed + P2, seed, seed - P1)]


def _stripes(sums: list[int], data: bytes) -> list[int]:
    """Return the sums after all whole stripes of `data`."""
    a, b, c, d = sums
    words = struct.unpack_from(f"<{len(data) // STRIPE * 4}Q", data)
    for at in range(0, len(words), 4):
        a, b = _round(a, words[at]), _round(b, words[at + 1])
        c, d = _round(c, words[at + 2]), _round(d, words[at + 3])
    return [a, b, c, d]


def _finish(total: int, sums: list[int], tail: bytes, seed: int) -> int:
    """Return the hash of `total` bytes, of which `tail` is in no stripe."""
    if total >= STRIPE:
        found = sum(map(_turn, sums, (1, 7, 12, 18))) & MASK
        for value in sums:
            found = ((found ^ _round(0, value)) * P1 + P4) & MASK
    else:
        found = seed + P5 & MASK
    found = found + total & MASK
    while len(tail) >= 8:
        found = (_turn(found ^ _round(0, int.from_bytes(tail[:8], "little")), 27) * P1 + P4) & MASK
        tail = tail[8:]
    if len(tail) >= 4:
        found = (_turn(found ^ int.from_bytes(tail[:4], "little") * P1 & MASK, 23) * P2 + P3) & MASK
        tail = tail[4:]
    for byte in tail:
        found = _turn(found ^ byte * P5 & MASK, 11) * P1 & MASK
    found = (found ^ found >> 33) * P2 & MASK
    found = (found ^ found >> 29) * P3 & MASK
    return found ^ found >> 32


def xxh64(data: bytes, seed: int) -> int:
    """Return XXH64 of `data`."""
    whole = len(data) // STRIPE * STRIPE
    return _finish(len(data), _stripes(_start(seed), data[:whole]), data[whole:], seed)


def _add(k: Kernel, sums: list[int], kept: bytes, data: int, size: int) -> tuple[list[int], bytes]:
    """Return the sums after `kept` and guest memory, and what is in no whole stripe."""
    for _, piece in k.pieces(data, size):
        kept += piece
        cut = len(kept) // STRIPE * STRIPE
        sums, kept = _stripes(sums, kept[:cut]), kept[cut:]
    return sums, kept


def _kept(k: Kernel, address: int) -> tuple[int, list[int], bytes, int]:
    """Return what a state holds: bytes so far, sums, bytes not summed yet, and how many."""
    found = view(k, "xxh64_state", address)
    sums = [found.number(member) for member in SUMS]
    kept = k.memory.read(address + TAIL(k), STRIPE)
    return found.number("total_len"), sums, kept, found.number("memsize")


def _keep(k: Kernel, address: int, total: int, sums: list[int], kept: bytes) -> None:
    """Fill a state."""
    members = {"total_len": total, **dict(zip(SUMS, sums, strict=True)), "memsize": len(kept)}
    k.memory.write(address, made(k, "xxh64_state", {**members, "mem64": kept}))


@function("u64 xxh64(const void *input, size_t length, u64 seed)")
def _xxh64(k: Kernel, data: int, size: int, seed: int) -> int:
    return _finish(size, *_add(k, _start(seed), b"", data, size), seed)


@function("void xxh64_reset(struct xxh64_state *state, u64 seed)")
def _xxh64_reset(k: Kernel, address: int, seed: int) -> None:
    _keep(k, address, 0, _start(seed), b"")


@function("int xxh64_update(struct xxh64_state *state, const void *input, size_t length)")
def _xxh64_update(k: Kernel, address: int, data: int, size: int) -> int:
    total, sums, kept, held = _kept(k, address)
    # How much is held is the guest's to change.
    sums, rest = _add(k, sums, kept[: held % STRIPE], data, size)
    _keep(k, address, total + size & MASK, sums, rest)
    return 0


@function("u64 xxh64_digest(const struct xxh64_state *state)")
def _xxh64_digest(k: Kernel, address: int) -> int:
    total, sums, kept, held = _kept(k, address)
    # Below one stripe the third sum is still the seed.
    return _finish(total, sums, kept[:held], sums[2])
