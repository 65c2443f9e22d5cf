# SPDX-License-Identifier: GPL-2.0-or-later
"""The code of static call sites (arch/x86/kernel/static_call.c)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from archs.environment import Environment
from archs.insn_x86_64 import CALL, JUMP, NOPS
from archs.passes.subject import U8, U64, Subject
from archs.passes.x86_64.branches import LONGEST, aimed, lengths
from archs.passes.x86_64.callthunks import redirected
from archs.passes.x86_64.returns import returns, thunk_of

WARNING, TRAP = "__WARN_trap", bytes.fromhex("67480fb93a")  # ud1 (%edx), %rdi
CLEAR_RAX = bytes.fromhex("2e2e2e31c0")  # cs cs cs xorl %eax, %eax


def write(subject: Subject, sites: U64, functions: U64, tail: NDArray[np.bool_]) -> None:
    """Write the calls of functions (0: of nothing) at the sites."""
    counted = (functions != 0) & ~tail  # a tail call enters the function itself
    functions[counted] = redirected(subject, functions[counted])
    code = subject.bytes_at(subject.offsets(sites), LONGEST)
    length = lengths(code)
    for size in set(length.tolist()) - {0}:
        chosen = np.flatnonzero(length == size)
        at = subject.offsets(sites[chosen], size)
        calls = sites[chosen], functions[chosen], tail[chosen]
        subject.write(at, _code(code[chosen, :size], *calls, subject.environment))


def _code(
    code: U8, places: U64, functions: U64, tail: NDArray[np.bool_], environment: Environment
) -> U8:
    """Return what stands at the sites, given what stood there."""
    symbols, none = environment.symbols, functions == 0
    if code.shape[1] == 6:  # Jcc.d32, a tail call
        name = "__static_call_return"
        if "rethunk" in environment.features:
            name = thunk_of(environment)
        nowhere = np.uint64(environment.symbol(name)) if none.any() else np.uint64(0)
        return aimed(code, places, np.where(none, nowhere, functions))
    opcode = np.where(tail, JUMP, CALL).astype(np.uint8)
    new = aimed(np.repeat(opcode[:, None], 5, axis=1), places, functions)
    new[none & ~tail] = np.frombuffer(NOPS[5], np.uint8)
    new[none & tail] = returns(places[none & tail], environment)
    if WARNING in symbols:
        new[~tail & (functions == np.uint64(symbols[WARNING]))] = np.frombuffer(TRAP, np.uint8)
    zero = np.uint64(symbols.get("__static_call_return0", 0))
    new[~none & ~tail & (functions == zero)] = np.frombuffer(CLEAR_RAX, np.uint8)
    return new
