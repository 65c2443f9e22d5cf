# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers in instructions of MIPS64 Release 2, as LLVM's MCInst counts them.

Branches count from the instruction behind them, which LLVM adds.

Source: MIPS64 Instruction Set, "Instruction Bit Encodings"; the order of operands is that of
LLVM's MipsInstrInfo.td and Mips64InstrInfo.td.
"""

from __future__ import annotations

from archs.operands import Form, Leads, Patterns

_REGION = 1 << 28

OPERANDS = Patterns(
    forms=(
        Form("j", "00001? i[27:2]", "i", Leads(0, region=_REGION)),
        *(
            Form("branch", f"{kind} S5 T5 i[17:2]", "S T ~i+4", Leads(2))
            for kind in ("00010?", "01010?")
        ),
        *(
            Form("branch", f"{kind} i[17:2]", "S ~i+4", Leads(1))
            for kind in (
                "0?011? S5 00000",
                "000001 S5 000??",
                "000001 S5 100??",
            )
        ),
        Form("lui", "001111 00000 T5 i[15:0]", "T i"),
        Form("addiu", "001001 S5 T5 i[15:0]", "T S ~i"),
        Form("addi", "001000 S5 T5 i[15:0]", "T S ~i"),
        Form("slti", "00101? S5 T5 i[15:0]", "T S ~i"),
        Form("andi", "001100 S5 T5 i[15:0]", "T S i"),
        Form("ori", "00110 1 S5 T5 i[15:0]", "T S i"),
        Form("xori", "001110 S5 T5 i[15:0]", "T S i"),
        Form("daddi", "01100? S5 T5 i[15:0]", "T S ~i"),
        *(
            Form("load or store", f"{kind} S5 T5 i[15:0]", "T S ~i")
            for kind in ("10000?", "10010?", "100011", "100111", "10100?", "101011", "11?111")
        ),
    )
)
