# SPDX-License-Identifier: GPL-2.0-or-later
"""riscv64: every address is a pair, and the pair is off by 2 KiB.

AUIPC adds a 20-bit page number to the pc, JALR, ADDI or a load/store adds a *signed*
12-bit low part. Because the low part can subtract, the high part is rounded: X + 0x800
before the shift. The reach of a pair is therefore [-2^31 - 2^11, 2^31 - 2^11).

A LO12 relocation does not name the target but the label of its AUIPC: its X is the X of
the HI20 relocation found there. Conditional branches reach 4 KiB, JAL 1 MiB; compressed
ones 256 bytes and 2 KiB. Label differences are not constants for the assembler (the
linker may relax code), so they come as pairs of ADD and SUB that accumulate at a place.

The module window is the 2 GiB that end where the kernel image ends. A PLT entry loads its
target from a slot of `.got.plt`; Debian's kernel has no such sections in its modules
(CONFIG_MODULE_SECTIONS is off), and out of reach is an error.

With the C extension instructions are 2-byte aligned, AUIPC included: text is poked in
parcels of 2 bytes, through two pages of fixmap, since a word may straddle a border.

Sources: RISC-V ELF psABI, chapter 8; arch/riscv/kernel/module.c and patch.c;
arch/riscv/mm/init.c; Documentation/arch/riscv/vm-layout.rst.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from allocator.types import (
    GIB,
    KIB,
    MIB,
    PAGE_SIZE,
    AddressMap,
    ExecmemRange,
    ExecmemType,
    Interval,
    Paging,
    TextPoke,
    TlbRules,
    align_up,
)
from archs import marks, traps
from archs.arch import Arch
from archs.boot_riscv64 import ATOMICS, EXTENSIONS, THEAD, environment
from archs.debug_riscv64 import DEBUG
from archs.environment import Environment
from archs.extable import ENTRY, POINTERS
from archs.layouts import Table
from archs.levels.link import Assembly, Branch, Fill, Link, Probe, rows
from archs.levels.load import Load, Plt
from archs.levels.patch import LivePatch, Patch
from archs.levels.run import (
    Anchor,
    CallingConvention,
    Emulation,
    Exceptions,
    Run,
    consecutive_slots,
)
from archs.op import Got, Op
from archs.operands_riscv64 import OPERANDS
from archs.passes import extable, ftrace, jump_labels, same_size, trace_events
from archs.passes.ftrace import PatchableEntry, exactly, same
from archs.passes.subject import U8, U64, Pass
from archs.registers_riscv64 import REGISTERS
from archs.reloc import Part, Reach, Reloc, Slice, Stub, data, signed, unsigned
from archs.start_riscv64 import BOOT
from archs.system_riscv64 import SYSTEM
from archs.text_riscv64 import PATCHING
from archs.versions import MODELLED, Version

KERNEL_LINK_ADDR = 0xFFFF_FFFF_8000_0000
IMAGE_SIZE = 0x1E6_B000  # [_start, _end) of Debian's 6.12.107 kernel, 30.4 MiB
KERNEL_ALIGN = 2 * MIB
BPF_WINDOW = 128 * MIB


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
    """Return the address map of one boot under Sv39 (arch/riscv/mm/init.c, asm/pgtable.h).

    With KASLR the image moves in steps of 2 MiB inside the last 2 GiB.
    """
    del text_size, page, config, version  # no range depends on them
    size = IMAGE_SIZE if image_size is None else align_up(image_size, PAGE_SIZE)
    start = KERNEL_LINK_ADDR if start is None else start
    if kaslr is not None:
        chance = random.Random(kaslr)  # noqa: S311 - a boot that can be repeated, no secret
        start += (
            chance.randrange((GIB - align_up(size, KERNEL_ALIGN)) // KERNEL_ALIGN) * KERNEL_ALIGN
        )
    end = start + size
    return AddressMap(
        image=Interval(start, end),
        direct_map=0xFFFF_FFD6_0000_0000,
        vmalloc=Interval(0xFFFF_FFC6_0000_0000, 0xFFFF_FFD6_0000_0000),
        ranges={
            ExecmemType.MODULE_TEXT: ExecmemRange(range=Interval(end - 2 * GIB, start)),
            ExecmemType.KPROBES: ExecmemRange(
                range=Interval(0xFFFF_FFC6_0000_0000, 0xFFFF_FFD6_0000_0000)
            ),
            ExecmemType.BPF: ExecmemRange(
                range=Interval(start - BPF_WINDOW, start), alignment=PAGE_SIZE
            ),
        },
        kaslr=kaslr,
        vmemmap=0xFFFF_FFC5_0000_0000,  # 4 GiB below vmalloc
    )


def _fields(size: int, *slices: tuple[int, int, int], offset: int = 0, bias: int = 0) -> Part:
    """Return one instruction word's share of X."""
    return Part(size, tuple(Slice(*s) for s in slices), offset, bias)


