# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts about arm64.

Rules: ELF for the Arm 64-bit Architecture, 5.7.5 to 5.7.9, and the A64 encodings. Reach: Arm ARM
C6.2, B, BL, B.cond, TBZ, ADR, ADRP. Long because all that tests must
know of an architecture stands in one file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from archs.boot_arm64 import CAPABILITIES
from tests.archs.facts import TYPE, Disassembled, Facts, Link, Load, Patch, Reaches, Run, Through
from tests.support.formats import (
    S32,
    U32,
    Rule,
    absolute,
    instruction,
    page,
    plain,
    relative,
    within,
)
from tests.support.operands import (
    PLACE,
    Case,
    adrp_load,
    distance_group,
    group,
    last,
    low,
    offset,
    page_of,
    shifted,
    signed_group,
    wide,
)

_MIB1 = (-0x100000, 0xFFFFC)
_GIB4_PAGES = (-0x1_0000_0000, 0xFFFF_F000)


# A64: immhi:immlo of ADR and ADRP; imm26; imm19; imm14; imm12; imm16.
def _adr(imm21: int) -> int:
    return (imm21 & 3) << 29 | (imm21 >> 2 & 0x7FFFF) << 5


_ADR_KEEP = 0b1_00_11111_0000000000000000000_11111


def _a64(keep: int, fields: Callable[[int], int]) -> Callable[[bytes, int], bytes]:
    return instruction(4, keep, fields)


def _low12(log2: int) -> Callable[[bytes, int], bytes]:
    return _a64(0xFFC0_03FF, lambda x: (x & 0xFFF) >> log2 << 10)


def _imm16(group: int) -> Callable[[bytes, int], bytes]:
    return _a64(0xFFE0_001F, lambda x: (x >> 16 * group & 0xFFFF) << 5)


def _movnz(group: int) -> Callable[[bytes, int], bytes]:
    """Return the writer of MOVZ for X >= 0, of MOVN and the complement for X < 0."""

    def fields(x: int) -> int:
        opc, value = (0b00, ~x) if x >> 63 else (0b10, x)
        return opc << 29 | (value >> 16 * group & 0xFFFF) << 5

    return _a64(0x9FE0_001F, fields)


def _imm12(low: int) -> Callable[[bytes, int], bytes]:
    return _a64(0xFFC0_03FF, lambda x: (x >> low & 0xFFF) << 10)


_IMM19 = _a64(0xFF00_001F, lambda x: (x >> 2 & 0x7FFFF) << 5)

MOVZ = tuple(f"0300{0x80 + 0x20 * n:02x}d2" for n in range(4))
MOVN = tuple(f"0300{0x80 + 0x20 * n:02x}92" for n in range(4))
MOVK = tuple(f"0300{0x80 + 0x20 * n:02x}f2" for n in range(4))


def _sys(name: str, change: str) -> str:
    return f"mrs x9, {name}; {change}; msr {name}, x9; isb"


def _to(spsr: int) -> str:
    return f"ldr x9, ={spsr:#x}; msr spsr_el1, x9; adr x9, 1f; msr elr_el1, x9; eret; 1:"


def _msr(name: str, value: str = "#-1") -> str:
    return f"mov x9, {value}; msr {name}, x9; isb"


_SPREAD = 8  # of the registers that debuggers use, which are all refused, every so many


def _registers() -> Iterator[tuple[int, bytes, bytes]]:
    ret = 0xD65F_03C0
    for register in range(1 << 15):
        if register >> 14 or register % _SPREAD == 0:
            read, write = 0xD530_0000 | register << 5, 0xD510_0000 | register << 5
            yield register, struct.pack("<2I", read, ret), struct.pack("<3I", write, read, ret)


