# SPDX-License-Identifier: GPL-2.0-or-later
"""What any interleaving of steps is held to: all of them, one by one."""

from __future__ import annotations

from hypothesis import strategies as st

from machine.racing.search import conflict


def finals(system):
    """Return every state in which nobody goes on, by trying all interleavings one by one."""
    found, tried = set(), 0

    def go_on(state):
        nonlocal tried
        following = [after for a in range(system.actors) for _, after in system.moves(state, a)]
        if not following:
            tried += 1
            found.add(state)
        for after in following:
            go_on(after)

    go_on(system.start())
    return found, tried


def exchange(race, data):
    """Hold steps that are said to be independent to it: from a state on the way, in either order."""
    state = race.start()
    for _ in range(data.draw(st.integers(0, 5))):
        following = [after for a in range(race.actors) for _, after in race.moves(state, a)]
        if following:
            state = data.draw(st.sampled_from(following))
    for one in range(race.actors):
        for other in range(one):
            if conflict(race.touched(state, one), race.touched(state, other)):
                continue
            first = {b for _, a in race.moves(state, one) for _, b in race.moves(a, other)}
            second = {b for _, a in race.moves(state, other) for _, b in race.moves(a, one)}
            assert first == second
