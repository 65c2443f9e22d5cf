# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads, unloads, pokes and seals at once: the reduction against all interleavings, and mistakes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archs import ALL
from archs import arch as arch_by_name
from machine.racing.finding import search
from machine.racing.lifetimes import lifetimes, mistakes
from machine.racing.pages import (
    NOBODY,
    Ask,
    Await,
    Drop,
    Enter,
    Hold,
    Lives,
    Own,
    Release,
    Seal,
    Store,
    Unless,
)
from machine.racing.search import explore, shortest
from machine.racing.state import KINDS
from tests.support.interleaving import exchange, finals

ABLE = [arch for arch in ALL if arch.live_patch is not None]
PAGES, FRAMES, OWNERS = 3, 2, ("A", "B", NOBODY)

page, frame = st.integers(0, PAGES - 1), st.integers(0, FRAMES - 1)
some = st.lists(page, min_size=1, unique=True).map(tuple)
owner, cpu = st.sampled_from(OWNERS), st.integers(0, 2)
steps = st.one_of(
    st.builds(Enter, page, st.none() | frame, st.sampled_from(["R--", "RW-", "R-X"])),
    st.builds(Drop, some, cpu),
    st.builds(Ask, some),
    st.builds(Await, some),
    st.builds(Store, page, owner),
    st.builds(Own, frame, owner),
    st.builds(Unless, frame, owner, st.integers(0, 2)),
    st.builds(Hold, st.integers(0, 1)),
    st.builds(Release, st.integers(0, 1)),
    st.builds(Seal, page),
)
program = st.lists(steps, max_size=4).map(tuple)
lives = st.builds(
    Lives,
    programs=st.tuples(program, program),
    pages=st.just((0x1000, 0x2000, 0x3000)),
    entries=st.tuples(*[st.none() | st.tuples(frame, st.sampled_from(["RW-", "R-X"]))] * PAGES),
    frames=st.just((0x10000, 0x20000)),
    owners=st.tuples(owner, owner),
    locks=st.just(("one", "other")),
    private=st.sampled_from([frozenset(), frozenset({2})]),
    direct=st.sampled_from([frozenset(), frozenset({0})]),
)


@settings(max_examples=150, deadline=None)
@given(race=lives)
def test_what_is_left_out_does_not_matter(race):
    """The reduced search ends in the states in which all interleavings end, no more and no fewer."""
    expected, _ = finals(race)
    reduced, plain = explore(race), explore(race, reduce=False)
    assert reduced.finals == plain.finals == expected
    assert reduced.states <= plain.states


@settings(max_examples=100, deadline=None)
@given(race=lives, data=st.data())
def test_steps_without_a_conflict_may_change_places(race, data):
    """Where two steps are said to be independent, either order leads to the same states."""
    exchange(race, data)


def able(arch):
    """Skip what has no way to write finished text."""
    if arch.live_patch is None:
        pytest.skip(f"{arch.name} writes no finished text")


@pytest.mark.parametrize("design", ["default", "vmalloc", "per_type", "rox_cache_613"])
def test_nothing_goes_wrong_under_one_lock(arch, design):
    """Calls of two CPUs in every order, and their steps, reach nothing that is not theirs."""
    able(arch)
    poke, kept = arch.text_poke, []
    # Linux on riscv64 flushes the alias of a poke on the CPU that poked: others may keep it.
    keeps = design != "default" and not poke.private and not poke.broadcast
    for one in lifetimes(arch, design):
        found = search(one)
        if keeps and found.bad is not None:
            assert found.bad.kind == "freed"
            assert f"writes to {poke.window:#x}" in found.bad.text
            kept.append(one.title)
        else:
            assert found.as_expected, (one.title, found.bad, found.schedule)
    assert keeps == ("a poke, and the last text unloaded" in kept)


def test_planted_mistakes_are_found(arch):
    """Each mistake shows what it is expected to, by a schedule that can be followed."""
    able(arch)
    names = []
    for one in mistakes(arch, "default"):
        found = search(one)
        assert found.as_expected, (one.name, found.bad)
        assert found.bad.kind in KINDS
        state = one.race.start()
        for step in found.schedule[:-1]:
            state = dict(one.race.moves(state, step.actor))[step.text]
        names.append(one.name)
    assert {"no-lock", "unchecked", "other-lock", "free-early", "seal-unflushed"} <= set(names)
    poke = arch.text_poke
    assert ("alias-kept" in names) == (not poke.private and not poke.broadcast)
    assert ("free-no-dsb" in names) == (not arch.loads.tlb.interrupts)
    assert ("free-local" in names) == arch.loads.tlb.interrupts


def test_upstreams_remap_has_a_window():
    """set_memory_rox() lets text be executed before TLBs forget that it could be written to."""
    found = [search(one).bad for one in lifetimes(arch_by_name("x86_64"), "rox_cache")]
    assert {bad.kind for bad in found if bad is not None} == {"window"}


def race(*programs, **more):
    """Return a race over one page of text and its place in the direct map, both frame 0."""
    return Lives(
        **{
            "programs": programs,
            "pages": (0x1000, 0x2000),
            "entries": ((0, "R-X"), (0, "R--")),
            "frames": (0x10000,),
            "owners": ("A",),
            "locks": ("one", "other"),
            "direct": frozenset({1}),
            **more,
        }
    )


def kinds(found):
    """Return what goes wrong, by all interleavings."""
    return {bad.kind for state in finals(found)[0] for bad in found.verdict(state)}


def test_a_tlb_keeps_what_was_not_dropped():
    """By hand: unmapped, flushed on all CPUs and given back; or with one CPU left out."""
    gone = (Enter(0, None), Drop((0,), 0), Drop((0,), 1))
    assert kinds(race(gone)) == set()
    assert kinds(race((*gone, Own(0, NOBODY)))) == set()
    assert kinds(race((*gone[:2], Own(0, NOBODY)))) == {"freed"}
    asked = (Enter(0, None), Ask((0,)), Await((0,)), Own(0, NOBODY))
    assert kinds(race(asked)) == set()
    assert kinds(race((*asked[:2], asked[3]))) == {"freed"}
    early = (Enter(0, None), Await((0,)), Ask((0,)), Own(0, NOBODY))
    assert kinds(race(early)) == {"freed"}


def test_the_direct_map_is_another_way_to_text():
    """Text that is executed while the direct map may be written to is a window, until it is flushed."""
    assert kinds(race((), entries=((0, "R-X"), (0, "RW-")))) == {"window"}
    late = (Enter(1, 0, "R--"), Enter(0, 0, "R-X"))
    dropped = (late[0], Drop((1,), 0), Drop((1,), 1), late[1])
    start = {"entries": (None, (0, "RW-"))}
    assert kinds(race(late, **start)) == {"window"}
    assert kinds(race(dropped, **start)) == set()


def test_locks_taken_crosswise_are_stuck():
    """Two CPUs that take two locks in either order wait for one another."""
    one, other = (
        (Hold(0), Hold(1), Release(1), Release(0)),
        (Hold(1), Hold(0), Release(0), Release(1)),
    )
    assert kinds(race(one, one)) == set()
    assert kinds(race(one, other)) == {"stuck"}
    schedule, _ = shortest(race(one, other), race(one, other).verdict)
    assert len(schedule) == 2
