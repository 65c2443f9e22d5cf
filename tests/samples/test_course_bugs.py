# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks of the lessons about bugs: what an answer is worth, found a second time by trying everything."""

from __future__ import annotations

import random
import re
from itertools import pairwise, permutations, product

import pytest

from archs import arch as arch_by_name
from samples.course.tasks import TASKS, fewest_batches, never_both, when_to_free
from tests.samples.test_course import failing, grade, solved

# Freed too early --------------------------------------------------------------------------------


def executors(steps):
    """Return whether somebody can execute what is freed, by walking through all that a CPU can do."""
    memory, states, freed = "old", {("old", False)}, False

    def closed(found):
        """Let a CPU fetch anew, go into the trampoline by the old jump, or leave it, at any time."""
        found = set(found)
        while True:
            more = {(memory, inside) for _, inside in found} | {(had, False) for had, _ in found}
            more |= {(had, True) for had, _ in found if had == "old"}
            if more <= found:
                return found
            found |= more

    states = closed(states)
    for step in steps:
        if step == "free":
            freed = True
            break
        if step == "store":
            memory = "new"
        elif step == "sync":
            states = {(memory, inside) for _, inside in states}
        elif step == "leave":
            states = {state for state in states if not state[1]}
        states = closed(states)
    return freed and any(inside for _, inside in states), memory == "new" and freed


def test_when_to_free_lets_nobody_in():
    """For every order of the steps, and many with some left out: what a walk through all states finds."""
    chance, words, safe = random.Random(6), list(when_to_free.STEPS), 0
    orders = list(permutations(words))
    orders += [tuple(chance.choices(words, k=chance.randrange(1, 8))) for _ in range(600)]
    for steps in orders:
        if steps.count("free") > 1:
            continue
        cpus, stored, freed = when_to_free.followed(steps)
        for cpu, each in cpus.items():
            mine = [step.removesuffix(f" {cpu}") for step in steps]
            bad, done = executors(mine)
            assert done is (stored and freed)
            if freed:
                assert bool(each.why()) is bad, (steps, cpu)
        safe += freed and stored and not any(each.why() for each in cpus.values())
    assert safe
    assert TASKS["when-to-free"].best["arm64"] == len(words)  # none of them can be left out


@pytest.mark.parametrize("arch", TASKS["when-to-free"].best)
def test_when_to_free_is_played(arch):
    """Who was not synchronised traps in what was freed; who stands inside is only known to the walk."""
    right = solved("when-to-free", "x86_64", "steps")
    got = when_to_free.played(arch_by_name(arch), [step for step in right if step != "sync 2"])
    assert got == ["36", "trap"]
    verdict = grade("when-to-free", arch, steps=[step for step in right if step != "leave 1"])
    assert failing(verdict) == {"CPU 1"}
    assert "still stand" in verdict.checks[2].found
    assert failing(grade("when-to-free", arch, steps=right[:-1])) >= {"the trampoline is freed"}


# A table that is not sorted ---------------------------------------------------------------------


