# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64: the time stamp counter, random numbers, and ways to a user mode that is not there."""

from __future__ import annotations

from collections.abc import Iterator

from archs.system import Done, Processor, System, occurrences, ticks

TSC = 1_000_000_000  # hertz: what `tsc_khz` says
_RANDOM = b"\x0f\xc7"  # RDRAND /6 and RDSEED /7, of registers
_SYSRET, _TO_DEBUG = b"\x0f\x07", b"\x0f\x23"
_CONTROL, _ENABLED = (5, 7), 0xFF  # DR7, which DR5 may stand for; its bits that enable
_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
_REX, _OPERAND, _LOCK, _REPEAT = range(0x40, 0x50), 0x66, 0xF0, 0xF3
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, _OPERAND, 0x67, _LOCK, 0xF2, _REPEAT))
_LONGEST = 15  # bytes of an instruction, prefixes included
_CARRY = 1
_ARITHMETIC = 0x8D5  # OF SF ZF AF PF CF


def _sites(code: bytes) -> Iterator[int]:
    for at in occurrences(code, _RANDOM):
        if at + 2 < len(code) and code[at + 2] & 0xF0 == 0xF0:
            yield from _starts(code, at)
    for opcode in (_SYSRET, _TO_DEBUG):
        for at in occurrences(code, opcode):
            yield from _starts(code, at)


def _starts(code: bytes, at: int) -> Iterator[int]:
    """Yield where an instruction may begin whose opcode is at `at`; within it nothing runs."""
    yield at
    for before in range(at - 1, max(at - _LONGEST, -1), -1):
        if code[before] not in _PREFIXES and code[before] not in _REX:
            break
        yield before


def _perform(code: bytes, cpu: Processor) -> Done:
    at = rex = 0
    while at < len(code) and (code[at] in _PREFIXES or code[at] in _REX):
        rex = code[at] if code[at] in _REX else 0  # which counts right before the opcode only
        at += 1
    prefixes, opcode = code[:at], code[at : at + 2]
    if opcode == _SYSRET:
        return "there is no user mode to return to"
    if len(code) < at + 3:
        return None
    modrm = code[at + 2]
    if opcode == _TO_DEBUG:
        # The emulator drops all its code for a breakpoint, even what is under way.
        enabled = cpu.read(_register(modrm, rex)) & _ENABLED
        control = modrm >> 3 & 7 in _CONTROL
        return "there is no hardware debugging" if control and enabled else None
    refused = _LOCK in prefixes or _REPEAT in prefixes  # the latter is RDPID
    if opcode != _RANDOM or modrm & 0xF0 != 0xF0 or refused:
        return None
    register = _register(modrm, rex)
    bits = 64 if rex & 8 else 16 if _OPERAND in prefixes else 32
    value = cpu.entropy() & (1 << bits) - 1
    if bits == 16:
        value |= cpu.read(register) & ~0xFFFF
    cpu.write(register, value)
    cpu.write("eflags", cpu.read("eflags") & ~_ARITHMETIC | _CARRY)
    return at + 3


def _register(modrm: int, rex: int) -> str:
    number = modrm & 7 | (rex & 1) << 3
    return f"r{number}" if number >= 8 else _REGISTERS[number]


def _rdtsc(cpu: Processor) -> None:
    now = ticks(cpu, TSC)
    cpu.write("rax", now & 0xFFFF_FFFF)
    cpu.write("rdx", now >> 32)


def _rdtscp(cpu: Processor) -> None:
    _rdtsc(cpu)
    cpu.write("rcx", cpu.number)


SYSTEM = System(
    perform=_perform,
    sites=_sites,
    page_table=("cr3", lambda physical, _levels: physical),
    calls={
        "RDTSC": _rdtsc,
        "RDTSCP": _rdtscp,
        "SYSCALL": lambda _cpu: "there is no user mode to come from",
        "SYSENTER": lambda _cpu: "there is no user mode to come from",
    },
    port_input="UC_X86_INS_IN",
)
