# SPDX-License-Identifier: GPL-2.0-or-later
"""A disassembler reads relocated instructions: the operand it prints is the target.

Each case is an instruction as the assembler leaves it (immediate zero), the relocations it
carries, and how its operand gives an address. The disassembler knows nothing of
relocations, so a bit in the wrong place shows as a wrong target.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import capstone
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from archs.engine import Records, apply
from archs.op import Op
from tests.archs.test_registry import disassembler
from tests.support import scalar
from tests.support.scalar import MASK64, signed

Decoded = list[capstone.CsInsn]
PLACE = 0xFFFF_FFFF_C012_3450
LABEL = -1  # as a symbol: the place of the instruction itself


@attrs.frozen
class Case:
    """One instruction (or pair) to relocate.

    Parameters
    ----------
    arch, numbers
        Architecture, and relocation types: the first at the start plus `at`, others 4 further.
    code
        Instruction bytes in hex.
    read
        Returns the target that the decoded instructions name.
    at, addend
        Where the field stands in the instruction, and A.
    wanted
        What of the target the operand can show.
    """

    arch: str
    numbers: tuple[int, ...]
    code: str
    read: Callable[[Decoded], int]
    at: int = 0
    addend: int = 0
    wanted: Callable[[int], int] = int


def _last(insns: Decoded) -> int:
    """Return the last operand, which the disassembler made an address."""
    return int(insns[0].operands[-1].imm)


def _rip(insns: Decoded) -> int:
    return (
        insns[0].address
        + insns[0].size
        + next(o.mem.disp for o in insns[0].operands if o.type == capstone.x86.X86_OP_MEM)
    )


def _relative(insns: Decoded) -> int:
    """Return address + displacement: RISC-V branches print the displacement."""
    return insns[0].address + int(insns[0].operands[-1].imm)


def _offset(insns: Decoded) -> int:
    return int(insns[0].operands[-1].mem.disp)


def _shifted(insns: Decoded) -> int:
    operand = insns[0].operands[1]
    return int(operand.imm) << operand.shift.value


def _wide(insns: Decoded) -> int:
    """Return what MOVZ or MOVN puts into its register; `mov` prints it as one number."""
    value = _shifted(insns)
    return ~value if insns[0].mnemonic == "movn" else value


def _pair(insns: Decoded) -> int:
    """Return what AUIPC or LUI and the signed low part after it add up to."""
    high = (int(insns[0].operands[1].imm) & 0xFFFFF) << 12
    high -= (high & 1 << 31) << 1
    base = insns[0].address if insns[0].mnemonic == "auipc" else 0
    last = insns[1].operands[-1]
    low = {capstone.CS_OP_MEM: lambda: last.mem.disp, capstone.CS_OP_IMM: lambda: last.imm}
    # An immediate of zero is not printed: `mv`, `jalr ra`.
    return base + high + int(low.get(last.type, int)())


def _low(bits: int) -> Callable[[int], int]:
    return lambda target: target & (1 << bits) - 1


def _group(n: int) -> Callable[[int], int]:
    return lambda target: target & 0xFFFF << 16 * n


def _page(target: int) -> int:
    return target & ~0xFFF


def _signed_group(n: int, base: int = 0) -> Callable[[int], int]:
    """Return group n of what lies between base and target; the complement of its complement's."""

    def wanted(target: int) -> int:
        x = signed(target - base)
        return (~(~x & 0xFFFF << 16 * n) if x < 0 else x & 0xFFFF << 16 * n) & MASK64

    return wanted


def _distance_group(n: int) -> Callable[[int], int]:
    return lambda target: target - PLACE & 0xFFFF << 16 * n


MOVZ = tuple(f"0300{0x80 + 0x20 * n:02x}d2" for n in range(4))
MOVN = tuple(f"0300{0x80 + 0x20 * n:02x}92" for n in range(4))
MOVK = tuple(f"0300{0x80 + 0x20 * n:02x}f2" for n in range(4))


