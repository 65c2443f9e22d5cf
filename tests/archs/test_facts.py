# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests know of every architecture what they need; without a level they say so and skip."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import attrs

import archs
from tests.archs.facts import LEVELS, MISSING, SNIPPETS, Facts, needs, written

ROOT = Path(__file__).parents[2]


def missing(arch: archs.Arch, given: Facts) -> list[str]:
    """Return what nobody has written, by level."""
    found = []
    for level in LEVELS:
        if getattr(arch, level) is None:
            continue
        record = getattr(given, level)
        if record is None:
            found.append(f"{arch.name}: facts for level {level}: all")
            continue
        names = record.missing()
        if level == "run" and "snippets" not in names:
            names += [f"snippets.{name}" for name in SNIPPETS if name not in record.snippets]
        found += [f"{arch.name}: facts for level {level}: {name}" for name in names]
    return found


def test_nothing_is_missing(arch: archs.Arch) -> None:
    """Every fact of every level that an architecture has is written."""
    assert missing(arch, written(arch.name)) == []


def test_what_is_missing_is_named(arch: archs.Arch) -> None:
    """A level without facts, a fact and a snippet are named, and no level that is not there."""
    needs(arch, "run")
    given = written(arch.name)
    poor = {name: code for name, code in given.run.snippets.items() if name != "loop"}
    run = attrs.evolve(given.run, snippets=poor, trap=MISSING)
    poorer = attrs.evolve(given, run=run, load=None)
    lower = attrs.evolve(arch, patch=None)
    assert missing(lower, attrs.evolve(poorer, patch=None)) == [
        f"{arch.name}: facts for level load: all",
        f"{arch.name}: facts for level run: trap",
        f"{arch.name}: facts for level run: snippets.loop",
    ]


def test_an_architecture_that_only_links_needs_no_more() -> None:
    """The whole suite is collected with a fourth architecture; what it lacks is skipped by name."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tests.support.link_only", "-k", "linkonly", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    *lines, summary = done.stdout.strip().splitlines()
    assert done.returncode == 0, done.stdout
    passed, skipped = (
        int(re.search(rf"(\d+) {what}", summary)[1]) for what in ("passed", "skipped")
    )
    assert passed > 40
    reasons = [re.fullmatch(r"SKIPPED \[(\d+)\] \S+: (.*)", line) for line in lines]
    named = sum(int(m[1]) for m in reasons if m and m[2].startswith("linkonly has no level "))
    assert named > 0.9 * skipped
    for level in ("load", "run", "patch"):
        assert f"linkonly has no level {level!r}" in done.stdout
