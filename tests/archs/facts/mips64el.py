# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts about mips64el.

Rules: MIPS psABI supplement, chapter 4, 64-bit ELF Object File Specification, 2.9, and what GNU
binutils added (R_MIPS_PC32). Reach and encodings: MIPS64 Architecture for Programmers, volume
II. Code: n64 calling convention, assembled by GNU as 2.40 and compiled by gcc 12.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from tests.archs.facts import Disassembled, Facts, Link, Load, Reaches, Run
from tests.support.formats import S32, Rule, absolute, either, instruction, plain, relative
from tests.support.operands import Case, Decoded, last

# What LUI and a signed half, sign-extended, form: [-2^31 - 2^15, 2^31 - 2^15).
_HALVES = (-0x8000_8000, 0x7FFF_7FFF)


def _field(bits: int, scale: int = 0) -> Callable[[bytes, int], bytes]:
    """Return the writer of the low bits of an instruction, which count in 2^scale bytes."""
    mask = (1 << bits) - 1
    return instruction(4, 0xFFFF_FFFF & ~mask, lambda x: x >> scale & mask)


def _half(carry: int, shift: int) -> Callable[[bytes, int], bytes]:
    """Return the writer of ((X + carry) >> shift) & 0xffff."""
    return instruction(4, 0xFFFF_0000, lambda x: x + carry >> shift & 0xFFFF)


def _in_region(sa: int, p: int) -> int:
    """Return the offset in the 256 MiB of the delay slot."""
    return sa - (p + 4 & ~0xFFF_FFFF)


def _upper(insns: Decoded) -> int:
    """Return what LUI puts into its register, as bits 16 to 31."""
    return int(insns[0].operands[1].imm) << 16 & 0xFFFF_0000


def _rounded(shift: int, carry: int) -> Callable[[int], int]:
    """Return a half of a target as LUI takes it, once the signed halves below have theirs."""
    return lambda target: (target + carry >> shift & 0xFFFF) << 16


def _displacement(insns: Decoded) -> int:
    """Return the last operand of an instruction, an immediate of 16 bits or a displacement."""
    operand = insns[0].operands[-1]
    return int(operand.mem.disp if operand.type == 3 else operand.imm)


def _signed(target: int) -> int:
    """Return the lowest 16 bits of a target, signed."""
    return ((target & 0xFFFF ^ 0x8000) - 0x8000) % (1 << 64)


_LUI, _DADDIU, _LD = "0000023c", "00004264", "000042dc"