GROUPS = range(4)
CASES = [
    Case("x86_64", (4,), "e800000000", _last, 1, -4),  # call
    Case("x86_64", (4,), "e900000000", _last, 1, -4),  # jmp
    Case("x86_64", (2,), "0f8400000000", _last, 2, -4),  # je
    Case("x86_64", (2,), "488d0500000000", _rip, 3, -4),  # lea 0(%rip), %rax
    Case("x86_64", (2,), "803d0000000007", _rip, 2, -5),  # cmpb $7, 0(%rip)
    Case("x86_64", (2,), "c7050000000001020304", _rip, 2, -8),  # movl $imm, 0(%rip)
    Case("x86_64", (15,), "eb00", _last, 1, -1),  # jmp rel8
    Case("x86_64", (15,), "7500", _last, 1, -1),  # jne rel8
    Case("x86_64", (11,), "48c7c000000000", _last, 3),  # mov $imm32s, %rax
    Case("x86_64", (10,), "b800000000", _last, 1),  # mov $imm32, %eax
    Case("x86_64", (1,), "48b80000000000000000", _last, 2),  # movabs
    Case("arm64", (283,), "00000094", _last),  # bl
    Case("arm64", (282,), "00000014", _last),  # b
    Case("arm64", (280,), "01000054", _last),  # b.ne
    Case("arm64", (280,), "030000b4", _last),  # cbz x3
    Case("arm64", (280,), "03000035", _last),  # cbnz w3
    Case("arm64", (279,), "03008036", _last),  # tbz x3, #16
    Case("arm64", (279,), "030080b7", _last),  # tbnz x3, #48
    Case("arm64", (274,), "03000010", _last),  # adr
    Case("arm64", (275,), "03000090", _last, wanted=_page),  # adrp
    Case("arm64", (276,), "03000090", _last, wanted=_page),
    Case("arm64", (273,), "03000058", _last),  # ldr x3, literal
    Case("arm64", (277,), "63000091", _last, wanted=_low(12)),  # add x3, x3
    Case("arm64", (278,), "63004039", _offset, wanted=_low(12)),  # ldrb
    Case("arm64", (284,), "63004079", _offset, wanted=_low(12)),  # ldrh
    Case("arm64", (285,), "630040b9", _offset, wanted=_low(12)),  # ldr w
    Case("arm64", (286,), "630040f9", _offset, wanted=_low(12)),  # ldr x
    Case("arm64", (299,), "6300c03d", _offset, wanted=_low(12)),  # ldr q
    Case("arm64", (263,), "030080f2", _shifted, wanted=_group(0)),  # movk x3
    Case("arm64", (264,), "030080f2", _shifted, wanted=_group(0)),
    Case("arm64", (265,), "0300a0f2", _shifted, wanted=_group(1)),
    Case("arm64", (266,), "0300a0f2", _shifted, wanted=_group(1)),
    Case("arm64", (267,), "0300c0f2", _shifted, wanted=_group(2)),
    Case("arm64", (268,), "0300c0f2", _shifted, wanted=_group(2)),
    Case("arm64", (269,), "0300e0f2", _shifted, wanted=_group(3)),
    *(Case("arm64", (270 + n,), MOVZ[n], _wide, wanted=_signed_group(n)) for n in range(3)),
    *(Case("arm64", (270 + n,), MOVN[n], _wide, wanted=_signed_group(n)) for n in range(3)),
    *(
        Case("arm64", (287 + 2 * n,), MOVN[n], _wide, wanted=_signed_group(n, PLACE))
        for n in GROUPS
    ),
    *(
        Case("arm64", (288 + 2 * n,), MOVK[n], _shifted, wanted=_distance_group(n))
        for n in range(3)
    ),
    # Rows that use a GOT: S is what stands for it, such as the address of the slot.
    *(Case("arm64", (300 + 2 * n,), MOVZ[n], _wide, wanted=_signed_group(n)) for n in GROUPS),
    *(Case("arm64", (301 + 2 * n,), MOVK[n], _shifted, wanted=_group(n)) for n in range(3)),
    Case("arm64", (309,), "03000058", _last),  # ldr x3, literal
    Case("arm64", (310,), "630040f9", _offset),  # ldr x3, [x3]
    Case("arm64", (311,), "03000090", _last, wanted=_page),  # adrp
    Case("arm64", (312,), "630040f9", _offset, wanted=_low(12)),
    Case("arm64", (313,), "630040f9", _offset),
    Case("x86_64", (9,), "ff2500000000", _rip, 2, -4),  # jmp *0(%rip)
    Case("x86_64", (41,), "ff1500000000", _rip, 2, -4),  # call *0(%rip)
    Case("x86_64", (42,), "488b0500000000", _rip, 3, -4),  # mov 0(%rip), %rax
    Case("x86_64", (26,), "488d1d00000000", _rip, 3, -4),  # lea 0(%rip), %rbx
    Case("riscv64", (17,), "ef000000", _relative),  # jal
    Case("riscv64", (16,), "6300b500", _relative),  # beq a0, a1
    Case("riscv64", (16,), "63e0b500", _relative),  # bltu a1, a1
    Case("riscv64", (45,), "01a0", _relative),  # c.j
    Case("riscv64", (44,), "01c1", _relative),  # c.beqz a0
    Case("riscv64", (44,), "01e1", _relative),  # c.bnez a0
    Case("riscv64", (18,), "97000000e7800000", _pair),  # call
    Case("riscv64", (19,), "97000000e7800000", _pair),
    Case("riscv64", (23, 24), "1705000013050500", _pair),  # auipc a0 ; addi a0, a0
    Case("riscv64", (23, 24), "1705000003350500", _pair),  # auipc a0 ; ld a0, (a0)
    Case("riscv64", (23, 25), "170500002330b500", _pair),  # auipc a0 ; sd a1, (a0)
    Case("riscv64", (20, 24), "1705000003350500", _pair),  # auipc a0 ; ld a0, (a0)
    Case("riscv64", (26, 27), "3705000013050500", _pair),  # lui a0 ; addi a0, a0
    Case("riscv64", (26, 28), "370500002330b500", _pair),  # lui a0 ; sd a1, (a0)
]


