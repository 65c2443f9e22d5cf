# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables as text, as the kernel of an architecture prints its own, and what differs in two.

Linux shows them in /sys/kernel/debug/kernel_page_tables (CONFIG_PTDUMP_DEBUGFS), a line for a
stretch of entries that are alike. How a line looks is the architecture's (`archs.levels.boot.Dump`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs
import numpy as np

from allocator.errors import ExecmemError
from allocator.memory import KernelMemory
from allocator.types import Prot, size_text
from archs import Arch
from archs.levels.boot import Dump, TableFormat
from emulator.noted import Noted, Walk, joined
from emulator.paging import Tables, Words

_WORD = (1 << 64) - 1
_U = np.uint64
_LINE = re.compile(r"\s*0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16})\s")
_MARK = re.compile(r"---\[ (.*) \]---")


class NotPrinted(ExecmemError):
    """Page tables that the kernel of an architecture does not print."""

    def __init__(self, arch: str, page: int) -> None:
        self.arch, self.page = arch, page
        super().__init__(
            f"{arch}: how its kernel prints page tables of {size_text(page)} pages is not known:"
            " Linux has no ptdump there"
        )


@attrs.frozen
class Marker:
    """Where something begins.

    Parameters
    ----------
    start
        Its first address.
    name
        What it is.
    most
        Lines of it that are printed; 0: all.
    """

    start: int
    name: str
    most: int = 0


@attrs.frozen(kw_only=True)
class Line:
    """Entries that are alike.

    Parameters
    ----------
    start, end
        Addresses; the end may be 0, behind the last one.
    level
        What the kernel calls the level.
    page
        What one entry maps, in bytes.
    physical
        Where the first of them leads; None for a hole.
    flags
        What the kernel prints of their bits.
    text
        The line.
    """

    start: int
    end: int
    level: str
    page: int
    physical: int | None
    flags: str
    text: str


@attrs.frozen(kw_only=True)
class Shape:
    """The sizes of page tables.

    Parameters
    ----------
    granule
        Log2 of a page's bytes.
    depth
        The level of the first table, counted from the pages.
    """

    granule: int
    depth: int

    def page(self, depth: int) -> int:
        """Return the bytes that an entry maps."""
        return 1 << self.granule + depth * (self.granule - 3)


