# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes tests/cases/rows: a case for each relocation of each architecture, from the psABI's rules.

Numbers and bytes come from `tests/archs/facts/NAME.py` alone, which has them from the documents;
nothing is asked of the rows of the product but their names, and of those that it refuses why.

    python -m tests.support.rows            # after the rules have changed
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

import archs
from tests.archs.facts import Link, written
from tests.support.formats import MASK64, Rule, signed
from tests.support.scalar import fits

FOLDER = Path(__file__).parents[1] / "cases" / "rows"
FAR = 0x1234_5670  # where a symbol is that nothing depends on
_SAMPLES = (0x1234_5678, 0x12_3458, 0x1_2348, 0x1238, 0x128, 0x18, 0x10, 4)
_WIDE = 0x1234_5678_9ABC_DE80
_SLOT = 8


@attrs.frozen
class Place:
    """One link: its title, directives, and what must hold."""

    title: str
    lines: tuple[str, ...]

    def text(self) -> str:
        """Return it as it stands in a file."""
        return "\n".join((f"place {self.title}", *self.lines)) + "\n"


@attrs.frozen(kw_only=True)
class Subject:
    """A row as the documents have it, and the code that it is tried in.

    Parameters
    ----------
    code
        Bytes around the place, `at` of them in front of it.
    """

    arch: archs.Arch
    link: Link
    number: int
    name: str
    rule: Rule
    code: bytes
    at: int
    addend: int

    @property
    def base(self) -> int:
        """Address of the code."""
        return self.link.base + 0x1230

    @property
    def place(self) -> int:
        """P."""
        return self.base + self.at

    @property
    def section(self) -> str:
        """The section that holds it."""
        return ".text" if self.is_code or self.plt else ".data"

    @property
    def is_code(self) -> bool:
        """Whether the documents have an instruction for it."""
        return self.code != b"\xff" * len(self.code) and self.code != bytes(len(self.code))

    @property
    def spot(self) -> str:
        """The place, as directives name it."""
        return f"f+{self.at}" if self.at else "f"

    @property
    def step(self) -> int:
        """What X moves by."""
        paged = self.rule.formula(0x1001, 0) == 0x1000
        return max(self.rule.align, 0x1000 if paged else 1)

    def after(self, x: int) -> str:
        """Return the bytes of the code once X stands in it."""
        code = bytearray(self.code)
        end = self.at + self.rule.size
        code[self.at : end] = self.rule.store(bytes(code[self.at : end]), x)
        return code.hex(" ")

    def holds(self, x: int) -> str:
        """Return the directive that the code holds X."""
        return f'expect bytes(f, {len(self.code)}) = "{self.after(x)}"'

    def refused(self, x: int) -> str:
        """Return the directive that X is refused."""
        assert not fits(self.arch.machine, self.number, x)
        why = "out of range" if x % self.rule.align == 0 else f"is no multiple of {self.rule.align}"
        return f"refuse {self.name} at {self.spot} {why}"

    def ends(self) -> Iterator[tuple[str, int]]:
        """Yield X inside, at both ends, past them, and off the grid, as far as there are any."""
        rule, step = self.rule, self.step
        if rule.lowest is None or rule.highest is None:
            wide = _WIDE & -step
            yield "a positive number", wide
            yield "a negative number", -wide
            yield "the largest", (1 << 63) - step
            yield "the least", -(1 << 63)
            yield "one step below zero", -step
        else:
            found = [x & -step for x in _SAMPLES if rule.lowest <= x & -step <= rule.highest]
            yield "inside", found[0]
            if rule.lowest < 0:
                less = [-x & -step for x in _SAMPLES if rule.lowest <= -x & -step]
                yield "inside and negative", less[0]
            yield "the lower end", rule.lowest
            yield "the upper end", rule.highest
            yield "below it", rule.lowest - step
            yield "above it", rule.highest + step
        if rule.align > 1:
            yield "off its grid", 16 * rule.align + rule.align // 2

    def solve(self, x: int, computed: Callable[[int], int]) -> int:
        """Return the address that makes X what it should be; some multiple of P's parts away."""
        p, a = self.place, self.addend
        grids = (0, p, p & -8, p & -0x1000, (p + 4) & -0x1000_0000)
        wanted = x & MASK64
        for grid in grids:
            for extra in (0, a):
                found = (x + grid - extra) & MASK64
                if computed(found) & MASK64 == wanted:
                    return found
        raise AssertionError(f"{self.name}: nothing gives {x:#x}")

    def target(self, x: int) -> int:
        """Return S for X."""
        return self.solve(
            x, lambda s: signed(self.rule.formula((s + self.addend) & MASK64, self.place))
        )

    @property
    def plt(self) -> bool:
        """Whether the module loader has an entry for it where it does not reach."""
        plt = self.arch.plt
        return plt is not None and self.number in plt.branches


