# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that can happen while text is patched, as a graph: it is what the step machine does."""

from __future__ import annotations

import random

import pytest

from allocator.errors import ExecmemError
from execmem.interleaved import chosen, document, graph, rested, state_json
from machine.racing.finding import search
from machine.racing.scenarios import Ground

WALKS, STEPS = 12, 60


@pytest.fixture(scope="module")
def told(arch):
    """Return an architecture's document, and the scenarios that it is made of, both by number."""
    found = document(arch)
    if found["why"]:
        return found, []
    left = [each["title"] for each in found["left_out"]]
    return found, [one for one in chosen(arch) if one.title not in left]


def test_walks_are_what_the_step_machine_does(arch, told):
    """Wherever chance leads, steps, bytes, views and what is wrong are those of the machine."""
    found, scenarios = told
    chance = random.Random(f"walks {arch.name}")
    for shown, scenario in zip(found["scenarios"], scenarios, strict=True):
        race = scenario.race
        for _ in range(WALKS):
            at, state = 0, race.start()
            for _ in range(STEPS):
                assert shown["states"][at] == state_json(race, state)
                steps = [
                    (actor, text, after)
                    for actor in range(race.actors)
                    for text, after in race.moves(rested(race, state), actor)
                ]
                assert [step[:2] for step in shown["steps"][at]] == [list(s[:2]) for s in steps]
                if not steps:
                    break
                pick = chance.randrange(len(steps))
                at, state = shown["steps"][at][pick][2], steps[pick][2]


def test_what_goes_wrong_is_what_a_search_finds(arch, told):
    """Our own ways never go wrong; each mistake does, in a way that a search expects of it."""
    found, scenarios = told
    for shown, scenario in zip(found["scenarios"], scenarios, strict=True):
        kinds = {wrong["kind"] for state in shown["states"] for wrong in state["wrong"]}
        assert bool(kinds) == bool(scenario.name), scenario.title
        assert kinds & set(scenario.expected) or not scenario.name
        bad = search(scenario).bad
        assert (bad is None and not kinds) or bad.kind in kinds


def test_at_the_end_the_new_code_stands(arch, told):
    """Where all is done and nothing went wrong, memory holds what was to be written, and no alias."""
    found, _ = told
    for shown in found["scenarios"]:
        ends = [
            state
            for state in shown["states"]
            if not state["wrong"]
            and all(at == len(p) for at, p in zip(state["at"], shown["programs"], strict=True))
        ]
        assert ends
        for state in ends:
            if all(state["done"]):
                for place in shown["places"]:
                    there = "".join(state["memory"][cell] for cell in place["cells"])
                    assert there in (place["new"], *place["others"])
            assert all(alias["frame"] is None for alias in state["aliases"])


def test_an_architecture_without_text_poke_says_so(arch):
    """There is nothing to step through then, and the document says why."""
    found = document(arch)
    if arch.text_poke is not None:
        assert not found["why"]
        assert found["mechanism"]["name"] == arch.text_poke.name
        return
    assert "no text_poke" in found["why"]
    assert not found["scenarios"]
    with pytest.raises(ExecmemError):
        Ground(arch)


def test_a_graph_that_is_too_large_is_left_out(monkeypatch, arch):
    """What has more states than are told is named, and not told in part."""
    if arch.text_poke is None:
        pytest.skip(f"{arch.name} has no text_poke")
    monkeypatch.setattr("execmem.interleaved.MOST", 10)
    found = document(arch)
    assert found["left_out"]
    assert all(each["states"] == 10 for each in found["left_out"])
    assert all(len(one["states"]) <= 10 for one in found["scenarios"])
    assert graph(next(chosen(arch)).race) is None or found["scenarios"]
