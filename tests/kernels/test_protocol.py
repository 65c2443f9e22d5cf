# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kernel fulfils the protocol that machines use it by."""

from __future__ import annotations

import inspect

import pytest

from kernels import protocol
from kernels.modelled.kernel import Kernel
from machine.face import Machine


def members(owner):
    """Return what a protocol declares."""
    return {name: value for name, value in vars(owner).items() if not name.startswith("_")}


@pytest.fixture
def kernel(arch):
    """Return the kernel of a machine of each architecture."""
    return Machine(arch).kernel


def test_modelled(kernel):
    """The modelled kernel has every member, called as it is declared."""
    assert isinstance(kernel, Kernel)
    assert isinstance(kernel, protocol.Kernel)
    assert isinstance(kernel.modules, protocol.ModuleStates)
    for owner, having in ((protocol.Kernel, kernel), (protocol.ModuleStates, kernel.modules)):
        for name, declared in members(owner).items():
            found = getattr(having, name)
            if not isinstance(declared, property):
                wanted = list(inspect.signature(declared).parameters)[1:]
                assert list(inspect.signature(found).parameters) == wanted, name


def test_what_lacks_a_member_is_no_kernel(kernel):
    """The check at run time looks at every member."""
    whole = {name: getattr(kernel, name) for name in members(protocol.Kernel)}
    assert isinstance(type("Whole", (), whole)(), protocol.Kernel)
    for name in whole:
        part = type("Part", (), {key: value for key, value in whole.items() if key != name})()
        assert not isinstance(part, protocol.Kernel), name