_LINK = Link(
    disassembled=Disassembled(
        options=("-triple=mips64el-linux-gnuabi64", "-mcpu=mips64r2"),
        mark="00000034",
        shift=0,
        pattern=r"ori\t\$zero, \$zero, (\d+)",
        branches=".set noreorder\nbeq $4, $5, .+16\nbal .-8\nj 0x100040",
        leads=(16, -4, 0x40),
    ),
    triple=("mips64el-linux-gnuabi64", "mips64"),
    prefix="R_MIPS_",
    call=5,
    more_of_call=((4, 6),),
    abs64=18,
    prel32=None,
    word32=2,
    abs64_name="R_MIPS_64",
    distance=(),
    export_word=8,
    clean_target=False,
    # lui t9, 0; daddiu t9, t9, 0; jalr t9; nop
    call_code=(bytes.fromhex("0000193c0000396709f8200300000000"), 0, 0),
    ret=bytes.fromhex("0800e00300000000"),  # jr ra; nop
    spin=bytes.fromhex("ffff001000000000"),  # b .; nop
    return_0=bytes.fromhex("0800e00325100000"),  # jr ra; move v0, zero
    # daddiu sp, sp, -16; sd ra, 8(sp) ... ld ra, 8(sp); daddiu sp, sp, 16
    keep=(bytes.fromhex("f0ffbd670800bfff"), bytes.fromhex("0800bfdf1000bd67")),
    placeholders=(),
    vermagic="6.12.0-samples SMP mod_unload MIPS64_R2 64BIT ",
    this_module_size=832,  # of Linux 6.1, the last that Debian built
    init_at=312,
    exit_at=808,
    directives="""
        .macro  ret
        jr      $31
        .endm
        .set    noat
""",
    base=0xFFFF_FFFF_C010_0000,
    kernel=0xFFFF_FFFF_8012_3450,
    window=(0xFFFF_FFFF_D000_0000, 0x0FFF_0000),
    plt_beyond=False,
    rules={
        1: Rule(absolute, 4, _field(16), -0x8000, 0x7FFF),
        2: Rule(absolute, 4, plain(4), *either(32)),
        4: Rule(_in_region, 4, _field(26, 2), 0, 0xFFF_FFFC, 4),
        5: Rule(absolute, 4, _half(0x8000, 16), *_HALVES),
        6: Rule(absolute, 4, _half(0, 0)),
        10: Rule(relative, 4, _field(16, 2), -0x2_0000, 0x1_FFFC, 4),
        18: Rule(absolute, 8, plain(8)),
        28: Rule(absolute, 4, _half(0x8000_8000, 32)),
        29: Rule(absolute, 4, _half(0x8000_8000_8000, 48)),
        60: Rule(relative, 4, _field(21, 2), -0x40_0000, 0x3F_FFFC, 4),
        61: Rule(relative, 4, _field(26, 2), -0x800_0000, 0x7FF_FFFC, 4),
        62: Rule(lambda sa, p: sa - (p & ~7), 4, _field(18, 3), -0x10_0000, 0xF_FFF8, 8),
        63: Rule(relative, 4, _field(19, 2), -0x10_0000, 0xF_FFFC, 4),
        64: Rule(relative, 4, _half(0x8000, 16), *_HALVES),
        65: Rule(relative, 4, _half(0, 0)),
        248: Rule(relative, 4, plain(4), *S32),
        250: Rule(relative, 4, _field(16, 2), -0x2_0000, 0x1_FFFC, 4),
    },
    nothing={0, 37, 253, 254},
    sized=set[int](),
    upper={64},
    got={},
    source="""
        .set    noreorder
        .set    noat
        .text
function:
        lui     $25, %hi(far)
        daddiu  $25, $25, %lo(far)
        .reloc  ., R_MIPS_JALR, far
        jalr    $25
        nop
        jal     near
        nop
        j       near + 8
        nop
        beq     $4, $5, near
        nop
        bnez    $4, near + 4
        nop
        lui     $4, %hi(far + 0x7ffc)
        ld      $4, %lo(far + 0x7ffc)($4)
        lui     $4, %hi(far + 0x8000)
        sd      $5, %lo(far + 0x8000)($4)
        lui     $4, %hi(local)
        daddiu  $4, $4, %lo(local)
        lui     $4, %hi(small)
        daddiu  $4, $4, %lo(small)
        lui     $4, %highest(far)
        daddiu  $4, $4, %higher(far)
        dsll    $4, $4, 16
        daddiu  $4, $4, %hi(far)
        dsll    $4, $4, 16
        daddiu  $4, $4, %lo(far)
        .section .text.unlikely, "ax"
        jal     function
        nop
        .data
        .balign 8
local:  .dword  function, far + 8, local - 8
        .word   small
        .reloc  ., R_MIPS_PC32, near
        .word   0
        .reloc  ., R_MIPS_NONE
        .word   0
""",
    got_source="",
    rewritten=(".MIPS.options", ".MIPS.abiflags"),
    # Release 6, and forms that the assembler makes of something else.
    beyond_gas=(
        (1, "00000424", "tiny"),  # addiu a0, zero
        (60, "000040d8", "near"),  # beqzc v0
        (61, "000000c8", "near"),  # bc
        (62, "000058ec", "near"),  # ldpc v0
        (63, "000048ec", "near"),  # lwpc v0
        (64, "00005eec", "near"),  # auipc v0
        (65, "00004264", "near"),  # daddiu v0, v0
        (250, "00000010", "near"),  # b
        (253, "00000000", "near"),
        (254, "00000000", "near"),
    ),
    pyelftools="ENUM_RELOC_TYPE_MIPS",
    beyond_pyelftools={
        *range(60, 66),
        *range(100, 114),
        *range(133, 143),
        *range(145, 158),
        *range(162, 167),
        *(169, 170, 172, 173, 248, 249, 250, 253, 254),
    },
    # What only the assembler uses.
    newer_than_readelf={12 + n: f"R_MIPS_UNUSED{n}" for n in (1, 2, 3)},
    branches={
        "beq, bne, bgtz, ...": Reaches(10, 4, -131072, 131068, ".set noreorder; b far; nop"),
        # An offset in the region.
        "j, jal": Reaches(4, 0, 0, 0xFFF_FFFC, ".set noreorder; j far; nop"),
    },
    decoded=[
        Case((4,), "0000000c", last),  # jal
        Case((4,), "00000008", last),  # j
        Case((10,), "0000a410", last, addend=-4),  # beq a1, a0
        Case((10,), "00008014", last, addend=-4),  # bnez a0
        Case((250,), "0000a410", last, addend=-4),
        Case((5,), _LUI, _upper, wanted=_rounded(16, 0x8000)),
        Case((28,), _LUI, _upper, wanted=_rounded(32, 0x8000_8000)),
        Case((29,), _LUI, _upper, wanted=_rounded(48, 0x8000_8000_8000)),
        *(
            Case((number,), code, _displacement, wanted=_signed)
            for number, code in ((1, _DADDIU), (6, _DADDIU), (6, _LD))
        ),
    ],
    beyond_capstone=range(60, 66),  # of Release 6
    got_loads=[],
    got_rows=(),
    tls_rows=(42, 49),
    absolute_rows=(),
    code_model_option="-msym32",
    narrow_row=None,
    names={},
    shown={
        ("hello", ".init.text"): {"R_MIPS_HI16", "R_MIPS_LO16"},
        ("hello", "__param"): {"R_MIPS_64"},
        ("mathlib", "__ksymtab"): {"R_MIPS_64"},
        ("mathlib", "__ksymtab_gpl"): {"R_MIPS_64"},
        ("mathuser", ".text"): {"R_MIPS_HI16", "R_MIPS_LO16"},
        ("tables", ".rodata"): {"R_MIPS_32"},
        ("sorting", ".data"): {"R_MIPS_64"},
        ("logbook", ".text"): {"R_MIPS_HI16", "R_MIPS_LO16"},
        ("branches", ".data"): {"R_MIPS_64"},
        ("branches", ".text.unlikely"): {"R_MIPS_26"},
        ("branches", ".init.text"): {"R_MIPS_26"},
        ("branches", ".text"): {
            "R_MIPS_26",
            "R_MIPS_PC16",
            "R_MIPS_HI16",
            "R_MIPS_LO16",
        },
    },
)

