# SPDX-License-Identifier: GPL-2.0-or-later
"""Drafts of random cases linked here and by others, and executed: where they differ, by case.

What decides is somebody else: the bytes of GNU ld and lld at the same addresses, and where the
guest arrives. A linker goes on after what it refuses, and says where that was; where it does not,
the draft is halved until the case is known. What goes through a table of its own is compared as
what the row computes of its slots.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import attrs

from allocator.types import ADDRESS_MASK
from archs import Arch
from archs.op import signed
from archs.reloc import Reloc
from execmem.check import batches
from execmem.check import linkers as others
from execmem.check.circumstances import (
    ALIKE,
    INVERTED,
    Kind,
)
from execmem.check.coverage import Tried
from execmem.check.draft import Draft, Piece, Record
from execmem.check.drafted import Difference, Here, prepared
from execmem.check.linkers import Linker, Said
from execmem.check.quirks import QUIRKS, How
from execmem.check.subject import Planned
from loader.listing import insert

_UNKNOWN = (
    *("unsupported relocation", "unknown relocation", "unrecognized relocation"),
    *("unrecognised relocation", "not supported", "unsupported reloc"),
)


# Words of a linker that does not know the architecture.
_STRANGER = "generic ELF|e_machine|file format not recogni|is incompatible with"


@attrs.frozen(kw_only=True)
class Compared:
    """What became of a draft.

    Parameters
    ----------
    linked, refused
        Numbers of the cases that were linked here, or refused.
    same
        By linker the numbers of the cases that it sees alike.
    executed
        Numbers of the cases that were executed.
    """

    linked: frozenset[int]
    refused: frozenset[int]
    same: Mapping[str, frozenset[int]]
    executed: frozenset[int]
    differences: tuple[Difference, ...]


@attrs.define
class Asked:
    """Linkers of an architecture, and the types that each has been found not to know.

    `strangers` are those that were found not to know the architecture itself.
    """

    linkers: Mapping[str, Linker]
    unknown: dict[str, set[str]] = attrs.field(factory=dict)
    strangers: set[str] = attrs.field(factory=set)

    @classmethod
    def of(cls, arch: Arch, names: Collection[str] | None = None) -> Asked:
        """Return those that are here, of some names or of all.

        None where nobody has said what the architecture's tools are called: lld is there for all.
        """
        here = others.linkers(arch) if arch.link.assembly is not None else {}
        chosen = batches.NAMES if names is None else names
        return cls({name: here[name] for name in here if name in batches.NAMES and name in chosen})


def compare(draft: Draft, asked: Asked) -> Compared:
    """Return what became of the cases of a draft, here and with linkers."""
    here = Here.link(draft)
    differences = list(here.differences)
    cases = frozenset(draft.cases)
    linked = cases - set(here.refused) - {d.case for d in differences}
    same: dict[str, frozenset[int]] = {}
    if here.subject is not None:
        for name, linker in asked.linkers.items():
            found: set[int] = set()
            for case, difference in _ask(here, linker, asked, draft, sorted(cases)):
                if difference is None:
                    found.add(case)
                else:
                    differences.append(difference)
            same[name] = frozenset(found)
    executed: set[int] = set()
    for case, difference in here.execute():
        executed.add(case)
        if difference is not None:
            differences.append(difference)
    return Compared(
        linked=linked,
        refused=frozenset(here.refused),
        same=same,
        executed=frozenset(executed),
        differences=tuple(differences),
    )


# Linkers -------------------------------------------------------------------------------------------


def _ask(
    here: Here, linker: Linker, asked: Asked, draft: Draft, cases: Sequence[int]
) -> Iterator[tuple[int, Difference | None]]:
    """Yield the cases that a linker knows, with what it sees differently.

    Some linkers leave the rest of a section alone where they refuse something in it, so they are
    asked again without what they refuse, until they link all that is left. What differs then is
    linked alone, in the ordinary way, and only that counts.
    """
    if linker.name in asked.strangers:
        return
    unknown = asked.unknown.setdefault(linker.name, set())
    doubtful = [case for case in cases if _breaks(linker, draft, case)]
    cases = [case for case in cases if case not in doubtful]
    while True:
        cases = _known(draft, cases, unknown)
        if not cases:
            break
        against = _Against.link(here, linker, draft.only(cases), going_on=len(cases) > 1)
        if against.said.sections is None:
            if re.search(_STRANGER, against.said.refused):
                asked.strangers.add(linker.name)
                return
            if len(cases) == 1:
                doubtful += cases
                break
            middle = len(cases) // 2
            yield from _ask(here, linker, asked, draft, cases[:middle])
            yield from _ask(here, linker, asked, draft, cases[middle:])
            break
        refused = {
            record.case: record.type
            for record in against.draft.records
            if (record.section, record.offset) in against.said.places
        }
        if not refused:
            for case in cases:
                if against.linked(case) is None:
                    yield case, None
                else:
                    doubtful.append(case)
            break
        for case in refused:
            if case in here.refused:
                yield case, None
            else:
                doubtful.append(case)
        cases = [case for case in cases if case not in refused]
    for case in doubtful:
        if _known(draft, [case], unknown):
            against = _Against.link(here, linker, draft.only([case]), going_on=False)
            reason = against.said.refused
            if against.said.sections is not None:
                yield case, against.linked(case)
            elif not _learns(unknown, reason, {r.type for r in against.draft.records}):
                yield case, against.refused(case, reason)


def _breaks(linker: Linker, draft: Draft, case: int) -> bool:
    """Return whether a case has a type over which a linker is known to refuse everything."""
    return any(
        quirk.linker == linker.name
        and quirk.arch == draft.arch
        and quirk.how is How.REFUSES
        and not quirk.where
        and any(record.type.endswith(f"_{reloc}") for reloc in quirk.relocs)
        for record in draft.records
        if record.case == case
        for quirk in QUIRKS
    )


def _known(draft: Draft, cases: Sequence[int], unknown: Collection[str]) -> Sequence[int]:
    """Return the cases that have none of the types that a linker does not know."""
    strange = {record.case for record in draft.records if record.type in unknown}
    return [case for case in cases if case not in strange]


def _learns(unknown: set[str], reason: str, types: Collection[str]) -> bool:
    """Return whether a linker says that it does not know a type, and note it where it is one."""
    if not any(word in reason.lower() for word in _UNKNOWN):
        return False
    if len(types) == 1:
        unknown |= set(types)
    return True


@attrs.define
class _Against:
    """What one linker made of a draft, held against what is made here."""

    here: Here
    linker: Linker
    said: Said
    plan: Planned
    draft: Draft

    @classmethod
    def link(cls, here: Here, linker: Linker, draft: Draft, *, going_on: bool) -> _Against:
        """Let a linker link a draft."""
        plan, addresses, symbols = prepared(draft)
        wanted = {n: v for n, v in symbols.items() if n in plan.view.undefined}
        got_section = plan.view.arch.got_section
        table = plan.view.section(got_section) if got_section else None
        got = addresses[table.index] if table is not None else None
        said = batches.link(linker, plan, addresses, wanted, going_on=going_on, got=got)
        return cls(here, linker, said, plan, draft)

    @property
    def arch(self) -> Arch:
        return self.plan.view.arch

    def _records(self, case: int) -> Sequence[Record]:
        return [record for record in self.draft.records if record.case == case]

    def _row(self, record: Record) -> Reloc:
        rows = self.arch.link.relocations.values()
        return next(row for row in rows if row.name == record.type)

    def _fields(
        self, record: Record | None, piece: Piece, ours: bytes, theirs: bytes
    ) -> frozenset[str]:
        """Return how the field of a record differs, where it is in one word."""
        if record is None or len(parts := self._row(record).parts) != 1:
            return frozenset()
        at = record.offset - piece.offset
        part = parts[0]
        mask = part.mask & ~part.zeros & ~part.movz
        changed = (part.load(ours[at:]) ^ part.load(theirs[at:])) & mask
        return frozenset({0: {ALIKE}, mask: {INVERTED}}.get(changed, set()))

    def _differs(
        self,
        case: int,
        kind: Kind,
        record: Record | None,
        text: str,
        more: Collection[str] = (),
    ) -> Difference:
        facts: frozenset[str] = frozenset()
        lies: Tried | None = None
        if record is not None:
            facts, lies = self.here.facts(record)
            facts = facts.union(more)
        return Difference(
            arch=self.draft.arch,
            case=case,
            linker=self.linker.name,
            version=self.linker.version,
            kind=kind,
            reloc=record.type if record is not None else "",
            facts=facts,
            text=text,
            tried=lies,
        )

    def refused(self, case: int, reason: str) -> Difference | None:
        """Return how a linker's refusal of a case differs."""
        if case in self.here.refused:
            return None
        records = self._records(case)
        record = next(
            (r for r in records if (r.section, r.offset) in self.said.places),
            records[0] if records else None,
        )
        if record is not None and self._detours(case):
            return None  # it goes through an entry, which linkers make only in other kinds of file
        text = f"{self.linker.name} refuses what is linked here: {reason}"
        return self._differs(case, Kind.REFUSES, record, text)

    def linked(self, case: int) -> Difference | None:
        """Return how a linker's bytes of a case differ."""
        records = self._records(case)
        if case in self.here.refused:
            name, why = self.here.refused[case]
            record = next((r for r in records if r.type == name), records[0])
            return self._differs(
                case, Kind.LINKS, record, f"{self.linker.name} links what is refused here: {why}"
            )
        if self._detours(case):
            return None
        for piece in self.draft.pieces:
            if piece.case != case or not piece.size:
                continue
            section = self.plan.view.section(piece.section)
            assert section is not None
            assert self.said.sections is not None
            theirs = self.said.sections.get(section.index)
            if theirs is None:
                continue
            span = slice(piece.offset, piece.offset + piece.size)
            mine = [r for r in records if r.section == piece.section]
            try:
                ours = self._with_their_table(self.here.bytes_of(piece.section), theirs, mine)[span]
            except LookupError as error:
                return self._differs(case, Kind.BYTES, mine[0], f"{self.linker.name}: {error}")
            if ours != theirs[span]:
                nearest = _nearest(mine, ours, theirs[span], piece.offset)
                text = (
                    f"{piece.section}+{piece.offset:#x}: {self.linker.name} makes "
                    f"{theirs[span].hex(' ')}, here it is {ours.hex(' ')}"
                )
                more = self._fields(nearest, piece, ours, theirs[span])
                return self._differs(case, Kind.BYTES, nearest, text, more)
        return None

    def _detours(self, case: int) -> bool:
        """Return whether a branch of a case goes through an entry here."""
        subject = self.here.subject
        assert subject is not None
        plt = self.arch.plt
        if plt is None or case in self.here.refused:
            return False
        (one,) = subject.objects
        if not any(use.used for use in one.linked.plt.values()):
            return False
        for record in self._records(case):
            row = self._row(record)
            if row.number in plt.branches and row.reach is not None:
                place = self.draft.address(record.section, record.offset)
                x = row.op.evaluate({"S": self._value(record), "A": record.addend, "P": place})
                if x is not None and not row.reach.lo <= x < row.reach.hi:
                    return True
        return False

    def _value(self, record: Record) -> int:
        symbol = self.draft.symbol(record.symbol)
        if symbol is None:
            return 0
        value = symbol.value or 0
        if symbol.where in ("undefined", "absolute"):
            return value
        return self.draft.address(symbol.where, value)

    # Tables --------------------------------------------------------------------------------------

    def _with_their_table(self, ours: bytes, theirs: bytes, records: Sequence[Record]) -> bytes:
        """Return a section as it is here, but with a linker's slots; LookupError: it has none.

        Where several of its slots hold the same, it is the one that it took.
        """
        rows = {id(record): self._row(record) for record in records}
        if not any(row.got is not None for row in rows.values()):
            return ours
        image = bytearray(ours)
        highs: dict[int, int] = {}
        for record in records:
            row, at = rows[id(record)], record.offset
            if row.got is None:
                continue
            place = self.draft.address(record.section, at)
            for x in self._through(row, record, place):
                filled = insert(row, bytes(image[at : at + row.size]), x)
                highs[place] = x
                if filled == theirs[at : at + row.size]:
                    break
            image[at : at + row.size] = filled
        for record in records:
            row, at = rows[id(record)], record.offset
            x_of_high = highs.get(self._value(record))
            if row.op.high_half and x_of_high is not None:
                filled = insert(row, bytes(image[at : at + row.size]), x_of_high)
                image[at : at + row.size] = filled
        return bytes(image)

    def _through(self, row: Reloc, record: Record, place: int) -> Iterator[int]:
        """Yield X of a record that goes through a linker's table, for every slot that would do."""
        assert row.got is not None
        start = self.said.got_start
        if start is None:
            raise LookupError("it has no global offset table")
        letters = {"S": self._value(record), "A": record.addend}
        word, order = self.plan.view.dialect.word, self.plan.view.dialect.order
        wanted = sum(letters[name] for name in row.got.holds) & ADDRESS_MASK
        slots: list[int | None] = [
            base + at
            for base, held in self.said.got.items()
            for at in range(0, len(held) - word + 1, word)
            if int.from_bytes(held[at : at + word], order) == wanted
        ]
        if not row.got.holds:
            slots = [None]
        if not slots:
            raise LookupError(f"no slot of its global offset table holds {wanted:#x}")
        for slot in slots:
            value = row.got.symbol(letters, start, lambda _, slot=slot: slot)  # type: ignore[misc] # a default has no declared type
            a = record.addend if row.got.keeps_addend else 0
            assert value is not None
            x = row.op.evaluate({"S": value, "A": a, "P": place})
            assert x is not None
            yield signed(x)


def _nearest(records: Sequence[Record], a: bytes, b: bytes, start: int) -> Record | None:
    """Return the record at the first byte that differs, or before it."""
    at = start + next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    before = [record for record in records if record.offset <= at]
    return max(before, key=lambda record: record.offset, default=records[0] if records else None)
