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

REGISTERS = 16


def apply(subject: Subject) -> None:
    """Rewrite the branches to indirect thunks."""
    thunks, environment = subject.rules.thunks, subject.environment
    sites = subject.sites(".retpoline_sites")
    if thunks is None or not sites.size or thunks.registers not in environment.symbols:
        return
    code = subject.bytes_at(subject.offsets(sites), thunks.longest)
    length = thunks.length(code)
    away = thunks.targets(code, sites) - np.uint64(environment.symbols[thunks.registers])
    register = away // np.uint64(thunks.step)
    for size in set(length.tolist()) - {0}:
        chosen = np.flatnonzero((length == size) & (register < REGISTERS))
        places = sites[chosen]
        at = subject.offsets(places, size)
        new = thunks.indirect(code[chosen, :size], places, register[chosen], environment)
        if new is not None:
            subject.write(at, new)
