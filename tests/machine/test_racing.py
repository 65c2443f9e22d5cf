# SPDX-License-Identifier: GPL-2.0-or-later
"""Interleavings: what the search leaves out must not matter, and real CPUs do what the model says.

The reduction is held to all interleavings, one by one, of small programs drawn at random; the
model to CPUs that execute the same patch.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archs import ALL
from archs import arch as arch_by_name
from machine.patching import Phase, Way
from machine.racing.finding import search
from machine.racing.model import Race
from machine.racing.scenarios import Ground, ours, plants, way_of
from machine.racing.scenarios import given as given_bytes
from machine.racing.search import explore, shortest
from machine.racing.state import (
    KINDS,
    Arm,
    Done,
    FlushAlias,
    FlushText,
    Go,
    Lock,
    LookInside,
    Maintain,
    MapAlias,
    Place,
    Protect,
    Put,
    Stop,
    Sync,
    Unlock,
    bsearch,
)
from tests.machine.snippets import code
from tests.machine.test_patching import CALLED, JUMPED, OLD
from tests.machine.test_patching import Place as Site
from tests.support.interleaving import exchange, finals

ABLE = [arch for arch in ALL if arch.live_patch is not None]
MAINTENANCE = sorted({name for arch in ABLE for name in arch.live_patch.maintenance})
FRAMES = 0x1000, 0x2000
OLD_BYTES, NEW_BYTES = b"\x10\x11", b"\x20\x21"


@pytest.fixture(scope="module")
def grounds():
    """Return a function that gives each architecture's ground, made once."""
    made = {}

    def ground(arch):
        if arch.live_patch is None:
            pytest.skip(f"{arch.name} does not patch live")
        return made.setdefault(arch.name, Ground(arch))

    return ground


# The search ----------------------------------------------------------------------------------


def operations(cells, executors):
    """Return a strategy for what a patching CPU does."""
    cell, executor = st.integers(0, cells - 1), st.integers(0, executors - 1)
    some = st.lists(cell, min_size=1, max_size=cells, unique=True).map(tuple)
    page = st.integers(0, 1)
    return st.one_of(
        st.builds(Put, st.none() | page, cell, st.sampled_from([b"\x20", b"\x21", b"\xcc"])),
        st.builds(Put, st.none(), cell, st.sampled_from([b"\x20", b"\x21", b"\xcc"])),
        st.builds(Sync, executor, some),
        st.builds(Maintain, st.sampled_from(MAINTENANCE), some),
        st.builds(Arm, st.sampled_from([(), (0x1000,), (0x2000, 0x1000), (0x1000, 0x2000)])),
        st.builds(MapAlias, page, st.sampled_from([None, *FRAMES])),
        st.builds(FlushAlias, st.sampled_from([(0,), (1,), (0, 1)]), st.booleans()),
        st.builds(Protect, st.sampled_from(["RX", "RW", "RWX"])),
        st.builds(FlushText, st.booleans()),
        st.builds(Stop, executor),
        st.builds(Done, st.sampled_from([(0,), (0, 1), (1,)])),
        st.sampled_from([Go(), Lock(), Unlock(), LookInside()]),
    )


@st.composite
def races(draw):
    """Return a small race."""
    patchers, longest, executors = draw(st.sampled_from([(1, 5, 2), (2, 3, 1), (1, 4, 1)]))
    sizes = draw(st.sampled_from([(2,), (1, 1)]))
    places = tuple(
        Place(
            at,
            (2 * n, 2 * n + 1),
            OLD_BYTES,
            NEW_BYTES,
            sizes,
            draw(st.sampled_from([(2,), (1, 1)])),
        )
        for n, at in enumerate((0x1000, 0x2000))
    )
    program = st.lists(operations(4, executors), max_size=longest).map(tuple)
    return Race(
        places=places,
        programs=tuple(draw(program) for _ in range(patchers)),
        live=draw(st.sampled_from([arch.live_patch for arch in ABLE])),
        granule=1,
        frames=(FRAMES[0], FRAMES[0], FRAMES[1], FRAMES[1]),
        alias_pages=2,
        shared=draw(st.booleans()),
        executors=executors,
        visits=1,
        rights=draw(st.sampled_from(["RX", "RWX", "RW"])),
        lookup=draw(st.sampled_from([bsearch, lambda table, at: at in table])),
        masked=draw(st.booleans()),
    )


