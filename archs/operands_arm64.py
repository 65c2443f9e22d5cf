# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers in instructions of AArch64, as LLVM's MCInst counts them.

Branches, ADR, ADRP and loads of literals hold words, bytes or pages from the instruction. What
is shifted holds its number and the shift apart; immediates of logical instructions stay encoded.

Source: Arm Architecture Reference Manual for A-profile, C4.1 "A64 instruction set encoding"; the
order of operands is that of LLVM's AArch64InstrFormats.td.
"""

from __future__ import annotations

from archs.operands import UNKNOWN, Form, Leads, Patterns

_WORD = 4


def _memory() -> tuple[Form, ...]:
    """Return loads and stores with an offset, of every size and of both register files."""
    found = [
        Form("prfm", "11 111 0 01 10 i[11:0] N5 p[4:0]", "p N i"),
        Form("prfum", "11 111 0 00 10 0 i[8:0] 00 N5 p[4:0]", "p N ~i"),
    ]
    kinds = (
        *("00 111 0 {} ??", "01 111 0 {} ??", "10 111 0 {} 0?", "10 111 0 {} 10", "11 111 0 {} 0?"),
        *("?? 111 1 {} 0?", "00 111 1 {} 1?"),
    )
    for kind in kinds:
        found += (
            Form("load or store", kind.format("01") + " i[11:0] N5 T5", "T N i"),
            Form("load or store, unscaled", kind.format("00") + " 0 i[8:0] 00 N5 T5", "T N ~i"),
            Form("load or store, indexed", kind.format("00") + " 0 i[8:0] ?1 N5 T5", "N T N ~i"),
        )
    for kind in (
        "00 101 0 {} ?",
        "01 101 0 {} 1",
        "10 101 0 {} ?",
        "0? 101 1 {} ?",
        "10 101 1 {} ?",
    ):
        found += (
            Form("pair", kind.format("010") + " i[6:0] U5 N5 T5", "T U N ~i"),
            Form("pair, indexed", kind.format("0?1") + " i[6:0] U5 N5 T5", "N T U N ~i"),
        )
    return tuple(found)


OPERANDS = Patterns(
    forms=(
        Form("adr", "0 i[1:0] 10000 i[20:2] D5", "D ~i"),
        Form("adrp", "1 i[1:0] 10000 i[20:2] D5", "D ~i"),
        Form("b", "?00101 i[25:0]", "~i", Leads(0, _WORD)),
        Form("b.cond", "01010100 i[18:0] 0 c[3:0]", "c ~i", Leads(1, _WORD)),
        Form("cbz", "?011010? i[18:0] T5", "T ~i", Leads(1, _WORD)),
        Form("tbz", "b[5] 011011? b[4:0] i[13:0] T5", "T b ~i", Leads(2, _WORD)),
        Form("prfm of a literal", "11 011000 i[18:0] p[4:0]", "p ~i"),
        Form("load of a literal", "0? 011?00 i[18:0] T5", "T ~i"),
        Form("load of a literal", "10 011?00 i[18:0] T5", "T ~i"),
        Form("add", "??? 100010 0 i[11:0] N5 D5", "D N i #0"),
        Form("add, shifted", "??? 100010 1 i[11:0] N5 D5", "D N i #12"),
        Form("and", "0?? 100100 i[12:0] N5 D5", "D N i"),
        Form("and", "1?? 100100 i[12:0] N5 D5", "D N i"),
        Form("movn", "0 00 100101 0 s[4] i[15:0] D5", "D i s"),
        Form("movz", "0 10 100101 0 s[4] i[15:0] D5", "D i s"),
        Form("movk", "0 11 100101 0 s[4] i[15:0] D5", "D D i s"),
        Form("movn", "1 00 100101 s[5:4] i[15:0] D5", "D i s"),
        Form("movz", "1 10 100101 s[5:4] i[15:0] D5", "D i s"),
        Form("movk", "1 11 100101 s[5:4] i[15:0] D5", "D D i s"),
        Form("sbfm", "0 ?0 100110 0 0 r[4:0] 0 s[4:0] N5 D5", "D N r s"),
        Form("sbfm", "1 ?0 100110 1 r[5:0] s[5:0] N5 D5", "D N r s"),
        Form("bfm", "0 01 100110 0 0 r[4:0] 0 s[4:0] N5 D5", "D D N r s"),
        Form("bfm", "1 01 100110 1 r[5:0] s[5:0] N5 D5", "D D N r s"),
        Form("extr", "0 00 100111 00 M5 0 s[4:0] N5 D5", "D N M s"),
        Form("extr", "1 00 100111 10 M5 s[5:0] N5 D5", "D N M s"),
        Form("nop", "11010101000000110010 0000000 11111", UNKNOWN),
        Form("xpaclri", "11010101000000110010 0000111 11111", UNKNOWN),
        Form("hint", "11010101000000110010 0000 i[2:0] 11111", "i"),
        *(
            Form("exception", f"11010100 {kind} i[15:0] {level}", "i")
            for kind, level in (
                ("000", "00001"),
                ("000", "00010"),
                ("000", "00011"),
                ("001", "00000"),
                ("010", "00000"),
            )
        ),
        Form("br", "1101011000 ? 11111 000000 N5 00000", "N"),
        Form("ret", "11010110010 11111 000000 N5 00000", "N"),
        *_memory(),
    )
)
