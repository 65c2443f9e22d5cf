# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocations whose outcome others have published, as data.

LLVM's JITLink, lld and the kernel come with objects and what must become of them; the RISC-V
psABI and the Arm ABI have worked examples and limits. Here stand the facts of those cases:
the place, the symbols, the bytes before, and the bytes after or that the relocation must be
refused. Where a publication gives a formula and leaves addresses open, the addresses are
those of its own object laid out at the address it asks for, or at one chosen here, and the
bytes after are an assembler's encoding of the instruction with the number filled in.

Left out are cases about stubs that another linker invents (a GOT entry, a PLT), and two of
JITLink's that others contradict: a lone SUB6 that subtracts from what stands at the place (the
kernel starts from 0), and a ULEB128 that outgrows the bytes that stand there (lld refuses).

Sources: LLVM, test/ExecutionEngine/JITLink/{AArch64,RISCV,x86-64}/ELF_*.s and
lld/test/ELF/riscv-reloc-leb128.s; Linux, arch/riscv/kernel/tests/module_test; RISC-V ELF
psABI, 8.4; ELF for the Arm 64-bit Architecture, 5.7; System V ABI AMD64 supplement, 4.4.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import pytest

import archs
from loader.errors import RelocationError
from loader.link import link
from tests.support.elfwriter import AARCH64, ABS, RISCV, UNDEF, X86_64, A, Rela, Sec, Sym, W, write

MASK64 = (1 << 64) - 1


@attrs.frozen
class Case:
    """One place: its bytes before and after, and the records (offset, type, S, A) there.

    Parameters
    ----------
    what
        For the test's name.
    place
        Address of the first byte.
    after
        None: the first record must be refused.
    size
        st_size of every symbol.
    """

    what: str
    machine: int
    place: int
    before: str
    after: str | None
    records: tuple[tuple[int, int, int, int], ...]
    size: int = 0