def test_fewest_batches_are_rising_runs():
    """A batch passes if its offsets rise, and no fewer batches do; what is not found is named."""
    chance = random.Random(7)
    asked = [number * fewest_batches.APART for number in fewest_batches.ASKED]
    rising = 1 + sum(one > other for one, other in pairwise(asked))
    assert TASKS["fewest-batches"].best == {"x86_64": rising}
    for _ in range(5):
        after = sorted(chance.sample(range(1, len(asked)), 3))
        verdict = grade("fewest-batches", "x86_64", after=after)
        runs = [asked[a:b] for a, b in pairwise([0, *after, len(asked)])]
        assert [check.passed for check in verdict.checks] == [run == sorted(run) for run in runs]
        assert verdict.score == 4
        for run, check in zip(runs, verdict.checks, strict=True):
            if not check.passed:
                named = re.search(
                    r"the first (0x[0-9a-f]+): the search looks at (.*), and", check.found
                )
                site = int(named[1], 16)
                looks = [int(each, 16) for each in named[2].split(", ")]
                assert site in run
                assert site not in looks
                assert looks[0] == run[len(run) // 2]


# Writable and executable ------------------------------------------------------------------------


def both(steps):
    """Return whether a CPU can write to text while another executes it, and what is wrong at `live`."""
    now, mine, other, opened = "RW-", {"RW-"}, {"RW-"}, False
    memory, fetched, wrong = "old", {"old"}, set()
    for step in ("", *steps):
        if step in ("ro", "x", "rox"):
            wide = step == "x" and "W" in now
            now = "R--" if step == "ro" else "RWX" if wide else "R-X"
            mine, other = mine | {now}, other | {now}
        elif step.startswith("flush"):
            mine, other = {now}, {now} if step == "flush" else other
        elif step == "write":
            memory, fetched = "new", fetched | {"new"}
        elif step == "sync":
            fetched = {memory}
        elif step == "live":
            wrong = {now, *other} - {"R-X"} | fetched - {"new"}
        opened = opened or (
            any("X" in one for one in other) and any("W" in one for one in mine | other)
        )
    return opened, wrong


def may_write(steps):
    """Return whether no write comes behind what took W."""
    taken = [at for at, step in enumerate(steps) if step in ("ro", "rox")]
    return "write" not in steps[min(taken, default=len(steps)) :]


@pytest.mark.parametrize("arch", TASKS["never-both"].best)
def test_never_both_finds_every_window(arch):
    """For random orders: what sets of rights, kept since the last flush, say."""
    chance, seen = random.Random(8), set()
    right = solved("never-both", "x86_64", "steps")[:-1]
    words = [word for word in never_both.STEPS if word != "live"]
    for number in range(80):
        steps = chance.choices(words, k=chance.randrange(1, 8))
        if number % 2:  # an order that is nearly right
            steps = list(right)
            steps[chance.randrange(2, len(steps))] = chance.choice(words)
        opened, wrong = both([*steps, "live"])
        verdict = grade("never-both", arch, steps=[*steps, "live"])
        assert verdict.checks[0].passed is may_write(steps), steps
        assert verdict.checks[1].passed is not opened, steps
        assert verdict.checks[2].passed is (not wrong), (steps, wrong)
        seen.add((opened, bool(wrong)))
    assert len(seen) == 4
    late = ["ro", "flush", "x", "flush", "write", "sync", "live"]
    assert failing(grade("never-both", arch, steps=late)) == {"the code is written"}
    assert failing(grade("never-both", arch, steps=[*right, "live", "ro"])) == {"steps behind live"}


def test_never_both_needs_two_flushes():
    """No six steps with one flush do it, whatever they are."""
    words = [step for step in never_both.STEPS if step not in ("live", "flush-own")]
    passed = set()
    for steps in product(words, repeat=6):
        opened, wrong = both([*steps, "live"])
        if not opened and not wrong:
            passed.add(steps.count("flush"))
    assert min(passed) == 2
    assert set(TASKS["never-both"].best.values()) == {2}


# Two addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", TASKS["two-addresses"].best)
def test_two_addresses_are_those_of_the_text(arch):
    """Copies are where the file says; any other place misses, and is counted."""
    text = TASKS["two-addresses"].file(arch_by_name(arch))
    areas = re.findall(r"#   ([a-z ]+?) +runs at (0x\w+)(?:, built in a copy at (0x\w+))?", text)
    writes = []
    for at in (int(each, 16) for each in re.findall(r"(?m)^#   (0x\w+)$", text)):
        name, start, copy = next(a for a in areas if 0 <= at - int(a[1], 16) < 8192)
        moved = at - int(start, 16) + int(copy, 16) if copy else at
        writes.append("poke" if name == "live text" else hex(moved))
    assert writes == solved("two-addresses", arch, "writes")
    chance = random.Random(9)
    for _ in range(12):
        wrong = list(writes)
        spoiled = chance.sample(range(len(writes)), chance.randrange(1, 5))
        for number in spoiled:
            off = int(wrong[number], 16) if wrong[number] != "poke" else 1 << 40
            wrong[number] = chance.choice([hex(off + 0x10000000), hex(off ^ 8), "poke"])
            if wrong[number] == writes[number]:
                wrong[number] = "0x0"
        verdict = grade("two-addresses", arch, writes=wrong)
        assert verdict.score == len(spoiled)
        assert [not check.passed for check in verdict.checks] == [
            number in spoiled for number in range(len(writes))
        ]
