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
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from archs.insn_x86_64 import Instruction, holds
from archs.insn_x86_64 import decode as decode_instruction
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

_ZERO = 1 << 6  # of RFLAGS
_EVEX, _VEX3, _VEX2 = 0x62, 0xC4, 0xC5


def _push(guest: Guest, value: int) -> None:
    top = guest.read("rsp") - 8 & MASK64
    guest.store(top, value, 8)
    guest.write("rsp", top)


@attrs.frozen
class _Control:
    """What decides about a transfer of control: opcode as a number, REX and ModRM."""

    opcode: int
    rex: int
    modrm: int
    legacy: bool

    @classmethod
    def of(cls, insn: Instruction, code: bytes) -> _Control:
        at = len(insn.prefixes)
        rex = code[at] if code[at] >> 4 == 4 else 0
        at += bool(rex)
        legacy = code[at] not in (_EVEX, _VEX3, _VEX2)
        modrm = at + len(insn.opcode)
        return cls(
            opcode=int.from_bytes(insn.opcode, "big"),
            rex=rex,
            modrm=code[modrm] if modrm < insn.length else 0,
            legacy=legacy,
        )

    @property
    def field(self) -> int:
        """The middle field of ModRM, which extends the opcode."""
        return self.modrm >> 3 & 7


def _simulated(
    insn: Instruction, found: _Control, code: bytes, address: int
) -> Callable[[Guest], int] | None:
    """Return what stands in for a transfer of control, or None for anything else."""
    op, after = found.opcode, address + insn.length & MASK64
    start, size = insn.immediate
    immediate = code[start : start + size]
    target = after + int.from_bytes(immediate, "little", signed=True) & MASK64
    register = REGISTERS[(found.modrm & 7) | (found.rex & 1) << 3]

    def jump(_guest: Guest) -> int:
        return target

    def call(guest: Guest) -> int:
        _push(guest, after)
        return target

    def branch(guest: Guest) -> int:
        return target if holds(op & 0xF, guest.read("eflags")) else after

    def loop(guest: Guest) -> int:
        count = guest.read("rcx")
        if op != 0xE3:
            count = count - 1 & MASK64
            guest.write("rcx", count)
        zero = bool(guest.read("eflags") & _ZERO)
        taken = (count != 0 and not zero, count != 0 and zero, count != 0, count == 0)[op & 3]
        return target if taken else after

    def ret(guest: Guest) -> int:
        top = guest.read("rsp")
        guest.write("rsp", top + 8 + int.from_bytes(immediate, "little") & MASK64)
        return guest.load(top, 8)

    def indirect(guest: Guest) -> int:
        to = guest.read(register)
        if found.field == 2:
            _push(guest, after)
        return to

    if op in (0xE9, 0xEB):
        return jump
    if op == 0xE8:
        return call
    if op >> 4 in (0x7, 0xF8):
        return branch
    if 0xE0 <= op <= 0xE3:
        return loop
    if op in (0xC2, 0xC3):
        return ret
    if op == 0xFF and found.field in (2, 4):
        return indirect
    return None


_REFUSED = {
    0xCC: "a breakpoint stands there",
    0xCD: "a software interrupt returns behind itself",
    0xF1: "a breakpoint stands there",
    0xCF: "an interrupt return does not come back",
    0xCA: "a far return does not come back",
    0xCB: "a far return does not come back",
    0x0F0B: "ud2 reports a bug by its own address",
    0x0F05: "syscall does not come back",
    0x0F07: "sysret does not come back",
    0x0F34: "sysenter does not come back",
    0x0F35: "sysexit does not come back",
}


def _refusal(insn: Instruction, found: _Control) -> str:
    if not found.legacy:
        return ""
    if found.opcode == 0xFF:
        if found.field in (3, 5):
            return "a far transfer cannot be imitated"
        if found.field in (2, 4) and found.modrm >> 6 != 3:
            return "an indirect branch through memory cannot be imitated"
    if 0xE0 <= found.opcode <= 0xE3 and 0x67 in insn.prefixes:
        return "a branch with another address size cannot be imitated"
    return _REFUSED.get(found.opcode, "")


def decode(code: bytes, address: int) -> Insn:
    """Return what a probe makes of the instruction that `code` begins with."""
    insn = decode_instruction(code)
    if insn is None:
        return Insn(size=0, refusal="no valid instruction")
    own, found, at = code[: insn.length], _Control.of(insn, code), insn.displacement[0]

    def copy(slot: int) -> bytes | None:
        if not insn.relative:
            return own
        distance = int.from_bytes(own[at : at + 4], "little", signed=True) + address - slot
        if not -(1 << 31) <= distance < 1 << 31:
            return None
        return own[:at] + word(distance) + own[at + 4 :]

    return Insn(
        size=insn.length,
        refusal=_refusal(insn, found),
        simulate=_simulated(insn, found, code, address) if found.legacy else None,
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
