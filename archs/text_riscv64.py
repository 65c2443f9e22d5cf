# SPDX-License-Identifier: GPL-2.0-or-later
"""riscv64: parcels of two bytes, and t0 as the second link register.

The compiler leaves eight bytes of NOPs at a function's entry. A traced entry is AUIPC t0 ;
JALR t0, lo(t0): it reaches as far as any call, and t0 holds the way into the function while
ra still holds the caller's return address. Static branches are four bytes, JAL or NOP, and
reach 1 MiB.

What a probe replaces runs in a slot, except what is relative to the program counter or leaves
the straight line: that is imitated (arch/riscv/kernel/probes/simulate-insn.c). Fences and
system instructions are refused as decode-insn.c does, and so is everything between LR and SC,
which an exception would make fail for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from archs.reloc import Part, Slice
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
NOP = word(0x0000_0013)
C_NOP = word(0x0001, 2)
EBREAK, C_EBREAK = word(0x0010_0073), word(0x9002, 2)
# How formats scatter a displacement (unprivileged ISA, 2.3 and 27.8).
_J = Part(4, (Slice(12, 8, 12), Slice(11, 1, 20), Slice(1, 10, 21), Slice(20, 1, 31)))
_B = Part(4, (Slice(11, 1, 7), Slice(1, 4, 8), Slice(5, 6, 25), Slice(12, 1, 31)))
_CJ = Part(
    2,
    (
        Slice(5, 1, 2),
        Slice(1, 3, 3),
        Slice(7, 1, 6),
        Slice(6, 1, 7),
        Slice(10, 1, 8),
        Slice(8, 2, 9),
        Slice(4, 1, 11),
        Slice(11, 1, 12),
    ),
)
_CB = Part(2, (Slice(5, 1, 2), Slice(1, 2, 3), Slice(6, 2, 5), Slice(3, 2, 10), Slice(8, 1, 12)))


def _jump(place: int, target: int, _size: int) -> bytes | None:
    distance = target - place
    if not -(1 << 20) <= distance < 1 << 20 or distance % 2:
        return None
    return word(_J.insert(0x6F, distance))


def _jump_size(code: bytes) -> int:
    first = int.from_bytes(code[:4], "little")
    return 4 if code[:4] == NOP or first & 0xFFF == 0x6F else 0


# Call sites at function entries ------------------------------------------------------------------


def _call(site: int, target: int) -> bytes | None:
    distance = target - site
    if not -(1 << 31) - 0x800 <= distance < (1 << 31) - 0x800:
        return None
    high = distance + 0x800 >> 12
    return word(high << 12 | 0x297) + word(distance << 20 | 0x282E7)


def _is_auipc_t0(code: bytes) -> bool:
    return int.from_bytes(code[:4], "little") & 0xFFF == 0x297


def _locate(entry: int, code: bytes) -> int:
    """Return the site: at the entry, or behind the literal of CALL_OPS, where AUIPC t0 stays."""
    behind = _is_auipc_t0(code[8:12]) and not _is_auipc_t0(code[:4])
    return entry + 8 if behind and code[:4] != NOP else entry


def _idle(_site: int, code: bytes, _stub: int | None) -> bool:
    return code in (4 * C_NOP, 2 * NOP) or (_is_auipc_t0(code) and code[4:8] == NOP)


def _code(*words: int, literal: int) -> bytes:
    """Return instructions and, behind them at a multiple of eight, a pointer."""
    code = b"".join(word(value) for value in words)
    return code + NOP * (len(words) % 2) + word(literal, 8)


def _enter(_place: int, stub: int) -> bytes:
    """Return MV t1, ra ; AUIPC+LD t2, stub ; JALR t2 ; MV ra, t1 ; JR t0."""
    load = 20 << 20 | 0x3B383
    return _code(0x8313, 0x397, load, 0x380E7, 0x30093, 0x28067, literal=stub)


def _exit(_place: int, stub: int) -> bytes:
    """Return AUIPC+LD t2, stub ; JALR t2 ; MV ra, t1 ; RET, where the tracer sets t1."""
    return _code(0x397, 24 << 20 | 0x3B383, 0x380E7, 0x30093, 0x8067, literal=stub)


def _redirect(_place: int, target: int) -> bytes:
    """Return AUIPC+LD t1, target ; JR t1."""
    return _code(0x317, 16 << 20 | 0x33303, 0x30067, literal=target)


# Probes ----------------------------------------------------------------------------------------


def _get(guest: Guest, number: int) -> int:
    return guest.read(f"x{number}") & MASK64 if number else 0


def _set(guest: Guest, number: int, value: int) -> None:
    if number:
        guest.write(f"x{number}", value & MASK64)


def _taken(kind: int, one: int, two: int) -> bool:
    """Return whether a conditional branch of a kind (funct3) is taken."""
    if kind < 4:
        holds = one == two
    elif kind < 6:
        holds = sign(one, 64) < sign(two, 64)
    else:
        holds = one < two
    return holds != bool(kind & 1)


def _simulated(insn: int, address: int) -> Callable[[Guest], int] | None:
    """Return what stands in for an instruction of four bytes, or None."""
    op, rd, kind = insn & 0x7F, insn >> 7 & 31, insn >> 12 & 7
    one, two, after = insn >> 15 & 31, insn >> 20 & 31, address + 4 & MASK64

    def auipc(guest: Guest) -> int:
        _set(guest, rd, address + sign(insn & 0xFFFF_F000, 32))
        return after

    def jal(guest: Guest) -> int:
        _set(guest, rd, after)
        return address + sign(_J.extract(insn), 21) & MASK64

    def jalr(guest: Guest) -> int:
        to = _get(guest, one) + sign(insn >> 20, 12) & MASK64 & ~1
        _set(guest, rd, after)
        return to

    def branch(guest: Guest) -> int:
        if not _taken(kind, _get(guest, one), _get(guest, two)):
            return after
        return address + sign(_B.extract(insn), 13) & MASK64

    if op == 0x63 and kind not in (2, 3):
        return branch
    return {0x17: auipc, 0x6F: jal, 0x67: jalr}.get(op)


def _simulated_compressed(insn: int, address: int) -> Callable[[Guest], int] | None:
    """Return what stands in for an instruction of two bytes, or None."""
    quadrant, kind, after = insn & 3, insn >> 13, address + 2 & MASK64
    register, short = insn >> 7 & 31, 8 + (insn >> 7 & 7)

    def jump(_guest: Guest) -> int:
        return address + sign(_CJ.extract(insn), 12) & MASK64

    def branch(guest: Guest) -> int:
        if (_get(guest, short) == 0) != (kind == 6):
            return after
        return address + sign(_CB.extract(insn), 9) & MASK64

    def indirect(guest: Guest) -> int:
        to = _get(guest, register) & ~1
        if insn >> 12 & 1:
            _set(guest, 1, after)
        return to

    if quadrant == 1 and kind == 5:
        return jump
    if quadrant == 1 and kind in (6, 7):
        return branch
    if quadrant == 2 and kind == 4 and register and not insn >> 2 & 31:
        return indirect
    return None


def _exclusive(insn: int) -> int:
    """Return 1 for LR, -1 for SC, 0 for anything else."""
    if insn & 0x7F != 0x2F:
        return 0
    return {2: 1, 3: -1}.get(insn >> 27, 0)


def decode(code: bytes, address: int) -> Insn:
    """Return what a probe makes of the instruction that `code` begins with."""
    first = int.from_bytes(code[:2], "little")
    if len(code) < 2 or address % 2 or first & 0x1F == 0x1F:
        return Insn(size=0, refusal="no valid instruction")
    if first & 3 != 3:
        refusal = {0: "an undefined instruction", 0x9002: "a breakpoint stands there"}.get(
            first, ""
        )
        return Insn(size=2, refusal=refusal, simulate=_simulated_compressed(first, address))
    if len(code) < 4:
        return Insn(size=0, refusal="no valid instruction")
    insn = int.from_bytes(code[:4], "little")
    exclusive = _exclusive(insn)
    refusal = {0x73: "a system instruction", 0x0F: "a fence"}.get(insn & 0x7F, "")
    if exclusive:
        refusal = "an exclusive access"
    simulate = _simulated(insn, address)
    return Insn(size=4, refusal=refusal, simulate=simulate, exclusive=exclusive)


_NAMES = (
    "ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"
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
        plt_sections=(),
        enter=_enter,
        exit=_exit,
        redirect=_redirect,
        code_size=32,
        site_end=Register("t0"),
        parent=Register("t1"),
        returns_to=Register("t1"),
    ),
    kprobes=Kprobes(
        breakpoint=lambda size: C_EBREAK if size == 2 else EBREAK,
        decode=decode,
        registers=(*_NAMES.split(), "pc"),
    ),
)
