# SPDX-License-Identifier: GPL-2.0-or-later
"""arm64: words of four bytes, and a link register that somebody must keep.

The compiler leaves two NOPs at a function's entry, and with CALL_OPS (Debian's kernel) eight
bytes before it that name the tracer's operations. A traced entry is MOV x9, x30 ; BL
trampoline: x9 holds the caller's return address, x30 the way into the function, and by the
procedure call standard x9 to x17 are nobody's at this point. BL reaches 128 MiB; a trampoline
beyond is reached through the module's own `.text.ftrace_trampoline` slot.

What a probe replaces runs in a slot, except what is relative to the program counter: that is
imitated (arch/arm64/kernel/probes/simulate-insn.c). What decode-insn.c refuses is refused:
exceptions, system register writes, literal loads into vector registers, and everything
between a load-exclusive and its store, which an exception would make fail for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from archs.text import (
    Ftrace,
    Guest,
    Insn,
    JumpLabels,
    Kprobes,
    Register,
    TextPatching,
    sign,
    word,
)

MASK64 = (1 << 64) - 1
NOP = word(0xD503_201F)
MOV_X9_X30 = word(0xAA1E_03E9)
BTI = frozenset(word(0xD503_241F | kind << 6) for kind in range(4))
BRK_KPROBE = word(0xD420_0000 | 0x004 << 5)  # KPROBES_BRK_IMM
# Hints that work out of line: NOP, XPACLRI, PACIA1716, PACIB1716, PAC.Z, PAC.SP, BTI.
_HINTS = frozenset((0, 7, 8, 10, 24, 25, 26, 27, 32, 34, 36, 38))
_DAIF = 0xDA11


def _branch(opcode: int, place: int, target: int) -> bytes | None:
    distance = target - place
    if not -(1 << 27) <= distance < 1 << 27 or distance % 4:
        return None
    return word(opcode | distance >> 2 & 0x3FF_FFFF)


def _jump(place: int, target: int, _size: int) -> bytes | None:
    return _branch(0x1400_0000, place, target)


def _jump_size(code: bytes) -> int:
    first = int.from_bytes(code[:4], "little")
    return 4 if code[:4] == NOP or first & 0xFC00_0000 == 0x1400_0000 else 0


# Call sites at function entries ------------------------------------------------------------------


def _locate(entry: int, code: bytes) -> int | None:
    """Return the site: at the entry, or behind the eight bytes of CALL_OPS (ftrace_call_adjust)."""
    if code[:4] == MOV_X9_X30:
        return entry
    if entry % 8:
        return None  # the kernel warns of a misaligned site and leaves it alone
    return entry + (12 if code[8:12] in BTI else 8)


def _call(site: int, target: int) -> bytes | None:
    branch = _branch(0x9400_0000, site + 4, target)
    return None if branch is None else MOV_X9_X30 + branch


def _idle(_site: int, code: bytes, _stub: int | None) -> bool:
    return code in (NOP + NOP, MOV_X9_X30 + NOP)


def _code(*words: int, literal: int) -> bytes:
    """Return instructions and, behind them at a multiple of eight, a pointer."""
    code = b"".join(word(value) for value in words)
    return code + NOP * (len(words) % 2) + word(literal, 8)


def _enter(_place: int, stub: int) -> bytes:
    """Return MOV x10, x30 ; LDR x16, stub ; BLR x16 ; MOV x30, x9 ; BR x10."""
    return _code(
        0xAA1E_03EA, 0x5800_0010 | 5 << 5, 0xD63F_0200, 0xAA09_03FE, 0xD61F_0140, literal=stub
    )


def _exit(_place: int, stub: int) -> bytes:
    """Return LDR x16, stub ; BLR x16 ; MOV x30, x9 ; RET, where the tracer sets x9."""
    return _code(0x5800_0010 | 4 << 5, 0xD63F_0200, 0xAA09_03FE, 0xD65F_03C0, literal=stub)


def _redirect(_place: int, target: int) -> bytes:
    """Return MOV x30, x9 ; LDR x16, target ; BR x16."""
    return _code(0xAA09_03FE, 0x5800_0010 | 3 << 5, 0xD61F_0200, literal=target)


# Probes ----------------------------------------------------------------------------------------


def _get(guest: Guest, number: int) -> int:
    return 0 if number == 31 else guest.read(f"x{number}")


def _set(guest: Guest, number: int, value: int) -> None:
    if number != 31:
        guest.write(f"x{number}", value & MASK64)


def _holds(condition: int, nzcv: int) -> bool:
    """Return whether a condition holds (Arm ARM, C1.2.4)."""
    n, z, c, v = (bool(nzcv >> bit & 1) for bit in (31, 30, 29, 28))
    value = (z, c, n, v, c and not z, n == v, n == v and not z, True)[condition >> 1]
    return value != (condition & 1 and condition != 15)


def _simulated(insn: int, address: int) -> Callable[[Guest], int] | None:
    """Return what stands in for an instruction that depends on its address, or None."""
    after, target26 = address + 4 & MASK64, address + 4 * sign(insn, 26) & MASK64
    target19 = address + 4 * sign(insn >> 5, 19) & MASK64
    target14 = address + 4 * sign(insn >> 5, 14) & MASK64
    rd, rn, wide = insn & 31, insn >> 5 & 31, bool(insn >> 31)

    def b(guest: Guest) -> int:
        if wide:
            guest.write("x30", after)
        return target26

    def b_cond(guest: Guest) -> int:
        return target19 if _holds(insn & 15, guest.read("nzcv")) else after

    def cbz(guest: Guest) -> int:
        value = _get(guest, rd) & (MASK64 if wide else 0xFFFF_FFFF)
        return target19 if (value == 0) != bool(insn >> 24 & 1) else after

    def tbz(guest: Guest) -> int:
        bit = _get(guest, rd) >> (wide << 5 | insn >> 19 & 31) & 1
        return target14 if bit == insn >> 24 & 1 else after

    def br(guest: Guest) -> int:
        to = _get(guest, rn)
        if insn >> 21 & 3 == 1:
            guest.write("x30", after)
        return to

    def adr(guest: Guest) -> int:
        value = sign(insn >> 5, 19) << 2 | insn >> 29 & 3
        _set(guest, rd, (address & -4096) + (value << 12) if wide else address + value)
        return after

    def ldr(guest: Guest) -> int:
        kind = insn >> 30
        value = guest.load(target19, 8 if kind == 1 else 4)
        _set(guest, rd, sign(value, 32) if kind == 2 else value)
        return after

    if insn & 0x7C00_0000 == 0x1400_0000:
        return b
    if insn & 0xFF00_0000 == 0x5400_0000:
        return b_cond
    if insn & 0x7E00_0000 == 0x3400_0000:
        return cbz
    if insn & 0x7E00_0000 == 0x3600_0000:
        return tbz
    if insn & 0xFFFF_FC1F in (0xD61F_0000, 0xD63F_0000, 0xD65F_0000):
        return br
    if insn & 0x1F00_0000 == 0x1000_0000:
        return adr
    if insn & 0x3F00_0000 == 0x1800_0000 and insn >> 30 != 3:
        return ldr
    return None


def _refusal(insn: int) -> str:
    """Return why the kernel does not run an instruction out of line (aarch64_insn_is_steppable)."""
    if insn & 0x1C00_0000 == 0x1400_0000:  # branches, exceptions, system
        if insn >> 24 == 0xD4:
            return "it takes an exception"
        if insn >> 25 == 0xD6 >> 1:
            return "an authenticated branch cannot be imitated"
        if insn & 0xFFF8_F01F == 0xD500_401F or insn & 0xFFF0_0000 == 0xD510_0000:
            return "it writes a system register"
        if insn & 0xFFF0_0000 == 0xD530_0000 and insn >> 5 & 0xFFFF == _DAIF:
            return "it reads the interrupt mask, which a probe changes"
        if insn & 0xFFFF_F01F == 0xD503_201F and insn >> 5 & 0x7F not in _HINTS:
            return "a hint that does not work out of line"
        return ""
    if insn & 0x3B00_0000 == 0x1800_0000:
        return "a literal load of this kind cannot be imitated"
    if _exclusive(insn):
        return "an exclusive access"
    return ""


def _exclusive(insn: int) -> int:
    """Return 1 for a load-exclusive, -1 for a store-exclusive, 0 for anything else."""
    pair = insn >> 21 & 1
    if insn & 0x3F80_0000 != 0x0800_0000 or (pair and not insn >> 31):  # the latter is CASP
        return 0
    return 1 if insn >> 22 & 1 else -1


def decode(code: bytes, address: int) -> Insn:
    """Return what a probe makes of the instruction that `code` begins with."""
    if len(code) < 4 or address % 4:
        return Insn(size=0, refusal="no valid instruction")
    insn = int.from_bytes(code[:4], "little")
    if insn >> 16 == 0:
        return Insn(size=4, refusal="an undefined instruction")
    simulate = _simulated(insn, address)
    return Insn(
        size=4,
        refusal="" if simulate else _refusal(insn),
        simulate=simulate,
        exclusive=_exclusive(insn),
    )


PATCHING = TextPatching(
    jump_labels=JumpLabels(nops={4: NOP}, jump=_jump, size=_jump_size),
    static_calls=None,
    ftrace=Ftrace(
        table="__patchable_function_entries",
        locate=_locate,
        size=8,
        stub=None,
        idle=_idle,
        call=_call,
        plt_sections=(".text.ftrace_trampoline", ".init.text.ftrace_trampoline"),
        enter=_enter,
        exit=_exit,
        redirect=_redirect,
        code_size=32,
        site_end=Register("x10"),
        parent=Register("x9"),
        returns_to=Register("x9"),
    ),
    kprobes=Kprobes(
        breakpoint=lambda _size: BRK_KPROBE,
        decode=decode,
        registers=(*(f"x{n}" for n in range(31)), "sp", "pc", "nzcv"),
    ),
)
