# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's page tables, read as a whole: what of its half of the addresses is mapped, and where to."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.levels.boot import TableFormat

_ENTRY = 3  # log2 of an entry's bytes
_MOST = 1 << 21  # leaves that are looked at: more than any memory of ours has pages
_WHOLE = 1 << 64

# Returns the words at a physical address, or None where there is no memory.
Words = Callable[[int, int], "NDArray[np.uint64] | None"]


@attrs.frozen
class Run:
    """Memory that lies in a row by both addresses.

    Parameters
    ----------
    address, physical
        Where it begins.
    size
        Bytes.
    """

    address: int
    physical: int
    size: int

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.address + self.size


@attrs.frozen(kw_only=True)
class Tables:
    """The page tables of a kernel.

    Parameters
    ----------
    format
        How entries are read.
    root
        Physical address of the first table.
    bits, granule
        Bits of an address, and of a page's size.
    """

    format: TableFormat
    root: int
    bits: int
    granule: int

    def runs(self, words: Words) -> list[Run]:
        """Return what is mapped in the kernel's half, by address.

        Tables that several entries lead to count once: they are fillers (KASAN's shadow, x86's
        espfix), the same memory over and over.

        Parameters
        ----------
        words
            Returns so many words at a physical address, or None.
        """
        stride = self.granule - _ENTRY
        shift = self.granule + (-(-(self.bits - self.granule) // stride) - 1) * stride
        tables = [(self.root, _WHOLE - (1 << self.bits))]
        count, first = 1 << self.bits - shift, 0
        if self.format.shared:
            first = count // 2
        found: list[tuple[NDArray[np.uint64], NDArray[np.uint64], int]] = []
        seen: set[int] = set()
        leaves = 0
        while tables and leaves < _MOST:
            below: list[tuple[int, int]] = []
            for at, start in tables:
                entries = words(at, count)
                if entries is None or at in seen:
                    continue
                seen.add(at)
                index = np.flatnonzero(entries & np.uint64(1))
                index = index[index >= first]
                chosen = entries[index]
                frames = (chosen & np.uint64(self.format.frame)) << np.uint64(self.format.shift)
                starts = np.uint64(start) + (index.astype(np.uint64) << np.uint64(shift))
                maps = self._leaves(chosen, shift)
                inside = np.uint64((1 << shift) - 1)
                found.append((starts[maps], frames[maps] & ~inside, 1 << shift))
                leaves += int(maps.sum())
                below += zip(frames[~maps].tolist(), starts[~maps].tolist(), strict=True)
            tables, shift, first = below, shift - stride, 0
            count = 1 << stride
            if shift < self.granule:
                break
        return _joined(found)

    def _leaves(self, entries: NDArray[np.uint64], shift: int) -> NDArray[np.bool_]:
        if shift == self.granule:
            return np.ones(len(entries), bool)
        bits, leads = self.format.table or self.format.leaf, bool(self.format.table)
        found: NDArray[np.bool_] = ((entries & np.uint64(bits)) != 0) != leads
        return found


def _joined(found: list[tuple[NDArray[np.uint64], NDArray[np.uint64], int]]) -> list[Run]:
    if not found:
        return []
    at = np.concatenate([each[0] for each in found])
    to = np.concatenate([each[1] for each in found])
    size = np.concatenate([np.full(len(each[0]), each[2], np.uint64) for each in found])
    order = np.argsort(at, kind="stable")
    at, to, size = at[order], to[order], size[order]
    if not len(at):
        return []
    cut = (at[1:] != at[:-1] + size[:-1]) | (to[1:] != to[:-1] + size[:-1])
    starts = np.concatenate(([0], np.flatnonzero(cut) + 1))
    ends = np.concatenate((starts[1:], [len(at)])) - 1
    return [
        Run(first, where, last + length - first)
        for first, where, last, length in zip(
            at[starts].tolist(),
            to[starts].tolist(),
            at[ends].tolist(),
            size[ends].tolist(),
            strict=True,
        )
    ]
