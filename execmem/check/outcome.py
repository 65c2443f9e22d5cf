# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a case: findings, each of one directive at one placement, as plain data."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import attrs

from allocator.errors import ExecmemError


class Unanswerable(ExecmemError):
    """A question about a case that has no answer: no such symbol, no such stub.

    Parameters
    ----------
    reason
        One line.
    foreign
        Whether it asks for what a module loader does not do at all.
    """

    def __init__(self, reason: str, *, foreign: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.foreign = reason, foreign


class Verdict(enum.Enum):
    """What a finding says, the worst last.

    NOTED: a linker is not asked, or differs for a reason that is known; that decides nothing.
    """

    NOTED = "noted"
    PASSED = "passed"
    FOREIGN = "not a module"
    SKIPPED = "skipped"
    FAILED = "failed"


@attrs.frozen(kw_only=True)
class Finding:
    """One directive, held against one link.

    Parameters
    ----------
    verdict
        FOREIGN: it asks for what no module loader does; SKIPPED: what it needs is not here.
    line
        Number of the directive's line in the file, from 1; 0: the whole file.
    text
        The directive where it holds; else one line with place, formula, numbers, both values,
        or the reason.
    """

    verdict: Verdict
    line: int
    text: str


@attrs.frozen(kw_only=True)
class Covered:
    """A relocation of a case at one placement: what of its row was tried.

    Parameters
    ----------
    reloc
        Name of the row.
    where
        Where X lies in its reach, as `execmem.check.ends.ENDS` calls it.
    how
        "linked", "plt" or "refused".
    executed
        Whether the guest executed the instruction.
    linkers
        Who made the same of it.
    """

    reloc: str
    where: str
    how: str
    executed: bool = False
    linkers: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Outcome:
    """A case on one architecture at one placement.

    Parameters
    ----------
    path
        The file, as it was given.
    arch
        Name of the architecture; empty where that is not known.
    placement
        What tells this placement from the others of the case; empty where there is one.
    findings
        In the order of the file.
    covers
        The relocations that were tried.
    """

    path: str
    arch: str
    placement: str = ""
    findings: tuple[Finding, ...]
    covers: tuple[Covered, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings; of those that hold and those that are no module's: it holds."""
        found = {finding.verdict for finding in self.findings}
        for verdict in (Verdict.FAILED, Verdict.SKIPPED, Verdict.PASSED, Verdict.FOREIGN):
            if verdict in found:
                return verdict
        return Verdict.SKIPPED

    @property
    def title(self) -> str:
        """The case, the architecture and the placement, to name it by."""
        return " ".join(filter(None, (self.path, self.arch and f"[{self.arch}]", self.placement)))


def worst(outcomes: Iterable[Outcome]) -> Verdict:
    """Return whether any failed; SKIPPED where nothing was tried."""
    verdicts = [outcome.verdict for outcome in outcomes]
    if Verdict.FAILED in verdicts:
        return Verdict.FAILED
    return Verdict.PASSED if Verdict.PASSED in verdicts else Verdict.SKIPPED
