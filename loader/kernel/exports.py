# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel exports to modules: its `__ksymtab` tables, with checksums and marks.

An entry is (value, name, namespace): 32-bit self-relative words where the architecture has
CONFIG_HAVE_ARCH_PREL32_RELOCATIONS, pointers elsewhere (include/linux/export-internal.h).
GPL-only ones stand in a table of their own (`__ksymtab_gpl`), or are marked in `__kflagstab`
since 7.0. Checksums (CONFIG_MODVERSIONS) stand in `__kcrctab`, a word each.

A kernel whose symbol table holds functions only (no CONFIG_KALLSYMS_ALL) does not say where
the tables are; they are found by what they must look like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from archs import Arch
from loader.kernel.segments import Segment

FLAG_GPL = 1  # KSYM_FLAG_GPL_ONLY
LEAST = 64  # entries that a table found by its looks has at least
_LONGEST = 512  # KSYM_NAME_LEN


class Image(Protocol):
    """What is asked of the image that the tables are in; see `loader.kernel.image`."""

    @property
    def arch(self) -> Arch:
        """The architecture that it is for."""
        ...

    @property
    def data(self) -> bytes:
        """Its bytes as they are stored."""
        ...

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts with addresses."""
        ...

    @property
    def symbols(self) -> Mapping[str, int]:
        """Its symbols."""
        ...

    @property
    def order(self) -> str:
        """Byte order, as numpy spells it."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Return bytes at an address."""
        ...

    def string(self, address: int, limit: int = ...) -> str:
        """Return the string at an address; empty where there is none."""
        ...


@attrs.frozen
class KernelExport:
    """A symbol that modules may use.

    Parameters
    ----------
    crc
        Checksum of its prototype (CONFIG_MODVERSIONS); None: not known.
    namespace
        What a module must import to use it; empty for none.
    """

    name: str
    address: int
    gpl: bool
    crc: int | None = None
    namespace: str = ""


@attrs.frozen
class _EntryTable:
    """Entries in a row, and where their checksums and flags lie; None: there are none."""

    start: int
    end: int
    gpl: bool
    crcs: int | None = None
    flags: int | None = None


def exports_in(image: Image) -> dict[str, KernelExport]:
    """Return what a kernel exports, by name; empty where the tables are not found."""
    found: dict[str, KernelExport] = {}
    for table in _named(image) or _found(image):
        found.update((export.name, export) for export in _entries(image, table))
    return found


def _named(image: Image) -> list[_EntryTable]:
    """Return the tables by the symbols at their ends."""
    symbols, tables = image.symbols, []
    for suffix, gpl in (("", False), ("_gpl", True)):
        start = symbols.get(f"__start___ksymtab{suffix}")
        end = symbols.get(f"__stop___ksymtab{suffix}")
        if start is None or end is None:
            continue
        crcs = _unless_empty(image, f"__kcrctab{suffix}")
        flags = None if gpl else _unless_empty(image, "__kflagstab")
        tables.append(_EntryTable(start, end, gpl, crcs, flags))
    return tables


def _unless_empty(image: Image, name: str) -> int | None:
    start = image.symbols.get(f"__start_{name}")
    return None if start == image.symbols.get(f"__stop_{name}") else start


def _entries(image: Image, table: _EntryTable) -> Iterator[KernelExport]:
    width = 4 if image.arch.loads.prel32 else 8
    count = (table.end - table.start) // (3 * width)
    values, names, spaces = _words(image, table.start, count, width)
    crcs = _numbers(image, table.crcs, count, 4)
    flags = _numbers(image, table.flags, count, 1)
    for index in range(count):
        name = image.string(names[index], _LONGEST)
        yield KernelExport(
            name,
            values[index],
            table.gpl or bool(flags and flags[index] & FLAG_GPL),
            crcs[index] if crcs else None,
            image.string(spaces[index], _LONGEST) if spaces[index] else "",
        )


