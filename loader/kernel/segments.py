# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a kernel image: what of the file lies where in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs


@attrs.frozen
class Segment:
    """A part of the image: where it lies in memory and in the data; `size` and `stored` in bytes."""

    address: int
    size: int
    offset: int
    stored: int
    physical: int | None = None  # where it is loaded to, where the file says


@attrs.frozen(kw_only=True)
class Loaded:
    """An image as a boot loader puts it into memory.

    Parameters
    ----------
    address
        The virtual address of its first byte.
    contents
        Offset from there -> bytes.
    size
        Bytes that it takes, uninitialised data included.
    entry
        Offset of the first instruction.
    """

    address: int
    contents: Mapping[int, bytes] = attrs.field(repr=False)
    size: int
    entry: int


def address_of(segments: Iterable[Segment], at: int) -> int:
    """Return where a byte of the data lies in memory."""
    for segment in segments:
        if segment.offset <= at < segment.offset + segment.stored:
            return segment.address + at - segment.offset
    return 0


def offset_of(segments: Iterable[Segment], address: int) -> int | None:
    """Return where the byte at an address lies in the data."""
    for segment in segments:
        if segment.address <= address < segment.address + segment.stored:
            return segment.offset + address - segment.address
    return None
