# SPDX-License-Identifier: GPL-2.0-or-later
"""What trap instructions that compilers leave in a kernel's code say: which check has failed.

A check costs a compare, a branch, and a trap that nobody should reach. Where it is reached,
the kernel reads from the instruction, and from those before it, what was checked (arch/*/
kernel/traps.c, cfi.c; lib/ubsan.c). BUG and WARN use the same traps, and a table.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

BEFORE = 16  # bytes of code before a trap that are looked at
# lib/ubsan.h, enum ubsan_checks: numbers of the compiler's.
UBSAN: Mapping[int, str] = dict(
    enumerate(
        (
            "addition overflow",
            "unreachable code",
            "CFI check",
            "division by zero or overflow",
            "dynamic type",
            "float cast overflow",
            "function type mismatch",
            "implicit conversion",
            "invalid argument of a builtin",
            "invalid cast",
            "invalid value of a bool or an enum",
            "missing return",
            "multiplication overflow",
            "negation overflow",
            "null argument",
            "null result",
            "null argument",
            "null result",
            "array index out of bounds",
            "pointer overflow",
            "shift out of bounds",
            "subtraction overflow",
            "misaligned or null pointer",
            "alignment assumption",
            "size of an array",
        )
    )
)
_REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()


@attrs.frozen(kw_only=True)
class Trap:
    """What a trap says.

    Parameters
    ----------
    what
        `cfi`, `ubsan`, `kasan`, or nothing.
    detail
        Of which kind the failed check was.
    size
        Bytes of the trap instruction.
    target
        For `cfi`: the register that holds the function that was to be called.
    away
        For `cfi`: so many bytes before the function its type stands.
    expected
        For `cfi`: the type, or the register that holds it.
    """

    what: str = ""
    detail: str = ""
    size: int
    target: str = ""
    away: int = 4
    expected: int | str = 0


def x86_64(before: bytes, code: bytes) -> Trap | None:
    """Return what UD2 and UD1 say, given the bytes before and from there on; None for others."""
    if code[:2] == b"\x0f\x0b":
        return _kcfi_x86_64(before) or Trap(size=2)
    # UD1 disp(%eax), %eax with an address-size prefix: the displacement is the check.
    if code[:3] == b"\x67\x0f\xb9" and len(code) > 3 and code[3] & 7 == 0:
        width = {0: 0, 0x40: 1, 0x80: 4}.get(code[3] & 0xC0)
        if width is not None and len(code) >= 4 + width:
            number = int.from_bytes(code[4 : 4 + width], "little")
            return Trap(what="ubsan", detail=_ubsan(number), size=4 + width)
    return None


def _kcfi_x86_64(before: bytes) -> Trap | None:
    """Decode MOV $-type, %r10d ; ADD -away(%target), %r10d ; JE +2, which stand before UD2."""
    for size in (4, 5):  # r12 takes a SIB byte more
        if before[-2:] != b"\x74\x02" or len(before) < 8 + size:
            return None
        move, add = before[-8 - size : -2 - size], before[-2 - size : -2]
        base = add[2] & 7 | (add[0] & 1) << 3
        sib = size == 5 and add[2] & 7 == 4 and add[3] == 0x24
        if (
            move[:2] == b"\x41\xba"
            and add[0] & 0xFE == 0x44
            and add[1] == 3
            and add[2] & 0xF8 == 0x50
            and (sib or (size == 4 and add[2] & 7 != 4))
        ):
            away = 256 - add[-1] if add[-1] & 0x80 else -add[-1]
            expected = -int.from_bytes(move[2:], "little") & 0xFFFF_FFFF
            return Trap(what="cfi", size=2, target=_REGISTERS[base], away=away, expected=expected)
    return None


def arm64(_before: bytes, code: bytes) -> Trap | None:
    """Return what BRK's number says; None for other instructions (asm/brk-imm.h)."""
    word = int.from_bytes(code[:4], "little")
    if word & 0xFFE0_001F != 0xD420_0000:
        return None
    number = word >> 5 & 0xFFFF
    if 0x8000 <= number < 0x8400:
        target, kind = number & 31, number >> 5 & 31
        return Trap(what="cfi", size=4, target=f"x{target}", expected=f"x{kind}")
    if number >> 8 == 0x55:
        return Trap(what="ubsan", detail=_ubsan(number & 0xFF), size=4)
    if number >> 8 == 0x09:
        access = "write" if number & 0x10 else "read"
        return Trap(what="kasan", detail=f"{access} of {1 << (number & 15):#x} bytes", size=4)
    return Trap(size=4)


def riscv64(before: bytes, code: bytes) -> Trap | None:
    """Return what EBREAK says; None for other instructions (arch/riscv/kernel/cfi.c).

    A type check ends in LW t1, -4(target) ; LUI t2 ; ADDIW t2 ; BEQ t1, t2.
    """
    if code[:2] == b"\x02\x90":
        return Trap(size=2)
    if code[:4] != b"\x73\x00\x10\x00":
        return None
    load, upper, lower, branch = (
        int.from_bytes(before[at : at + 4], "little") for at in range(0, 16, 4)
    )
    if (
        len(before) == BEFORE
        and load & 0xFFF0_7FFF == 0xFFC0_2303
        and upper & 0xFFF == 0x3B7
        and lower & 0xF_FFFF == 0x3839B
        and branch == 0x0073_0463
    ):
        expected = (upper & 0xFFFF_F000) + ((lower >> 20 ^ 0x800) - 0x800) & 0xFFFF_FFFF
        return Trap(what="cfi", size=4, target=f"x{load >> 15 & 31}", expected=expected)
    return Trap(size=4)


def mips64el(_before: bytes, code: bytes) -> Trap | None:
    """Return what BREAK and the conditional traps say; None for other instructions (asm/break.h)."""
    word = int.from_bytes(code[:4], "little")
    if word >> 26 or word & 0x3F not in (0x0D, 0x30, 0x31, 0x32, 0x33, 0x34, 0x36):
        return None
    number = word >> 16 & 0x3FF if word & 0x3F == 0x0D else word >> 6 & 0x3FF
    if number == 7:
        return Trap(what="ubsan", detail=_ubsan(3), size=4)
    return Trap(size=4)


def _ubsan(number: int) -> str:
    return UBSAN.get(number, f"check {number}")
