# SPDX-License-Identifier: GPL-2.0-or-later
"""Returns: compiled as jumps to a thunk, and turned into what this boot wants.

Every `ret` is a jump to one thunk, so that one place decides how functions return. Where
no mitigation needs that, the plain instruction takes the jump's place; otherwise the jump
leads to the thunk in force, which for some CPUs only returns in the lower half of a cache
line need (arch/x86/kernel/alternative.c: apply_returns, cpu_wants_rethunk_at).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from archs.environment import Environment
from archs.insn_x86_64 import INT3, JUMP, RET
from archs.passes.subject import U8, U64, Subject
from archs.passes.x86_64.branches import branches, rows

RETURN_THUNK, ITS_RETURN_THUNK = "__x86_return_thunk", "its_return_thunk"


def apply(subject: Subject) -> None:
    """Rewrite the jumps to the return thunk."""
    sites = subject.sites(".return_sites")
    if sites.size:
        code = returns(sites, subject.environment)
        subject.write(subject.offsets(sites, code.shape[1]), code)


def thunk_of(environment: Environment) -> str:
    """Return the symbol of the thunk in force."""
    return environment.options.get("return_thunk", RETURN_THUNK)


def _thunked(places: U64, environment: Environment) -> NDArray[np.bool_]:
    """Return where a return needs the thunk (cpu_wants_rethunk_at)."""
    if "rethunk" not in environment.features:
        return np.zeros(places.shape, np.bool_)
    if thunk_of(environment) != ITS_RETURN_THUNK:
        return np.ones(places.shape, np.bool_)
    return np.asarray(places & np.uint64(0x20) == 0)


def returns(places: U64, environment: Environment) -> U8:
    """Return what stands for a return at the places."""
    plain = rows(bytes((RET, INT3, INT3, INT3, INT3)), places.size)
    thunked = _thunked(places, environment)
    if not thunked.any():
        return plain
    thunk = environment.symbol(thunk_of(environment))
    return np.where(thunked[:, None], branches(JUMP, places, thunk), plain)
