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
from archs.environment import Environment
from archs.insn_x86_64 import CALL, NOPS
from archs.passes.subject import U8, U64, Subject
from archs.passes.x86_64 import alternatives
from archs.passes.x86_64.branches import aimed, rows, targets
from archs.versions import Since

FEATURE = "call_depth"
ALIGNED = 16  # functions with padding in front (CONFIG_FUNCTION_ALIGNMENT)
CALL_SIZE = 5  # of the only calls that are counted
# Per-cpu variable that counts, and where in it.
DEPTH = Since(((0, 0), ("pcpu_hot", 16)), ((6, 15), ("__x86_call_depth", 0)))
# Whether functions in assembly, which have no symbol in front, are entered through padding, too.
ASSEMBLY = Since(((0, 0), False), ((6, 13), True))  # in 6.12 and in 7.2; between them somewhere
EARLY = Since(((0, 0), False), ((6, 13), True))  # in 6.12 and in 7.2; between them somewhere
FILLER = NOPS[1][0]  # what the padding in front of a function holds until then
# Functions whose callers are not tracked.
UNTRACKED = (
    "error_entry",
    "paranoid_entry",
    "xen_error_entry",
    "__switch_to_asm",
    "ret_from_fork",
    "soft_restart_cpu",
    "__fentry__",
)


def apply(subject: Subject, *, early: bool) -> None:
    """Aim the calls of core text at the padding of the functions they call.

    Parameters
    ----------
    early
        Whether alternatives have not been applied yet; does nothing in a version that is not so.
    """
    environment = subject.environment
    if FEATURE not in environment.features or EARLY.at(environment.version) != early:
        return
    sites = subject.sites(".call_sites")
    if not early:
        others = np.unique(alternatives.places(subject))
        sites = np.concatenate((sites, others[~np.isin(others, sites)]))
    sites = sites[subject.within(sites, MemType.TEXT)]
    code = subject.bytes_at(subject.offsets(sites, CALL_SIZE), CALL_SIZE)
    is_call = code[:, 0] == CALL
    sites, code = sites[is_call], code[is_call]
    called = targets(code, sites)
    new = redirected(subject, called)
    moved = new != called
    at = subject.offsets(sites[moved], CALL_SIZE)
    subject.write(at, aimed(code[moved], sites[moved], new[moved]))


def redirected(subject: Subject, called: U64) -> U64:
    """Return where calls of `called` go; padding of the module's own functions is filled."""
    environment = subject.environment
    if FEATURE not in environment.features or not called.size:
        return called
    functions, which = np.unique(called, return_inverse=True)
    body = _padding(functions, environment)
    starts = functions - np.uint64(body.shape[1])
    own = subject.within(functions)
    padded = ~own & _padded_elsewhere(subject, functions)
    ours = np.flatnonzero(own & subject.within(functions, MemType.TEXT) & subject.within(starts))
    at = subject.offsets(starts[ours], body.shape[1])
    room = subject.bytes_at(at, body.shape[1])
    free = (room == FILLER).all(axis=1)
    subject.write(at[free], body[ours[free]])
    padded[ours] = free | (room == body[ours]).all(axis=1)
    return np.where(padded, starts, functions)[which]


def _padded_elsewhere(subject: Subject, functions: U64) -> NDArray[np.bool_]:
    """Return which functions of the kernel and of other modules have padding.

    The kernel's have a symbol in front; what modules export is compiled code, which has
    padding in a kernel that counts calls.
    """
    symbols = subject.environment.symbols
    kernel = functions >= np.uint64(symbols.get("_text", 0))
    kernel &= functions < np.uint64(symbols.get("_end", 0))
    text = kernel & (functions < np.uint64(symbols.get("_etext", 0)))
    untracked = np.array([symbols.get(name, 0) for name in UNTRACKED], np.uint64)
    known = np.append(subject.environment.padded, np.uint64(0))
    padded = known[np.searchsorted(known[:-1], functions)] == functions
    if ASSEMBLY.at(subject.environment.version):
        padded |= functions % np.uint64(ALIGNED) == 0
    return np.asarray((text & padded | ~kernel) & ~np.isin(functions, untracked))


def _padding(functions: U64, environment: Environment) -> U8:
    """Return `sarq $5, %gs:DEPTH(%rip)` in front of functions (INCREMENT_CALL_DEPTH)."""
    code = rows(bytes.fromhex("6548c13d0000000005"), functions.size).copy()
    name, offset = DEPTH.at(environment.version)
    depth = np.uint64(environment.symbol(name) + offset)
    code[:, 4:8] = (depth - functions).astype("<u4")[:, None].view(np.uint8)
    return code
