# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin (`-p tests.support.link_only`): registers an architecture that only links."""

from __future__ import annotations

import sys
import types

import attrs

import archs
from tests.archs.facts import Facts, written

TOY = attrs.evolve(
    archs.arch("riscv64"),
    name="toy",
    aliases=("toy64",),
    title="toy",
    machine=0x70F,
    load=None,
    run=None,
    patch=None,
    finalise=(),
    environment=None,
)
archs.ALL = (*archs.ALL, TOY)
_FACTS = types.ModuleType("tests.archs.facts.toy")
_FACTS.FACTS = Facts(link=attrs.evolve(written("riscv64").link, triple=("toy-elf", "toy")))  # type: ignore[attr-defined]
sys.modules[_FACTS.__name__] = _FACTS
