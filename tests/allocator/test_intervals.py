# SPDX-License-Identifier: GPL-2.0-or-later
"""IntervalSet against a set of integers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.intervals import IntervalSet
from allocator.types import Interval

SPACE = 256
stretches = st.tuples(st.integers(0, SPACE - 1), st.integers(1, 40)).map(
    lambda pair: Interval(pair[0], min(pair[0] + pair[1], SPACE))
)


def members(intervals):
    """Return every address of a set of intervals."""
    return {address for interval in intervals for address in range(interval.start, interval.end)}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), stretches), max_size=30),
    stretches,
    st.integers(1, 40),
    st.sampled_from([1, 2, 8, 64]),
)
def test_interval_set_behaves_as_a_set_of_addresses(steps, within, size, alignment):
    """Adding, removing and finding agree with a plain set of addresses at every step."""
    intervals, model = IntervalSet(), set()
    for adding, stretch in steps:
        addresses = set(range(stretch.start, stretch.end))
        legal = addresses.isdisjoint(model) if adding else addresses <= model
        operation = intervals.add if adding else intervals.remove
        if legal:
            operation(stretch)
            model = model | addresses if adding else model - addresses
        else:
            with pytest.raises(ValueError, match="in the set"):
                operation(stretch)
        intervals.check()
        assert model == members(intervals)
        assert len(model) == intervals.size
    for bounds in (None, within):
        inside = bounds or Interval(0, SPACE)
        fits = [
            start
            for start in range(0, SPACE, alignment)
            if inside.start <= start
            and start + size <= inside.end
            and model.issuperset(range(start, start + size))
        ]
        found = intervals.find(size, alignment=alignment, within=bounds)
        assert (fits[0] if fits else None) == found
        found = intervals.find(size, alignment=alignment, within=bounds, highest=True)
        assert (fits[-1] if fits else None) == found
        clipped = list(intervals.clipped(bounds))
        assert model & set(range(inside.start, inside.end)) == members(clipped)
        assert max((part.size for part in clipped), default=0) == intervals.largest(bounds)
    for address in range(SPACE):
        held = intervals.holding(address)
        assert (address in model) == (held is not None and address in held)


def test_find_does_not_walk_small_holes():
    """A search among thousands of small holes looks at only a few of them."""
    intervals = IntervalSet(Interval(start, start + 64) for start in range(0, 1 << 20, 128))
    intervals.add(Interval(1 << 21, (1 << 21) + 4096))
    seen = 0

    class Counted(type(intervals._ends)):
        def __getitem__(self, key):
            nonlocal seen
            seen += 1
            return super().__getitem__(key)

    intervals._ends = Counted(intervals._ends)
    assert intervals.find(4096) == 1 << 21
    assert seen < 10


def test_an_empty_interval_is_refused():
    """An interval without an address is neither added nor removed."""
    intervals = IntervalSet([Interval(0, 10)])
    with pytest.raises(ValueError, match="empty"):
        intervals.add(Interval(20, 20))
    with pytest.raises(ValueError, match="not in the set"):
        intervals.remove(Interval(5, 5))
