# SPDX-License-Identifier: GPL-2.0-or-later
"""A disassembler reads relocated instructions: the operand it prints is the target.

Each case is an instruction as the assembler leaves it (immediate zero), the relocations it
carries, and how its operand gives an address. The disassembler knows nothing of
relocations, so a bit in the wrong place shows as a wrong target.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from archs.engine import Records, apply
from archs.op import Op, OpKind
from tests.archs.facts import cases, facts
from tests.archs.test_registry import disassembler
from tests.support.operands import PLACE, Case
from tests.support.scalar import MASK64


def test_every_row_that_stands_in_an_instruction_is_decoded(arch: archs.Arch) -> None:
    """No supported row is left out, but those whose field is plain data of a table."""
    decoded = {number for case in facts(arch).link.decoded for number in case.numbers}
    for number, row in arch.link.relocations.items():
        whole = len(row.parts) == 1 and row.parts[0].mask == (1 << 8 * row.parts[0].size) - 1
        beyond = number in facts(arch).link.beyond_capstone
        if row.parts and not whole and not row.accumulates and not beyond:
            assert number in decoded, row.name


@pytest.mark.parametrize(("arch", "case"), cases("link", "decoded"))
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_the_operand_is_the_target(arch: archs.Arch, case: Case, data: st.DataObject) -> None:
    """The disassembler finds the intended target in the relocated instruction."""
    assert facts(arch).link
    row = arch.link.relocations[case.numbers[0]]
    rule = facts(arch).link.rules[row.number]
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
    if row.op.kind is OpKind.REGION:
        base = place + 4 & ~0xFFF_FFFF
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