# JITLink's AArch64 object has everything in .text; T is where it is laid out here.
T = 0xFFFF_8000_1234_0000
NAMED_DATA, NAMED_FUNC = T + 0x10_8090, T + 0x10_80A0
EXTERNAL_FUNC = 0xCAFE_F00D
A64 = [
    # what, type, S, A, P, bytes before, bytes after
    ("bl to a local function", 283, T + 0x4, 0, T + 0x8, "00000094", "ffffff97"),
    ("b to a local function", 282, T + 0x4, 0, T + 0xC, "00000014", "feffff17"),
    ("bl to an external function", 283, EXTERNAL_FUNC, 0, T + 0x18, "00000094", None),
    ("b to an external function", 282, EXTERNAL_FUNC, 0, T + 0x1C, "00000014", None),
    ("adrp", 275, NAMED_DATA, 0, T + 0x10, "00000090", "40080090"),
    ("add :lo12:", 277, NAMED_DATA, 0, T + 0x14, "00000091", "00400291"),
    ("ldrb", 278, NAMED_DATA, 0, T + 0x20, "20004039", "20404239"),
    ("ldrsb", 278, NAMED_DATA, 0, T + 0x24, "2000c039", "2040c239"),
    ("ldrh", 284, NAMED_DATA, 0, T + 0x28, "20004079", "20204179"),
    ("ldrsh", 284, NAMED_DATA, 0, T + 0x2C, "2000c079", "2020c179"),
    ("ldr 32", 285, NAMED_DATA, 0, T + 0x30, "200040b9", "209040b9"),
    ("ldr 64", 286, NAMED_DATA, 0, T + 0x34, "200040f9", "204840f9"),
    ("ldr 128", 299, NAMED_DATA, 0, T + 0x34, "2000c03d", "2024c03d"),
    ("strb", 278, NAMED_DATA, 0, T + 0x38, "20000039", "20400239"),
    ("strh", 284, NAMED_DATA, 0, T + 0x3C, "20000079", "20200179"),
    ("str 32", 285, NAMED_DATA, 0, T + 0x40, "200000b9", "209000b9"),
    ("str 64", 286, NAMED_DATA, 0, T + 0x44, "200000f9", "204800f9"),
    ("movz g0", 264, NAMED_DATA, 0, T + 0x48, "000080d2", "001290d2"),
    ("movk g0", 264, NAMED_DATA, 0, T + 0x4C, "000080f2", "001290f2"),
    ("movz g1", 266, NAMED_DATA, 0, T + 0x50, "0000a0d2", "8048a2d2"),
    ("movk g1", 266, NAMED_DATA, 0, T + 0x54, "0000a0f2", "8048a2f2"),
    ("movz g2", 268, NAMED_DATA, 0, T + 0x58, "0000c0d2", "0000d0d2"),
    ("movk g2", 268, NAMED_DATA, 0, T + 0x5C, "0000c0f2", "0000d0f2"),
    ("movk g3", 269, NAMED_DATA, 0, T + 0x60, "0000e0f2", "e0fffff2"),
    ("movz g3", 269, NAMED_DATA, 0, T + 0x64, "0000e0d2", "e0ffffd2"),
    ("pointer to a local", 257, NAMED_FUNC, 0, T + 0x68, "00" * 8, "a080441200 80ffff"),
    ("pointer to an external", 257, EXTERNAL_FUNC, 0, T + 0x70, "00" * 8, "0df0feca00000000"),
    ("32-bit pointer", 258, 0x1234_5678, 0, T, "00" * 8, "7856341200000000"),
    ("32-bit pointer out of range", 258, 0x1_2345_6789, 0, T, "00" * 8, None),
    ("tbz", 279, T + 0x4084, 0, T + 0x80, "00000036", "20000236"),
    ("tbnz", 279, T + 0x8088, 0, T + 0x4084, "00000037", "20000237"),
    ("cbz", 280, T + 0x8_808C, 0, T + 0x8088, "000000b4", "200040b4"),
    ("b.eq", 280, T + 0x10_8090, 0, T + 0x8_808C, "00000054", "20004054"),
    # ELF for the Arm 64-bit Architecture, 5.7: formulas and limits.
    ("bl at its upper limit", 283, T + 0x7FF_FFFC, 0, T, "00000094", "ffffff95"),
    ("bl past its upper limit", 283, T + 0x800_0000, 0, T, "00000094", None),
    ("bl at its lower limit", 283, T, 0, T + 0x800_0000, "00000094", "00000096"),
    ("bl past its lower limit", 283, T, 0, T + 0x800_0004, "00000094", None),
    ("bl to no instruction", 283, T + 2, 0, T, "00000094", None),
    ("tbz past its limit", 279, T + 0x8000, 0, T, "00000036", None),
    ("b.eq past its limit", 280, T + 0x10_0000, 0, T, "00000054", None),
    ("ldr literal", 273, T + 0xFF8, 8, T, "04000058", "04800058"),
    ("ldr literal at its limits", 273, T, 0, T + 0x10_0000, "04000058", "04008058"),
    ("ldr literal at the other", 273, T + 0xF_FFFC, 0, T, "04000058", "e4ff7f58"),
    ("ldr literal past it", 273, T + 0x10_0000, 0, T, "04000058", None),
    ("adr", 274, T, -3, T, "03000010", "e3ffff30"),
    ("adr past its limit", 274, T + 0x10_0000, 0, T, "03000010", None),
    ("adrp past its limit", 275, T + 0x1_0000_0000, 0, T, "00000090", None),
    ("adrp, unchecked", 276, T + 0x2_0010_8000, 0, T, "00000090", "40080090"),
    ("ldr 64 that is not aligned", 286, NAMED_DATA, 4, T, "200040f9", None),
    ("16-bit pointer", 259, 0xFFFF, 0, T, "0000", "ffff"),
    ("16-bit pointer, negative", 259, 0, -0x8000, T, "0000", "0080"),
    ("16-bit pointer out of range", 259, 0x1_0000, 0, T, "0000", None),
    ("64-bit displacement", 260, T - 0x10, 0, T, "00" * 8, "f0ffffffffffffff"),
    ("32-bit displacement", 261, T, -1, T, "00" * 4, "ffffffff"),
    ("32-bit displacement out of range", 261, T + 0x1_0000_0000, 0, T, "00" * 4, None),
    ("16-bit displacement", 262, T + 0x7FFF, 0, T, "0000", "ff7f"),
    ("movz g0, checked", 263, 0x1234, 0, T, "000080d2", "804682d2"),
    ("movz g0, checked, too large", 263, 0x1_0000, 0, T, "000080d2", None),
    ("signed g0 of a positive number", 270, 0x1234, 0, T, "000080d2", "804682d2"),
    ("signed g0 of a negative number", 270, 0, -16, T, "000080d2", "e0018092"),
    ("32-bit displacement of a PLT", 314, T + 0x40, 0, T, "00" * 4, "40000000"),
]