_U = _fields(4, (12, 20, 12), bias=0x800)
_I = _fields(4, (0, 12, 20))
_S = _fields(4, (0, 5, 7), (5, 7, 25))
_B = _fields(4, (11, 1, 7), (1, 4, 8), (5, 6, 25), (12, 1, 31))
_J = _fields(4, (12, 8, 12), (11, 1, 20), (1, 10, 21), (20, 1, 31))
_CB = _fields(2, (5, 1, 2), (1, 2, 3), (6, 2, 5), (3, 2, 10), (8, 1, 12))
_CJ = _fields(
    2, (5, 1, 2), (1, 3, 3), (7, 1, 6), (6, 1, 7), (10, 1, 8), (8, 2, 9), (4, 1, 11), (11, 1, 12)
)
_CALL = (_U, _fields(4, (0, 12, 20), offset=4))
PAIR = Reach(-(1 << 31) - 0x800, (1 << 31) - 0x800)
_BRANCH, _JAL, _RVC_BRANCH, _RVC_JUMP = signed(13, 2), signed(21, 2), signed(9, 2), signed(12, 2)

_SIX = (Part(1, (Slice(0, 6, 0),)),)


def _difference(bits: int) -> Reach:
    """Return the reach of a difference of labels: signed or unsigned, as its user reads it."""
    return Reach(-(1 << (bits - 1)), 1 << bits)


def plt_entry(address: int, slot: int) -> bytes:
    """Return AUIPC t0 ; LD t1, lo(t0) ; JR t1, which loads its target from `slot`."""
    x = slot - address
    auipc = _U.insert(0x0000_0297, x)
    load = _I.insert(0x0002_B303, x)
    return b"".join(w.to_bytes(4, "little") for w in (auipc, load, 0x0003_0067))


# Finalisation ----------------------------------------------------------------------------------

_NOP = 0x13  # addi x0, x0, 0
_NOPS = _NOP.to_bytes(4, "little"), (0x0001).to_bytes(2, "little")
_AUIPC_T0 = 0x297


def _call_ops(sites: U64, symbols: Mapping[str, int]) -> tuple[tuple[int, U8], ...]:
    """Return a literal that names the tracer's operations, then AUIPC t0 to the tracer and a NOP.

    Where the kernel has no tracer, AUIPC leads nowhere; nothing reads t0 (ftrace_init_nop).
    """
    literal = np.frombuffer(symbols.get("ftrace_nop_ops", 0).to_bytes(8, "little"), np.uint8)
    entries = sites + np.uint64(8)
    away = np.zeros(sites.size, np.uint64)
    if "ftrace_caller" in symbols:
        away = np.uint64(symbols["ftrace_caller"]) - entries + np.uint64(0x800)
    code = np.empty((sites.size, 2), "<u4")
    code[:, 0] = (away & np.uint64(0xFFFF_F000)).astype(np.uint32) | np.uint32(_AUIPC_T0)
    code[:, 1] = _NOP
    return (0, np.broadcast_to(literal, (sites.size, 8))), (8, code.view(np.uint8))


# Room for AUIPC t0 and JALR, kept as two instructions so that neither is ever half; what is
# more than eight bytes of room (before 6.3) stays. Later kernels have eight bytes in front of
# the function as well, for a literal (CALL_OPS).
_ENTRIES = (
    PatchableEntry(
        code=exactly(2 * _NOPS[0], 4 * _NOPS[1]),
        function=(0,),
        idle=same(0, 2 * _NOPS[0]),
    ),
    PatchableEntry(
        code=exactly(4 * _NOPS[0], 8 * _NOPS[1]),
        function=(8,),
        align=8,
        idle=_call_ops,
    ),
)
_EXTABLE = (ENTRY, POINTERS)
_ALTERNATIVE = np.dtype(
    [
        ("place", "<i4"),
        ("replacement", "<i4"),
        ("vendor", "<u2"),
        ("length", "<u2"),
        ("patch", "<u4"),
    ]
)


