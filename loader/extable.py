# SPDX-License-Identifier: GPL-2.0-or-later
"""How the entries of a module's exception table are laid out."""

from __future__ import annotations

import numpy as np

from archs.extable import SECTION, form_of
from loader.elfview import ElfView


def relocated(view: ElfView, name: str) -> frozenset[int]:
    """Return the offsets in the first section called `name` that a relocation names."""
    section = view.section(name)
    return frozenset(
        int(offset)
        for table in view.tables
        if section is not None and table.target.index == section.index
        for offset in table.records["offset"].tolist()
    )


def entry_of(view: ElfView) -> np.dtype[np.void]:
    """Return how an entry of a module's exception table is laid out."""
    section = view.section(SECTION)
    size = 0 if section is None else section.size
    return form_of(view.arch.loads.extable, size, relocated(view, SECTION))
