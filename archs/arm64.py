# SPDX-License-Identifier: GPL-2.0-or-later
"""arm64: a branch gets 128 MiB, an address pair 4 GiB, and a PLT entry bridges the gap.

B and BL hold 26 bits counted in words: from -128 MiB to +128 MiB - 4, asymmetric as any
two's complement. Addresses are formed in pairs, ADRP for the 4 KiB page (21 bits of
pages, 4 GiB either way) and an ADD or a scaled load/store for the low 12 bits, so data
may be much further away than code.

The kernel therefore prefers a 128 MiB window that holds the whole image, where every
call reaches; when that window is full, or KASLR with full randomisation skips it, a
2 GiB window follows and branches that do not reach go through a PLT entry of 12 bytes:
ADRP x16 ; ADD x16 ; BR x16. x16 is the psABI's scratch register for just that.

Fixed-width instructions are 4-byte aligned: text is poked a word at a time, through one
page of fixmap.

Sources: ELF for the Arm 64-bit Architecture (aaelf64), 5.7; arch/arm64/kernel/module.c
(module_init_limits) and module-plts.c; arch/arm64/mm/init.c; Documentation/arch/arm64/
memory.rst; arch/arm64/kernel/patching.c.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from allocator.types import (
    GIB,
    MIB,
    PAGE_SIZE,
    AddressMap,
    ExecmemRange,
    ExecmemType,
    Interval,
    TextPoke,
    align_up,
)
from archs.arch import Anchor, Arch, Branch, CallingConvention, Emulation, Exceptions, Plt, rows
from archs.reloc import Op, Part, Reach, Reloc, Slice, Stub, data, signed, unsigned

MODULES_VADDR = 0xFFFF_8000_0000_0000
KIMAGE_VADDR = 0xFFFF_8000_8000_0000
VMALLOC_END = 0xFFFF_C1FF_BF80_0000  # VA_BITS=52, as Debian configures it
IMAGE_SIZE = 0x24F_0000  # [_text, _end) of Debian's 6.12.107 kernel, 36.94 MiB
KERNEL_ALIGN = 2 * MIB
DIRECT_WINDOW = 128 * MIB
PLT_WINDOW = 2 * GIB


def address_map(kaslr: int | None = None, image_size: int | None = None) -> AddressMap:
    """Return the address map of one boot (module_init_limits, execmem_arch_setup).

    Without KASLR the windows end where the image ends. With KASLR Debian's kernel
    (RANDOMIZE_MODULE_REGION_FULL) gives up the direct window: modules lie anywhere in a
    random 2 GiB box that holds the image, and calls go through PLT entries.
    """
    size = IMAGE_SIZE if image_size is None else align_up(image_size, PAGE_SIZE)
    text = KIMAGE_VADDR
    if kaslr is None:
        end = text + size
        plt = Interval(end - PLT_WINDOW, end)
        direct = Interval(end - DIRECT_WINDOW, end) if size < DIRECT_WINDOW else None
    else:
        chance = random.Random(kaslr)  # noqa: S311 - a boot that can be repeated, no secret
        # The middle half of the vmalloc range (arch/arm64/kernel/pi/kaslr_early.c).
        quarter = (VMALLOC_END - KIMAGE_VADDR) // 4
        text += (quarter + chance.randrange(2 * quarter)) // KERNEL_ALIGN * KERNEL_ALIGN
        slack = (PLT_WINDOW - size) // PAGE_SIZE
        start = text + size - PLT_WINDOW + chance.randrange(slack) * PAGE_SIZE
        plt, direct = Interval(start, start + PLT_WINDOW), None
    first, fallback = (plt, None) if direct is None else (direct, plt)
    vmalloc = Interval(KIMAGE_VADDR, VMALLOC_END)
    return AddressMap(
        image=Interval(text, text + size),
        direct_map=0xFFFF_0000_0000_0000,
        vmalloc=vmalloc,
        ranges={
            ExecmemType.MODULE_TEXT: ExecmemRange(range=first, fallback=fallback),
            ExecmemType.KPROBES: ExecmemRange(range=vmalloc),
            ExecmemType.BPF: ExecmemRange(range=vmalloc),
        },
        kaslr=kaslr,
    )


def plt_entry(address: int, target: int) -> bytes:
    """Return ADRP x16 ; ADD x16, x16, #lo12 ; BR x16 (arch/arm64/kernel/module-plts.c)."""
    pages = (target >> 12) - (address >> 12)
    adrp = 0x9000_0010 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
    add = 0x9100_0210 | (target & 0xFFF) << 10
    br_x16 = 0xD61F_0200
    return b"".join(word.to_bytes(4, "little") for word in (adrp, add, br_x16))


