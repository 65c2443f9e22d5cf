# SPDX-License-Identifier: GPL-2.0-or-later
"""RISC-V: counters, `satp`, and what firmware keeps from a kernel (S-mode)."""

from __future__ import annotations

from collections.abc import Iterator

from archs.system import Done, Processor, System, occurrences, ticks

CYCLES = 1_000_000_000  # hertz
TIMEBASE = 10_000_000
_SYSTEM, _SFENCE_VMA = 0x73, 0x09
_SRET, _MRET, _WFI = 0x1020_0073, 0x3020_0073, 0x1050_0073
_SATP = 0x180
_COUNTERS = {0xC00: CYCLES, 0xC01: TIMEBASE, 0xC02: CYCLES}  # cycle, time, instret
_SV39 = 8  # satp.MODE; one more for each further level


def _sites(code: bytes) -> Iterator[int]:
    # `time` is refused by the emulator; the upper half of csrrs/csrrc/csrrsi/csrrci with
    # nothing to set says which of the others.
    for upper in (b"\x00\xc0", b"\x20\xc0"):
        for at in occurrences(code, upper):
            if at >= 2 and at % 2 == 0 and code[at - 2] & 0x7F == _SYSTEM:
                yield at - 2


def _perform(code: bytes, cpu: Processor) -> Done:
    word = int.from_bytes(code[:4], "little")
    if len(code) < 4 or word & 0x7F != _SYSTEM:
        return None
    function, rd, rs1, csr = word >> 12 & 7, word >> 7 & 31, word >> 15 & 31, word >> 20
    if function == 0:
        return _privileged(word, cpu)
    if function == 4:
        return None
    writes = function & 3 == 1 or rs1 != 0
    if csr in _COUNTERS and not writes:
        _set(cpu, rd, ticks(cpu, _COUNTERS[csr]))
        return 4
    if csr == _SATP:
        old = cpu.page_table
        given = rs1 if function & 4 else cpu.read(f"x{rs1}") if rs1 else 0
        new = {1: given, 2: old | given, 3: old & ~given}[function & 3]
        if writes and new != old:
            return "satp: there is no other page table than the kernel's"
        _set(cpu, rd, old)
        return 4
    return None


def _privileged(word: int, cpu: Processor) -> Done:
    if word == _SRET:
        return "there is no user mode to return to"
    if word == _MRET:
        return "machine mode belongs to firmware"
    if word == _WFI:
        cpu.wait()
        return 4
    if word >> 25 == _SFENCE_VMA and word >> 7 & 31 == 0:
        cpu.forget()
        return 4
    return None


def _set(cpu: Processor, register: int, value: int) -> None:
    if register:
        cpu.write(f"x{register}", value % (1 << 64))


SYSTEM = System(
    perform=_perform,
    sites=_sites,
    page_table=("satp", lambda physical, levels: (_SV39 + levels - 3) << 60 | physical >> 12),
)