# JITLink's small PIC object at the slab address that it asks for.
L = 0xFFF0_0000
AMD64 = [
    # what, type, S, A, address and bytes before, offset in them, bytes after
    ("movl (%rip)", 2, L + 0x2000, -4, L + 0x10, "8b0500000000", 2, "8b05ea1f0000"),
    ("call, same section", 4, L + 0x20, -4, L + 0x30, "e800000000", 1, "e8ebffffff"),
    ("call, other section", 4, L + 0x1000, 12, L + 0x40, "e800000000", 1, "e8cb0f0000"),
    ("call of a distant external", 4, 0x7FFF_0000_0000, -4, L + 0x50, "e800000000", 1, None),
    ("8-bit pointer", 14, 0x12, 0, L, "00" * 8, 0, "1200000000000000"),
    ("8-bit pointer out of range", 14, 0x123, 0, L, "00" * 8, 0, None),
    ("16-bit pointer", 12, 0x1234, 0, L, "00" * 8, 0, "3412000000000000"),
    ("16-bit pointer out of range", 12, 0x1_2345, 0, L, "00" * 8, 0, None),
    ("32-bit pointer", 10, 0x1234_5678, 0, L, "00" * 8, 0, "7856341200000000"),
    ("32-bit pointer out of range", 10, 0x1_2345_6789, 0, L, "00" * 8, 0, None),
    # main is three bytes long and ends where the words begin, each main - .
    ("8-bit displacement", 15, L, 0, L, "31c0c300", 3, "31c0c3fd"),
    ("16-bit displacement", 13, L, 0, L, "31c0c30000", 3, "31c0c3fdff"),
    ("32-bit displacement", 2, L, 0, L, "31c0c3" + "00" * 4, 3, "31c0c3fdffffff"),
    ("64-bit displacement", 24, L, 0, L, "31c0c3" + "00" * 8, 3, "31c0c3fd" + "ff" * 7),
    # System V ABI AMD64 supplement, table 4.9: S + A, zero- or sign-extended.
    ("64-bit pointer", 1, 0xFFFF_FFFF_C000_1000, -8, L, "00" * 8, 0, "f80f00c0ffffffff"),
    ("sign-extended pointer", 11, 0xFFFF_FFFF_8123_4567, 0, L, "00" * 4, 0, "67452381"),
    ("sign-extended pointer, positive", 11, 0x7FFF_FFFF, 0, L, "00" * 4, 0, "ffffff7f"),
    ("sign-extended pointer, too large", 11, 0x8000_0000, 0, L, "00" * 4, 0, None),
    ("zero-extended pointer of the kernel", 10, 0xFFFF_FFFF_8123_4567, 0, L, "00" * 4, 0, None),
    ("8-bit displacement too large", 15, L + 0x80, 0, L, "00", 0, None),
    ("16-bit displacement too large", 13, L + 0x8000, 0, L, "0000", 0, None),
]

# The size of main in JITLink's object: xor, two moves and a return.
SIZE = 18
SIZES = [
    ("size in 64 bits of code", 32, 2, "488b1c2500000000", 4, "488b1c2514000000"),
    ("size in 32 bits of code", 32, 1, "8b1c2500000000", 3, "8b1c2513000000"),
    ("size less than nothing", 32, -32, "8b1c2500000000", 3, None),
    ("size as 64-bit data", 33, 1, "00" * 8, 0, "1300000000000000"),
]