def wanted_alternatives(
    entries: NDArray[np.void], environment: Environment
) -> tuple[NDArray[np.intp], int]:
    """Return the entries of extensions, then those of the vendor (alternative.c).

    And how many name an extension that nobody knows. The upper half of a patch id is an argument
    (a block size), which no module gives.
    """
    held = EXTENSIONS.held(environment)
    own = np.flatnonzero(entries["vendor"] == 0)
    named = entries["patch"][own]
    vendor = (entries["vendor"] == THEAD) & (entries["patch"] == 0)
    vendor &= "ERRATA_THEAD_MAE" in environment.features
    chosen = np.concatenate([own[held.chosen(named)], np.flatnonzero(vendor)])
    return chosen, held.strange(named)


def moved(code: bytes, old: int, new: int) -> bytes:
    """Return code with its way out adjusted: calls, and jumps (riscv_alternative_fix_offsets).

    A call is AUIPC ra and JALR in a row. Jumps inside stay as they are.
    """
    out = bytearray(code)

    def word(at: int) -> int:
        return int.from_bytes(out[at : at + 4], "little")

    at = 0
    while at + 4 <= len(code):
        first, second = word(at), word(at + 4)
        if first & 0xFFF == 0x0097 and at + 8 <= len(code) and second & 0x707F == 0x0067:
            low = (_I.extract(second) ^ 0x800) - 0x800
            x = _U.extract(first) + low + old - new
            out[at : at + 4] = _U.insert(first, x).to_bytes(4, "little")
            out[at + 4 : at + 8] = _I.insert(second, x).to_bytes(4, "little")
            at += 4
        elif first & 0x7F == 0x6F:
            x = (_J.extract(first) ^ 1 << 20) - (1 << 20)
            if not 0 <= at + x < len(code):
                out[at : at + 4] = _J.insert(first, x + old - new).to_bytes(4, "little")
        at += 4
    return bytes(out)


_DYNAMIC = "written by dynamic linkers, never in a relocatable object"
_TLS = "the kernel has no thread-local storage"
_ALIGN = "the loader does not relax code; build with -mno-relax, as the kernel does"

