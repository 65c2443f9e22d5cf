# SPDX-License-Identifier: GPL-2.0-or-later
"""Static calls that modules export: other modules find them in their environment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from allocator.types import ADDRESS_MASK
from archs.passes.static_calls import KEY
from loader.elfview import ElfView


def defaults(view: ElfView, addresses: Mapping[int, int]) -> dict[str, int]:
    """Return what the static calls that a module exports call at first, by name; 0 for nothing.

    A key is data of the module that defines it.
    """
    keys = {n[len(KEY) :]: i for n, i in view.global_symbols.items() if n.startswith(KEY)}
    found = dict.fromkeys(keys, 0)
    symbols = view.symbols
    for table in view.tables:
        mine = {
            int(symbols["value"][index]): name
            for name, index in keys.items()
            if symbols["shndx"][index] == table.target.index
        }
        for number in np.flatnonzero(np.isin(table.records["offset"], list(mine))).tolist():
            offset, _, index, addend = table.records[number].tolist()
            if int(symbols["shndx"][index]) in addresses:
                base = addresses[int(symbols["shndx"][index])] + int(symbols["value"][index])
                found[mine[offset]] = base + addend & ADDRESS_MASK
    return found


def places(view: ElfView, addresses: Mapping[int, int]) -> dict[str, int]:
    """Return where the keys are that a module defines, by the name of their symbol."""
    symbols = view.symbols
    return {
        name: addresses[int(symbols["shndx"][index])] + int(symbols["value"][index])
        for name, index in view.global_symbols.items()
        if name.startswith(KEY) and int(symbols["shndx"][index]) in addresses
    }
