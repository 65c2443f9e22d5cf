# SPDX-License-Identifier: GPL-2.0-or-later
"""What calls from Python may be given beside numbers."""

from __future__ import annotations

from functools import cache
from typing import SupportsIndex, TypeAlias

from emulator.faults import BadCall
from kernels.prototypes import CType, parse


class Out:
    """A zeroed guest buffer for the time of one call, whose bytes can be read back.

    >>> bytes(Out(4)).hex(), len(Out(4))
    ('00000000', 4)
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"a buffer of {size} bytes")
        self.data = bytes(size)

    def __bytes__(self) -> bytes:
        return self.data

    def __len__(self) -> int:
        return len(self.data)


# What has an index is a number or an address: ints, views of guest memory.
Argument: TypeAlias = "SupportsIndex | bytes | bytearray | str | Out"


@cache
def result_type(returns: str) -> CType:
    """Return the C type that a result is read as; BadCall where it is none, or no register's."""
    try:
        found = parse(f"{returns} result(void)")
    except ValueError as error:
        raise BadCall("call", f"returns={returns!r}: {error}") from None
    if found.indirect:
        raise BadCall("call", f"returns={returns!r}: a structure does not fit a register")
    return found.result