RELOCATIONS = rows(
    Reloc(0, "R_RISCV_NONE", Op.NONE),
    Reloc(1, "R_RISCV_32", Op.ABS, data(4), Reach(-(1 << 31), 1 << 32), kernel_reach=unsigned(32)),
    Reloc(2, "R_RISCV_64", Op.ABS, data(8)),
    Reloc(3, "R_RISCV_RELATIVE", Op.NONE, unsupported=_DYNAMIC),
    Reloc(4, "R_RISCV_COPY", Op.NONE, unsupported=_DYNAMIC),
    Reloc(5, "R_RISCV_JUMP_SLOT", Op.NONE, unsupported=_DYNAMIC),
    Reloc(6, "R_RISCV_TLS_DTPMOD32", Op.NONE, unsupported=_TLS),
    Reloc(7, "R_RISCV_TLS_DTPMOD64", Op.NONE, unsupported=_TLS),
    Reloc(8, "R_RISCV_TLS_DTPREL32", Op.NONE, unsupported=_TLS),
    Reloc(9, "R_RISCV_TLS_DTPREL64", Op.NONE, unsupported=_TLS),
    Reloc(10, "R_RISCV_TLS_TPREL32", Op.NONE, unsupported=_TLS),
    Reloc(11, "R_RISCV_TLS_TPREL64", Op.NONE, unsupported=_TLS),
    Reloc(12, "R_RISCV_TLSDESC", Op.NONE, unsupported=_TLS),
    Reloc(16, "R_RISCV_BRANCH", Op.PC, (_B,), _BRANCH, kernel_reach=None),
    Reloc(17, "R_RISCV_JAL", Op.PC, (_J,), _JAL, kernel_reach=None),
    Reloc(18, "R_RISCV_CALL", Op.PC, _CALL, PAIR),
    Reloc(19, "R_RISCV_CALL_PLT", Op.PC, _CALL, PAIR, stub=Stub.PLT),
    Reloc(20, "R_RISCV_GOT_HI20", Op.PC, (_U,), PAIR, got=Got.SLOT, high=True),
    Reloc(21, "R_RISCV_TLS_GOT_HI20", Op.NONE, unsupported=_TLS),
    Reloc(22, "R_RISCV_TLS_GD_HI20", Op.NONE, unsupported=_TLS),
    Reloc(23, "R_RISCV_PCREL_HI20", Op.PC, (_U,), PAIR, high=True),
    Reloc(24, "R_RISCV_PCREL_LO12_I", Op.PAIR, (_I,)),
    Reloc(25, "R_RISCV_PCREL_LO12_S", Op.PAIR, (_S,)),
    Reloc(26, "R_RISCV_HI20", Op.ABS, (_U,), PAIR),
    Reloc(27, "R_RISCV_LO12_I", Op.ABS, (_I,)),
    Reloc(28, "R_RISCV_LO12_S", Op.ABS, (_S,)),
    Reloc(29, "R_RISCV_TPREL_HI20", Op.NONE, unsupported=_TLS),
    Reloc(30, "R_RISCV_TPREL_LO12_I", Op.NONE, unsupported=_TLS),
    Reloc(31, "R_RISCV_TPREL_LO12_S", Op.NONE, unsupported=_TLS),
    Reloc(32, "R_RISCV_TPREL_ADD", Op.NONE, unsupported=_TLS),
    Reloc(33, "R_RISCV_ADD8", Op.ADD, data(1), _difference(8), kernel_reach=None),
    Reloc(34, "R_RISCV_ADD16", Op.ADD, data(2), _difference(16), kernel_reach=None),
    Reloc(35, "R_RISCV_ADD32", Op.ADD, data(4), _difference(32), kernel_reach=None),
    Reloc(36, "R_RISCV_ADD64", Op.ADD, data(8)),
    Reloc(37, "R_RISCV_SUB8", Op.SUB, data(1), _difference(8), kernel_reach=None),
    Reloc(38, "R_RISCV_SUB16", Op.SUB, data(2), _difference(16), kernel_reach=None),
    Reloc(39, "R_RISCV_SUB32", Op.SUB, data(4), _difference(32), kernel_reach=None),
    Reloc(40, "R_RISCV_SUB64", Op.SUB, data(8)),
    Reloc(41, "R_RISCV_GOT32_PCREL", Op.PC, data(4), signed(32), got=Got.SLOT, kernel=False),
    Reloc(43, "R_RISCV_ALIGN", Op.NONE, unsupported=_ALIGN),
    Reloc(44, "R_RISCV_RVC_BRANCH", Op.PC, (_CB,), _RVC_BRANCH, kernel_reach=None),
    Reloc(45, "R_RISCV_RVC_JUMP", Op.PC, (_CJ,), _RVC_JUMP, kernel_reach=None),
    Reloc(51, "R_RISCV_RELAX", Op.NONE),
    Reloc(52, "R_RISCV_SUB6", Op.SUB, _SIX, unsigned(6), kernel_reach=None),
    Reloc(53, "R_RISCV_SET6", Op.SET, _SIX, unsigned(6), kernel_reach=None),
    Reloc(54, "R_RISCV_SET8", Op.SET, data(1), _difference(8), kernel_reach=None),
    Reloc(55, "R_RISCV_SET16", Op.SET, data(2), _difference(16), kernel_reach=None),
    Reloc(56, "R_RISCV_SET32", Op.SET, data(4), _difference(32), kernel_reach=None),
    Reloc(57, "R_RISCV_32_PCREL", Op.PC, data(4), signed(32), kernel_reach=None),
    Reloc(58, "R_RISCV_IRELATIVE", Op.NONE, unsupported=_DYNAMIC),
    Reloc(59, "R_RISCV_PLT32", Op.PC, data(4), signed(32), kernel_reach=PAIR, stub=Stub.PLT),
    Reloc(60, "R_RISCV_SET_ULEB128", Op.SET, uleb=True),
    Reloc(61, "R_RISCV_SUB_ULEB128", Op.SUB, uleb=True),
    Reloc(62, "R_RISCV_TLSDESC_HI20", Op.NONE, unsupported=_TLS),
    Reloc(63, "R_RISCV_TLSDESC_LOAD_LO12", Op.NONE, unsupported=_TLS),
    Reloc(64, "R_RISCV_TLSDESC_ADD_LO12", Op.NONE, unsupported=_TLS),
    Reloc(65, "R_RISCV_TLSDESC_CALL", Op.NONE, unsupported=_TLS),
)


