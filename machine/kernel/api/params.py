# SPDX-License-Identifier: GPL-2.0-or-later
"""Module parameters (kernel/params.c)."""

from __future__ import annotations

import attrs

from allocator.types import Memory


@attrs.frozen
class Parameter:
    """One entry of `__param` (struct kernel_param): its name, where it lies, its operations."""

    name: str
    address: int
    ops: int


def parameters(memory: Memory, address: int, size: int) -> tuple[Parameter, ...]:
    """Return the entries of the `__param` table of `size` bytes at `address`."""
    found = []
    for at in range(address, address + size - 39, 40):
        entry = memory.read(at, 40)
        name = int.from_bytes(entry[0:8], "little")
        text = memory.read(name, 64).split(b"\0")[0].decode("utf-8", "backslashreplace")
        found.append(Parameter(text, at, int.from_bytes(entry[16:24], "little")))
    return tuple(found)
