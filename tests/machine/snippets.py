# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts into memory the few functions that no sample module has; an architecture without one skips."""

from __future__ import annotations

import pytest

from allocator.types import MemType
from archs import Arch
from machine.face import Machine
from tests.archs.facts import facts


def code(arch: Arch, name: str) -> bytes:
    """Return the bytes of the snippet `name`, or skip the test."""
    found = facts(arch).run.snippets.get(name)
    if found is None:
        pytest.skip(f"no snippet {name!r} for {arch.name}")
    return bytes.fromhex(found)


def put(machine: Machine, code: bytes) -> int:
    """Place code in executable memory and return its address."""
    pending = machine.execmem.alloc(MemType.TEXT, len(code))
    pending.write(0, code)
    return pending.finish().address


def snippet(machine: Machine, name: str) -> int:
    """Place the snippet `name` in executable memory and return its address."""
    return put(machine, code(machine.arch, name))
