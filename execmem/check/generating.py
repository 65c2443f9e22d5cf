# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases at random: from a seed and a number, a draft with many of them.

What is random: relocations, addends, places, values, kinds of symbols, pairs and sums, how full
tables are, alignments and sizes. Rows say only where it gets interesting (the ends of a reach);
what is right is asked of others (`execmem.check.comparing`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

from allocator.types import ADDRESS_MASK, GIB, PAGE_SIZE, align_up
from archs import Arch
from archs.levels.link import Probe
from archs.op import OpKind, signed
from archs.reloc import Reach, Reloc
from execmem.check.draft import Area, Draft, Name, Piece, Record, Run
from execmem.check.placing import target_of

CASES = 48  # of one draft: what a link costs beside its linker is then little
SPAN = 0x1_0000  # bytes of address space that each section has for itself
ANYWHERE = Reach(-(1 << 63), 1 << 63)
ADDED = 4 * PAGE_SIZE  # bytes behind a section in which PLT and GOT may lie
LONGEST_PADDING = 24  # bytes between cases
TRIES = 20
SHUFFLED = 0.3  # how many drafts have their records in no order
FEW_ADDENDS = (0,) * 8 + (4, -4)
UNUSUAL = 0.04  # how many places hold what no assembler writes


def seeded(arch: Arch, seed: int, number: int) -> random.Random:
    """Return the source of chance of one draft, the same on every machine."""
    return random.Random(f"{arch.name} {seed} {number}")  # noqa: S311 # cases, not secrets


def count_of(cases: int) -> int:
    """Return how many drafts hold that many cases."""
    return -(-cases // CASES)


def draft(arch: Arch, seed: int, number: int, cases: int = CASES) -> Draft:
    """Return a draft with that many cases; the same arguments give the same."""
    chance = seeded(arch, seed, number)
    probes = [branch.probe for branch in arch.link.branches if branch.probe is not None]
    executable = arch.run is not None and arch.load is not None and bool(probes)
    flavours = {"mixed": 70}
    if executable:
        flavours["executed"] = 12
    if executable and arch.plt is not None:
        flavours["detours"] = 8
    if arch.got_section and arch.link.relocations.through_got:
        flavours["table"] = 10
    (flavour,) = chance.choices(list(flavours), list(flavours.values()))
    made = _Making(arch, chance, flavour)
    for case in range(cases):
        made.case(case)
    return made.done(f"seed {seed}, draft {number}: {flavour}")


@attrs.define
class _Section:
    """A section that grows."""

    name: str
    flags: str
    address: int
    align: int
    data: bytearray = attrs.field(factory=bytearray)


class _Making:
    """A draft that grows, case by case."""

    def __init__(self, arch: Arch, chance: random.Random, flavour: str) -> None:
        self._arch, self._chance, self._flavour = arch, chance, flavour
        self._rows = [
            row for row in dict.fromkeys(arch.link.relocations.values()) if not row.unsupported
        ]
        companions = {n for row in self._rows for n in row.unless}
        # An object with one of those has no limits for others: not every draft should be one.
        if companions and chance.random() < 0.5:
            self._rows = [row for row in self._rows if row.number not in companions]
        self._grid = len(arch.load.trap) if arch.load is not None else 4
        self._names: list[Name] = []
        self._pieces: list[Piece] = []
        self._records: list[Record] = []
        self._runs: list[Run] = []
        self._later: list[Callable[[], None]] = []
        self._sections = self._choose_sections()
        self._ways: dict[Callable[[int], bool], int] = self._choose_ways()

    def done(self, note: str) -> Draft:
        """Return what was made."""
        for later in self._later:
            later()
        for section in self._sections:  # an odd end
            if section.data and self._chance.random() < 0.3:
                section.data += self._bytes(self._chance.randrange(1, 8))
        areas = tuple(
            Area(name=s.name, flags=s.flags, address=s.address, data=bytes(s.data), align=s.align)
            for s in self._sections
        )
        records = list(self._records)
        if self._chance.random() < SHUFFLED:
            records = self._shuffled(records)
        return Draft(
            arch=self._arch.name,
            areas=areas,
            names=tuple(self._names),
            pieces=tuple(self._pieces),
            records=tuple(records),
            runs=tuple(run for run in self._runs if run.register or not self._holds(run.goal)),
            notes=(note,),
        )

    def _holds(self, goal: int) -> bool:
        """Return whether something stands at an address: a section, or what the loader adds to it."""
        return any(
            section.address <= goal < section.address + len(section.data)
            or 0 <= goal - align_up(section.address + len(section.data), PAGE_SIZE) < ADDED
            for section in self._sections
        )

    def _shuffled(self, records: list[Record]) -> list[Record]:
        """Return records in another order, those of sums among themselves in theirs."""
        groups: dict[object, list[Record]] = {}
        for n, record in enumerate(records):
            summed = self._row(record.type).accumulates
            key = (record.section, record.offset) if summed else n
            groups.setdefault(key, []).append(record)
        shuffled = list(groups.values())
        self._chance.shuffle(shuffled)
        return [record for group in shuffled for record in group]

    def _row(self, name: str) -> Reloc:
        return next(row for row in self._rows if row.name == name)

    # Where ---------------------------------------------------------------------------------------

    def _choose_sections(self) -> list[_Section]:
        chance = self._chance
        if self._flavour in ("executed", "detours"):
            count, spread = chance.randrange(1, 4), "near"
            room = self._arch.loads.address_map().vmalloc
            # At the start of a GiB, so that whoever counts in regions finds its own around.
            base = align_up(room.start + room.size // 2, GIB) + chance.randrange(64) * SPAN
        else:
            count = chance.choice((1, 2, 3, 4, 8))
            spread = chance.choice(("near", "near", "around", "anywhere"))
            base = self._anywhere()
        if self._flavour == "table":
            spread = "near"
        found: list[_Section] = []
        for number in range(count):
            data = number and chance.random() < 0.5
            kind, flags = (".data", chance.choice(("a", "aw", "ams"))) if data else (".text", "ax")
            at = base + number * SPAN
            if number and spread == "around":
                at = base + chance.randrange(-(1 << 31), 1 << 31)
            elif number and spread == "anywhere":
                at = self._anywhere()
            at &= ADDRESS_MASK
            at -= at % SPAN
            if (
                at > ADDRESS_MASK - 4 * SPAN
                or at < SPAN
                or any(abs(at - other.address) < 2 * SPAN + SPAN // 2 for other in found)
            ):
                at = (base + (number + 1) * 4 * SPAN) & ADDRESS_MASK
                at -= at % SPAN
                if any(abs(at - other.address) < SPAN for other in found):
                    continue
            align = chance.choice((1, 2, 4, 8, 16, 64)) if data else max(self._grid, 4)
            odd = chance.randrange(0x100)
            found.append(
                _Section(
                    f"{kind}.{number}" if number else kind, flags, at + odd // align * align, align
                )
            )
        return found

    def _anywhere(self) -> int:
        return self._chance.randrange(SPAN, (1 << 64) - 64 * SPAN) & -SPAN

    def _bytes(self, count: int) -> bytes:
        return self._chance.randbytes(count)

    def _room(self, case: int, section: _Section, code: bytes, grid: int, before: int = 0) -> int:
        """Return the offset of a case's bytes, which are added to a section.

        The byte `before` is what lies on the grid.
        """
        section.data += self._bytes(self._chance.choice((0, 0, 1, 3, 4, 8, LONGEST_PADDING)))
        while (section.address + len(section.data) + before) % grid:
            section.data += self._bytes(1)
        offset = len(section.data)
        section.data += code
        self._pieces.append(Piece(case=case, section=section.name, offset=offset, size=len(code)))
        return offset

    def _some_section(self) -> _Section:
        return self._chance.choice(self._sections)

    # What ----------------------------------------------------------------------------------------

    def _choose_ways(self) -> dict[Callable[[int], bool], int]:
        plain = [r for r in self._rows if not (r.op.high_half or r.accumulates or r.got)]
        self._plain = plain
        self._lows = [row for row in self._rows if row.op.high_half]
        self._highs = [row for row in self._rows if row.high and row.got is None]
        self._tables = [row for row in self._rows if row.got is not None]
        self._sums: dict[object, list[Reloc]] = {}
        for row in self._rows:
            if row.accumulates:
                self._sums.setdefault((row.uleb, row.parts), []).append(row)
        probes = [b.probe for b in self._arch.link.branches if b.probe is not None]
        numbers = {row.number for row in self._rows}
        self._probes = [p for p in probes if all(f.relocation in numbers for f in p.fills)]
        self._opcodes: dict[int, list[bytes]] = {}
        for probe in probes:
            for fill in probe.fills:
                size = self._arch.link.relocations[fill.relocation].size
                code = probe.code[fill.at : fill.at + size]
                self._opcodes.setdefault(fill.relocation, []).append(code)
        ways: dict[Callable[[int], bool], int] = {}
        if self._flavour == "executed":
            return {self._run: 1}
        if self._flavour == "detours":
            return {self._detour: 4, self._run: 1}
        if self._flavour == "table":
            ways[self._table] = 4
        ways[self._plain_one] = 12
        if self._highs and self._lows:
            ways[self._pair] = 4
        if self._sums:
            ways[self._sum] = 6
        if self._tables and self._flavour == "table":
            ways[self._table] = 30
        ways[self._nothing] = 1
        return ways

    def case(self, case: int) -> None:
        """Add one case."""
        for _ in range(TRIES):
            (way,) = self._chance.choices(list(self._ways), list(self._ways.values()))
            if way(case):
                return
        self._nothing(case)

    def _nothing(self, case: int) -> bool:
        """Add bytes, and perhaps a string that others have too."""
        text = self._chance.choice((b"\0", b"same\0", b"", self._bytes(7)))
        self._room(case, self._some_section(), text, 1)
        return True

    def _x(self, reach: Reach | None) -> int:
        """Return an X: at the ends of a reach, past them, inside, off its grid, or anywhere."""
        chance = self._chance
        reach = ANYWHERE if reach is None else reach
        lo, hi, grid = reach.lo, reach.hi, reach.align
        pick = chance.random()
        if pick < 0.3:
            x = chance.choice((lo - grid, lo, hi - grid, hi))
        elif pick < 0.4:
            step = chance.choice((1, 2, 100)) * grid
            x = chance.choice((lo + step, lo - grid - step, hi - grid - step, hi + step, 0, step))
            if chance.random() < 0.2:
                x += chance.randrange(-8, 9)
        elif pick < 0.7:
            x = chance.randrange(lo, hi) // grid * grid
        elif pick < 0.85:
            x = chance.choice((1, -1)) * chance.randrange(1 << chance.randrange(1, 64))
            x = x // grid * grid
        elif pick < 0.93:
            x = chance.choice((1, -1)) * (1 << chance.randrange(4, 64))
            x += chance.choice((0, 0, 1, -1, 0x800, -0x800, 0x8000, -0x8000, 0x7FF, 0x7FFF))
            x = x // grid * grid
        else:
            x = chance.randrange(-(1 << 63), 1 << 63)
        return signed(x)

    def _addend(self) -> int:
        chance = self._chance
        pick = chance.random()
        if pick < 0.45:
            return 0
        if pick < 0.75:
            return chance.randrange(-0x40, 0x41)
        if pick < 0.85:
            return chance.randrange(-(1 << 31), 1 << 31)
        if pick < 0.92:
            return chance.choice((1, -1)) * (1 << chance.randrange(4, 63)) + chance.randrange(-2, 3)
        return chance.randrange(-(1 << 63), 1 << 63)

    # Symbols ---------------------------------------------------------------------------------------

    def _new(self, prefix: str, where: str, value: int | None, *words: str) -> str:
        name = f"{prefix}{len(self._names)}"
        self._names.append(Name(name=name, where=where, value=value, words=words))
        return name

    def _symbol(self, needed: int, addend: int) -> tuple[str, int]:
        """Return a symbol and an addend whose sum is wanted; `addend` where that is free.

        Parameters
        ----------
        needed
            S+A, modulo 2^64.
        """
        chance = self._chance
        value = (needed - addend) & ADDRESS_MASK
        pick = chance.random()
        if pick < 0.4:
            return self._new("u", "undefined", value), addend
        if pick < 0.5:
            return self._new(
                "a", "absolute", value, *chance.choice(((), ("local",), ("func",)))
            ), addend
        given = [n for n in self._names if n.where == "undefined" and n.value is not None]
        if pick < 0.6 and given:
            one = chance.choice(given)
            return one.name, signed(needed - (one.value or 0))
        if pick < 0.615:
            return self._new("w", "undefined", None, "weak"), signed(needed)
        if pick < 0.63:
            return "", signed(needed)
        section = self._some_section()
        offset = chance.randrange(len(section.data) + 1)
        if pick < 0.76:
            known = [n for n in self._names if n.where == section.name and "section" in n.words]
            if not known:
                self._new("sec", section.name, 0, "local", "section")
                known = [self._names[-1]]
            return known[0].name, signed(needed - section.address)
        words = chance.choice(
            ((), ("local",), ("func",), ("local", "object"), ("weak",), ("size=8",))
        )
        name = self._new("l", section.name, offset, *words)
        return name, signed(needed - section.address - offset)

    # Ways --------------------------------------------------------------------------------------------

    def _filler(self, row: Reloc) -> bytes:
        """Return what stands at a place before it is relocated: mostly what assemblers write."""
        size = row.size or 4  # one that writes nothing has a place of its own, too
        if self._arch.link.clean_target or row.accumulates:
            return bytes(size)
        chance = self._chance
        if chance.random() < UNUSUAL:
            return chance.choice((self._bytes(size), b"\xff" * size))
        known = self._opcodes.get(row.number, ())
        found = bytearray(chance.choice(known) if known else self._bytes(size))
        for part in row.parts:  # with empty fields
            word = part.load(found) & ~part.mask | part.movz
            found[part.offset : part.offset + part.size] = word.to_bytes(part.size, part.order)
        return bytes(found)

    def _steps(self, row: Reloc) -> int:
        """Return the grid that a row's places lie on: instructions', or none."""
        data = row.accumulates or row.op.kind in (OpKind.NOTHING, OpKind.SIZE)
        return 1 if data or all(part.whole for part in row.parts) else self._grid

    def _record(
        self, case: int, section: _Section, offset: int, row: Reloc, name: str, a: int
    ) -> None:
        record = Record(
            case=case, section=section.name, offset=offset, type=row.name, symbol=name, addend=a
        )
        self._records.append(record)

    def _plain_one(self, case: int) -> bool:
        row = self._chance.choice(self._plain)
        section = self._some_section()
        if row.op.kind is OpKind.SIZE:
            return self._size(case, row, section)
        offset = self._room(case, section, self._filler(row), self._steps(row))
        place = section.address + offset
        if row.op.kind is OpKind.NOTHING:
            name, addend = self._symbol(self._x(None), self._addend())
        else:
            needed = target_of(row, self._x(row.reach), place, 0)
            if needed is None:
                self._take_back()
                return False
            name, addend = self._symbol(needed, self._addend())
        self._record(case, section, offset, row, name, addend)
        return True

    def _take_back(self) -> None:
        """Forget the bytes that were added last."""
        self._pieces.pop()

    def _size(self, case: int, row: Reloc, section: _Section) -> bool:
        addend = self._chance.choice((0, 0, 1, -1, 8, self._addend()))
        size = (self._x(row.reach) - addend) & ADDRESS_MASK
        where = self._some_section()
        name = self._new(
            "z", where.name, self._chance.randrange(len(where.data) + 1), f"size={size:#x}"
        )
        offset = self._room(case, section, self._filler(row), 1)
        self._record(case, section, offset, row, name, addend)
        return True

    def _pair(self, case: int) -> bool:
        """Add an upper half and the lower ones that name it."""
        chance = self._chance
        high, section = chance.choice(self._highs), self._some_section()
        offset = self._room(case, section, self._filler(high), self._steps(high))
        needed = target_of(high, self._x(high.reach), section.address + offset, 0)
        if needed is None:
            self._take_back()
            return False
        name, addend = self._symbol(needed, self._addend())
        self._record(case, section, offset, high, name, addend)
        self._low_halves(case, section, offset)
        return True

    def _low_halves(self, case: int, section: _Section, offset: int) -> None:
        chance = self._chance
        words = chance.choice((("local",), ("local",), ("func",), ()))
        label = self._new("hi", section.name, offset, *words)

        def low(row: Reloc) -> None:
            at = self._room(case, section, self._filler(row), self._steps(row))
            self._record(case, section, at, row, label, 0)

        for _ in range(chance.choice((1, 1, 2, 3, 5))):
            row = chance.choice(self._lows)
            if chance.random() < 0.3:  # far from its partner
                self._later.append(lambda row=row: low(row))  # type: ignore[misc] # a default has no declared type
            else:
                low(row)

    def _sum(self, case: int) -> bool:
        """Add records of one place that add up."""
        chance = self._chance
        rows = chance.choice(list(self._sums.values()))
        begin = [row for row in rows if row.op.anew]
        more = [row for row in rows if row.op.weight("V") and row.op.weight("S") > 0]
        less = [row for row in rows if row.op.weight("S") < 0]
        uleb = rows[0].uleb
        if begin and (uleb or not more or chance.random() < 0.6):
            chosen = [chance.choice(begin)]
            if less and (uleb or chance.random() < 0.8):
                chosen.append(chance.choice(less))
        elif more and less:
            chosen = [chance.choice(more), chance.choice(less)]
            if chance.random() < 0.2:
                chosen += [chance.choice(more + less) for _ in range(chance.randrange(1, 3))]
            if chance.random() < 0.15:
                chance.shuffle(chosen)
        else:
            return False
        section = self._some_section()
        if uleb:
            length = chance.choice((1, 1, 2, 3, 5, 10))
            filler = b"\x80" * (length - 1) + b"\0"
            goal = self._x(Reach(0, 1 << min(7 * length, 63)))
        else:
            filler = self._filler(chosen[0])
            if chosen[0].op.anew and chosen[0].parts[0].slices[0].bits < 8:
                filler = bytes((chance.randrange(256) & ~0x3F,))  # bits that stay
            goal = self._x(chosen[-1].reach)
        offset = self._room(case, section, filler, 1)
        total = 0
        for row in chosen[:-1]:
            value = chance.choice(
                (chance.randrange(1 << 64), section.address + chance.randrange(0x100))
            )
            name, addend = self._symbol(value, chance.choice(FEW_ADDENDS))
            self._record(case, section, offset, row, name, addend)
            total = value if row.op.anew else total + value * (1 if row.op.weight("S") > 0 else -1)
        last = chosen[-1]
        value = goal if last.op.anew else (goal - total) * (1 if last.op.weight("S") > 0 else -1)
        name, addend = self._symbol(value & ADDRESS_MASK, chance.choice(FEW_ADDENDS))
        self._record(case, section, offset, last, name, addend)
        return True

    def _table(self, case: int) -> bool:
        """Add a record that goes through the global offset table, of a new symbol or an old one."""
        if not self._tables:
            return False
        chance = self._chance
        row, section = chance.choice(self._tables), self._some_section()
        offset = self._room(case, section, self._filler(row), self._steps(row))
        given = [n for n in self._names if n.name.startswith("g")]
        if given and chance.random() < 0.3:
            name = chance.choice(given).name
        elif chance.random() < 0.7:
            value = section.address + chance.randrange(-(1 << 31), 1 << 31) & ADDRESS_MASK
            name = self._new("g", "undefined", value)
        else:
            where = self._some_section()
            words = chance.choice(((), ("local",), ("func",)))
            name = self._new("g", where.name, chance.randrange(len(where.data) + 1), *words)
        addend = chance.choice((*FEW_ADDENDS, 0x1000))
        self._record(case, section, offset, row, name, addend)
        if row.high and self._lows:
            self._low_halves(case, section, offset)
        return True

    # What can be executed ---------------------------------------------------------------------------

    def _run(self, case: int) -> bool:
        return bool(self._probes) and self._execute(case, self._chance.choice(self._probes))

    def _detour(self, case: int) -> bool:
        """Add a branch that does not reach, and goes through an entry of the PLT."""
        plt = self._arch.plt
        assert plt is not None
        calls = [p for p in self._probes if p.fills[0].relocation in plt.branches]
        if not calls:
            return False
        probe = self._chance.choice(calls)
        if self._chance.random() < 0.4:  # to where another one goes
            old = [run for run in self._runs if not run.register]
            if old:
                return self._execute(case, probe, self._chance.choice(old).goal)
        row = self._arch.link.relocations[probe.fills[0].relocation]
        assert row.reach is not None
        far = self._chance.randrange(row.reach.hi, row.reach.hi + GIB) & -row.reach.align & -4
        place = self._sections[0].address
        return self._execute(case, probe, (place + self._chance.choice((far, -far - SPAN))) & -4)

    def _execute(self, case: int, probe: Probe, goal: int | None = None) -> bool:
        chance, rows = self._chance, self._arch.link.relocations
        tail = self._arch.runs.emulation.ret if probe.result else b""
        code = probe.setup + probe.code + tail + self._arch.loads.trap
        section = self._sections[0] if goal is not None else self._executable()
        offset = self._room(case, section, code, self._grid)
        place = section.address + offset + len(probe.setup)
        more = chance.choice((0, 0, 4, -8, 0x100))
        first = probe.fills[0]
        row = rows[first.relocation]
        if goal is None:
            x = self._x(row.reach)
            needed = target_of(row, x, place + first.at, first.addend)
            if needed is None:
                self._take_back()
                return False
            goal = needed
            if probe.result is None:
                goal &= -self._grid
        known = [n.name for n in self._names if n.value == goal - more and n.where == "undefined"]
        name = known[0] if known else self._new("t", "undefined", (goal - more) & ADDRESS_MASK)
        for fill in probe.fills:
            one = rows[fill.relocation]
            at = offset + len(probe.setup) + fill.at
            if one.op.high_half:
                label = self._new("hi", section.name, at - fill.at, "local")
                self._record(case, section, at, one, label, 0)
            else:
                self._record(case, section, at, one, name, fill.addend + more)
        register = probe.result or ""
        self._runs.append(
            Run(case=case, section=section.name, offset=offset, register=register, goal=goal)
        )
        return True

    def _executable(self) -> _Section:
        return self._chance.choice([s for s in self._sections if "x" in s.flags])
