# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables of a booted kernel, as its ptdump prints them, whether it was built with that or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import attrs

from allocator.types import Interval
from emulator.paging import Tables
from kernels.booted.kernel import BootedKernel
from machine.ptdump import Marker, PageTables, from_the, printed_of

_TABLE, _STRUCTURE = "address_markers", "addr_marker"
_MOST = 64  # markers
_NAME = 64  # bytes of a name
_END = (1 << 64) - 1


def page_tables(kernel: BootedKernel) -> PageTables:
    """Return the kernel's page tables, printed.

    What its own ptdump names is taken from its memory; where it was built without one, the direct map and
    the image are named, and a note says so.
    """
    board = kernel.board
    markers = list(_own(kernel))
    notes = []
    if not markers:
        markers = _ours(kernel)
        notes.append(
            f"what its ptdump calls parts of the address space: this kernel has no {_TABLE}"
            " (CONFIG_PTDUMP_DEBUGFS and CONFIG_KALLSYMS_ALL)"
        )
    tables = own_tables(kernel)
    if tables is None:
        tables = board.tables()
        if tables.format.shared:
            told = "the kernel's own table (CONFIG_KALLSYMS_ALL): the lower half is a process'"
            notes.append(told)
    return printed_of(tables, board.ram.words, markers, notes)


def own_tables(kernel: BootedKernel) -> Tables | None:
    """Return the kernel's own page tables, not those of a process; None where no symbol tells them."""
    board = kernel.board
    tables = board.tables()
    roots = (name for name in tables.format.roots if name in kernel.symbols)
    found = board.translate(kernel.symbols[root]) if (root := next(roots, None)) else None
    return None if found is None else attrs.evolve(tables, root=found)


def direct_map(kernel: BootedKernel) -> Interval:
    """Return where the direct map is: the linear mapping that has most of the memory."""
    weights: Counter[int] = Counter()
    for run in kernel.board.mapped():
        weights[run.address - run.physical] += run.size
    ((direct, _),) = weights.most_common(1)
    start = kernel.board.ram.start + direct & _END
    return Interval(start, start + kernel.board.ram.size)


def _own(kernel: BootedKernel) -> Iterator[Marker]:
    """Yield the kernel's own markers, or none."""
    types = kernel.standing.types
    found = None if types is None else types.find(_STRUCTURE)
    if types is None or found is None or _TABLE not in kernel.symbols:
        return
    size, at = types.size_of(found.number), kernel.symbols[_TABLE]
    places = [types.place(found.number, name) for name in ("start_address", "name", "max_lines")]
    read = kernel.board.read
    try:
        for number in range(_MOST):
            record = read(at + number * size, size)
            start, name, most = (
                0 if place is None else int.from_bytes(record[place.bytes :][:8], "little")
                for place in places
            )
            if not name or start == _END:
                return
            yield Marker(start, read(name, _NAME).split(b"\0")[0].decode("latin-1"), most)
    except LookupError:
        return


def _ours(kernel: BootedKernel) -> list[Marker]:
    """Return where the direct map and the image begin and end."""
    direct, symbols = direct_map(kernel), kernel.symbols
    found = [Marker(direct.start, "Direct map"), Marker(direct.end, "Direct map end")]
    if "_text" in symbols and "_end" in symbols:
        found += [
            Marker(symbols["_text"], "Kernel image"),
            Marker(symbols["_end"], "Kernel image end"),
        ]
    tables = kernel.board.tables()
    half = (1 << 64) - (1 << tables.bits - int(tables.format.shared))
    return from_the(half, found)
