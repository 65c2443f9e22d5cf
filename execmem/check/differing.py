# SPDX-License-Identifier: GPL-2.0-or-later
"""Random cases from end to end: made, compared, and what differs shrunk to a case file.

A draft is a piece of work, which depends on nothing but the architecture, the seed and its number:
so the result does not depend on how many processes share the work.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import attrs

from archs import arch as arch_by_name
from execmem.check import generating, shrinking
from execmem.check.circumstances import Kind
from execmem.check.comparing import Asked, compare
from execmem.check.draft import Draft, Name
from execmem.check.drafted import HERE, Difference, refusals

MOST = 100  # case files of one architecture: more of them nobody reads


@attrs.frozen(kw_only=True)
class Job:
    """A draft to make and compare.

    Parameters
    ----------
    arch
        Name of the architecture.
    seed, number, cases
        As `generating.draft`.
    linkers
        Short names of those to ask; None: all that are here.
    known
        Whether differences whose reason is known become case files, too.
    """

    arch: str
    seed: int
    number: int
    cases: int
    linkers: tuple[str, ...] | None = None
    known: bool = False


@attrs.frozen(kw_only=True)
class Found:
    """A difference, and the case file that it was shrunk to."""

    name: str
    key: tuple[str, Kind, str]
    text: str
    why: str
    case: str


@attrs.frozen(kw_only=True)
class Done:
    """What became of a draft, or of many.

    Parameters
    ----------
    same
        By linker, how many cases it sees alike.
    known
        By linker and reason, how many cases it is known to see differently.
    unknown
        By what differs, how many cases nobody can explain.
    found
        One case file for each way in which something differs.
    """

    arch: str
    cases: int = 0
    records: int = 0
    linked: int = 0
    refused: int = 0
    executed: int = 0
    same: Mapping[str, int] = attrs.field(factory=dict)
    known: Mapping[tuple[str, str], int] = attrs.field(factory=dict)
    unknown: Mapping[tuple[str, Kind, str], int] = attrs.field(factory=dict)
    found: tuple[Found, ...] = ()

    def unasked(self, linker: str) -> int:
        """Return of how many cases a linker does not know a type."""
        told = sum(count for (name, _), count in self.known.items() if name == linker)
        told += sum(count for (name, _, _), count in self.unknown.items() if name == linker)
        return self.cases - self.same.get(linker, 0) - told


def jobs(
    arch: str,
    cases: int,
    seed: int,
    *,
    linkers: Sequence[str] | None = None,
    known: bool = False,
) -> Sequence[Job]:
    """Return the work that many cases of an architecture are."""
    return [
        Job(
            arch=arch,
            seed=seed,
            number=number,
            cases=min(generating.CASES, cases - number * generating.CASES),
            linkers=None if linkers is None else tuple(linkers),
            known=known,
        )
        for number in range(generating.count_of(cases))
    ]


@cache
def _asked(arch: str, linkers: tuple[str, ...] | None) -> Asked:
    """Return linkers, which are asked again and again in one process."""
    return Asked.of(arch_by_name(arch), linkers)


def run(job: Job) -> Done:
    """Return what became of one draft."""
    draft = generating.draft(arch_by_name(job.arch), job.seed, job.number, job.cases)
    asked = _asked(job.arch, job.linkers)
    compared = compare(draft, asked)
    known: Counter[tuple[str, str]] = Counter()
    unknown: Counter[tuple[str, Kind, str]] = Counter()
    found: dict[tuple[str, Kind, str, str], Found] = {}
    for difference in compared.differences:
        why = difference.why
        if why:
            known[difference.linker, why] += 1
        else:
            unknown[difference.key] += 1
        way = (*difference.key, why)
        if (job.known or not why) and way not in found:
            found[way] = _shrunk(job, draft, difference, asked)
    return Done(
        arch=job.arch,
        cases=len(draft.cases),
        records=len(draft.records),
        linked=len(compared.linked),
        refused=len(compared.refused),
        executed=len(compared.executed),
        same={name: len(cases) for name, cases in compared.same.items()},
        known=known,
        unknown=unknown,
        found=tuple(found.values()),
    )


def joined(arch: str, parts: Iterable[Done]) -> Done:
    """Return what became of many drafts together; of case files the first of each way."""
    numbers: Counter[str] = Counter()
    same: Counter[str] = Counter()
    known: Counter[tuple[str, str]] = Counter()
    unknown: Counter[tuple[str, Kind, str]] = Counter()
    found: dict[tuple[str, Kind, str, str], Found] = {}
    for part in parts:
        for name in ("cases", "records", "linked", "refused", "executed"):
            numbers[name] += getattr(part, name)
        same.update(part.same)
        known.update(part.known)
        unknown.update(part.unknown)
        for one in part.found:
            way = (*one.key, one.why)
            if way not in found or one.name < found[way].name:
                found[way] = one
    return Done(
        arch=arch,
        cases=numbers["cases"],
        records=numbers["records"],
        linked=numbers["linked"],
        refused=numbers["refused"],
        executed=numbers["executed"],
        same=dict(sorted(same.items())),
        known=dict(known.most_common()),
        unknown=dict(unknown.most_common()),
        found=tuple(sorted(found.values(), key=lambda one: one.name))[:MOST],
    )


# One difference -------------------------------------------------------------------------------


def _shrunk(job: Job, draft: Draft, difference: Difference, asked: Asked) -> Found:
    """Return a difference with the smallest case that shows it."""
    own = {name: linker for name, linker in asked.linkers.items() if name == difference.linker}
    seen: Difference = difference

    def holds(smaller: Draft) -> bool:
        nonlocal seen
        for other in compare(smaller, Asked(own)).differences:
            same = other.key == difference.key and bool(other.why) == bool(difference.why)
            if same and (other.linker != HERE or _shape(other) == _shape(difference)):
                seen = other
                return True
        return False

    alone = draft.only([difference.case])
    if holds(alone):
        small = shrinking.shrink(alone, holds)
        holds(small)  # what is told is told of the smallest
    elif holds(draft):
        small = shrinking.shrink(draft, holds)
        holds(small)
    else:
        small = draft
    name = f"{job.arch}-{job.seed}-{job.number:04}-{difference.case:02}"
    text = seen.text
    return Found(
        name=name,
        key=difference.key,
        text=text,
        why=difference.why,
        case=_case(small, seen, f"random, seed {job.seed}, draft {job.number}").text(),
    )


def _shape(difference: Difference) -> str:
    """Return what a difference's text says beside numbers."""
    return re.sub(r"0x[0-9a-f]+", "", difference.text)


