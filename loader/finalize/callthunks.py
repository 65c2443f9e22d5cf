# SPDX-License-Identifier: GPL-2.0-or-later
"""Call depth tracking: calls enter a function through code in the padding before it.

With retbleed=stuff every call is counted. The counting instruction is written into the
padding that the compiler left before each function, when the first call of the function
is found, and the call is aimed at it (arch/x86/kernel/callthunks.c). That also holds for
calls into the kernel, whose padded functions have a second symbol, `__pfx_NAME`, for calls
that an alternative brought, and for static calls when they are written.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from allocator.types import MemType
from loader.finalize import alternatives
from loader.finalize.subject import U64, Subject

FEATURE = "call_depth"


def apply(subject: Subject) -> None:
    """Aim the calls of core text at the padding of the functions they call."""
    thunks = subject.rules.thunks
    if thunks is None or FEATURE not in subject.environment.features:
        return
    sites, others = subject.sites(".call_sites"), np.unique(alternatives.places(subject))
    sites = np.concatenate((sites, others[~np.isin(others, sites)]))
    sites = sites[subject.within(sites, MemType.TEXT)]
    code = subject.bytes_at(subject.offsets(sites, thunks.call_size), thunks.call_size)
    call = thunks.is_call(code)
    sites, code = sites[call], code[call]
    targets = thunks.targets(code, sites)
    new = redirected(subject, targets)
    moved = new != targets
    at = subject.offsets(sites[moved], thunks.call_size)
    subject.write(at, thunks.aim(code[moved], sites[moved], new[moved]))


def redirected(subject: Subject, targets: U64) -> U64:
    """Return where calls of `targets` go; padding of the module's own functions is filled."""
    thunks, environment = subject.rules.thunks, subject.environment
    if thunks is None or FEATURE not in environment.features or not targets.size:
        return targets
    functions, which = np.unique(targets, return_inverse=True)
    body = thunks.padding(functions, environment)
    starts = functions - np.uint64(body.shape[1])
    own = subject.within(functions)
    padded = ~own & _padded_elsewhere(subject, functions)
    ours = np.flatnonzero(own & subject.within(functions, MemType.TEXT) & subject.within(starts))
    at = subject.offsets(starts[ours], body.shape[1])
    room = subject.bytes_at(at, body.shape[1])
    free = (room == thunks.filler).all(axis=1)
    subject.write(at[free], body[ours[free]])
    padded[ours] = free | (room == body[ours]).all(axis=1)
    return np.where(padded, starts, functions)[which]


def _padded_elsewhere(subject: Subject, functions: U64) -> NDArray[np.bool_]:
    """Return which functions of the kernel and of other modules have padding.

    The kernel's have a symbol in front; what modules export is compiled code, which has
    padding in a kernel that counts calls.
    """
    thunks, symbols = subject.rules.thunks, subject.environment.symbols
    assert thunks is not None
    kernel = functions >= np.uint64(symbols.get("_text", 0))
    kernel &= functions < np.uint64(symbols.get("_end", 0))
    text = kernel & (functions < np.uint64(symbols.get("_etext", 0)))
    untracked = np.array([symbols.get(name, 0) for name in thunks.untracked], np.uint64)
    known = np.append(subject.environment.padded, np.uint64(0))
    padded = known[np.searchsorted(known[:-1], functions)] == functions
    return np.asarray((text & padded | ~kernel) & ~np.isin(functions, untracked))
