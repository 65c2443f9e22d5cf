# SPDX-License-Identifier: GPL-2.0-or-later
"""The page table: which address reaches which frame, and how.

The shape is that of the three upper levels that all our architectures share:

    PUD entry   1 GiB   a leaf, or a table of 512 PMD entries
    PMD entry   2 MiB   a leaf, or a table of 512 PTEs
    PTE         4 KiB   a leaf

A table of PTEs is a numpy array packed as hardware packs it, frame address and flag bits
in one word, so a range operation and the collapse test ("512 entries alike, frames
contiguous and aligned", arch/x86/mm/pat/set_memory.c) are one comparison each. Whether a
leaf is large decides how much of the TLB text costs; that is why splitting and collapsing
are modelled and counted instead of being hidden behind a flat page map.

Two rules hold at every moment. No leaf is writable and executable: an operation that would
make one is refused. And an operation that is refused has changed nothing: every one looks
before it touches. The table never flushes a TLB, as the hardware's does not.

The direct map is the region of the same table in which all physical memory is mapped at a
fixed offset. Its splits are counted apart, because they stay for ever and slow everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sortedcontainers import SortedDict

from allocator.errors import MappingError
from allocator.events import Events
from allocator.markup import table
from allocator.types import (
    HUGE_PAGE_SIZE,
    LARGE_PAGE_SIZE,
    PAGE_SIZE,
    Interval,
    Prot,
    align_down,
    align_up,
    size_text,
)

Frames: TypeAlias = NDArray[np.uint64]
# None: nothing there; int: a leaf; array: a table of 512 PTEs.
_Entry: TypeAlias = int | Frames | None
_Pmd: TypeAlias = list[_Entry]

LEAF_SIZES = (PAGE_SIZE, LARGE_PAGE_SIZE, HUGE_PAGE_SIZE)

# An entry is a frame address, the three bits of Prot, and PRESENT. A leaf without any
# permission keeps its frame: that is what set_direct_map_invalid leaves behind.
_PRESENT = 8
_PROT_BITS = 7
_FRAME = (1 << 64) - PAGE_SIZE
_WX = (Prot.W | Prot.X).value
_PROTS = tuple(Prot(bits) for bits in range(8))
_EVERYTHING = Interval(0, 1 << 64)
# Physical addresses have at most 52 bits on all our architectures.
_PHYSICAL_END = 1 << 52
_U = np.uint64
_PAGE_OFFSETS = np.arange(512, dtype=_U) * _U(PAGE_SIZE)


class Translation(NamedTuple):
    """What one address reaches: a physical address, its protection, the leaf's size."""

    address: int
    prot: Prot
    leaf: int


class Span(NamedTuple):
    """A stretch of addresses mapped to contiguous frames alike; `pa` is None for a hole."""

    va: int
    pa: int | None
    size: int
    prot: Prot


class Leaf(NamedTuple):
    """One leaf: its first address, size, first physical address and protection."""

    va: int
    size: int
    pa: int
    prot: Prot


