# SPDX-License-Identifier: GPL-2.0-or-later
"""Drafts made smaller as long as something about them stays true: what is left is what matters.

Everything is tried in an order, and kept where the question is still answered with yes: cases,
records, bytes around them, symbols, numbers. The same draft and question give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import attrs

from allocator.types import ADDRESS_MASK
from archs.op import signed
from execmem.check.draft import Area, Draft, Name

T = TypeVar("T")

ROUND = 0x1_0000  # what addresses are multiples of where that makes no difference
REACH = 16  # bytes kept behind a record's place: no relocation writes more


def shrink(draft: Draft, holds: Callable[[Draft], bool]) -> Draft:
    """Return a draft of which something holds, as it does of the one that is given.

    Parameters
    ----------
    holds
        Must hold of `draft`.
    """
    cases = smallest(draft.cases, lambda chosen: holds(draft.only(chosen)))
    draft = draft.only(cases)
    records = smallest(
        draft.records,
        lambda chosen: holds(attrs.evolve(draft, records=tuple(chosen))),
    )
    draft = attrs.evolve(draft, records=tuple(records))
    for step in (_without_names, _without_runs, _trimmed, _plainer, _rounded, _trimmed):
        for smaller in step(draft):
            if smaller != draft and holds(smaller):
                draft = smaller
                break
    return _simple_numbers(draft, holds)


def smallest(items: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """Return a selection that holds and of which no item can be left out (ddmin).

    Parameters
    ----------
    items
        All of them hold together.
    holds
        Asked of selections, in their order.
    """
    chosen = list(items)
    pieces = 2
    while len(chosen) > 1:
        size = -(-len(chosen) // pieces)
        parts = [chosen[at : at + size] for at in range(0, len(chosen), size)]
        for number, part in enumerate(parts):
            rest = [item for n, other in enumerate(parts) if n != number for item in other]
            if len(parts) > 2 and holds(part):
                chosen, pieces = part, 2
                break
            if holds(rest):
                chosen, pieces = rest, max(pieces - 1, 2)
                break
        else:
            if size == 1:
                break
            pieces = min(2 * pieces, len(chosen))
    return chosen


def _without_names(draft: Draft) -> Iterator[Draft]:
    """Yield the draft without symbols that no record names."""
    named = {record.symbol for record in draft.records}
    yield attrs.evolve(draft, names=tuple(name for name in draft.names if name.name in named))


def _without_runs(draft: Draft) -> Iterator[Draft]:
    yield attrs.evolve(draft, runs=())


def _trimmed(draft: Draft) -> Iterator[Draft]:
    """Yield the draft without sections that nothing needs, and without bytes around its places.

    Places and symbols keep their addresses.
    """
    areas: list[Area] = []
    moved: dict[str, int] = {}
    for area in draft.areas:
        places = [r.offset for r in draft.records if r.section == area.name]
        starts = [run.offset for run in draft.runs if run.section == area.name]
        labels = [n.value or 0 for n in draft.names if n.where == area.name]
        if not (places or starts or labels):
            continue
        first = min([*places, *starts, *labels])
        ends = [place + REACH for place in places] + [start + 2 * REACH for start in starts]
        last = min(max(ends, default=first), len(area.data))
        if any("section" in n.words for n in draft.names if n.where == area.name):
            first = 0  # it stands for the beginning
        pieces = [p for p in draft.pieces if p.section == area.name]
        for piece in pieces:
            if piece.offset < last <= piece.offset + piece.size:
                last = piece.offset + piece.size
            if any(piece.offset <= place < piece.offset + piece.size for place in places):
                last = max(last, piece.offset + piece.size)
        first = min(first, *(p.offset for p in pieces if p.size)) if pieces else first
        following = [p.offset + p.size for p in pieces]
        last = min(last, max(following)) if following and places else last
        moved[area.name] = first
        areas.append(
            attrs.evolve(
                area,
                data=area.data[first:last],
                address=(area.address + first) & ADDRESS_MASK,
                align=area.align if not first else 1,
            )
        )
    yield attrs.evolve(
        draft,
        areas=tuple(areas),
        names=tuple(
            attrs.evolve(name, value=(name.value or 0) - moved[name.where])
            if name.where in moved
            else name
            for name in draft.names
        ),
        records=tuple(_shift(record, moved) for record in draft.records),
        runs=tuple(_shift(run, moved) for run in draft.runs),
        pieces=tuple(_shift(piece, moved) for piece in draft.pieces if piece.section in moved),
    )


P = TypeVar("P")


def _shift(item: P, moved: dict[str, int]) -> P:
    """Return what has a section and an offset, moved with the section's beginning."""
    section: str = getattr(item, "section")  # noqa: B009 # of records, runs and pieces alike
    offset: int = getattr(item, "offset")  # noqa: B009 # the same
    changed: P = attrs.evolve(item, offset=offset - moved[section])  # type: ignore[misc] # each is of attrs
    return changed


