# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks about where memory for code lies: what an answer is worth, by intervals of time and of bytes."""

from __future__ import annotations

import random
from itertools import combinations

from samples.course.tasks import TASKS, share_pages
from tests.samples.test_course import failing, grade

# Writable or executable ---------------------------------------------------------------------------


def clashes():
    """Return the pairs of pieces of which one is written while the other is executed."""
    times = {}
    for number, (_, pieces) in enumerate(share_pages.STEPS):
        for piece in pieces:
            times.setdefault(piece, []).append(number)
    ends = {piece: [*each, 1 << 30][:3] for piece, each in times.items()}
    return {
        (one, other)
        for one, other in combinations(sorted(ends), 2)
        for (written, finished, _), (_, live, freed) in (
            (ends[one], ends[other]),
            (ends[other], ends[one]),
        )
        if written < freed and live < finished
    }


def partitions(pieces):
    """Yield every way to part pieces."""
    if not pieces:
        yield []
        return
    for rest in partitions(pieces[1:]):
        yield [pieces[0], *rest]
        for at in range(len(rest)):
            yield [*rest[:at], pieces[0] + rest[at], *rest[at + 1 :]]


def test_share_pages_refuses_what_clashes(arch):
    """A page is refused where the lives of two of its pieces say so; what lies in the others runs."""
    bad, chance = clashes(), random.Random(14)
    ways = list(partitions(share_pages.PIECES))
    good = [way for way in ways if not any(set(pair) <= set(page) for page in way for pair in bad)]
    for way in [*chance.sample(ways, 5), *chance.sample(good, 3)]:
        verdict = grade("share-pages", arch.name, pages=[" ".join(page) for page in way])
        fits = [not any(set(pair) <= set(page) for pair in bad) for page in way]
        assert [check.passed for check in verdict.checks[: len(way)]] == fits
        assert verdict.checks[-2].passed is all(fits)
        assert verdict.checks[-1].passed is (len(way) <= share_pages.MOST)
        assert verdict.score == len(way)
    assert set(TASKS["share-pages"].best.values()) == {min(map(len, good))}


def test_share_pages_says_which_step(arch):
    """The first step at which a page would have to be both, and who is in it."""
    verdict = grade("share-pages", arch.name, pages=["A B", "C D E F G"])
    assert failing(verdict) == {"page 0, A B", "page 1, C D E F G", "calls that fault"}
    assert verdict.checks[0].found == "step 3, write B: A executed and B written"
