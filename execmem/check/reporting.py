# SPDX-License-Identifier: GPL-2.0-or-later
"""Outcomes as text, TAP (version 14), JUnit's XML and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree as ET  # written, never read

from allocator.errors import printable
from execmem.check.outcome import Finding, Outcome, Verdict

WORDS = {
    Verdict.NOTED: "note",
    Verdict.PASSED: "ok",
    Verdict.FOREIGN: "not a module",
    Verdict.SKIPPED: "skipped",
    Verdict.FAILED: "FAILED",
}


def located(outcome: Outcome, finding: Finding) -> str:
    """Return a finding in one line: where it stands, the architecture, what is wrong."""
    where = f"{outcome.path}:{finding.line}" if finding.line else outcome.path
    arch = f" [{outcome.arch}]" if outcome.arch else ""
    placement = f" ({outcome.placement})" if outcome.placement else ""
    return printable(f"{where}:{arch}{placement} {finding.text}")


def lines(outcome: Outcome, *, verbose: bool = False) -> Iterator[str]:
    """Yield what people read of an outcome: a line, and one for each finding that does not hold."""
    counts = Counter(finding.verdict for finding in outcome.findings)
    held = counts[Verdict.PASSED]
    total = counts.total() - counts[Verdict.NOTED]
    yield printable(f"{WORDS[outcome.verdict]:<8} {outcome.title}  {held} of {total}")
    for finding in outcome.findings:
        if finding.verdict not in (Verdict.PASSED, Verdict.NOTED) or verbose:
            yield f"  {WORDS[finding.verdict]}: {located(outcome, finding)}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the counts in one line."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    files = len({outcome.path for outcome in outcomes})
    told = ", ".join(f"{counts[v]} {WORDS[v].lower()}" for v in Verdict if counts[v])
    return f"{files} {'file' if files == 1 else 'files'}, {len(outcomes)} {'link' if len(outcomes) == 1 else 'links'}: {told or 'nothing'}"


def tap(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield the lines of a TAP stream, the plan last."""
    yield "TAP version 14"
    number = 0
    for number, outcome in enumerate(outcomes, 1):
        bad = outcome.verdict is Verdict.FAILED
        title = outcome.title.replace("#", "\\#")
        skip = ""
        if outcome.verdict in (Verdict.SKIPPED, Verdict.FOREIGN):
            first = next(f for f in outcome.findings if f.verdict is outcome.verdict)
            skip = f" # SKIP {first.text}"
        yield printable(f"{'not ok' if bad else 'ok'} {number} - {title}{skip}")
        for finding in outcome.findings:
            if finding.verdict is Verdict.FAILED:
                yield f"# {located(outcome, finding)}"
    yield f"1..{number}"


def junit(outcomes: Sequence[Outcome]) -> str:
    """Return JUnit's XML: a test case for each outcome."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    skipped = counts[Verdict.SKIPPED] + counts[Verdict.FOREIGN]
    suite = ET.Element(
        "testsuite",
        name="execmem check",
        tests=str(len(outcomes)),
        failures=str(counts[Verdict.FAILED]),
        skipped=str(skipped),
        errors="0",
    )
    for outcome in outcomes:
        name = " ".join(filter(None, (outcome.arch, outcome.placement))) or "case"
        case = ET.SubElement(
            suite, "testcase", classname=printable(outcome.path), name=printable(name)
        )
        bad = [f for f in outcome.findings if f.verdict is outcome.verdict]
        text = "\n".join(located(outcome, finding) for finding in bad)
        if outcome.verdict is Verdict.FAILED:
            ET.SubElement(case, "failure", message=printable(bad[0].text)).text = text
        elif outcome.verdict is not Verdict.PASSED:
            ET.SubElement(case, "skipped", message=printable(bad[0].text))
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def as_json(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Return the outcomes as a document."""
    return [
        {
            "path": outcome.path,
            "arch": outcome.arch,
            "placement": outcome.placement,
            "outcome": outcome.verdict.name.lower(),
            "findings": [
                {"outcome": f.verdict.name.lower(), "line": f.line, "text": printable(f.text)}
                for f in outcome.findings
            ],
        }
        for outcome in outcomes
    ]
