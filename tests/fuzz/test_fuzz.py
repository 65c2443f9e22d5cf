# SPDX-License-Identifier: GPL-2.0-or-later
"""A little of every fuzz target in every test run; `make fuzz` does more."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator import ExecmemError
from tests.fuzz import code
from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS, objects

# Executions that fit into a test run; machines are slow to make.
FEW = {"guest": 12, "kernel": 12, "load": 40, "trace": 40, "link": 80, "elf": 80}


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_inputs_are_refused_or_accepted(target):
    """Only errors of the family come out, and some inputs of both kinds are among them."""
    tally = fuzz(target, seed=3, seconds=60, most=FEW.get(target, 200))
    assert not tally.escapes, next(iter(tally.escapes.values()))[1]
    assert tally.executions >= FEW.get(target, 200)
    assert tally.accepted > 0


@settings(max_examples=60, deadline=None)
@given(random=st.randoms(use_true_random=False), number=st.integers(0, len(objects()) - 1))
@pytest.mark.parametrize("target", ["elf", "link"])
def test_damage_that_shrinks(target, random, number):
    """The same mutations driven by hypothesis, which shrinks whatever gets out."""
    data = objects()[number]
    for _ in range(random.randrange(1, 5)):
        data = TARGETS[target].mutate(data, random)
    with suppress(ExecmemError):
        assert TARGETS[target].run(data, random) in (True, False)


def test_random_code_ends_no_process(arch):
    """A few calls of each generator's code: every death is told, no limit is exceeded."""
    found = code.campaign(arch, 120, seed=3)
    assert found["calls"] == 120
    assert not found["escapes"]
    assert not found["exceeded"]
    assert "died untold" not in found["came"]
    assert found["peak"] <= found["bound"]
