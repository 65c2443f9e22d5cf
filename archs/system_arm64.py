# SPDX-License-Identifier: GPL-2.0-or-later
"""Arm: the generic timer, cycle counter and random numbers (EL1)."""

from __future__ import annotations

from collections.abc import Iterator

from archs.system import Done, Processor, System, occurrences, ticks

CYCLES = 1_000_000_000  # hertz
TIMER = 62_500_000  # what CNTFRQ_EL0 says
_MRS = 0xD530_0000


def _register(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    return (op0 & 1) << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


_COUNTERS = {
    _register(3, 3, 14, 0, 1): TIMER,  # CNTPCT_EL0
    _register(3, 3, 14, 0, 2): TIMER,  # CNTVCT_EL0
    _register(3, 3, 9, 13, 0): CYCLES,  # PMCCNTR_EL0
}
_TIMERS = (_register(3, 3, 14, 2, 0), _register(3, 3, 14, 3, 0))  # CNTP_TVAL_EL0, CNTV_TVAL_EL0
_RANDOM = (_register(3, 3, 2, 4, 0), _register(3, 3, 2, 4, 1))  # RNDR, RNDRRS
_KNOWN = frozenset((*_COUNTERS, *_TIMERS, *_RANDOM))


def _sites(code: bytes) -> Iterator[int]:
    for at in occurrences(code, b"\x3b\xd5"):  # MRS of a register with op1 = 3
        if at % 4 == 2:
            word = int.from_bytes(code[at - 2 : at + 2], "little")
            if word >> 5 & 0x7FFF in _KNOWN:
                yield at - 2


def _perform(code: bytes, cpu: Processor) -> Done:
    word = int.from_bytes(code[:4], "little")
    if len(code) < 4 or word & 0xFFF0_0000 != _MRS:
        return None
    register, rt = word >> 5 & 0x7FFF, word & 31
    if register in _COUNTERS:
        value = ticks(cpu, _COUNTERS[register])
    elif register in _TIMERS:
        value = -ticks(cpu, TIMER) % (1 << 32)  # CVAL is 0: nobody sets the timer
    elif register in _RANDOM:
        value = cpu.entropy()
        cpu.write("nzcv", 0)
    else:
        return None
    if rt != 31:
        cpu.write(f"x{rt}", value)
    return 4


SYSTEM = System(
    perform=_perform,
    sites=_sites,
    page_table=("ttbr1_el1", lambda physical, _levels: physical),
)
