# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks on the command line: which are meant, and how what they found is shown."""

from __future__ import annotations

from typing import Any

from allocator.types import Hex
from execmem import notices
from execmem.streams import say
from kernels.findings import Finding
from machine.face import Machine
from machine.sanitizing import Sanitizer

ALL = "all"


def begin(machine: Machine, checks: str | None) -> Sanitizer | None:
    """Put a machine under checks, and say what cannot be checked; None: none are wanted."""
    if checks is None:
        return None
    made = machine.sanitize(*(() if checks == ALL else (checks,)))
    for lack in made.lacks:
        notices.assume(f"not checked: {lack}")
    return made


def as_json(checks: Sanitizer | None) -> list[dict[str, Any]]:
    """Return what was found."""
    return [] if checks is None else list(map(_as_json, checks.findings))


def _as_json(finding: Finding) -> dict[str, Any]:
    found = finding.object
    return {
        "kind": finding.kind.value,
        "where": finding.where,
        "reason": finding.reason,
        "address": None if finding.address is None else Hex(finding.address),
        "object": None
        if found is None
        else {
            "address": Hex(found.address),
            "size": found.size,
            "allocated": list(found.allocated),
            "freed": list(found.freed),
        },
        "backtrace": list(finding.backtrace),
    }


def show(checks: Sanitizer | None) -> None:
    """Print what was found."""
    for finding in () if checks is None else checks.findings:
        say(str(finding))
