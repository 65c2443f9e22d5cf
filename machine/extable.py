# SPDX-License-Identifier: GPL-2.0-or-later
"""Exception tables: where code goes on after an access that failed, and was expected to.

A load or store that the compiler put between a user address and the kernel has an entry in
`__ex_table`: its place, where to go on, and a word of the architecture's that says which
registers then hold what (lib/extable.c, arch/*/mm/extable.c). The loader sorted and linked
the table as the kernel does; it is read where it lies.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from loader.loaded import LoadedModule
from machine.kernel.kernel import Kernel

ENTRY = np.dtype([("place", "<i4"), ("resume", "<i4"), ("word", "<u4")])  # two are self-relative


def fix(kernel: Kernel, modules: Iterable[LoadedModule], pc: int) -> int | None:
    """Set registers as the table says of the access at `pc`; return where to go on, or None."""
    if pc in kernel.fixups:
        return kernel.fixups[pc]
    for loaded in modules:
        if loaded.region_at(pc) is None:
            continue
        for section in loaded.sections.values():
            if section.name == "__ex_table" and section.size:
                return _entry(kernel, section.address, section.size, pc)
    return None


def _entry(kernel: Kernel, table: int, size: int, pc: int) -> int | None:
    entries = np.frombuffer(kernel.memory.read(table, size), ENTRY)
    places = np.arange(entries.size, dtype=np.int64) * ENTRY.itemsize + entries["place"]
    for index in np.flatnonzero(places == pc - table).tolist():
        values = kernel.arch.emulation.fixup(int(entries["word"][index]))
        if values is None:
            return None
        for name, value in values:
            kernel.cpu.write(name, value)
        return table + index * ENTRY.itemsize + 4 + int(entries["resume"][index])
    return None