def _va_list(address: int, load: Callable[[int], int]) -> Iterator[int]:
    """Yield the integer slots of a va_list (AAPCS64, appendix B): saved registers, then stack."""
    stack, saved_end = load(address), load(address + 8)
    offset = load(address + 24) & 0xFFFF_FFFF
    if offset >= 1 << 31:
        for at in range(offset - (1 << 32), 0, 8):
            yield load(saved_end + at)
    while True:
        yield load(stack)
        stack += 8


def _imm(*slices: tuple[int, int, int]) -> tuple[Part, ...]:
    """Return the parts of an immediate in one instruction word."""
    return (Part(4, tuple(Slice(*s) for s in slices)),)


_ADR = _imm((0, 2, 29), (2, 19, 5))
_ADRP = _imm((12, 2, 29), (14, 19, 5))
_BRANCH26 = _imm((2, 26, 0))
_BRANCH19 = _imm((2, 19, 5))
_BRANCH14 = _imm((2, 14, 5))


def _scaled(log2: int) -> tuple[Part, ...]:
    """Return the parts of the low 12 bits, scaled by the size of the access."""
    # The field has 12 bits whatever the scale; the kernel and linkers replace all of it.
    zeros = ((1 << log2) - 1) << (22 - log2)
    return (Part(4, (Slice(log2, 12 - log2, 10),), zeros=zeros),)


def _multiple(log2: int) -> Reach:
    """Return a reach without limits that requires a multiple of the access size."""
    return Reach(-(1 << 63), 1 << 63, 1 << log2)


def _movw(group: int) -> tuple[Part, ...]:
    """Return the parts of a MOVZ/MOVK immediate."""
    return _imm((16 * group, 16, 5))


_WORD32 = Reach(-(1 << 31), 1 << 32)
_WORD16 = Reach(-(1 << 15), 1 << 16)

RELOCATIONS = rows(
    Reloc(0, "R_AARCH64_NONE", Op.NONE),
    Reloc(256, "R_AARCH64_NONE", Op.NONE),
    Reloc(257, "R_AARCH64_ABS64", Op.ABS, data(8)),
    Reloc(258, "R_AARCH64_ABS32", Op.ABS, data(4), _WORD32, kernel_reach=unsigned(32)),
    Reloc(259, "R_AARCH64_ABS16", Op.ABS, data(2), _WORD16, kernel_reach=unsigned(16)),
    Reloc(260, "R_AARCH64_PREL64", Op.PC, data(8)),
    Reloc(261, "R_AARCH64_PREL32", Op.PC, data(4), signed(32)),
    Reloc(262, "R_AARCH64_PREL16", Op.PC, data(2), signed(16)),
    Reloc(263, "R_AARCH64_MOVW_UABS_G0", Op.ABS, _movw(0), unsigned(16)),
    Reloc(264, "R_AARCH64_MOVW_UABS_G0_NC", Op.ABS, _movw(0)),
    Reloc(265, "R_AARCH64_MOVW_UABS_G1", Op.ABS, _movw(1), unsigned(32)),
    Reloc(266, "R_AARCH64_MOVW_UABS_G1_NC", Op.ABS, _movw(1)),
    Reloc(267, "R_AARCH64_MOVW_UABS_G2", Op.ABS, _movw(2), unsigned(48)),
    Reloc(268, "R_AARCH64_MOVW_UABS_G2_NC", Op.ABS, _movw(2)),
    Reloc(269, "R_AARCH64_MOVW_UABS_G3", Op.ABS, _movw(3)),
    Reloc(273, "R_AARCH64_LD_PREL_LO19", Op.PC, _BRANCH19, signed(21, 4)),
    Reloc(274, "R_AARCH64_ADR_PREL_LO21", Op.PC, _ADR, signed(21)),
    Reloc(275, "R_AARCH64_ADR_PREL_PG_HI21", Op.PAGE, _ADRP, signed(33)),
    Reloc(276, "R_AARCH64_ADR_PREL_PG_HI21_NC", Op.PAGE, _ADRP),
    Reloc(277, "R_AARCH64_ADD_ABS_LO12_NC", Op.ABS, _scaled(0)),
    Reloc(278, "R_AARCH64_LDST8_ABS_LO12_NC", Op.ABS, _scaled(0)),
    Reloc(279, "R_AARCH64_TSTBR14", Op.PC, _BRANCH14, signed(16, 4)),
    Reloc(280, "R_AARCH64_CONDBR19", Op.PC, _BRANCH19, signed(21, 4)),
    Reloc(282, "R_AARCH64_JUMP26", Op.PC, _BRANCH26, signed(28, 4), stub=Stub.PLT),
    Reloc(283, "R_AARCH64_CALL26", Op.PC, _BRANCH26, signed(28, 4), stub=Stub.PLT),
    Reloc(284, "R_AARCH64_LDST16_ABS_LO12_NC", Op.ABS, _scaled(1), _multiple(1)),
    Reloc(285, "R_AARCH64_LDST32_ABS_LO12_NC", Op.ABS, _scaled(2), _multiple(2)),
    Reloc(286, "R_AARCH64_LDST64_ABS_LO12_NC", Op.ABS, _scaled(3), _multiple(3)),
    Reloc(299, "R_AARCH64_LDST128_ABS_LO12_NC", Op.ABS, _scaled(4), _multiple(4)),
)

