# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem.fuzz`: fuzzing from Python, in the process that has the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from allocator.errors import ExecmemError
from execmem.fuzzing import targets
from execmem.fuzzing.campaign import Alone, Campaign, Fuzzed
from execmem.fuzzing.engine import Finding, Search
from machine.rounds import INSTRUCTIONS, SECONDS
from machine.typed import TypedFunction

EXECUTIONS = 10_000


def fuzz(
    machine: Any,
    target: str | TypedFunction | Callable[[Any, bytes], object],
    *inputs: str,
    corpus: Iterable[bytes] = (),
    seed: int = 0,
    executions: int | None = None,
    seconds: float | None = None,
    exact: bool = False,
    instructions: int = INSTRUCTIONS,
    on_finding: Callable[[Finding], object] | None = None,
) -> Fuzzed:
    """Look for inputs that come to new code, and for those with which something goes wrong.

    Each runs on the machine as it is now, which is as it was afterwards.

    Parameters
    ----------
    machine
        A machine; modules are loaded, and what the target needs is set up.
    target
        `MODULE:FUNCTION`, a function of `functions`, or a function of Python that is called with the
        machine and an input.
    inputs
        What a function is called with, `NAME=KIND` each (docs/howto/fuzz.md).
    corpus
        Inputs to begin with.
    seed
        What all that is random follows from: equal seeds find the same, in the same order.
    executions, seconds
        When to end: 10,000 executions where neither is given.
    exact
        Tell edges and how often they are taken apart, not only blocks; several times slower.
    instructions
        Of one execution, after which it counts as endless.
    on_finding
        Called with each finding, as it was found, and again when its input was made smaller.

    Raises
    ------
    BadInput
        It is not known what to call the target with.
    BadCall
        There is no such function, or the machine cannot be put back.
    ExecmemError
        An input changed what cannot be put back; `execmem fuzz` goes on with a new machine then.
    """
    chosen = _target(machine, target, inputs)
    if executions is None and seconds is None:
        executions = EXECUTIONS
    seeds: Sequence[bytes] = [bytes(each) for each in corpus] or list(chosen.seeds)
    with Search(machine, chosen, exact=exact, instructions=instructions, seconds=SECONDS) as search:
        found = Campaign(
            Alone(search),
            seeds,
            seed=seed,
            executions=executions,
            seconds=seconds,
            keep=on_finding or (lambda _finding: None),
        ).run()
    if found.spoiled:
        raise ExecmemError(f"{chosen.title}: the machine cannot be put back: {found.spoiled}")
    return found


def _target(machine: Any, target: Any, inputs: Sequence[str]) -> targets.Target:
    if isinstance(target, TypedFunction):
        for name, module in machine.modules.items():
            if module.symbols.get(target.name) == target.address:
                return targets.function(machine, target.name, inputs, name)
        return targets.function(machine, target.name, inputs)
    if isinstance(target, str):
        module, _, name = target.rpartition(":")
        return targets.function(machine, name, inputs, module)
    return targets.python(machine, target, getattr(target, "__name__", "harness"))
