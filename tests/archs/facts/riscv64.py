# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts about riscv64.

Rules: RISC-V ELF psABI, 8.4, and RISC-V unprivileged specification, 2.3, 16.2; reach: 2.5, 16.4.

Long because the facts of an architecture stand in one file, level by level.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from archs.boot_riscv64 import EXTENSIONS
from tests.archs.facts import TYPE, Disassembled, Facts, Link, Load, Patch, Reaches, Run, Through
from tests.support.formats import (
    MASK64,
    S32,
    Rule,
    absolute,
    bit,
    either,
    instruction,
    plain,
    relative,
)
from tests.support.operands import Case, displaced, pair

_PAIR = (-0x80000800, 0x7FFFF7FF)


# RISC-V formats, immediates bit by bit as the specification's tables give them.
def _u(x: int) -> int:
    return (x + 0x800 >> 12 & 0xFFFFF) << 12


def _i(x: int) -> int:
    return (x & 0xFFF) << 20


def _s(x: int) -> int:
    return (x >> 5 & 0x7F) << 25 | (x & 0x1F) << 7


def _b(x: int) -> int:
    return bit(x, 12) << 31 | (x >> 5 & 0x3F) << 25 | (x >> 1 & 0xF) << 8 | bit(x, 11) << 7


def _j(x: int) -> int:
    return bit(x, 20) << 31 | (x >> 1 & 0x3FF) << 21 | bit(x, 11) << 20 | (x >> 12 & 0xFF) << 12


def _cb(x: int) -> int:
    return (
        bit(x, 8) << 12
        | (x >> 3 & 3) << 10
        | (x >> 6 & 3) << 5
        | (x >> 1 & 3) << 3
        | bit(x, 5) << 2
    )


def _cj(x: int) -> int:
    order = (11, 4, 9, 8, 10, 6, 7, 3, 2, 1, 5)  # bits 12 down to 2 of the parcel
    return sum(bit(x, n) << 12 - k for k, n in enumerate(order))


def _call(old: bytes, x: int) -> bytes:
    auipc = instruction(4, 0xFFF, _u)(old[:4], x)
    return auipc + instruction(4, 0xFFFFF, _i)(old[4:], x)


def _word(size: int, fields: Callable[[int], int]) -> Callable[[bytes, int], bytes]:
    covered = fields(MASK64) if fields is not _u else 0xFFFFF000
    return instruction(size, (1 << 8 * size) - 1 & ~covered, fields)


def _store6(old: bytes, x: int) -> bytes:
    return bytes((old[0] & 0xC0 | x & 0x3F,))


def _uleb128(old: bytes, x: int) -> bytes:
    """Return X, modulo 2^64, in the groups of seven bits that `old` has, however few X needs."""
    x &= (1 << 64) - 1
    count = 1 + next(n for n, byte in enumerate(old) if byte < 0x80)
    groups = [x >> 7 * n & 0x7F for n in range(count)]
    return bytes(g | 0x80 for g in groups[:-1]) + bytes(groups[-1:]) + old[count:]


def _csr(name: str, value: str = "-1") -> str:
    return f"li t0, {value}; csrw {name}, t0"


def _registers() -> Iterator[tuple[int, bytes, bytes]]:
    ret = 0x8067
    for csr in range(1 << 12):
        read, write = csr << 20 | 0x2573, csr << 20 | 0x51073  # csrr a0; csrw from a0
        yield csr, struct.pack("<2I", read, ret), struct.pack("<3I", write, read, ret)


_OFFSET = "la t0, __per_cpu_offset; ld t0, 0(t0);"

