# SPDX-License-Identifier: GPL-2.0-or-later
"""Every interleaving of actors' steps, without trying orders that cannot matter.

Two steps of different actors that touch nothing in common lead to the same state in either order,
so one order is enough. Two things follow from that. Where an actor's next step has nothing in common with all that
the others may still do, only that actor goes on (a persistent set of one). And a step that was
tried first need not be tried again behind steps that are independent of it (sleep sets). Both
keep every state in which nobody can go on, which is where outcomes are told; a state that has
gone wrong is such a state. States that were met before are not gone on from again, except for
what slept there before and does not now.

Sources: P. Godefroid, Partial-Order Methods for the Verification of Concurrent Systems (1996),
chapters 4 (persistent sets), 5 (sleep sets) and 6 (with states that are kept).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import Generic, NamedTuple, Protocol, TypeVar

import attrs

EVERY = 2000  # states between two words about progress

S = TypeVar("S", bound=Hashable)


class Touched(NamedTuple):
    """What steps read and write, a bit for each thing."""

    reads: int
    writes: int


def conflict(one: Touched, other: Touched) -> bool:
    """Return whether the order of two steps may matter."""
    return bool(one.writes & (other.reads | other.writes) or other.writes & one.reads)


class System(Protocol[S]):
    """What is searched: actors 0, 1 ... that change one state, each step after step, to an end."""

    @property
    def actors(self) -> int:
        """How many there are."""
        ...

    def start(self) -> S:
        """Return the state in which nobody has done anything."""
        ...

    def moves(self, state: S, actor: int) -> Sequence[tuple[str, S]]:
        """Return what the actor's next step may come to, told and as states; empty: it waits."""
        ...

    def touched(self, state: S, actor: int) -> Touched:
        """Return what the actor's next step reads and writes, waiting included."""
        ...

    def future(self, state: S, actor: int) -> Touched:
        """Return all that the actor may yet read and write."""
        ...


@attrs.frozen
class Explored(Generic[S]):
    """What a search has seen.

    Parameters
    ----------
    states, steps
        How many were met, and how many steps were taken between them.
    finals
        The states in which nobody goes on.
    complete
        Whether every interleaving was covered: nothing ended the search before.
    """

    states: int
    steps: int
    finals: frozenset[S]
    complete: bool


class Step(NamedTuple):
    """One step of a schedule."""

    actor: int
    text: str


def explore(
    system: System[S],
    *,
    reduce: bool = True,
    until: Callable[[S], bool] = lambda _final: False,
    limit: int | None = None,
    progress: Callable[[int], object] = lambda _states: None,
) -> Explored[S]:
    """Return every state in which nobody can go on, however the actors' steps are interleaved.

    Parameters
    ----------
    reduce
        Whether orders that cannot matter are left out.
    until
        Ends the search at a state in which nobody goes on.
    limit
        States to meet at most.
    progress
        Called now and then with the number of states.
    """
    actors = range(system.actors)
    start = system.start()
    asleep: dict[S, frozenset[int]] = {}
    finals: set[S] = set()
    steps, complete = 0, True
    waiting: list[tuple[S, frozenset[int]]] = [(start, frozenset())]
    while waiting:
        state, sleep = waiting.pop()
        if state in asleep:
            again = asleep[state] - sleep
            if not again:
                continue
            asleep[state] &= sleep
            chosen = sorted(again)
        else:
            if limit is not None and len(asleep) >= limit:
                complete = False
                break
            asleep[state] = sleep
            if len(asleep) % EVERY == 0:
                progress(len(asleep))
            enabled = [actor for actor in actors if system.moves(state, actor)]
            if not enabled:
                finals.add(state)
                if until(state):
                    complete = False
                    break
                continue
            chosen = [a for a in _persistent(system, state, enabled) if a not in sleep]
            if not reduce:
                chosen = enabled
        sleeping = set(sleep)
        for actor in chosen:
            mine = system.touched(state, actor)
            below = (
                frozenset(a for a in sleeping if not conflict(system.touched(state, a), mine))
                if reduce
                else frozenset()
            )
            for _, following in system.moves(state, actor):
                steps += 1
                waiting.append((following, below))
            sleeping.add(actor)
    return Explored(len(asleep), steps, frozenset(finals), complete)


def _persistent(system: System[S], state: S, enabled: Sequence[int]) -> Sequence[int]:
    """Return actors that are enough to go on with: one that nobody can come in the way of, or all."""
    futures = {actor: system.future(state, actor) for actor in range(system.actors)}
    for actor in enabled:
        mine = system.touched(state, actor)
        if not any(conflict(mine, future) for a, future in futures.items() if a != actor):
            return (actor,)
    return enabled


def shortest(
    system: System[S], wanted: Callable[[S], bool], *, limit: int | None = None
) -> tuple[list[Step], S] | None:
    """Return a schedule to a wanted state with the fewest changes of actor, then the fewest steps.

    None where none is reached within `limit` states.
    """
    numbers = count()
    best: list[tuple[int, int, int, S, int | None]] = [(0, 0, next(numbers), system.start(), None)]
    came: dict[tuple[S, int | None], tuple[tuple[S, int | None], Step] | None] = {
        (best[0][3], None): None
    }
    cost: dict[tuple[S, int | None], tuple[int, int]] = {(best[0][3], None): (0, 0)}
    met = 0
    while best:
        switches, length, _, state, last = heapq.heappop(best)
        if cost[state, last] < (switches, length):
            continue
        if wanted(state):
            schedule, at = [], (state, last)
            while (before := came[at]) is not None:
                at = before[0]
                schedule.append(before[1])
            return schedule[::-1], state
        met += 1
        if limit is not None and met > limit:
            return None
        for actor in range(system.actors):
            price = (switches + (last is not None and actor != last), length + 1)
            for text, following in system.moves(state, actor):
                key = (following, actor)
                if key not in cost or price < cost[key]:
                    cost[key] = price
                    came[key] = ((state, last), Step(actor, text))
                    heapq.heappush(best, (*price, next(numbers), following, actor))
    return None
