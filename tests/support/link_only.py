# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin (`-p tests.support.link_only`): registers an architecture that only links."""

from __future__ import annotations

import sys
import types

import attrs

import archs
from tests.archs.facts import Facts, written

LINKS = attrs.evolve(
    archs.arch("riscv64"),
    name="linkonly",
    aliases=("linkonly64",),
    title="links only",
    machine=0x70F,
    load=None,
    run=None,
    patch=None,
    finalise=(),
    environment=None,
)
archs.ALL = (*archs.ALL, LINKS)
_FACTS = types.ModuleType("tests.archs.facts.linkonly")
_FACTS.FACTS = Facts(
    link=attrs.evolve(written("riscv64").link, triple=("linkonly-elf", "linkonly"))
)
sys.modules[_FACTS.__name__] = _FACTS
