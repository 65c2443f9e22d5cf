# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with the sample module `patchable`, and what of it must be as before."""

from __future__ import annotations

import pytest

from allocator.types import MemType
from machine.face import Machine
from samples import modules


@pytest.fixture
def machine(arch):
    """Return a machine that knows the samples by name."""
    return Machine(arch, root=modules.root(arch.name))


@pytest.fixture
def patchable(machine):
    """Return the sample module that can be traced and has static branches and calls."""
    return machine.load("patchable")


@pytest.fixture
def unchanged(machine):
    """Return what asserts that text and allocations of loaded modules are as when it was made."""

    def state():
        text = {}
        for name, module in machine.modules.items():
            region = module.regions[MemType.TEXT]
            text[name] = machine.read(region.address, region.size)
        return text, machine.execmem.allocations()

    def of(*names):
        for name in names:
            if name not in machine.modules:
                machine.load(name)
        before = state()

        def check():
            assert state() == before
            machine.check()

        return check

    return of
