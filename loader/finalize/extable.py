# SPDX-License-Identifier: GPL-2.0-or-later
"""`__ex_table`: where a faulting instruction goes on, sorted by the instruction.

A fault handler finds an entry by binary search, so the table is sorted first of all,
right after relocation. Entries hold self-relative words, which change as an entry moves;
a data word at the end of an entry moves as it is (lib/extable.c: sort_extable).
"""

from __future__ import annotations

import numpy as np

from loader.finalize.subject import Subject

ENTRY = np.dtype([("insn", "<i4"), ("fixup", "<i4"), ("data", "<u4")])


def sort(subject: Subject) -> None:
    """Sort the exception table by the address of the instruction."""
    table = subject.table("__ex_table", ENTRY)
    if table is None:
        return
    insn, fixup = table.targets("insn"), table.targets("fixup")
    order = np.argsort(insn, kind="stable")
    table.entries["data"] = table.entries["data"][order]
    table.point("insn", insn[order])
    table.point("fixup", fixup[order])
    subject.claim(table)
