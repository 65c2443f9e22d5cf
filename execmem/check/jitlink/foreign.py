# SPDX-License-Identifier: GPL-2.0-or-later
"""What JITLink does with an object and a module loader does not: found in the object, not guessed.

A difference is put down to one of these only where the object has the very thing at the place in
question, and its condition is met: a call that is near enough to be relaxed, and that leads where it
should as it is; a slot whose symbol is near enough to do without, and that is there.

Sources: LLVM's llvm/lib/ExecutionEngine/JITLink, riscv relaxation in ELF_riscv.cpp, x86-64 and
AArch64 optimisation of GOT and stubs in x86_64.cpp and aarch64.cpp, sections' start and stop
symbols in DefineExternalSectionStartAndEndSymbols.h. Linux's arch/riscv/kernel/module.c.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from archs.dialect import Info
from archs.engine import Problem
from archs.op import signed
from archs.reloc import Reloc
from execmem.check.subject import Planned, Subject, Unanswerable
from loader.elfview import RelocationTable
from loader.errors import RelocationFailure

_RECORD, _INFO, _INFO_SIZE = 24, 8, 8  # bytes of an Elf64_Rela, where its r_info stands
_STB_WEAK = 2

# By the names of relocations: what goes with them, and how near X has to be, in bytes.
RELAXED_CALLS: Mapping[str, int] = {
    "R_RISCV_CALL": 1 << 20,
    "R_RISCV_CALL_PLT": 1 << 20,
}
RELAXABLE, ALIGNED = "R_RISCV_RELAX", "R_RISCV_ALIGN"
OPTIMISED: Mapping[str, int] = {
    "R_X86_64_GOTPCRELX": 1 << 31,
    "R_X86_64_REX_GOTPCRELX": 1 << 31,
    "R_X86_64_CODE_4_GOTPCRELX": 1 << 31,
    "R_AARCH64_ADR_GOT_PAGE": 1 << 32,
    "R_AARCH64_LD64_GOT_LO12_NC": 1 << 32,
}
# And those of which an address below this is used without any distance.
ABSOLUTE: Mapping[str, int] = {"R_X86_64_GOTPCRELX": 1 << 32, "R_X86_64_REX_GOTPCRELX": 1 << 32}
_WORD = 1 << 32
_OPCODE = 3  # bytes before a displacement of x86-64, which are rewritten too


@attrs.frozen
class Record:
    """A relocation record of an object.

    Parameters
    ----------
    planned
        The object.
    table, number
        Its table, and its number in there.
    """

    planned: Planned
    table: RelocationTable
    number: int

    @property
    def section(self) -> int:
        """The index of the section that it applies to."""
        return self.table.target.index

    @property
    def offset(self) -> int:
        """Where in that section."""
        return int(self.table.records["offset"][self.number])

    @property
    def symbol(self) -> int:
        """The index of its symbol."""
        return int(self.table.records["symbol"][self.number])

    @property
    def name(self) -> str:
        """The name of its symbol."""
        return self.planned.view.symbol_name(self.symbol)

    @property
    def type(self) -> str:
        """The name of its type."""
        return self.planned.view.arch.link.type_name(int(self.table.records["type"][self.number]))

    @property
    def row(self) -> Reloc | None:
        """Its type; None where that is not known."""
        types = self.planned.view.arch.link.relocations
        return types.get(int(self.table.records["type"][self.number]))

    @property
    def addend(self) -> int:
        """Its addend."""
        return signed(int(self.table.records["addend"][self.number]))


def records(planned: Planned) -> Iterator[Record]:
    """Yield the records of an object's loaded sections."""
    for table in planned.view.tables:
        if table.target.index in planned.layout.placements:
            for number in range(len(table.records)):
                yield Record(planned, table, number)


@attrs.frozen
class Without:
    """A record that is left out of the link, and why no module loader applies it."""

    record: Record
    reason: str


def without(planned: Planned, taken: Iterable[Record]) -> Planned:
    """Return an object with records that do nothing."""
    image = bytearray(planned.image)
    for record in taken:
        at = record.table.section.offset + record.number * _RECORD + _INFO
        image[at : at + _INFO_SIZE] = bytes(_INFO_SIZE)
    return Planned.of(planned.name, bytes(image))


