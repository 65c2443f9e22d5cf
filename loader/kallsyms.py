# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol tables that the kernel keeps with a module, and the memory they take.

With CONFIG_KALLSYMS_ALL every named symbol of what stays is copied: 24 bytes of symbol, a
byte for its type, and its name, again for every symbol of that name. They follow the
module's data. The whole symbol table and its strings follow the data that is freed after
init. On riscv64, where assemblers leave a label per relocation, this is most of a module
(kernel/module/kallsyms.c: layout_symtab).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from allocator.types import MemType, align_up
from loader.elfview import SHT_SYMTAB, ElfView
from loader.errors import BadModule
from loader.layout import PERCPU_SECTION, Layout

_MOD_KALLSYMS = 4  # addresses in struct mod_kallsyms
_TYPE = 1  # byte per symbol in the table of types


def sizes_with_symbols(view: ElfView, layout: Layout) -> Mapping[MemType, int]:
    """Return bytes per memory type with the kernel's symbol tables, without page rounding.

    BadModule where a local symbol's name is outside the string table.
    """
    symbols, table = view.symbols, next(s for s in view.sections[1:] if s.type == SHT_SYMTAB)
    kept = np.zeros(len(view.sections) + 1, np.bool_)
    for index, placement in layout.placements.items():
        kept[index] = not placement.type.is_init
    percpu = view.find(PERCPU_SECTION)
    if percpu is not None:
        kept[percpu.index] = True
    core = kept[np.minimum(symbols["shndx"], len(view.sections))] & (symbols["name"] != 0)
    core[0] = True
    names = symbols["name"][core].astype(np.intp)
    strings = np.frombuffer(view.contents(view.symbol_names), np.uint8)
    if names.size and int(names.max()) >= strings.size:
        raise BadModule(view.name, "symbol table", "a name is outside the string table")
    ends = np.flatnonzero(strings == 0)
    text = int((ends[np.searchsorted(ends, names)] + 1 - names).sum())
    sizes = dict(layout.sizes)
    data = align_up(sizes.get(MemType.DATA, 0), table.align)
    sizes[MemType.DATA] = data + names.size * (view.dialect.symbol.itemsize + _TYPE) + text
    init = align_up(sizes.get(MemType.INIT_DATA, 0), table.align) + table.size
    init = align_up(init, view.symbol_names.align) + view.symbol_names.size
    sizes[MemType.INIT_DATA] = (
        align_up(init, view.dialect.word) + _MOD_KALLSYMS * view.dialect.word + symbols.size * _TYPE
    )
    return sizes
