# SPDX-License-Identifier: GPL-2.0-or-later
"""IntervalSet against a set of integers."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from itertools import pairwise
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator import intervals as module
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
    st.sampled_from([4, 5, module.FANOUT]),
)
def test_interval_set_behaves_as_a_set_of_addresses(steps, within, size, alignment, fanout):
    """Adding, removing and finding agree with a plain set of addresses at every step."""
    with patch.object(module, "FANOUT", fanout):
        compare_with_addresses(steps, within, size, alignment)


def compare_with_addresses(steps, within, size, alignment):
    """Carry out steps on intervals and on a set of addresses; then ask both everything."""
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
        intervals.find(size, alignment=alignment, within=within)  # a number to forget
        intervals.check()
        assert model == members(intervals)
        assert len(model) == intervals.size
        assert len(list(intervals)) == len(intervals)
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


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([4, 7, 16]))
def test_a_deep_tree_is_an_ordered_list_of_holes(chance, fanout):
    """A hundred holes that come, change and go agree with a walk over a sorted list."""
    with patch.object(module, "FANOUT", fanout):
        intervals, model = IntervalSet(), []
        for start in range(0, 100 * 64, 64):
            hole = Interval(start + chance.randrange(8), start + chance.randrange(20, 63))
            intervals.add(hole)
            model.append(hole)
        for step in range(40):
            if step % 20 == 10:  # a stretch of address space becomes full
                gone = model[(first := chance.randrange(len(model))) : first + 30]
            else:
                gone = [model[chance.randrange(len(model))]]
            for hole in gone:
                model.remove(hole)
                start, end = sorted(chance.sample(range(hole.start, hole.end + 1), 2))
                intervals.remove(Interval(start, end))
                kept = [Interval(hole.start, start), Interval(end, hole.end)]
                model += [part for part in kept if part.size]
            model.sort()
            low = chance.randrange(100 * 64)
            within = Interval(low, low + chance.randrange(1, 4000))
            size, alignment = chance.randrange(1, 60), chance.choice([1, 4, 16, 32, 64])
            for bounds in (within, None):
                clipped = (
                    [
                        Interval(max(hole.start, bounds.start), min(hole.end, bounds.end))
                        for hole in model
                        if hole.overlaps(bounds)
                    ]
                    if bounds
                    else model
                )
                fits = [
                    place
                    for part in clipped
                    for place in range(-part.start % alignment + part.start, part.end, alignment)
                    if place + size <= part.end
                ]
                for highest in (False, True):
                    found = intervals.find(
                        size, alignment=alignment, within=bounds, highest=highest
                    )
                    assert (fits[-highest] if fits else None) == found
                largest = max((part.size for part in clipped), default=0)
                assert largest == intervals.largest(bounds)
                assert clipped == list(intervals.clipped(bounds))
        intervals.check()
        assert model == list(intervals)


@contextmanager
def calls():
    """Count the calls of functions, ours and the interpreter's, as a list of one number."""
    counted = [0]

    def count(_frame, event, _arg):
        counted[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield counted
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("highest", [False, True])
@pytest.mark.parametrize(
    ("size", "alignment", "within"),
    [
        (65, 1, None),  # all just too small
        (64, 128, None),  # all long enough, none aligned
        (64, 64, Interval(0, 1 << 30)),  # all that fit lie beyond the range
        (4096, 1, None),
    ],
)
def test_the_worst_search_costs_as_the_logarithm(monkeypatch, size, alignment, within, highest):
    """Forty times as many holes, none of which serves, cost a few calls more per operation."""
    monkeypatch.setattr(module, "FANOUT", 8)
    costs = {}
    for count in (500, 20_000):
        # Holes of 64 bytes at odd multiples of 64; above the range some that do serve.
        holes = [Interval(start, start + 64) for start in range(64, count * 128, 128)]
        if within:
            holes = [Interval(hole.start + 8, hole.end) for hole in holes]
            holes += [Interval(start, start + 64) for start in range(1 << 30, 1 << 31, 1 << 25)]
        intervals = IntervalSet(holes)
        # What a first search computes is paid for by the additions before it.
        intervals.find(size, alignment=alignment, within=within, highest=highest)
        intervals.largest()
        chance, worst = random.Random(count), 0
        for hole in chance.sample(holes, 30):
            with calls() as counted:
                intervals.remove(hole)
                assert (
                    intervals.find(size, alignment=alignment, within=within, highest=highest)
                    is None
                )
                intervals.largest(within)
                intervals.holding(hole.end)
                intervals.add(hole)
            worst = max(worst, counted[0])
        costs[count] = worst
    assert costs[20_000] < 3 * costs[500]


def test_neighbours_of_every_size_merge():
    """Freed in any order, a space is one interval again and the tree one node."""
    pieces = [Interval(a, b) for a, b in pairwise(range(0, 7 * 5_000, 7))]
    random.Random(7).shuffle(pieces)
    intervals = IntervalSet(pieces)
    assert list(intervals) == [Interval(0, 7 * 4_999)]
    intervals.check()
    for piece in pieces:
        intervals.remove(piece)
    assert (list(intervals), len(intervals), intervals.size) == ([], 0, 0)
    assert intervals.find(1) is intervals.find(1, highest=True) is None
    assert intervals.largest() == 0
    intervals.check()


def test_an_empty_interval_is_refused():
    """An interval without an address is neither added nor removed."""
    intervals = IntervalSet([Interval(0, 10)])
    with pytest.raises(ValueError, match="empty"):
        intervals.add(Interval(20, 20))
    with pytest.raises(ValueError, match="not in the set"):
        intervals.remove(Interval(5, 5))
