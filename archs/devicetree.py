# SPDX-License-Identifier: GPL-2.0-or-later
"""Device trees in their binary form (Devicetree Specification 0.4, chapter 5)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import TypeAlias

Property: TypeAlias = "bytes | str | int | tuple[str, ...] | tuple[int, ...] | None"
Node: TypeAlias = "Mapping[str, Property | Node]"

# What a kernel's randomness begins with (`/chosen/rng-seed`): always the same. Without, it is
# gathered from the clock, by tens of thousands of looks before the first process.
RNG_SEED = bytes(range(64))

_MAGIC = 0xD00DFEED
_BEGIN, _END, _PROPERTY, _FINISH = 1, 2, 3, 9
_HEADER = struct.Struct(">10I")
_RESERVED = bytes(16)  # no memory is reserved: the list's end
_VERSION, _COMPATIBLE = 17, 16


def randomness(kaslr: int | None) -> bytes:
    """Return what a kernel's randomness begins with, which follows from KASLR's seed if there is one.

    As many bytes as `RNG_SEED` has.
    """
    if kaslr is None:
        return RNG_SEED
    return hashlib.sha512(f"KASLR {kaslr}".encode()).digest()


def kaslr_seed(kaslr: int) -> int:
    """Return the 64 bits that decide where a kernel goes; never 0, which means that there are none."""
    return int.from_bytes(hashlib.sha256(f"KASLR {kaslr}".encode()).digest()[:8], "little") or 1


def flatten(root: Node) -> bytes:
    """Return a tree as a blob.

    Parameters
    ----------
    root
        Name -> property or node. A property is an int (one cell), a tuple of ints (cells), a
        string or a tuple of them, bytes, or None where its presence counts.
    """
    strings: dict[str, int] = {}
    structure = _node("", root, strings) + struct.pack(">I", _FINISH)
    names = "".join(f"{name}\0" for name in strings).encode()
    reserve = _HEADER.size + (-_HEADER.size) % 8
    at = reserve + len(_RESERVED)
    size = at + len(structure) + len(names)
    header = _HEADER.pack(
        *(_MAGIC, size, at, at + len(structure), reserve),
        *(_VERSION, _COMPATIBLE, 0, len(names), len(structure)),
    )
    return header.ljust(reserve, b"\0") + _RESERVED + structure + names


def _node(name: str, node: Node, strings: dict[str, int]) -> bytes:
    parts = [struct.pack(">I", _BEGIN), _padded(name.encode() + b"\0")]
    children = {k: v for k, v in node.items() if isinstance(v, Mapping)}
    for key, value in node.items():
        if isinstance(value, Mapping):
            continue
        if key not in strings:
            strings[key] = sum(len(known) + 1 for known in strings)
        data = _value(value)
        parts.append(struct.pack(">III", _PROPERTY, len(data), strings[key]) + _padded(data))
    parts.extend(_node(key, child, strings) for key, child in children.items())
    parts.append(struct.pack(">I", _END))
    return b"".join(parts)


def _value(value: Property) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    items = value if isinstance(value, tuple) else (value,)
    return b"".join(
        item.encode() + b"\0" if isinstance(item, str) else struct.pack(">I", item)
        for item in items
    )


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def wide(value: int) -> tuple[int, int]:
    """Return a 64-bit number as two cells."""
    return value >> 32, value & 0xFFFF_FFFF