@settings(max_examples=100, deadline=None)
@given(race=races())
def test_what_is_left_out_does_not_matter(race):
    """The reduced search ends in the states in which all interleavings end, no more and no fewer."""
    expected, tried = finals(race)
    reduced, plain = explore(race), explore(race, reduce=False)
    assert reduced.finals == plain.finals == expected
    assert reduced.complete
    assert reduced.states <= plain.states
    assert reduced.steps <= plain.steps
    assert len(expected) <= tried


@settings(max_examples=100, deadline=None)
@given(race=races(), data=st.data())
def test_steps_without_a_conflict_may_change_places(race, data):
    """Where two steps are said to be independent, either order leads to the same states."""
    exchange(race, data)


@settings(max_examples=60, deadline=None)
@given(race=races())
def test_a_schedule_is_one_and_has_the_fewest_switches(race):
    """Steps of a schedule can be taken one after the other, and none with fewer switches ends there."""
    found = shortest(race, race.verdict)
    assert (found is None) == (not any(map(race.verdict, explore(race).finals)))
    if found is None:
        return
    schedule, end = found
    state = race.start()
    for step in schedule:
        following = [after for text, after in race.moves(state, step.actor) if text == step.text]
        assert following
        state = following[0] if step is not schedule[-1] else end
        assert state in following
    assert race.verdict(end)
    actors = [step.actor for step in schedule]
    fewest = min(switches for bad, switches in _ways_to_go_wrong(race) if bad)
    assert sum(a != b for a, b in pairwise(actors)) == fewest


def _ways_to_go_wrong(race):
    """Yield for every interleaving, and every beginning of it, what is wrong, and the switches."""
    waiting = [(race.start(), None, 0)]
    seen = set()
    while waiting:
        state, last, switches = waiting.pop()
        if (state, last, switches) in seen:
            continue
        seen.add((state, last, switches))
        yield race.verdict(state), switches
        for actor in range(race.actors):
            more = last is not None and actor != last
            waiting += [(after, actor, switches + more) for _, after in race.moves(state, actor)]


def test_a_limit_is_said(grounds):
    """A search that gives up does not claim that it has seen everything."""
    scenario = next(ours(grounds(arch_by_name("x86_64"))))
    whole, cut = search(scenario), search(scenario, limit=10)
    assert whole.complete
    assert whole.as_expected
    assert not cut.complete
    assert not cut.as_expected
    assert cut.states == 10


@given(table=st.lists(st.integers(0, 40), unique=True), at=st.integers(0, 40))
def test_bsearch_finds_what_is_in_a_sorted_table(table, at):
    """The kernel's bsearch() finds exactly what is there, if the table is sorted."""
    assert bsearch(sorted(table), at) == (at in table)


# Protocols ---------------------------------------------------------------------------------------


def test_nothing_goes_wrong_in_ours(arch, grounds):
    """Every interleaving of two CPUs, of every patch that the kernel makes, does the old or the new."""
    ways = set()
    for scenario in ours(grounds(arch)):
        finding = search(scenario)
        assert finding.as_expected, (scenario.title, finding.bad, finding.schedule)
        done = {
            what
            for final in explore(scenario.race).finals
            for executor in final.executors
            for _, what in executor.log
        }
        assert {"old"} <= done <= {"old", "new", "emulated"}, scenario.title
        assert "new" in done
        ways.add(way_of(scenario.race.programs[0]))
        assert ("emulated" in done) == (arch.live_patch.breakpoint is not None)
    assert ways


@pytest.mark.parametrize("executors", [1, 2])
def test_planted_mistakes_are_found(arch, grounds, executors):
    """Each mistake shows what it is expected to, by a schedule that can be followed."""
    names = []
    for scenario in plants(grounds(arch), executors=executors):
        finding = search(scenario)
        assert finding.as_expected, (scenario.name, finding.bad)
        assert finding.bad.kind in KINDS
        state = scenario.race.start()
        for step in finding.schedule[:-1]:
            state = dict(scenario.race.moves(state, step.actor))[step.text]
        names.append(scenario.name)
    assert any(name.startswith("no-sync") for name in names)
    done = arch.live_patch.maintenance
    numbered = [
        f"-{done[:at].count(name) + 1}" * (done.count(name) > 1) for at, name in enumerate(done)
    ]
    assert {f"no-{name.split()[0]}{n}" for name, n in zip(done, numbered, strict=True)} <= set(
        names
    )
    assert {"no-flush", "no-mutex"} <= set(names)
    assert ("one-site" in names) == (arch.text_poke.granule < 4)  # half an instruction can be there
    assert ("unsorted" in names) == (arch.live_patch.breakpoint is not None)


