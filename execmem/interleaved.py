# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that can happen while text is patched, as a graph that a reader walks through.

States and steps are those of `machine.racing`, which `execmem race` searches: the program of the CPU
that patches is recorded from a real patch. Only that CPUs which execute never tire of arriving here
(there a search counts visits), so a graph is finite and any schedule is a walk through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from allocator.types import Hex
from archs import Arch
from emulator.disassembly import Disassembler
from machine.racing.model import Race
from machine.racing.scenarios import Ground, Scenario, ours, plants
from machine.racing.state import KINDS, Place, State

MOST = 4000  # states of a graph that is told

# A step: whose, in words, the number of the state that it leads to.
Steps = list[tuple[int, str, int]]


def document(arch: Arch, *, progress: Callable[[str], None] = lambda _what: None) -> dict[str, Any]:
    """Return an architecture's ways of patching text, whole and broken, with all that they lead to.

    Parameters
    ----------
    progress
        Told what is explored.
    """
    head = {"arch": arch.name, "title": arch.title, "kinds": dict(KINDS)}
    poke, live = arch.text_poke, arch.live_patch
    if poke is None or live is None:
        why = f"{arch.title} has no text_poke: its text stays as it is"
        return {**head, "why": why, "mechanism": None, "scenarios": [], "left_out": []}
    scenarios, left_out = [], []
    for scenario in chosen(arch):
        progress(scenario.title)
        found = graph(scenario.race)
        if found is None:
            left_out.append({"name": scenario.name, "title": scenario.title, "states": MOST})
        else:
            scenarios.append(_scenario(scenario, *found))
    mechanism = {
        "name": poke.name,
        "granule": poke.granule,
        "pages": poke.pages,
        "private": poke.private,
        "window": Hex(poke.window),
        "broadcast": poke.broadcast,
        "sync": poke.sync,
        "live": live.name,
        "rule": live.rule,
        "breakpoint": None if live.breakpoint is None else live.breakpoint.hex(),
    }
    return {
        **head,
        "why": "",
        "mechanism": mechanism,
        "scenarios": scenarios,
        "left_out": left_out,
    }


def chosen(arch: Arch) -> Iterator[Scenario]:
    """Yield the ways that are shown: of our own the longest of each kind, and every mistake."""
    ground = Ground(arch)
    found: dict[object, Scenario] = {}
    for scenario in ours(ground):
        race = scenario.race
        kind = frozenset(map(type, race.programs[0])), len(race.places), len(race.programs)
        known = found.get(kind)
        if known is None or _size(scenario) > _size(known):
            found[kind] = scenario
    yield from found.values()
    yield from plants(ground)


def _size(scenario: Scenario) -> int:
    return sum(len(place.old) for place in scenario.race.places)


# The graph --------------------------------------------------------------------------------------


def rested(race: Race, state: State) -> State:
    """Return a state in which CPUs that execute may arrive as often as at first, and forget."""
    executors = []
    for number, executor in enumerate(state.executors):
        over = state.bads[len(race.programs) + number] is not None
        executors.append(executor._replace(visits=0 if over else race.visits, log=()))
    return state._replace(executors=tuple(executors))


def steps(race: Race, state: State) -> Iterator[tuple[int, str, State]]:
    """Yield what any CPU may do next: which CPU, in words, the state that follows."""
    for actor in range(race.actors):
        for text, after in race.moves(state, actor):
            yield actor, text, rested(race, after)


def graph(race: Race) -> tuple[list[State], list[Steps]] | None:
    """Return every state that can be, the first one first, and of each its steps.

    None where there are more than `MOST`.
    """
    first = rested(race, race.start())
    numbers, states, moves = {first: 0}, [first], []
    for state in states:  # which grows meanwhile
        found: Steps = []
        for actor, text, after in steps(race, state):
            if after not in numbers:
                numbers[after] = len(states)
                states.append(after)
            found.append((actor, text, numbers[after]))
        moves.append(found)
        if len(states) > MOST:
            return None
    return states, moves


def _scenario(scenario: Scenario, states: list[State], moves: list[Steps]) -> dict[str, Any]:
    race = scenario.race
    disassembler = Disassembler(scenario.arch)
    return {
        "name": scenario.name,
        "title": scenario.title,
        "patching": len(race.programs),
        "executing": race.executors,
        "programs": [
            [{"does": type(op).__name__, "text": text} for op, text in _program(race, actor)]
            for actor in range(len(race.programs))
        ],
        "places": [_place(disassembler, place) for place in race.places],
        "granule": race.granule,
        "frames": [Hex(frame) for frame in race.frames],
        "states": [state_json(race, state) for state in states],
        "steps": [[list(step) for step in found] for found in moves],
    }


def _program(race: Race, actor: int) -> Iterator[tuple[object, str]]:
    """Yield what a CPU that patches does, in words, where nobody is in its way and all goes well."""
    state = race.start()
    for op in race.programs[actor]:
        text, state = next(
            (text, after) for text, after in race.moves(state, actor) if after.bads[actor] is None
        )
        yield op, text


def _place(disassembler: Disassembler, place: Place) -> dict[str, Any]:
    texts = {
        name: [[size, text] for _, size, text in disassembler.all(code, place.address)]
        or [[len(code), disassembler.one(code, place.address)]]
        for name, code in (("old", place.old), ("new", place.new))
    }
    return {
        "address": Hex(place.address),
        "cells": list(place.cells),
        "old": place.old.hex(),
        "new": place.new.hex(),
        "others": [other.hex() for other in place.others],
        "old_text": texts["old"],
        "new_text": texts["new"],
    }


def state_json(race: Race, state: State) -> dict[str, Any]:
    """Return a state: what stands in memory, and what each CPU may still take it for."""
    rights, held = state.rights
    return {
        "at": list(state.at),
        "memory": [now.hex() for now, _ in state.cells],
        "views": [
            [sorted(code.hex() for code, _ in stale[number]) for _, stale in state.cells]
            for number in range(race.executors)
        ],
        "aliases": [
            {
                "frame": None if frame is None else Hex(frame),
                "kept": [[Hex(each) for each in sorted(one)] for one in stale],
            }
            for frame, stale in state.aliases
        ],
        "rights": {"now": rights, "kept": [sorted(one) for one in held]},
        "handler": [Hex(site) for site in state.armed],
        "done": list(state.done),
        "owner": None if state.owner < 0 else state.owner,
        "cpus": [
            {
                "site": None if cpu.site < 0 else cpu.site,
                "offset": max(cpu.offset, 0),
                "trapped": cpu.offset == -1,
                "stopped": cpu.stopped,
            }
            for cpu in state.executors
        ],
        "wrong": [{"kind": bad.kind, "text": bad.text} for bad in race.verdict(state)],
    }