def test_every_row_that_stands_in_an_instruction_is_decoded() -> None:
    """No supported row is left out, but those whose field is plain data of a table."""
    decoded = {(case.arch, number) for case in CASES for number in case.numbers}
    for arch in archs.ALL:
        for number, row in arch.link.relocations.items():
            whole = len(row.parts) == 1 and row.parts[0].mask == (1 << 8 * row.parts[0].size) - 1
            if row.parts and not whole and not row.accumulates:
                assert (arch.name, number) in decoded, row.name


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.arch}-{c.numbers[0]}-{c.code}")
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_the_operand_is_the_target(case: Case, data: st.DataObject) -> None:
    """The disassembler finds the intended target in the relocated instruction."""
    arch = archs.arch(case.arch)
    row = arch.link.relocations[case.numbers[0]]
    rule = scalar.RULES[arch.machine][row.number]
    place = PLACE + case.at
    low = -(1 << 63) if rule.lowest is None else rule.lowest
    high = (1 << 63) - 1 if rule.highest is None else rule.highest
    if row.op is Op.PAGE:  # the NC form wraps, but the register it fills does not
        low, high = max(low, -(1 << 32)), min(high, (1 << 32) - 4096)
    unit = 4096 if row.op is Op.PAGE else rule.align
    ends = st.sampled_from((-(-low // unit), high // unit))
    x = unit * data.draw(ends | st.integers(-(-low // unit), high // unit), label="X")
    # The target that a person means: S, before the addend that the field's position needs.
    base = {Op.PC: place, Op.PAGE: place & ~0xFFF}.get(row.op, 0)
    target = x + base - case.addend
    them = [(0, target, case.addend, case.numbers[0])]
    for number in case.numbers[1:]:
        paired = arch.link.relocations[number].op is Op.PAIR
        them.append((4, PLACE if paired else target, 0, number))
    image = np.frombuffer(bytes.fromhex(case.code), np.uint8).copy()
    offsets = np.array([at + case.at for at, *_ in them], np.intp)
    records = Records(
        offset=offsets,
        place=offsets.astype(np.uint64) + np.uint64(PLACE),
        target=np.array([value + addend & MASK64 for _, value, addend, _ in them], np.uint64),
        addend=np.array([addend & MASK64 for _, _, addend, _ in them], np.uint64),
        type=np.array([number for *_, number in them], np.uint32),
        group=np.zeros(len(them), np.uint64),
    )
    assert apply(arch.link.relocations, image, records) == []
    insns = list(disassembler(arch).disasm(image.tobytes(), PLACE))
    assert sum(insn.size for insn in insns) == len(image)
    assert case.read(insns) & MASK64 == case.wanted(target & MASK64)
