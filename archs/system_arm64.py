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
_ERET = frozenset((0xD69F_03E0, 0xD69F_0BFF, 0xD69F_0FFF))  # ERET, ERETAA, ERETAB
_ACCESS, _WRITE = 0xFFD0_0000, 0xD510_0000  # MRS and MSR but for the bit that tells them
_KNOWN = frozenset((*_COUNTERS, *_TIMERS, *_RANDOM))


def _sites(code: bytes) -> Iterator[int]:
    for at in occurrences(code, b"\x3b\xd5"):  # MRS of a register with op1 = 3
        if at % 4 == 2:
            word = int.from_bytes(code[at - 2 : at + 2], "little")
            if word >> 5 & 0x7FFF in _KNOWN:
                yield at - 2
    for at in occurrences(code, b"\x9f\xd6"):
        if at % 4 == 2 and int.from_bytes(code[at - 2 : at + 2], "little") in _ERET:
            yield at - 2


def _perform(code: bytes, cpu: Processor) -> Done:
    word = int.from_bytes(code[:4], "little")
    if word in _ERET:
        return "there is nobody to return to"
    if len(code) < 4 or word & 0xFFF0_0000 != _MRS:
        return _why(word)
    register, rt = word >> 5 & 0x7FFF, word & 31
    if register in _COUNTERS:
        value = ticks(cpu, _COUNTERS[register])
    elif register in _TIMERS:
        value = -ticks(cpu, TIMER) % (1 << 32)  # CVAL is 0: nobody sets the timer
    elif register in _RANDOM:
        value = cpu.entropy()
        cpu.write("nzcv", 0)
    else:
        return _why(word)
    if rt != 31:
        cpu.write(f"x{rt}", value)
    return 4


def _why(word: int) -> str | None:
    """Return why an access to a system register was refused, where that is known."""
    if word & _ACCESS != _WRITE:
        return None
    op0, op1, crn = word >> 19 & 3, word >> 16 & 7, word >> 12 & 15
    if op0 == 2:
        return "there is no hardware debugging"
    if op0 == 3 and op1 in (0, 3) and crn == 9:
        return "there are no performance counters"
    if op0 == 3 and op1 == 0 and crn in (1, 2, 5, 6, 10, 13) and not word >> 21 & 1:
        return "the address translation is the kernel's and cannot be changed"
    return None


SYSTEM = System(
    perform=_perform,
    sites=_sites,
    page_table=("ttbr1_el1", lambda physical, _levels: physical),
)
