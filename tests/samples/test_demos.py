# SPDX-License-Identifier: GPL-2.0-or-later
"""The demos: short, and every number in them computed elsewhere too."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from archs import ALL
from loader.elf import parse
from loader.layout import plan
from samples import DEMOS, reach, story_of, tour
from samples.modules import path


@pytest.mark.parametrize("name", DEMOS)
def test_demo_is_short_and_tells_a_story(name):
    """A demo has at most 150 lines, a title and something to show."""
    source = Path(reach.__file__).parent / f"{name}.py"
    assert len(source.read_text("utf-8").splitlines()) <= 150
    story = story_of(name)
    assert story.name == name
    assert story.title
    assert story.parts
    assert set(story.facts) == {arch.name for arch in ALL}


def test_unknown_demo():
    """An unknown name is refused."""
    with pytest.raises(KeyError):
        story_of("nonesuch")


def test_tour_results():
    """The tour's result is Python's, on every architecture."""
    for facts in tour.main().facts.values():
        assert facts["result"] == facts["expected"] == math.lcm(*tour.ARGUMENTS)


def test_reach_tells_what_the_record_says(arch):
    """One step past the limit a call is refused, or goes through an entry of the module's PLT."""
    facts = reach.visit(arch)
    call = next(b for b in arch.branches if b.what == "call")
    # The relocation counts from its field; the instruction may start earlier.
    assert abs(int(facts["fits"], 16) + call.reach.align - call.reach.hi) < 8
    layout = plan(parse(path(arch.name, reach.MODULE).read_bytes()))
    assert ("PLT" in facts["beyond"]) is bool(layout.plt)
