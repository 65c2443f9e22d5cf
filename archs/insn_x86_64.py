# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64 instructions: how long they are, and where their fields stand.

Nothing else can be seen of code whose instructions have any length from 1 to 15 bytes: what
finalising and patching need is where one ends, which bytes are a displacement and which an
immediate, and which of them count from the instruction's own end. Enough of Intel's opcode
maps (SDM volume 2, chapter 2 and appendix A) to walk over code that a compiler made for the
kernel: legacy, VEX and EVEX encodings of 64-bit mode.
"""

from __future__ import annotations

import attrs

CALL, JUMP, JUMP8, ESCAPE = 0xE8, 0xE9, 0xEB, 0x0F
INT3, RET = 0xCC, 0xC3
# General registers, by their number in instructions.
REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
# The NOPs that the kernel prefers, by length (asm/nops.h; Intel SDM vol. 2, NOP, table 4-12).
NOPS = tuple(
    bytes.fromhex(code)
    for code in (
        "",
        "90",
        "6690",
        "0f1f00",
        "0f1f4000",
        "0f1f440000",
        "660f1f440000",
        "0f1f8000000000",
        "0f1f840000000000",
        "660f1f840000000000",
        "66660f1f840000000000",
        "6666660f1f840000000000",
    )
)


# What kernels before 5.13 took on AMD's CPUs up to family 15 (K8_NOP*).
K8_NOPS = tuple(
    bytes.fromhex(code)
    for code in (
        "",
        "90",
        "6690",
        "666690",
        "66666690",
        "6666906690",
        "666690666690",
        "66666690666690",
        "6666669066666690",
    )
)
K8_ATOMIC_NOP = bytes.fromhex("6666666690")  # of five bytes, where a CPU may meet half of two


@attrs.frozen
class Instruction:
    """One decoded instruction; fields are offset and size in bytes, size 0 for none.

    Parameters
    ----------
    opcode
        Its bytes, without prefixes, escape bytes included.
    displacement, immediate
        Where they stand in the instruction; the target of a branch is an immediate.
    relative
        Whether the displacement counts from the instruction pointer.
    """

    length: int
    prefixes: bytes
    opcode: bytes
    displacement: tuple[int, int]
    immediate: tuple[int, int]
    relative: bool

    @property
    def is_nop(self) -> bool:
        """Whether the kernel takes it for a NOP (insn_is_nop)."""
        return self.opcode[:2] == b"\x0f\x1f" or (
            self.opcode[:1] == b"\x90" and self.prefixes[:1] != b"\xf3"
        )

    @property
    def is_branch(self) -> bool:
        """Whether the immediate is the distance of a call, a jump or a conditional jump."""
        first = self.opcode[0]
        return (
            first in (CALL, JUMP, JUMP8)
            or first >> 4 == 7
            or (first == ESCAPE and self.opcode[1] >> 4 == 8)
        )


_PREFIXES = frozenset(bytes.fromhex("262e363e64656667f0f2f3"))


def _bytes(*spans: tuple[int, int]) -> frozenset[int]:
    return frozenset(value for first, last in spans for value in range(first, last + 1))


# One-byte opcodes by what follows them; those not named stand alone.
_MODRM = _bytes(
    *((row, row + 3) for row in range(0x00, 0x40, 8)),
    (0x63, 0x63),
    (0x69, 0x69),
    (0x6B, 0x6B),
    (0x80, 0x8F),
    (0xC0, 0xC1),
    (0xC6, 0xC7),
    (0xD0, 0xD3),
    (0xD8, 0xDF),
    (0xF6, 0xF7),
    (0xFE, 0xFF),
)
_IMM8 = _bytes(
    *((row + 4, row + 4) for row in range(0x00, 0x40, 8)),
    (0x6A, 0x6B),
    (0x70, 0x7F),
    (0x80, 0x80),
    (0x83, 0x83),
    (0xA8, 0xA8),
    (0xB0, 0xB7),
    (0xC0, 0xC1),
    (0xC6, 0xC6),
    (0xCD, 0xCD),
    (0xE0, 0xE7),
    (0xEB, 0xEB),
)
_IMM32 = _bytes(
    *((row + 5, row + 5) for row in range(0x00, 0x40, 8)),
    (0x68, 0x69),
    (0x81, 0x81),
    (0xA9, 0xA9),
    (0xB8, 0xBF),
    (0xC7, 0xC7),
    (0xE8, 0xE9),
)
_INVALID = _bytes(
    *((row, row + 1) for row in (0x06, 0x16, 0x1E, 0x60)),
    *((row, row) for row in (0x0E, 0x27, 0x2F, 0x37, 0x3F, 0x82, 0x9A, 0xCE, 0xD6, 0xEA)),
    (0xD4, 0xD5),
)
# Behind 0F.
_ALONE_0F = _bytes(
    (0x05, 0x09), (0x0B, 0x0B), (0x0E, 0x0E), (0x30, 0x37), (0x77, 0x77), (0x80, 0x8F),
    (0xA0, 0xA2), (0xA8, 0xAA), (0xC8, 0xCF),
)  # fmt: skip
_IMM8_0F = _bytes(
    (0x0F, 0x0F), (0x70, 0x73), (0xA4, 0xA4), (0xAC, 0xAC), (0xBA, 0xBA), (0xC2, 0xC2), (0xC4, 0xC6)
)


def decode(code: bytes, at: int = 0) -> Instruction | None:
    """Return the instruction at an offset of 64-bit code; None where there is none, or a part."""
    try:
        return _decode(code, at)
    except IndexError:
        return None


def _decode(code: bytes, start: int) -> Instruction | None:
    at = start
    while code[at] in _PREFIXES:
        at += 1
    prefixes = code[start:at]
    wide = False
    if code[at] >> 4 == 4:
        wide = bool(code[at] & 8)
        at += 1
        if code[at] in _PREFIXES or code[at] >> 4 == 4:
            return None  # a REX prefix that does not count
    opcode_at, byte = at, code[at]
    at += 1
    table = 0
    if byte in (0x62, 0xC4, 0xC5):  # EVEX and VEX: the map stands in the prefix
        table = 1 if byte == 0xC5 else code[at] & (0x1F if byte == 0xC4 else 0x7)
        at += {0x62: 3, 0xC4: 2, 0xC5: 1}[byte]
        if table not in (1, 2, 3):
            return None
        opcode_at = at
        byte = code[at]
        at += 1
        modrm = (table, byte) != (1, 0x77)
    elif byte == ESCAPE:
        byte, table = code[at], 1
        at += 1
        if byte in (0x38, 0x3A):
            table = 2 if byte == 0x38 else 3
            byte = code[at]
            at += 1
        modrm = table > 1 or byte not in _ALONE_0F
    else:
        if byte in _INVALID:
            return None
        modrm = byte in _MODRM
    opcode = code[opcode_at:at]
    displacement, relative, field = (0, 0), False, 0
    if modrm:
        mod, field, base = code[at] >> 6, code[at] >> 3 & 7, code[at] & 7
        if table == 1 and 0x20 <= byte <= 0x23:
            mod = 3  # control and debug registers
        at += 1
        relative = mod == 0 and base == 5
        if mod != 3 and base == 4:
            base = code[at] & 7
            at += 1
        size = {0: 4 if base == 5 else 0, 1: 1, 2: 4, 3: 0}[mod]
        displacement = (at - start, size)
        at += size
    size = _immediate(table, byte, field, prefixes, wide=wide)
    end = at + size
    if end > len(code):
        return None
    return Instruction(end - start, prefixes, opcode, displacement, (at - start, size), relative)


def _immediate(table: int, byte: int, field: int, prefixes: bytes, *, wide: bool) -> int:
    """Return the size of an instruction's immediate."""
    if table == 3:
        return 1
    if table == 1:
        return 4 if byte >> 4 == 8 else int(byte in _IMM8_0F)
    if table:
        return 0
    short = 2 if 0x66 in prefixes and not wide else 4
    if byte in (CALL, JUMP):
        return 4
    if byte in _IMM32:
        return 8 if wide and byte >> 3 == 0x17 else short
    if 0xA0 <= byte <= 0xA3:
        return 4 if 0x67 in prefixes else 8
    if byte in (0xF6, 0xF7) and field < 2:
        return 1 if byte == 0xF6 else short
    return {0xC2: 2, 0xCA: 2, 0xC8: 3}.get(byte, int(byte in _IMM8))


# Bits of RFLAGS that the eight pairs of conditions test (SDM, volume 1, appendix B).
_CARRY, _PARITY, _ZERO, _SIGN, _OVERFLOW = 1 << 0, 1 << 2, 1 << 6, 1 << 7, 1 << 11


def holds(condition: int, flags: int) -> bool:
    """Return whether condition code 0..15 of a Jcc holds."""
    less = bool(flags & _SIGN) is not bool(flags & _OVERFLOW)
    found = (
        flags & _OVERFLOW,
        flags & _CARRY,
        flags & _ZERO,
        flags & (_CARRY | _ZERO),
        flags & _SIGN,
        flags & _PARITY,
        less,
        less or flags & _ZERO,
    )[condition >> 1]
    return bool(found) is not bool(condition & 1)
