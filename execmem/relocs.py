# SPDX-License-Identifier: GPL-2.0-or-later
"""What `execmem relocs` shows: each relocation with its numbers and the code around it.

A relocation names the field, not the instruction. Where instructions have any length, the
one that holds the field is found by disassembling its function from the start; elsewhere
the place is where it begins.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from allocator.types import ADDRESS_MASK, Hex, Interval
from emulator.disassembly import Disassembler
from loader.listing import Listing, Relocation, Selection

if TYPE_CHECKING:
    from rich.console import Console

LINE = 80


class Code:
    """The instructions that relocations of one module change, before and after."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        arch = listing.view.arch
        # Without the level run nobody knows what instructions look like: words are shown.
        self._disassembler = None if arch.run is None else Disassembler(arch)
        self._sweeps: dict[tuple[int, int], list[int]] = {}

    def around(self, relocation: Relocation) -> Interval | None:
        """Return the offsets of the instructions that hold a relocation's words, if any do."""
        if self._disassembler is None:
            return None
        if not relocation.section.executable or not relocation.before:
            return None
        offset, end = relocation.offset, relocation.offset + len(relocation.before)
        if len(self._listing.view.arch.loads.trap) > 1:
            parts = relocation.row.parts if relocation.row else ()
            if any(s.bits == 8 * part.size for part in parts for s in part.slices):
                return None  # a pointer between functions: no instruction is one whole field
            bounds = self._bounds(relocation, Interval(offset, end))
        else:
            contents = self._listing.view.contents(relocation.section)
            function = relocation.function or Interval(0, len(contents))
            key = relocation.section.index, function.start
            bounds = self._sweeps.get(key) or self._bounds(relocation, function)
            self._sweeps[key] = bounds
        first, last = bisect_right(bounds, offset) - 1, bisect_left(bounds, end)
        return Interval(bounds[first], bounds[last]) if last < len(bounds) else None

    def _bounds(self, relocation: Relocation, span: Interval) -> list[int]:
        """Return where instructions start and the last one ends, up to the first invalid one."""
        code = bytes(self._listing.view.contents(relocation.section)[span.start : span.end])
        return [span.start, *(at + size for at, size, _ in self._all(code, span.start))]

    def texts(self, relocation: Relocation) -> tuple[tuple[bytes, str], tuple[bytes, str]]:
        """Return bytes and text before and after: instructions, or words in hex."""
        around = self.around(relocation)
        if around is None:
            before, after = relocation.before, relocation.after
            return (before, _words(relocation, before)), (after, _words(relocation, after))
        index, span = relocation.section.index, slice(around.start, around.end)
        address = self._listing.addresses[index] + around.start
        before = bytes(self._listing.view.contents(relocation.section)[span])
        after = bytes(self._listing.linked.sections[index][span])
        return (before, self._text(before, address)), (after, self._text(after, address))

    def _text(self, code: bytes, address: int) -> str:
        return "; ".join(text for _, _, text in self._all(code, address))

    def _all(self, code: bytes, address: int) -> list[tuple[int, int, str]]:
        return [] if self._disassembler is None else self._disassembler.all(code, address)


def _words(relocation: Relocation, code: bytes) -> str:
    """Return the words of a relocation in data."""
    parts = relocation.row.parts if relocation.row else ()
    return " ".join(f"{part.load(code):#0{2 * part.size + 2}x}" for part in parts) or code.hex(" ")


def as_json(code: Code, selection: Selection, limit: int | None) -> dict[str, Any]:
    """Return the selected relocations, at most `limit` of them, and how many there are."""
    return {
        "relocations": [_record(code, r) for r in islice(selection, limit)],
        "matching": len(selection),
        "total": len(selection.listing.select()),
        "counts": dict(selection.counts),
    }


def _record(code: Code, relocation: Relocation) -> dict[str, Any]:
    (_, before), (_, after) = code.texts(relocation)
    via = relocation.via
    return {
        "section": relocation.section.name,
        "offset": relocation.offset,
        "containing": relocation.containing,
        "place": Hex(relocation.place),
        "type": relocation.type,
        "formula": relocation.formula,
        "computation": relocation.computation,
        "symbol": relocation.symbol,
        "symbol_value": _hex(relocation.value),
        "addend": _hex(relocation.addend),
        "target": _hex(relocation.target),
        "value": _hex(_result(relocation)),
        "before": relocation.before.hex(),
        "after": relocation.after.hex(),
        "before_text": before,
        "after_text": after,
        "via": None
        if via is None
        else {"section": via.section, "offset": via.offset, "address": Hex(via.address)},
        "reason": relocation.reason,
    }


def _hex(value: int | None) -> Hex | None:
    return None if value is None else Hex(value)


def _result(relocation: Relocation) -> int | None:
    """Return X: an address where the formula gives one, else with its sign."""
    row, x = relocation.row, relocation.x
    return x if x is None or row is None or not row.op.shows_address else x & ADDRESS_MASK


def show(out: Console, code: Code, selection: Selection, limit: int | None) -> None:
    """Show the selected relocations, at most `limit` of them, and how many there are."""
    shown = 0
    for relocation in islice(selection, limit):
        shown += 1
        for line in _lines(code, relocation):
            out.print(line)
    if shown:
        out.print()
    total = len(selection.listing.select())
    out.print(f"{shown} shown of {len(selection)} that match, {total} in the module")
    width = max(map(len, selection.counts), default=0)
    for name, count in selection.counts.items():
        out.print(f"  {name:{width}} {count:>7}")


def _lines(code: Code, relocation: Relocation) -> Iterator[str]:
    inside = f" in {relocation.containing}" if relocation.containing else ""
    yield f"{relocation.section.name}+{relocation.offset:#x}{inside}"
    addend = f"{relocation.addend:+#x}" if relocation.addend else ""
    yield f"  {relocation.type} against {relocation.symbol}{addend}"
    if relocation.reason:
        yield f"  not supported: {relocation.reason}"
        return
    yield from _computation(relocation)
    for title, (raw, text) in zip(("before", "after "), code.texts(relocation), strict=True):
        if raw:
            yield f"  {title} {raw.hex()}  {text}"
    if relocation.via is not None:
        yield f"  through {relocation.via} at {relocation.via.address:#x}"


def _computation(relocation: Relocation) -> Iterator[str]:
    """Yield the formula, its numbers and its result, on one line where that is not too long."""
    row, x = relocation.row, _result(relocation)
    if row is None or x is None:
        return
    result = f"{x:#x}" if row.op.shows_address else f"{x:+#x}"
    formula = f"  {relocation.formula} ="
    if not relocation.computation:
        yield f"{formula} {result}"
        return
    numbers = f" {relocation.computation} = {result}"
    if len(formula) + len(numbers) <= LINE:
        yield formula + numbers
    else:
        yield formula
        yield f"   {numbers}"