_LINK = Link(
    disassembled=Disassembled(
        options=("-triple=riscv64", "-mattr=+m,+a,+f,+d,+c"),
        mark="b70f0000",
        shift=12,
        pattern=r"lui\tt6, (\d+)",
        branches=".option norvc\njal .+0x40\nbeq a0, a1, .-8\n1: auipc a0, 0xfffff\njalr -4(a0)",
        leads=(0x40, -4, 8 - 0x1000 - 4),
    ),
    triple=("riscv64-linux-gnu", "riscv64"),
    call=19,
    abs64=2,
    prel32=57,
    call_code=(bytes.fromhex("97000000e7800000"), 0, 0),
    ret=bytes.fromhex("8280"),
    spin=bytes.fromhex("01a0"),
    keep=(bytes.fromhex("411106e4"), bytes.fromhex("a2604101")),
    return_0=bytes.fromhex("01458280"),
    vermagic="6.12.0-samples SMP mod_unload riscv",
    init_at=312,
    exit_at=1152,
    this_module_size=1216,
    directives="        .option norelax\n",
    base=0xFFFF_FFFF_01E6_B000,
    kernel=0xFFFF_FFFF_8012_3450,
    window=(0xFFFF_FFC7_1234_5000, 0x7E00_0000),
    rules={
        1: Rule(absolute, 4, plain(4), -0x80000000, 0xFFFFFFFF),
        2: Rule(absolute, 8, plain(8)),
        16: Rule(relative, 4, _word(4, _b), -4096, 4094, 2),
        17: Rule(relative, 4, _word(4, _j), -0x100000, 0xFFFFE, 2),
        18: Rule(relative, 8, _call, *_PAIR),
        19: Rule(relative, 8, _call, *_PAIR),
        23: Rule(relative, 4, _word(4, _u), *_PAIR),
        24: Rule(absolute, 4, _word(4, _i)),  # X is the paired HI20's: see `apply`
        25: Rule(absolute, 4, _word(4, _s)),
        26: Rule(absolute, 4, _word(4, _u), *_PAIR),
        27: Rule(absolute, 4, _word(4, _i)),
        28: Rule(absolute, 4, _word(4, _s)),
        20: Rule(relative, 4, _word(4, _u), *_PAIR),
        # ADD, SUB and SET accumulate: see `apply`.
        33: Rule(absolute, 1, plain(1), *either(8)),
        34: Rule(absolute, 2, plain(2), *either(16)),
        35: Rule(absolute, 4, plain(4), *either(32)),
        36: Rule(absolute, 8, plain(8)),
        37: Rule(absolute, 1, plain(1), *either(8)),
        38: Rule(absolute, 2, plain(2), *either(16)),
        39: Rule(absolute, 4, plain(4), *either(32)),
        40: Rule(absolute, 8, plain(8)),
        41: Rule(relative, 4, plain(4), *S32),
        52: Rule(absolute, 1, _store6, 0, 63),
        53: Rule(absolute, 1, _store6, 0, 63),
        54: Rule(absolute, 1, plain(1), *either(8)),
        55: Rule(absolute, 2, plain(2), *either(16)),
        56: Rule(absolute, 4, plain(4), *either(32)),
        59: Rule(relative, 4, plain(4), *S32),
        60: Rule(absolute, 1, _uleb128),  # at least one byte
        61: Rule(absolute, 1, _uleb128),
        44: Rule(relative, 2, _word(2, _cb), -256, 254, 2),
        45: Rule(relative, 2, _word(2, _cj), -2048, 2046, 2),
        57: Rule(relative, 4, plain(4), *S32),
    },
    nothing={0, 51},
    sized=set[int](),  # Z stands for S
    got=dict.fromkeys((20, 41), lambda s, a, _got, g: g(s) + a),
    source="""
        .option norelax
        .text
function:
        call    far
        .reloc  ., R_RISCV_CALL, far + 2
        auipc   ra, 0
        jalr    ra
        jal     near
        .reloc  ., R_RISCV_BRANCH, near
        .word   0x00b50063
        .reloc  ., R_RISCV_BRANCH, near + 4
        .word   0x00b56063
        .reloc  ., R_RISCV_RVC_JUMP, near
        .half   0xa001
        .reloc  ., R_RISCV_RVC_BRANCH, near
        .half   0xc101
1:      auipc   a0, %pcrel_hi(far + 0x7fe)
        addi    a1, a0, %pcrel_lo(1b)
        ld      a2, %pcrel_lo(1b)(a0)
        sd      a2, %pcrel_lo(1b)(a0)
2:      auipc   a0, %pcrel_hi(local)
        sw      a2, %pcrel_lo(2b)(a0)
        lui     a3, %hi(small)
        addi    a3, a3, %lo(small)
        sd      a3, %lo(small)(a3)
        .section .text.unlikely, "ax"
        call    function
        .data
        .balign 8
local:  .dword  function, far + 8, local - 8
        .word   small
        .reloc  ., R_RISCV_32_PCREL, far
        .word   0
        .reloc  ., R_RISCV_ADD64, far
        .reloc  ., R_RISCV_SUB64, function
        .dword  0
        .reloc  ., R_RISCV_ADD32, far + 5
        .reloc  ., R_RISCV_SUB32, function
        .word   0
        .reloc  ., R_RISCV_SUB16, function
        .reloc  ., R_RISCV_ADD16, near + 0x7654
        .half   0
        .reloc  ., R_RISCV_SET32, far + 5
        .reloc  ., R_RISCV_SUB32, function
        .word   -1
        .reloc  ., R_RISCV_SET16, near + 0x89a
        .reloc  ., R_RISCV_SUB16, function
        .half   -1
        .reloc  ., R_RISCV_SET8, near + 5
        .reloc  ., R_RISCV_SUB8, function
        .byte   -1
        .reloc  ., R_RISCV_SET6, function + 37
        .reloc  ., R_RISCV_SUB6, function
        .byte   0xc3
        .reloc  ., R_RISCV_ADD8, near
        .reloc  ., R_RISCV_SUB8, function
        .byte   0
        .reloc  ., R_RISCV_RELAX
        .reloc  ., R_RISCV_NONE
        .byte   0
""",
    got_source="""
        .option norelax
        .text
function:
1:      auipc   a0, %got_pcrel_hi(far)
        ld      a0, %pcrel_lo(1b)(a0)
2:      auipc   a1, %got_pcrel_hi(near)
        ld      a1, %pcrel_lo(2b)(a1)
        ld      a2, %pcrel_lo(1b)(a0)
""",
    beyond_gas=(
        (41, "00000000", "near"),
        (59, "00000000", "far"),
        (60, "808000", "near"),
        (61, "808000", "function"),
    ),
    late_in_lld={41, 59, 60, 61},
    newer_than_readelf={
        **dict.fromkeys((12, 41, *range(59, 66))),
        46: "R_RISCV_RVC_LUI",
        47: "R_RISCV_GPREL_I",
        48: "R_RISCV_GPREL_S",
        49: "R_RISCV_TPREL_I",
        50: "R_RISCV_TPREL_S",
    },
    got_rows=(20,),
    absolute_rows=(26,),
    narrow_row=None,
    code_model_option="-mcmodel=medany",
    tls_rows=(29, 22),
    abs64_name="R_RISCV_64",
    names={
        2: "R_RISCV_64",
        16: "R_RISCV_BRANCH",
        17: "R_RISCV_JAL",
        19: "R_RISCV_CALL_PLT",
        23: "R_RISCV_PCREL_HI20",
        24: "R_RISCV_PCREL_LO12_I",
        25: "R_RISCV_PCREL_LO12_S",
        35: "R_RISCV_ADD32",
        39: "R_RISCV_SUB32",
        44: "R_RISCV_RVC_BRANCH",
        45: "R_RISCV_RVC_JUMP",
    },
    shown={
        ("hello", ".init.text"): {
            "R_RISCV_PCREL_HI20",
            "R_RISCV_PCREL_LO12_I",
            "R_RISCV_CALL_PLT",
        },
        ("hello", "__param"): {"R_RISCV_64"},
        ("mathlib", "__ksymtab"): {"R_RISCV_64"},
        ("mathlib", "__ksymtab_gpl"): {"R_RISCV_64"},
        ("mathuser", ".text"): {"R_RISCV_CALL_PLT", "R_RISCV_PCREL_HI20"},
        ("tables", ".rodata"): {"R_RISCV_ADD32", "R_RISCV_SUB32"},
        ("sorting", ".data"): {"R_RISCV_64"},
        ("logbook", ".text"): {"R_RISCV_CALL_PLT"},
        ("branches", ".data"): {"R_RISCV_64"},
        ("branches", ".text.unlikely"): {"R_RISCV_CALL_PLT", "R_RISCV_JAL"},
        ("branches", ".init.text"): {"R_RISCV_CALL_PLT"},
        ("branches", ".text"): {
            "R_RISCV_BRANCH",
            "R_RISCV_JAL",
            "R_RISCV_CALL_PLT",
            "R_RISCV_PCREL_HI20",
            "R_RISCV_PCREL_LO12_I",
            "R_RISCV_PCREL_LO12_S",
            "R_RISCV_RVC_BRANCH",
            "R_RISCV_RVC_JUMP",
        },
    },
    prefix="R_RISCV_",
    distance=(36, 40),  # R_RISCV_ADD64 and SUB64
    export_word=8,
    clean_target=False,
    placeholders=(),
    plt_beyond=False,
    pyelftools=None,
    paired={24, 25},
    high={20, 23},
    added={33, 34, 35, 36},
    subtracted={37, 38, 39, 40, 52, 61},
    set_to={53, 54, 55, 56, 60},
    uleb128={60, 61},
    branch_options=".option norelax; .option rvc; ",
    branches={
        # The greatest displacement of the pair is odd, and jalr clears the lowest bit.
        "auipc + jalr": Reaches(19, 0, -2147485696, 2147481598, "call far"),
        "jal": Reaches(17, 0, -1048576, 1048574, "jal far"),
        "beq, bne, blt, ...": Reaches(16, 0, -4096, 4094, "beq zero, zero, ."),
        "c.j": Reaches(45, 0, -2048, 2046, "c.j ."),
        "c.beqz, c.bnez": Reaches(44, 0, -256, 254, "c.li a0, 0; c.beqz a0, ."),
        "auipc + addi": Reaches(
            23,
            0,
            -2147485696,
            2147481599,
            "1: auipc a0, %pcrel_hi(far); addi a0, a0, %pcrel_lo(1b)",
        ),
    },
    got_loads=[
        Through("1705000003350500", [(0, 20, 0), (4, 24, 0)], pair),  # auipc a0 ; ld a0, (a0)
    ],
    decoded=[
        Case((17,), "ef000000", displaced),  # jal
        Case((16,), "6300b500", displaced),  # beq a0, a1
        Case((16,), "63e0b500", displaced),  # bltu a1, a1
        Case((45,), "01a0", displaced),  # c.j
        Case((44,), "01c1", displaced),  # c.beqz a0
        Case((44,), "01e1", displaced),  # c.bnez a0
        Case((18,), "97000000e7800000", pair),  # call
        Case((19,), "97000000e7800000", pair),
        Case((23, 24), "1705000013050500", pair),  # auipc a0 ; addi a0, a0
        Case((23, 24), "1705000003350500", pair),  # auipc a0 ; ld a0, (a0)
        Case((23, 25), "170500002330b500", pair),  # auipc a0 ; sd a1, (a0)
        Case((20, 24), "1705000003350500", pair),  # auipc a0 ; ld a0, (a0)
        Case((26, 27), "3705000013050500", pair),  # lui a0 ; addi a0, a0
        Case((26, 28), "370500002330b500", pair),  # lui a0 ; sd a1, (a0)
    ],
)