B, J, R, RVC = 0xFFF0_0FF8, 0x1FF0_0004, 0x1FF0_0004, 0x1FF0_0004
P = 0xFFFF_FFFF_0123_4000
RV64 = [
    # JITLink
    ("bge forward", 16, 0xFFF0_0FFC, 0, B, "6350b500", "6352b500"),
    ("bge backward", 16, 0xFFF0_0000, 0, B + 4, "6350b500", "6352b580"),
    ("jal backward", 17, 0x1FE0_00FE, 0, J, "6f000000", "6f00a08f"),
    ("lui %hi", 26, 0x1FF1_1115, 0, R, "b7050000", "b715f11f"),
    ("lw %lo", 27, 0x1FF1_1115, 0, R + 4, "03a50500", "03a55511"),
    ("sw %lo", 28, 0x1FF1_1115, 0, R + 8, "23a0a500", "a3aaa510"),
    ("call", 18, 0x1, 0, R + 8, "97000000 e7800000", "970010e0 e78050ff"),
    ("c.beqz forward", 44, RVC + 4, 0, RVC, "01c1", "11c1"),
    ("c.bnez forward", 44, RVC + 4, 0, RVC + 2, "01e1", "09e1"),
    ("c.beqz backward", 44, RVC + 4, 0, RVC + 6, "01c1", "7ddd"),
    ("c.bnez backward", 44, RVC + 4, 0, RVC + 8, "01e1", "75fd"),
    ("c.j forward", 45, RVC + 2, 0, RVC, "01a0", "09a0"),
    ("c.j backward", 45, RVC + 2, 0, RVC + 4, "01a0", "fdbf"),
    # psABI 8.4.4 to 8.4.9: examples, formulas and limits.
    ("lui that absorbs a sign", 26, 0x1234_5FFF, 0, P, "37050000", "37653412"),
    ("addi that is negative", 27, 0x1234_5FFF, 0, P, "13050500", "1305f5ff"),
    ("call @plt", 19, P + 0x5678, 0, P, "97000000 e7800000", "97500000 e7808067"),
    ("call without @plt", 18, P + 0x5678, 0, P, "97000000 e7800000", "97500000 e7808067"),
    ("call at its upper limit", 19, P + 0x7FFF_F7FE, 0, P, "97000000e7800000", "97f0ff7fe780e07f"),
    ("call past its upper limit", 19, P + 0x7FFF_F800, 0, P, "97000000e7800000", None),
    ("call at its lower limit", 19, P, -0x8000_0800, P, "97000000e7800000", "97000080e7800080"),
    ("call past its lower limit", 19, P, -0x8000_0802, P, "97000000e7800000", None),
    ("jal at its upper limit", 17, P + 0xF_FFFE, 0, P, "6f000000", "6ff0ff7f"),
    ("jal past its upper limit", 17, P + 0x10_0000, 0, P, "6f000000", None),
    ("jal at its lower limit", 17, P, -0x10_0000, P, "6f000000", "6f000080"),
    ("jal past its lower limit", 17, P, -0x10_0002, P, "6f000000", None),
    ("jal to no instruction", 17, P + 1, 0, P, "6f000000", None),
    ("branch at its upper limit", 16, P + 4094, 0, P, "6350b500", "e35fb57e"),
    ("branch past its upper limit", 16, P + 4096, 0, P, "6350b500", None),
    ("branch at its lower limit", 16, P, -4096, P, "6350b500", "6350b580"),
    ("branch past its lower limit", 16, P, -4098, P, "6350b500", None),
    ("padding for alignment", 43, P, 2, P, "0100", None),
    ("32-bit displacement", 57, P - 2, 0, P, "00" * 4, "feffffff"),
    ("32-bit displacement of a PLT", 59, P + 0x40, 0, P, "00" * 4, "40000000"),
    ("64-bit word", 2, P, 1, P, "00" * 8, "01402301ffffffff"),
    ("8-bit assignment", 54, 0x34, 0, P, "ff", "34"),
    ("16-bit assignment", 55, 0x3456, 0, P, "ffff", "5634"),
    ("32-bit assignment", 56, 0x1234_5678, 0, P, "ffffffff", "78563412"),
    ("6-bit assignment", 53, 0x3F, 0, P, "80", "bf"),
]