def unsupported(planned: Planned, known: Mapping[str, int]) -> Iterator[Without]:
    """Yield the records that no module loader applies.

    Parameters
    ----------
    known
        Values of undefined symbols.
    """
    view = planned.view
    sections = {name.lstrip(".") for name in view.names} | set(view.names)
    undefined = set(view.undefined) - set(view.weak_undefined) - set(known)
    for record in records(planned):
        reason = _refused(record)
        if reason:
            yield Without(record, f"{record.type}: {reason}")
        elif record.symbol and record.name in undefined:
            name = record.name
            for start in ("__start_", "__stop_"):
                if name.startswith(start) and name.removeprefix(start) in sections:
                    reason = f"{name} is a name that linkers make up, and module loaders do not"
                    yield Without(record, reason)
                    break
            else:
                yield Without(record, f"{name} would be looked up in the process of JITLink")


def _refused(record: Record) -> str:
    """Return why no module has a type of relocation; of several in one record, the first's."""
    link = record.planned.view.arch.link
    number = int(record.table.records["type"][record.number])
    numbers = [number]
    if number not in link.relocations and link.dialect.info is Info.MIPS64:
        numbers = [number >> shift & 0xFF for shift in (0, 8, 16)]
    rows = [link.relocations[each] for each in numbers if each in link.relocations]
    return next((row.unsupported for row in rows if row.unsupported), "")


def excused(
    planned: Planned, failures: Sequence[RelocationFailure], gone: Sequence[Without]
) -> list[Without]:
    """Return the records that fail because of what module loaders do not have; others stay.

    Without a PLT, a call of what the object does not define cannot be stretched.
    """
    view, found = planned.view, []
    places = {
        (view.names[record.section], record.offset, record.type): record
        for record in records(planned)
    }
    undefined = set(view.undefined)
    lost = {(one.record.section, one.record.offset) for one in gone}
    for failure in failures:
        record = places.get((failure.section, failure.offset, failure.reloc))
        if record is None:
            continue
        if (
            failure.reason == Problem.RANGE.value
            and view.arch.plt is None
            and record.name in undefined
            and _branches(record)
        ):
            what = f"modules of {view.arch.title} have no PLT"
            found.append(Without(record, f"{what}, and {record.name} is out of the call's reach"))
        elif failure.reason == Problem.UNPAIRED.value:
            symbol = view.symbols[record.symbol]
            if (int(symbol["shndx"]), int(symbol["value"])) in lost:
                found.append(Without(record, "the record that it belongs to is left out"))
    return found


def _branches(record: Record) -> bool:
    """Return whether a record fills a branch: by its type, or by a field that is no whole word."""
    row, link = record.row, record.planned.view.arch.link
    if row is None or not row.op.relative or not record.table.target.executable:
        return False
    narrow = row.reach is not None and row.reach.hi - row.reach.lo < _WORD
    return narrow or row.number in link.calls or "PLT" in row.name


# Differences --------------------------------------------------------------------------------------


