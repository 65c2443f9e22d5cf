# SPDX-License-Identifier: GPL-2.0-or-later
"""Indirect branches: compiled as calls of a thunk, and turned into what this boot wants.

The compiler never emits an indirect branch; it calls or jumps to a thunk, one for each
register. On a CPU that needs no protection the branch itself takes the call's place; with
call depth tracking the call leads to another array of thunks, which count; with plain
retpolines it stays (arch/x86/kernel/alternative.c: apply_retpolines).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from archs.environment import Environment
from archs.insn_x86_64 import CALL, ESCAPE, INT3, REGISTERS
from archs.passes.subject import U8, U64, Subject
from archs.passes.x86_64.branches import LONGEST, aimed, lengths, targets
from archs.passes.x86_64.ideal_nops import nops_of
from archs.versions import Since

THUNKS = tuple(f"__x86_indirect_thunk_{name}" for name in REGISTERS)
THUNK_STEP = 32  # from one thunk of an array to the next
COUNTING_THUNKS = ("__x86_indirect_call_thunk_array", "__x86_indirect_jump_thunk_array")
FENCE, CS = bytes.fromhex("0faee8"), 0x2E
ITS_THUNKS, ITS_STEP = "__x86_indirect_its_thunk_array", 64


def apply(subject: Subject) -> None:
    """Rewrite the branches to indirect thunks."""
    sites = subject.sites(".retpoline_sites")
    if not sites.size:
        return
    code = subject.bytes_at(subject.offsets(sites), LONGEST)
    length, target = lengths(code), targets(code, sites)
    register = np.full(sites.size, -1, np.int64)
    for number, name in enumerate(THUNKS):
        if name in subject.imported:
            register[target == np.uint64(subject.imported[name])] = number
    for size in set(length.tolist()) - {0}:
        chosen = np.flatnonzero((length == size) & (register >= 0))
        places, registers = sites[chosen], register[chosen].view(np.uint64)
        new = _indirect(code[chosen, :size], places, registers, subject.environment)
        if new is not None:
            subject.write(subject.offsets(places, size), new)


def _indirect(code: U8, places: U64, registers: U64, environment: Environment) -> U8 | None:
    """Return what takes the place of branches to indirect thunks (patch_retpoline)."""
    features = environment.features
    if "retpoline" in features and "retpoline_lfence" not in features:
        if "call_depth" not in features:
            return None
        calls, jumps = (environment.symbol(name) for name in COUNTING_THUNKS)
        first = np.where((code[:, :2] == CALL).any(axis=1), calls, jumps).astype(np.uint64)
        return aimed(code, places, first + registers * np.uint64(THUNK_STEP))
    # A thousand branches have few forms: the opcode, of one byte or two, and the register.
    opcode = np.ascontiguousarray(code[:, [0, code.shape[1] - 5]]).view("<u2")[:, 0]
    sort = registers | opcode.astype(np.uint64) << np.uint64(8)
    _, chosen, which = np.unique(sort, return_index=True, return_inverse=True)
    fence = "retpoline_lfence" in features
    form, nops = DIRECT.at(environment.version), nops_of(environment)
    kinds = [
        list(form(code[n, :-4].tobytes(), int(registers[n]), code.shape[1], fence, nops))
        for n in chosen.tolist()
    ]
    new: U8 = np.array(kinds, np.uint8).reshape(-1, code.shape[1])[which]
    if "indirect_thunk_its" in features:
        # Where the branch would end in the lower half of a cache line, a thunk that does not.
        # The kernel makes one for each module; the one of its own does the same.
        length = np.uint64(2) + registers // np.uint64(8)
        exposed = places + length - np.uint64(1) & np.uint64(0x20) == 0
        thunks = np.uint64(environment.symbol(ITS_THUNKS)) + registers * np.uint64(ITS_STEP)
        new = np.where(exposed[:, None], aimed(code, places, thunks), new)
    return new


Nops: TypeAlias = tuple[bytes, ...]


def _speculated(opcode: bytes, register: int, length: int, fence: bool, nops: Nops) -> bytes:
    """Return an indirect branch in `length` bytes, for a branch to the register's thunk."""
    code = _condition(opcode, length) + FENCE * fence + _branch(opcode, register)
    return code + nops[length - len(code)]


def _direct(opcode: bytes, register: int, length: int, fence: bool, nops: Nops) -> bytes:
    """Return the same with INT3 behind a jump, against what is executed in speculation."""
    code = _condition(opcode, length) + FENCE * fence + _branch(opcode, register)
    if opcode[-1] != CALL and len(code) < length:
        code += bytes((INT3,))
    return code + nops[length - len(code)]


def _prefixed(opcode: bytes, register: int, length: int, fence: bool, _nops: Nops) -> bytes:
    """Return the same with nothing to execute in the rest: prefixes of a call, INT3 behind a jump."""
    code = _condition(opcode, length) + FENCE * fence
    branch = _branch(opcode, register)
    rest = length - len(code) - len(branch)
    if opcode[-1] == CALL:
        return code + bytes((CS,)) * rest + branch
    return code + branch + bytes((INT3,)) * rest


def _condition(opcode: bytes, length: int) -> bytes:
    """Return what skips a jump that a condition decides: a jump on the opposite one."""
    return bytes((0x70 | (opcode[1] & 0xF) ^ 1, length - 2)) if opcode[0] == ESCAPE else b""


def _branch(opcode: bytes, register: int) -> bytes:
    """Return a call or a jump through a register."""
    field = (0xD0 if opcode[-1] == CALL else 0xE0) | register & 7
    return b"\x41" * (register >= 8) + bytes((0xFF, field))


# The last in 7.2, but not in 6.12; between them somewhere.
DIRECT = Since(((0, 0), _speculated), ((5, 17), _direct), ((6, 13), _prefixed))