def test_the_mistake_is_what_makes_the_difference(grounds):
    """A table that is sorted is searched as the kernel does, and nothing goes wrong."""
    for scenario in plants(grounds(arch_by_name("x86_64"))):
        if scenario.name != "unsorted":
            continue
        race = scenario.race
        program = [
            Arm(tuple(sorted(op.sites))) if isinstance(op, Arm) else op for op in race.programs[0]
        ]
        mended = Race(
            places=race.places,
            programs=(tuple(program),),
            live=race.live,
            granule=race.granule,
            frames=race.frames,
            alias_pages=race.alias_pages,
            shared=race.shared,
            lookup=bsearch,
        )
        assert not any(map(mended.verdict, explore(mended).finals))


@pytest.mark.parametrize("name", ["jcc of 6", "jump of 2 filled up"])
def test_given_instructions(grounds, name):
    """Instructions of one's own: Jcc of six bytes, and a short jump that INT3 fills up."""
    old, new = {
        "jcc of 6": ("0f8410000000", "0f8511223344"),
        "jump of 2 filled up": ("0f1f440000", "eb10cccccc"),
    }[name]
    ground = grounds(arch_by_name("x86_64"))
    for offset in (0, ground.page - 1, ground.page - 3):
        scenario = given_bytes(ground, bytes.fromhex(old), bytes.fromhex(new), offset=offset)
        assert search(scenario).as_expected
    forced = given_bytes(ground, bytes.fromhex(old), bytes.fromhex(new), force=True)
    assert search(forced).bad.kind == "torn"


# Real CPUs -----------------------------------------------------------------------------------------


def test_real_cpus_do_what_the_model_says(arch, grounds):
    """At each phase of a patch CPU 1 of a machine does what it does there in the model.

    The model's CPU is one that has just been synchronised, as one is that has not run before.
    """
    ground = grounds(arch)
    place = Site(arch)
    old, new = place.nop, code(arch, "call")
    found = {}

    def meet(phase):
        if phase is not Phase.STOPPED:
            found[phase] = place.visit()

    assert place.visit(0) == OLD
    place.machine.patch(place.address, new, expected=old, on_phase=meet)
    assert set(found.values()) <= {OLD, CALLED, JUMPED}

    race = given_bytes(ground, old, new, visits=1).race
    program = race.programs[0]
    syncs = [at + 1 for at, op in enumerate(program) if isinstance(op, Sync)]
    assert len(syncs) == len(found)
    state, met = race.start(), []
    for at in range(len(program)):
        (following,) = race.moves(state, 0)
        state = following[1]
        if at + 1 in syncs:
            met.append(_arrives(race, state))
    if any(isinstance(op, Stop) for op in program):
        assert met == [None]
    else:
        assert met == ["old" if got == OLD else "new" for got in found.values()]
    assert _arrives(race, state) == "new"
    assert found[Phase.DONE] == CALLED


def _arrives(race, state):
    """Return what a CPU does that arrives in a state, and sees what stands there now; None: it waits."""
    arrived = race.moves(state, 1)
    while arrived:
        assert len(arrived) == 1
        state = arrived[0][1]
        arrived = race.moves(state, 1)
    (executor,) = state.executors
    if executor.stopped:
        return None
    ((_, what),) = executor.log
    return {"emulated": "new"}.get(what, what)


def test_who_stands_inside_is_looked_at_while_nobody_moves(arch):
    """A patch that stops the machine looks where CPUs stand only then."""
    place = Site(arch)
    if arch.live_patch.breakpoint is not None:
        pytest.skip(f"{arch.name} does not stop the machine for a patch")
    machine, order = place.machine, []

    class Threads(dict):
        def items(self):
            order.append("looks")
            return super().items()

    machine.caller.threads = Threads()
    nop = machine.read(place.address, len(place.nop))
    way = Way.STOP_MACHINE
    machine.patch(place.address, place.call, expected=nop, way=way, on_phase=order.append)
    assert order == [Phase.STOPPED, "looks", Phase.DONE]
