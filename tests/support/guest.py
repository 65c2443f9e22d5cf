# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine of each architecture whose kernel functions tests call by name."""

from __future__ import annotations

import functools
from contextlib import contextmanager

import pytest
from hypothesis import settings

import archs
from emulator.faults import Fault
from kernels.modelled.structs import view
from machine.face import Machine

EACH = pytest.mark.parametrize("arch", archs.ALL, ids=lambda arch: arch.name)
FEW = settings(max_examples=25, deadline=None)
GFP_KERNEL, GFP_ZERO = 0xCC0, 0x100


class Guest:
    """A machine whose kernel functions are called by name."""

    def __init__(self, arch):
        self.machine = Machine(arch)
        self.kernel = self.machine.kernel
        self.word = self.kernel.word
        self.alloc = self.machine.alloc

    def __call__(self, name, *args, returns="u64"):
        """Call a kernel function through the CPU."""
        return self.machine.call(self.kernel.address(name), *args, returns=returns)

    def symbol(self, name):
        """Return a kernel symbol's address."""
        return self.kernel.address(name)

    def callback(self, name, function, prototype):
        """Return the address of a guest function that Python implements."""
        self.kernel.supply(name, function, prototype)
        return self.kernel.address(name)

    def view(self, name, address):
        """Return a structure by its members."""
        return view(self.kernel, name, address)

    @contextmanager
    def memory(self, *contents):
        """Put bytes (or that many zeros) into guest memory for a while; NULs end strings."""
        found = [self.machine.alloc(c if isinstance(c, int) else c + b"\0") for c in contents]
        yield found if len(found) > 1 else found[0]
        for address in found:
            self.machine.free(address)

    def string(self, address):
        """Return the C string at an address."""
        return self.kernel.string(address)

    @contextmanager
    def fails(self, kind, *words):
        """Expect a fault of a kind whose text has every word."""
        with pytest.raises(Fault) as caught:
            yield
        assert caught.value.kind is kind
        for word in words:
            assert word in str(caught.value)


@functools.cache
def _guest(name):
    return Guest(name)


def guest_of(arch):
    """Return the one machine of an architecture that these tests share."""
    return _guest(arch.name)