class PageTable:
    """Leaves of 4 KiB, 2 MiB and 1 GiB with read, write and execute.

    Parameters
    ----------
    events
        Where splits and collapses are counted.
    direct_map
        The region whose splits are counted as the direct map's.
    """

    def __init__(self, *, events: Events | None = None, direct_map: Interval | None = None) -> None:
        self.events = Events() if events is None else events
        self.direct_map = direct_map or Interval(0, 0)
        # Sorted, so that a walk steps over the terabytes where nothing is mapped.
        self._puds: SortedDict = SortedDict()
        self._counts = dict.fromkeys(LEAF_SIZES, 0)

    def translate(self, va: int) -> Translation | None:
        """Return what `va` reaches, or None where nothing is mapped."""
        entry: _Entry | _Pmd = self._puds.get(va >> 30)
        leaf = HUGE_PAGE_SIZE
        if isinstance(entry, list):
            entry = entry[va >> 21 & 511]
            leaf = LARGE_PAGE_SIZE
            if isinstance(entry, np.ndarray):
                entry = entry.item(va >> 12 & 511)
                leaf = PAGE_SIZE
        if not entry:
            return None
        assert isinstance(entry, int)
        return Translation(entry & _FRAME | va & (leaf - 1), _PROTS[entry & _PROT_BITS], leaf)

    def map(
        self, va: int, frames: Frames | int, prot: Prot, *, size: int, leaf: int = PAGE_SIZE
    ) -> None:
        """Map `size` bytes at `va`.

        Parameters
        ----------
        frames
            One physical address per 4 KiB page, or the first address of a contiguous run.
        leaf
            Bytes per leaf; above 4 KiB only for a contiguous run, and `va`, the run and
            `size` must be multiples of it.

        Raises
        ------
        MappingError
            Writable and executable, not aligned, or a part is mapped already.
        """
        end = self._require_range("map", va, size, leaf)
        flags = prot.value | _PRESENT
        if prot.value & _WX == _WX:
            self._refuse("map", va, size, f"{prot} is writable and executable")
        self._require_direct_map_nx("map", va, size, prot)
        if isinstance(frames, int):
            aligned = frames % leaf == 0 and 0 <= frames <= _PHYSICAL_END - size
        else:
            aligned = (
                leaf == PAGE_SIZE
                and len(frames) * PAGE_SIZE == size
                and not (frames & _U(PAGE_SIZE - 1)).any()
            )
        if not aligned:
            self._refuse("map", va, size, f"frames do not suit leaves of {size_text(leaf)}")
        for start, _, _, entry in self._segments(va, end):
            if isinstance(entry, np.ndarray):
                if np.count_nonzero(entry):
                    first = start + int(np.flatnonzero(entry)[0]) * PAGE_SIZE
                    self._refuse("map", va, size, f"{first:#x} is mapped already")
            elif entry is not None:
                self._refuse("map", va, size, f"{start:#x} is mapped already")
        self._counts[leaf] += size // leaf
        if leaf == PAGE_SIZE:
            if isinstance(frames, int):
                frames = np.arange(frames, frames + size, PAGE_SIZE, dtype=_U)
            self._map_pages(va, end, frames | _U(flags))
            return
        assert isinstance(frames, int)
        for at in range(va, end, leaf):
            entry = frames + (at - va) | flags
            if leaf == HUGE_PAGE_SIZE:
                self._puds[at >> 30] = entry
            else:
                self._pmd(at)[at >> 21 & 511] = entry

    def map_contiguous(self, va: int, pa: int, prot: Prot, *, size: int) -> None:
        """Map a contiguous run with the largest leaves that its alignment allows.

        Raises MappingError as `map` does.
        """
        end = self._require_range("map", va, size, PAGE_SIZE)
        pieces = []
        at = va
        while at < end:
            leaf = next(
                leaf
                for leaf in reversed(LEAF_SIZES)
                if (at | pa + at - va) % leaf == 0 and end - at >= leaf
            )
            # As many of these leaves as fit before the next larger one could begin.
            larger = leaf * 512
            stop = align_down(end, leaf)
            if leaf != HUGE_PAGE_SIZE and (va - pa) % larger == 0:
                stop = min(stop, align_up(at + leaf, larger))
            pieces.append((at, stop, leaf))
            at = stop
        for done, (start, stop, leaf) in enumerate(pieces):
            try:
                self.map(start, pa + start - va, prot, size=stop - start, leaf=leaf)
            except MappingError:
                for mapped, end, _ in pieces[:done]:
                    self.unmap(mapped, end - mapped)
                raise

    def unmap(self, va: int, size: int) -> Frames:
        """Remove the mapping and return its frames, one per 4 KiB page.

        A large leaf that the range covers only in part is split. MappingError where
        nothing is mapped.
        """
        end = self._require_range("unmap", va, size, PAGE_SIZE)
        frames = self.frames(va, size, operation="unmap")
        for segment in list(self._segments(va, end)):
            self._clear(*segment)
        return frames

    def set_pte(self, va: int, frame: int, prot: Prot) -> None:
        """Map one 4 KiB page, as `map` does, at the price of a text_poke step."""
        pmd = self._puds.get(va >> 30)
        table = pmd[va >> 21 & 511] if isinstance(pmd, list) else None
        index = va >> 12 & 511
        if not isinstance(table, np.ndarray) or table.item(index) or prot.value & _WX == _WX:
            self.map(va, frame, prot, size=PAGE_SIZE)
            return
        table[index] = frame | prot.value | _PRESENT
        self._counts[PAGE_SIZE] += 1

    def clear_pte(self, va: int) -> None:
        """Unmap one page that `set_pte` mapped."""
        table = self._pmd(va)[va >> 21 & 511]
        assert isinstance(table, np.ndarray)
        table[va >> 12 & 511] = 0
        self._counts[PAGE_SIZE] -= 1

    def protect(self, va: int, size: int, prot: Prot) -> None:
        """Give every page of the range this protection; see `change`."""
        self.change(va, size, on=prot, off=Prot(_PROT_BITS & ~prot.value))

    def change(self, va: int, size: int, *, on: Prot = Prot.NONE, off: Prot = Prot.NONE) -> None:
        """Add the rights `on` and drop the rights `off`, keeping the others.

        A large leaf is split only when it would change and the range does not cover it.

        Raises
        ------
        MappingError
            A page is not mapped, or would become writable and executable.
        """
        end = self._require_range("protect", va, size, PAGE_SIZE)
        set_bits, keep = on.value, (1 << 64) - 1 - off.value
        self._require_direct_map_nx("protect", va, size, on)
        for start, _, _, entry in self._segments(va, end):
            if entry is None:
                self._refuse("protect", va, size, f"{start:#x} is not mapped")
            if isinstance(entry, np.ndarray) and np.count_nonzero(entry) < len(entry):
                hole = start + int(np.argmin(entry != 0)) * PAGE_SIZE
                self._refuse("protect", va, size, f"{hole:#x} is not mapped")
            if set_bits & _WX and keep & _WX == _WX:
                bad = ((entry | set_bits) & _WX) == _WX
                if np.any(bad):
                    page = start + int(np.argmax(bad)) * PAGE_SIZE
                    self._refuse("protect", va, size, f"{page:#x} would be writable and executable")
        for segment in list(self._segments(va, end)):
            self._apply(*segment, set_bits, keep)

    def collapse(self, va: int) -> bool:
        """Make the 2 MiB that hold `va` one leaf again, if nothing tells its pages apart.

        All 512 entries must be present with equal flags, and their frames contiguous and
        2 MiB-aligned (collapse_pmd_page in arch/x86/mm/pat/set_memory.c).
        """
        pmd = self._puds.get(va >> 30)
        table = pmd[va >> 21 & 511] if isinstance(pmd, list) else None
        if not isinstance(table, np.ndarray):
            return False
        first = table.item(0)
        if not first or (first & _FRAME) % LARGE_PAGE_SIZE:
            return False
        if not np.array_equal(table, _PAGE_OFFSETS + _U(first)):
            return False
        assert isinstance(pmd, list)
        pmd[va >> 21 & 511] = first
        self._counts[PAGE_SIZE] -= 512
        self._counts[LARGE_PAGE_SIZE] += 1
        if va not in self.direct_map:
            self.events.collapses += 1
        return True

    def frames(self, va: int, size: int, *, operation: str = "translate") -> Frames:
        """Return the frame addresses under the range, one per 4 KiB page.

        MappingError, in the name of `operation`, where nothing is mapped.
        """
        end = self._require_range(operation, va, size, PAGE_SIZE)
        parts = []
        for start, stop, leaf, entry in self._segments(va, end):
            if isinstance(entry, np.ndarray):
                if np.count_nonzero(entry) < len(entry):
                    hole = start + int(np.argmin(entry != 0)) * PAGE_SIZE
                    self._refuse(operation, va, size, f"{hole:#x} is not mapped")
                parts.append(entry & _U(_FRAME))
            elif entry is None:
                self._refuse(operation, va, size, f"{start:#x} is not mapped")
            else:
                first = (entry & _FRAME) + start % leaf
                parts.append(np.arange(first, first + stop - start, PAGE_SIZE, dtype=_U))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def spans(self, va: int, size: int) -> Iterator[Span]:
        """Yield the range as stretches of contiguous frames and of holes, lowest first.

        Neither `va` nor `size` need be aligned. Stretches are cut at 2 MiB boundaries.
        """
        end = va + size
        for start, stop, leaf, entry in self._segments(align_down(va, PAGE_SIZE), end):
            if isinstance(entry, np.ndarray):
                steps = entry[1:] - entry[:-1]
                cuts = [0, *(np.flatnonzero(steps != PAGE_SIZE) + 1).tolist(), len(entry)]
                pieces = [
                    (start + first * PAGE_SIZE, start + last * PAGE_SIZE, entry.item(first))
                    for first, last in pairwise(cuts)
                ]
            else:
                pieces = [(start, stop, entry + start % leaf if entry else 0)]
            for first, last, bits in pieces:
                low, high = max(first, va), min(last, end)
                pa = (bits & _FRAME) + low - first if bits else None
                yield Span(low, pa, high - low, _PROTS[bits & _PROT_BITS])

    def leaves(self, interval: Interval | None = None) -> Iterator[Leaf]:
        """Yield every leaf (that shares an address with `interval`), lowest first."""
        for start, _, size, entry in self._walk(interval or _EVERYTHING):
            if isinstance(entry, np.ndarray):
                for index in np.flatnonzero(entry).tolist():
                    bits = entry.item(index)
                    va = start + index * PAGE_SIZE
                    yield Leaf(va, size, bits & _FRAME, _PROTS[bits & _PROT_BITS])
            elif entry is not None:
                prot = _PROTS[entry & _PROT_BITS]
                yield Leaf(align_down(start, size), size, entry & _FRAME, prot)

    def _repr_html_(self) -> str:
        rows: list[tuple[str, int, int, Prot]] = []
        for leaf in self.leaves():
            if rows and rows[-1][2:] == (leaf.size, leaf.prot):
                rows[-1] = (rows[-1][0], rows[-1][1] + 1, *rows[-1][2:])
            else:
                rows.append((f"{leaf.va:#x}", 1, leaf.size, leaf.prot))
        cells = [(at, count, size_text(size), prot) for at, count, size, prot in rows]
        return table(("from", "leaves", "of", "protection"), cells, "Leaves, runs of equal ones")

    def leaf_counts(self, interval: Interval | None = None) -> dict[int, int]:
        """Return the number of leaves by size (those that share an address with `interval`)."""
        if interval is None:
            return dict(self._counts)
        counts = dict.fromkeys(LEAF_SIZES, 0)
        for _, _, size, entry in self._walk(interval):
            if isinstance(entry, np.ndarray):
                counts[size] += int(np.count_nonzero(entry))
            else:
                counts[size] += entry is not None
        return counts

    def aliases(self, pa: int) -> list[int]:
        """Return every address that reaches the physical address `pa`, lowest first."""
        frame, offset = align_down(pa, PAGE_SIZE), pa % PAGE_SIZE
        found = []
        for start, _, size, entry in self._walk():
            if isinstance(entry, np.ndarray):
                hits = np.flatnonzero((entry & _U(_FRAME | _PRESENT)) == frame | _PRESENT)
                found += [start + index * PAGE_SIZE + offset for index in hits.tolist()]
            elif entry is not None and 0 <= frame - (entry & _FRAME) < size:
                found.append(start + frame - (entry & _FRAME) + offset)
        return found

    def wx_aliases(self) -> list[int]:
        """Return the frames that one address may write and another may execute."""
        both: list[int] = np.intersect1d(
            self.frames_with(Prot.W), self.frames_with(Prot.X), assume_unique=True
        ).tolist()
        return both

    def frames_with(self, rights: Prot, *, exclude: Interval | None = None) -> Frames:
        """Return the distinct frames mapped with all of `rights`, sorted.

        Leaves in the interval `exclude` do not count.
        """
        wanted = rights.value | _PRESENT
        # One flag per frame, grown as needed: sorting a million frames would cost far more.
        marked = np.zeros(0, np.bool_)
        for start, _, size, entry in self._walk():
            if entry is None or (exclude is not None and start in exclude):
                continue
            if isinstance(entry, np.ndarray):
                frames = entry[(entry & _U(wanted)) == wanted] // _U(PAGE_SIZE)
                chosen: slice | Frames = frames
                top = int(frames.max(initial=0)) + 1
            elif entry & wanted == wanted:
                first = (entry & _FRAME) // PAGE_SIZE
                top = first + size // PAGE_SIZE
                chosen = slice(first, top)
            else:
                continue
            if top > marked.size:
                marked = np.append(
                    marked, np.zeros(max(top, 2 * marked.size) - marked.size, np.bool_)
                )
            marked[chosen] = True
        return np.flatnonzero(marked).astype(_U) * _U(PAGE_SIZE)

    def check(self) -> None:
        """Assert that no leaf is W and X, large ones are aligned, counters match a recount."""
        counts = dict.fromkeys(LEAF_SIZES, 0)
        for start, _, size, entry in self._walk():
            if entry is None:
                continue
            entries = entry if isinstance(entry, np.ndarray) else np.array([entry], _U)
            used = entries[entries != 0]
            assert ((used & _U(_PRESENT)) != 0).all(), f"not present near {start:#x}"
            assert ((used & _U(_WX)) != _WX).all(), f"W and X near {start:#x}"
            assert not (used & _U(_FRAME & (size - 1))).any(), f"misaligned leaf near {start:#x}"
            if start in self.direct_map:
                assert not (used & _U(Prot.X.value)).any(), f"X in the direct map near {start:#x}"
            counts[size] += len(used)
        assert counts == self._counts, f"{counts} counted, {self._counts} kept"

    def _walk(self, interval: Interval = _EVERYTHING) -> Iterator[tuple[int, int, int, _Entry]]:
        return self._segments(align_down(interval.start, PAGE_SIZE), interval.end)

    def _segments(self, va: int, end: int) -> Iterator[tuple[int, int, int, _Entry]]:
        """Yield (start, stop, leaf size, entry), entry being the slice of a PTE table."""
        at = va
        while at < end:
            pmd = self._puds.get(at >> 30)
            if pmd is None:
                following = next(self._puds.irange(at >> 30), end >> 30)
                stop = min(end, following << 30) if following << 30 > at else end
                yield at, stop, HUGE_PAGE_SIZE, None
            elif isinstance(pmd, int):
                stop = min(end, align_down(at, HUGE_PAGE_SIZE) + HUGE_PAGE_SIZE)
                yield at, stop, HUGE_PAGE_SIZE, pmd
            else:
                stop = min(end, align_down(at, LARGE_PAGE_SIZE) + LARGE_PAGE_SIZE)
                index = at >> 21 & 511
                entry = pmd[index]
                if isinstance(entry, np.ndarray):
                    first = at >> 12 & 511
                    yield at, stop, PAGE_SIZE, entry[first : first + (stop - at + 4095 >> 12)]
                else:
                    if entry is None:  # one hole, however many entries it spans
                        while index < 511 and pmd[index + 1] is None:
                            index += 1
                        stop = min(end, align_down(at, HUGE_PAGE_SIZE) + (index + 1 << 21))
                    yield at, stop, LARGE_PAGE_SIZE, entry
            at = stop

    def _require_range(self, operation: str, va: int, size: int, leaf: int) -> int:
        if leaf not in LEAF_SIZES:
            self._refuse(operation, va, size, f"no leaf has {leaf:#x} bytes")
        if size <= 0 or va < 0 or va + size > 1 << 64:
            self._refuse(operation, va, size, "not a range of 64-bit addresses")
        if (va | size) % leaf:
            self._refuse(operation, va, size, f"not aligned to {size_text(leaf)}")
        return va + size

    def _require_direct_map_nx(self, operation: str, va: int, size: int, prot: Prot) -> None:
        if prot.value & Prot.X.value and self.direct_map.overlaps(Interval(va, va + size)):
            self._refuse(operation, va, size, "the direct map is never executable")

    @staticmethod
    def _refuse(operation: str, va: int, size: int, reason: str) -> NoReturn:
        raise MappingError(operation, va, size, reason)

    def _pmd(self, va: int) -> _Pmd:
        pmd: int | _Pmd | None = self._puds.get(va >> 30)
        if not isinstance(pmd, list):
            pmd = [None] * 512
            self._puds[va >> 30] = pmd
        return pmd

    def _map_pages(self, va: int, end: int, entries: Frames) -> None:
        done, at = 0, va
        while at < end:
            stop = min(end, align_down(at, LARGE_PAGE_SIZE) + LARGE_PAGE_SIZE)
            pmd, index = self._pmd(at), at >> 21 & 511
            table = pmd[index]
            if not isinstance(table, np.ndarray):
                table = pmd[index] = np.zeros(512, _U)
            first, count = at >> 12 & 511, stop - at >> 12
            table[first : first + count] = entries[done : done + count]
            done += count
            at = stop

    def _split(self, va: int, leaf: int, entry: int) -> None:
        """Replace the leaf that holds `va` by 512 of the next smaller size."""
        smaller = leaf // 512
        pmd = self._pmd(va) if leaf == LARGE_PAGE_SIZE else None
        if pmd is None:
            self._puds[va >> 30] = [entry + index * smaller for index in range(512)]
        else:
            pmd[va >> 21 & 511] = _PAGE_OFFSETS + _U(entry)
        self._counts[leaf] -= 1
        self._counts[smaller] += 512
        if va not in self.direct_map:
            self.events.leaf_splits += 1
        elif leaf == HUGE_PAGE_SIZE:
            self.events.direct_map_splits_1g += 1
        else:
            self.events.direct_map_splits_2m += 1

    def _apply(
        self, start: int, stop: int, leaf: int, entry: _Entry, set_bits: int, keep: int
    ) -> None:
        if isinstance(entry, np.ndarray):
            entry[:] = (entry | _U(set_bits)) & _U(keep)
            return
        assert entry is not None
        changed = (entry | set_bits) & keep
        if changed == entry:
            return
        if stop - start < leaf:
            self._split(start, leaf, entry)
            for segment in list(self._segments(start, stop)):
                self._apply(*segment, set_bits, keep)
        elif leaf == HUGE_PAGE_SIZE:
            self._puds[start >> 30] = changed
        else:
            self._pmd(start)[start >> 21 & 511] = changed

    def _clear(self, start: int, stop: int, leaf: int, entry: _Entry) -> None:
        if not isinstance(entry, np.ndarray):
            assert entry is not None
            if stop - start < leaf:
                self._split(start, leaf, entry)
                for segment in list(self._segments(start, stop)):
                    self._clear(*segment)
                return
            self._counts[leaf] -= 1
            if leaf == HUGE_PAGE_SIZE:
                del self._puds[start >> 30]
            else:
                self._pmd(start)[start >> 21 & 511] = None
        else:
            # The table stays, empty: the kernel keeps its own too (vunmap_pte_range).
            entry[:] = 0
            self._counts[PAGE_SIZE] -= stop - start >> 12
