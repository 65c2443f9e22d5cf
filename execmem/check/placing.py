# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a case's sections and symbols lie: as its directives say, at limits, at random, by designs.

Without directives sections begin where modules do, one page after the other: code, what the
loader adds (PLT and GOT), then the rest. A section behind one that has an address follows it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath

import attrs

from allocator import Execmem, KernelMemory, PhysicalMemory
from allocator.errors import ExecmemError
from allocator.types import ADDRESS_MASK, GIB, PAGE_SIZE, ExecmemType, MemType, align_up
from archs import Arch
from archs.op import signed
from archs.reloc import Reloc
from execmem.check.case import Case, Directive, Placement
from execmem.check.ends import ends_of
from execmem.check.objects import type_number
from execmem.check.subject import Planned, exports
from execmem.check.values import value
from loader.elfview import SHN_ABS, SHN_LORESERVE, SHN_UNDEF, Section

STEP = PAGE_SIZE
MOST = 10_000  # links of one placement
# Of an architecture that cannot load, of which no ranges are known.
NOWHERE = {
    "modules": 0x1000_0000,
    "modules_end": 0x2000_0000,
    "kernel": 0x4000_0000,
    "kernel_end": 0x5000_0000,
}


@attrs.frozen(kw_only=True)
class Told:
    """What a symbol directive says."""

    value: int
    returns: int | None = None


@attrs.frozen(kw_only=True)
class Places:
    """One link's addresses.

    Parameters
    ----------
    title
        What tells it from the others.
    addresses
        Section index -> address.
    symbols
        Values of undefined symbols, and what functions there return when they are called.
    limit
        At a limit: the relocation's row, which of ENDS it is, and X there.
    """

    title: str
    addresses: Mapping[int, int]
    symbols: Mapping[str, Told]
    limit: tuple[Reloc, str, int] | None = None

    @property
    def values(self) -> Mapping[str, int]:
        """The symbols' values alone."""
        return {name: told.value for name, told in self.symbols.items()}


def places(
    case: Case, placement: Placement, planned: Planned, *, seed: int = 0
) -> Iterator[Places]:
    """Yield the addresses of each link that a placement asks for.

    Parameters
    ----------
    seed
        What is random begins with it, and with the case's own text.

    Raises
    ------
    BadCase
        A directive means nothing here.
    """
    word, *words = placement.title.split() or [""]
    asked = _Asked(case, placement, planned, words, seed)
    ways: Mapping[str, Callable[[], Iterator[Places]]] = {
        "limits": asked.limits,
        "random": asked.random,
        "design": asked.design,
        "kaslr": asked.kaslr,
    }
    if word in ways:
        yield from ways[word]()
    else:
        yield asked.told(placement.title, _default(planned))


def base_of(arch: Arch) -> int:
    """Return where modules begin; an address that any architecture has where that is not known."""
    if arch.load is None:
        return NOWHERE["modules"]
    start: int = arch.loads.address_map().range_of(ExecmemType.MODULE_TEXT).range.start
    return start


def _groups(planned: Planned) -> Sequence[Section]:
    """Return the sections that take memory: code, what the loader adds, the rest."""
    sections = [planned.view.sections[index] for index in planned.layout.placements]
    percpu = planned.layout.percpu
    if percpu is not None and percpu.index not in planned.layout.placements:
        sections.append(percpu)
    plt = planned.view.arch.plt
    added = {planned.view.arch.got_section}
    if plt is not None:
        added |= {plt.section, plt.init_section, plt.got_section}

    def rank(section: Section) -> int:
        return 1 if section.name in added else 0 if section.executable else 2

    return sorted(sections, key=lambda section: (rank(section), section.index))


def _default(planned: Planned, base: int | None = None) -> dict[int, int]:
    return _follow(planned, {}, base_of(planned.view.arch) if base is None else base)


def _follow(planned: Planned, fixed: Mapping[int, int], start: int) -> dict[int, int]:
    """Return the addresses of all sections: those that are fixed, the others behind them."""
    found: dict[int, int] = {}
    cursor = start
    for section in _groups(planned):
        at = fixed.get(section.index)
        if at is None:
            at = align_up(cursor, max(STEP, section.align or 1)) & ADDRESS_MASK
        found[section.index] = at
        cursor = (at + max(planned.layout.size_of(section), 1)) & ADDRESS_MASK
    return found


