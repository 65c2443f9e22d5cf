# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of x86-64 (Intel SDM 1, 3.4; 4, 2.1), and instructions that repeat themselves."""

from __future__ import annotations

from archs.registers import Registers

_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_STACK = tuple(f"st{number}" for number in range(8))
_CONTROL = ("fpcw", "fpsw", "fptag")
_VECTORS = tuple(f"xmm{number}" for number in range(16))
_REPEAT, _ADDRESS_32 = b"\xf2\xf3", 0x67
_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"
_REX = range(0x40, 0x50)
# INS, OUTS, MOVS, STOS, LODS; and CMPS and SCAS, which end where something differs, or does not.
_COUNTED = b"\x6c\x6d\x6e\x6f\xa4\xa5\xaa\xab\xac\xad"
_CONDITIONAL = b"\xa6\xa7\xae\xaf"


def repeated(code: bytes) -> str | None:
    """Return what counts the repetitions of an instruction; None: it has no REP."""
    at, repeats, counter = 0, False, "rcx"
    while at < len(code) and code[at] in _PREFIXES:
        repeats = repeats or code[at] in _REPEAT
        counter = "ecx" if code[at] == _ADDRESS_32 else counter
        at += 1
    if at < len(code) and code[at] in _REX:
        at += 1
    if not repeats or at >= len(code) or code[at] not in _COUNTED + _CONDITIONAL:
        return None
    return counter if code[at] in _COUNTED else ""


REGISTERS = Registers(
    general=(
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
        *(f"r{number}" for number in range(8, 16)),
        "rflags",
    ),
    float=(*_STACK, *_CONTROL),
    vector=(*_VECTORS, "mxcsr"),
    system=(*_SEGMENTS, "fs_base", "gs_base", "cr0", "cr2", "cr3", "cr4", "cr8"),
    places={
        "efer": 0xC000_0080,
        "star": 0xC000_0081,
        "lstar": 0xC000_0082,
        "cstar": 0xC000_0083,
        "fmask": 0xC000_0084,
        "kernel_gs_base": 0xC000_0102,
        "tsc_aux": 0xC000_0103,
    },
    widths={
        **dict.fromkeys((*_SEGMENTS, *_CONTROL), 16),
        **dict.fromkeys(_STACK, 80),
        **dict.fromkeys(_VECTORS, 128),
        "mxcsr": 32,
    },
    stack=("st", "fp", "fpsw", 11),
    repeated=repeated,
)