_LINK = Link(
    disassembled=Disassembled(
        options=("-triple=aarch64",),
        mark="07008052",
        shift=5,
        pattern=r"mov\tw7, #(\d+)",
        branches="bl .+0x40\nb .-8\ncbz x1, .+12\ntbnz x3, 40, .+8\nb.ne .-4",
        leads=(0x40, -4, 20, 20, 12),
    ),
    triple=("aarch64-linux-gnu", "aarch64"),
    call=283,
    abs64=257,
    prel32=261,
    call_code=(bytes.fromhex("00000094"), 0, 0),
    ret=bytes.fromhex("c0035fd6"),
    spin=bytes.fromhex("00000014"),
    keep=(bytes.fromhex("fd7bbfa9"), bytes.fromhex("fd7bc1a8")),
    return_0=bytes.fromhex("00008052c0035fd6"),
    vermagic="6.12.0-samples SMP mod_unload aarch64",
    init_at=312,
    exit_at=1192,
    this_module_size=1280,
    directives="""
        .section .plt, "ax"
        .byte   0
        .section .init.plt, "a"
        .byte   0
        .section .text.ftrace_trampoline, "ax"
        .byte   0
        .text
""",
    base=0xFFFF_8000_7A4F_0000,
    kernel=0xFFFF_8000_8012_3450,
    window=(0xFFFF_9234_5000_0000, 0x7E00_0000),
    rules={
        257: Rule(absolute, 8, plain(8)),
        258: Rule(absolute, 4, plain(4), -0x80000000, 0xFFFFFFFF),
        259: Rule(absolute, 2, plain(2), -0x8000, 0xFFFF),
        260: Rule(relative, 8, plain(8)),
        261: Rule(relative, 4, plain(4), *S32),
        262: Rule(relative, 2, plain(2), -0x8000, 0x7FFF),
        263: Rule(absolute, 4, _imm16(0), 0, 0xFFFF),
        264: Rule(absolute, 4, _imm16(0)),
        265: Rule(absolute, 4, _imm16(1), *U32),
        266: Rule(absolute, 4, _imm16(1)),
        267: Rule(absolute, 4, _imm16(2), 0, 0xFFFF_FFFF_FFFF),
        268: Rule(absolute, 4, _imm16(2)),
        269: Rule(absolute, 4, _imm16(3)),
        270: Rule(absolute, 4, _movnz(0), *within(16)),
        271: Rule(absolute, 4, _movnz(1), *within(32)),
        272: Rule(absolute, 4, _movnz(2), *within(48)),
        273: Rule(relative, 4, _IMM19, *_MIB1, 4),
        274: Rule(relative, 4, _a64(_ADR_KEEP, _adr), -0x100000, 0xFFFFF),
        275: Rule(page, 4, _a64(_ADR_KEEP, lambda x: _adr(x >> 12)), *_GIB4_PAGES),
        276: Rule(page, 4, _a64(_ADR_KEEP, lambda x: _adr(x >> 12))),
        277: Rule(absolute, 4, _low12(0)),
        278: Rule(absolute, 4, _low12(0)),
        279: Rule(
            relative, 4, _a64(0xFFF8001F, lambda x: (x >> 2 & 0x3FFF) << 5), -0x8000, 0x7FFC, 4
        ),
        280: Rule(relative, 4, _IMM19, *_MIB1, 4),
        282: Rule(
            relative, 4, _a64(0xFC000000, lambda x: x >> 2 & 0x3FFFFFF), -0x8000000, 0x7FFFFFC, 4
        ),
        283: Rule(
            relative, 4, _a64(0xFC000000, lambda x: x >> 2 & 0x3FFFFFF), -0x8000000, 0x7FFFFFC, 4
        ),
        284: Rule(absolute, 4, _low12(1), align=2),
        285: Rule(absolute, 4, _low12(2), align=4),
        286: Rule(absolute, 4, _low12(3), align=8),
        287: Rule(relative, 4, _movnz(0), *within(16)),
        288: Rule(relative, 4, _imm16(0)),
        289: Rule(relative, 4, _movnz(1), *within(32)),
        290: Rule(relative, 4, _imm16(1)),
        291: Rule(relative, 4, _movnz(2), *within(48)),
        292: Rule(relative, 4, _imm16(2)),
        293: Rule(relative, 4, _movnz(3)),
        299: Rule(absolute, 4, _low12(4), align=16),
        300: Rule(absolute, 4, _movnz(0), *within(16)),
        301: Rule(absolute, 4, _imm16(0)),
        302: Rule(absolute, 4, _movnz(1), *within(32)),
        303: Rule(absolute, 4, _imm16(1)),
        304: Rule(absolute, 4, _movnz(2), *within(48)),
        305: Rule(absolute, 4, _imm16(2)),
        306: Rule(absolute, 4, _movnz(3)),
        307: Rule(absolute, 8, plain(8)),
        308: Rule(absolute, 4, plain(4), *S32),
        309: Rule(relative, 4, _IMM19, *_MIB1, 4),
        310: Rule(absolute, 4, _imm12(3), 0, 0x7FF8, 8),
        311: Rule(page, 4, _a64(_ADR_KEEP, lambda x: _adr(x >> 12)), *_GIB4_PAGES),
        312: Rule(absolute, 4, _low12(3), align=8),
        313: Rule(absolute, 4, _imm12(3), 0, 0x7FF8, 8),
        314: Rule(relative, 4, plain(4), *S32),
        315: Rule(relative, 4, plain(4), *S32),
    },
    nothing={0, 256},
    sized=set[int](),  # Z stands for S
    got={
        **dict.fromkeys((*range(300, 307), 310), lambda s, a, got, g: g(s + a) - got),
        **dict.fromkeys((307, 308), lambda s, a, got, _g: s + a - got),
        **dict.fromkeys((309, 311, 312), lambda s, a, _got, g: g(s + a)),
        313: lambda s, a, got, g: g(s + a) - (got >> 12 << 12),
        315: lambda s, a, _got, g: g(s) + a,
    },
    source="""
        .text
function:
        bl      far
        b       far + 4
        b.ne    near
        cbz     x3, near
        tbnz    x3, #40, near
        adr     x3, near + 1
        ldr     x4, near
        adrp    x5, far
        add     x5, x5, :lo12:far
        ldrb    w6, [x5, :lo12:far + 3]
        ldrh    w6, [x5, :lo12:far + 2]
        ldr     w6, [x5, :lo12:far + 4]
        str     x6, [x5, :lo12:far + 8]
        ldr     q6, [x5, :lo12:far]
        adrp    x7, :pg_hi21_nc:far
        movz    x8, #:abs_g3:far
        movk    x8, #:abs_g2_nc:far
        movk    x8, #:abs_g1_nc:far
        movk    x8, #:abs_g0_nc:far
        movz    x9, #:abs_g1:small
        movz    x9, #:abs_g0:tiny
        movz    x9, #:abs_g2:small
        movz    x9, #:abs_g0_s:tiny
        movz    x9, #:abs_g0_s:tiny - 0x43
        movn    x9, #:abs_g0_s:tiny
        movz    x9, #:abs_g1_s:small - 0x20000000
        movn    x9, #:abs_g1_s:small
        movz    x9, #:abs_g2_s:small
        movn    x9, #:abs_g2_s:small - 0x20000000
        movz    x9, #:prel_g0:near
        movz    x9, #:prel_g0:function - 0x1234
        movk    x9, #:prel_g0_nc:far
        movz    x9, #:prel_g1:far
        movk    x9, #:prel_g1_nc:far
        movz    x9, #:prel_g2:far - 0x60000000
        movk    x9, #:prel_g2_nc:far
        movz    x9, #:prel_g3:far
        .section .text.unlikely, "ax"
        bl      function
        b       function + 4
        .data
        .balign 8
local:  .xword  function, far + 8, local - 8
        .word   far - .
        .xword  far - .
        .word   small
        .hword  tiny
        .hword  near - .
""",
    got_source="""
        .text
function:
        adrp    x1, :got:far
        ldr     x1, [x1, :got_lo12:far]
        ldr     x2, :got:near
        ldr     x1, [x1, :gotpage_lo15:far]
        ldr     x2, [x1, #:gotoff_lo15:near]
        movz    x1, #:gotoff_g1:far
        movk    x1, #:gotoff_g0_nc:far
""",
    beyond_gas=(
        (300, "010080d2", "near"),  # movz x1, #0
        (303, "0100a0f2", "far"),  # movk x1, #0, lsl #16
        (304, "0100c0d2", "far"),
        (305, "0100c0f2", "far"),
        (306, "0100e0d2", "far"),
        (307, "0000000000000000", "far"),
        (308, "00000000", "near"),
        (314, "00000000", "far"),
        (315, "00000000", "near"),
    ),
    never_in_lld={*range(300, 309), 310},
    late_in_lld={309, 315},
    beyond_pyelftools={0, 299, *range(313, 316), *range(560, 574)},
    wrong_in_pyelftools={1028, 1029, 1031, 1032},
    newer_than_readelf={314: None, 315: None},
    got_rows=(311, 312),
    absolute_rows=(258, 265),
    narrow_row=258,
    code_model_option="-mcmodel=small",
    tls_rows=(549, 513),
    abs64_name="R_AARCH64_ABS64",
    shown={
        ("hello", ".init.text"): {
            "R_AARCH64_ADR_PREL_PG_HI21",
            "R_AARCH64_ADD_ABS_LO12_NC",
            "R_AARCH64_LDST32_ABS_LO12_NC",
            "R_AARCH64_CALL26",
        },
        ("hello", "__param"): {"R_AARCH64_ABS64"},
        ("mathlib", "__ksymtab"): {"R_AARCH64_PREL32"},
        ("mathlib", "__ksymtab_gpl"): {"R_AARCH64_PREL32"},
        ("mathuser", ".text"): {"R_AARCH64_CALL26", "R_AARCH64_LDST64_ABS_LO12_NC"},
        ("tables", ".rodata"): {"R_AARCH64_PREL32"},
        ("sorting", ".data"): {"R_AARCH64_ABS64"},
        ("logbook", ".text"): {"R_AARCH64_CALL26"},
        ("branches", ".data"): {"R_AARCH64_ABS64"},
        ("branches", ".text.unlikely"): {"R_AARCH64_CALL26", "R_AARCH64_JUMP26"},
        ("branches", ".init.text"): {"R_AARCH64_CALL26", "R_AARCH64_JUMP26"},
        ("branches", ".text"): {
            "R_AARCH64_CALL26",
            "R_AARCH64_JUMP26",
            "R_AARCH64_CONDBR19",
            "R_AARCH64_TSTBR14",
            "R_AARCH64_LD_PREL_LO19",
            "R_AARCH64_ADR_PREL_LO21",
            "R_AARCH64_ADR_PREL_PG_HI21",
            "R_AARCH64_ADD_ABS_LO12_NC",
            "R_AARCH64_LDST64_ABS_LO12_NC",
        },
    },
    prefix="R_AARCH64_",
    distance=(260,),
    export_word=4,
    clean_target=False,
    placeholders=(
        (".plt", True),
        (".init.plt", False),
        (".text.ftrace_trampoline", True),
        (".init.text.ftrace_trampoline", False),
    ),
    plt_beyond=True,
    pyelftools="ENUM_RELOC_TYPE_AARCH64",
    branches={
        "bl": Reaches(283, 0, -134217728, 134217724, "bl far"),
        "b": Reaches(282, 0, -134217728, 134217724, "b far"),
        "b.cond, cbz, cbnz": Reaches(280, 0, -1048576, 1048572, "mov x0, #0; cbz x0, far"),
        "tbz, tbnz": Reaches(279, 0, -32768, 32764, "mov x0, #0; tbz x0, #0, far"),
        "adr": Reaches(274, 0, -1048576, 1048575, "adr x0, far"),
        "adrp + add": Reaches(
            275, 0, -4294967296, 4294967295, "adrp x0, far; add x0, x0, :lo12:far"
        ),
    },
    got_loads=[
        # adrp x1 ; ldr x1, [x1, :got_lo12:]
        Through("01000090210040f9", [(0, 311, 0), (4, 312, 0)], adrp_load),
        Through("01000058", [(0, 309, 0)], last),  # ldr x1, literal
    ],
    decoded=[
        Case((283,), "00000094", last),  # bl
        Case((282,), "00000014", last),  # b
        Case((280,), "01000054", last),  # b.ne
        Case((280,), "030000b4", last),  # cbz x3
        Case((280,), "03000035", last),  # cbnz w3
        Case((279,), "03008036", last),  # tbz x3, #16
        Case((279,), "030080b7", last),  # tbnz x3, #48
        Case((274,), "03000010", last),  # adr
        Case((275,), "03000090", last, wanted=page_of),  # adrp
        Case((276,), "03000090", last, wanted=page_of),
        Case((273,), "03000058", last),  # ldr x3, literal
        Case((277,), "63000091", last, wanted=low(12)),  # add x3, x3
        Case((278,), "63004039", offset, wanted=low(12)),  # ldrb
        Case((284,), "63004079", offset, wanted=low(12)),  # ldrh
        Case((285,), "630040b9", offset, wanted=low(12)),  # ldr w
        Case((286,), "630040f9", offset, wanted=low(12)),  # ldr x
        Case((299,), "6300c03d", offset, wanted=low(12)),  # ldr q
        Case((263,), "030080f2", shifted, wanted=group(0)),  # movk x3
        Case((264,), "030080f2", shifted, wanted=group(0)),
        Case((265,), "0300a0f2", shifted, wanted=group(1)),
        Case((266,), "0300a0f2", shifted, wanted=group(1)),
        Case((267,), "0300c0f2", shifted, wanted=group(2)),
        Case((268,), "0300c0f2", shifted, wanted=group(2)),
        Case((269,), "0300e0f2", shifted, wanted=group(3)),
        *(Case((270 + n,), MOVZ[n], wide, wanted=signed_group(n)) for n in range(3)),
        *(Case((270 + n,), MOVN[n], wide, wanted=signed_group(n)) for n in range(3)),
        *(Case((287 + 2 * n,), MOVN[n], wide, wanted=signed_group(n, PLACE)) for n in range(4)),
        *(Case((288 + 2 * n,), MOVK[n], shifted, wanted=distance_group(n)) for n in range(3)),
        # Rows that use a GOT: S is what stands for it, such as the address of the slot.
        *(Case((300 + 2 * n,), MOVZ[n], wide, wanted=signed_group(n)) for n in range(4)),
        *(Case((301 + 2 * n,), MOVK[n], shifted, wanted=group(n)) for n in range(3)),
        Case((309,), "03000058", last),  # ldr x3, literal
        Case((310,), "630040f9", offset),  # ldr x3, [x3]
        Case((311,), "03000090", last, wanted=page_of),  # adrp
        Case((312,), "630040f9", offset, wanted=low(12)),
        Case((313,), "630040f9", offset),
    ],
)