def _names(arch: Arch, kaslr: int | None) -> Mapping[str, int]:
    if arch.load is None:
        return {}
    space = arch.loads.address_map(kaslr)
    modules = space.range_of(ExecmemType.MODULE_TEXT).range
    return {
        "kernel": space.image.start,
        "kernel_end": space.image.end,
        "modules": modules.start,
        "modules_end": modules.end,
    }


def labels(planned: Planned, addresses: Mapping[int, int]) -> Mapping[str, int]:
    """Return the addresses of what an object defines, its local names too."""
    found = dict(exports([planned], [addresses]))
    view = planned.view
    for index in range(1, len(view.symbols)):
        where = int(view.symbols["shndx"][index])
        name = view.symbol_name(index)
        if not name or where == SHN_UNDEF or (SHN_LORESERVE <= where != SHN_ABS):
            continue
        if where == SHN_ABS:
            found.setdefault(name, int(view.symbols["value"][index]))
        elif where in addresses:
            found.setdefault(name, addresses[where] + int(view.symbols["value"][index]))
    return found


@attrs.frozen
class _Asked:
    """A placement of a case, about one object; `words` follow its first."""

    case: Case
    placement: Placement
    planned: Planned
    words: Sequence[str]
    seed: int

    def told(self, title: str, addresses: Mapping[int, int], *, kaslr: int | None = None) -> Places:
        """Return the places that directives make of addresses to begin with."""
        case, planned = self.case, self.planned
        arch = planned.view.arch
        fixed: dict[int, int] = {}
        symbols: dict[str, Told] = {}
        start = min(addresses.values(), default=base_of(arch))
        current = dict(addresses)
        names = _names(arch, kaslr)

        def look_up(name: str) -> int:
            section = planned.view.section(name)
            if section is not None and section.index in current:
                return current[section.index]
            if name in symbols:
                return symbols[name].value
            found = labels(planned, current).get(name, names.get(name))
            if found is None:
                raise ValueError(f"there is no {name}")
            return found

        def number(directive: Directive, text: str) -> int:
            try:
                return value(text, look_up)
            except ValueError as error:
                raise case.bad(directive.line, f"{directive.word}: {error}") from None

        for directive in self.placement.of(arch.name, "at", "symbol"):
            if directive.word == "at":
                name, _, text = directive.rest.partition(" ")
                section = planned.view.section(name)
                if section is None or section.index not in addresses:
                    known = ", ".join(s.name for s in _groups(planned))
                    raise case.bad(directive.line, f"at: no section {name} (there is {known})")
                fixed[section.index] = number(directive, text)
                current = _follow(planned, {**self._kept(addresses), **fixed}, start)
                continue
            name, equals, text = (part.strip() for part in directive.rest.partition("="))
            if not equals or not name:
                raise case.bad(directive.line, "symbol: NAME = VALUE [returns NUMBER]")
            if name in planned.view.global_symbols:
                raise case.bad(directive.line, f"symbol: the case itself defines {name}")
            text, returns, result = text.partition(" returns ")
            symbols[name] = Told(
                value=number(directive, text),
                returns=number(directive, result) if returns else None,
            )
        return Places(title=title, addresses=current, symbols=symbols)

    def _kept(self, addresses: Mapping[int, int]) -> Mapping[int, int]:
        """Return what stays where it is when a section is moved: all, where a design put it there."""
        designed = self.placement.title.split()[:1] in (["design"], ["kaslr"])
        return addresses if designed else {}

    # At the limits of a relocation ---------------------------------------------------------------

    def limits(self) -> Iterator[Places]:
        """Yield links with the symbol of one relocation at both ends of its reach, and past them."""
        case, view, line = self.case, self.planned.view, self.placement.line
        if len(self.words) != 1:
            raise case.bad(line, "place limits: name one relocation")
        about = Directive(line, "place", self.placement.title)
        number = type_number(case, about, view.arch, self.words[0])
        row = view.arch.link.relocations[number]
        found = [
            (table, record)
            for table in view.tables
            for record in table.records.tolist()
            if record[1] == number and view.symbol_name(record[2]) in view.undefined
        ]
        if not found:
            reason = f"no {row.name} is against an undefined symbol, which could be moved"
            raise case.bad(line, f"place limits: {reason}")
        if row.reach is None:
            raise case.bad(line, f"place limits: {row.name} has none")
        if row.got is not None or row.accumulates or not row.op.weight("S"):
            reason = f"a symbol alone does not decide what {row.name} holds: say where things lie"
            raise case.bad(line, f"place limits: {reason}")
        told = self.told(self.placement.title, _default(self.planned))
        table, (offset, _, symbol, addend) = found[0]
        place = told.addresses[table.target.index] + offset
        name = view.symbol_name(symbol)
        old = told.symbols.get(name)
        for end, x in ends_of(row).items():
            target = target_of(row, x, place, signed(addend))
            if target is None:
                continue
            moved = Told(value=target, returns=old.returns if old else None)
            yield attrs.evolve(
                told,
                title=f"{self.placement.title}, {end}",
                symbols={**told.symbols, name: moved},
                limit=(row, end, x),
            )

    # At random, under KASLR, under a design --------------------------------------------------------

    def _count(self) -> int:
        words = self.words
        if len(words) != 1 or not words[0].isdigit() or not 0 < int(words[0]) <= MOST:
            kind = self.placement.title.split()[0]
            raise self.case.bad(self.placement.line, f"place {kind}: how many, from 1 to {MOST}")
        return int(words[0])

    def random(self) -> Iterator[Places]:
        """Yield links with sections and undefined symbols anywhere in the kernel's ranges."""
        planned, arch = self.planned, self.planned.view.arch
        name = PurePath(self.case.path).name
        text = f"{name} {self.placement.title} {arch.name} {self.seed}"
        chance = random.Random(text)  # noqa: S311 # places, not secrets
        size = sum(align_up(planned.layout.size_of(s) + 1, STEP) for s in _groups(planned)) + STEP
        names = _names(arch, None) or NOWHERE
        for number in range(self._count()):
            room = names["modules_end"] - names["modules"] - size
            base = names["modules"] + chance.randrange(room // STEP) * STEP
            image = (names["kernel"], names["kernel_end"])
            chosen = {
                each: Told(value=chance.randrange(*image) & ~15) for each in planned.view.undefined
            }
            told = self.told(f"random {number}", _default(planned, base))
            yield attrs.evolve(told, symbols={**chosen, **told.symbols})

    def kaslr(self) -> Iterator[Places]:
        """Yield links in boots with seeds of KASLR."""
        for seed in range(self.seed, self.seed + self._count()):
            yield self._placed("default", seed, f"kaslr {seed}")

    def design(self) -> Iterator[Places]:
        """Yield the link that a design of executable memory leads to."""
        if len(self.words) != 1:
            raise self.case.bad(self.placement.line, "place design: name one")
        yield self._placed(self.words[0], None, self.placement.title)

    def _placed(self, design: str, kaslr: int | None, title: str) -> Places:
        """Return where a design puts the object in an address space of its own."""
        arch, layout = self.planned.view.arch, self.planned.layout
        try:
            space = arch.loads.address_map(kaslr)
            memory = KernelMemory(PhysicalMemory(GIB // 4), space)
            execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke, design=design)
            starts = {
                kind: execmem.alloc(kind, layout.sizes[kind], align=layout.aligns[kind]).address
                for kind in MemType
                if layout.sizes.get(kind)
            }
        except (ExecmemError, ValueError) as error:
            reason = f"place {self.placement.title}: {error}"
            raise self.case.bad(self.placement.line, reason) from None
        lowest = min(starts.values(), default=base_of(arch))
        found = {
            index: starts.get(where.type, lowest) + where.offset
            for index, where in layout.placements.items()
        }
        rest = _follow(self.planned, found, max(found.values(), default=lowest))
        return self.told(title, rest, kaslr=kaslr)


def target_of(row: Reloc, x: int, place: int, addend: int) -> int | None:
    """Return the S for which a row computes X at a place; None where there is no such address."""
    base = place & -row.op.granule if row.op.placed else 0
    target = (x + base - addend) & ADDRESS_MASK
    found = row.op.evaluate({"S": target, "A": addend, "P": place})
    return target if found is not None and (found - x) & ADDRESS_MASK == 0 else None