@attrs.frozen
class Differences:
    """What may make JITLink's result another one than ours, of linked objects.

    Parameters
    ----------
    subject
        The objects, linked.
    left_out
        What was left out of each, in their order.
    """

    subject: Subject
    left_out: Sequence[Sequence[Without]]

    def missing(self, spans: Iterable[tuple[int, int]]) -> str:
        """Return which record was left out in memory that a check looks at; empty for none."""
        for start, size in spans:
            for one, gone in zip(self.subject.objects, self.left_out, strict=True):
                for each in gone:
                    base = one.addresses.get(each.record.section)
                    if base is None:
                        continue
                    place = base + each.record.offset
                    if place < start + size and start < place + _width(each.record):
                        return each.reason
        return ""

    def change(self, spans: Iterable[tuple[int, int]], names: Sequence[str]) -> str:
        """Return what JITLink changes in memory that a check looks at; empty for nothing.

        Parameters
        ----------
        names
            Symbols that the check names.
        """
        spans = tuple(spans)
        return (
            self._relaxed(spans, names)
            or self._optimised(spans)
            or self._merged(spans)
            or self._added(spans)
        )

    def _applied(
        self, spans: Iterable[tuple[int, int]], *, opcodes: bool = False
    ) -> Iterator[tuple[Record, int]]:
        """Yield the records in memory, with their places, and of x86-64 with the opcodes there."""
        for one in self.subject.objects:
            for record in records(one.planned):
                base = one.addresses.get(record.section)
                if base is None:
                    continue
                place = base + record.offset
                before = _OPCODE if opcodes and record.type in ABSOLUTE else 0
                for start, size in spans:
                    if place - before < start + size and start < place + _width(record):
                        yield record, place
                        break

    def _value(self, record: Record) -> int | None:
        """Return S + A of a record; None where S has no value."""
        for one in self.subject.objects:
            if one.planned is record.planned:
                return int(one.linked.symbols[record.symbol]) + record.addend
        return None

    def _optimised(self, spans: Iterable[tuple[int, int]]) -> str:
        """Return why an access through the global offset table is none after JITLink."""
        for record, place in self._applied(spans, opcodes=True):
            reach = OPTIMISED.get(record.type)
            value = self._value(record)
            if reach is None or value is None or not self._has_slot(value - record.addend):
                continue
            if -reach <= signed(value - place) < reach or value < ABSOLUTE.get(record.type, 0):
                what = f"JITLink turns {record.type} against {record.name} into direct access"
                return f"{what}; module loaders leave the slot"
        return ""

    def _has_slot(self, value: int) -> bool:
        """Return whether there is the slot that JITLink does without: ours is right, as it is."""
        return any(value in one.slots() for one in self.subject.objects)

    def _leads(self, place: int, value: int) -> bool:
        """Return whether the call that JITLink shortens leads where it should, as it is."""
        try:
            return self.subject.target(place) == value
        except Unanswerable:
            return False

    def _relaxed(self, spans: Sequence[tuple[int, int]], names: Sequence[str]) -> str:
        """Return why what a check looks at is elsewhere after JITLink: code before it is shorter."""
        for one in self.subject.objects:
            looked = [start + size for start, size in spans]
            looked += [one.symbols[name] for name in names if name in one.symbols]
            mine = list(records(one.planned))
            marked = {(r.section, r.offset) for r in mine if r.type == RELAXABLE}
            for record in mine:
                base = one.addresses.get(record.section)
                if base is None:
                    continue
                section = one.planned.view.sections[record.section]
                end = base + one.planned.layout.size_of(section)
                place = base + record.offset
                if not any(place < at <= end for at in looked):
                    continue
                if record.type == ALIGNED and record.addend:
                    return f"{ALIGNED} takes out padding, and module loaders relax no code"
                reach, value = RELAXED_CALLS.get(record.type), self._value(record)
                if reach is None or value is None or (record.section, record.offset) not in marked:
                    continue
                if -reach <= signed(value - place) < reach and self._leads(place, value):
                    what = f"{RELAXABLE} lets JITLink shorten the call of {record.name}"
                    return f"{what}; module loaders relax no code"
        return ""

    def _added(self, spans: Iterable[tuple[int, int]]) -> str:
        """Return which sum begins with what stands at its place, which kernels do not look at."""
        for record, _ in self._applied(spans):
            row = record.row
            if row is None or not row.accumulates or row.op.anew:
                continue
            held = record.planned.view.contents(record.table.target)
            if any(held[record.offset : record.offset + row.size]):
                what = f"{record.type} adds to what stands at its place"
                return f"{what}; kernels add up from zero (since Linux 6.7)"
        return ""

    def _merged(self, spans: Iterable[tuple[int, int]]) -> str:
        """Return which weak symbol several objects define, of which JITLink takes one for all."""
        counts = Counter(
            name
            for one in self.subject.objects
            for name, index in one.planned.view.global_symbols.items()
            if int(one.planned.view.symbols["info"][index]) >> 4 == _STB_WEAK
        )
        for record, _ in self._applied(spans):
            if counts[record.name] > 1:
                what = (
                    f"{record.name} is weak in several objects, of which JITLink takes one for all"
                )
                return f"{what}; a module keeps its own"
        return ""


def _width(record: Record) -> int:
    """Return how many bytes a record may write; of an instruction where that is not known."""
    return (record.row.size if record.row is not None else 0) or 4
