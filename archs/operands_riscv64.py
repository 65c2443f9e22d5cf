# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers in instructions of RV64GC, as LLVM's MCInst counts them.

Source: The RISC-V Instruction Set Manual, volume I, chapter "RV32/64G Instruction Set Listings"
and "C" Extension; the order of operands is that of LLVM's RISCVInstrInfo*.td.
"""

from __future__ import annotations

from archs.operands import UNKNOWN, Form, Leads, Pair, Patterns

_BRANCH = "i[12] i[10:5] T5 S5 {} i[4:1] i[11] 1100011"
_I = "i[11:0] S5 {} D5 {}"
_S = "i[11:5] T5 S5 {} i[4:0] {}"
_R = "{} T5 S5 {} D5 {}"
_CB = "{} i[8] i[4:3] S3 i[7:6] i[2:1] i[5] 01"

_WORDS = (
    Form("lui", "i[19:0] D5 0110111", "D i"),
    Form("auipc", "i[19:0] D5 0010111", "D i"),
    Form("jal", "i[20] i[10:1] i[11] i[19:12] D5 1101111", "D ~i", Leads(1)),
    Form("jalr", _I.format("000", "1100111"), "D S ~i"),
    *(Form("branch", _BRANCH.format(kind), "S T ~i", Leads(2)) for kind in ("00?", "1??")),
    *(Form("load", _I.format(kind, "0000011"), "D S ~i") for kind in ("0??", "10?", "110")),
    Form("store", _S.format("0??", "0100011"), "T S ~i"),
    *(Form("load of a float", _I.format(kind, "0000111"), "D S ~i") for kind in ("010", "011")),
    *(Form("store of a float", _S.format(kind, "0100111"), "T S ~i") for kind in ("010", "011")),
    *(Form("addi", _I.format(kind, "0010011"), "D S ~i") for kind in ("000", "01?", "1?0", "111")),
    Form("slli", "000000 u[5:0] S5 001 D5 0010011", "D S u"),
    Form("srli", "0?0000 u[5:0] S5 101 D5 0010011", "D S u"),
    Form("addiw", _I.format("000", "0011011"), "D S ~i"),
    Form("slliw", "0000000 u[4:0] S5 001 D5 0011011", "D S u"),
    Form("srliw", "0?00000 u[4:0] S5 101 D5 0011011", "D S u"),
    *(
        Form("of registers", _R.format(kind, which, code), "D S T")
        for kind, which, code in (
            ("0000000", "???", "0110011"),
            ("0100000", "000", "0110011"),
            ("0100000", "101", "0110011"),
            ("0000001", "???", "0110011"),
            ("0000000", "000", "0111011"),
            ("0000000", "?01", "0111011"),
            ("0100000", "?0?", "0111011"),
            ("0000001", "000", "0111011"),
            ("0000001", "1??", "0111011"),
        )
    ),
    Form("fence", "0000 p[3:0] s[3:0] 00000 000 00000 0001111", "p s"),
    Form("fence.i", "000000000000 00000 001 00000 0001111"),
    Form("ecall", "00000000000? 00000 000 00000 1110011"),
    Form("csrrw", "c[11:0] S5 001 D5 1110011", "D c S"),
    Form("csrrs", "c[11:0] S5 01? D5 1110011", "D c S"),
    Form("csrrwi", "c[11:0] z[4:0] 101 D5 1110011", "D c z"),
    Form("csrrsi", "c[11:0] z[4:0] 11? D5 1110011", "D c z"),
)

# Hints come first: what LLVM makes of them depends on its version.
_HALVES = (
    Form("c.unimp", "0000000000000000"),
    Form("a hint", "000 ? 00000 ????? 10", UNKNOWN),
    Form("a hint", "000 0 ????? 00000 10", UNKNOWN),
    Form("a hint", "100 0 0? ??? 00000 01", UNKNOWN),
    Form("c.nop", "000 0 00000 00000 01"),
    *(Form("a hint", f"{kind} ? 00000 ????? 01", UNKNOWN) for kind in ("000", "010", "011")),
    Form("a hint", "000 0 ????? 00000 01", UNKNOWN),
    Form("c.ebreak", "100 1 00000 00000 10"),
    Form("a hint", "100 ? 00000 ????? 10", UNKNOWN),
    Form("c.addi4spn", "000 u[5:4] u[9:6] u[2] u[3] D3 00", "D - u"),
    Form("c.fld", "001 u[5:3] S3 u[7:6] D3 00", "D S u"),
    Form("c.lw", "010 u[5:3] S3 u[2] u[6] D3 00", "D S u"),
    Form("c.ld", "011 u[5:3] S3 u[7:6] D3 00", "D S u"),
    Form("c.fsd", "101 u[5:3] S3 u[7:6] D3 00", "D S u"),
    Form("c.sw", "110 u[5:3] S3 u[2] u[6] D3 00", "D S u"),
    Form("c.sd", "111 u[5:3] S3 u[7:6] D3 00", "D S u"),
    Form("c.addi", "000 i[5] D5 i[4:0] 01", "D D ~i"),
    Form("c.addiw", "001 i[5] D5 i[4:0] 01", "D D ~i"),
    Form("c.li", "010 i[5] D5 i[4:0] 01", "D ~i"),
    Form("c.addi16sp", "011 i[9] 00010 i[4] i[6] i[8:7] i[5] 01", "- - ~i"),
    Form("c.lui", "011 0 D5 i[4:0] 01", "D i"),
    Form("c.lui", "011 1 D5 i[4:0] 01", "D i+1048544"),  # 20 bits with the sign in their upper 15
    Form("c.srli", "100 u[5] 0? D3 u[4:0] 01", "D D u"),
    Form("c.andi", "100 i[5] 10 D3 i[4:0] 01", "D D ~i"),
    Form("c.sub", "100 0 11 D3 ?? T3 01", "D D T"),
    Form("c.subw", "100 1 11 D3 0? T3 01", "D D T"),
    Form("c.j", "101 i[11] i[4] i[9:8] i[10] i[6] i[7] i[3:1] i[5] 01", "~i", Leads(0)),
    Form("c.beqz", _CB.format("110"), "S ~i", Leads(1)),
    Form("c.bnez", _CB.format("111"), "S ~i", Leads(1)),
    Form("c.slli", "000 u[5] D5 u[4:0] 10", "D D u"),
    Form("c.fldsp", "001 u[5] D5 u[4:3] u[8:6] 10", "D - u"),
    Form("c.lwsp", "010 u[5] D5 u[4:2] u[7:6] 10", "D - u"),
    Form("c.ldsp", "011 u[5] D5 u[4:3] u[8:6] 10", "D - u"),
    Form("c.jr", "100 ? S5 00000 10", "S"),
    Form("c.mv", "100 0 D5 T5 10", "D T"),
    Form("c.add", "100 1 D5 T5 10", "D D T"),
    Form("c.fsdsp", "101 u[5:3] u[8:6] T5 10", "T - u"),
    Form("c.swsp", "110 u[5:2] u[7:6] T5 10", "T - u"),
    Form("c.sdsp", "111 u[5:3] u[8:6] T5 10", "T - u"),
)

OPERANDS = Patterns(
    forms=_WORDS + _HALVES,
    sizes=((0x1F, 0x1F, 8), (0b11, 0b11, 4), (0, 0, 2)),
    pairs=(Pair("auipc", "jalr", 12),),
)