ARM64 = Arch(
    name="arm64",
    aliases=("aarch64",),
    title="arm64",
    machine=183,
    relocations=RELOCATIONS,
    clean_target=False,
    prel32=True,
    address_map=address_map,
    image_size=IMAGE_SIZE,
    trap=(0xD420_0000).to_bytes(4, "little"),  # BRK #0
    function_alignment=8,
    branches=(
        Branch(mnemonic="bl", reach=signed(28, 4), what="call"),
        Branch(mnemonic="b", reach=signed(28, 4), what="jump"),
        Branch(mnemonic="b.cond, cbz, cbnz", reach=signed(21, 4), what="branch"),
        Branch(mnemonic="tbz, tbnz", reach=signed(16, 4), what="branch"),
        Branch(mnemonic="adr", reach=signed(21), what="data"),
        Branch(mnemonic="adrp + add", reach=signed(33), what="data"),
    ),
    code_model="small: text within 128 MiB or a PLT, data within 4 GiB",
    plt=Plt(
        section=".plt",
        init_section=".init.plt",
        size=12,
        encode=plt_entry,
        align=64,
        branches=(282, 283),
        placeholders={".text.ftrace_trampoline": 12, ".init.text.ftrace_trampoline": 12},
    ),
    text_poke=TextPoke(name="aarch64_insn_copy", window=0xFFFF_FFFF_FF5F_E000, pages=1, granule=4),
    calling=CallingConvention(
        arguments=tuple(f"x{n}" for n in range(8)),
        result="x0",
        stack_pointer="sp",
        program_counter="pc",
        link="x30",
        sign_extend_32=False,
        va_list=_va_list,
    ),
    emulation=Emulation(
        prefix="ARM64",
        mode="UC_MODE_ARM",
        model="UC_CPU_ARM64_MAX",
        registers="UC_ARM64_REG_",
        capstone_prefix="CS_ARCH_ARM64",
        capstone_mode=("CS_MODE_ARM",),
        page_size_varies=True,
        anchors={"sp_el0": Anchor.CURRENT, "tpidr_el1": Anchor.PERCPU},
        constants={"cpacr_el1": 0x30_0000},  # FPEN: no trap on SIMD
        canary=(Anchor.CURRENT, 1384),
        percpu_from_zero=False,
        code={},
        ret=(0xD65F_03C0).to_bytes(4, "little"),
        exceptions=Exceptions(undefined=1),
    ),
)
