# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel's own unwind tables say, as a debugger reads it: `.debug_frame` of DWARF.

A kernel without frame pointers knows its frames by tables of its own. Each of their rows says all
there is to say, so rows are put into descriptions of a fixed number, all of the same size, with
operations whose operands have a fixed width. What registers of a caller nobody knows are marked as such.
Source: DWARF 5, section 6.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from archs.levels.debug import Debug, Frames

_ROWS = 64  # of a description
_ADVANCE4, _CFA, _SAVED_SF, _SAME, _UNDEFINED, _NOP = 0x04, 0x0C, 0x11, 0x08, 0x07, 0
_WIDE = 1 << 13  # what two bytes of a signed LEB128 number hold on either side
_FACTOR = -8
_CIE_ID = 0xFFFF_FFFF
_ROW = np.dtype(
    [
        ("advance", "u1"),
        ("delta", "<u4"),
        ("cfa", "u1"),
        ("register", "u1"),
        ("offset", "u1", 2),
        ("saved", "u1"),
        ("pointer", "u1"),
        ("at", "u1", 2),
        ("returns", "u1"),
        ("column", "u1"),
        ("from", "u1", 2),
    ]
)
_HEAD = np.dtype([("length", "<u4"), ("cie", "<u4"), ("start", "<u8"), ("size", "<u8")])
_SIZE = _HEAD.itemsize + -(-_ROWS * _ROW.itemsize // 8) * 8


def debug_frame(frames: Frames, debug: Debug, slide: int = 0, at: int = 0) -> bytes:
    """Return `.debug_frame` of rows by ascending addresses, `slide` less than those.

    It is what stands in the section from `at` on.
    """
    count, how, back = frames.address.size, debug.unwind, debug.columns[0]
    if not count or how is None:
        return b""
    padded = -(-count // _ROWS) * _ROWS
    address = np.append(
        frames.address - np.uint64(slide % (1 << 64)),
        np.repeat(frames.address[-1:] - np.uint64(slide % (1 << 64)), padded - count),
    )
    rows = np.zeros(padded, _ROW)
    starts = address[::_ROWS]
    before = np.concatenate((address[:1], address[:-1]))
    before[::_ROWS] = starts
    rows["advance"] = _ADVANCE4
    rows["delta"] = address - before
    inside = rows[:count]
    sound = frames.known & (frames.offset >= 0) & (frames.offset < 2 * _WIDE)
    inside["cfa"], inside["register"] = _CFA, frames.register
    for values in (frames.pointer, frames.back):
        sound &= (values % _FACTOR == 0) & (np.abs(values // _FACTOR) < _WIDE)
    inside["offset"] = _leb(np.where(sound, frames.offset, 0))
    inside["pointer"], inside["column"] = how.pointer, back
    kept = frames.pointer == 0
    inside["saved"] = np.where(kept, _SAME, _SAVED_SF)
    inside["at"] = np.where(kept[:, None], _NOP, _leb(frames.pointer // _FACTOR))
    kept = ~sound | (frames.back == 0)
    inside["returns"] = np.where(sound, np.where(kept, _SAME, _SAVED_SF), _UNDEFINED)
    inside["from"] = np.where(kept[:, None], _NOP, _leb(frames.back // _FACTOR))
    rows[count:]["advance"] = _NOP  # nothing behind the last one
    rows[count:]["delta"] = 0
    out = np.zeros((padded // _ROWS, _SIZE), np.uint8)
    heads = np.zeros(padded // _ROWS, _HEAD)
    heads["length"], heads["start"], heads["cie"] = _SIZE - 4, starts, at
    heads["size"] = np.append(starts[1:], address[-1] + np.uint64(1)) - starts
    out[:, : _HEAD.itemsize] = heads.view(np.uint8).reshape(len(heads), -1)
    whole = rows.view(np.uint8).reshape(len(heads), -1)
    out[:, _HEAD.itemsize : _HEAD.itemsize + whole.shape[1]] = whole
    return _common(back, how.unknown) + out.tobytes()


def joined(parts: Sequence[Frames]) -> Frames:
    """Return several as one, by ascending addresses."""
    order = np.argsort(np.concatenate([part.address for part in parts]), kind="stable")
    return Frames(
        address=np.concatenate([part.address for part in parts])[order],
        known=np.concatenate([part.known for part in parts])[order],
        register=np.concatenate([part.register for part in parts])[order],
        offset=np.concatenate([part.offset for part in parts])[order],
        pointer=np.concatenate([part.pointer for part in parts])[order],
        back=np.concatenate([part.back for part in parts])[order],
    )


def unknown(addresses: Sequence[int]) -> Frames:
    """Return rows of code that nobody called, up to what follows."""
    count = len(addresses)
    nothing = np.zeros(count, np.int64)
    return Frames(
        np.array(addresses, np.uint64),
        np.zeros(count, np.bool_),
        np.zeros(count, np.uint8),
        nothing,
        nothing,
        nothing,
    )


def outermost(debug: Debug, places: Sequence[tuple[int, int]], at: int = 0) -> bytes:
    """Return the same that says of code, by address and size, that nobody called it."""
    back, stack = debug.columns
    out = _common(back, ())
    for start, size in places:
        body = at.to_bytes(4, "little") + start.to_bytes(8, "little") + size.to_bytes(8, "little")
        body += bytes((_CFA, stack, 0, _UNDEFINED, back))
        body += bytes(-(len(body) + 4) % 8)
        out += len(body).to_bytes(4, "little") + body
    return out


def _leb(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return numbers as LEB128 of two bytes."""
    return np.stack((values & 0x7F | 0x80, values >> 7 & 0x7F), axis=-1).astype(np.uint8)


def _common(back: int, unknown: tuple[int, ...]) -> bytes:
    """Return what all descriptions begin with (CIE)."""
    body = _CIE_ID.to_bytes(4, "little") + bytes((1, 0, 1, _FACTOR & 0x7F, back))
    body += b"".join(bytes((_UNDEFINED, number)) for number in unknown)
    body += bytes(-(len(body) + 4) % 8)
    return len(body).to_bytes(4, "little") + body
