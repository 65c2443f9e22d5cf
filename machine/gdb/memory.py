# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets about memory: read it, store in it, search it, sum it up."""

from __future__ import annotations

import zlib

from allocator.errors import ExecmemError
from allocator.types import ADDRESS_MASK
from machine.control import Control
from machine.gdb.wire import LONGEST, number, numbers, unescaped

PAGE = 4096
MOST = LONGEST // 2 - 16  # bytes of memory in a packet
MALFORMED, NO_MEMORY = b"E01", b"E0e"
BAD = (ExecmemError, ValueError, LookupError, ArithmeticError)  # what a bad packet comes to
_SEARCHED = 1 << 28  # bytes that are searched, or summed up, at most
_PIECE = 1 << 16
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def readable(control: Control, address: int, size: int) -> bytes:
    """Return as many bytes as are mapped from an address on."""
    try:
        return control.read(address, min(size, ADDRESS_MASK + 1 - address))
    except BAD:
        pass
    data = b""
    while len(data) < size:
        at = address + len(data)
        try:
            data += control.read(at, min(size - len(data), PAGE - at % PAGE))
        except BAD:
            break
    return data


def read(rest: bytes, control: Control) -> bytes:
    """Answer `m`."""
    address, size = numbers(rest)
    data = readable(control, address, min(size, MOST))
    return data.hex().encode() if data or not size else NO_MEMORY


def write(rest: bytes, control: Control, *, binary: bool) -> bytes:
    """Answer `M`, or `X`."""
    head, _, text = rest.partition(b":")
    address, size = numbers(head)
    data = unescaped(text) if binary else bytes.fromhex(text.decode("ascii"))
    if len(data) != size:
        return MALFORMED
    try:
        if data:
            control.write(address, data)
    except BAD:
        return NO_MEMORY
    return b"OK"


def checksum(text: bytes, control: Control) -> bytes:
    """Answer `qCRC`: the CRC that gdb compares sections by, high bit first, nothing inverted."""
    address, size = numbers(text)
    if size > _SEARCHED:
        return MALFORMED
    found = 0
    for at in range(address, address + size, _PIECE):
        piece = control.read(at, min(_PIECE, address + size - at))
        found = zlib.crc32(piece.translate(_BITS_REVERSED), found)
    return b"C%x" % int(f"{found ^ 0xFFFF_FFFF:032b}"[::-1], 2)


def search(text: bytes, control: Control) -> bytes:
    """Answer `qSearch:memory`."""
    start, size, pattern = text.split(b";", 2)
    address, left, wanted = number(start), number(size), unescaped(pattern)
    if not wanted or left > _SEARCHED:
        return MALFORMED
    data, at = b"", address
    while left > 0:
        piece = readable(control, at, min(left, _PIECE))
        if not piece:
            return NO_MEMORY if at == address else b"0"
        data, at, left = data + piece, at + len(piece), left - len(piece)
        found = data.find(wanted)
        if found >= 0:
            return b"1,%x" % (at - len(data) + found)
        data = data[-len(wanted) + 1 :] if len(wanted) > 1 else b""
    return b"0"
