# SPDX-License-Identifier: GPL-2.0-or-later
"""MIPS64: clocks, pairs of LL and SC, and the exceptions that the emulator does not place.

Its SC compares and exchanges, and so does what stands in for it here: the emulator's own LL looks
for the address where no kernel memory is (Unicorn issue 2345). Where an exception leaves no
program counter, it is the one of the last site that was reached; so whatever may raise one is a
site, but for SYSCALL, which leaves one, and for loads and stores. An instruction in a delay slot is not left by setting the program
counter, so the work of the branch before it is done here too.

Encodings: MIPS64 Architecture for Programmers, volume II, appendix A (Release 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from archs.system import Done, Processor, System, ticks

COUNT = 100_000_000  # hertz of the Count register: every second cycle of a 5Kc at 200 MHz
_LL, _LLD, _SC, _SCD = 0x30, 0x34, 0x38, 0x3C
_SPECIAL, _REGIMM, _COP0, _SPECIAL2, _SPECIAL3 = 0x00, 0x01, 0x10, 0x1C, 0x1F
_RDHWR = 0x3B
_ERET, _WAIT, _DERET = 0x4200_0018, 0x4200_0020, 0x4200_001F
_TLB = (0x4200_0001, 0x4200_0002, 0x4200_0006, 0x4200_0008)  # TLBR TLBWI TLBWR TLBP
_CC, _CCRES, _CPU, _ULR = 2, 3, 0, 29
_REGISTERS = tuple(str(number) for number in range(32))
_PC = "pc"


def _table(size: int, *numbers: int) -> NDArray[np.bool_]:
    found = np.zeros(size, np.bool_)
    found[list(numbers)] = True
    return found


# Instructions that raise an exception, or whose work is done here; reserved ones among them.
_OPCODES = _table(
    64,
    *(_LL, _LLD, _SC, _SCD),
    *(0x08, 0x18),  # ADDI DADDI
    *(0x11, 0x12, 0x13, 0x31, 0x32, 0x35, 0x36, 0x39, 0x3A, 0x3D, 0x3E),  # coprocessors 1 and 2
    *(0x1D, 0x1E, 0x3B),
)
_FUNCTIONS = {
    _SPECIAL: _table(
        64,
        *(0x01, 0x05, 0x0D, 0x0E, 0x15, 0x20, 0x22, 0x28, 0x29, 0x2C, 0x2E),
        *(*range(0x30, 0x38), 0x39, 0x3D),
    ),
    _SPECIAL2: ~_table(64, 0, 1, 2, 4, 5, 0x20, 0x21, 0x24, 0x25),
    _SPECIAL3: ~_table(64, *range(8), 0x20, 0x24),
}
_CONDITIONS = ~_table(32, 0, 1, 2, 3, 0x10, 0x11, 0x12, 0x13, 0x1F)  # of REGIMM
_FORMATS = ~_table(32, 0, 1, 4, 5, 10, 11, 14)  # of COP0
_BRANCHES = _table(64, *range(2, 8), *range(20, 24))


def _delays(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Return which instructions execute the one behind them before they go."""
    opcode, function, condition = words >> 26, words & 0x3F, words >> 16 & 31
    found: NDArray[np.bool_] = _BRANCHES[opcode] | (opcode == 0x11) & (words >> 21 & 31 == 8)
    found |= (opcode == _SPECIAL) & (function >> 1 == 4)  # JR JALR
    found |= (opcode == _REGIMM) & (condition & 0x0C == 0)
    return found


@lru_cache(1 << 12)
def delays(code: bytes) -> bool:
    """Return whether an instruction executes the one behind it before it goes: branches and jumps."""
    return bool(_delays(np.frombuffer(code, "<u4", 1))[0]) if len(code) >= 4 else False


