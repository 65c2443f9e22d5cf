# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets every step of an operation on a machine refuse in turn, and proves what it leaves.

The steps are those of memory (`tests.support.faults`), and everything that a load calls
which is not memory: objects on the heap, per-cpu memory, observers, the log. An operation
is carried out once to count how often it takes each step; then once more for each of these,
with that very step refusing. Afterwards the machine is as before, or the operation was done
all the same: nothing between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs

from allocator.errors import AllocationError, ExecmemError
from kernels.modelled.heap import Heap
from machine.face import Machine
from tests.support.faults import POINTS as MEMORY_POINTS
from tests.support.faults import Faults


class Refused(ExecmemError):
    """What an injected step of a callback raises."""


def _refuse(*_args: object, **_kwargs: object) -> object:
    raise Refused("injected")


def _no_percpu(*_args: object, **_kwargs: object) -> object:
    raise AllocationError("per-cpu memory", 0, (), "injected")


# Step -> the object that does it, its attribute, and what a refusal looks like.
CALLBACKS: dict[str, tuple[str, str, Callable[..., object]]] = {
    "heap": ("heap", "alloc", lambda *_args, **_kwargs: 0),
    "per-cpu alloc": ("loader", "percpu_alloc", _no_percpu),
    "per-cpu write": ("loader", "percpu_write", _refuse),
    "observe": ("loader", "observe", _refuse),
    "on_change": ("loader", "on_change", _refuse),
    "on_log": ("kernel", "on_log", _refuse),
    "symbol": ("kernel", "address", _refuse),
}
POINTS = (*MEMORY_POINTS, *CALLBACKS)


class _Heap:
    """A kernel's heap whose methods can be replaced."""

    def __init__(self, heap: Heap) -> None:
        self._heap = heap
        self.alloc = heap.alloc

    def __getattr__(self, name: str) -> object:
        return getattr(self._heap, name)


class Steps(Faults):
    """Stands between a machine and its steps, those of memory included."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.memory)
        machine.kernel.on_log = lambda _line: None
        heap: Any = _Heap(machine.kernel.heap)
        machine.kernel.heap = heap
        owners: dict[str, Any] = {
            "heap": heap,
            "loader": machine.loader,
            "kernel": machine.kernel,
        }
        for point, (owner, name, refuse) in CALLBACKS.items():
            self._wrap(point, owners[owner], name, refuse)


def snapshot(machine: Machine) -> tuple[object, ...]:
    """Return all of a machine that an operation may change; what was put off is done first."""
    machine.loader.reclaim()
    assert not machine.loader.postponed
    kernel, execmem = machine.kernel, machine.execmem
    kernel.heap.mark()  # gives empty slabs back
    kept = sum(area.size for area in execmem.design.free_intervals())
    live = execmem.allocations()
    return (
        machine.memory.physical.free_bytes + kept,
        live,
        [machine.memory.read(a.address, a.size) for a in live],
        [machine.memory.translate(a.address) for a in live],
        {name: (m.state, set(m.users)) for name, m in machine.loader.modules.items()},
        {name: m.state for name, m in machine.modules.items()},
        dict(machine.loader.symbols.exports),
        list(kernel.percpu._free),
        kernel.heap.live(),
        dict(kernel.symbols),
        list(kernel.registry),
        sorted(machine.breakpoints),
        dict(machine.threads),
        machine.calls.stack.depth,
    )


@attrs.frozen
class Operation:
    """Something done to a machine, and how to undo it; None: it undoes what was prepared."""

    prepare: Callable[[Machine], object]
    act: Callable[[Machine, Any], object]
    undo: Callable[[Machine, Any], object] | None


@attrs.define
class Outcome:
    """Injection points: how often each step was taken, and what came of refusing it."""

    points: Counter[str] = attrs.field(factory=Counter)
    before: int = 0
    done: int = 0


def inject(make: Callable[[], Machine], operation: Operation, *, every: int = 1) -> Outcome:
    """Refuse each step of an operation once (or one in `every`); assert what is left.

    One machine serves for all, as each time it is proven to be as before.
    """
    machine, outcome = make(), Outcome()
    steps = Steps(machine)
    # Once without refusals: caches fill, and symbols get their addresses.
    _whole(machine, operation)
    empty = snapshot(machine)
    steps.calls.clear()
    calls = _whole(machine, operation, steps)
    for point in POINTS:
        for nth in range(1, calls[point] + 1, every):
            where = f"{point}, call {nth} of {calls[point]}"
            subject = operation.prepare(machine)
            before = snapshot(machine)
            refused = False
            with steps.at(point, nth):
                try:
                    result = operation.act(machine, subject)
                except ExecmemError:
                    refused = True
            machine.check()
            after = snapshot(machine)
            done = not refused or (operation.undo is None and after == empty)
            if refused and not done:
                for number, (one, other) in enumerate(zip(before, after, strict=True)):
                    assert one == other, f"{where}: {number}"
                result = operation.act(machine, subject)  # the next try works
            if operation.undo is not None:
                operation.undo(machine, result)
            machine.check()
            for number, (one, other) in enumerate(zip(empty, snapshot(machine), strict=True)):
                assert one == other, f"{where}, undone: {number}"
            outcome.done += done
            outcome.before += not done
            outcome.points[point] += 1
    return outcome


def _whole(machine: Machine, operation: Operation, steps: Steps | None = None) -> Counter[str]:
    """Prepare, act and undo; return how often the act took each step."""
    subject = operation.prepare(machine)
    if steps is not None:
        steps.calls.clear()
    result = operation.act(machine, subject)
    calls = Counter(steps.calls) if steps is not None else Counter()
    if operation.undo is not None:
        operation.undo(machine, result)
    return calls
