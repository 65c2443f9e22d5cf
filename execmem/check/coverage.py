# SPDX-License-Identifier: GPL-2.0-or-later
"""Which relocations a link tries, and where in their reach: counted from the file, not the result.

What goes through a global offset table is the exception: where its slots lie the link decides, so
X is computed from the table that was made, or is that of the refusal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import attrs

from allocator.types import ADDRESS_MASK
from archs.op import signed
from archs.reloc import Checks, Reloc
from execmem.check.ends import where
from execmem.check.placing import labels
from execmem.check.subject import Planned, Subject, Unanswerable
from loader.elfview import SHN_ABS, SHN_UNDEF
from loader.errors import RelocationFailure

_LONGEST = 15  # bytes of an instruction


@attrs.frozen(kw_only=True)
class Tried:
    """One relocation of a link: its row, place, X, and where X lies in the row's reach."""

    row: Reloc
    section: str
    offset: int
    place: int
    x: int | None
    where: str


def tried(
    planned: Planned,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    subject: Subject | None = None,
    failures: Sequence[RelocationFailure] = (),
) -> Iterator[Tried]:
    """Yield the relocations of an object at addresses.

    Of records that add up at one place the last one stores their sum, so only that has a reach.
    """
    view = planned.view
    rows = view.arch.link.relocations
    known = {**symbols, **labels(planned, addresses)}
    refused = {(failure.place, failure.reloc): failure.value for failure in failures}
    table_at, slots = _table(planned, addresses, subject)
    for table in view.tables:
        start = addresses.get(table.target.index)
        if start is None:
            continue
        records = table.records.tolist()
        sums: dict[int, int] = {}
        last = {
            offset: n
            for n, (offset, number, _, _) in enumerate(records)
            if number in rows and rows[number].accumulates
        }
        for n, (offset, number, symbol, addend) in enumerate(records):
            row = rows.get(number)
            if row is None:
                continue
            entry = view.symbols[symbol]
            section, place = int(entry["shndx"]), start + offset
            if section == SHN_UNDEF:
                value = known.get(view.symbol_name(symbol), 0) if symbol else 0
            elif section == SHN_ABS:
                value = int(entry["value"])
            else:
                value = addresses.get(section, 0) + int(entry["value"])
            letters = {"S": value, "A": signed(addend), "P": place, "Z": int(entry["size"])}
            x: int | None = None
            if row.accumulates:
                term = row.op.weight("S") * signed(value + addend)
                x = sums[place] = signed(term if row.op.anew else sums.get(place, 0) + term)
                if last[offset] != n:
                    x = None
            elif row.got is not None:
                x = refused.get((place, row.name))
                stands = row.got.symbol(letters, table_at, slots.get)
                if x is None and subject is not None and stands is not None:
                    added = letters["A"] if row.got.keeps_addend else 0
                    x = row.op.evaluate({**letters, "S": stands, "A": added})
            elif row.op.terms:
                found = row.op.evaluate(letters)
                x = None if found is None else signed(found & ADDRESS_MASK)
            yield Tried(
                row=row,
                section=table.target.name,
                offset=offset,
                place=place,
                x=x,
                where=where(row, x, row.reach_under(Checks.HARDWARE)),
            )


def _table(
    planned: Planned, addresses: Mapping[int, int], subject: Subject | None
) -> tuple[int, Mapping[int, int]]:
    """Return where the global offset table starts, and the slots of what it holds."""
    name = planned.view.arch.got_section
    section = planned.view.section(name) if name else None
    start = addresses.get(section.index, 0) if section is not None else 0
    return start, subject.objects[0].slots() if subject is not None else {}


def was_executed(place: int, executed: Collection[int], subject: Subject) -> bool:
    """Return whether the instruction that holds a place was among those that ran."""
    if place in executed:
        return True
    start = max((at for at in executed if place - _LONGEST < at < place), default=None)
    try:
        return start is not None and subject.next_pc(start) > place
    except Unanswerable:
        return False