_LOAD = Load(
    image_base=0xFFFF_FFFF_8000_0000,
    features=frozenset(EXTENSIONS.usual),
    debian=(3103, 58.19, 21.28, 17.31),
    runs={4: (16, 0)},  # Svnapot defines one encoding, of 64 KiB
    image_marks={48: b"RISCV\0\0\0", 56: b"RSC\x05"},
)

_RUN = Run(
    snippets={
        # li a0,1; ret
        "one": "05458280",
        # li a0,2; ret
        "two": "09458280",
        # ld a0,0(a0); ret
        "load": "08618280",
        # sd a1,0(a0); ret
        "store": "0ce18280",
        # mv a5,a0; mv a0,a1; mv a1,a2; jr a5
        "jump": "aa872e85b2858287",
        # addi sp,sp,-16; sd s0,0(sp); sd ra,8(sp); mv a5,a0; mv s0,a1; mv a0,a1; jalr a5; add a0,a0,s0; ld s0,0(sp); ld ra,8(sp); addi sp,sp,16; ret
        "apply": "411122e006e4aa872e842e85829722950264a26041018280",
        # mv s0,a0; 1: jalr s0; j 1b
        "loop": "2a840294fdbf",
        # 1: j 1b
        "spin": "01a0",
        # 1: ld a1,0(a0); addi a1,a1,1; sd a1,0(a0); j 1b
        "count": "0c6185050ce1edbf",
        # 1: addi sp,sp,-16; sd ra,8(sp); jal ra,1b
        "recurse": "411106e4eff0dfff",
        # c.unimp
        "invalid": "0000",
        # mv t0,ra; .option norvc; nop; .option rvc; li a0,1; mv ra,t0; ret; 1: ld a1,0(a0); addi a1,a1,1; sd a1,0(a0); li a0,2; ret
        "site": "8682130000000545968082800c6185050ce109458280",
        # jal ra,1f
        "call": "ef00a000",
        # .option norvc; jal x0,1f
        "hop": "6f00a000",
        # .option norvc; lui a0,0x11111; addi a0,a0,0x111; ret
        "pair": "371511111305151167800000",
        # .option norvc; lui a0,0x22222; addi a0,a0,0x222
        "other": "3725222213052522",
        # return a + 2 * b + 3 * c + ... + 10 * j
        "weigh": (
            "2263294e8e083303c303254e8a069a9802633303c3039a981943b3876702be989d473308"
            "f80295473307f7028d47c298b698aa98139515003306f602ba98b29846958280"
        ),
        # return ((f)a)(b, b + 1, ..., b + 9)
        "forward": (
            "0111938795003ee4938785003ee02a83938875002e851388650093875500138745009386"
            "350013862500850506ec0293e26005618280"
        ),
        # .option norvc; li a0,1; ret
        "straddle": "1305100067800000",
    },
    clocks={
        "time": "732510c067800000",  # rdtime a0; ret
        "cycle": "732500c067800000",
        "instret": "732520c067800000",
    },
    random={},
    # rdtime a1; 1: rdtime a2; sub a2,a2,a1; bltu a2,a0,1b; mv a0,a2; ret
    wait="f32510c0732610c03306b640e36ca6fe1305060067800000",
    poisons={
        **{f"sstatus.{bit}": f"csrsi sstatus, {1 << bit}" for bit in (1, 4)},
        "sstatus.fs": "li t0, 0x6000; csrc sstatus, t0",
        "sstatus.sum": "li t0, 0x40000; csrs sstatus, t0",
        "sstatus.mxr": "li t0, 0x80000; csrs sstatus, t0",
        "sstatus.spp": "li t0, 0x100; csrs sstatus, t0",
        "sstatus.none": "csrw sstatus, zero",
        "sstatus.all": _csr("sstatus"),
        "stvec": _csr("stvec", "0x1001"),
        "sscratch": _csr("sscratch"),
        "sepc": _csr("sepc"),
        "scause": _csr("scause"),
        "stval": _csr("stval"),
        "satp": _csr("satp", "0"),
        "satp.sv39": _csr("satp", "0x8000000000000001"),
        "sie": _csr("sie"),
        "sip": "csrsi sstatus, 2; " + _csr("sie") + "; csrsi sip, 2; nop; nop",
        "scounteren": _csr("scounteren"),
        "gp": "li gp, -1",
        "tp": "li tp, 16",
        "frm": "csrwi frm, 3",
        "frm.reserved": "csrwi frm, 7",
        "fflags": "csrwi fflags, 31",
        "fcsr": "li t0, 0xff; csrw fcsr, t0",
        "inexact": "fmv.d.x fa0, zero; fdiv.d fa0, fa0, fa0",
        "fregs": "li t0, -1; fmv.d.x fs0, t0; fmv.d.x ft11, t0",
        "sret": "csrw sstatus, zero; la t0, 1f; csrw sepc, t0; sret; 1:",
        "sret.s": "li t0, 0x100; csrs sstatus, t0; la t0, 1f; csrw sepc, t0; sret; 1:",
        "mret": "la t0, 1f; csrw mepc, t0; mret; 1:",
        "mret.only": "mret",
        "uret": ".insn r 0x73, 0, 0, zero, zero, x2",
        "mstatus": _csr("mstatus"),
        "mstatus.mprv": "li t0, 0x20000; csrs mstatus, t0",
        "misa": _csr("misa", "0"),
        "medeleg": _csr("medeleg"),
        "mideleg": _csr("mideleg"),
        "mie": _csr("mie"),
        "mip": _csr("mip"),
        "mtvec": _csr("mtvec"),
        "mscratch": _csr("mscratch"),
        "mcounteren": _csr("mcounteren"),
        "pmp": _csr("pmpaddr0") + "; " + _csr("pmpcfg0", "0x98"),
        "hstatus": _csr("0x600"),
        "vsstatus": _csr("0x200"),
        "wfi": "wfi",
        "sfence": "sfence.vma",
        "fence.i": "fence.i",
        "ecall": "ecall",
        "ebreak": "ebreak",
        "reservation": "lr.d t0, (sp)",
        "time": "rdtime t0; rdcycle t1; rdinstret t2",
        "stack": "li sp, 0x1234",
        "registers": "; ".join(f"li s{n}, -1" for n in range(12)),
    },
    poison_stop="unimp",
    poison_return=("li a0, {0}; ret"),
    poison_prefix=(".option norvc; .option arch, +zicsr; start: "),
    status=(
        (
            "addi sp, sp, -16; sd ra, 0(sp); csrwi fflags, 1; jalr a0; csrr a0, fflags; "
            "ld ra, 0(sp); addi sp, sp, 16; ret"
        ),
        "csrwi fflags, 4; ret",
    ),
    seen={
        "satp: a mode and a table": (
            "7325001867800000",
            lambda v: v >> 60 in (8, 9, 10) and v << 20,
        ),
        "sstatus.SIE": ("7325001067800000", lambda v: v & 2),
        "sie": ("7325401067800000", lambda v: v == 0x222),
        "stvec": ("7325501067800000", lambda v: v >> 63),
        "wfi": ("730050101305500067800000", lambda v: v == 5),  # wfi; li a0,5; ret
        "sfence.vma": ("730000121305500067800000", lambda v: v == 5),
        "satp as it was": ("732500187310051867800000", lambda v: v >> 60),  # csrr, csrw, ret
    },
    refused={
        "csrr mhartid": "732540f1",
        "csrr mstatus": "73250030",
        "csrr mepc": "73251034",
        "csrw satp": "73100018",
        "mret": "73002030",
        "sret": "73002010",
        "uret": "73002000",
    },
    traps={"ecall": "73000000", "ebreak": "73001000"},
    views=(),
    lethal={},
    peek=("03350500 0145 8280 1d45 8280", 8),
    # auipc a0, 0; ld a0, 32(a0); ld a1, 0(a0); add a1, a1, a1; addi a1, a1, n; sd a1, 0(a0);
    # li a0, 0; ret
    count=(
        lambda n: (
            b"".join(
                w.to_bytes(4, "little")
                for w in (
                    0x00000517,
                    0x02053503,
                    0x00053583,
                    0x00B585B3,
                    0x00058593 | n << 20,
                    0x00B53023,
                    0x00000513,
                    0x00008067,
                )
            )
            + bytes(8)
        ),
        32,
    ),
    watch="0c61fdbf",  # 1: ld a1,0(a0); j 1b
    ask="f3250018f5bf",  # 1: csrr a1,satp; j 1b
    through="8286",  # jr a3
    percpu={
        "register": (_OFFSET + "la a0, one; add a0, a0, t0; ld a0, 0(a0)", "one"),
        "field": (_OFFSET + "la s1, one; add s1, s1, t0; lw a0, 0x88(s1)", "one+0x88"),
        "write": (_OFFSET + "la t6, two; add t6, t6, t0; sd a0, 8(t6)", "two+0x8"),
        "far_field": (
            _OFFSET + "la a0, one; li a1, 0x2000; add a0, a0, t0; add a0, a0, a1; ld a0, 0(a0)",
            "one+0x2000",
        ),
        "atomic": (_OFFSET + "la a2, two; add a2, a2, t0; amoadd.w a0, a1, (a2)", "two"),
    },
    type_checks={
        name: (
            f"mv {name}, a0; .option push; .option norvc; lw t1, -4({name});"
            f" lui t2, {(TYPE + 0x800 >> 12) & 0xFFFFF}; addiw t2, t2, {(TYPE & 0xFFF ^ 0x800) - 0x800};"
            " beq t1, t2, 1f; ebreak; 1: .option pop; li a0, 1"
        )
        for name in ("a5", "t3")
    },
    read_guard="la a0, __stack_chk_guard; ld a0, 0(a0)",
    trap="ebreak",
    one=("li a0, 1"),
    va_list_flags="-mcmodel=medany -march=rv64imac -mabi=lp64",
    va_list_code=(
        {"relay": 0, "wrap": 0x64, "nested": 0xE0},
        (
            "39713ef43c102e8e3ee406ec2a8342f846fcb68781453e85fd376347a00291c9a2659b87060063d3"
            "060081478e07ae973ee48547a26603350e006319f600b6850293e260216182808545f1b789478335"
            "8e006315f60036860293e5b703360e010293c5b75d713efc3c182e8e3ee406f42a83c2e0c6e4b687"
            "81453e85fd37634ca00291c9a2659b87060063d3060081478e07ae973ee43c003eec3ae885470335"
            "0e00631cf60010089306d004b2850293a270616182808545c9b7894783358e006318f60014081307"
            "d00436860293cdb703360e0118089307d004ba860293c9bf1d71bee43c1836fcbae03ee432e83c00"
            "14081947154606f4c2e8c6ec3eec97000000e780e000a270256182801d7136fcbae0bee432f8c2e8"
            "c6ec1c183ee42a839c6d2e85906908618c653ee814083c001307d00406f43eec0293a27025618280"
        ),
    ),
    rounds=4,
    ticket_locks=True,
    hertz={"time": 10_000_000},
    registers=_registers,
    trap_mnemonic="c.ebreak",
    nop="13000000",  # of four bytes
    harmless="0100",
    percpu_by_register=False,
    va_list={},
    va_list_first=[],
    checks=[],
)

