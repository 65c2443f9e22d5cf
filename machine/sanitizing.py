# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that a machine is put under, each switchable: what they are called, and what they found.

`Machine.sanitize` begins them. What stops the guest is a `Fault`, as everything that does; what it
lets go on is in `findings`, where faults are, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs

from emulator.faults import BadCall, Fault
from kernels.findings import Finding, FindingKind
from kernels.tracing import UntilStopped

CHECKS: Mapping[str, str] = {
    "guard": "heap objects end at a guard page; freed ones are closed; frees are looked at",
    "leaks": "what a module allocated and has not freed when it is unloaded",
    "uninit": "heap memory is written before it is read (where each access is looked at: kasan)",
    "locks": "locks, preemption and interrupts are after a call what they were before it",
    "wx": "no memory of a module is writable and executable",
}


class Sanitizer(UntilStopped):
    """Checks of one machine, until `stop`; a context manager. Made by `Machine.sanitize`.

    `findings` are in the order in which they were found, `lacks` what cannot be checked in this
    machine, and why.

    Parameters
    ----------
    checks
        Their names, of `CHECKS`.
    """

    def __init__(self, checks: Iterable[str]) -> None:
        self.checks = frozenset(checks)
        self.findings: list[Finding] = []
        self.lacks: list[str] = []
        self._ends: list[Callable[[], object]] = []
        self.stopped = False

    def at_end(self, end: Callable[[], object]) -> None:
        """Do something when the checks end; what was said last is done first."""
        self._ends.append(end)

    def found(self, finding: Finding) -> None:
        """Take note of a finding."""
        self.findings.append(finding)

    def of(self, kind: FindingKind) -> list[Finding]:
        """Return the findings of a kind."""
        return [finding for finding in self.findings if finding.kind is kind]

    def fault(self, finding: Finding, pc: int, instruction: str = "", hint: str = "") -> Fault:
        """Return what the guest stops with because of a finding, and take note of both."""
        fault = Fault(
            kind=finding.kind.fault,
            pc=pc,
            where=finding.where,
            instruction=instruction,
            address=finding.address,
            reason=finding.reason,
            backtrace=finding.backtrace,
            hint=hint,
        )
        self.found(attrs.evolve(finding, fault=fault))
        return fault

    def stop(self) -> None:
        """Check nothing more; a second time does nothing. What was found stays."""
        self.stopped = True
        while self._ends:
            self._ends.pop()()


def chosen(checks: Iterable[str]) -> tuple[str, ...]:
    """Return the checks that names choose, all where none is given; BadCall for no such check."""
    names = tuple(name for word in checks for name in word.split(",") if name)
    for name in names:
        if name not in CHECKS:
            raise BadCall("sanitize", f"{name!r} is no check", f"there are {', '.join(CHECKS)}")
    return names or tuple(CHECKS)
