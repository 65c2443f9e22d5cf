# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an x86-64 kernel's own addresses stand in it, so that it can run elsewhere.

A bzImage has three lists of them behind the ELF file, from the last word backwards, each down to
a zero: words of 32 bits that move with the kernel, such as move the other way (per-cpu
variables' distances, until these were linked at 0 no more), and words of 64 bits. Its
decompressor applies them (handle_relocations, arch/x86/boot/compressed/misc.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from loader.errors import BadKernel
from loader.kernel.segments import Loaded, Segment

# include/linux/percpu: the list of inverse ones is gone since per-cpu variables are linked as others are.
_NO_INVERSE = (6, 15, 0)
_WHERE = "relocations"


class Movable(Protocol):
    """What is asked of an image."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def behind(self) -> bytes:
        """What stands behind the ELF file."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Its parts."""

    @property
    def version(self) -> tuple[int, int, int] | None:
        """The three numbers of its release."""

    @property
    def loaded(self) -> Loaded:
        """What is put into memory."""


@attrs.frozen
class Places:
    """Offsets in memory, from the image's first byte, of words that an address is part of.

    Parameters
    ----------
    short, inverse
        Words of 32 bits that the distance is added to, and subtracted from.
    wide
        Words of 64 bits.
    """

    short: NDArray[np.int64]
    inverse: NDArray[np.int64]
    wide: NDArray[np.int64]


def places(image: Movable) -> Places:
    """Return where an image has to be changed when it moves; BadKernel where it does not say."""
    count = len(image.behind) // 4
    words = np.frombuffer(image.behind, "<i4", count, len(image.behind) - 4 * count)
    zeros = np.flatnonzero(words == 0)
    expected = 2 if (image.version or (0, 0, 0)) >= _NO_INVERSE else 3
    if len(zeros) < expected:
        reason = "there are none behind it (vmlinux.relocs), so it runs where it is linked to only"
        raise BadKernel(image.name, _WHERE, reason)
    ends = [len(words), *(int(zeros[-number]) for number in range(1, expected + 1))]
    lists = [words[after + 1 : end] for end, after in pairwise(ends)]
    first, size = np.uint64(image.loaded.address), image.loaded.size
    offsets = [(each.astype(np.int64).view(np.uint64) - first).view(np.int64) for each in lists]
    if not len(lists[0]) or any(np.any((at < 0) | (at > size - 4)) for at in offsets):
        raise BadKernel(image.name, _WHERE, "what stands behind it are none (vmlinux.relocs)")
    inverse = offsets[1] if expected > 2 else np.zeros(0, np.int64)
    return Places(offsets[0], inverse, offsets[-1])


def moved(image: Movable, distance: int) -> Mapping[int, bytes]:
    """Return what is put into memory of an image that runs at another address: offset -> bytes.

    Parameters
    ----------
    distance
        Bytes from where it is linked to.

    Raises
    ------
    BadKernel
        It cannot be moved.
    """
    found, contents = places(image), image.loaded.contents
    memory = np.zeros(max(at + len(data) for at, data in contents.items()), np.uint8)
    for at, data in contents.items():
        memory[at : at + len(data)] = np.frombuffer(data, np.uint8)
    _add(memory, found.short, np.dtype("<u4"), distance)
    _add(memory, found.inverse, np.dtype("<u4"), -distance)
    _add(memory, found.wide, np.dtype("<u8"), distance)
    return {0: memory.tobytes()}


def _add(memory: NDArray[np.uint8], at: NDArray[np.int64], kind: np.dtype[Any], value: int) -> None:
    """Add a number to words at any offsets."""
    width = kind.itemsize
    inside = at[:, None] + np.arange(width)
    words = memory[inside].view(kind)[:, 0]
    words = words + kind.type(value & (1 << 8 * width) - 1)  # wraps
    memory[inside] = words.astype(kind).view(np.uint8).reshape(-1, width)
