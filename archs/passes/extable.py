# SPDX-License-Identifier: GPL-2.0-or-later
"""`__ex_table`: where a faulting instruction goes on, sorted by the instruction.

A fault handler finds an entry by binary search, so the table is sorted first of all,
right after relocation. Entries hold self-relative words, which change as an entry moves;
a data word at the end of an entry moves as it is (lib/extable.c: sort_extable).
"""

from __future__ import annotations

import numpy as np

from archs.extable import SECTION, Forms, form_of
from archs.passes.subject import Subject


def sort(subject: Subject, *, forms: Forms) -> None:
    """Sort the exception table by the address of the instruction."""
    section = subject.section(SECTION)
    if section is None:
        return
    table = subject.table(SECTION, form_of(forms, section.size, subject.relocated(SECTION)))
    if table is None:
        return
    names = table.entries.dtype.names or ()
    found = {name: table.targets(name) for name in names if name != "data"}
    order = np.argsort(found["insn"], kind="stable")
    if "data" in names:
        table.entries["data"] = table.entries["data"][order]
    for name, targets in found.items():
        table.point(name, targets[order])
    subject.claim(table)
