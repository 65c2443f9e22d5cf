# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture for each lesson, of the numbers that it found; how it looks is not its job.

A picture is bars on one scale, or rows of cells; both have words besides colours.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from allocator.types import size_text
from archs import archs


class Tone(enum.Enum):
    """What a bar or cell means, besides what it says."""

    PLAIN = "plain"
    GOOD = "good"
    BAD = "bad"
    REST = "rest"


@attrs.frozen
class PictureBar:
    """A length with its label, what stands behind it, and what it means."""

    label: str
    value: float
    note: str
    tone: Tone = Tone.PLAIN


@attrs.frozen
class Bars:
    """Lengths on one scale.

    Parameters
    ----------
    what
        What the lengths are.
    logarithmic
        Whether each step of the scale is a factor.
    limit
        A line across all of them: where, and what it is.
    """

    what: str
    bars: tuple[PictureBar, ...]
    logarithmic: bool = False
    limit: tuple[float, str] | None = None


@attrs.frozen
class Cell:
    """A few words and what they mean."""

    text: str
    tone: Tone = Tone.PLAIN


@attrs.frozen
class Lanes:
    """Rows of cells, from left to right; `heads` are the columns' names."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


Picture: TypeAlias = Bars | Lanes
Facts: TypeAlias = Mapping[str, Any]


def _title(name: str) -> str:
    titles = {arch.name: arch.title for arch in archs()}
    return titles.get(name, name)


def _good(condition: object) -> Tone:
    return Tone.GOOD if condition else Tone.BAD


def _tour(facts: Facts) -> Picture:
    bars = []
    for arch in archs():
        found = facts.get(arch.name)
        if found is None:
            continue
        away = abs(int(found["text"]) - arch.loads.address_map().image.start)
        bars.append(PictureBar(f"{arch.title}: text lies", away, size_text(away)))
        if (call := arch.link.call) is not None:
            note = call.text()
            reach = max(-call.reach.lo, call.reach.hi)
            bars.append(PictureBar("a call gets", reach, note, Tone.GOOD))
    return Bars("bytes from the kernel image", tuple(bars), logarithmic=True)


def _reach(facts: Facts) -> Picture:
    bars = []
    for name, each in facts.items():
        last = int(each["fits"], 16)
        bars.append(PictureBar(_title(name), last, f"{each['fits']}; then {each['beyond']}"))
    return Bars("bytes that a call gets up", tuple(bars), logarithmic=True)


def _veneer(facts: Facts) -> Picture:
    bars = tuple(
        PictureBar(
            f"{distance} away",
            int(x, 16),
            "through a PLT entry" if entries != "0" else "directly",
            Tone.REST if entries != "0" else Tone.GOOD,
        )
        for distance, x, _, entries in facts["rows"]
    )
    return Bars("bytes from the call", bars, logarithmic=True, limit=(1 << 27, "128 MiB"))


def _adrp(facts: Facts) -> Picture:
    rows = tuple(
        (f"copied to {moved}", (Cell(f"at {inside} of a page"), Cell(got, _good(told == "right")),
                                Cell(told, _good(told == "right"))))
        for moved, inside, _, got, told in facts["rows"]
    )  # fmt: skip
    return Lanes(("where it begins", "it leads to", ""), rows)


def _hi20(facts: Facts) -> Picture:
    rows = tuple(
        (wanted, (Cell(right, Tone.GOOD), Cell(wrong, _good(not told)), Cell(told or "the same")))
        for wanted, _, right, wrong, told in facts["rows"]
    )
    return Lanes(("with 0x800", "without", "difference"), rows)


def _model(facts: Facts) -> Picture:
    rows = tuple(
        (name, (Cell(address), Cell(f"{refused} refused", _good(refused == "0")), Cell(types)))
        for name, address, refused, types in facts["rows"]
    )
    return Lanes(("data at", "relocations", "by type"), rows)


def _vmalloc_else(facts: Facts) -> Picture:
    bars = tuple(
        PictureBar(name, int(each["away"]), each["outcome"], _good(not each["refused"]))
        for name, each in facts.items()
    )
    return Bars("bytes from the kernel image", bars, logarithmic=True)


def _initplt(facts: Facts) -> Picture:
    cells = (
        Cell(f"returns {int(facts['before'])}", Tone.GOOD),
        Cell("trap", Tone.BAD),
    )
    return Lanes(("while init text is there", "after it was freed"), (("an entry in init", cells),))


def _after_init(facts: Facts) -> Picture:
    rows = []
    for name, each in facts.items():
        before, after = each["before"], each["after"]
        cells = (
            Cell(f"{before[0]}: {before[1]}", Tone.GOOD),
            Cell(f"{after[0]}: {after[1]}", _good(after[1] == "faults")),
        )
        rows.append((_title(name), cells))
    return Lanes(("a store before init", "a store after init"), tuple(rows))


def _guard(facts: Facts) -> Picture:
    rows = tuple(
        (name, (Cell(each["plain"], Tone.REST), Cell(each["found"], Tone.GOOD)))
        for name, each in facts.items()
    )
    return Lanes(("without checks", "with checks"), rows)


def _flow(facts: Facts) -> Picture:
    rows = []
    for name, each in facts.items():
        arch, _, way = name.partition(" ")
        cells = [
            Cell(prot, Tone.GOOD if "X" in prot else Tone.REST) for prot in each["protections"]
        ]
        kept = each["late write"] != "stored"
        late = Cell("refused" if kept else "stored", _good(kept))
        rows.append((f"{_title(arch)}, {way}", (*cells, late)))
    return Lanes(("alloc", "write", "finish", "a late write"), tuple(rows))


def _auipc(facts: Facts) -> Picture:
    place = int(facts["place"])
    pages = (Cell(f"{place:#x}: 2 bytes"), Cell(f"{place + 2:#x}: 6 bytes"))
    return Lanes(("one page", "the next"), (("auipc t0 ; jr t0", pages),))


def _poke(facts: Facts) -> Picture:
    rows = []
    for name, each in facts.items():
        torn = ", ".join(each["pieces"]) if each["torn"] else "nothing torn"
        cells = (
            Cell(each["poked"], Tone.GOOD),
            Cell("write fault", Tone.BAD),
            Cell("the next one is lost", Tone.BAD),
            Cell(f"still {each['stale']}"[:18], Tone.BAD),
            Cell(torn, _good(not each["torn"])),
        )
        rows.append((_title(name), cells))
    heads = ("all steps", "no alias", "no flush", "no sync", "store by store")
    return Lanes(heads, tuple(rows))


def _holes(facts: Facts) -> Picture:
    bars = []
    for name, each in facts.items():
        bars.append(PictureBar(f"{name}: text", each["text"], f"{each['text']:,}", Tone.GOOD))
        note = f"{each['span']:,}, largest hole {each['largest']:,}"
        bars.append(PictureBar("from first to last", each["span"], note, Tone.REST))
    return Bars("bytes", tuple(bars), logarithmic=True)


def _rox(facts: Facts) -> Picture:
    rows = []
    for name, each in facts.items():
        cells = [
            Cell(f"{large} large" if large else f"{small} small", _good(large))
            for small, large in each["leaves"]
        ]
        rows.append((name, (*cells, Cell(f"{each['flushes']} flushes"))))
    return Lanes(("at first", "while it is written", "in the end", "of all CPUs"), tuple(rows))


def _nomodules(facts: Facts) -> Picture:
    rows = []
    heads: tuple[str, ...] = ()
    for name, each in facts.items():
        heads = tuple(each)
        cells = tuple(
            Cell(
                "reaches the image" if found["reaches"] else "far",
                Tone.GOOD if found["reaches"] else Tone.REST,
            )
            for found in each.values()
        )
        rows.append((_title(name), cells))
    return Lanes(heads, tuple(rows))


def _trees(facts: Facts) -> Picture:
    bars = tuple(
        PictureBar(name, sum(each["text"]), f"{small:,} small, {large} large", _good(large))
        for name, each in facts.items()
        for small, large in [each["text"]]
    )
    return Bars("leaves that map text", bars, logarithmic=True)


def _fit(facts: Facts) -> Picture:
    room = facts["room"]
    bars = tuple(
        PictureBar(
            name,
            each["total"],
            f"{size_text(each['total'])}, {each['fit']:,} fit",
            _good(each["total"] <= room),
        )
        for name, each in facts.items()
        if name != "room"
    )
    return Bars("bytes of all modules", bars, limit=(room, size_text(room)))


def _bug_sync(facts: Facts) -> Picture:
    rows = tuple(
        (
            f"{_title(name)}, {sync} sync",
            (
                Cell(each[sync]["before"]),
                Cell(each[sync]["patched"], _good(sync == "with")),
                Cell(each[sync]["freed"], _good(each[sync]["freed"].isdigit())),
            ),
        )
        for name, each in facts.items()
        for sync in ("with", "without")
    )
    return Lanes(("CPU 1 got", "gets, once patched", "and once freed"), rows)


def _bug_unsorted(facts: Facts) -> Picture:
    rows = tuple(
        (f"{order}: {phase}", tuple(Cell(each, _good(each.isdigit())) for each in got))
        for order, found in facts.items()
        if "phases" in found
        for phase, got in found["phases"].items()
    )
    return Lanes(("at the lower site", "at the upper site"), rows)


def _bug_wx(facts: Facts) -> Picture:
    designs = tuple(next(iter(facts.values())))
    rows = tuple(
        (
            _title(name),
            tuple(
                Cell("W and X" if found["outcome"] else "never both", _good(not found["outcome"]))
                for found in each.values()
            ),
        )
        for name, each in facts.items()
    )
    return Lanes(designs, rows)


def _bug_rox613(facts: Facts) -> Picture:
    rows = tuple(
        (
            name,
            (Cell(each["rewritten"]), Cell(each["result"], _good(each["result"].isdigit()))),
        )
        for name, each in facts.items()
    )
    return Lanes(("the caller is", "the call gives"), rows)


_PICTURES: Mapping[str, Callable[[Facts], Picture]] = {
    "tour": _tour,
    "reach": _reach,
    "veneer": _veneer,
    "adrp": _adrp,
    "hi20": _hi20,
    "model": _model,
    "vmalloc_else": _vmalloc_else,
    "initplt": _initplt,
    "after_init": _after_init,
    "guard": _guard,
    "flow": _flow,
    "auipc": _auipc,
    "poke": _poke,
    "bug-sync": _bug_sync,
    "bug-unsorted": _bug_unsorted,
    "holes": _holes,
    "rox": _rox,
    "bug-wx": _bug_wx,
    "bug-rox613": _bug_rox613,
    "nomodules": _nomodules,
    "trees": _trees,
    "fit": _fit,
}


def picture(
    name: str, facts: Facts, columns: Sequence[str] = (), rows: Sequence[Sequence[str]] = ()
) -> Picture:
    """Return a lesson's picture, of its facts; of a table, where a lesson has none of its own."""
    draw = _PICTURES.get(name)
    if draw is not None:
        return draw(facts)
    found = tuple((row[0], tuple(Cell(cell) for cell in row[1:])) for row in rows)
    return Lanes(tuple(columns[1:]), found)
