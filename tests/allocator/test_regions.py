# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that stay in a region: what they reach of what a workload lays out."""

from __future__ import annotations

import pytest

from allocator.types import MIB, Interval
from allocator.workloads import BranchReach

REGION = 256 * MIB
JAL = BranchReach(direct=Interval(0, REGION), region=REGION)
BASE = 0xFFFF_FFFF_C000_0000


def _at(start: int, size: int) -> Interval:
    return Interval(BASE + start, BASE + start + size)


@pytest.mark.parametrize(
    ("source", "target", "reaches", "touches"),
    [
        (_at(0, MIB), _at(255 * MIB, MIB), True, True),
        (_at(255 * MIB, MIB), _at(0, MIB), True, True),
        (_at(255 * MIB, MIB), _at(256 * MIB, MIB), False, False),  # near, and behind the border
        (_at(0, MIB), _at(255 * MIB, 2 * MIB), False, True),
        (_at(255 * MIB, 2 * MIB), _at(0, MIB), False, True),  # calls of two regions
        (_at(255 * MIB, 2 * MIB), _at(600 * MIB, MIB), False, False),
        (_at(0, MIB), _at(-MIB, MIB), False, False),
    ],
)
def test_what_calls_of_a_region_reach(
    source: Interval, target: Interval, reaches: bool, touches: bool
) -> None:
    """All calls reach all of a target, or some do some of it, within the region only."""
    assert JAL.reaches(source, target) is reaches
    assert JAL.touches(source, target) is touches
