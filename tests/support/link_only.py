# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin (`-p tests.support.link_only`): registers an architecture that only links."""

from __future__ import annotations

import sys
import types

import attrs
import pytest

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
    boot=None,
    finalise=(),
    environment=None,
)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Register it before fixtures are made of the registry; importing this file alone must not."""
    archs.ALL = (*archs.ALL, LINKS)
    known = types.ModuleType("tests.archs.facts.linkonly")
    links = attrs.evolve(written("riscv64").link, triple=("linkonly-elf", "linkonly"))
    known.FACTS = Facts(link=links)
    sys.modules[known.__name__] = known