def jump_to(place: int, target: int) -> bytes | None:
    """Return JAL zero, or None where it is too far."""
    distance = target - place
    return _J.insert(0x6F, distance).to_bytes(4, "little") if distance in _JAL else None


def _fixup(word: int) -> tuple[tuple[str, int], ...] | None:
    """Return what an exception table entry sets (asm-extable.h): one register -EFAULT, one 0."""
    kind, error, zero = word & 0xFFFF, word >> 16 & 31, word >> 21 & 31
    if kind == 1:  # FIXUP
        return ()
    if kind != 3:  # UACCESS_ERR_ZERO
        return None
    values = (error, (1 << 64) - errno.EFAULT), (zero, 0)
    return tuple((f"x{number}", value) for number, value in values if number)


RISCV64 = Arch(
    name="riscv64",
    aliases=("riscv", "rv64"),
    title="riscv64",
    machine=243,
    link=Link(
        relocations=RELOCATIONS,
        operands=OPERANDS,
        clean_target=False,
        assembly=Assembly(
            triple="riscv64-linux-gnu",
            hosts=("riscv64",),
            lines={
                "begin": (".option norelax",),
                "function": ("addi sp, sp, -16", "sd ra, 8(sp)"),
                "return": ("ld ra, 8(sp)", "addi sp, sp, 16", "ret"),
                "value": ("li a0, {0}",),
                "call": ("call {0}",),
                "branch": ("ld ra, 8(sp)", "addi sp, sp, 16", "tail {0}"),
                "address-of": ("lla a0, {0}",),
                "load": ("ld a0, 0(a0)",),
                "word": (".dword {0}",),
            },
            flags=("-mcmodel=medany", "-mno-relax", "-mabi=lp64", "-march=rv64imac_zicsr_zifencei"),
        ),
        branches=(
            Branch(
                mnemonic="auipc + jalr",
                reach=PAIR,
                what="call",
                probe=Probe(code=bytes.fromhex("97000000e7800000"), fills=(Fill(19),)),
            ),
            Branch(
                mnemonic="jal",
                reach=_JAL,
                what="jump",
                probe=Probe(code=bytes.fromhex("ef000000"), fills=(Fill(17),)),
            ),
            Branch(
                mnemonic="beq, bne, blt, ...",
                reach=_BRANCH,
                what="branch",
                probe=Probe(code=bytes.fromhex("63000000"), fills=(Fill(16),)),
            ),
            Branch(
                mnemonic="c.j",
                reach=_RVC_JUMP,
                what="jump",
                probe=Probe(code=bytes.fromhex("01a0"), fills=(Fill(45),)),
            ),
            Branch(
                mnemonic="c.beqz, c.bnez",
                reach=_RVC_BRANCH,
                what="branch",
                probe=Probe(
                    code=bytes.fromhex("01c1"), fills=(Fill(44),), setup=bytes.fromhex("0145")
                ),
            ),
            Branch(
                mnemonic="auipc + addi",
                reach=PAIR,
                what="data",
                probe=Probe(
                    code=bytes.fromhex("1705000013050500"),
                    fills=(Fill(23), Fill(24, 4)),
                    result="a0",
                ),
            ),
        ),
        code_model="medany: everything within 2 GiB of the pc",
        code_model_option="-mcmodel=medany",
        marks=(
            marks.CALL_OPS,
            marks.PLAIN_ENTRY,
            marks.GLOBAL_GUARD,
            marks.TASK_GUARD,
            marks.KCFI,
        ),
    ),
    load=Load(
        prel32=False,
        extable=_EXTABLE,
        address_map=address_map,
        image_size=IMAGE_SIZE,
        trap=(0x9002).to_bytes(2, "little"),  # C.EBREAK
        # tlb_flush_all_threshold
        tlb=TlbRules(
            name="SFENCE.VMA on every hart, by interrupts or the SBI", interrupts=True, ceiling=64
        ),
        vermagic="6.12.107+deb13-riscv64 SMP mod_unload modversions riscv",
        livepatching=False,
        function_alignment=2,
        pagings=(Paging(run=64 * KIB),),  # Svnapot; no other length is defined
        layouts=Table.of("riscv64"),
        plt=Plt(
            section=".plt",
            init_section=".init.plt",
            size=12,
            encode=plt_entry,
            reach=PAIR,
            got_section=".got.plt",
            sorts=False,
            align=64,
            branches=(19, 59),
            placeholders={},
        ),
        got_section=".got",
        errata={},
    ),
    run=Run(
        registers=REGISTERS,
        calling=CallingConvention(
            arguments=tuple(f"a{n}" for n in range(8)),
            result="a0",
            stack_pointer="sp",
            program_counter="pc",
            link="ra",
            sign_extend_32=True,
            va_list=consecutive_slots,  # psABI, chapter 2
            va_list_is_pointer=True,
        ),
        emulation=Emulation(
            prefix="RISCV",
            mode="UC_MODE_RISCV64",
            model="UC_CPU_RISCV64_SIFIVE_U54",
            compares={
                **dict.fromkeys(("beq", "bne", "blt", "bge", "bltu", "bgeu"), "01"),
                **dict.fromkeys(("slt", "sltu", "slti", "sltiu", "sub", "subw", "xori"), "12"),
                **dict.fromkeys(("addi", "addiw"), "12-"),
                **dict.fromkeys(("c.addi", "c.addiw"), "01-"),
                **dict.fromkeys(("c.sub", "c.subw"), "01"),
            },
            capabilities=frozenset("imafdc") | ATOMICS,
            registers="UC_RISCV_REG_",
            leftovers=("stvec", "satp"),
            capstone_prefix="CS_ARCH_RISCV",
            capstone_mode=("CS_MODE_RISCV64", "CS_MODE_RISCVC"),
            page_size_varies=False,
            anchors={"tp": Anchor.CURRENT, "gp": Anchor.IMAGE, "stvec": Anchor.IMAGE},
            system=SYSTEM,
            # What firmware leaves a kernel: interrupts delegated; `satp`, SFENCE.VMA, WFI and SRET
            # refused (TVM, TW, TSR), so that they are seen; floating point on, interrupts too.
            constants={
                "mideleg": 0x222,
                "sie": 0x222,
                "mstatus": 0x6010_2002,
            },
            privilege={"priv": 1},
            unsaved={"fflags": 0},
            canary=(Anchor.CURRENT, "task_struct"),
            percpu_from_zero=False,
            ticket_locks=True,
            trap=traps.riscv64,
            code={},
            fixup=_fixup,
            ret=(0x8082).to_bytes(2, "little"),  # C.JR ra
            longest=lambda code: 4 if code[:1] and code[0] & 3 == 3 else 2,
            # 1: lhu a3,(a1); sh a3,(a0); addi a0,a0,2; addi a1,a1,2; addi a2,a2,-2; bnez a2,1b; ret
            copy=bytes.fromhex("83d605002310d5000905890579166dfa8280"),
            exceptions=Exceptions(
                undefined=2, invalid_is_trap=True, beyond=dict.fromkeys(range(12), 4)
            ),
        ),
        gregset=(
            *("pc", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1"),
            *(f"a{number}" for number in range(8)),
            *(f"s{number}" for number in range(2, 12)),
            *("t3", "t4", "t5", "t6"),
        ),
    ),
    patch=Patch(
        text_poke=TextPoke(
            name="patch_text_nosync",
            window=0xFFFF_FFC4_FEBF_C000,
            pages=2,
            granule=2,
            flush_first=True,  # __set_fixmap() does so whatever it sets
            sync="fence.i on every hart",
        ),
        live=LivePatch(
            name="patch_text",
            concurrent=lambda _old, _new: False,
            rule="patch_text() stops all harts first",
            jump=jump_to,
            maintenance=("fence w, o",),  # flush_icache_all(), before it interrupts the others
        ),
        text=PATCHING,
    ),
    boot=BOOT,
    debug=DEBUG,
    environment=environment,
    finalise=(
        Pass("extable", partial(extable.sort, forms=_EXTABLE)),
        Pass(
            "same_size_alternatives",
            partial(
                same_size.apply,
                section=".alternative",
                entry=_ALTERNATIVE,
                wanted=wanted_alternatives,
                moved=moved,
            ),
        ),
        Pass(
            "ftrace",
            partial(ftrace.prepare, section="__patchable_function_entries", entries=_ENTRIES),
        ),
        Pass("jump_labels", partial(jump_labels.attach, forms=PATCHING.jump_labels)),
        Pass("trace_events", trace_events.register),
        Pass("running_kernel", trace_events.running),
    ),
)
