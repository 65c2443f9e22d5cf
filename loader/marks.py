# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module's own bytes show of its kernel: the evidence that rows of marks ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from archs.marks import SITES, Evidence, Mark, Site
from loader.elfview import STT_FUNC, ElfView

MANY, FEW = 64, 16  # functions, and sites of the tracer, that are looked at
BYTES = 24  # of an entry
BEFORE, BEHIND = 4, 8  # bytes from a site to its function
LEAST = 4  # bytes of a function that something can be told of


def marks_of(view: ElfView) -> Mapping[str, Mark]:
    """Return what a module shows: fact -> the first of its rows that is shown."""
    found: dict[str, Mark] = {}
    rows = view.arch.link.marks
    evidence = _evidence(view) if rows else None
    for row in rows:
        if evidence is not None and row.fact not in found and row.shown(evidence):
            found[row.fact] = row
    return found


def _evidence(view: ElfView) -> Evidence:
    symbols = view.symbols
    is_function = (symbols["info"] & 0xF == STT_FUNC) & (symbols["size"] >= LEAST)
    functions = symbols[np.flatnonzero(is_function)]
    code = list(_code(view, functions[:MANY]))
    names = view.symbol_names
    return Evidence(
        sections={section.name for section in view.sections[1:] if section.size},
        undefined=view.undefined.keys(),
        modinfo=view.modinfo,
        has_name=lambda start: (
            view.data.find(b"\0" + start, names.offset, names.offset + names.size) >= 0
        ),
        entries=[one[:BYTES] for one in code],
        ends=[one[-BYTES:] for one in code],
        sites=list(_sites(view, functions)),
        words=partial(_words, view),
    )


def _code(view: ElfView, functions: NDArray[np.void]) -> Iterator[bytes]:
    """Yield the code of functions."""
    for number, start, size in functions[["shndx", "value", "size"]].tolist():
        if 0 < number < len(view.sections) and view.sections[number].executable:
            yield bytes(view.contents(view.sections[number])[start : start + size])


def _words(view: ElfView, name: str) -> tuple[int, frozenset[int]]:
    """Return the bytes of the first section of a name, and the offsets that relocations name."""
    section = view.section(name)
    if section is None:
        return 0, frozenset()
    tables = [table for table in view.tables if table.target.index == section.index]
    return section.size, frozenset(o for t in tables for o in t.records["offset"].tolist())


def _sites(view: ElfView, functions: NDArray[np.void]) -> Iterator[Site]:
    """Yield some of the tracer's sites: those with a function right beside them.

    The table has a section for each section of code.
    """
    tables = [table.records for table in view.tables if table.target.name == SITES]
    for symbol, addend in [
        pair for one in tables for pair in one[["symbol", "addend"]][:FEW].tolist()
    ][:FEW]:
        number = int(view.symbols["shndx"][symbol])
        if not 0 < number < len(view.sections):
            continue
        at = int(view.symbols["value"][symbol]) + addend
        starts = functions["value"][functions["shndx"] == number].astype(np.int64)
        near = starts[(starts >= at - BEFORE) & (starts <= at + BEHIND)]
        if near.size:
            start = int(near[np.abs(near - at).argmin()])
            code = bytes(view.contents(view.sections[number])[start : start + BYTES])
            yield Site(start - at, code)
