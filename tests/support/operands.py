# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads out of disassembled instructions which address they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
import capstone

from tests.support.formats import MASK64, signed

Decoded: TypeAlias = Sequence[Any]
PLACE = 0xFFFF_FFFF_C012_3450


@attrs.frozen
class Case:
    """One instruction (or pair) to relocate.

    Parameters
    ----------
    numbers
        Relocation types: the first at the start plus `at`, others 4 further.
    code
        Instruction bytes in hex.
    read
        Returns the target that the decoded instructions name.
    at, addend
        Where the field stands in the instruction, and A.
    wanted
        What of the target the operand can show.
    """

    numbers: tuple[int, ...]
    code: str
    read: Callable[[Decoded], int]
    at: int = 0
    addend: int = 0
    wanted: Callable[[int], int] = int


def last(insns: Decoded) -> int:
    """Return the last operand, which the disassembler made an address."""
    return int(insns[0].operands[-1].imm)


def rip(insns: Decoded) -> int:
    """Return the address of a memory operand relative to the next instruction."""
    return int(
        insns[0].address
        + insns[0].size
        + next(o.mem.disp for o in insns[0].operands if o.type == capstone.x86.X86_OP_MEM)
    )


def displaced(insns: Decoded) -> int:
    """Return address + displacement: of RISC-V branches capstone prints the displacement."""
    return int(insns[0].address + insns[0].operands[-1].imm)


def offset(insns: Decoded) -> int:
    """Return the displacement of a memory operand."""
    return int(insns[0].operands[-1].mem.disp)


def shifted(insns: Decoded) -> int:
    """Return an immediate where its shift puts it."""
    operand = insns[0].operands[1]
    return int(operand.imm) << operand.shift.value


def wide(insns: Decoded) -> int:
    """Return what MOVZ or MOVN puts into its register; `mov` prints it as one number."""
    value = shifted(insns)
    return ~value if insns[0].mnemonic == "movn" else value


def adrp_load(insns: Decoded) -> int:
    """Return the address that ADRP and the load after it add up to."""
    return int(insns[0].operands[1].imm + insns[1].operands[1].mem.disp)


def pair(insns: Decoded) -> int:
    """Return what AUIPC or LUI and the signed low part after it add up to."""
    high = (int(insns[0].operands[1].imm) & 0xFFFFF) << 12
    high -= (high & 1 << 31) << 1
    base = insns[0].address if insns[0].mnemonic == "auipc" else 0
    end = insns[1].operands[-1]
    low = {capstone.CS_OP_MEM: lambda: end.mem.disp, capstone.CS_OP_IMM: lambda: end.imm}
    # An immediate of zero is not printed: `mv`, `jalr ra`.
    return int(base + high + low.get(end.type, int)())


def low(bits: int) -> Callable[[int], int]:
    """Return what takes the low bits of a target."""
    return lambda target: target & (1 << bits) - 1


def group(n: int) -> Callable[[int], int]:
    """Return what takes 16 bits of a target."""
    return lambda target: target & 0xFFFF << 16 * n


def page_of(target: int) -> int:
    """Return the page of a target."""
    return target & ~0xFFF


def signed_group(n: int, base: int = 0) -> Callable[[int], int]:
    """Return group n of what lies between base and target; the complement of its complement's."""

    def wanted(target: int) -> int:
        x = signed(target - base)
        return (~(~x & 0xFFFF << 16 * n) if x < 0 else x & 0xFFFF << 16 * n) & MASK64

    return wanted


def distance_group(n: int) -> Callable[[int], int]:
    """Return what takes 16 bits of the distance to a target."""
    return lambda target: target - PLACE & 0xFFFF << 16 * n
