# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64: instructions of any length, so everything begins with finding where they begin.

A static branch has two or five bytes, a call site at a function's entry five, a breakpoint
one. The compiler calls __fentry__ at the entry; the kernel makes that a NOP and later a call
of a trampoline. A trampoline finds everything on the stack and leaves all registers and
flags alone.

An instruction that a probe replaces runs in a slot. Its operand may be relative to the
instruction pointer: the displacement is made up for the distance of the slot. Branches,
calls and returns are imitated (arch/x86/kernel/kprobes/core.c does the same), and what the
kernel cannot imitate is refused: indirect calls through memory, far transfers.

The decoder knows lengths and where the fields stand, nothing else: legacy, VEX and EVEX
encodings in 64-bit mode (Intel SDM volume 2, chapter 2 and appendix A).
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from archs.text import (
    Ftrace,
    Guest,
    Insn,
    JumpLabels,
    Kprobes,
    OnStack,
    StaticCalls,
    TextPatching,
    word,
)

MASK64 = (1 << 64) - 1
NOP2 = bytes.fromhex("6690")
NOP5 = bytes.fromhex("0f1f440000")
INT3 = b"\xcc"
RETURN_ZERO = bytes.fromhex("2e2e2e31c0")  # xor %eax, %eax with prefixes that do nothing
RETURN = bytes.fromhex("c3cccccccc")
REGISTERS = tuple("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split())


# Lengths -------------------------------------------------------------------------------------


def _opcodes(text: str) -> frozenset[int]:
    """Return the set that a list of hex numbers and ranges stands for."""
    found: set[int] = set()
    for item in text.split():
        first, _, last = item.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(found)


_PREFIXES = _opcodes("26 2e 36 3e 64-67 f0 f2 f3")
_ARITHMETIC = frozenset(op for op in range(0x40) if op & 7 < 4)
# By opcode map: 0 one byte, 1 behind 0F, 2 behind 0F 38, 3 behind 0F 3A.
_MODRM = (
    _ARITHMETIC | _opcodes("63 69 6b 80 81 83-8f c0 c1 c6 c7 d0-d3 d8-df f6 f7 fe ff"),
    _opcodes("0-3 d f 10-23 28-2f 40-76 78-7f 90-9f a3-a5 ab-c7 d0-ff"),
    _opcodes("0-ff"),
    _opcodes("0-ff"),
)
_INVALID = (
    _opcodes("6 7 e 16 17 1e 1f 27 2f 37 3f 60-62 82 9a c4 c5 ce d4-d6 ea"),
    _opcodes("4 a c 24-27 36 39 3b-3f 7a 7b a6 a7"),
    frozenset[int](),
    frozenset[int](),
)
_IMM8 = (
    _opcodes("4 c 14 1c 24 2c 34 3c 6a 6b 70-7f 80 83 a8 b0-b7 c0 c1 c6 c8 cd e0-e7 eb"),
    _opcodes("f 70-73 a4 ac ba c2 c4-c6"),
    frozenset[int](),
    _opcodes("0-ff"),
)
# As wide as the operand, at most four bytes; branches always have four.
_IMM32 = (
    _opcodes("5 d 15 1d 25 2d 35 3d 68 69 81 a9 b8-bf c7"),
    frozenset[int](),
    frozenset[int](),
    frozenset[int](),
)
_REL32 = (_opcodes("e8 e9"), _opcodes("80-8f"), frozenset[int](), frozenset[int]())
_IMM16 = _opcodes("c2 c8 ca")


@attrs.frozen(kw_only=True)
class Encoding:
    """Where the parts of one instruction stand.

    Parameters
    ----------
    size
        Bytes.
    opcode
        The last opcode byte, plus 0x100 behind 0F, 0x200 behind 0F 38, 0x300 behind 0F 3A.
    rex
        The REX prefix, or 0.
    modrm
        The ModRM byte, or None.
    relative
        Offset of a displacement that counts from the instruction pointer, or None.
    immediate
        Offset behind the operand, where immediates stand.
    legacy
        Whether it has neither a VEX nor an EVEX prefix.
    """

    size: int
    opcode: int
    rex: int
    modrm: int | None
    relative: int | None
    immediate: int
    legacy: bool


def encoding(code: bytes) -> Encoding | None:
    """Return how the instruction that `code` begins with is encoded, or None without one."""
    try:
        found = _encoding(code)
    except IndexError:
        return None
    return found if found is not None and found.size <= min(15, len(code)) else None


def _encoding(code: bytes) -> Encoding | None:
    at, rex, narrow, short = 0, 0, False, False
    while code[at] in _PREFIXES:
        narrow |= code[at] == 0x66
        short |= code[at] == 0x67
        at += 1
    if code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    kind, legacy = 0, True
    if code[at] in (0xC4, 0xC5, 0x62) and not rex:
        legacy = False
        kind = {0xC4: code[at + 1] & 0x1F, 0xC5: 1, 0x62: code[at + 1] & 7}[code[at]]
        at += {0xC4: 3, 0xC5: 2, 0x62: 4}[code[at]]
        if kind not in (1, 2, 3):
            return None
    elif code[at] == 0x0F:
        kind, at = 1, at + 1
        if code[at] in (0x38, 0x3A):
            kind, at = (2 if code[at] == 0x38 else 3), at + 1
    op = code[at]
    at += 1
    if legacy and op in _INVALID[kind]:
        return None
    modrm = relative = None
    if op in _MODRM[kind]:
        modrm = code[at]
        mode, base = modrm >> 6, modrm & 7
        at += 1
        if mode != 3 and base == 4:
            base = code[at] & 7
            at += 1
            wide = mode == 0 and base == 5
        else:
            wide = mode == 0 and base == 5
            relative = at if wide else None
        at += 4 if wide or mode == 2 else mode == 1
    immediate = at
    if op in _IMM32[kind]:
        at += 2 if narrow and not rex & 8 else 4
        at += 4 if 0xB8 <= op <= 0xBF and rex & 8 else 0
    at += 4 * (op in _REL32[kind]) + (op in _IMM8[kind])
    if kind == 0:
        at += 2 * (op in _IMM16)
        if 0xA0 <= op <= 0xA3:
            at += 4 if short else 8
        if op in (0xF6, 0xF7) and modrm is not None and not modrm & 0x30:
            at += 1 if op == 0xF6 else 2 if narrow and not rex & 8 else 4
    return Encoding(
        size=at,
        opcode=kind << 8 | op,
        rex=rex,
        modrm=modrm,
        relative=relative,
        immediate=immediate,
        legacy=legacy,
    )


# Static branches and calls ---------------------------------------------------------------------


def _rel32(prefix: bytes, place: int, target: int) -> bytes | None:
    """Return a branch with a displacement of 32 bits, or None out of reach."""
    distance = target - (place + len(prefix) + 4)
    if not -(1 << 31) <= distance < 1 << 31:
        return None
    return prefix + word(distance)


def _jump(place: int, target: int, size: int) -> bytes | None:
    if size == 5:
        return _rel32(b"\xe9", place, target)
    distance = target - (place + 2)
    return b"\xeb" + word(distance, 1) if -128 <= distance < 128 else None


def _jump_size(code: bytes) -> int:
    if code[:1] == b"\xe9" or code[:5] == NOP5:
        return 5
    return 2 if code[:1] == b"\xeb" or code[:2] == NOP2 else 0


def _static_call(place: int, code: bytes, target: int, tail: bool, zero: bool) -> bytes | None:
    """Return a static call's instruction (arch/x86/kernel/static_call.c)."""
    conditional = code[:1] == b"\x0f" and code[1] & 0xF0 == 0x80
    known = code[:1] in (b"\xe8", b"\xe9") or code[:5] in (NOP5, RETURN_ZERO, RETURN)
    if conditional:
        # A conditional tail call cannot be "nothing"; the kernel sends it to a bare return.
        return _rel32(code[:2], place, target) if target else None
    if not known:
        return None
    if not target:
        return RETURN if tail else NOP5
    if zero and not tail:
        return RETURN_ZERO
    return _rel32(b"\xe9" if tail else b"\xe8", place, target)


# Call sites at function entries ------------------------------------------------------------------


def _call(place: int, target: int) -> bytes | None:
    return _rel32(b"\xe8", place, target)


def _idle(place: int, code: bytes, stub: int | None) -> bool:
    return code == NOP5 or (stub is not None and code == _call(place, stub))


def _reached(code: bytes | None, target: int) -> bytes:
    if code is None:
        raise ValueError(f"{target:#x} is out of reach of a trampoline")
    return code


def _enter(place: int, stub: int) -> bytes:
    """Return CALL stub ; RET. The stack then holds: site, parent."""
    return _reached(_call(place, stub), stub) + b"\xc3"


def _exit(place: int, stub: int) -> bytes:
    """Return PUSH 0 ; CALL stub ; RET, where the tracer replaces the 0."""
    return b"\x6a\x00" + _reached(_call(place + 2, stub), stub) + b"\xc3"


def _redirect(place: int, target: int) -> bytes:
    """Return LEA 8(%rsp), %rsp ; JMP target: the call of the trampoline is forgotten."""
    return bytes.fromhex("488d642408") + _reached(_jump(place + 5, target, 5), target)


# Probes ----------------------------------------------------------------------------------------

_CARRY, _PARITY, _ZERO, _SIGN, _OVERFLOW = 1 << 0, 1 << 2, 1 << 6, 1 << 7, 1 << 11


def _holds(condition: int, flags: int) -> bool:
    """Return whether a condition (the low four bits of Jcc) holds."""
    differ = bool(flags & _SIGN) != bool(flags & _OVERFLOW)
    value = (
        bool(flags & _OVERFLOW),
        bool(flags & _CARRY),
        bool(flags & _ZERO),
        bool(flags & (_CARRY | _ZERO)),
        bool(flags & _SIGN),
        bool(flags & _PARITY),
        differ,
        differ or bool(flags & _ZERO),
    )[condition >> 1]
    return value != bool(condition & 1)


def _push(guest: Guest, value: int) -> None:
    top = guest.register("rsp") - 8 & MASK64
    guest.store(top, value, 8)
    guest.set_register("rsp", top)


def _simulated(found: Encoding, code: bytes, address: int) -> Callable[[Guest], int] | None:
    """Return what stands in for a transfer of control, or None for anything else."""
    op, after = found.opcode, address + found.size & MASK64
    immediate = code[found.immediate : found.size]
    target = after + int.from_bytes(immediate, "little", signed=True) & MASK64
    register = REGISTERS[((found.modrm or 0) & 7) | (found.rex & 1) << 3]

    def jump(_guest: Guest) -> int:
        return target

    def call(guest: Guest) -> int:
        _push(guest, after)
        return target

    def branch(guest: Guest) -> int:
        return target if _holds(op & 0xF, guest.register("eflags")) else after

    def loop(guest: Guest) -> int:
        count = guest.register("rcx")
        if op != 0xE3:
            count = count - 1 & MASK64
            guest.set_register("rcx", count)
        zero = bool(guest.register("eflags") & _ZERO)
        taken = (count != 0 and not zero, count != 0 and zero, count != 0, count == 0)[op & 3]
        return target if taken else after

    def ret(guest: Guest) -> int:
        top = guest.register("rsp")
        guest.set_register("rsp", top + 8 + int.from_bytes(immediate, "little") & MASK64)
        return guest.load(top, 8)

    def indirect(guest: Guest) -> int:
        to = guest.register(register)
        if (found.modrm or 0) & 0x38 == 0x10:
            _push(guest, after)
        return to

    if op in (0xE9, 0xEB):
        return jump
    if op == 0xE8:
        return call
    if 0x70 <= op <= 0x7F or 0x180 <= op <= 0x18F:
        return branch
    if 0xE0 <= op <= 0xE3:
        return loop
    if op in (0xC2, 0xC3):
        return ret
    if op == 0xFF and (found.modrm or 0) & 0x30 in (0x10, 0x20):
        return indirect
    return None


_REFUSED = {
    0xCC: "a breakpoint stands there",
    0xCD: "a software interrupt returns behind itself",
    0xF1: "a breakpoint stands there",
    0xCF: "an interrupt return does not come back",
    0xCA: "a far return does not come back",
    0xCB: "a far return does not come back",
    0x10B: "ud2 reports a bug by its own address",
    0x105: "syscall does not come back",
    0x107: "sysret does not come back",
    0x134: "sysenter does not come back",
    0x135: "sysexit does not come back",
}


def _refusal(found: Encoding, code: bytes) -> str:
    if not found.legacy:
        return ""
    if found.opcode == 0xFF and found.modrm is not None:
        kind = found.modrm >> 3 & 7
        if kind in (3, 5):
            return "a far transfer cannot be imitated"
        if kind in (2, 4) and found.modrm >> 6 != 3:
            return "an indirect branch through memory cannot be imitated"
    if 0xE0 <= found.opcode <= 0xE3 and 0x67 in code[: found.immediate - 1]:
        return "a branch with another address size cannot be imitated"
    return _REFUSED.get(found.opcode, "")


def decode(code: bytes, address: int) -> Insn:
    """Return what a probe makes of the instruction that `code` begins with."""
    found = encoding(code)
    if found is None:
        return Insn(size=0, refusal="no valid instruction")
    own, at = code[: found.size], found.relative

    def copy(slot: int) -> bytes | None:
        if at is None:
            return own
        distance = int.from_bytes(own[at : at + 4], "little", signed=True) + address - slot
        if not -(1 << 31) <= distance < 1 << 31:
            return None
        return own[:at] + word(distance) + own[at + 4 :]

    return Insn(
        size=found.size,
        refusal=_refusal(found, code),
        simulate=_simulated(found, code, address) if found.legacy else None,
        copy=copy,
    )


PATCHING = TextPatching(
    jump_labels=JumpLabels(nops={2: NOP2, 5: NOP5}, jump=_jump, size=_jump_size),
    static_calls=StaticCalls(
        sites=".static_call_sites",
        tramp_keys=".static_call_tramp_key",
        update="__static_call_update",
        zero="__static_call_return0",
        encode=_static_call,
    ),
    ftrace=Ftrace(
        table="__mcount_loc",
        locate=lambda entry, _code: entry,
        size=5,
        stub="__fentry__",
        idle=_idle,
        call=_call,
        plt_sections=(),
        enter=_enter,
        exit=_exit,
        redirect=_redirect,
        code_size=16,
        site_end=OnStack(8),
        parent=OnStack(16),
        returns_to=OnStack(8),
    ),
    kprobes=Kprobes(
        breakpoint=lambda _size: INT3,
        decode=decode,
        registers=(*REGISTERS, "rip", "eflags"),
    ),
)