class PageTables:
    """Page tables, printed.

    Parameters
    ----------
    parts
        The stretches of both halves, or of one.
    dump
        How.
    shape
        Their sizes.
    markers
        What is named, by address; at least one.
    leads
        Returns the physical address of another, or None: for stretches that a marker parts.
    notes
        What is not known, and what would make it known.
    """

    def __init__(
        self,
        parts: Sequence[Noted],
        dump: Dump,
        shape: Shape,
        markers: Sequence[Marker],
        leads: Callable[[int], int | None],
        notes: Sequence[str] = (),
    ) -> None:
        self._parts, self._dump, self._shape, self._leads = parts, dump, shape, leads
        self._markers = (*markers, Marker(_WORD, ""))
        self.notes = tuple(notes)

    def __iter__(self) -> Iterator[Line | str]:
        """Yield lines, and what stands between them: markers, and what is left out of long parts."""
        dump, markers = self._dump, self._markers
        at = printed = 0  # the marker, and the lines since
        begun: _Entry | None = None
        for row, end in self._rows():
            step, entry = self._shape.page(row.depth), row
            while True:
                if begun is None:
                    begun = entry
                    yield _marked(markers[at])
                elif not entry.alike(begun) or entry.place >= markers[at + 1].start:
                    most = markers[at].most
                    if not most or printed < most:
                        yield from self._line(begun, entry.place)
                    begun, printed, passed = entry, printed + 1, 0
                    while entry.place >= markers[at + 1].start and passed < (
                        dump.marks or len(markers)
                    ):
                        if most and printed > most:
                            left = printed - most
                            yield f"... {left} entr{'y' if left == 1 else 'ies'} skipped ... "
                        at, printed, passed, most = at + 1, 0, passed + 1, 0
                        yield _marked(markers[at])
                # Where the row goes on behind a marker, the next of its entries ends a line.
                ahead = -(-(markers[at + 1].start - row.place) // step) * step
                place = max(entry.place + step, row.place + ahead)
                if place >= end:
                    break
                entry = attrs.evolve(row, place=place, physical=None)
        if begun is not None:
            yield from self._line(begun, 0)

    def _rows(self) -> Iterator[tuple[_Entry, int]]:
        for part in self._parts:
            ends = [*part.starts[1:].tolist(), part.end]
            columns = (part.starts, part.depths, part.kept, part.effective, part.physical)
            for *values, end in zip(*(column.tolist() for column in columns), ends, strict=True):
                yield _Entry(*values), end

    def _line(self, entry: _Entry, end: int) -> Iterator[Line]:
        dump, depth = self._dump, entry.depth
        flags = dump.empty if not entry.kept else dump.text(entry.kept, depth)
        if flags is None:
            return
        physical = entry.physical
        if physical is None:
            physical = self._leads(entry.place)
        size, unit = (end - entry.place) & _WORD, iter(dump.units)
        if dump.units[0] == "K":
            size >>= 10
        name = next(unit)
        while size % 1024 == 0 and (larger := next(unit, "")):
            size, name = size >> 10, larger
        level = dump.levels[-1 if depth == self._shape.depth else depth]
        text = dump.line.format(
            start=f"{entry.place:#018x}",
            end=f"{end:#018x}",
            physical=f"{physical or 0:#018x}",
            size=size,
            unit=name,
            level=level,
            flags=flags,
        )
        yield Line(
            start=entry.place,
            end=end,
            level=level,
            page=self._shape.page(depth),
            physical=physical if entry.kept & 1 else None,
            flags=" ".join(flags.split()),
            text=text,
        )

    def lines(self) -> Iterator[str]:
        """Yield the lines of the text."""
        for each in self:
            yield each if isinstance(each, str) else each.text


@attrs.frozen
class _Entry:
    """An entry at which a line may begin; `physical` None: not looked up yet."""

    place: int
    depth: int
    kept: int
    rights: int
    physical: int | None

    def alike(self, other: _Entry) -> bool:
        return (self.depth, self.kept, self.rights) == (other.depth, other.kept, other.rights)


def _marked(marker: Marker) -> str:
    return f"---[ {marker.name} ]---"


def printed_of(
    tables: Tables, words: Words, markers: Sequence[Marker], notes: Sequence[str]
) -> PageTables:
    """Return the page tables of a kernel, printed."""
    dump = tables.format.dump
    assert dump is not None
    shape = Shape(
        granule=tables.granule, depth=(tables.top - tables.granule) // (tables.granule - 3)
    )

    def leads(address: int) -> int | None:
        return tables.walk(address, words, lambda at: words(at, 1) is not None)

    return PageTables(Walk(tables, words).all(), dump, shape, markers, leads, notes)


def modelled(memory: KernelMemory, arch: Arch) -> PageTables:
    """Return the page tables of a kernel that is modelled, as that of its architecture prints them.

    Entries say what the model knows of them: their protection, their size, and where they lead.

    Raises
    ------
    NotPrinted
        The kernel of that architecture prints none, or has no pages of that size.
    """
    form = arch.boot.tables if arch.boot is not None else None
    granule = memory.page_size.bit_length() - 1
    bits = next((bits for bits, size in form.sizes if size == granule), 0) if form else 0
    if form is None or form.dump is None or not bits:
        raise NotPrinted(arch.name, memory.page_size)
    stride = granule - 3
    depth = -(-(bits - granule) // stride) - 1
    top = 1 << granule + depth * stride
    half = (1 << 64) - (1 << bits - int(form.shared)) + form.dump.over * top
    rows: list[tuple[int, int, int, int, int]] = []
    for start, end, leaf, frame, prot, in_run in memory.page_table.stretches():
        level = (leaf.bit_length() - 1 - granule) // stride
        if end <= half:
            continue
        if prot is None:
            rows += _hole(max(start, half), end, level, depth, top)
        else:
            bits_of_run = form.run if in_run else 0
            rows.append((start, level, _bits(form, prot, level) | bits_of_run, 0, frame))
    ends = (1 << 64) - 1
    starts, depths, kept, rights, physical = (
        np.array(column, _U) for column in zip(*rows, strict=True)
    )
    noted = Noted(
        starts, depths.astype(np.int8), kept & _U(form.dump.kept), rights, physical, ends + 1
    )
    named = [
        Marker(memory.direct_map.start, "Direct map"),
        Marker(memory.direct_map.end, "Direct map end"),
        Marker(memory.address_map.image.start, "Kernel image"),
        Marker(memory.address_map.image.end, "Kernel image end"),
    ]

    def leads(address: int) -> int | None:
        found = memory.translate(address)
        return None if found is None else found.address

    shape = Shape(granule=granule, depth=depth)
    return PageTables([joined([noted])], form.dump, shape, from_the(half, named), leads)


def from_the(start: int, found: Sequence[Marker]) -> list[Marker]:
    """Return markers by address, with one for the start of the addresses."""
    markers = sorted(found, key=lambda marker: marker.start)
    if markers and markers[0].start <= start:
        return markers
    return [Marker(start, "Kernel space"), *markers]


def _hole(
    start: int, end: int, level: int, depth: int, top: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield a hole as the tables have it: entries of the first one where nothing is below them."""
    low, high = -(-start // top) * top, end // top * top
    if level + 1 < depth or low >= high:
        yield start, level, 0, 0, 0
        return
    if start < low:
        yield start, level, 0, 0, 0
    yield low, depth, 0, 0, 0
    if high < end:
        yield high, level, 0, 0, 0


def _bits(form: TableFormat, prot: Prot, level: int) -> int:
    """Return an entry's bits, but for the address."""
    bits = form.page
    for field, right in ((form.written, Prot.W), (form.executed, Prot.X)):
        if field is not None:
            mask, value = field
            bits = bits & ~mask | (value if right in prot else value ^ mask)
    if level:
        bits = bits & ~form.table | form.large
    return bits if prot.value else bits & ~1


def differing(before: Iterable[str], after: Iterable[str]) -> Iterator[str]:
    """Yield the lines that only one of two has, `-` before those of the first, `+` of the second.

    They come by address, each behind the marker that it stands under. Lines that are no ptdump's are
    passed over.
    """
    first, second = _by_line(before), _by_line(after)
    chosen = [
        (start, "-", under, line) for line, (start, under) in first.items() if line not in second
    ]
    chosen += [
        (start, "+", under, line) for line, (start, under) in second.items() if line not in first
    ]
    shown = None
    for _, sign, under, line in sorted(chosen, key=lambda each: (each[0], each[1] == "+")):
        if under is not None and under != shown:
            yield f"  {under}"
            shown = under
        yield f"{sign} {line}"


def is_dump(lines: Iterable[str]) -> bool:
    """Return whether lines have page tables in them."""
    return any(map(_LINE.match, lines))


def _by_line(lines: Iterable[str]) -> dict[str, tuple[int, str | None]]:
    found: dict[str, tuple[int, str | None]] = {}
    under = None
    for line in lines:
        if _MARK.match(line):
            under = line.rstrip()
        elif match := _LINE.match(line):
            found[line.rstrip()] = int(match[1], 16), under
    return found