_LOAD = Load(
    image_base=0xFFFF_FFFF_8010_0000,
    image_step=64 << 10,
    image_marks=None,
    types_of="6.1.0-47-5kc-malta",
    lacks={
        "acpi_driver",
        "acpi_gbl_FADT",
        "acpi_table_fadt",
        "ahash_alg.clone_tfm",
        "ahash_alg.reqsize",
        "bus_type.irq_get_affinity",
        "cpuinfo_x86",
        "efi",
        "fixed_percpu_data",
        "hid_device_id",
        "hid_driver",
        "kernel_mapping",
        "kmem_cache_args",
        "lskcipher_alg",
        "mnt_idmap",
        "module.mem",
        "module_memory",
        "nop_mnt_idmap",
        "pcpu_hot",
        "shash_alg.clone_tfm",
        "skcipher_alg.export",
        "skcipher_alg.import",
        "skcipher_alg_common",
        "usb_device_id",
        "usb_driver",
        "virtio_driver",
        "zstd_compression_parameters",
    },
    features=frozenset(),
    debian=(3043, 66.575, 18.836, 13.742),
)


def _registers() -> Iterator[tuple[int, bytes, bytes]]:
    # dmfc0 v0, register, select; dmtc0 a0, ...
    for number in range(32 * 8):
        place = (number >> 3) << 11 | number & 7
        read, write = 0x4022_0000 | place, 0x40A4_0000 | place
        yield (
            number,
            struct.pack("<3I", read, 0x03E0_0008, 0),
            struct.pack("<4I", write, read, 0x03E0_0008, 0),
        )


def _cp0(name: str, value: str = "-1") -> str:
    return f"li $8, {value}; dmtc0 $8, {name}; ehb"


# The CPU's number stands in thread_info, which gp leads to (asm/smp.h, asm/percpu.h).
_OFFSET = (
    "lw $8, 24($28); dsll $8, $8, 3; lui $9, %hi(__per_cpu_offset); daddu $8, $8, $9;"
    " ld $8, %lo(__per_cpu_offset)($8);"
)


def _address(register: int, name: str) -> str:
    return f"lui ${register}, %hi({name}); daddiu ${register}, ${register}, %lo({name});"