_LOAD = Load(
    image_base=0xFFFF_8000_8000_0000,
    features=frozenset(CAPABILITIES.usual),
    debian=(4350, 78.14, 31.47, 22.01),
    # Arm ARM, D8.7.1, of the contiguous bit: adjacent entries, by granule and level.
    runs={4: (16, 16), 16: (128, 32), 64: (32, 32)},
    image_marks={56: b"ARM\x64"},
)

_RUN = Run(
    snippets={
        # mov x0,#1; ret
        "one": "200080d2c0035fd6",
        # mov x0,#2; ret
        "two": "400080d2c0035fd6",
        # ldr x0,[x0]; ret
        "load": "000040f9c0035fd6",
        # str x1,[x0]; ret
        "store": "010000f9c0035fd6",
        # mov x9,x0; mov x0,x1; mov x1,x2; br x9
        "jump": "e90300aae00301aae10302aa20011fd6",
        # stp x29,x30,[sp,#-32]!; str x19,[sp,#16]; mov x9,x0; mov x19,x1; mov x0,x1; blr x9; add x0,x0,x19; ldr x19,[sp,#16]; ldp x29,x30,[sp],#32; ret
        "apply": (
            "fd7bbea9f30b00f9e90300aaf30301aae00301aa20013fd60000138bf30b40f9fd7bc2a8c0035fd6"
        ),
        # mov x19,x0; 1: blr x19; b 1b
        "loop": "f30300aa60023fd6ffffff17",
        # b .
        "spin": "00000014",
        # 1: ldr x1,[x0]; add x1,x1,#1; str x1,[x0]; b 1b
        "count": "010040f921040091010000f9fdffff17",
        # 1: stp x29,x30,[sp,#-16]!; bl 1b
        "recurse": "fd7bbfa9ffffff97",
        # udf #0
        "invalid": "00000000",
        # mov x9,x30; nop; mov x0,#1; mov x30,x9; ret; 1: ldr x1,[x0]; add x1,x1,#1; str x1,[x0]; mov x0,#2; ret
        "site": (
            "e9031eaa1f2003d5200080d2fe0309aac0035fd6010040f921040091010000f9400080d2c0035fd6"
        ),
        # bl 1f
        "call": "04000094",
        # b 1f
        "hop": "04000014",
        # movz x0,#0x1111; movk x0,#0x1111,lsl #16; ret
        "pair": "202282d22022a2f2c0035fd6",
        # movz x0,#0x2222; movk x0,#0x2222,lsl #16
        "other": "404484d24044a4f2",
        # return a + 2 * b + 3 * c + ... + 10 * j
        "weigh": (
            "e82740a94a0180d28408048b4204028b8400008b4004018b297d0a9b080d088b270d078b"
            "c90080d2a520099be700058be50080d2c67c059bc308038be700038be700048be000008b"
            "c0035fd6"
        ),
        # return ((f)a)(b, b + 1, ..., b + 9)
        "forward": (
            "ff8300d1e80300aae00301aa21240091071c009106180091fd7b01a9fd43009105140091"
            "04100091e10700f901200091e10300f9030c0091020800910104009100013fd6fd7b41a9"
            "ff830091c0035fd6"
        ),
    },
    clocks={
        "cntvct_el0": "40e03bd5c0035fd6",  # mrs x0,cntvct_el0; ret
        "cntpct_el0": "20e03bd5c0035fd6",
        "pmccntr_el0": "009d3bd5c0035fd6",
    },
    random={
        "rndr": ("00243bd5c0035fd6", 64),  # mrs x0,s3_3_c2_c4_0; ret
        "rndrrs": ("20243bd5c0035fd6", 64),
    },
    # mrs x1,cntvct_el0; 1: mrs x2,cntvct_el0; sub x2,x2,x1; cmp x2,x0; b.lo 1b; mov x0,x2; ret
    wait="41e03bd542e03bd5420001cb5f0000eba3ffff54e00302aac0035fd6",
    poisons={
        "sctlr.ee": _sys("sctlr_el1", "orr x9, x9, #1<<25"),
        "sctlr.a": _sys("sctlr_el1", "orr x9, x9, #2"),
        "sctlr.sa": _sys("sctlr_el1", "orr x9, x9, #8"),
        "sctlr.wxn": _sys("sctlr_el1", "orr x9, x9, #1<<19"),
        "sctlr.mmu": _sys("sctlr_el1", "eor x9, x9, #1"),
        "sctlr.pauth": _sys("sctlr_el1", "orr x9, x9, #1<<31"),
        "sctlr.bt": _sys("sctlr_el1", "orr x9, x9, #3<<35"),
        "sctlr.tcf": _sys("sctlr_el1", "orr x9, x9, #1<<40; orr x9, x9, #1<<43"),
        "sctlr.none": _msr("sctlr_el1", "#0"),
        "sctlr.all": _msr("sctlr_el1"),
        "tcr.none": _msr("tcr_el1", "#0"),
        "tcr.all": _msr("tcr_el1"),
        "ttbr0": _msr("ttbr0_el1"),
        "ttbr1": _msr("ttbr1_el1"),
        "mair": _msr("mair_el1"),
        "vbar": _msr("vbar_el1", "#0x1000"),
        "cpacr": _msr("cpacr_el1", "#0"),
        "cpacr.sve": _msr("cpacr_el1", "#0x330000") + "; " + _msr("S3_0_C1_C2_0", "#0"),
        "contextidr": _msr("contextidr_el1"),
        "tpidr_el0": _msr("tpidr_el0"),
        "tpidr_el1": _msr("tpidr_el1"),
        "sp_el0": _msr("sp_el0", "#0x10"),
        "spsel": "msr spsel, #0",
        "daif": "msr daifset, #15",
        "daif.none": "msr daifclr, #15",
        "pan": ".arch armv8.2-a; msr pan, #1",
        "uao": ".arch armv8.2-a; msr uao, #1",
        "dit": ".arch armv8.4-a; msr dit, #1",
        "tco": "msr S0_3_C4_C1_4, xzr",
        "fpcr": _msr("fpcr", "#0x03c00000"),
        "fpcr.traps": _msr("fpcr", "#0x9f00"),
        "fpsr": _msr("fpsr"),
        "nzcv": _msr("nzcv"),
        "eret.el0": _to(0),
        "eret.el1t": _to(4),
        "eret.el2": _to(9),
        "eret.aarch32": _to(0x10),
        "eret.thumb": _to(0x30),
        "eret.aarch32.svc": _to(0x13),
        "eret.il": _to(0x100005),
        "eret.ss": _to(0x200005),
        "breakpoint": (
            "adr x9, start; msr dbgbvr0_el1, x9; mov x9, #0x1e5; msr dbgbcr0_el1, x9; msr oslar_el1, xzr; "
            "msr daifclr, #8; mov x9, #0xa000; msr mdscr_el1, x9; isb"
        ),
        "watchpoint": (
            "mov x9, sp; msr dbgwvr0_el1, x9; mov x9, #0x1ff5; msr dbgwcr0_el1, x9; msr oslar_el1, xzr; "
            "msr daifclr, #8; mov x9, #0xa000; msr mdscr_el1, x9; isb"
        ),
        "step": _msr("mdscr_el1", "#1") + "; msr daifclr, #8",
        "pmu": _msr("pmcr_el0", "#1") + "; " + _msr("pmcntenset_el0") + "; " + _msr("pmccntr_el0"),
        "timer": _msr("cntv_tval_el0", "#1") + "; " + _msr("cntv_ctl_el0", "#1"),
        "cntkctl": _msr("cntkctl_el1"),
        "elr": _msr("elr_el1") + "; " + _msr("spsr_el1"),
        "esr": _msr("esr_el1") + "; " + _msr("far_el1"),
        "monitor": "mov x9, sp; ldxr x10, [x9]",
        "pauth": ".arch armv8.3-a; " + _msr("apiakeylo_el1") + "; " + _msr("apiakeyhi_el1"),
        "csselr": _msr("csselr_el1", "#3"),
        "actlr": _msr("actlr_el1"),
        "amair": _msr("amair_el1"),
        "par": "at s1e1r, x0",
        "svc": "svc #0",
        "hvc": "hvc #0",
        "smc": "smc #0",
        "brk": "brk #0",
        "hlt": "hlt #0",
        "dcps": "dcps1",
        "wfi": "wfi",
        "wfe": "wfe",
        "vectors": "movi v0.16b, #255; movi v31.16b, #255",
        "stack": "mov x9, #0x1234; mov sp, x9",
        "registers": "; ".join(f"mov x{n}, #-1" for n in range(18, 30)),
    },
    poison_stop="udf #0",
    poison_return=("mov x0, #{0}; ret"),
    poison_prefix="start: ",
    status=(
        (
            "stp x29, x30, [sp, #-16]!; mov x9, #1; msr fpsr, x9; blr x0; mrs x0, fpsr; "
            "ldp x29, x30, [sp], #16; ret"
        ),
        "mov x9, #4; msr fpsr, x9; ret",
    ),
    seen={
        "CurrentEL": ("404238d5c0035fd6", lambda v: v == 4),
        "SPSel": ("004238d5c0035fd6", lambda v: v == 1),
        "SCTLR_EL1: M": ("001038d5c0035fd6", lambda v: v & 1 and not v >> 25 & 1),
        "TTBR1_EL1": ("202038d5c0035fd6", lambda v: v != 0),
        "CNTFRQ_EL0": ("00e03bd5c0035fd6", lambda v: v == 62_500_000),
    },
    refused={
        "eret": "e0039fd6",
        "mrs hcr_el2": "00113cd5",
        "mrs scr_el3": "00113ed5",
        "msr sctlr_el1": "001018d5",
        "msr ttbr1_el1": "202018d5",
        "mrs mdscr_el1": "400230d5",
        "hlt": "000040d4",
    },
    traps={"svc": "010000d4", "hvc": "020000d4", "smc": "030000d4", "brk": "000020d4"},
    views=(
        bytes.fromhex("9f4000d5 000040f9 c0035fd6"),  # msr pan, #0; ldr x0, [x0]; ret
        bytes.fromhex("9f4100d5 000040f9 c0035fd6"),  # msr pan, #1; ldr x0, [x0]; ret
    ),
    lethal={
        # arithmetic of three vectors of half precision, where the encoding is none
        "three of half precision": (
            "691edc4e",  # .inst 0x4edc1e69
            "0e2f4a4e",
            "222cc64e",
            "db0ed96e",
            "721ccd4e",
            "883ed06e",
        ),
        # of two, vectors and scalars
        "two of half precision": ("649a780e", "7a29f82e", "5979f85e"),
    },
    peek=("000040f9 00008052 c0035fd6 e0008052 c0035fd6", 12),
    # ldr x0, pool; ldr x1, [x0]; add x1, x1, x1; add x1, x1, #n; str x1, [x0]; mov w0, #0; ret
    count=(
        lambda n: (
            b"".join(
                w.to_bytes(4, "little")
                for w in (
                    0x580000E0,
                    0xF9400001,
                    0x8B010021,
                    0x91000021 | n << 10,
                    0xF9000001,
                    0x52800000,
                    0xD65F03C0,
                )
            )
            + bytes(8)
        ),
        28,
    ),
    watch="010040f9ffffff17",  # 1: ldr x1,[x0]; b 1b
    ask="41e03bd5ffffff17",  # 1: mrs x1,cntvct_el0; b 1b
    through="e80300aae00301aae10302aa60001fd6",  # mov x8, x0; mov x0, x1; mov x1, x2; br x3
    percpu={
        "register": (
            "adrp x0, one; add x0, x0, :lo12:one; mrs x1, tpidr_el1; ldr x0, [x0, x1]",
            "one",
        ),
        "field": (
            "adrp x0, one; add x0, x0, :lo12:one; mrs x1, tpidr_el1; add x0, x0, x1; ldr w0, [x0, #0x88]",
            "one+0x88",
        ),
        "write": (
            "adrp x9, two; add x9, x9, :lo12:two; mrs x8, tpidr_el1; add x8, x8, x9; str x1, [x8, #8]",
            "two+0x8",
        ),
        "far_field": (
            "adrp x0, one; add x0, x0, :lo12:one; mrs x1, tpidr_el1; add x0, x0, x1; ldr w0, [x0, #0x2000]",
            "one+0x2000",
        ),
        "pair": (
            "adrp x17, two; add x17, x17, :lo12:two; mrs x16, tpidr_el1; add x17, x17, x16; ldp x0, x1, [x17, #16]",
            "two+0x10",
        ),
        "exclusive": (
            "adrp x2, two; add x2, x2, :lo12:two; mrs x3, tpidr_el1; add x2, x2, x3; ldxr w0, [x2]",
            "two",
        ),
        "of_a_cpu": (
            "adrp x0, __per_cpu_offset; ldr x0, [x0, :lo12:__per_cpu_offset]; adrp x1, one; add x1, x1, :lo12:one; ldr x0, [x1, x0]",
            "one",
        ),
    },
    type_checks={
        f"x{n}": (
            f"mov x{n}, x0; ldur w9, [x{n}, #-4]; movz w17, #{TYPE & 0xFFFF};"
            f" movk w17, #{TYPE >> 16}, lsl #16; cmp w9, w17; b.eq 1f; brk #{0x8000 | 17 << 5 | n};"
            " 1: mov x0, #1"
        )
        for n in (16, 3)
    },
    read_guard="adrp x0, __stack_chk_guard; ldr x0, [x0, :lo12:__stack_chk_guard]",
    trap="brk #0x800",
    one=("mov x0, #1"),
    va_list_flags="-mgeneral-regs-only -mbranch-protection=none",
    va_list_code=(
        {"relay": 0, "wrap": 0xF8, "nested": 0x1E8},
        (
            "fd7bb7a9e80300aae90301aae0430291fd030091e1430291e00303a9e0c30191e02300f9e0028012"
            "e04b00b9ff4f00b9e59b07a90500805206008052e74700f97f0000714c02005445000034e11b00f9"
            "46000034e04b00b9ea2f43a9ea2f05a95f040071e61f44a9e61f06a9200140f961020054ea2f01a9"
            "e1430091e61f02a900013fd6007c409314000014a000f837212000912500805263040051e9ffff17"
            "002000111f0000716d000054212000912500805226008052f8ffff17210540f95f080071e1000054"
            "ea2f01a9e2430091e61f02a900013fd6fd7bc9a8c0035fd6220940f9ea2f01a9e3430091e61f02a9"
            "00013fd6e4ffff17fd7bbaa9e80300aae90301aae0830191fd03009101008052e00302a9e0030191"
            "e01b00f9e0830191ff3f00b9e59b04a9e502801206008052e53b00b9e72f00f97f0000710c020054"
            "41000034e01300f946000034e53b00b9e0830091e40301a9200140f95f04007161020054e2430091"
            "a3098052e10302aa00013fd6007c409314000014a500f837002000912100805263040051ebffff17"
            "a5200011bf0000716d000054002000912100805226008052f8ffff17210540f95f080071e1000054"
            "e3430091a4098052e20303aa00013fd6fd7bc6a8c0035fd6220940f9e4430091e30304aaa5098052"
            "00013fd6e4ffff17fd7bb9a9fd030091e39304a9e3c30191c4008052e20b00f9e2830091e28f01a9"
            "a2008052e31700f9e3030191e31b00f9e3048012e33b00b9e3430091ff3f00b9e59b05a9e73700f9"
            "04000094007c4093fd7bc7a8c0035fd6fd7bb9a9e80300aae00301aafd030091e1c30191e10702a9"
            "e1030191e20f04a9e3430091e41705a9a4098052e61f06a9e11b00f9e1058012e13b00b9010c40f9"
            "e10b00f9e1830091e10f00f9020840f9ff3f00b9000440a900013fd6fd7bc7a8c0035fd6"
        ),
    ),
    rounds=4,
    hertz={"cntvct_el0": 62_500_000, "cntpct_el0": 62_500_000},
    registers=_registers,
    trap_mnemonic="brk",
    nop="1f2003d5",
    harmless="1f2003d5e00301aa",
    percpu_by_register=True,
    # AAPCS64: __gr_offs -16 leaves x6 and x7 below __gr_top.
    va_list={0: 0x2000, 8: 0x1000, 24: (1 << 32) - 16, 0xFF0: "x6", 0xFF8: "x7"},
    va_list_first=["x6", "x7"],
    checks=[
        ("brk #0x5514", "UBSAN: shift out of bounds"),
        ("brk #0x5500", "UBSAN: addition overflow"),
        ("brk #0x5512", "UBSAN: array index out of bounds"),
        ("brk #0x5503", "UBSAN: division by zero"),
        ("brk #0x913", "KASAN: write of 0x8 bytes"),
        ("brk #0x902", "KASAN: read of 0x4 bytes"),
    ],
)