def _sites(code: bytes) -> Iterator[int]:
    words = np.frombuffer(code, "<u4", len(code) // 4)
    opcode, function = words >> 26, words & 0x3F
    found = _OPCODES[opcode]
    for number, table in _FUNCTIONS.items():
        found |= (opcode == number) & table[function]
    found |= (opcode == _REGIMM) & _CONDITIONS[words >> 16 & 31]
    counts = (words >> 11 & 31 == 9) & (words >> 21 & 31 < 2)
    found |= (opcode == _COP0) & (_FORMATS[words >> 21 & 31] | counts)
    before = _delays(words[:-1]) & found[1:]
    found[:-1] |= before
    yield from (4 * np.flatnonzero(found)).tolist()


def _perform(code: bytes, cpu: Processor) -> Done:
    if len(code) < 4:
        return None
    if len(code) >= 8 and delays(code):
        return _branch(code, cpu)
    word = int.from_bytes(code[:4], "little")
    opcode, rt, rd = word >> 26, word >> 16 & 31, word >> 11 & 31
    if opcode in (_LL, _LLD, _SC, _SCD):
        return _linked(word, cpu)
    if opcode == _SPECIAL3 and word & 0x3F == _RDHWR:
        if rd not in (_CPU, _CC, _CCRES, _ULR):
            return None
        _set(cpu, rt, _count(cpu) if rd == _CC else {_CPU: cpu.number, _CCRES: 2, _ULR: 0}[rd])
        return 4
    if opcode == _COP0:
        if word >> 21 & 31 in (0, 1) and rd == 9:  # MFC0, DMFC0: Count
            _set(cpu, rt, _count(cpu))
            return 4
        if word in (_ERET, _DERET):
            return "there is no user mode to return to"
        if word in _TLB:
            return "the TLB belongs to the kernel, which has no other page table"
        if word & ~0x1FF_FFC0 == _WAIT & ~0x1FF_FFC0:
            cpu.wait()
            return 4
    return None


def _count(cpu: Processor) -> int:
    """Return the Count register: 32 bits, sign-extended."""
    return _signed(ticks(cpu, COUNT), 32)


def _signed(value: int, bits: int) -> int:
    half = 1 << bits - 1
    return (value & (1 << bits) - 1 ^ half) - half


def _branch(code: bytes, cpu: Processor) -> Done:
    """Do the work of a branch and of its delay slot, if that is an instruction to be done here."""
    word, slot = (int.from_bytes(code[at : at + 4], "little") for at in (0, 4))
    opcode, function, rs, rt = word >> 26, word & 0x3F, word >> 21 & 31, word >> 16 & 31
    place, a, b = cpu.read(_PC), _signed(_get(cpu, rs), 64), _signed(_get(cpu, rt), 64)
    step, taken, link, likely = 4 + 4 * _signed(word, 16), True, 0, False
    if opcode == _SPECIAL:
        step = a - place
        link = word >> 11 & 31 if function == 9 else 0
    elif opcode in (2, 3):
        step = ((place + 4) & -(1 << 28) | (word & 0x3FF_FFFF) << 2) - place
        link = 31 if opcode == 3 else 0
    elif opcode == _REGIMM:
        taken, link, likely = (a >= 0) == bool(rt & 1), 31 if rt & 16 else 0, bool(rt & 2)
    elif opcode & ~0x10 in (4, 5, 6, 7):
        taken, likely = (a == b, a != b, a <= 0, a > 0)[opcode & 3], opcode >= 20
    else:
        return None
    if taken or not likely:
        done = _perform(slot.to_bytes(4, "little"), cpu)
        if done != 4:
            return done
    if link:
        _set(cpu, link, place + 8)
    return step if taken else 8


def _linked(word: int, cpu: Processor) -> Done:
    """Do the work of LL, LLD, SC or SCD: compare and exchange, as nobody runs in between."""
    opcode, rt = word >> 26, word >> 16 & 31
    address = (_get(cpu, word >> 21 & 31) + _signed(word, 16)) % (1 << 64)
    size = 8 if opcode in (_LLD, _SCD) else 4
    if address % size:
        return f"address error: {address:#x} is no multiple of {size}"
    held = cpu.load(address, size)
    if opcode in (_LL, _LLD):
        cpu.linked = address, held
        _set(cpu, rt, _signed(held, 8 * size))
        return 4
    stored = cpu.linked == (address, held)
    if stored:
        cpu.store(address, _get(cpu, rt) % (1 << 8 * size), size)
    cpu.linked = None
    _set(cpu, rt, int(stored))
    return 4


def _get(cpu: Processor, register: int) -> int:
    return cpu.read(_REGISTERS[register]) if register else 0


def _set(cpu: Processor, register: int, value: int) -> None:
    if register:
        cpu.write(_REGISTERS[register], value % (1 << 64))


SYSTEM = System(perform=_perform, sites=_sites, page_table=None)
