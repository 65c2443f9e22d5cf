# SPDX-License-Identifier: GPL-2.0-or-later
"""Exception tables: where code goes on after an access that failed, and was expected to.

A load or store that the compiler put between a user address and the kernel has an entry in
`__ex_table`: its place, where to go on, and a word of the architecture's that says which
registers then hold what (lib/extable.c, arch/*/mm/extable.c). The loader sorted and linked
the table as the kernel does; it is read where it lies. Modules of kernels before 5.16 have no
such word: nothing but the place and where to go on, or a handler.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from archs.extable import SECTION
from kernels.modelled.kernel import Kernel
from loader.extable import entry_of
from loader.loaded import LoadedModule

HANDLERS = frozenset(("ex_handler_default", "ex_handler_fault", "ex_handler_uaccess"))


def fix(kernel: Kernel, modules: Iterable[LoadedModule], pc: int) -> int | None:
    """Set registers as the table says of the access at `pc`; return where to go on, or None."""
    if pc in kernel.fixups:
        return kernel.fixups[pc]
    for loaded in modules:
        if loaded.region_at(pc) is None:
            continue
        for section in loaded.sections.values():
            if section.name == SECTION and section.size:
                return _entry(kernel, section.address, section.size, entry_of(loaded.view), pc)
    return None


def _entry(kernel: Kernel, table: int, size: int, entry: np.dtype[np.void], pc: int) -> int | None:
    entries = np.frombuffer(kernel.memory.read(table, size), entry)
    places = entries["insn"].astype(np.int64).view(np.uint64)
    # Pointers, or words that count from where they are.
    absolute = entry["insn"] == np.uint64
    if not absolute:
        places += np.uint64(table) + np.arange(entries.size, dtype=np.uint64) * entry.itemsize
    for index in np.flatnonzero(places == np.uint64(pc)).tolist():
        start = 0 if absolute else table + index * entry.itemsize
        values = _values(kernel, entries[index], start)
        if values is None:
            return None
        for name, value in values:
            kernel.cpu.write(name, value)
        return int(entries["fixup"][index]) + (start and start + 4)
    return None


def _values(kernel: Kernel, entry: np.void, start: int) -> tuple[tuple[str, int], ...] | None:
    """Return what the entry at `start` sets; None where it is not known what it asks for."""
    names = entry.dtype.names or ()
    if "data" in names:
        return kernel.arch.runs.emulation.fixup(int(entry["data"]))
    if "handler" in names and kernel.name_at(start + 8 + int(entry["handler"])) not in HANDLERS:
        return None
    return ()