def _case(draft: Draft, difference: Difference, origin: str) -> Draft:
    """Return a draft with the words that say what differs, and the directives that show it."""
    notes = [f"{difference.text} ({origin})"]
    if difference.version:
        notes.append(f"{difference.linker} is {difference.version}")
    if difference.why:
        notes.append(f"as is known: {difference.why}")
    asks = [f"refuse {reloc} at {section}+{at:#x}" for section, at, reloc in refusals(draft)]
    if difference.linker != HERE:
        asks.append(f"linkers {difference.linker}")
        return attrs.evolve(draft, notes=tuple(notes), asks=tuple(asks))
    names = list(draft.names)
    given = []
    for number, run in enumerate(draft.runs):
        start = f"run{number}"
        names.append(Name(name=start, where=run.section, value=run.offset, words=("func",)))
        if run.register:
            asks.append(f"run {start} = {run.goal:#x}")
        else:
            given.append(f"symbol goal{number} = {run.goal:#x}")
            asks.append(f"run {start} reaches goal{number}")
    return attrs.evolve(
        draft, names=tuple(names), notes=tuple(notes), asks=(*given, *asks, "linkers none")
    )


# Reports --------------------------------------------------------------------------------------


def lines(done: Done, asked: Collection[str]) -> Iterator[str]:
    """Yield what people read of it; `asked` are the linkers that were there."""
    yield (
        f"{done.arch}: {done.cases} random cases, {done.records} relocations: "
        f"{done.linked} linked, {done.refused} refused, {done.executed} executed"
    )
    for name in asked:
        unasked = done.unasked(name)
        more = f", and does not know the types of {unasked}" if unasked else ""
        yield f"  {name} sees {done.same.get(name, 0)} alike{more}"
    if not asked:
        yield f"  no linker for {done.arch} is asked: only what is executed is compared"
    for (name, why), count in done.known.items():
        yield f"  {name} sees {count} differently: {why}"
    for (name, kind, reloc), count in done.unknown.items():
        yield f"  NOT EXPLAINED: {name} {kind.value}: {count} of {reloc}"


def as_json(done: Done) -> dict[str, Any]:
    """Return it as a part of a document."""
    return {
        "arch": done.arch,
        "cases": done.cases,
        "records": done.records,
        "linked": done.linked,
        "refused": done.refused,
        "executed": done.executed,
        "same": dict(done.same),
        "unasked": {name: done.unasked(name) for name in done.same},
        "known": [
            {"linker": name, "why": why, "cases": count}
            for (name, why), count in done.known.items()
        ],
        "different": [
            {"linker": name, "kind": kind.name.lower(), "reloc": reloc, "cases": count}
            for (name, kind, reloc), count in done.unknown.items()
        ],
        "found": [
            {"name": one.name, "text": one.text, "why": one.why, "case": one.case}
            for one in done.found
        ],
    }
