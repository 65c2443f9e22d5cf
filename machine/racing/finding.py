# SPDX-License-Identifier: GPL-2.0-or-later
"""The search of one scenario: what was covered, and the shortest schedule to what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import attrs

from machine.racing.lifetimes import Lifetime
from machine.racing.scenarios import Scenario
from machine.racing.search import Step, explore, shortest
from machine.racing.state import Bad


@attrs.frozen(kw_only=True)
class Finding:
    """What the search of a scenario found.

    Parameters
    ----------
    states, steps
        States that were met, and steps between them.
    complete
        Whether every interleaving was covered.
    bad
        What went wrong; None: nothing that was met.
    schedule
        The steps to it, with the fewest changes of CPU.
    """

    scenario: Scenario | Lifetime
    states: int
    steps: int
    complete: bool
    bad: Bad | None = None
    schedule: tuple[Step, ...] = ()

    @property
    def as_expected(self) -> bool:
        """Whether a plant was found, or that all was covered and nothing found."""
        if self.scenario.name:
            return self.bad is not None and self.bad.kind in self.scenario.expected
        return self.complete and self.bad is None

    @property
    def switches(self) -> int:
        """How often another CPU goes on in the schedule."""
        actors = [step.actor for step in self.schedule]
        return sum(one != other for one, other in pairwise(actors))


def search(
    scenario: Scenario | Lifetime,
    *,
    limit: int | None = None,
    progress: Callable[[int], object] = lambda _states: None,
) -> Finding:
    """Search until something goes wrong or every interleaving is covered.

    Parameters
    ----------
    limit
        States to meet at most.
    progress
        Called now and then with how many were met.
    """
    race: Any = scenario.race  # states of one are nothing to the other
    wanted = scenario.expected

    # A load is no patch: others may meet its text half written, whom nobody leads there.
    def wrong(state: Any) -> bool:
        return any(not wanted or bad.kind in wanted for bad in race.verdict(state))

    explored = explore(race, until=wrong, limit=limit, progress=progress)
    bad: Bad | None = None
    schedule: tuple[Step, ...] = ()
    if any(map(wrong, explored.finals)):
        found = shortest(race, wrong)
        assert found is not None, "what was met with reduction is met without"
        steps, state = found
        schedule = tuple(steps)
        bad = next(bad for bad in race.verdict(state) if not wanted or bad.kind in wanted)
    return Finding(
        scenario=scenario,
        states=explored.states,
        steps=explored.steps,
        complete=explored.complete,
        bad=bad,
        schedule=schedule,
    )
