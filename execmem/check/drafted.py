# SPDX-License-Identifier: GPL-2.0-or-later
"""A draft of cases as it is linked here: which of them are refused, the bytes, what is executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs

from allocator.errors import ExecmemError
from allocator.types import ADDRESS_MASK
from archs import arch as arch_by_name
from execmem.check.circumstances import HOW, Kind, explain, facts_of
from execmem.check.coverage import Tried, tried
from execmem.check.draft import Draft, Record
from execmem.check.executing import CannotRun, execute
from execmem.check.placing import places
from execmem.check.quirks import reason_for
from execmem.check.reading import read
from execmem.check.running import planned
from execmem.check.subject import Planned, Subject
from loader.errors import RelocationError

HERE = "here"
Key: TypeAlias = tuple[str, int, str]  # of a record: its section, offset and type


@attrs.frozen(kw_only=True)
class Difference:
    """A case that somebody sees differently.

    Parameters
    ----------
    linker
        Who; `HERE`: the guest, or nobody is needed to see it.
    version
        What the linker calls itself.
    reloc
        Name of the relocation that it is about; empty where that is not known.
    facts
        What about that relocation may explain it: where X lies in the reach, as
        `execmem.check.placing.ENDS` calls it, and what kind of symbol it names.
    text
        One line.
    tried
        The relocation and its X, where that is known.
    """

    arch: str
    case: int
    linker: str
    version: str = ""
    kind: Kind
    reloc: str
    facts: frozenset[str] = frozenset()
    text: str
    tried: Tried | None = None

    @property
    def key(self) -> tuple[str, Kind, str]:
        """What makes another one the same."""
        return self.linker, self.kind, self.reloc

    @property
    def why(self) -> str:
        """The reason, where that is known of the linker; else empty."""
        quirk = explain(self.linker, self.kind, self.reloc, self.facts, self.text)
        if quirk is not None:
            return f"{quirk.why} ({quirk.source})"
        how = next((how for how, kind in HOW.items() if kind is self.kind), None)
        if how is None or self.tried is None:
            return ""
        return reason_for(self.linker, self.arch, how, [self.tried])


def refusals(draft: Draft) -> Sequence[tuple[str, int, str]]:
    """Return section, offset and name of every relocation of a draft that is refused here."""
    try:
        plan, addresses, symbols = prepared(draft)
        Subject.of([plan], [addresses], symbols)
    except RelocationError as error:
        at = {draft.address(record.section, record.offset): record for record in draft.records}
        known = [at[failure.place] for failure in error.failures if failure.place in at]
        return [(record.section, record.offset, record.type) for record in known]
    except ExecmemError:
        pass
    return []


def prepared(draft: Draft) -> tuple[Planned, Mapping[int, int], Mapping[str, int]]:
    """Return a draft's object, and the addresses of its sections and undefined symbols."""
    case = read("random.case", draft.text())
    (placement,) = case.placements
    plan = planned(case, arch_by_name(draft.arch), placement)
    (where,) = places(case, placement, plan)
    return plan, where.addresses, where.values


@attrs.define
class Here:
    """A draft as it is linked here.

    Parameters
    ----------
    rest
        The draft without the cases that are refused.
    subject
        What that becomes; None where it cannot be linked.
    refused
        By case: the relocation that is refused first, and why.
    """

    draft: Draft
    rest: Draft
    subject: Subject | None
    refused: Mapping[int, tuple[str, str]]
    differences: tuple[Difference, ...] = ()
    _tried: tuple[Planned, Mapping[Key, Tried]] | None = None

    @classmethod
    def link(cls, draft: Draft) -> Here:
        """Link a draft, again and again without the cases that are refused."""
        refused: dict[int, tuple[str, str]] = {}
        rest = draft
        while True:
            try:
                plan, addresses, symbols = prepared(rest)
                subject = Subject.of([plan], [addresses], symbols)
                return cls(draft, rest, subject, refused)
            except RelocationError as error:
                at = {rest.address(r.section, r.offset): r for r in rest.records}
                more: dict[int, tuple[str, str]] = {}
                for failure in error.failures:
                    record = at.get(failure.place)
                    if record is not None:
                        told = failure.text("").partition("\n")[0].removeprefix(": ")
                        more.setdefault(record.case, (failure.reloc or record.type, told))
                if not more:
                    return cls(draft, rest, None, refused, tuple(_failed(draft, str(error))))
                refused |= more
                rest = rest.only(set(rest.cases) - set(more))
            except Exception as error:  # noqa: BLE001 # whatever it is, it is what is looked for
                name = "" if isinstance(error, ExecmemError) else f"{type(error).__name__}: "
                return cls(draft, rest, None, refused, tuple(_failed(draft, f"{name}{error}")))

    def bytes_of(self, section: str) -> bytes:
        """Return a section as it is linked; cases that are refused keep what they had."""
        assert self.subject is not None
        (one,) = self.subject.objects
        found = one.planned.view.section(section)
        assert found is not None
        return bytes(one.linked.sections[found.index])

    def facts(self, record: Record) -> tuple[frozenset[str], Tried | None]:
        """Return what is remarkable about a record, and where its X lies."""
        if self._tried is None:
            plan, addresses, symbols = prepared(self.draft)
            found = tried(plan, addresses, symbols)
            self._tried = plan, {(t.section, t.offset, t.row.name): t for t in found}
        plan, known = self._tried
        lies = known.get((record.section, record.offset, record.type))
        return (facts_of(plan.view, lies) if lies is not None else frozenset()), lies

    # Execution -----------------------------------------------------------------------------------

    def execute(self) -> Iterator[tuple[int, Difference | None]]:
        """Yield the cases that the guest executed, and where it went wrong."""
        subject = self.subject
        if subject is None or not self.rest.runs:
            return
        starts = [self.rest.address(one.section, one.offset) for one in self.rest.runs]
        probes = zip(starts, (one.register for one in self.rest.runs), strict=True)
        try:
            done = execute(subject, list(probes))
        except CannotRun:
            return
        for one, start, ran in zip(self.rest.runs, starts, done, strict=True):
            if ran.value == one.goal & ADDRESS_MASK:
                yield one.case, None
                continue
            what = f"{one.register} = " if one.register else "it goes to "
            found = ran.reason if ran.value is None else f"{what}{ran.value:#x}"
            text = f"executed at {start:#x}: {found}, and not {one.goal:#x}"
            record = next(r for r in self.rest.records if r.case == one.case)
            yield (
                one.case,
                Difference(
                    arch=self.draft.arch,
                    case=one.case,
                    linker=HERE,
                    kind=Kind.EXECUTES,
                    reloc=record.type,
                    text=text,
                ),
            )


def _failed(draft: Draft, why: str) -> Iterator[Difference]:
    first = why.partition("\n")[0]
    for case in draft.cases:
        record = next((r for r in draft.records if r.case == case), None)
        yield Difference(
            arch=draft.arch,
            case=case,
            linker=HERE,
            kind=Kind.FAILS,
            reloc=record.type if record else "",
            text=f"is refused as a whole: {first}",
        )