_PATCH = Patch(
    site=4,
    imitated=[
        "40000014",  # b .+0x100
        "f0ffff97",  # bl .-0x40
        *(f"{0x40 + cc:02x}000054" for cc in range(16)),  # b.cc .+8
        "43000034",  # cbz w3, .+8
        "430000b4",  # cbz x3, .+8
        "a3ffffb5",  # cbnz x3, .-0xc
        "a3ffff35",  # cbnz w3, .-0xc
        "64002036",  # tbz w4, #4, .+0xc
        "640020b7",  # tbnz x4, #36, .+0xc
        "a0001fd6",  # br x5
        "c0003fd6",  # blr x6
        "c0035fd6",  # ret
        "87000010",  # adr x7, .+0x10
        "e8ffff70",  # adr x8, .-1
        "09000090",  # adrp x9, .
        "aaffffb0",  # adrp x10, ...
        "4b000018",  # ldr w11, .+8
        "4c000058",  # ldr x12, .+8
        "4d000098",  # ldrsw x13, .+8
        "5f000058",  # ldr xzr, .+8
    ],
    writable=[f"x{n}" for n in range(31)],
    flags=("nzcv", 0xF000_0000, 0),
    allowed=(
        "b bl nop isb svc hvc smc brk",
        "00000014 00000094 1f2003d5 df3f03d5 210000d4 420000d4 630000d4 800020d4",
    ),
    others=(
        "b.eq cbz br ret mov yield dsb udf hlt dmb",
        "00000054 000000b4 00001fd6 c0035fd6 e00301aa 3f2003d5 9f3f03d5 00000000 200040d4 bf3b03d5",
    ),
    tail=("0004009100000014", 4, 282, 0),  # add x0, x0, #1 ; b
    jump_reach={4: 27},
    exclusive="027c5fc84200018b027c03c8e00302aa",
    load="000040f9",
    mcount="__patchable_function_entries",
    alternatives=(
        "__alt_instructions",
        "__alt_instructions_end",
        {(0, 0): [("at", "i4"), ("new", "i4"), ("cap", "u2"), ("size", "u1"), ("length", "u1")]},
    ),
    runtime_constants=(16, 4),
    mcount_site=(2 * bytes.fromhex("1f2003d5") + bytes(8), None),
    refused_probes=[
        ("010000d4", "takes an exception"),  # svc #0
        ("1f0b5fd6", "authenticated branch"),  # retaa, roughly
        ("7f2003d5", "hint"),  # wfi
        ("01421bd5", "writes a system register"),  # msr nzcv, x1
        ("20423bd5", "interrupt mask"),  # mrs x0, daif
        ("4000001c", "literal load"),  # ldr s0, .+8
        ("207c5fc8", "exclusive access"),  # ldxr x0, [x1]
    ],
)

FACTS = Facts(link=_LINK, load=_LOAD, run=_RUN, patch=_PATCH)
