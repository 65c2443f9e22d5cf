# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of arm64 as gdb calls them (aarch64 core and fpu of its manual)."""

from __future__ import annotations

from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from archs.levels.debug import VECTOR, Debug, Feature, Frames, Register, Sleeping, Unwind

# Instructions that make and undo a frame (Arm ARM, C6.2): mask, value.
_PUSH = 0xFFC0_7FFF, 0xA980_7BFD  # STP X29, X30, [SP, #-n]!
_STORE = 0xFFC0_7FFF, 0xA900_7BFD  # STP X29, X30, [SP, #n]
_POINT = 0xFFC0_03FF, 0x9100_03FD  # ADD X29, SP, #n; n = 0 is MOV
_POP = 0xFFC0_7FFF, 0xA8C0_7BFD  # LDP X29, X30, [SP], #n
_LOAD = 0xFFC0_7FFF, 0xA940_7BFD  # LDP X29, X30, [SP, #n]
_GROW = 0xFFC0_03FF, 0xD100_03FF  # SUB SP, SP, #n
_SHRINK = 0xFFC0_03FF, 0x9100_03FF  # ADD SP, SP, #n
_RETURN = 0xFFFF_FFFF, 0xD65F_03C0
_JUMP = 0xFC00_0000, 0x1400_0000  # B: the tail of a function, or a jump in it
_NEAR = 16  # instructions between one that undoes a frame and the end
_SP, _FP = 31, 29


def _rows(code: bytes, start: int, functions: NDArray[np.uint64]) -> Frames:
    """Return the frames of functions by the instructions that make and undo them.

    Code that follows a return or a jump is taken to have the frame that there was before it was
    undone.
    """
    words = np.frombuffer(code[: len(code) // 4 * 4], "<u4")
    masks = (_PUSH, _STORE, _POINT, _POP, _LOAD, _GROW, _SHRINK, _RETURN, _JUMP)
    of_sp = [np.flatnonzero(words & mask == value) for mask, value in masks]
    undoing = np.sort(np.concatenate((of_sp[3], of_sp[4], [-_NEAR])))
    last = undoing[np.searchsorted(undoing, of_sp[8]) - 1]
    of_sp[8] = of_sp[8][of_sp[8] - last < _NEAR]  # the others leave the frame as it is
    inside = functions[(functions >= start) & (functions < start + len(code))]
    begins = ((inside - np.uint64(start)) // np.uint64(4)).astype(np.int64)
    events = [(int(at), -1) for at in begins]
    events += [(int(at), kind) for kind, places in enumerate(of_sp) for at in places]
    rows: list[tuple[int, int, int, int, int]] = []  # word, register, offset, pointer, back
    entry = (_SP, 0, 0, 0)
    state = framed = entry
    undone = False
    for at, kind in sorted(events):
        before = state
        if kind == -1:
            state, framed, undone = entry, entry, False
            rows.append((at, *state))
            continue
        state, framed, undone = _after(kind, int(words[at]), state, framed, undone)
        if state != before:
            rows.append((at + 1, *state))
    rows.sort(key=itemgetter(0))
    table = np.array([*rows, (len(words), *entry)], np.int64)
    return Frames(
        np.uint64(start) + 4 * table[:, 0].astype(np.uint64),
        table[:, 0] < len(words),
        table[:, 1].astype(np.uint8),
        table[:, 2],
        table[:, 3],
        table[:, 4],
    )


_State = tuple[int, int, int, int]


def _after(
    kind: int, word: int, state: _State, framed: _State, undone: bool
) -> tuple[_State, _State, bool]:
    """Return the frame behind an instruction, the one to come back to, and whether it is undone."""
    register, offset, pointer, back = state
    pair = (word >> 15 & 0x7F) * 8
    pair -= (pair & 0x200) << 1
    plain = (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)
    if kind == 0:  # pushed
        offset -= pair
        state = framed = (_SP, offset, -offset, 8 - offset)
    elif kind == 1 and register == _SP and not pointer:  # stored
        state = framed = (_SP, offset, pair - offset, pair + 8 - offset)
    elif kind == 2 and pointer and register == _SP:  # the frame pointer is set
        state = framed = (_FP, offset - plain, pointer, back)
    elif kind in (3, 4) and pointer:  # popped, or loaded
        left = 0 if kind == 3 else pair - pointer
        state, undone = (_SP, left, 0, 0), True
    elif kind in (5, 6) and register == _SP:
        state = (_SP, offset + (plain if kind == 5 else -plain), pointer, back)
        framed = framed if undone else state
    elif kind in (7, 8) and (undone or kind == 7):
        state, undone = framed, False
    return state, framed, undone


DEBUG = Debug(
    architecture="aarch64",
    features=(
        Feature(
            "org.gnu.gdb.aarch64.core",
            (
                *(Register(f"x{n}") for n in range(31)),
                Register("sp", type="data_ptr"),
                Register("pc", type="code_ptr"),
                Register("cpsr", 32, "pstate", type="int32"),
            ),
        ),
        Feature(
            "org.gnu.gdb.aarch64.fpu",
            (
                *(Register(f"v{n}", 128, f"q{n}", VECTOR) for n in range(32)),
                Register("fpsr", 32, type="int"),
                Register("fpcr", 32, type="int"),
            ),
        ),
    ),
    system="org.execmem.aarch64.system",
    counter="pc",
    stack="sp",
    columns=(30, 31),
    firsts=("ret_from_fork",),
    # arch/arm64/include/asm/processor.h: struct cpu_context.
    sleeping=Sleeping(
        registers={
            **{f"x{n}": f"thread.cpu_context.x{n}" for n in range(19, 29)},
            "x29": "thread.cpu_context.fp",
            "sp": "thread.cpu_context.sp",
            "pc": "thread.cpu_context.pc",
        }
    ),
    unwind=Unwind(pointer=_FP, scan=_rows),
)
