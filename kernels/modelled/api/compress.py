# SPDX-License-Identifier: GPL-2.0-or-later
"""Compression that the kernel has built in: zlib (lib/zlib_inflate, lib/zlib_deflate), LZ4.

The streams are Python's zlib, fed from guest memory and drained into it; the z_stream's
counters are the kernel's. A workspace is asked for and left alone. LZ4 is the lz4 package's:
modules only compress, so there is no guest code that could undo it.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, ClassVar

import attrs

from allocator.types import KIB
from kernels.modelled.api.common import state
from kernels.modelled.bounds import WORK
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import StructView, struct, view
from kernels.modelled.table import function

if TYPE_CHECKING:
    from zlib import _Compress, _Decompress

Z_OK, Z_STREAM_END, Z_STREAM_ERROR, Z_DATA_ERROR, Z_BUF_ERROR = 0, 1, -2, -3, -5
# The kernel's flush values (include/linux/zlib.h), which has one more than zlib: in its terms.
FLUSH = {1: zlib.Z_PARTIAL_FLUSH, 2: zlib.Z_SYNC_FLUSH, 3: zlib.Z_SYNC_FLUSH, 4: zlib.Z_FULL_FLUSH}
Z_FINISH = 5
MAX_WBITS = 15
STREAM = 512 * KIB  # of the host's memory: windows, hashes, a piece of output that found no room
LZ4_MOST = 255  # bytes that one byte of a block can stand for
STEP = 64 * KIB  # bytes that are given to zlib at once, which may make a thousand times as many

struct(
    "z_stream",
    "next_in avail_in total_in next_out avail_out total_out msg state workspace reserved",
)


@attrs.define
class _Stream:
    """One stream: how it was set up, the host's object, and output that found no room."""

    options: tuple[int, ...]
    deflate: _Compress | None = None
    inflate: _Decompress | None = None
    pending: bytes = b""
    ended: bool = False


@attrs.define
class _Streams:
    """Streams by the address of their z_stream."""

    COST: ClassVar[int] = STREAM

    live: dict[int, _Stream] = attrs.field(factory=dict)


def _reset(k: Kernel, stream: int, found: _Stream) -> int:
    found.pending, found.ended = b"", False
    if len(found.options) > 1:
        level, method, bits, memory, strategy = found.options
        try:
            found.deflate = zlib.compressobj(level, method, bits, memory, strategy)
        except ValueError:
            return Z_STREAM_ERROR
    else:
        try:
            found.inflate = zlib.decompressobj(found.options[0])
        except ValueError:
            return Z_STREAM_ERROR
    z = view(k, "z_stream", stream)
    for member in ("total_in", "total_out", "msg"):
        z.put(member, 0)
    state(k, _Streams).live[stream] = found
    return Z_OK


def _again(k: Kernel, stream: int) -> int:
    found = state(k, _Streams).live.get(stream)
    return Z_STREAM_ERROR if found is None else _reset(k, stream, found)


def _input(k: Kernel, z: StructView) -> bytes:
    """Return the next piece of the input."""
    return k.memory.read(z.number("next_in"), min(z.number("avail_in"), STEP))


def _taken(z: StructView, used: int) -> None:
    """Move the stream on behind what was used of its input."""
    z.put("next_in", z.number("next_in") + used)
    z.put("avail_in", z.number("avail_in") - used)
    z.put("total_in", z.number("total_in") + used)


def _give(k: Kernel, z: StructView, found: _Stream) -> None:
    """Store as much pending output as there is room for."""
    at, room = z.number("next_out"), z.number("avail_out")
    piece, found.pending = found.pending[:room], found.pending[room:]
    k.memory.write(at, piece)
    z.put("next_out", at + len(piece))
    z.put("avail_out", room - len(piece))
    z.put("total_out", z.number("total_out") + len(piece))


@function("int zlib_deflate_workspacesize(int windowBits, int memLevel)")
def _deflate_workspacesize(_k: Kernel, bits: int, memory: int) -> int:
    return (1 << (abs(bits) + 2 & 31)) + (1 << (memory + 9 & 31)) + 8192


