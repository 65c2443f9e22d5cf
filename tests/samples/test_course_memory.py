# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks about where memory for code lies: what an answer is worth, by intervals of time and of bytes."""

from __future__ import annotations

import random
import re
from itertools import combinations

from samples.course.tasks import TASKS, share_pages, side_by_side
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
    """Yield every way to part pieces, each named by its letters."""
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


# No holes -----------------------------------------------------------------------------------------


def spans():
    """Return each piece with its pages, and when it comes and goes."""
    found = {}
    for number, (does, module) in enumerate(side_by_side.STEPS):
        if does == "load":
            for kind, size in zip(("text", "init"), side_by_side.SIZES[module], strict=True):
                found[module, kind] = (size, number, 1 << 30)
        else:
            key = module, "text" if does == "unload" else "init"
            found[key] = (*found[key][:2], number)
    return found


def layouts(known, pieces, pages):
    """Yield every way to lay pieces in pages in which none lies over another that is still there."""
    if not pieces:
        yield dict(known)
        return
    (piece, (size, come, _)), *rest = pieces
    for at in range(pages - size + 1):
        mine = set(range(at, at + size))
        if all(not mine & held for held, gone in known.values() if gone > come):
            yield from layouts({**known, piece: (mine, pieces[0][1][2])}, rest, pages)


def longest(free):
    """Return the most pages that lie side by side."""
    return max(
        (len(run) for run in "".join("x "[at not in free] for at in range(64)).split()), default=0
    )


def test_side_by_side_is_the_best_there_is(arch):
    """Of all layouts a few leave the rest in one piece, none with fewer pages; any other is refused."""
    pages = side_by_side.PAGES
    lives = spans()
    good, bad = [], []
    for layout in layouts({}, list(lives.items()), pages):
        stays = set().union(*(held for held, gone in layout.values() if gone == 1 << 30))
        fits = longest(set(range(pages)) - stays) == pages - len(stays)
        (good if fits else bad).append(layout)

    def used(layout):
        return len(set().union(*(held for held, _ in layout.values())))

    assert set(TASKS["side-by-side"].best.values()) == {min(map(used, good))}
    chance = random.Random(15)
    for layout, passed in [
        *((layout, True) for layout in chance.sample(good, 6)),
        *((layout, False) for layout in chance.sample(bad, 6)),
    ]:
        keys = {
            kind: [min(layout[module, kind][0]) for module in side_by_side.SIZES]
            for kind in ("text", "init")
        }
        verdict = grade("side-by-side", arch.name, **keys)
        assert verdict.passed is passed
        assert failing(verdict) <= {"free at last"}
        assert verdict.score == used(layout)


def test_side_by_side_says_what_is_in_the_way(arch):
    """The step, the page, and whose it is; what ends behind the chunk."""
    verdict = grade("side-by-side", arch.name, text=[0, 8, 0, 7], init=[2, 5, 1, 4])
    assert failing(verdict) == {"what is refused"}
    refused = "step 4, text of C at page 0: there is text of A; step 4, init of C at page 1: "
    assert verdict.checks[0].found == f"{refused}there is text of A"
    verdict = grade("side-by-side", arch.name, text=[3, 8, 0, 7], init=[0, 5, 1, 4])
    assert "step 7, text of D at page 7: 3 pages end behind the last, 8" in verdict.checks[0].found


# Nobody's memory ----------------------------------------------------------------------------------

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}
ROW = re.compile(r"(?m)^#   (\w+) +([\d.]+) (.iB), from (0x\w+) to (0x\w+)$")
IMAGE = re.compile(r"image is at\s(?:# )?(0x\w+) to (0x\w+)")


def asked(arch):
    """Return what the file says: bytes and range of each user, and where the image is."""
    text = TASKS["four-users"].file(arch)
    users = {
        name: (float(size) * UNITS[unit], int(start, 16), int(end, 16))
        for name, size, unit, start, end in ROW.findall(text)
    }
    start, end = (int(each, 16) for each in IMAGE.search(text.replace("\n#", "\n")).groups())
    return users, (start, end)


def shared(users, names, image, chunk=2 << 20):
    """Return the first place of a pool that some can share; None: they cannot."""
    if sum(users[name][0] for name in names) > chunk:
        return None
    low, high = max(users[name][1] for name in names), min(users[name][2] for name in names)
    for start in (low, image[1]):
        at = -(-max(start, low) // chunk) * chunk
        if at + chunk <= high and not (at < image[1] and image[0] < at + chunk):
            return at
    return None


def test_four_users_share_what_the_file_lets_them(arch):
    """No fewer pools by the ranges and sizes that stand in the file; who may not share is named."""
    users, image = asked(arch)
    initials = {name[0]: name for name in users}
    assert len(initials) == 4
    ways = [
        [[initials[one] for one in pool] for pool in way] for way in partitions("".join(initials))
    ]
    able = [way for way in ways if all(shared(users, pool, image) is not None for pool in way)]
    assert TASKS["four-users"].best[arch.name] == min(map(len, able))
    large = []
    for way in ways:
        if way in able:
            continue
        at = [shared(users, pool, image) or -(-users[pool[0]][1] >> 21) << 21 for pool in way]
        if any(sum(users[name][0] for name in pool) > 2 << 20 for pool in way):
            large.append(way)
            continue
        keys = {"pools": [" ".join(pool) for pool in way], "at": [hex(each) for each in at]}
        verdict = grade("four-users", arch.name, **keys)
        for pool, start, check in zip(way, at, verdict.checks, strict=True):
            outside = [n for n in pool if not users[n][1] <= start <= users[n][2] - (2 << 20)]
            if outside:
                assert check.found == f"{start:#x} is not in that of {', '.join(outside)}"
            elif image[0] <= start < image[1]:
                assert check.found == "in the kernel image"
            elif at.count(start) == 1:
                assert check.passed
        assert not verdict.passed
    for way in large[:1]:  # all lie where they may, and one pool is full
        at = [users["bpf"][1] + (number << 21) for number in range(len(way))]
        keys = {"pools": [" ".join(pool) for pool in way], "at": [hex(each) for each in at]}
        assert failing(grade("four-users", arch.name, **keys)) == {"requests refused"}
    assert bool(large) is (arch.text_poke is None)
