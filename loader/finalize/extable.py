# SPDX-License-Identifier: GPL-2.0-or-later
"""`__ex_table`: where a faulting instruction goes on, sorted by the instruction.

A fault handler finds an entry by binary search, so the table is sorted first of all,
right after relocation. Entries hold self-relative words, which change as an entry moves;
a data word at the end of an entry moves as it is (lib/extable.c: sort_extable).

Before Linux 5.16 there was no data word: on arm64 an entry was the two others, on riscv64 two
pointers; on x86-64 a third self-relative word named a handler. Which it is tell the
relocations, since every word of those has one.
"""

from __future__ import annotations

import numpy as np

from loader.elf import ElfView
from loader.finalize.subject import Subject

SECTION = "__ex_table"
ENTRY = np.dtype([("insn", "<i4"), ("fixup", "<i4"), ("data", "<u4")])
HANDLED = np.dtype([("insn", "<i4"), ("fixup", "<i4"), ("handler", "<i4")])
PAIR = np.dtype([("insn", "<i4"), ("fixup", "<i4")])
POINTERS = np.dtype([("insn", "<u8"), ("fixup", "<u8")])


def entry_of(view: ElfView) -> np.dtype[np.void]:
    """Return how an entry of a module's exception table is laid out."""
    section = view.section(SECTION)
    if section is None or not section.size:
        return ENTRY
    rules = view.arch.finalisation
    before = HANDLED if rules is not None and rules.extable_handlers else PAIR
    before = before if view.arch.loads.prel32 else POINTERS
    step = before["insn"].itemsize
    places = {
        int(offset)
        for table in view.tables
        if table.target.index == section.index
        for offset in table.records["offset"].tolist()
    }
    return before if places >= {*range(0, section.size, step)} else ENTRY


def sort(subject: Subject) -> None:
    """Sort the exception table by the address of the instruction."""
    table = subject.table(SECTION, entry_of(subject.view))
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
