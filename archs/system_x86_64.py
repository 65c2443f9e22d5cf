# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64: the time stamp counter, random numbers, and ways to a user mode that is not there."""

from __future__ import annotations

from collections.abc import Iterator

from archs.system import Done, Processor, System, occurrences, ticks

TSC = 1_000_000_000  # hertz: what `tsc_khz` says
_RANDOM = b"\x0f\xc7"  # RDRAND /6 and RDSEED /7, of registers
_SYSRET = b"\x0f\x07"
_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
_REX, _OPERAND = range(0x40, 0x50), 0x66
_PREFIXES = 2  # before the opcode, of those that compilers write
_CARRY = 1
_ARITHMETIC = 0x8D5  # OF SF ZF AF PF CF


def _sites(code: bytes) -> Iterator[int]:
    for at in occurrences(code, _RANDOM):
        if at + 2 < len(code) and code[at + 2] & 0xF0 == 0xF0:
            yield from _starts(code, at)
    for at in occurrences(code, _SYSRET):
        yield from _starts(code, at)


def _starts(code: bytes, at: int) -> Iterator[int]:
    """Yield where an instruction may begin whose opcode is at `at`; within it nothing runs."""
    yield at
    for before in range(at - 1, max(at - 1 - _PREFIXES, -1), -1):
        if code[before] != _OPERAND and code[before] not in _REX:
            break
        yield before


def _perform(code: bytes, cpu: Processor) -> Done:
    bits, at, rex = 32, 0, 0
    while at < len(code) and code[at] == _OPERAND:
        bits, at = 16, at + 1
    if at < len(code) and code[at] in _REX:
        rex, at = code[at], at + 1
    if code[at : at + 2] == _SYSRET:
        return "there is no user mode to return to"
    if code[at : at + 2] != _RANDOM or len(code) < at + 3 or code[at + 2] & 0xF0 != 0xF0:
        return None
    number = code[at + 2] & 7 | (rex & 1) << 3
    register = f"r{number}" if number >= 8 else _REGISTERS[number]
    if rex & 8:
        bits = 64
    value = cpu.entropy() & (1 << bits) - 1
    if bits == 16:
        value |= cpu.read(register) & ~0xFFFF
    cpu.write(register, value)
    cpu.write("eflags", cpu.read("eflags") & ~_ARITHMETIC | _CARRY)
    return at + 3


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
