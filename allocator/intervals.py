# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets of free address intervals, every operation in logarithmic time.

The kernel keeps free vmalloc space in a tree augmented with the largest gap below each
node (mm/vmalloc.c), so that the lowest fitting gap is found without visiting those that
are too small. The same here, in a B+ tree: a node knows how much fits into the best of its
intervals, once per alignment that was ever asked for, because an interval that is long
enough may still hold no aligned address. `size` bytes fit behind an aligned address of
[start, end) just when `end - align_up(start)` is not less; the same holds from the upper
end, so one number per node and alignment serves both directions.

A node computes such a number when a search first wants it and forgets it when anything
below changes. An update therefore touches the nodes on one path, and a search computes
again only what updates made it forget: logarithmic per update, also when 10^5 holes are
all just too small or all misaligned.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from allocator.types import Interval, align_down, align_up

FANOUT = 64


class _Node:
    """A leaf: starts and ends of intervals. Above: nodes, and the first start in each."""

    __slots__ = ("ends", "nodes", "rooms", "starts")

    def __init__(self, starts: list[int], ends: list[int], nodes: list[_Node]) -> None:
        self.starts = starts
        self.ends = ends
        self.nodes = nodes
        self.rooms: dict[int, int] = {}

    def room(self, alignment: int) -> int:
        """Return how many bytes fit behind an aligned address in one of the intervals."""
        found = self.rooms.get(alignment)
        if found is None:
            if self.nodes:
                found = max([node.room(alignment) for node in self.nodes])
            else:
                up, mask = alignment - 1, -alignment
                pairs = zip(self.starts, self.ends, strict=True)
                found = max([end - (start + up & mask) for start, end in pairs], default=0)
            self.rooms[alignment] = found
        return found

    def first(self, size: int, alignment: int, low: int) -> int | None:
        """Return the lowest aligned address with `size` bytes in an interval from `low` on."""
        index = bisect_left(self.starts, low)
        if not self.nodes:
            up, mask = alignment - 1, -alignment
            for start, end in zip(self.starts[index:], self.ends[index:], strict=True):
                place = start + up & mask
                if place + size <= end:
                    return place
            return None
        # Only the first of these nodes can have room and yet none from `low` on.
        for node in self.nodes[max(index - 1, 0) :]:
            if node.room(alignment) >= size:
                found = node.first(size, alignment, low)
                if found is not None:
                    return found
        return None

    def last(self, size: int, alignment: int, high: int) -> int | None:
        """Return the highest such address in an interval that starts below `high`."""
        index = bisect_left(self.starts, high)
        if not self.nodes:
            for at in range(index - 1, -1, -1):
                place = align_down(self.ends[at] - size, alignment)
                if place >= self.starts[at]:
                    return place
            return None
        for node in reversed(self.nodes[:index]):
            if node.room(alignment) >= size:
                found = node.last(size, alignment, high)
                if found is not None:
                    return found
        return None

    def largest(self, low: int, high: int) -> int:
        """Return the size of the largest interval that starts in [low, high)."""
        first, stop = bisect_left(self.starts, low), bisect_left(self.starts, high)
        if not self.nodes:
            pairs = zip(self.starts[first:stop], self.ends[first:stop], strict=True)
            return max([end - start for start, end in pairs], default=0)
        best = 0
        for at in range(max(first - 1, 0), stop):
            node = self.nodes[at]
            if node.room(1) > best:
                whole = first <= at < stop - 1
                best = max(best, node.room(1) if whole else node.largest(low, high))
        return best

    def walk(self, low: int) -> Iterator[tuple[int, int]]:
        """Yield the intervals that start from `low` on, lowest first."""
        index = bisect_left(self.starts, low)
        if not self.nodes:
            yield from zip(self.starts[index:], self.ends[index:], strict=True)
        for node in self.nodes[max(index - 1, 0) :]:
            yield from node.walk(low)

    def split(self) -> _Node:
        """Give the upper half to a new node and return that."""
        half = len(self.starts) // 2
        upper = _Node(self.starts[half:], self.ends[half:], self.nodes[half:])
        del self.starts[half:], self.ends[half:], self.nodes[half:]
        return upper

    def absorb(self, upper: _Node) -> None:
        """Take over what the following node has."""
        self.starts += upper.starts
        self.ends += upper.ends
        self.nodes += upper.nodes
        self.rooms.clear()


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
        self._root = _Node([], [], [])
        self._count = 0
        self.size = 0
        for interval in intervals:
            self.add(interval)

    def __iter__(self) -> Iterator[Interval]:
        return (Interval(start, end) for start, end in self._root.walk(0))

    def __len__(self) -> int:
        return self._count

    def holding(self, address: int) -> Interval | None:
        """Return the interval that contains `address`, or None."""
        held, _ = self._around(address)
        return held if held is not None and address < held.end else None

    def add(self, interval: Interval) -> Interval:
        """Insert `interval`, merge it with neighbours and return the merged one.

        Raises ValueError when part of it is in the set already: that is a double free.
        """
        start, end = interval.start, interval.end
        if start >= end:
            raise ValueError(f"{interval} is empty")
        before, after = self._around(start)
        if (before and before.end > start) or (after and after.start < end):
            raise ValueError(f"{interval} is in the set already")
        self.size += end - start
        touched = None
        if after and after.start == end:
            touched, end = after.start, after.end
        if before and before.end == start:
            if touched is not None:
                self._change(touched, None)
            touched, start = before.start, before.start
        merged = Interval(start, end)
        self._change(touched, merged)
        return merged

    def remove(self, interval: Interval) -> None:
        """Take `interval` out; ValueError when it is not wholly inside."""
        held = self.holding(interval.start)
        if held is None or not held.holds(interval) or interval.size <= 0:
            raise ValueError(f"{interval} is not in the set")
        below = Interval(held.start, interval.start) if held.start < interval.start else None
        above = Interval(interval.end, held.end) if interval.end < held.end else None
        self._change(held.start, below or above)
        if below and above:
            self._change(None, above)
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
        if not highest:
            # An interval that begins below the range may reach into it; then the first that
            # fits decides: what lies behind it reaches out of the range even further.
            held, _ = self._around(low)
            place = align_up(low, alignment)
            if held is None or place + size > min(held.end, high):
                found = self._root.first(size, alignment, low)
                if found is None or found + size > high:
                    return None
                place = found
            return place
        held, _ = self._around(high - 1)
        if held is None:
            return None
        place = align_down(min(held.end, high) - size, alignment)
        if place < held.start:
            found = self._root.last(size, alignment, held.start)
            if found is None:
                return None
            place = found
        return place if place >= low else None

    def largest(self, within: Interval | None = None) -> int:
        """Return the size of the largest interval, clipped to `within`."""
        low, high = (within.start, within.end) if within else (0, 1 << 64)
        last, _ = self._around(high - 1)
        if last is None or last.start <= low:
            return max(0, min(last.end, high) - low) if last else 0
        held, _ = self._around(low)
        return max(
            held.end - low if held else 0,
            self._root.largest(low, last.start),
            min(last.end, high) - last.start,
        )

    def clipped(self, within: Interval | None = None) -> Iterator[Interval]:
        """Yield the intervals, lowest first, clipped to `within`."""
        low, high = (within.start, within.end) if within else (0, 1 << 64)
        held = self.holding(low)
        if held is not None and held.start < low:
            yield Interval(low, min(held.end, high))
        for start, end in self._root.walk(low):
            if start >= high:
                return
            yield Interval(start, min(end, high))

    def check(self) -> None:
        """Assert that intervals are non-empty, disjoint, merged, and that the tree is sound."""
        last, count, size = -1, 0, 0
        for start, end in self._root.walk(0):
            assert last < start < end, f"[{start:#x}, {end:#x}) after {last:#x}"
            last, count, size = end, count + 1, size + end - start
        assert (count, size) == (self._count, self.size)
        row = [self._root]
        while row:
            for node in row:
                assert len(node.starts) <= FANOUT
                assert (node is self._root) or node.starts, "an empty node"
                below = [inner.starts[0] for inner in node.nodes] or node.starts
                assert node.starts == below, "a bound that is not the first start"
                assert len(node.ends) == (0 if node.nodes else len(node.starts))
                for alignment, room in node.rooms.items():
                    fits = [end - align_up(start, alignment) for start, end in node.walk(0)]
                    assert room == max(fits, default=0), f"room for alignment {alignment:#x}"
            deeper = {bool(node.nodes) for node in row}
            assert len(deeper) == 1, "leaves at different depths"
            row = [inner for node in row for inner in node.nodes]

    def _around(self, address: int) -> tuple[Interval | None, Interval | None]:
        """Return the last interval that starts up to `address`, and the one behind it."""
        node, following = self._root, None
        while node.nodes:
            index = max(bisect_right(node.starts, address) - 1, 0)
            if index + 1 < len(node.nodes):
                following = node.nodes[index + 1]
            node = node.nodes[index]
        index = bisect_right(node.starts, address)
        before = Interval(node.starts[index - 1], node.ends[index - 1]) if index else None
        if index == len(node.starts):
            if following is None:
                return before, None
            node, index = following, 0
            while node.nodes:
                node = node.nodes[0]
        return before, Interval(node.starts[index], node.ends[index])

    def _change(self, old: int | None, new: Interval | None) -> None:
        """Put `new` in the place of the interval that starts at `old`; None: of or by none.

        Nothing but the old interval may lie between the two.
        """
        key = old if old is not None else new.start if new else 0
        node, path = self._root, []
        while node.nodes:
            index = max(bisect_right(node.starts, key) - 1, 0)
            path.append((node, index))
            node = node.nodes[index]
        index = bisect_left(node.starts, key)
        kept = index if old is None else index + 1
        node.starts[index:kept] = [new.start] if new else []
        node.ends[index:kept] = [new.end] if new else []
        self._count += (new is not None) - (old is not None)
        node.rooms.clear()
        # Mend the path: first starts, nodes that are too long, short or empty.
        while path:
            above, index = path.pop()
            above.rooms.clear()
            if not node.starts:
                del above.starts[index], above.nodes[index]
            else:
                above.starts[index] = node.starts[0]
                if len(node.starts) > FANOUT:
                    upper = node.split()
                    above.starts.insert(index + 1, upper.starts[0])
                    above.nodes.insert(index + 1, upper)
                elif len(node.starts) < FANOUT // 4:
                    left = max(index - 1, 0)
                    pair = above.nodes[left : left + 2]
                    if sum(len(one.starts) for one in pair) <= FANOUT * 3 // 4 and len(pair) == 2:
                        pair[0].absorb(pair[1])
                        del above.starts[left + 1], above.nodes[left + 1]
            node = above
        if len(node.starts) > FANOUT:
            upper = node.split()
            self._root = _Node([node.starts[0], upper.starts[0]], [], [node, upper])
        while len(self._root.nodes) == 1:
            self._root = self._root.nodes[0]
