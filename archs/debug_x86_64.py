# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of x86-64 as gdb calls them (64bit-core, sse and segments of its manual)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from archs.levels.debug import VECTOR, Debug, Feature, Frames, Register, Sleeping, Unwind
from archs.versions import Since, Version

_GENERAL = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()
_POINTERS = ("rbp", "rsp")
_SEGMENTS = "cs ss ds es fs gs".split()
_X87 = {
    "fctrl": "fpcw",
    "fstat": "fpsw",
    "ftag": "fptag",
    "fiseg": None,
    "fioff": None,
    "foseg": None,
    "fooff": None,
    "fop": None,
}

# ORC: six bytes for each address (arch/x86/include/asm/orc_types.h). The numbers that it has for
# registers are others in 7.2 than in 6.12, so they are taken from what every table has: functions that have
# just been called, and functions with a frame pointer.
_ENTRY = np.dtype([("sp_offset", "<i2"), ("bp_offset", "<i2"), ("what", "<u2")])
_RSP, _RBP = 7, 6  # DWARF's numbers
# Bits of `what` behind the two registers: mask, and what they are in a frame that was called.
_CALLED = Since(((0, 0), (0xF00, 0)), ((6, 4), (0x700, 0x200)))


def _rows(addresses: bytes, entries: bytes, start: int, version: Version) -> Frames:
    """Return what ORC tables say: sorted, as the kernel has them in memory."""
    ip = np.frombuffer(addresses[: len(addresses) // 4 * 4], "<i4").astype(np.int64)
    table = np.frombuffer(entries[: len(entries) // _ENTRY.itemsize * _ENTRY.itemsize], _ENTRY)
    count = min(ip.size, table.size)
    ip, table = ip[:count], table[:count]
    places = np.uint64(start) + 4 * np.arange(count, dtype=np.uint64)
    mask, called = _CALLED.at(version)
    sp_offset, bp_offset = (table[n].astype(np.int64) for n in ("sp_offset", "bp_offset"))
    register, saved_by = table["what"] & 0xF, table["what"] >> 4 & 0xF
    is_called = table["what"] & mask == called
    stack = _usual(register[is_called & (sp_offset == 8)])
    saved = _usual(saved_by[is_called & (bp_offset < 0) & (saved_by != 0)])
    framed = is_called & (sp_offset == 16) & (bp_offset == -16) & (saved_by == saved)
    pointer = _usual(register[framed & (register != stack)])
    # Others are of code that aligns its stack, or switches it: a handful in a kernel.
    counted = (register == stack) | (register == pointer)
    return Frames(
        places + ip.view(np.uint64),
        is_called & counted & ((saved_by == 0) | (saved_by == saved)),
        np.where(register == stack, _RSP, _RBP).astype(np.uint8),
        sp_offset,
        np.where(saved_by == saved, bp_offset, 0),
        np.full(count, -8, np.int64),
    )


def _usual(numbers: NDArray[np.uint16]) -> int:
    """Return the number that is there most often; -1 where there is none."""
    return int(np.bincount(numbers).argmax()) if numbers.size else -1


DEBUG = Debug(
    architecture="i386:x86-64",
    features=(
        Feature(
            "org.gnu.gdb.i386.core",
            (
                *(Register(n, type="data_ptr" if n in _POINTERS else "int64") for n in _GENERAL),
                Register("rip", type="code_ptr"),
                Register("eflags", 32, "rflags", type="i386_eflags"),
                *(Register(name, 32, type="int32") for name in _SEGMENTS),
                *(Register(f"st{n}", 80, type="i387_ext") for n in range(8)),
                *(Register(n, 32, source, "int", "float") for n, source in _X87.items()),
            ),
        ),
        Feature(
            "org.gnu.gdb.i386.sse",
            (
                *(Register(f"xmm{n}", 128, type=VECTOR) for n in range(16)),
                Register("mxcsr", 32, type="int", group="vector"),
            ),
        ),
        Feature(
            "org.gnu.gdb.i386.segments",
            (Register("fs_base", type="int"), Register("gs_base", type="int")),
        ),
    ),
    system="org.execmem.i386.system",
    counter="rip",
    stack="rsp",
    columns=(16, 7),
    # arch/x86/include/asm/switch_to.h: what __switch_to_asm() pushes.
    sleeping=Sleeping(
        pointer="thread.sp",
        frame="inactive_task_frame",
        framed={
            "r15": "r15",
            "r14": "r14",
            "r13": "r13",
            "r12": "r12",
            "rbx": "bx",
            "rbp": "bp",
            "rip": "ret_addr",
        },
    ),
    unwind=Unwind(
        sections=(".orc_unwind_ip", ".orc_unwind"),
        symbols=(
            ("__start_orc_unwind_ip", "__stop_orc_unwind_ip"),
            ("__start_orc_unwind", "__stop_orc_unwind"),
        ),
        tables=_rows,
        pointer=6,
        unknown=(3, 12, 13, 14, 15),
    ),
)
