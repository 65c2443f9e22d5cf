# SPDX-License-Identifier: GPL-2.0-or-later
"""`__ex_table`: how its entries are laid out, now and in modules of older kernels.

Entries hold self-relative words, and a data word that says what else is to be done (lib/
extable.c). Before Linux 5.16 there was no data word: on arm64 an entry was the two others, on
riscv64 two pointers; on x86-64 a third self-relative word named a handler. Which it is tell the
relocations, since every word of those has one.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import numpy as np

SECTION = "__ex_table"
ENTRY = np.dtype([("insn", "<i4"), ("fixup", "<i4"), ("data", "<u4")])
HANDLED = np.dtype([("insn", "<i4"), ("fixup", "<i4"), ("handler", "<i4")])
PAIR = np.dtype([("insn", "<i4"), ("fixup", "<i4")])
POINTERS = np.dtype([("insn", "<u8"), ("fixup", "<u8")])

Forms = tuple[np.dtype[np.void], ...]


def form_of(forms: Forms, size: int, relocated: AbstractSet[int]) -> np.dtype[np.void]:
    """Return which of `forms` a table has: the first, unless every word of another is relocated.

    Parameters
    ----------
    forms
        Of the architecture, today's first.
    size, relocated
        Of the table: its bytes, and the offsets that relocations name.
    """
    for form in forms[1:]:
        if size and relocated >= {*range(0, size, form["insn"].itemsize)}:
            return form
    return forms[0]
