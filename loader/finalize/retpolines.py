# SPDX-License-Identifier: GPL-2.0-or-later
"""Indirect branches: compiled as calls of a thunk, and turned into what this boot wants.

The compiler never emits an indirect branch; it calls or jumps to a thunk, one for each
register. On a CPU that needs no protection the branch itself takes the call's place; with
call depth tracking the call leads to another array of thunks, which count; with plain
retpolines it stays (arch/x86/kernel/alternative.c: apply_retpolines).
"""

from __future__ import annotations

import numpy as np

from loader.finalize.subject import Subject


def apply(subject: Subject) -> None:
    """Rewrite the branches to indirect thunks."""
    thunks = subject.rules.thunks
    sites = subject.sites(".retpoline_sites")
    if thunks is None or not sites.size:
        return
    code = subject.bytes_at(subject.offsets(sites), thunks.longest)
    length, target = thunks.length(code), thunks.targets(code, sites)
    register = np.full(sites.size, -1, np.int64)
    for number, name in enumerate(thunks.registers):
        if name in subject.imported:
            register[target == np.uint64(subject.imported[name])] = number
    for size in set(length.tolist()) - {0}:
        chosen = np.flatnonzero((length == size) & (register >= 0))
        places, registers = sites[chosen], register[chosen].view(np.uint64)
        new = thunks.indirect(code[chosen, :size], places, registers, subject.environment)
        if new is not None:
            subject.write(subject.offsets(places, size), new)