_PATCH = Patch(
    site=2,
    imitated=[
        "97020080",  # auipc t0, 0x80000
        "17f5ff7f",  # auipc a0, 0x7ffff
        "ef000010",  # jal .+0x100
        "6ff01fff",  # j .-0x10
        "e7800200",  # jalr t0
        "678002ff",  # jr -16(t0)
        "e7821200",  # jalr t0, 1(t0)
        *(f"63{0x80 | kind << 4:02x}b500" for kind in (0, 1, 4, 5, 6, 7)),  # b.. a1, a1
        *(f"63{0x80 | kind << 4:02x}c500" for kind in (0, 1, 4, 5, 6, 7)),  # b.. a1, a2
        *(f"e3{0x0E | kind << 4:02x}b6fe" for kind in (0, 1, 4, 5, 6, 7)),  # b.. a3, a1 back
        "21a8",  # c.j
        "0dc2",  # c.beqz a2
        "75fe",  # c.bnez a2
        "8282",  # c.jr t0
        "0293",  # c.jalr t1
    ],
    writable="ra t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7".split(),
    flags=None,
    allowed=None,
    others=None,
    tail=("130515001703000067000300", 4, 19, 0),  # addi a0, a0, 1 ; tail
    jump_reach={4: 20},
    exclusive="2f3605103306b600af36c51813050600",
    load="03350500",
    mcount="__patchable_function_entries",
    alternatives=(
        "__alt_start",
        "__alt_end",
        {
            (0, 0): [
                *(("at", "i4"), ("new", "i4"), ("vendor", "u2"), ("size", "u2")),
                *(("cap", "u2"), ("value", "u2")),
            ]
        },
    ),
    runtime_constants=(24, 4),
    mcount_site=(2 * bytes.fromhex("13000000") + bytes(8), None),
    refused_probes=[
        ("73001000", "system instruction"),  # ebreak
        ("0f00f00f", "fence"),
        ("2fa60510", "exclusive access"),  # lr.w a2, (a1)
        ("0290", "breakpoint"),  # c.ebreak
        ("0000", "undefined"),
    ],
)

FACTS = Facts(link=_LINK, load=_LOAD, run=_RUN, patch=_PATCH)