# Several records at one place or one after the other: place, before, after, records.
D = 0x1008  # .L1 in JITLink's object, 8 bytes behind .L0
Q = 0x1234_5670  # a symbol that is aligned as the psABI asks for
RV64_GROUPS = [
    (
        "auipc and lw",
        0x1FF0_0004,
        "17050000 03250500",
        "170510e0 0325e5ff",
        ((0, 23, 0x2, 0), (4, 24, 0x1FF0_0004, 0)),
    ),
    ("64-bit difference", P, "00" * 8, "0800000000000000", ((0, 36, D, 0), (0, 40, D - 8, 0))),
    ("32-bit difference", P, "00" * 4, "08000000", ((0, 35, D, 0), (0, 39, D - 8, 0))),
    ("16-bit difference", P, "00" * 2, "0800", ((0, 34, D, 0), (0, 38, D - 8, 0))),
    ("8-bit difference", P, "00", "08", ((0, 33, D, 0), (0, 37, D - 8, 0))),
    ("6-bit difference", P, "40", "48", ((0, 53, D, 0), (0, 52, D - 8, 0))),
    (
        "lui for four loads",
        P,
        "37050000 83250500 03260500 83260500 03250500",
        "37553412 83250567 03264567 83268567 0325c567",
        ((0, 26, Q, 0), (4, 27, Q, 0), (8, 27, Q, 4), (12, 27, Q, 8), (16, 27, Q, 12)),
    ),
    (
        "auipc with a load and a store further on",
        P,
        "97020000 37130000 83a30200 b3836300 23a07200",
        "97520000 37130000 83a38267 b3836300 23ac7266",
        ((0, 23, P + 0x5678, 0), (8, 24, P, 0), (16, 25, P, 0)),
    ),
    # lld: two labels 4 bytes apart; each number keeps the bytes that it had.
    *(
        (f"ULEB128 of {before}", P, before, after, ((0, 60, 0x2000 + s, a), (0, 61, 0x2004 - s, 0)))
        for before, after, s, a in (
            ("7b", "7f", 0, 131),
            ("8001", "fc00", 4, 120),
            ("8101", "8501", 0, 137),
            ("808001", "fcff00", 4, 16376),
            ("818001", "858001", 0, 16393),
            ("80808001", "fcffff00", 4, 2097144),
            ("81808001", "85808001", 0, 2097161),
        )
    ),
    ("ULEB128 with a second addend", P, "00", "03", ((0, 60, 0x2004, 3), (0, 61, 0x2000, 4))),
    ("ULEB128 too large", P, "7f", None, ((0, 60, 0x2004, 124), (0, 61, 0x2000, 0))),
    # Linux: as much as fits one byte, in a word of zeros.
    ("ULEB128 of 127", P, "00" * 8, "7f00000000000000", ((0, 60, 0x207F, 0), (0, 61, 0x2000, 0))),
]

CASES = [
    *(Case(w, AARCH64, p, b, x, ((0, n, s, a),)) for w, n, s, a, p, b, x in A64),
    *(Case(w, X86_64, p, b, x, ((o, n, s, a),)) for w, n, s, a, p, b, o, x in AMD64),
    *(Case(w, X86_64, L, b, x, ((o, n, L, a),), SIZE) for w, n, a, b, o, x in SIZES),
    *(Case(w, RISCV, p, b, x, ((0, n, s, a),)) for w, n, s, a, p, b, x in RV64),
    *(Case(w, RISCV, p, b, x, records) for w, p, b, x, records in RV64_GROUPS),
]


def rows_of(case: Case) -> Mapping[int, archs.Reloc]:
    """Return the table that a case is about, or skip it while a row is missing there."""
    rows = next(a for a in archs.ALL if a.machine == case.machine).link.relocations
    for _, number, _, _ in case.records:
        if number not in rows:
            pytest.skip(f"row {number} not there yet")
    return rows


def linked(case: Case) -> bytes:
    """Return the bytes after linking an object that holds the case and nothing else."""
    before = bytes.fromhex(case.before)
    symbols, values = {}, {}
    for _, _, value, _ in case.records:
        name, offset = f"at_{value:x}", value - case.place
        inside = 0 <= offset < len(before)
        if case.size:
            symbols[name] = Sym(name, ABS, value, case.size)
        elif inside:
            symbols[name] = Sym(name, ".data", offset)
        else:
            symbols[name] = Sym(name, UNDEF)
            values[name] = value
    relas = [Rela(at, number, f"at_{s:x}", a) for at, number, s, a in case.records]
    section = Sec(".data", before, A | W, relas=relas)
    image = write(case.machine, [section], list(symbols.values()))
    return link(image, {1: case.place}, values)[1]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.machine}-{c.what.replace(' ', '-')}")
def test_published_outcomes_are_ours(case: Case) -> None:
    """What others say that a relocation does, or that it must be refused, holds here."""
    rows = rows_of(case)
    if case.after is not None:
        assert linked(case).hex(" ") == bytes.fromhex(case.after).hex(" ")
        return
    with pytest.raises(RelocationError) as caught:
        linked(case)
    assert {failure.reloc for failure in caught.value.failures} <= {
        rows[number].name for _, number, _, _ in case.records
    }
