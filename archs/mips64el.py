# SPDX-License-Identifier: GPL-2.0-or-later
"""mips64el: no branch reaches the kernel, and no relocation counts from the place.

A jump replaces the low 28 bits of the address behind it, so it gets anywhere within its
region of 256 MiB and not one byte beyond. The kernel lies in a segment that needs no page
table, modules in the next one that does, a GiB above; so modules are built to form every
address as a constant (-mlong-calls): LUI takes the upper half, a signed low half follows
(HI16, LO16). Four halves form 64 bits (HIGHEST, HIGHER); two are enough as long as modules
lie where addresses are sign-extended 32-bit numbers (-msym32), so the window is the last GiB.

A record holds up to three types, which are applied one after the other, and packs them its own
way. There is no text_poke: finished text is not written. Branches and jumps execute the
instruction behind them before they go.

Sources: MIPS psABI supplement and 64-bit ELF Object File Specification, tables of relocation
types; arch/mips/kernel/module.c and relocate.c; arch/mips/include/asm/pgtable-64.h, fixmap.h and
mach-generic/spaces.h.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from allocator.types import (
    GIB,
    KIB,
    PAGE_SIZE,
    AddressMap,
    ExecmemRange,
    ExecmemType,
    Interval,
    Paging,
    TlbRules,
    align_up,
)
from archs import traps
from archs.arch import Arch
from archs.debug_mips64el import DEBUG
from archs.dialect import Dialect, Info
from archs.extable import POINTERS
from archs.layouts import Table
from archs.levels.link import Assembly, Branch, Fill, Link, Probe, Region, rows
from archs.levels.load import Load
from archs.levels.run import (
    Anchor,
    CallingConvention,
    DelaySlots,
    Emulation,
    Exceptions,
    Run,
    consecutive_slots,
)
from archs.op import Op, Term
from archs.operands_mips64el import OPERANDS
from archs.registers_mips64el import REGISTERS
from archs.reloc import Part, Reach, Reloc, Slice, data, signed
from archs.system_mips64el import SYSTEM, delays
from archs.versions import MODELLED, Version

LOAD_ADDRESS = 0xFFFF_FFFF_8010_0000  # of Malta's kernel, in CKSEG0
IMAGE_SIZE = 0x11D_1000  # [_text, _end) of Debian's 6.1.170 kernel, 17.8 MiB
DIRECT_MAP = 0x9800_0000_0000_0000  # XKPHYS, cached: what is not coherent with devices
MAPPED = 0xC000_0000_0000_0000  # XKSEG
MODULES = 0xFFFF_FFFF_C000_0000  # CKSSEG
FIXADDR_TOP = 0xFFFF_FFFF_FFFE_0000
FIXMAP = 17 + 2  # pages below that: the fixmap, and what is left free before it (MODULE_END)
RANDOM_SIZE = 0x100_0000  # CONFIG_RANDOMIZE_BASE_MAX_OFFSET
RANDOM_STEP = 0x1_0000
REGION = 1 << 28  # what a jump gets around in


def address_map(
    kaslr: int | None = None,
    image_size: int | None = None,
    *,
    start: int | None = None,
    text_size: int | None = None,
    page: int = PAGE_SIZE,
    config: Mapping[str, str] | None = None,
    version: Version = MODELLED,
) -> AddressMap:
    """Return the address map of one boot (asm/pgtable-64.h).

    With KASLR the kernel moves, by steps of 64 KiB, to where it was not loaded; nothing else does.
    """
    del text_size, config, version  # no range depends on them
    size = IMAGE_SIZE if image_size is None else align_up(image_size, page)
    start = LOAD_ADDRESS if start is None else start
    if kaslr is not None:
        chance = random.Random(kaslr)  # noqa: S311 - a boot that can be repeated, no secret
        offset = chance.randrange(RANDOM_SIZE // RANDOM_STEP) * RANDOM_STEP
        if offset < size:
            offset += align_up(size, RANDOM_STEP)
        start += offset
    modules = Interval(MODULES, FIXADDR_TOP - FIXMAP * page)
    return AddressMap(
        image=Interval(start, start + size),
        direct_map=DIRECT_MAP,
        # Two pages are left out: user space has the same translations, and NULL must trap.
        vmalloc=Interval(MAPPED + 2 * page, MAPPED + (1 << 40) - 4 * GIB),
        ranges={ExecmemType.MODULE_TEXT: ExecmemRange(range=modules)},
        kaslr=kaslr,
    )


def _low(bits: int, shift: int) -> Part:
    """Return an instruction whose lowest bits are X less the lowest bits of that."""
    return Part(4, (Slice(shift, bits, 0),))


def _half(number: int) -> tuple[Part, ...]:
    """Return an instruction that takes 16 bits of X, after the signed halves below took theirs."""
    carries = sum(0x8000 << 16 * below for below in range(number))
    return (Part(4, (Slice(16 * number, 16, 0),), bias=carries),)


_REGION = Op("REGION", (Term(1, ("S", "A")), Term(-1, ("P",), granule=REGION, bias=4)))
_FROM_8 = Op("PC8", (Term(1, ("S", "A")), Term(-1, ("P",), granule=8)))
# What two signed halves, sign-extended, can form.
_HALVES = Reach(-(1 << 31) - 0x8000, (1 << 31) - 0x8000)
_JUMP = Reach(0, REGION, 4)
_BRANCH = signed(18, 4)

_GP = "counts from a GP that the kernel does not have; build with -G 0 -mno-abicalls, as it does"
_TLS = "the kernel has no thread-local storage"
_DYNAMIC = "written by dynamic linkers, never in a relocatable object"
_SHIFT = "no assembler writes it alone"
_EDIT = "asks the linker to edit code, which none does"
_MIPS16 = "the kernel has no MIPS16 or microMIPS code"


def _unsupported(reason: str, first: int, names: str) -> tuple[Reloc, ...]:
    """Return rows of consecutive numbers that are refused by name."""
    return tuple(
        Reloc(first + n, f"R_{name}", Op.NONE, unsupported=reason)
        for n, name in enumerate(names.split())
        if name != "-"
    )


RELOCATIONS = rows(
    Reloc(0, "R_MIPS_NONE", Op.NONE),
    Reloc(1, "R_MIPS_16", Op.ABS, (_low(16, 0),), signed(16), kernel=False),
    Reloc(2, "R_MIPS_32", Op.ABS, data(4), Reach(-(1 << 31), 1 << 32), kernel_reach=None),
    *_unsupported(_DYNAMIC, 3, "MIPS_REL32"),
    Reloc(4, "R_MIPS_26", _REGION, (_low(26, 2),), _JUMP),
    Reloc(5, "R_MIPS_HI16", Op.ABS, _half(1), _HALVES, kernel_reach=None, unless=(28, 29)),
    Reloc(6, "R_MIPS_LO16", Op.ABS, _half(0)),
    *_unsupported(_GP, 7, "MIPS_GPREL16 MIPS_LITERAL MIPS_GOT16"),
    Reloc(10, "R_MIPS_PC16", Op.PC, (_low(16, 2),), _BRANCH),
    *_unsupported(_GP, 11, "MIPS_CALL16 MIPS_GPREL32"),
    *_unsupported(_SHIFT, 16, "MIPS_SHIFT5 MIPS_SHIFT6"),
    Reloc(18, "R_MIPS_64", Op.ABS, data(8)),
    *_unsupported(_GP, 19, "MIPS_GOT_DISP MIPS_GOT_PAGE MIPS_GOT_OFST MIPS_GOT_HI16 MIPS_GOT_LO16"),
    *_unsupported(_SHIFT, 24, "MIPS_SUB"),
    *_unsupported(_EDIT, 25, "MIPS_INSERT_A MIPS_INSERT_B MIPS_DELETE"),
    Reloc(28, "R_MIPS_HIGHER", Op.ABS, _half(2)),
    Reloc(29, "R_MIPS_HIGHEST", Op.ABS, _half(3)),
    *_unsupported(_GP, 30, "MIPS_CALL_HI16 MIPS_CALL_LO16"),
    *_unsupported(_SHIFT, 32, "MIPS_SCN_DISP MIPS_REL16 MIPS_ADD_IMMEDIATE MIPS_PJUMP MIPS_RELGOT"),
    Reloc(37, "R_MIPS_JALR", Op.NONE, kernel=False),  # a hint where an indirect call leads
    *_unsupported(
        _TLS,
        38,
        "MIPS_TLS_DTPMOD32 MIPS_TLS_DTPREL32 MIPS_TLS_DTPMOD64 MIPS_TLS_DTPREL64 MIPS_TLS_GD "
        "MIPS_TLS_LDM MIPS_TLS_DTPREL_HI16 MIPS_TLS_DTPREL_LO16 MIPS_TLS_GOTTPREL "
        "MIPS_TLS_TPREL32 MIPS_TLS_TPREL64 MIPS_TLS_TPREL_HI16 MIPS_TLS_TPREL_LO16",
    ),
    *_unsupported(_DYNAMIC, 51, "MIPS_GLOB_DAT"),
    Reloc(60, "R_MIPS_PC21_S2", Op.PC, (_low(21, 2),), signed(23, 4)),
    Reloc(61, "R_MIPS_PC26_S2", Op.PC, (_low(26, 2),), signed(28, 4)),
    Reloc(62, "R_MIPS_PC18_S3", _FROM_8, (_low(18, 3),), signed(21, 8), kernel=False),
    Reloc(63, "R_MIPS_PC19_S2", Op.PC, (_low(19, 2),), signed(21, 4), kernel=False),
    Reloc(64, "R_MIPS_PCHI16", Op.PC, _half(1), _HALVES, kernel=False),
    Reloc(65, "R_MIPS_PCLO16", Op.PC, _half(0), kernel=False),
    *_unsupported(
        _MIPS16,
        100,
        "MIPS16_26 MIPS16_GPREL MIPS16_GOT16 MIPS16_CALL16 MIPS16_HI16 MIPS16_LO16 MIPS16_TLS_GD "
        "MIPS16_TLS_LDM MIPS16_TLS_DTPREL_HI16 MIPS16_TLS_DTPREL_LO16 MIPS16_TLS_GOTTPREL "
        "MIPS16_TLS_TPREL_HI16 MIPS16_TLS_TPREL_LO16 MIPS16_PC16_S1",
    ),
    *_unsupported(_DYNAMIC, 126, "MIPS_COPY MIPS_JUMP_SLOT"),
    *_unsupported(
        _MIPS16,
        130,
        "- - - MICROMIPS_26_S1 MICROMIPS_HI16 MICROMIPS_LO16 MICROMIPS_GPREL16 MICROMIPS_LITERAL "
        "MICROMIPS_GOT16 MICROMIPS_PC7_S1 MICROMIPS_PC10_S1 MICROMIPS_PC16_S1 MICROMIPS_CALL16 "
        "- - MICROMIPS_GOT_DISP MICROMIPS_GOT_PAGE MICROMIPS_GOT_OFST MICROMIPS_GOT_HI16 "
        "MICROMIPS_GOT_LO16 MICROMIPS_SUB MICROMIPS_HIGHER MICROMIPS_HIGHEST MICROMIPS_CALL_HI16 "
        "MICROMIPS_CALL_LO16 MICROMIPS_SCN_DISP MICROMIPS_JALR MICROMIPS_HI0_LO16 - - - - "
        "MICROMIPS_TLS_GD MICROMIPS_TLS_LDM MICROMIPS_TLS_DTPREL_HI16 MICROMIPS_TLS_DTPREL_LO16 "
        "MICROMIPS_TLS_GOTTPREL - - MICROMIPS_TLS_TPREL_HI16 MICROMIPS_TLS_TPREL_LO16 - "
        "MICROMIPS_GPREL7_S2 MICROMIPS_PC23_S2",
    ),
    Reloc(248, "R_MIPS_PC32", Op.PC, data(4), signed(32), kernel=False),
    *_unsupported(_GP, 249, "MIPS_EH"),
    Reloc(250, "R_MIPS_GNU_REL16_S2", Op.PC, (_low(16, 2),), _BRANCH, kernel=False),
    Reloc(253, "R_MIPS_GNU_VTINHERIT", Op.NONE, kernel=False),
    Reloc(254, "R_MIPS_GNU_VTENTRY", Op.NONE, kernel=False),
)

_RETURN = bytes.fromhex("0800e00300000000")  # jr ra; nop
_COMPUTED = (*(str(number) for number in range(1, 32)), "hi", "lo")


def _fixup(_word: int) -> None:
    """Return nothing: entries of exception tables have no third word (asm/extable.h)."""


MIPS64EL = Arch(
    name="mips64el",
    aliases=("mips64", "mips64le", "mipsel64"),
    title="mips64el",
    machine=8,
    link=Link(
        relocations=RELOCATIONS,
        operands=OPERANDS,
        clean_target=False,
        assembly=Assembly(
            triple="mips64el-linux-gnuabi64",
            hosts=("mips64",),
            lines={
                "begin": (".set noreorder",),
                "function": ("daddiu $sp, $sp, -16", "sd $31, 8($sp)"),
                "return": ("ld $31, 8($sp)", "jr $31", "daddiu $sp, $sp, 16"),
                "value": ("li $2, {0}",),
                "call": ("dla $25, {0}", "jalr $25", "nop"),
                "branch": ("dla $25, {0}", "ld $31, 8($sp)", "jr $25", "daddiu $sp, $sp, 16"),
                "address-of": ("dla $2, {0}",),
                "load": ("ld $2, 0($2)",),
                "word": (".dword {0}",),
            },
            flags=(
                "-mabi=64",
                "-march=mips64r2",
                "-mno-abicalls",
                "-fno-pic",
                "-mlong-calls",
                "-G0",
            ),
        ),
        dialect=Dialect(info=Info.MIPS64),
        branches=(
            Branch(
                mnemonic="beq, bne, bgtz, ...",
                reach=Reach(_BRANCH.lo + 4, _BRANCH.hi + 4, 4),
                what="branch",
                probe=Probe(code=bytes.fromhex("0000001000000000"), fills=(Fill(10, 0, -4),)),
            ),
            Branch(
                mnemonic="j, jal",
                reach=_JUMP,
                what="jump",
                probe=Probe(code=bytes.fromhex("0000000800000000"), fills=(Fill(4),)),
                region=Region(size=REGION, behind=4),
            ),
        ),
        code_model="sym32: addresses are sign-extended 32-bit numbers, calls go through registers",
        code_model_option="-msym32 -mlong-calls",
        code_model_wide="-mno-sym32",
        code_model_absolute=(5,),
    ),
    load=Load(
        address_map=address_map,
        image_size=IMAGE_SIZE,
        # SYSCALL: of all exceptions, its program counter is the one that the emulator keeps.
        trap=(0x0000_000C).to_bytes(4, "little"),
        # Half of 64 entries, each of two pages.
        tlb=TlbRules(
            name="TLBWI on every CPU, by interrupts (flush_tlb_kernel_range)",
            interrupts=True,
            ceiling=64,
        ),
        prel32=False,
        extable=(POINTERS,),
        function_alignment=8,
        pagings=tuple(map(Paging, (4 * KIB, 16 * KIB, 64 * KIB))),
        # None of Debian's has it: its last kernel for this architecture is 6.1.
        vermagic="6.12.107+deb13-5kc-malta SMP mod_unload modversions MIPS64_R2 64BIT ",
        livepatching=False,
        layouts=Table.of("mips64el"),  # of Debian's 6.1 kernel
    ),
    run=Run(
        registers=REGISTERS,
        calling=CallingConvention(
            arguments=("a0", "a1", "a2", "a3", "8", "9", "10", "11"),
            result="v0",
            stack_pointer="sp",
            program_counter="pc",
            link="ra",
            sign_extend_32=True,
            va_list=consecutive_slots,  # n64
            va_list_is_pointer=True,
        ),
        emulation=Emulation(
            prefix="MIPS",
            mode="UC_MODE_MIPS64",
            model="UC_CPU_MIPS64_MIPS64R2_GENERIC",
            registers="UC_MIPS_REG_",
            capstone_prefix="CS_ARCH_MIPS",
            capstone_mode=("CS_MODE_MIPS64",),
            page_size_varies=False,
            anchors={"gp": Anchor.THREAD_INFO},
            thread_info={"task": 0, "cpu": 24},
            # Status: CU0 FR KX SX UX IE.
            constants={"cp0_status": 0x1400_00E1},
            canary=None,
            guard_globals=("__stack_chk_guard",),
            percpu_from_zero=False,
            # The caller's own return address is in AT meanwhile.
            code={"_mcount": bytes.fromhex("0800e00325f82000")},  # jr ra; move ra, at
            fixup=_fixup,
            ret=_RETURN,
            longest=lambda _code: 4,
            trap=traps.mips64el,
            exceptions=Exceptions(
                undefined=20,
                at_sites=(18, 19, 20, 21, 22),
                placed=(17,),
                beyond={17: 4},
                names={
                    12: "a load at an address that is not aligned; where, the emulator does not say",
                    13: "a store at an address that is not aligned; where, the emulator does not say",
                    17: "a system call",
                    18: "a breakpoint",
                    19: "a coprocessor that cannot be used",
                    20: "a reserved instruction",
                    21: "an integer overflow",
                    22: "a conditional trap",
                },
            ),
            delay_slots=DelaySlots(before=delays, registers=_COMPUTED),
            views=("cp0_status", 0x1E),  # KSU, ERL, EXL
            system=SYSTEM,
            compares={
                **dict.fromkeys(("beq", "bne", "beql", "bnel"), "01"),
                **dict.fromkeys(("slt", "sltu", "slti", "sltiu", "subu", "dsubu", "xori"), "12"),
                **dict.fromkeys(("addiu", "daddiu"), "12-"),
            },
            capabilities=frozenset(("mips64r2",)),
        ),
        # n64: lo, hi, epc, badvaddr, status, cause and seven more behind the general ones
        gregset=(*(str(number) for number in range(32)), "lo", "hi", "pc", *[""] * 10),
    ),
    debug=DEBUG,
)
