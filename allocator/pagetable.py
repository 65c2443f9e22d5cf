# SPDX-License-Identifier: GPL-2.0-or-later
"""The page table: which address reaches which frame, and how.

The shape is that of the three lowest levels that all our architectures share; what an entry
maps follows from the page (`Paging`):

    PUD entry   1 GiB    64 GiB     4 TiB    a leaf (1 GiB only), or a table of PMD entries
    PMD entry   2 MiB    32 MiB   512 MiB    a leaf, or a table of PTEs
    PTE         4 KiB    16 KiB    64 KiB    a leaf
    a table       512     2,048     8,192    entries

Where the architecture has them (`Paging.run`), an aligned row of entries may be a *run*: each says that
it is one of several in a row, alike and to frames in a row, and a TLB holds them as one. So a run
counts as one leaf, which takes several entries:

    of PMD entries   32 MiB     1 GiB    16 GiB    arm64
    of PTEs          64 KiB     2 MiB     2 MiB    arm64; riscv64 (64 KiB)

Its entries change together or not at all. One that is in use may change only on CPUs that let leaves be
split in use (`live_splits`): elsewhere a TLB that looks at it half way may do anything, so a run
is unmapped as it was mapped. With such CPUs what is split becomes runs as far as they go
(split_pud(), split_pmd() of arch/arm64/mm/mmu.c).

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

Long because an entry's level, its run and its counters change together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sortedcontainers import SortedDict

from allocator.errors import MappingError
from allocator.events import Events
from allocator.markup import grouped, table
from allocator.physical import cuts_of
from allocator.types import (
    PAGE_SIZE,
    Interval,
    Paging,
    Prot,
    align_down,
    align_up,
    size_text,
)

Frames: TypeAlias = NDArray[np.uint64]
# None: nothing there; int: a leaf; array: a table of PTEs.
_Entry: TypeAlias = int | Frames | None
_Pmd: TypeAlias = list[_Entry]

# An entry is a frame address, the three bits of Prot, and PRESENT. A leaf without any
# permission keeps its frame: that is what set_direct_map_invalid leaves behind.
_PRESENT = 8
_RUN = 16
_PROT_BITS = 7
_FRAME = (1 << 64) - PAGE_SIZE  # of the smallest page; in larger ones more bits are zero
_WX = (Prot.W | Prot.X).value
_PROTS = tuple(Prot(bits) for bits in range(8))
_EVERYTHING = Interval(0, 1 << 64)
# Physical addresses have at most 52 bits on all our architectures.
_PHYSICAL_END = 1 << 52
_U = np.uint64


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
    """Leaves (4 KiB, 2 MiB and 1 GiB by default) with read, write and execute.

    Parameters
    ----------
    paging
        What an entry of each level maps.
    events
        Where splits and collapses are counted.
    direct_map
        The region whose splits are counted as the direct map's.
    live_splits
        Whether leaves may be split, and runs be changed, while they are in use.
    """

    def __init__(
        self,
        *,
        paging: Paging | None = None,
        events: Events | None = None,
        direct_map: Interval | None = None,
        live_splits: bool = False,
    ) -> None:
        self.paging = paging = paging or Paging()
        self._page, self._large, self._upper = paging.page, paging.large, paging.upper
        self._leaves = paging.leaves
        self._run, self._large_run = paging.run, paging.large_run
        self.live_splits = live_splits
        self._entries, self._last = paging.entries, paging.entries - 1
        # An entry's index is an address shifted, and at most `_last`.
        self._pte_shift, self._pmd_shift, self._pud_shift = (
            size.bit_length() - 1 for size in (self._page, self._large, self._upper)
        )
        # All of it at once, for walks.
        self._shape = (
            *(self._pud_shift, self._pmd_shift, self._last),
            *(self._page, self._large, self._upper),
        )
        self._page_offsets = np.arange(self._entries, dtype=_U) * _U(self._page)
        self.events = Events() if events is None else events
        self.direct_map = direct_map or Interval(0, 0)
        # Sorted, so that a walk steps over the terabytes where nothing is mapped.
        self._puds: SortedDict = SortedDict()
        self._counts = dict.fromkeys(self._leaves, 0)

    def translate(self, va: int) -> Translation | None:
        """Return what `va` reaches, or None where nothing is mapped."""
        entry: _Entry | _Pmd = self._puds.get(va >> self._pud_shift)
        leaf, run = self._upper, 0
        if isinstance(entry, list):
            entry = entry[va >> self._pmd_shift & self._last]
            leaf, run = self._large, self._large_run
            if isinstance(entry, np.ndarray):
                entry = entry.item(va >> self._pte_shift & self._last)
                leaf, run = self._page, self._run
        if not entry:
            return None
        assert isinstance(entry, int)
        address, size = entry & _FRAME | va & (leaf - 1), run if entry & _RUN else leaf
        return Translation(address, _PROTS[entry & _PROT_BITS], size)

    def map(
        self, va: int, frames: Frames | int, prot: Prot, *, size: int, leaf: int | None = None
    ) -> None:
        """Map `size` bytes at `va`.

        Parameters
        ----------
        frames
            One physical address per page, or the first address of a contiguous run.
        leaf
            Bytes per leaf, a page by default; more only for contiguous frames, and `va`, the
            first of them and `size` must be multiples of it.

        Raises
        ------
        MappingError
            Writable and executable, not aligned, or a part is mapped already.
        """
        page = self._page
        leaf = leaf or page
        end = self._require_range("map", va, size, leaf)
        flags = prot.value | _PRESENT
        if prot.value & _WX == _WX:
            self._refuse("map", va, size, f"{prot} is writable and executable")
        self._require_direct_map_nx("map", va, size, prot)
        if isinstance(frames, int):
            aligned = frames % leaf == 0 and 0 <= frames <= _PHYSICAL_END - size
        else:
            aligned = (
                leaf == page and len(frames) * page == size and not (frames & _U(page - 1)).any()
            )
        if not aligned:
            self._refuse("map", va, size, f"frames do not suit leaves of {size_text(leaf)}")
        for start, _, _, entry in self._segments(va, end):
            if isinstance(entry, np.ndarray):
                if np.count_nonzero(entry):
                    first = start + int(np.flatnonzero(entry)[0]) * page
                    self._refuse("map", va, size, f"{first:#x} is mapped already")
            elif entry is not None:
                self._refuse("map", va, size, f"{start:#x} is mapped already")
        self._counts[leaf] += size // leaf
        if leaf in (self._run, self._large_run):
            flags |= _RUN
        if leaf < self._large:
            self.events.entries_made += size // page
            if isinstance(frames, int):
                frames = np.arange(frames, frames + size, page, dtype=_U)
            self._map_pages(va, end, frames | _U(flags))
            return
        assert isinstance(frames, int)
        step = self._upper if leaf == self._upper else self._large
        self.events.entries_made += size // step
        for at in range(va, end, step):
            entry = frames + (at - va) | flags
            if step == self._upper:
                self._puds[at >> self._pud_shift] = entry
            else:
                self._pmd(at)[at >> self._pmd_shift & self._last] = entry

    def map_contiguous(self, va: int, pa: int, prot: Prot, *, size: int) -> None:
        """Map contiguous frames with the largest leaves that their alignment allows.

        With runs only where these may change later. Raises MappingError as `map` does.
        """
        end = self._require_range("map", va, size, self._page)
        runs = (self._run, self._large_run)
        leaves = [leaf for leaf in self._leaves if self.live_splits or leaf not in runs]
        pieces = []
        at = va
        while at < end:
            number, leaf = next(
                (number, leaf)
                for number, leaf in reversed(list(enumerate(leaves)))
                if (at | pa + at - va) % leaf == 0 and end - at >= leaf
            )
            # As many of these leaves as fit before the next larger one could begin.
            stop = align_down(end, leaf)
            larger = next((size for size in leaves[number + 1 :] if (va - pa) % size == 0), 0)
            if larger:
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

        A large leaf that the range covers only in part is split, and so is a run. MappingError
        where nothing is mapped, or where a run may not be split.
        """
        end = self._require_range("unmap", va, size, self._page)
        frames = self.frames(va, size, operation="unmap")
        self._cut("unmap", va, end, lambda _entry: True)
        for segment in list(self._segments(va, end)):
            self._clear(*segment)
        return frames

    def set_pte(self, va: int, frame: int, prot: Prot) -> None:
        """Map one 4 KiB page, as `map` does, at the price of a text_poke step."""
        pmd = self._puds.get(va >> self._pud_shift)
        table = pmd[va >> self._pmd_shift & self._last] if isinstance(pmd, list) else None
        index = va >> self._pte_shift & self._last
        if not isinstance(table, np.ndarray) or table.item(index) or prot.value & _WX == _WX:
            self.map(va, frame, prot, size=self._page)
            return
        table[index] = frame | prot.value | _PRESENT
        self._counts[self._page] += 1
        self.events.entries_made += 1

    def clear_pte(self, va: int) -> None:
        """Unmap one page that `set_pte` mapped."""
        table = self._pmd(va)[va >> self._pmd_shift & self._last]
        assert isinstance(table, np.ndarray)
        table[va >> self._pte_shift & self._last] = 0
        self._counts[self._page] -= 1
        self.events.entries_cleared += 1

    def protect(self, va: int, size: int, prot: Prot) -> None:
        """Give every page of the range this protection; see `change`."""
        self.change(va, size, on=prot, off=Prot(_PROT_BITS & ~prot.value))

    def change(self, va: int, size: int, *, on: Prot = Prot.NONE, off: Prot = Prot.NONE) -> None:
        """Add the rights `on` and drop the rights `off`, keeping the others.

        A large leaf or a run is split only when it would change and the range does not cover it.

        Raises
        ------
        MappingError
            A page is not mapped, or would become writable and executable; a run would change
            where none may.
        """
        end = self._require_range("protect", va, size, self._page)
        set_bits, keep = on.value, (1 << 64) - 1 - off.value
        self._require_direct_map_nx("protect", va, size, on)
        for start, _, _, entry in self._segments(va, end):
            if entry is None:
                self._refuse("protect", va, size, f"{start:#x} is not mapped")
            if isinstance(entry, np.ndarray) and np.count_nonzero(entry) < len(entry):
                hole = start + int(np.argmin(entry != 0)) * self._page
                self._refuse("protect", va, size, f"{hole:#x} is not mapped")
            if set_bits & _WX and keep & _WX == _WX:
                bad = ((entry | set_bits) & _WX) == _WX
                if np.any(bad):
                    page = start + int(np.argmax(bad)) * self._page
                    self._refuse("protect", va, size, f"{page:#x} would be writable and executable")
            if not self.live_splits and (self._run or self._large_run):
                held = ((entry & _RUN) != 0) & (((entry | set_bits) & keep) != entry)
                if np.any(held):
                    page = start + int(np.argmax(held)) * self._page
                    self._refuse(
                        "protect", va, size, f"{page:#x} is in a run, which may not change"
                    )
        self._cut("protect", va, end, lambda entry: (entry | set_bits) & keep != entry)
        for segment in list(self._segments(va, end)):
            self._apply(*segment, set_bits, keep)

    def collapse(self, va: int) -> bool:
        """Make the table of pages that holds `va` one leaf again, if nothing tells them apart.

        All entries must be present with equal flags, and their frames contiguous and
        aligned to the leaf (collapse_pmd_page in arch/x86/mm/pat/set_memory.c).
        """
        pmd = self._puds.get(va >> self._pud_shift)
        index = va >> self._pmd_shift & self._last
        table = pmd[index] if isinstance(pmd, list) else None
        if not isinstance(table, np.ndarray):
            return False
        first = table.item(0) & ~_RUN
        if not first or (first & _FRAME) % self._large:
            return False
        in_runs = (table & _U(_RUN)) != 0
        if not np.array_equal(table & ~_U(_RUN), self._page_offsets + _U(first)):
            return False
        if count := int(np.count_nonzero(in_runs)):
            if not self.live_splits:
                return False
            self._counts[self._run] -= count * self._page // self._run
        assert isinstance(pmd, list)
        pmd[index] = first
        self._counts[self._page] -= self._entries - count
        self._counts[self._large] += 1
        if va not in self.direct_map:
            self.events.collapses += 1
        return True

    def fold(self, va: int) -> bool:
        """Make the row of pages that holds `va` a run, if nothing tells them apart.

        Never where a run may not change later: making one of pages that are in use is such a change.
        """
        if not self._run or not self.live_splits:
            return False
        pmd = self._puds.get(va >> self._pud_shift)
        table = pmd[va >> self._pmd_shift & self._last] if isinstance(pmd, list) else None
        if not isinstance(table, np.ndarray):
            return False
        count = self._run // self._page
        at = align_down(va >> self._pte_shift & self._last, count)
        row = table[at : at + count]
        first = row.item(0)
        if not first or first & _RUN or (first & _FRAME) % self._run:
            return False
        if not np.array_equal(row, self._page_offsets[:count] + _U(first)):
            return False
        row |= _U(_RUN)
        self._counts[self._page] -= count
        self._counts[self._run] += 1
        self.events.run_entries += count
        if va not in self.direct_map:
            self.events.folds += 1
        return True

    def heal(self, va: int, size: int) -> list[Interval]:
        """Make leaves as large as can be where `collapse` and `fold` let it; return what changed.

        Every large leaf and every run that shares an address with the range is tried.
        """
        found = []
        for whole in range(align_down(va, self._large), va + size, self._large):
            if self.collapse(whole):
                found.append(Interval(whole, whole + self._large))
            elif self._run and self.live_splits:
                low, high = (
                    max(whole, align_down(va, self._run)),
                    min(whole + self._large, va + size),
                )
                found += [
                    Interval(at, at + self._run)
                    for at in range(low, high, self._run)
                    if self.fold(at)
                ]
        return found

    def frames(self, va: int, size: int, *, operation: str = "translate") -> Frames:
        """Return the frame addresses under the range, one per page.

        MappingError, in the name of `operation`, where nothing is mapped.
        """
        end = self._require_range(operation, va, size, self._page)
        parts = []
        for start, stop, leaf, entry in self._segments(va, end):
            if isinstance(entry, np.ndarray):
                if np.count_nonzero(entry) < len(entry):
                    hole = start + int(np.argmin(entry != 0)) * self._page
                    self._refuse(operation, va, size, f"{hole:#x} is not mapped")
                parts.append(entry & _U(_FRAME))
            elif entry is None:
                self._refuse(operation, va, size, f"{start:#x} is not mapped")
            else:
                first = (entry & _FRAME) + start % leaf
                parts.append(np.arange(first, first + stop - start, self._page, dtype=_U))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def stretches(self) -> Iterator[tuple[int, int, int, int, Prot | None, bool]]:
        """Yield everything: start, end, bytes of an entry, first frame, protection (None: a hole).

        And at last whether the entries are of runs.
        """
        flags = _U(_PROT_BITS | _PRESENT | _RUN)
        for start, stop, leaf, entry in self._walk():
            entries = entry if isinstance(entry, np.ndarray) else np.array([entry or 0], _U)
            alike = entries & flags
            cuts = [0, *(np.flatnonzero(alike[1:] != alike[:-1]) + 1).tolist(), len(entries)]
            for first, last in pairwise(cuts):
                bits, end = entries.item(first), start + last * leaf
                prot = _PROTS[bits & _PROT_BITS] if bits else None
                end = stop if last == len(entries) else end
                yield start + first * leaf, end, leaf, bits & _FRAME, prot, bool(bits & _RUN)

    def spans(self, va: int, size: int) -> Iterator[Span]:
        """Yield the range as stretches of contiguous frames and of holes, lowest first.

        Neither `va` nor `size` need be aligned. Stretches are cut where large leaves end.
        """
        end, page = va + size, self._page
        for start, stop, leaf, entry in self._segments(va & -page, end):
            if isinstance(entry, np.ndarray):
                pieces = [
                    (start + first * page, start + last * page, entry.item(first))
                    for first, last in pairwise(cuts_of(entry, page))
                ]
            else:
                pieces = [(start, stop, entry + start % leaf if entry else 0)]
            for first, last, bits in pieces:
                low, high = max(first, va), min(last, end)
                pa = (bits & _FRAME) + low - first if bits else None
                yield Span(low, pa, high - low, _PROTS[bits & _PROT_BITS])

    def leaves(self, interval: Interval | None = None) -> Iterator[Leaf]:
        """Yield every leaf (that shares an address with `interval`), lowest first."""
        told = -1  # the end of the run that was yielded last
        for start, _, size, entry in self._walk(interval or _EVERYTHING):
            if isinstance(entry, np.ndarray):
                found, run = np.flatnonzero(entry).tolist(), self._run
                pairs = [(start + index * self._page, entry.item(index)) for index in found]
            elif entry is not None:
                pairs, run = [(align_down(start, size), entry)], self._large_run
            else:
                continue
            for va, bits in pairs:
                prot, frame = _PROTS[bits & _PROT_BITS], bits & _FRAME
                if not bits & _RUN:
                    yield Leaf(va, size, frame, prot)
                elif va >= told:
                    first = align_down(va, run)
                    told = first + run
                    yield Leaf(first, run, frame - (va - first), prot)

    def _repr_html_(self) -> str:
        runs = grouped((f"{leaf.va:#x}", size_text(leaf.size), leaf.prot) for leaf in self.leaves())
        return table(("from", "leaves", "of", "protection"), runs, "Leaves, runs of equal ones")

    def leaf_counts(self, interval: Interval | None = None) -> dict[int, int]:
        """Return the number of leaves by size (those that share an address with `interval`)."""
        if interval is None:
            return dict(self._counts)
        counts = dict.fromkeys(self._leaves, 0)
        told = -1
        for start, _, size, entry in self._walk(interval):
            if isinstance(entry, np.ndarray):
                in_runs = np.flatnonzero(entry & _U(_RUN))
                counts[size] += int(np.count_nonzero(entry)) - len(in_runs)
                if len(in_runs):
                    at = (in_runs + start // self._page) // (self._run // self._page)
                    counts[self._run] += len(np.unique(at))
            elif entry is not None and entry & _RUN:
                counts[self._large_run] += start >= told
                told = align_down(start, self._large_run) + self._large_run
            elif entry is not None:
                counts[size] += 1
        return counts

    def aliases(self, pa: int) -> list[int]:
        """Return every address that reaches the physical address `pa`, lowest first."""
        frame, offset = align_down(pa, self._page), pa % self._page
        found = []
        for start, _, size, entry in self._walk():
            if isinstance(entry, np.ndarray):
                hits = np.flatnonzero((entry & _U(_FRAME | _PRESENT)) == frame | _PRESENT)
                found += [start + index * self._page + offset for index in hits.tolist()]
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
                frames = entry[(entry & _U(wanted)) == wanted] // _U(self._page)
                chosen: slice | Frames = frames
                top = int(frames.max(initial=0)) + 1
            elif entry & wanted == wanted:
                first = (entry & _FRAME) // self._page
                top = first + size // self._page
                chosen = slice(first, top)
            else:
                continue
            if top > marked.size:
                marked = np.append(
                    marked, np.zeros(max(top, 2 * marked.size) - marked.size, np.bool_)
                )
            marked[chosen] = True
        return np.flatnonzero(marked).astype(_U) * _U(self._page)

    def check(self) -> None:
        """Assert that no leaf is W and X, large ones are aligned, runs whole, counters a recount."""
        counts = dict.fromkeys(self._leaves, 0)
        rows: dict[int, list[int]] = {}  # runs of large leaves
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
            if isinstance(entry, np.ndarray):
                counts[size] += len(used)
                if not (used & _U(_RUN)).any():
                    continue
                for row in entry.reshape(-1, self._run // self._page):
                    if (row & _U(_RUN)).any():
                        _require_run(row.tolist(), self._run, start)
                        counts[size] -= len(row)
                        counts[self._run] += 1
            elif entry & _RUN:
                rows.setdefault(align_down(start, self._large_run), []).append(entry)
            else:
                counts[size] += 1
        for start, held in rows.items():
            assert len(held) * self._large == self._large_run, f"part of a run at {start:#x}"
            _require_run(held, self._large_run, start)
            counts[self._large_run] += 1
        assert counts == self._counts, f"{counts} counted, {self._counts} kept"

    def _walk(self, interval: Interval = _EVERYTHING) -> Iterable[tuple[int, int, int, _Entry]]:
        return self._segments(align_down(interval.start, self._page), interval.end)

    def _segments(self, va: int, end: int) -> Iterable[tuple[int, int, int, _Entry]]:
        """Yield (start, stop, leaf size, entry), entry being the slice of a PTE table."""
        pud_shift, pmd_shift, last, page, large, _ = self._shape
        if va >> pmd_shift == end - 1 >> pmd_shift and va < end:  # as nearly always: no walk
            pmd = self._puds.get(va >> pud_shift)
            if isinstance(pmd, list):
                entry = pmd[va >> pmd_shift & last]
                if isinstance(entry, np.ndarray):
                    first = (va & large - 1) // page
                    return ((va, end, page, entry[first : first + -(-(end - va) // page)]),)
                return ((va, end, large, entry),)
        return self._walked(va, end)

    def _walked(self, va: int, end: int) -> Iterator[tuple[int, int, int, _Entry]]:
        pud_shift, pmd_shift, last, page, large, upper = self._shape
        at = va
        while at < end:
            pmd = self._puds.get(at >> pud_shift)
            if pmd is None:
                following = next(self._puds.irange(at >> pud_shift), end >> pud_shift)
                stop = min(end, following << pud_shift) if following << pud_shift > at else end
                yield at, stop, upper, None
            elif isinstance(pmd, int):
                stop = min(end, align_down(at, upper) + upper)
                yield at, stop, upper, pmd
            else:
                stop = min(end, align_down(at, large) + large)
                index = at >> pmd_shift & last
                entry = pmd[index]
                if isinstance(entry, np.ndarray):
                    first = (at & large - 1) // page
                    yield at, stop, page, entry[first : first + -(-(stop - at) // page)]
                else:
                    if entry is None:  # one hole, however many entries it spans
                        while index < last and pmd[index + 1] is None:
                            index += 1
                        stop = min(end, align_down(at, upper) + (index + 1 << pmd_shift))
                    yield at, stop, large, entry
            at = stop

    def _require_range(self, operation: str, va: int, size: int, leaf: int) -> int:
        if leaf not in self._leaves:
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
        pmd: int | _Pmd | None = self._puds.get(va >> self._pud_shift)
        if not isinstance(pmd, list):
            pmd = [None] * self._entries
            self._puds[va >> self._pud_shift] = pmd
        return pmd

    def _map_pages(self, va: int, end: int, entries: Frames) -> None:
        done, at, large = 0, va, self._large
        while at < end:
            stop = min(end, align_down(at, large) + large)
            pmd, index = self._pmd(at), at >> self._pmd_shift & self._last
            table = pmd[index]
            if not isinstance(table, np.ndarray):
                table = pmd[index] = np.zeros(self._entries, _U)
            first, count = (at & large - 1) // self._page, (stop - at) // self._page
            table[first : first + count] = entries[done : done + count]
            done += count
            at = stop

    def _cut(self, operation: str, va: int, end: int, changes: Callable[[int], bool]) -> None:
        """Split the runs that reach out of the range, where they would change."""
        if not self._run and not self._large_run:
            return
        cut = []
        for at in {va, end - self._page}:
            pmd = self._puds.get(at >> self._pud_shift)
            entry = pmd[at >> self._pmd_shift & self._last] if isinstance(pmd, list) else None
            run = self._large_run
            if isinstance(entry, np.ndarray):
                entry, run = entry.item(at >> self._pte_shift & self._last), self._run
            if entry is None or not entry & _RUN or not changes(entry):
                continue
            first = align_down(at, run)
            if first < va or first + run > end:
                if not self.live_splits:
                    reason = (
                        f"{first:#x} is a run of {size_text(run)}, which may not be split in use"
                    )
                    self._refuse(operation, va, end - va, reason)
                cut.append((first, run))
        for first, run in cut:
            self._unfold(first, run)

    def _unfold(self, first: int, run: int) -> None:
        """Make the entries of a run leaves of their own, unless they are."""
        pmd = self._pmd(first)
        index = first >> self._pmd_shift & self._last
        if run == self._run:
            table, size = pmd[index], self._page
            assert isinstance(table, np.ndarray)
            at = first >> self._pte_shift & self._last
            if not table.item(at) & _RUN:
                return
            table[at : at + run // size] &= ~_U(_RUN)
        else:
            size, count = self._large, run // self._large
            leaves = [entry for entry in pmd[index : index + count] if isinstance(entry, int)]
            if not leaves[0] & _RUN:
                return
            pmd[index : index + count] = [entry & ~_RUN for entry in leaves]
        self._counts[run] -= 1
        self._counts[size] += run // size
        self.events.run_entries += run // size
        if first in self.direct_map:
            self.events.direct_map_run_splits += 1
        else:
            self.events.run_splits += 1

    def _split(self, va: int, leaf: int, entry: int) -> None:
        """Replace the leaf that holds `va` by a table of the next smaller size, of runs where possible."""
        smaller = leaf // self._entries
        pmd = self._pmd(va) if leaf == self._large else None
        run = (self._large_run if pmd is None else self._run) if self.live_splits else 0
        if run:
            entry |= _RUN
        if pmd is None:
            table: _Pmd = [entry + index * smaller for index in range(self._entries)]
            self._puds[va >> self._pud_shift] = table
        else:
            pmd[va >> self._pmd_shift & self._last] = self._page_offsets + _U(entry)
        self._counts[leaf] -= 1
        self._counts[run or smaller] += leaf // (run or smaller)
        if va not in self.direct_map:
            self.events.leaf_splits += 1
        elif leaf == self._upper:
            self.events.direct_map_splits_1g += 1
        else:
            self.events.direct_map_splits_2m += 1

    def _apply(
        self, start: int, stop: int, leaf: int, entry: _Entry, set_bits: int, keep: int
    ) -> None:
        if isinstance(entry, np.ndarray):
            entry[:] = (entry | _U(set_bits)) & _U(keep)
            self.events.entries_changed += len(entry)
            return
        assert entry is not None
        changed = (entry | set_bits) & keep
        if changed == entry:
            return
        if stop - start < leaf:
            self._split(start, leaf, entry)
            self._cut("protect", start, stop, lambda _entry: True)
            for segment in list(self._segments(start, stop)):
                self._apply(*segment, set_bits, keep)
            return
        self.events.entries_changed += 1
        if leaf == self._upper:
            self._puds[start >> self._pud_shift] = changed
        else:
            self._pmd(start)[start >> self._pmd_shift & self._last] = changed

    def _clear(self, start: int, stop: int, leaf: int, entry: _Entry) -> None:
        if not isinstance(entry, np.ndarray):
            assert entry is not None
            if stop - start < leaf:
                self._split(start, leaf, entry)
                self._cut("unmap", start, stop, lambda _entry: True)
                for segment in list(self._segments(start, stop)):
                    self._clear(*segment)
                return
            if entry & _RUN:  # the last of its entries takes it along
                self._counts[self._large_run] -= stop % self._large_run == 0
            else:
                self._counts[leaf] -= 1
            self.events.entries_cleared += 1
            if leaf == self._upper:
                del self._puds[start >> self._pud_shift]
            else:
                self._pmd(start)[start >> self._pmd_shift & self._last] = None
        else:
            # The table stays, empty: the kernel keeps its own too (vunmap_pte_range).
            runs = 0
            if self._run and (runs := int(np.count_nonzero(entry & _U(_RUN)))):
                self._counts[self._run] -= runs * self._page // self._run
            entry[:] = 0
            self._counts[self._page] -= (stop - start) // self._page - runs
            self.events.entries_cleared += (stop - start) // self._page


def _require_run(row: Sequence[int], run: int, near: int) -> None:
    """Assert that entries are a run: alike, of frames in a row, aligned as a whole."""
    first, step = row[0], run // len(row)
    alike = [first + number * step for number in range(len(row))]
    assert list(row) == alike, f"a run near {near:#x} is not alike"
    assert (first & _FRAME) % run == 0, f"misaligned run near {near:#x}"
