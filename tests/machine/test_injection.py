# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is half done: whatever step of load, init, unload or trace refuses, all is as it was."""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest

import archs
from allocator.designs import DESIGNS
from allocator.types import MIB
from machine.face import Machine
from samples import modules
from tests.archs.facts import needs
from tests.support.injection import POINTS, Operation, Outcome, inject
from tests.support.modules import module as mini_module

# `make faults` refuses every step under every design; by default some, under one of them.
FULL = "EXECMEM_FAULTS" in os.environ
# Where text lies out of reach of the kernel nothing can be loaded; its demo shows that.
CHOSEN = sorted(set(DESIGNS) - {"vmalloc_else"})
COVERED: Counter[str] = Counter()


def _mini(machine):
    image = mini_module(machine.arch.machine, exported=("mini_f",), percpu=64)
    return machine.load(image, init=False)


def _sample(machine, name="sealed", **params):
    return machine.load(modules.path(machine.arch.name, name), **params)


def _patchable(machine):
    return _sample(machine, "patchable")


def _unload(_machine, module):
    module.unload()


def _stop(machine, trace):
    trace.stop()
    machine.modules["patchable"].unload()


def _remove(machine, probe):
    probe.remove()
    machine.modules["patchable"].unload()


OPERATIONS = {
    "load": Operation(lambda _m: None, lambda m, _: _mini(m), _unload),
    "init": Operation(lambda _m: None, lambda m, _: _sample(m), _unload),
    "init, with parameters": Operation(
        lambda _m: None, lambda m, _: _sample(m, "hello", who="you", times=2), _unload
    ),
    "unload": Operation(_sample, lambda _m, module: module.unload(), None),
    "trace": Operation(_patchable, lambda m, _: m.trace("patchable"), _stop),
    "probe": Operation(_patchable, lambda m, _: m.probe("patchable:patchable_fib"), _remove),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_whichever_step_refuses_all_is_as_before_or_done(arch, name):
    """Each step that an operation takes refuses once; the next try works and leaves nothing."""
    if name in ("trace", "probe"):
        needs(arch, "patch")
    number = list(OPERATIONS).index(name)
    start = archs.ALL.index(arch)
    designs = CHOSEN if FULL else [CHOSEN[(start * 2 + number) % len(CHOSEN)]]
    for design in designs:

        def make(design=design):
            return Machine(arch, design=design, memory=64 * MIB)

        outcome = inject(make, OPERATIONS[name], every=1 if FULL else 3)
        assert isinstance(outcome, Outcome)
        assert outcome.points.total() == outcome.before + outcome.done > 0
        COVERED.update(outcome.points)
        if FULL:
            sys.stdout.write(f"{arch.name} {design} {name}: {outcome}\n")


def test_every_injection_point_was_reached():
    """No step that the harness knows was left out by all operations together."""
    if not COVERED:
        pytest.skip("counts what the test above did")
    assert set(COVERED) == set(POINTS)