def _plainer(draft: Draft) -> Iterator[Draft]:
    """Yield the draft with ordinary symbols: undefined, global, with the same value."""
    names = tuple(
        Name(name=n.name, where="undefined", value=draft.address(n.where, n.value or 0))
        if n.where not in ("undefined", "absolute")
        else n
        for n in draft.names
    )
    yield attrs.evolve(draft, names=names)
    yield attrs.evolve(
        draft,
        names=tuple(
            attrs.evolve(n, where="undefined", words=()) if n.where == "absolute" else n
            for n in names
        ),
    )


def _rounded(draft: Draft) -> Iterator[Draft]:
    """Yield the draft at rounder addresses, everything moved by the same distance."""
    if not draft.areas:
        return
    lowest = min(area.address for area in draft.areas)
    for goal in (ROUND, lowest & -ROUND):
        by = (goal - lowest) & ADDRESS_MASK

        def to(value: int, by: int = by) -> int:
            return (value + by) & ADDRESS_MASK

        yield attrs.evolve(
            draft,
            areas=tuple(attrs.evolve(a, address=to(a.address)) for a in draft.areas),
            names=tuple(
                attrs.evolve(n, value=to(n.value))
                if n.where in ("undefined", "absolute") and n.value is not None
                else n
                for n in draft.names
            ),
            runs=tuple(attrs.evolve(run, goal=to(run.goal)) for run in draft.runs),
        )


def _simple_numbers(draft: Draft, holds: Callable[[Draft], bool]) -> Draft:
    """Return the draft with smaller addends, values and bytes, one after the other."""
    for number, record in enumerate(draft.records):
        symbol = draft.symbol(record.symbol)
        for addend in (0, 4, -4, 1):
            if abs(record.addend) <= abs(addend):
                break
            changed = attrs.evolve(record, addend=addend)
            records = (*draft.records[:number], changed, *draft.records[number + 1 :])
            tries = [attrs.evolve(draft, records=records)]
            if symbol is not None and symbol.where in ("undefined", "absolute"):
                moved = attrs.evolve(
                    symbol, value=((symbol.value or 0) + record.addend - addend) & ADDRESS_MASK
                )
                names = tuple(moved if n is symbol else n for n in draft.names)
                tries.insert(0, attrs.evolve(draft, records=records, names=names))
            found = next((each for each in tries if holds(each)), None)
            if found is not None:
                draft = found
                break
    for number, name in enumerate(draft.names):
        if name.value is None or name.where not in ("undefined", "absolute"):
            continue
        for value in (0, ROUND, name.value & 0xFFFF, signed(name.value) & -ROUND & ADDRESS_MASK):
            if value == name.value:
                break
            changed_name = attrs.evolve(name, value=value)
            names = (*draft.names[:number], changed_name, *draft.names[number + 1 :])
            smaller = attrs.evolve(draft, names=names)
            if holds(smaller):
                draft = smaller
                break
    for number, area in enumerate(draft.areas):
        empty = attrs.evolve(area, data=bytes(len(area.data)))
        smaller = attrs.evolve(
            draft, areas=(*draft.areas[:number], empty, *draft.areas[number + 1 :])
        )
        if empty != area and holds(smaller):
            draft = smaller
    return draft