def _words(image: Image, start: int, count: int, width: int) -> tuple[list[int], ...]:
    """Return the three columns of a table as addresses."""
    raw = image.read(start, 3 * width * count)
    if width == 8:
        stored = np.frombuffer(raw, f"{image.order}u8")
    else:
        places = np.uint64(start) + np.arange(3 * count, dtype=np.uint64) * np.uint64(4)
        stored = places + np.frombuffer(raw, f"{image.order}i4").astype(np.int64).astype(np.uint64)
    columns = stored.reshape(count, 3).T
    # A namespace that is not there is a self-relative 0 in some versions.
    spaces = columns[2]
    if width == 4:
        own = np.uint64(start) + (np.arange(count, dtype=np.uint64) * 3 + 2) * np.uint64(4)
        spaces = np.where(spaces == own, np.uint64(0), spaces)
    return columns[0].tolist(), columns[1].tolist(), spaces.tolist()


def _numbers(image: Image, start: int | None, count: int, width: int) -> list[int]:
    if start is None:
        return []
    raw = image.read(start, count * width)
    numbers: list[int] = np.frombuffer(raw, f"{image.order}u{width}").tolist()
    return numbers


def _found(image: Image) -> list[_EntryTable]:
    """Return the tables by their looks: rows whose names ascend and share a namespace string.

    Only self-relative ones. Those behind the first of two tables are GPL-only: names begin
    anew there. Checksums follow, where the words behind the tables are no code or pointers:
    that they are as many as the entries cannot be seen, so only who compares them knows.
    """
    if not image.arch.loads.prel32:
        return []
    segment = image.segments[0]
    words = np.frombuffer(image.data, f"{image.order}i4", segment.stored // 4, segment.offset)
    targets = words.astype(np.int64) + 4 * np.arange(words.size)
    row = _row(image, segment.address, targets)
    if row is None:
        return []
    first = _edge(image, segment.address, targets, row, -3)
    last = _edge(image, segment.address, targets, row, 3) + 3
    rows = range(first, last, 3)
    names = [image.string(segment.address + int(targets[row + 1]), _LONGEST) for row in rows]
    breaks = [i for i, (one, two) in enumerate(pairwise(names), 1) if two < one]
    if len(breaks) > 1:
        return []
    start, end = (segment.address + 4 * row for row in (first, last))
    middle = start + 12 * breaks[0] if breaks else end
    # As RO_DATA in include/asm-generic/vmlinux.lds.h: both tables, then both of checksums.
    crcs = end
    tables = [_EntryTable(start, middle, gpl=False, crcs=crcs)]
    if breaks:
        tables.append(_EntryTable(middle, end, gpl=True, crcs=crcs + 4 * breaks[0]))
    return tables


def _row(image: Image, base: int, targets: NDArray[np.int64]) -> int | None:
    """Return a word at which a row of the tables begins; None: there are no tables.

    Most rows have the namespace of the row before; so do rows of other tables the third word of
    theirs, but what stands before it is no name.
    """
    equal = targets[3:] == targets[:-3]
    for phase in range(3):
        column = np.cumsum(equal[phase::3], dtype=np.int64)
        often = np.flatnonzero(column[LEAST:] - column[:-LEAST] >= LEAST * 3 // 4)
        # A table is found at many of its rows; look at few of them.
        for index in often[:: LEAST // 2].tolist():
            row: int = 3 * index + phase - 2
            rows = range(row, row + 3 * LEAST // 2, 3)
            if row >= 0 and all(_is_name(image, base + int(targets[r + 1])) for r in rows):
                return row
    return None


def _edge(image: Image, base: int, targets: NDArray[np.int64], row: int, step: int) -> int:
    """Return the last row of a table in one direction: while there is a name."""
    while 0 <= row + step <= len(targets) - 3 and _is_name(
        image, base + int(targets[row + step + 1])
    ):
        row += step
    return row


def _is_name(image: Image, address: int) -> bool:
    text = image.string(address, _LONGEST)
    return text.isascii() and text.replace(".", "_").isidentifier()