@function("int zlib_inflate_workspacesize(void)")
def _inflate_workspacesize(_k: Kernel) -> int:
    return (1 << MAX_WBITS) + 10240


@function(
    "int zlib_deflateInit2(struct z_stream *strm, int level, int method, int windowBits,"
    " int memLevel, int strategy)"
)
def _deflate_init(
    k: Kernel, stream: int, level: int, method: int, bits: int, memory: int, strategy: int
) -> int:
    return _reset(k, stream, _Stream((level, method, bits, memory, strategy)))


@function("int zlib_inflateInit2(struct z_stream *strm, int windowBits)")
def _inflate_init(k: Kernel, stream: int, bits: int) -> int:
    return _reset(k, stream, _Stream((bits,)))


@function(
    "int zlib_deflateReset(struct z_stream *strm)", "int zlib_inflateReset(struct z_stream *strm)"
)
def _stream_reset(k: Kernel, stream: int) -> int:
    return _again(k, stream)


@function("int zlib_deflateEnd(struct z_stream *strm)", "int zlib_inflateEnd(struct z_stream *s)")
def _end(k: Kernel, stream: int) -> int:
    return Z_OK if state(k, _Streams).live.pop(stream, None) else Z_STREAM_ERROR


@function("int zlib_deflate_dfltcc_enabled(void)")
def _deflate_in_hardware(_k: Kernel) -> int:
    return 0


@function("int zlib_deflate(struct z_stream *strm, int flush)")
def _deflate(k: Kernel, stream: int, flush: int) -> int:
    found, z = state(k, _Streams).live.get(stream), view(k, "z_stream", stream)
    if found is None or found.deflate is None:
        return Z_STREAM_ERROR
    _give(k, z, found)
    # Without room for its output no input is taken, as the kernel's takes none.
    while z.number("avail_in") and z.number("avail_out") and not found.ended:
        data = _input(k, z)
        k.spend(len(data))
        found.pending += found.deflate.compress(data)
        _taken(z, len(data))
        _give(k, z, found)
    if flush and not found.ended and not z.number("avail_in"):
        found.pending += found.deflate.flush(FLUSH.get(flush, zlib.Z_FINISH))
        found.ended = flush == Z_FINISH
        _give(k, z, found)
    return Z_STREAM_END if found.ended and not found.pending else Z_OK


@function("int zlib_inflate(struct z_stream *strm, int flush)")
def _inflate(k: Kernel, stream: int, flush: int) -> int:
    found, z = state(k, _Streams).live.get(stream), view(k, "z_stream", stream)
    if found is None or found.inflate is None:
        return Z_STREAM_ERROR
    moved = False
    while z.number("avail_out"):
        data = _input(k, z)
        try:
            found.pending = found.inflate.decompress(data, min(z.number("avail_out"), STEP))
        except zlib.error:
            return Z_DATA_ERROR
        rest = found.inflate.unused_data if found.inflate.eof else found.inflate.unconsumed_tail
        used, made = len(data) - len(rest), len(found.pending)
        k.spend(1 + (used + made) // WORK)
        _taken(z, used)
        _give(k, z, found)
        moved = moved or used > 0 or made > 0
        if found.inflate.eof:
            return Z_STREAM_END
        if not used and not made:
            break
    return Z_BUF_ERROR if flush == Z_FINISH or not moved else Z_OK


@function("int LZ4_decompress_safe(const char *source, char *dest, int size, int room)")
def _lz4_decompress_safe(k: Kernel, source: int, dest: int, size: int, room: int) -> int:
    import lz4.block

    if size <= 0 or room < 0:
        return -1
    room = min(room, LZ4_MOST * (size + 1))
    packed = k.memory.read(source, size)
    k.hold(room)
    try:
        found = lz4.block.decompress(packed, uncompressed_size=room)
    except lz4.block.LZ4BlockError:
        return -1
    k.spend(1 + (size + len(found)) // WORK)
    k.memory.write(dest, found)
    return len(found)
