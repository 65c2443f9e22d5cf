# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets of free address intervals, with first fit in logarithmic time.

The kernel keeps free vmalloc space in a tree augmented with the largest gap below each
node (mm/vmalloc.c), so that the lowest fitting gap is found without visiting the small
ones. The same here by size classes: besides the sorted intervals there is one sorted list
of starts per power of two, and a search looks at the first members of the classes that
are large enough instead of walking thousands of holes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sortedcontainers import SortedDict, SortedList

from allocator.types import Interval, align_down, align_up


class IntervalSet:
    """Disjoint half-open intervals; neighbours that touch are merged.

    >>> free = IntervalSet([Interval(0x1000, 0x9000)])
    >>> free.remove(Interval(0x2000, 0x3000))
    >>> [str(interval) for interval in free]
    ['[0x1000, 0x2000)', '[0x3000, 0x9000)']
    >>> hex(free.find(0x2000)), hex(free.find(0x1000, highest=True))
    ('0x3000', '0x8000')
    """

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        self._ends = SortedDict()
        # Index: size.bit_length(); one list more than any 64-bit size needs.
        self._starts = [SortedList() for _ in range(66)]
        self.size = 0
        for interval in intervals:
            self.add(interval)

    def __iter__(self) -> Iterator[Interval]:
        return (Interval(start, end) for start, end in self._ends.items())

    def __len__(self) -> int:
        return len(self._ends)

    def holding(self, address: int) -> Interval | None:
        """Return the interval that contains `address`, or None."""
        index = self._ends.bisect_right(address) - 1
        if index < 0:
            return None
        start, end = self._ends.peekitem(index)
        return Interval(start, end) if address < end else None

    def add(self, interval: Interval) -> Interval:
        """Insert `interval`, merge it with neighbours and return the merged one.

        Raises ValueError when part of it is in the set already: that is a double free.
        """
        start, end = interval.start, interval.end
        if start >= end:
            raise ValueError(f"{interval} is empty")
        index = self._ends.bisect_right(start)
        before = self._ends.peekitem(index - 1) if index else None
        after = self._ends.peekitem(index) if index < len(self._ends) else None
        if (before and before[1] > start) or (after and after[0] < end):
            raise ValueError(f"{interval} is in the set already")
        self.size += end - start
        if before and before[1] == start:
            start = before[0]
            self._drop(*before)
        if after and after[0] == end:
            end = after[1]
            self._drop(*after)
        self._put(start, end)
        return Interval(start, end)

    def remove(self, interval: Interval) -> None:
        """Take `interval` out; ValueError when it is not wholly inside."""
        held = self.holding(interval.start)
        if held is None or not held.holds(interval) or interval.size <= 0:
            raise ValueError(f"{interval} is not in the set")
        self._drop(held.start, held.end)
        if held.start < interval.start:
            self._put(held.start, interval.start)
        if interval.end < held.end:
            self._put(interval.end, held.end)
        self.size -= interval.size

    def find(
        self,
        size: int,
        *,
        alignment: int = 1,
        within: Interval | None = None,
        highest: bool = False,
    ) -> int | None:
        """Return the lowest (or highest) aligned address where `size` bytes fit, or None."""
        low, high = (within.start, within.end) if within else (0, 1 << 64)

        def place(start: int) -> int | None:
            first, last = max(start, low), min(self._ends[start], high) - size
            address = align_down(last, alignment) if highest else align_up(first, alignment)
            return address if first <= address <= last else None

        # An interval that begins below the searched range may still reach into it.
        partial = self.holding(low - 1) if low else None
        best = place(partial.start) if partial else None
        if best is not None and not highest:
            return best
        for starts in self._starts[size.bit_length() :]:
            if not starts:
                continue
            # Only what lies beyond the best place found in another class can improve it.
            floor, ceiling = (low, high) if best is None else (low, best)
            if highest and best is not None:
                floor, ceiling = max(low, best), high
            for start in starts.irange(floor, ceiling, (True, False), reverse=highest):
                address = place(start)
                if address is not None:
                    best = address
                    break
        return best

    def largest(self, within: Interval | None = None) -> int:
        """Return the size of the largest interval, clipped to `within`."""
        return max((part.size for part in self.clipped(within)), default=0)

    def clipped(self, within: Interval | None = None) -> Iterator[Interval]:
        """Yield the intervals, lowest first, clipped to `within`."""
        low, high = (within.start, within.end) if within else (0, 1 << 64)
        held = self.holding(low)
        if held is not None and held.start < low:
            yield Interval(low, min(held.end, high))
        for start in self._ends.irange(low, high, (True, False)):
            yield Interval(start, min(self._ends[start], high))

    def check(self) -> None:
        """Assert that intervals are non-empty, disjoint, merged and indexed by size."""
        last = -1
        for start, end in self._ends.items():
            assert last < start < end, f"[{start:#x}, {end:#x}) after {last:#x}"
            assert start in self._starts[(end - start).bit_length()], f"{start:#x} not indexed"
            last = end
        assert sum(map(len, self._starts)) == len(self._ends)
        assert self.size == sum(interval.size for interval in self)

    def _put(self, start: int, end: int) -> None:
        self._ends[start] = end
        self._starts[(end - start).bit_length()].add(start)

    def _drop(self, start: int, end: int) -> None:
        del self._ends[start]
        self._starts[(end - start).bit_length()].remove(start)