_RUN = Run(
    snippets={
        # jr ra; li v0,1
        "one": "0800e00301000224",
        # jr ra; li v0,2
        "two": "0800e00302000224",
        # ld v0,0(a0); jr ra; nop
        "load": "000082dc0800e00300000000",
        # sd a1,0(a0); jr ra; nop
        "store": "000085fc0800e00300000000",
        # move t9,a0; move a0,a1; jr t9; move a1,a2
        "jump": "25c880002520a000080020032528c000",
        # daddiu sp,sp,-16; sd s0,0(sp); sd ra,8(sp); move t9,a0; move s0,a1; jalr t9; move a0,a1;
        # daddu v0,v0,s0; ld s0,0(sp); ld ra,8(sp); jr ra; daddiu sp,sp,16
        "apply": (
            "f0ffbd670000b0ff0800bfff25c880002580a00009f820032520a0002d1050000000b0df0800bfdf"
            "0800e0031000bd67"
        ),
        # move s0,a0; 1: jalr s0; nop; b 1b; nop
        "loop": "2580800009f8000200000000fdff001000000000",
        # 1: b 1b; nop
        "spin": "ffff001000000000",
        # 1: ld a1,0(a0); daddiu a1,a1,1; b 1b; sd a1,0(a0)
        "count": "000085dc0100a564fdff0010000085fc",
        # 1: daddiu sp,sp,-16; bal 1b; sd ra,8(sp)
        "recurse": "f0ffbd67feff11040800bfff",
        # opcode 59 is reserved
        "invalid": "000000ec",
        # return a + 2 * b + 3 * c + ... + 10 * j
        "weigh": (
            "0800acdf0a0002241c0082010000a3dff8580b00b8380700121000002d586201f81003002d104300"
            "2d586201060002241c002201121000002d586201f8100a002f104a002d5862012d586701b8100800"
            "2d1048002d5864012d586201781006002d1046002d586201781005000800e0032d106201"
        ),
        # return ((f)a)(b, b + 1, ..., b + 9)
        "forward": (
            "e0ffbd670900a364251080000800a3ff2520a0000800a3640700ab640600aa640500a9640400a864"
            "0300a7640200a6640100a5641800bfff09f840000000a3ff1800bfdf0800e0032000bd67"
        ),
    },
    rounds=4,
    nested=8,
    clocks={
        "rdhwr": "0800e0033b10027c",  # jr ra; rdhwr v0,$2
        "mfc0": "004802400800e00300000000",  # mfc0 v0,$9; jr ra; nop
    },
    hertz={"rdhwr": 100_000_000, "mfc0": 100_000_000},
    random={},
    # rdhwr a1,$2; 1: rdhwr a2,$2; dsubu a2,a2,a1; sltu a3,a2,a0; bnez a3,1b; nop; jr ra; move v0,a2
    wait="3b10057c3b10067c2f30c5002b38c400fcffe014000000000800e0032510c000",
    poisons={
        "status.none": _cp0("$12", "0"),
        "status.all": _cp0("$12"),
        "status.kx": "mfc0 $8, $12; li $9, 0x80; nor $9, $9, $0; and $8, $8, $9; mtc0 $8, $12; ehb",
        "status.ie": ".set mips64r2; di; ei; di",
        "status.user": "mfc0 $8, $12; ori $8, $8, 0x10; mtc0 $8, $12; ehb",
        "status.bev": "mfc0 $8, $12; lui $9, 0x40; or $8, $8, $9; mtc0 $8, $12; ehb",
        "cause": _cp0("$13"),
        "epc": _cp0("$14"),
        "errorepc": _cp0("$30"),
        "entryhi": _cp0("$10"),
        "entrylo": _cp0("$2") + "; " + _cp0("$3"),
        "pagemask": _cp0("$5"),
        "wired": _cp0("$6"),
        "index": _cp0("$0"),
        "context": _cp0("$4"),
        "hwrena": _cp0("$7"),
        "compare": _cp0("$11"),
        "count": "mtc0 $0, $9",
        "config": _cp0("$16"),
        "ebase": ".word 0x40a87801",
        "lladdr": _cp0("$17"),
        "userlocal": ".word 0x40a82002",
        "gp": "li $28, -1",
        "sp": "li $29, 0x1234",
        "zero": "addiu $0, $0, 5",
        "hilo": "li $8, -1; mthi $8; mtlo $8",
        "registers": "; ".join(f"li ${n}, -1" for n in (*range(2, 28), 30)),
        "linked": "ll $8, 0($29)",
        "wait": "wait",
        "eret": "eret",
        "syscall": "syscall",
        "break": "break",
        "tlbwi": "tlbwi",
        "tlbwr": "tlbwr",
        "tlbp": "tlbp",
        "cache": "cache 0, 0($29)",
        "sync": "sync",
        "fpu": ".set hardfloat; dmtc1 $0, $f0",
        "unaligned": "ld $8, 1($29)",
        "overflow": "lui $8, 0x7fff; add $8, $8, $8",
    },
    poison_prefix=".set mips64r2; .set noat; start: ",
    poison_return="li $2, {0}; jr $31",
    poison_stop=".word 0xec000000",
    status=None,
    registers=_registers,
    seen={
        "status.KX": ("006002400800e00300000000", lambda v: v & 0x80),  # mfc0 v0,$12
        "status.ERL, EXL, KSU": ("006002400800e00300000000", lambda v: v & 0x1E == 0),
        "CPU number": ("0800e0033b00027c", lambda v: v == 0),  # rdhwr v0,$0
        "CCRes": ("0800e0033b18027c", lambda v: v == 2),  # rdhwr v0,$3
        "prid: a 5Kc or later": ("007802400800e00300000000", lambda v: v & 0xFF_0000 == 0x01_0000),
        "sync": ("0f0000000800e00305000224", lambda v: v == 5),  # sync; jr ra; li v0,5
        "wait": ("200000420800e00305000224", lambda v: v == 5),
    },
    refused={
        "eret": "18000042",
        "tlbwi": "02000042",
        "tlbr": "01000042",
        "rdhwr of nothing": "3bf8027c",  # rdhwr v0,$31
    },
    traps={"syscall": "0c000000", "break": "0d000000", "teq zero, zero": "34000000"},
    trap_mnemonic="syscall",
    views=(),
    lethal={},
    nop="00000000",
    harmless="00000000",
    peek=("000085dc0800e003251000000800e00307000224", 12),
    # move t0, ra; bal 1f; nop; 1: ld a0, 36(ra); ld a1, 0(a0); daddu a1, a1, a1;
    # daddiu a1, a1, n; sd a1, 0(a0); move ra, t0; jr ra; move v0, zero; and at 48 a pointer
    count=(
        lambda n: (
            struct.pack(
                "<11I",
                *(0x03E0_4025, 0x0411_0001, 0, 0xDFE4_0024, 0xDC85_0000, 0x00A5_282D),
                *(0x64A5_0000 | n, 0xFC85_0000, 0x0100_F825, 0x03E0_0008, 0x0000_1025),
            )
            + bytes(4)
            + bytes(8)
        ),
        48,
    ),
    watch="000085dcfeff001000000000",  # 1: ld a1,0(a0); b 1b; nop
    ask="3b10057cfeff001000000000",  # 1: rdhwr a1,$2; b 1b; nop
    through="25c8e0000800200300000000",  # move t9,a3; jr t9; nop
    percpu={
        "register": (_OFFSET + _address(10, "one") + "daddu $10, $10, $8; ld $2, 0($10)", "one"),
        "field": (
            _OFFSET + _address(16, "one") + "daddu $16, $16, $8; lw $2, 0x88($16)",
            "one+0x88",
        ),
        "write": (_OFFSET + _address(25, "two") + "daddu $25, $25, $8; sd $4, 8($25)", "two+0x8"),
        "linked": (_OFFSET + _address(10, "two") + "daddu $10, $10, $8; ll $2, 0($10)", "two"),
        "slot": (
            _OFFSET
            + _address(10, "one")
            + "daddu $10, $10, $8; .set noreorder; b 1f; ld $2, 16($10); 1: nop; .set reorder",
            "one+0x10",
        ),
    },
    percpu_by_register=True,
    type_checks={},
    checks=[("teq $0, $0, 7", "division by zero or overflow")],
    trap="break 12",
    one="li $2, 1",
    read_guard="lui $2, %hi(__stack_chk_guard); ld $2, %lo(__stack_chk_guard)($2)",
    aligned=True,
    va_list_flags=(
        "-mabi=64 -march=mips64r2 -mno-abicalls -fno-pic -msym32 -mlong-calls -G 0 -msoft-float"
    ),
    va_list_code=None,
    va_list={},
    va_list_first=[],
)

FACTS = Facts(link=_LINK, load=_LOAD, run=_RUN)
