# SPDX-License-Identifier: GPL-2.0-or-later
"""Static keys: branches that are patched instead of tested.

`__jump_table` says for each branch where it is, where it may go and which key decides. When
a module comes in, its entries are sorted by key and place, so that one key's branches
stand together; branches that will vanish with the init memory are marked; and each of
the module's own keys learns where its branches stand (kernel/jump_label.c:
jump_label_add_module). Branches are as the compiler left them, which is what their key says
until somebody flips it: those of keys that are flipped already are rewritten
(`Environment.static_keys`).
"""

from __future__ import annotations

import numpy as np

from allocator.types import MemType
from archs.passes.subject import U64, Subject
from archs.text import JumpLabels

# struct jump_entry where CONFIG_HAVE_ARCH_JUMP_LABEL_RELATIVE: all self-relative.
ENTRY = np.dtype([("code", "<i4"), ("target", "<i4"), ("key", "<i8")])
BRANCH, INIT = np.uint64(1), np.uint64(2)
FLAGS = BRANCH | INIT
# struct static_key: int enabled; then the entries' address, with flags in its low bits.
ENTRIES = np.uint64(8)


def attach(subject: Subject, *, forms: JumpLabels) -> None:
    """Sort the table, mark the branches of init code and tell the keys where theirs are.

    Parameters
    ----------
    forms
        The two forms of a branch.
    """
    table = subject.table("__jump_table", ENTRY)
    if table is None:
        return
    code, target = table.targets("code"), table.targets("target")
    keys = table.targets("key")
    # The flags are bits of the stored difference, and keys are at least 8 bytes apart.
    flags = table.entries["key"].view(np.uint64) & FLAGS
    keys -= flags
    flags &= BRANCH
    flags |= np.where(subject.within(code, MemType.INIT_TEXT), INIT, np.uint64(0))
    _flip(subject, forms, code, target, keys, flags)
    order = np.lexsort((code, keys))
    table.point("code", code[order])
    table.point("target", target[order])
    table.point("key", keys[order])
    table.entries["key"] |= flags[order].view(np.int64)
    subject.claim(table)
    found, first = np.unique(keys[order], return_index=True)
    own = subject.within(found)
    at = subject.offsets(found[own] + ENTRIES, 8)
    kind = subject.bytes_at(at, 1)[:, 0] & np.uint8(FLAGS)
    entries = table.addresses("code")[first[own]] | kind
    subject.write(at, entries[:, None].view(np.uint8))


def _flip(
    subject: Subject, forms: JumpLabels, code: U64, target: U64, keys: U64, flags: U64
) -> None:
    """Rewrite the branches of imported keys that are known to be on or off."""
    named: dict[int, bool] = {}
    for name, on in subject.environment.static_keys.items():
        symbol, _, offset = name.partition("+")  # an element of an array
        if symbol in subject.imported:
            named[subject.imported[symbol] + int(offset or "0", 0)] = on
    chosen = np.flatnonzero(np.isin(keys, list(named))) if named else np.empty(0, np.intp)
    longest = max(forms.nops)
    for n in chosen.tolist():
        place, on = int(code[n]), named[int(keys[n])]
        at = subject.offsets(code[n : n + 1])
        size = forms.size(subject.bytes_at(at, longest)[0].tobytes())
        jumps = on != bool(flags[n] & BRANCH)
        new = forms.jump(place, int(target[n]), size) if jumps else forms.nops.get(size)
        if new is None:
            raise subject.refusal("__jump_table", f"no static branch at {place:#x}")
        subject.write(at, np.frombuffer(new, np.uint8))
