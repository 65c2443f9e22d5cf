# SPDX-License-Identifier: GPL-2.0-or-later
"""Direct branches, as arrays: a row of code for each place.

E8 calls, E9 jumps, 0F 80..8F jump on a condition; a CS prefix (2E) pads a branch to a thunk.
All end in a 32-bit displacement.
"""

from __future__ import annotations

import numpy as np

from archs.insn_x86_64 import CALL, ESCAPE, JUMP
from archs.passes.subject import U8, U64, Index

CS = 0x2E
LONGEST = 6  # bytes


def lengths(code: U8) -> Index:
    """Return the lengths of the branches that rows of code begin with; 0 for others."""
    prefix = code[:, 0] == CS
    first = np.where(prefix, code[:, 1], code[:, 0])
    plain = (first == CALL) | (first == JUMP)
    condition = (code[:, 0] == ESCAPE) & (code[:, 1] >> 4 == 8)
    return np.where(plain, 5 + prefix, np.where(condition, 6, 0)).astype(np.intp)


def targets(code: U8, places: U64) -> U64:
    """Return where branches go; the place is that of the first byte."""
    if code.shape[1] == 5:
        length: Index | int = 5
        words = code[:, 1:]
    else:
        length = lengths(code)
        columns = np.arange(4) + np.maximum(length, 4)[:, None] - 4
        words = np.take_along_axis(code, columns, axis=1)
    displacement = np.ascontiguousarray(words).view("<i4")[:, 0].astype(np.int64)
    return np.asarray(places + (displacement + length).view(np.uint64))


def aimed(code: U8, places: U64, targets: U64) -> U8:
    """Return branches with new displacements; rows are as long as the branches."""
    new = code.copy()
    displacement = targets - places - np.uint64(code.shape[1])
    new[:, -4:] = displacement.astype("<u4")[:, None].view(np.uint8)
    return new


def branches(opcode: int, places: U64, targets: U64 | int) -> U8:
    """Return E8 or E9 branches at the places."""
    code = np.zeros((places.size, 5), np.uint8)
    code[:, 0] = opcode
    return aimed(code, places, np.broadcast_to(np.asarray(targets, np.uint64), places.shape))


def rows(code: bytes, count: int) -> U8:
    """Return the same code in each row."""
    return np.broadcast_to(np.frombuffer(code, np.uint8), (count, len(code)))
