# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol tables that the kernel keeps with a module, and the memory they take.

With CONFIG_KALLSYMS_ALL every named symbol of what stays is copied, else those of text: 24 bytes
of symbol, a byte for its type, and its name, again for every symbol of that name. They follow the
module's data; before Linux 6.4 they followed core, whose end was a page's. The whole symbol table
and its strings follow the data that is freed after init. On riscv64, where assemblers leave a label
per relocation, this is most of a module (kernel/module/kallsyms.c: layout_symtab). A livepatch keeps
all of its symbols.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from allocator.types import MemType, align_up
from loader.elfview import SHT_SYMTAB, ElfView
from loader.errors import BadModule
from loader.layout import PERCPU_SECTION, Layout

_MOD_KALLSYMS = 4  # addresses in struct mod_kallsyms
_TYPE = 1  # byte per symbol in the table of types


def sizes_with_symbols(
    view: ElfView, layout: Layout, *, data_too: bool = True
) -> Mapping[MemType, int]:
    """Return bytes per memory type with the kernel's symbol tables, without page rounding.

    Parameters
    ----------
    data_too
        Whether the kernel has CONFIG_KALLSYMS_ALL.

    Raises
    ------
    BadModule
        When a local symbol's name is outside the string table.
    """
    symbols, table = view.symbols, next(s for s in view.sections[1:] if s.type == SHT_SYMTAB)
    names = symbols["name"][_kept(view, layout, data_too=data_too)].astype(np.intp)
    strings = np.frombuffer(view.contents(view.symbol_names), np.uint8)
    if names.size and int(names.max()) >= strings.size:
        raise BadModule(view.name, "symbol table", "a name is outside the string table")
    ends = np.flatnonzero(strings == 0)
    text = int((ends[np.searchsorted(ends, names)] + 1 - names).sum())
    sizes = dict(layout.sizes)
    data = align_up(_end(layout, MemType.DATA), table.align)
    sizes[MemType.DATA] = data + names.size * (view.dialect.symbol.itemsize + _TYPE) + text
    init = align_up(_end(layout, MemType.INIT_DATA), table.align) + table.size
    init = align_up(init, view.symbol_names.align) + view.symbol_names.size
    sizes[MemType.INIT_DATA] = (
        align_up(init, view.dialect.word) + _MOD_KALLSYMS * view.dialect.word + symbols.size * _TYPE
    )
    return sizes


def _end(layout: Layout, kind: MemType) -> int:
    """Return the bytes of a region before the tables: to the end of its area where it ends one."""
    for area in layout.areas:
        if kind in area.starts:
            return area.size - area.starts[kind]
    return layout.sizes.get(kind, 0)


def _kept(view: ElfView, layout: Layout, *, data_too: bool) -> NDArray[np.bool_]:
    """Return which symbols stay when init is over (is_core_symbol)."""
    symbols = view.symbols
    kept = np.zeros(len(view.sections) + 1, np.bool_)
    for index, placement in layout.placements.items():
        kept[index] = placement.type is MemType.TEXT or (data_too and not placement.type.is_init)
    percpu = view.find(PERCPU_SECTION)
    if percpu is not None and data_too:
        kept[percpu.index] = True
    core: NDArray[np.bool_] = kept[np.minimum(symbols["shndx"], len(view.sections))]
    core &= symbols["name"] != 0
    if "livepatch" in view.modinfo:
        core[:] = True
    core[0] = True
    return core
