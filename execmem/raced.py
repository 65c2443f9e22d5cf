# SPDX-License-Identifier: GPL-2.0-or-later
"""What `execmem race` searches and shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any

import attrs
import click

from allocator.errors import did_you_mean
from archs import Arch
from execmem import report
from execmem.interleaved import document
from execmem.terminal import Meter, Terminal, console
from machine.racing.finding import Finding, search
from machine.racing.lifetimes import Lifetime, lifetimes, mistakes
from machine.racing.loading import loading
from machine.racing.scenarios import Ground, Scenario, ours, plants, way_of
from machine.racing.scenarios import given as given_bytes
from machine.racing.state import KINDS

DEFAULT = "default"  # the design whose loading is searched


@attrs.frozen(kw_only=True)
class Bounds:
    """How far a search goes: CPUs that execute, how often each comes by, states."""

    executors: int
    visits: int
    limit: int


def given(
    arch: Arch, old: bytes, new: bytes, offset: int, force: bool, bounds: Bounds
) -> list[Scenario]:
    """Return the replacement of given bytes; LivePatchError where that is refused."""
    more = {"executors": bounds.executors, "visits": bounds.visits}
    return [given_bytes(Ground(arch), old, new, offset=offset, force=force, **more)]


def of_kernel(kernel: str, key: str, bounds: Bounds) -> list[Scenario]:
    """Return what a booted kernel does when it turns a static key on and off.

    Raises
    ------
    KernelError
        It does not boot.
    BadCall
        It has no such key, or does nothing that is seen when it is turned.
    """
    from execmem.booted import open_machine
    from machine.racing.booted import kernel_race

    machine = open_machine("", {"kernel": kernel})
    more = {"executors": bounds.executors, "visits": bounds.visits}
    return [kernel_race(machine, key, on=on, **more) for on in (True, False)]


def scenarios(
    archs: Sequence[Arch], mistake: str | None, bounds: Bounds
) -> Iterable[Scenario | Lifetime]:
    """Return our own protocols, or those with a mistake; UsageError where none is so called."""
    more = {"executors": bounds.executors, "visits": bounds.visits}
    grounds = [Ground(arch) for arch in archs]
    if mistake is None:
        loads = (loading(arch, DEFAULT, **more) for arch in archs)
        lives = (one for arch in archs for one in lifetimes(arch, DEFAULT))
        return chain((one for ground in grounds for one in ours(ground, **more)), loads, lives)
    planted: list[Scenario | Lifetime] = [
        *(one for ground in grounds for one in plants(ground, **more)),
        *(one for arch in archs for one in mistakes(arch, DEFAULT)),
    ]
    found = [one for one in planted if one.name == mistake or one.name.startswith(f"{mistake}-")]
    if not found:
        known = sorted({one.name for one in planted})
        where = ", ".join(arch.name for arch in archs)
        raise click.UsageError(
            f"no mistake {mistake!r} on {where}{did_you_mean(mistake, known)}; "
            f"there are {', '.join(known)}"
        )
    return found


def show(
    chosen: Iterable[Scenario | Lifetime], bounds: Bounds, *, one_by_one: bool, as_json: bool
) -> bool:
    """Search and show; return whether all is as expected."""
    findings = list(_searched(chosen, bounds))
    if as_json:
        report.print_json({"runs": [finding_json(one, bounds) for one in findings]})
    elif one_by_one:
        out = console()
        for number, finding in enumerate(findings):
            if number:
                out.print()
            _print_schedule(out, finding)
    else:
        _print_covered(console(), findings)
    return all(one.as_expected for one in findings)


def show_graph(arch: Arch) -> None:
    """Print every state of an architecture's ways of patching, and of each mistake."""
    with Meter() as meter:
        found = document(arch, progress=lambda title: meter.show(f"{arch.name}: {title}", 0))
    report.print_json(found)


def _searched(chosen: Iterable[Scenario | Lifetime], bounds: Bounds) -> Iterator[Finding]:
    with Meter() as meter:
        total = 0
        for scenario in chosen:
            name = f"{scenario.arch.name}: {scenario.title}"

            def met(states: int, name: str = name, before: int = total) -> None:
                meter.show(name, before + states)

            met(0)
            found = search(scenario, limit=bounds.limit, progress=met)
            total += found.states
            yield found


def finding_json(found: Finding, bounds: Bounds) -> dict[str, Any]:
    """Return one search; its schedule is empty where nothing went wrong."""
    scenario = found.scenario
    return {
        "arch": scenario.arch.name,
        "mistake": scenario.name or None,
        "title": scenario.title,
        "way": _way(found),
        "cpus": scenario.race.actors,
        "visits": scenario.race.visits,
        "limit": bounds.limit,
        "states": found.states,
        "steps": found.steps,
        "complete": found.complete,
        "expected": list(scenario.expected),
        "as_expected": found.as_expected,
        "outcome": None if found.bad is None else found.bad.kind,
        "meaning": None if found.bad is None else KINDS[found.bad.kind],
        "text": None if found.bad is None else found.bad.text,
        "schedule": [{"cpu": step.actor, "step": step.text} for step in found.schedule],
    }


def _print_covered(out: Terminal, findings: Sequence[Finding]) -> None:
    """Show what was covered, a line for each architecture and way, and what went wrong."""
    rows = []
    ways = groupby(
        sorted(findings, key=lambda one: (one.scenario.arch.name, _way(one))),
        key=lambda one: (one.scenario.arch.title, _way(one)),
    )
    for (title, way), group in ways:
        members = list(group)
        wrong = [one for one in members if one.bad is not None]
        cut = sum(not one.complete and one.bad is None for one in members)
        said = f"{len(wrong)} go wrong" if wrong else "nothing goes wrong"
        rows.append(
            (
                title,
                way,
                f"{len(members):,}",
                f"{sum(one.states for one in members):,}",
                f"{sum(one.steps for one in members):,}",
                f"{said}; {cut} were given up" if cut else said,
            )
        )
    columns = ("arch", "way", "searched", "states", "steps", "every interleaving")
    out.print(report.table(columns, rows, right="searched,states,steps"))
    for one in findings:
        if one.bad is not None:
            out.print()
            _print_schedule(out, one)


def _way(found: Finding) -> str:
    scenario = found.scenario
    if isinstance(scenario, Lifetime):
        return "memory"
    loads = scenario.expected and not scenario.name
    return "load" if loads else way_of(scenario.race.programs[0]).value


def _print_schedule(out: Terminal, found: Finding) -> None:
    """Show the steps to what went wrong, or that nothing did."""
    scenario = found.scenario
    name = f" ({scenario.name})" if scenario.name else ""
    out.print(f"{scenario.arch.title}: {scenario.title}{name}", style="bold")
    if found.bad is None:
        covered = "every interleaving" if found.complete else "given up"
        out.print(f"nothing goes wrong: {covered}, {found.states:,} states, {found.steps:,} steps")
        return
    rows, last = [], None
    for number, step in enumerate(found.schedule, 1):
        who = f"CPU {step.actor}" if step.actor != last else ""
        rows.append((str(number), who, step.text))
        last = step.actor
    out.print(report.table(("", "", "step"), rows))
    out.print(f"{found.bad.kind}: {KINDS[found.bad.kind]}")
    out.print(found.bad.text)
