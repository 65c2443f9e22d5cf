# SPDX-License-Identifier: GPL-2.0-or-later
"""Which relocations of an architecture cases try, where in their reach, how, and with whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from archs import Arch
from archs.reloc import Reloc
from execmem.check.ends import ABOVE, BELOW, INSIDE, LOWER, NO_LIMIT, OFF, UPPER, ends_of, takes_plt
from execmem.check.linkers import LETTERS
from execmem.check.outcome import Covered, Outcome, Verdict
from execmem.check.quirks import NOT_EXECUTED

LINKED, REFUSED, PLT, EXECUTED = "linked", "refused", "plt", "executed"
COLUMNS = (INSIDE, LOWER, UPPER, BELOW, ABOVE, OFF, PLT, EXECUTED)
SHORT = ("in", "lo", "hi", "<lo", ">hi", "off", "plt", "run")
_HOW = {
    **dict.fromkeys((NO_LIMIT, INSIDE, LOWER, UPPER), (LINKED, PLT)),
    **dict.fromkeys((BELOW, ABOVE, OFF), (REFUSED,)),
}


@attrs.frozen(kw_only=True)
class Row:
    """A relocation type in the matrix.

    Parameters
    ----------
    reloc
        Its name.
    cells
        By column whether it was tried; None: there is no such thing.
    linkers
        By column the other linkers that made the same of it there, or refused it too.
    """

    reloc: str
    cells: Mapping[str, bool | None]
    linkers: Mapping[str, tuple[str, ...]]

    @property
    def holes(self) -> Sequence[str]:
        """The columns that nobody has tried."""
        return [column for column, tried in self.cells.items() if tried is False]


def matrix(arch: Arch, outcomes: Iterable[Outcome]) -> Sequence[Row]:
    """Return the matrix of an architecture: what outcomes of cases cover of each of its rows.

    What failed covers nothing.
    """
    covered: dict[str, list[Covered]] = {}
    mine = outcomes_by_arch(outcomes).get(arch.name, ())
    for outcome in mine:
        if outcome.verdict is not Verdict.FAILED:
            for one in outcome.covers:
                covered.setdefault(one.reloc, []).append(one)
    rows = {row.name: row for row in arch.link.relocations.values()}  # some have two numbers
    return [_row(arch, row, covered.get(name, [])) for name, row in rows.items()]


def outcomes_by_arch(outcomes: Iterable[Outcome]) -> Mapping[str, Sequence[Outcome]]:
    """Return outcomes by the name of their architecture."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.arch, []).append(outcome)
    return found


def _row(arch: Arch, row: Reloc, covered: Sequence[Covered]) -> Row:
    cells: dict[str, bool | None] = dict.fromkeys(COLUMNS)
    linkers: dict[str, tuple[str, ...]] = {}

    def try_(column: str, found: Iterable[Covered]) -> None:
        those = list(found)
        cells[column] = bool(those)
        linkers[column] = tuple(sorted({name for one in those for name in one.linkers}))

    if row.unsupported:
        try_(INSIDE, (one for one in covered if one.how == REFUSED))
        return Row(reloc=row.name, cells=cells, linkers=linkers)
    fits = [one for one in covered if one.how in (LINKED, PLT)]
    try_(INSIDE, (one for one in fits if one.where in (NO_LIMIT, INSIDE, LOWER, UPPER)))
    for end in ends_of(row):
        if end != INSIDE:
            try_(end, (one for one in covered if one.where == end and one.how in _HOW[end]))
    if takes_plt(arch, row):
        try_(PLT, (one for one in fits if one.how == PLT))
    if arch.run is not None and in_instructions(arch, row) and row.name not in NOT_EXECUTED:
        try_(EXECUTED, (one for one in fits if one.executed))
    return Row(reloc=row.name, cells=cells, linkers=linkers)


def in_instructions(arch: Arch, row: Reloc) -> bool:
    """Return whether a row fills a field of instructions, and not data alone.

    Where branches hold whole words any word may be an instruction's; elsewhere none is.
    """
    if row.unsupported or row.uleb or not row.parts:
        return False
    if not all(part.whole for part in row.parts):
        return not row.accumulates
    rows, branches = arch.link.relocations, arch.link.branches
    fills = [
        fill.relocation for one in branches if one.probe is not None for fill in one.probe.fills
    ]
    return any(part.whole for number in fills for part in rows[number].parts)


def lines(arch: Arch, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the matrix as text: x tried, - no such thing, HOLE; behind x the linkers' letters."""
    width = max(len(row.reloc) for row in rows)
    yield f"{arch.name:<{width}}  {'  '.join(f'{name:>5}' for name in SHORT)}"
    asked: set[str] = set()
    for row in rows:
        cells = []
        for column in COLUMNS:
            agreed = row.linkers.get(column, ())
            asked |= set(agreed)
            mark = {True: "x", None: "-", False: "HOLE"}[row.cells[column]]
            cells.append(f"{mark + ''.join(LETTERS[name] for name in agreed):>5}")
        yield f"{row.reloc:<{width}}  {'  '.join(cells)}".rstrip()
    for row in rows:
        if row.reloc in NOT_EXECUTED:
            yield f"{row.reloc} is not executed: {NOT_EXECUTED[row.reloc]}"
    holes = sum(len(row.holes) for row in rows)
    also = ", ".join(f"{LETTERS[name]} {name}" for name in sorted(asked))
    agreed_too = f" (agreed: {also})" if asked else ""
    yield (
        f"{arch.name}: {len(rows)} relocations, "
        f"{holes} {'hole' if holes == 1 else 'holes'}{agreed_too}"
    )


def as_json(arch: Arch, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the matrix as rows of a document."""
    return [
        {
            "arch": arch.name,
            "reloc": row.reloc,
            **{short: row.cells[column] for short, column in zip(SHORT, COLUMNS, strict=True)},
            "linkers": [
                {"column": short, "names": list(row.linkers[column])}
                for short, column in zip(SHORT, COLUMNS, strict=True)
                if column in row.linkers
            ],
            "not_run": NOT_EXECUTED.get(row.reloc),
            "holes": list(row.holes),
        }
        for row in rows
    ]