def subject(arch: archs.Arch, number: int) -> Subject:
    """Return a row with the code that the facts have for it, or a word of its size."""
    link = written(arch.name).link
    assert link is not None
    rule, row = link.rules[number], arch.link.relocations[number]
    for one in link.decoded:
        if number in one.numbers:
            start = 4 * one.numbers.index(number)
            code = bytes.fromhex(one.code)
            if len(one.numbers) > 1:
                code = code[start : start + rule.size]
            return Subject(
                arch=arch,
                link=link,
                number=number,
                name=row.name,
                rule=rule,
                code=code,
                at=one.at,
                addend=one.addend,
            )
    known = {kind: code for kind, code, _ in link.beyond_gas}
    code = bytes.fromhex(known.get(number, "00" * rule.size))
    summed = {*link.added, *link.subtracted, *link.set_to}
    if not any(code):  # what stands there does not count, but where the kernel wants it to be zero
        clean = link.clean_target or number in summed
        code = (b"\0" if clean else b"\xff") * rule.size
    plt = arch.plt is not None and number in arch.plt.branches
    addend = 0 if plt or number in summed or number in link.got else rule.align * 8
    return Subject(
        arch=arch,
        link=link,
        number=number,
        name=row.name,
        rule=rule,
        code=code,
        at=0,
        addend=addend,
    )


# The text of a case ------------------------------------------------------------------------------


def head(arch: archs.Arch) -> str:
    """Return how a case begins."""
    return (
        "execmem case 1\n"
        f"# Written by python -m tests.support.rows from tests/archs/facts/{arch.name}.py.\n"
        f"arch {arch.name}\n"
    )


