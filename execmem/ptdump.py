# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables on the command line: as the kernel prints its own, and what differs in two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from allocator.errors import ExecmemError
from allocator.types import Hex
from execmem import notices, report
from execmem.streams import say, trouble
from machine.ptdump import Line, PageTables, differing, is_dump

ALL, CHANGES = "all", "changes"


def read(path: str) -> list[str]:
    """Return the lines of a file that --ptdump wrote, or a kernel; ExecmemError for anything else."""
    try:
        lines = Path(path).read_text("utf-8", "replace").splitlines()
    except OSError as error:
        raise ExecmemError(f"--since: {trouble(error)}") from None
    if not is_dump(lines):
        raise ExecmemError(f"--since {path}: no line of page tables, 0xSTART-0xEND ... in it")
    return lines


def show(
    tables: PageTables, before: Sequence[str] | None, head: dict[str, Any], *, as_json: bool
) -> None:
    """Print page tables, or what differs from others.

    Parameters
    ----------
    before
        Lines of the others; None: all are printed.
    head
        What the JSON document says first.
    """
    for note in tables.notes:
        notices.assume(note)
    if not as_json:
        for line in chosen(tables.lines(), before):
            say(line)
        return
    under, lines = "", []
    for each in tables:
        if isinstance(each, Line):
            lines.append(_json(each, under))
        elif each.startswith("---["):
            under = each[5:-5]
    changes = None if before is None else list(differing(before, tables.lines()))
    report.print_json(head | {"lines": lines, "changes": changes})


def chosen(lines: Iterable[str], before: Sequence[str] | None) -> Iterator[str]:
    """Return lines, or what differs from those before."""
    return iter(lines) if before is None else differing(before, lines)


def _json(line: Line, under: str) -> dict[str, Any]:
    return {
        "start": Hex(line.start),
        "end": Hex(line.end),
        "level": line.level,
        "page": line.page,
        "physical": None if line.physical is None else Hex(line.physical),
        "flags": line.flags,
        "under": under,
    }