def written_out(
    one: Subject, *records: str, code: str = "", more: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the lines that write an object out, and where its code lies."""
    flags = "ax" if one.section == ".text" else "aw"
    if not records:
        records = (f"reloc {one.section}+{one.at} {one.name} far{one.addend:+d}",)
    return (
        f"section {one.section} {flags} {code or one.code.hex()}",
        f"label f = {one.section}+0" + (" func" if one.is_code else " object"),
        *more,
        *records,
        f"at {one.section} {one.base:#x}",
    )


def case(one: Subject, places: Sequence[Place], *shared: str) -> str:
    """Return a case: what all placements share, and these."""
    first = head(one.arch) + "".join(f"{line}\n" for line in shared)
    return "\n".join((first, *(place.text() for place in places)))


def plain(one: Subject) -> str:
    """Return the case of a row whose X is a symbol's, less something about the place."""
    places = []
    for title, x in one.ends():
        symbol = f"symbol far = {one.target(x):#x}"
        if fits(one.arch.machine, one.number, x):
            places.append(Place(title, (symbol, one.holds(x))))
            continue
        detour = one.plt and x % one.rule.align == 0
        if detour:
            leads = (
                "expect target(f) = plt(far)"
                if one.is_code
                else "expect *{4}f = (plt(far) - f)[31:0]"
            )
            places.append(Place(f"{title}, through the PLT", (symbol, leads)))
        without = ("stubs none",) if one.plt else ()
        places.append(Place(title, (symbol, *without, one.refused(x))))
    return case(one, places, *written_out(one))


def sized(one: Subject) -> str:
    """Return the case of a row whose X is a symbol's size."""
    places = []
    for title, x in one.ends():
        size, addend = (x - 8, 8) if x >= 8 else (max(x, 0), min(x, 0))
        text = written_out(
            one,
            f"reloc {one.section}+{one.at} {one.name} thing{addend:+d}",
            more=(f"label thing = {FAR:#x} object size={size:#x}",),
        )
        held = one.holds(x) if fits(one.arch.machine, one.number, x) else one.refused(x)
        places.append(Place(title, (*text, held)))
    return case(one, places)


def summed(one: Subject) -> str:
    """Return the case of records that add up: the last one stores the sum."""
    link, kinds = one.link, one.arch.link.relocations
    at = f"{one.section}+0"
    if one.number in link.subtracted or one.number in link.uleb128:
        firsts = {*link.set_to, *link.added}
        if one.number in link.uleb128:
            firsts &= {*link.uleb128}
        else:
            firsts -= {*link.uleb128}
        code = one.rule.store(bytes(one.rule.size), -1) if one.number not in link.uleb128 else b""
        matching = [
            n
            for n in sorted(firsts)
            if one.number in link.uleb128
            or link.rules[n].store(bytes(link.rules[n].size), -1) == code
        ]
        first = kinds[matching[0]].name
        last = next(n for n in sorted(link.subtracted) if n in link.uleb128 or n == one.number)
        if one.number in link.uleb128:
            last = next(n for n in sorted(link.subtracted) if n in link.uleb128)
        records = (f"reloc {at} {first} high+0", f"reloc {at} {kinds[last].name} low+0")
        difference = True
    else:
        records, difference = (f"reloc {at} {one.name} far+0",), False
    if one.number in link.uleb128:
        return _uleb(one, records, kinds[last].name)
    places = []
    for title, x in one.ends():
        if difference:
            low = FAR
            symbols = (f"symbol low = {low:#x}", f"symbol high = {(low + x) & MASK64:#x}")
        else:
            symbols = (f"symbol far = {x & MASK64:#x}",)
        held = one.holds(x) if fits(one.arch.machine, one.number, x) else one.refused(x)
        places.append(Place(title, (*symbols, held)))
    return case(one, places, *written_out(one, *records))


def _uleb(one: Subject, records: Sequence[str], stored: str) -> str:
    """Return the case of a number in two bytes, of seven bits each: it stays as long as it was."""
    places = []
    for title, x in (
        ("nothing", 0),
        ("one byte's", 0x7F),
        ("inside", 0x80),
        ("the largest", 0x3FFF),
    ):
        symbols = (f"symbol low = {FAR:#x}", f"symbol high = {FAR + x:#x}")
        after = bytes((x & 0x7F | 0x80, x >> 7))
        places.append(Place(title, (*symbols, f'expect bytes(f, 2) = "{after.hex(" ")}"')))
    for title, x in (("too large", 0x4000), ("negative", -1)):
        symbols = (f"symbol low = {FAR:#x}", f"symbol high = {FAR + x:#x}")
        places.append(Place(title, (*symbols, f"refuse {stored} at f")))
    return case(one, places, *written_out(one, *records, code="8000"))


def paired(one: Subject) -> str:
    """Return the case of a low half whose X is that of the record at its symbol."""
    link, kinds = one.link, one.arch.link.relocations
    high = next(n for n in sorted(link.high) if n not in link.got)
    decoded = next(c for c in link.decoded if c.numbers == (high, one.number))
    code = bytes.fromhex(decoded.code)
    rule = link.rules[high]
    records = (
        f"reloc .text+0 {kinds[high].name} far+0",
        f"reloc .text+4 {one.name} f+0",
    )
    places = []
    for title, x in (
        ("nothing", 0),
        ("the largest low half", 0x7FF),
        ("the least low half", 0x800),
        ("a negative low half", 0x12345FFF),
        ("a positive low half", 0x12345678),
        ("a negative distance", -0x12345678),
        ("the upper end", rule.highest),
        ("the lower end", rule.lowest),
    ):
        assert x is not None
        low = one.rule.store(code[4:8], x)
        after = (rule.store(code[:4], x) + low).hex(" ")
        places.append(
            Place(
                title,
                (f"symbol far = {one.base + x & MASK64:#x}", f'expect bytes(f, 8) = "{after}"'),
            )
        )
    return case(one, places, *written_out(one, *records, code=code.hex()))


# Through a global offset table ----------------------------------------------------------------------


def through_got(one: Subject) -> str:
    """Return the case of a row that uses a table: `.got` is put where X is what it should be."""
    through = one.link.got[one.number]

    def computed(table: int) -> int:
        s = through(FAR, one.addend, table, lambda _: table)
        return signed(one.rule.formula(s & MASK64, one.place))

    moves = computed(one.base) != computed(one.base + 0x10_0000)
    if not moves:
        return case(one, _by_addend(one) if _adds(one) else _by_slots(one))
    needs = through(FAR, one.addend, 1, lambda _: 0) == 0 or _has_slot(one)
    slot = ("expect got(far) = .got",) if needs and not one.addend else ()
    places = []
    for title, x in one.ends():
        try:
            table = _table_for(one, x, computed)
        except AssertionError:
            continue
        if abs(table - one.base) < len(one.code):
            continue  # the table would lie where the code does
        lines = (f"at .got {table:#x}", f"symbol far = {FAR:#x}")
        if fits(one.arch.machine, one.number, x):
            places.append(Place(title, (*lines, one.holds(x), *slot)))
        else:
            places.append(Place(title, (*lines, one.refused(x))))
    return case(one, places, *written_out(one))


def _has_slot(one: Subject) -> bool:
    asked: list[int] = []

    def slot_of(value: int) -> int:
        asked.append(value)
        return 0

    one.link.got[one.number](FAR, one.addend, one.base, slot_of)
    return bool(asked)


def _adds(one: Subject) -> bool:
    """Return whether A counts apart from what the slot holds."""
    through = one.link.got[one.number]
    return through(FAR, 0, one.base, lambda _: one.base) != through(
        FAR, 8, one.base, lambda _: one.base
    )


def _table_for(one: Subject, x: int, computed: Callable[[int], int]) -> int:
    try:
        return one.solve(x, computed)
    except AssertionError:
        table = (FAR + one.addend - x) & MASK64  # a distance from the table
        if computed(table) & MASK64 == x & MASK64:
            return table
        raise


def _by_addend(one: Subject) -> list[Place]:
    """Return links with a slot's offset plus A: the first slot's is 0."""
    places = []
    for title, x in one.ends():
        text = written_out(one, f"reloc {one.section}+{one.at} {one.name} far{x:+d}")
        held = one.holds(x) if fits(one.arch.machine, one.number, x) else one.refused(x)
        lines = (f"at .got {one.base + 0x1000:#x}", f"symbol far = {FAR:#x}", held)
        places.append(Place(title, (*text, *lines)))
    return places


def _by_slots(one: Subject) -> list[Place]:
    """Return links with a slot's offset alone, which is the last one's of so many."""
    places = []
    rule = one.rule
    through = one.link.got[one.number]
    table = one.base + 0x10_0000 & -0x1000
    most = 1 << 14

    def x_of(slots: int, at: int) -> int:
        return signed(through(FAR, 0, at, lambda _: at + _SLOT * (slots - 1)))

    paged = x_of(1, table + 0xFF8) != 0
    start = table + 0xFF8 if paged else table
    wanted = [("inside", 3, start), ("the first slot", 1, table)]
    if rule.highest is not None and rule.highest < most * _SLOT:
        top = (rule.highest - x_of(1, start)) // _SLOT + 1
        wanted += [("the upper end", top, start), ("above it", top + 1, start)]
    if paged and rule.align > 4:
        wanted.append(("off its grid", 1, table + 4))
    for title, slots, at in wanted:
        x = x_of(slots, at)
        record = f"reloc {one.section}+0 {one.name} far+0 times {slots}"
        spot = f"f+{rule.size * (slots - 1)}"
        lines = [f"at .got {at:#x}", f"symbol far = {FAR:#x}"]
        if fits(one.arch.machine, one.number, x):
            after = rule.store(one.code, x).hex(" ")
            lines.append(f'expect bytes({spot}, {rule.size}) = "{after}"')
            lines.append(f"expect *{{8}}(.got + {_SLOT * (slots - 1)}) = far + {8 * (slots - 1)}")
        else:
            lines.append(one.refused(x).replace(" at f ", f" at {spot} "))
        text = written_out(one, record, code=f"{one.code.hex()}*{slots}")
        places.append(Place(title, (*text, *lines)))
    return places


# All of them -----------------------------------------------------------------------------------------


def refused(arch: archs.Arch) -> str:
    """Return the case of everything that is refused by name."""
    link = written(arch.name).link
    assert link is not None
    rows = [row for row in arch.link.relocations.values() if row.unsupported]
    records, refusals = [], []
    for n, row in enumerate(rows):
        records.append(f"reloc .data+{8 * n} {row.name} far+0")
        refusals.append(f"refuse {row.name} at f+{8 * n} {row.unsupported}")
    lines = (
        "execmem case 1",
        "# Written by python -m tests.support.rows: types that no module loader takes, and why.",
        f"arch {arch.name}",
        f"section .data aw 00*{8 * len(rows)}",
        "label f = .data+0 object",
        *records,
        "linkers none",
        f"symbol far = {FAR:#x}",
        *refusals,
    )
    return "\n".join(lines) + "\n"


def nothing(arch: archs.Arch, numbers: Sequence[int]) -> str:
    """Return the case of types that do nothing: the word stays as it was."""
    lines = [
        "execmem case 1",
        "# Written by python -m tests.support.rows: types that leave the place as it is.",
        f"arch {arch.name}",
        f"section .data aw 12345678*{len(numbers)}",
        "label f = .data+0 object",
        *(f"reloc .data+{4 * n} {number} far+0" for n, number in enumerate(numbers)),
        f"symbol far = {FAR:#x}",
        *(f'expect bytes(f+{4 * n}, 4) = "12 34 56 78"' for n in range(len(numbers))),
    ]
    return "\n".join(lines) + "\n"


def cases(arch: archs.Arch) -> Mapping[str, str]:
    """Return the files of an architecture, by their names; none for one without facts."""
    link = written(arch.name).link
    if link is None:
        return {}
    found: dict[str, str] = {"refused.case": refused(arch)}
    for number in sorted(link.nothing):
        name = arch.link.relocations[number].name
        twice = f"{name}-{number}" if f"{name}.case" in found else name
        found[f"{twice}.case"] = nothing(arch, [number])
    for number in sorted(link.rules):
        one = subject(arch, number)
        if number in link.paired:
            text = paired(one)
        elif number in link.sized:
            text = sized(one)
        elif {number} & {*link.added, *link.subtracted, *link.set_to}:
            text = summed(one)
        elif number in link.got:
            text = through_got(one)
        else:
            text = plain(one)
        found[f"{one.name}.case"] = text
    return found


def main() -> None:
    """Write every file, and remove those that nothing writes any more."""
    for arch in archs.ALL:
        folder = FOLDER / arch.name
        files = cases(arch)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.case"):
            if old.name not in files:
                old.unlink()
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
        sys.stdout.write(f"{arch.name}: {len(files)} files\n")


if __name__ == "__main__":
    main()
