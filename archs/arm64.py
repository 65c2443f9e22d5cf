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
memory.rst; arch/arm64/kernel/patching.c. Long because an architecture is one record.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import attrs
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
from archs.boot_arm64 import CAPABILITIES, environment
from archs.debug_arm64 import DEBUG
from archs.environment import Environment
from archs.extable import ENTRY, PAIR
from archs.layouts import Table
from archs.levels.link import Branch, Fill, Link, Probe
from archs.levels.load import Erratum, Load, Plt
from archs.levels.patch import LivePatch, Patch
from archs.levels.run import Anchor, BlockClear, CallingConvention, Emulation, Exceptions, Run
from archs.marks import Mark
from archs.op import Op
from archs.operands_arm64 import OPERANDS
from archs.passes import extable, ftrace, jump_labels, same_size, trace_events, trampolines
from archs.passes.ftrace import PatchableEntry, exactly, same
from archs.passes.subject import U8, U64, Pass
from archs.registers_arm64 import REGISTERS
from archs.reloc import Reach, signed
from archs.relocations_arm64 import ADR, ADRP, ASSEMBLY, BRANCH14, BRANCH19, BRANCH26, RELOCATIONS
from archs.start_arm64 import BOOT
from archs.system_arm64 import SYSTEM
from archs.text_arm64 import PATCHING
from archs.versions import MODELLED, Since, Version

KIMAGE_OFFSET = 2 * GIB  # KIMAGE_VADDR lies so far behind MODULES_VADDR, since 6.5
VA_BITS = 52  # as Debian configures it since 6.9
CONFIGURABLE = (36, 39, 42, 47, 48, 52)
MOST_VA_BITS = Since(((0, 0), 48), ((6, 9), VA_BITS))  # where no configuration tells
STRUCT_PAGE = 64  # bytes: what its size is rounded up to
VMEMMAP_END = -GIB  # since 6.9
# VMALLOC_END, from where vmemmap begins: 3cb7e662a930 made fixmap and PCI go above that.
VMALLOC_GAP = Since(((0, 0), 256 * MIB), ((6, 9), 8 * MIB))
IMAGE_SIZE = 0x24F_0000  # [_text, _end) of Debian's 6.12.107 kernel, 36.94 MiB
KERNEL_ALIGN = 2 * MIB
DIRECT_WINDOW = 128 * MIB
PLT_WINDOW = 2 * GIB


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
    """Return the address map of one boot (module_init_limits, execmem_arch_setup).

    Everything follows from the bits of an address (VA_BITS) and the page (asm/memory.h). CPUs
    here have the fewest that such a kernel runs with (VA_BITS_MIN), which decide where the
    direct map lies; code is compiled for all of VA_BITS, and memstart_addr makes up for that.

    Without KASLR the windows end where the image ends. Before 6.5 the image lay close
    behind MODULES_VADDR, the window of 128 MiB ended where its text ends, and went on upwards to
    2 GiB. With KASLR Debian's kernel (RANDOMIZE_MODULE_REGION_FULL) gives up the direct window:
    modules lie anywhere in a random 2 GiB box that holds the image, and calls go through PLT
    entries.
    """
    size = IMAGE_SIZE if image_size is None else align_up(image_size, page)
    bits, least = _address_bits(page, config or {}, version, start)
    modules_vaddr = (1 << 64) - (1 << least - 1)
    vmemmap = _vmemmap(bits, least, page, version)
    vmalloc_end = vmemmap - VMALLOC_GAP.at(version)
    kimage_vaddr = modules_vaddr + KIMAGE_OFFSET
    text = kimage_vaddr if start is None else start
    direct: Interval | None
    vmalloc = Interval(min(text, kimage_vaddr), vmalloc_end)
    if kaslr is None and text < kimage_vaddr:
        end = text + (size if text_size is None else text_size)
        low = max(end - DIRECT_WINDOW, modules_vaddr)
        plt, direct = Interval(low, low + PLT_WINDOW), Interval(low, low + DIRECT_WINDOW)
    elif kaslr is None:
        end = text + size
        plt = Interval(end - PLT_WINDOW, end)
        direct = Interval(end - DIRECT_WINDOW, end) if size < DIRECT_WINDOW else None
    else:
        chance = random.Random(kaslr)  # noqa: S311 - a boot that can be repeated, no secret
        # The middle half of the vmalloc range (arch/arm64/kernel/pi/kaslr_early.c).
        quarter = (vmalloc_end - kimage_vaddr) // 4
        text = (
            kimage_vaddr + (quarter + chance.randrange(2 * quarter)) // KERNEL_ALIGN * KERNEL_ALIGN
        )
        slack = (PLT_WINDOW - size) // page
        low = text + size - PLT_WINDOW + chance.randrange(slack) * page
        plt, direct = Interval(low, low + PLT_WINDOW), None
    first, fallback = (plt, None) if direct is None else (direct, plt)
    page_offset, direct_map = (1 << 64) - (1 << bits), (1 << 64) - (1 << least)
    return AddressMap(
        live_splits=True,  # FEAT_BBM level 2
        image=Interval(text, text + size),
        direct_map=direct_map,
        page_offset=page_offset,
        vmalloc=vmalloc,
        ranges={
            ExecmemType.MODULE_TEXT: ExecmemRange(range=first, fallback=fallback),
            ExecmemType.KPROBES: ExecmemRange(range=vmalloc),
            ExecmemType.BPF: ExecmemRange(range=vmalloc),
        },
        kaslr=kaslr,
        vmemmap=vmemmap + (direct_map - page_offset) // page * STRUCT_PAGE,
    )


def _address_bits(
    page: int, config: Mapping[str, str], version: Version, start: int | None
) -> tuple[int, int]:
    """Return how many bits an address has (VA_BITS), and on CPUs with the fewest (VA_BITS_MIN).

    By the configuration; where none tells, as Debian has them, unless the image lies elsewhere.
    """
    bits = MOST_VA_BITS.at(version) if page < 64 * KIB else VA_BITS  # 64 KiB had them before
    told = config.get("CONFIG_ARM64_VA_BITS", "")
    if told.isdecimal() and int(told) in CONFIGURABLE:
        bits = int(told)
    least = bits if bits <= 48 else 47 if page == 16 * KIB else 48
    if not told and start is not None:
        behind = {each: start - (1 << 64) + (1 << each - 1) for each in CONFIGURABLE[:-1]}
        lies = next((n for n, far in behind.items() if 0 <= far < 2 * KIMAGE_OFFSET), least)
        if lies != least:
            return lies, lies
    return bits, least


# VMEMMAP_START by VA_BITS, size and page size, modulo 2**64.
_VMEMMAP_START: Since[Callable[[int, int, int], int]] = Since(
    ((0, 0), lambda _bits, size, _page: -size - 2 * MIB),
    ((5, 11), lambda bits, _size, page: -(1 << bits) // page * STRUCT_PAGE),
    ((6, 9), lambda _bits, size, _page: VMEMMAP_END - size),
)


def _vmemmap(bits: int, least: int, page: int, version: Version) -> int:
    """Return the address of the struct page of PAGE_OFFSET (VMEMMAP_START)."""
    size = ((1 << bits) - (1 << least - 1)) // page * STRUCT_PAGE
    return _VMEMMAP_START.at(version)(bits, size, page) % (1 << 64)


_ADRP = Reach(-(1 << 32), 1 << 32, PAGE_SIZE)


def plt_entry(address: int, target: int) -> bytes:
    """Return ADRP x16 ; ADD x16, x16, #lo12 ; BR x16 (arch/arm64/kernel/module-plts.c).

    Where ADRP does not reach, BRK stands for it (aarch64_insn_gen_adr: AARCH64_BREAK_FAULT).
    """
    pages = (target >> 12) - (address >> 12)
    adrp = 0x9000_0010 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
    if pages << 12 not in _ADRP:
        adrp = 0xD420_2000
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


def erratum_843419_align(offsets: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the alignment at which an ADRP at each section offset is never forbidden.

    An address is forbidden when its bits [11:3] are all ones, so aligning the section to
    twice the lowest zero bit of the offset keeps that bit zero (module-plts.c, count_plts).
    """
    filled = offsets | np.uint64(7)
    return np.uint64(2) * (~filled & (filled + np.uint64(1)))


def adrp_near(word: int, place: int, target: int) -> bytes | None:
    """Return the ADR that does what an ADRP does, where the page is within 1 MiB."""
    x = (target & ~0xFFF) - place
    if not -(1 << 20) <= x < 1 << 20:
        return None
    return (ADR[0].insert(word & ~(1 << 31), x)).to_bytes(4, "little")


def adrp_veneer(word: int, address: int, place: int, target: int) -> bytes:
    """Return ADRP rd ; ADD rd, rd, #0 ; B place+4, with the register of the ADRP it replaces."""
    register, page = word & 0x1F, target & ~0xFFF
    adrp = ADRP[0].insert(0x9000_0000 | register, page - (address & ~0xFFF))
    add = 0x9100_0000 | register << 5 | register
    back = BRANCH26[0].insert(0x1400_0000, place + 4 - (address + 8))
    return b"".join(w.to_bytes(4, "little") for w in (adrp, add, back))


def branch_to(place: int, address: int) -> bytes | None:
    """Return B address, or None where it is too far."""
    if address - place not in signed(28, 4):
        return None
    return BRANCH26[0].insert(0x1400_0000, address - place).to_bytes(4, "little")


# Finalisation ----------------------------------------------------------------------------------

_NOP, _MOV_X9_LR = 0xD503_201F, 0xAA1E_03E9
_CALLBACK = 1 << 15  # in an alternative's capability: the replacement is a function

_NOPS2 = _NOP.to_bytes(4, "little") * 2
_MOV = np.frombuffer(_MOV_X9_LR.to_bytes(4, "little"), np.uint8)
_BTI = 0xD503_241F  # bits 6 and 7: what may come here
_BTI_MASK = 0xFFFF_FF3F


def _call_ops(at: int) -> Callable[[U64, Mapping[str, int]], tuple[tuple[int, U8], ...]]:
    """Return what names the tracer's operations in a literal, and keeps LR, so far behind it."""

    def idle(sites: U64, symbols: Mapping[str, int]) -> tuple[tuple[int, U8], ...]:
        literal = symbols.get("ftrace_nop_ops", 0).to_bytes(8, "little")
        rows = ((0, np.frombuffer(literal, np.uint8)), (at, _MOV))
        return tuple((n, np.broadcast_to(row, (sites.size, row.size))) for n, row in rows)

    return idle


# Two NOPs at the entry, behind its BTI (before 6.3, and with CFI); or eight bytes in front of
# the function as well, for a literal (CALL_OPS); arch/arm64/kernel/ftrace.c, ftrace_call_adjust.
_MARKS = (
    marks.CALL_OPS,
    marks.PLAIN_ENTRY,
    attrs.evolve(marks.PLAIN_ENTRY, value="NOPs behind the landing pad", shown=marks.entry_at(-4)),
    Mark(
        fact="landing pads",
        value="BTI c",
        shown=marks.traced(bytes.fromhex("5f2403d5"), 4),
        instructions=True,
        options=("CONFIG_ARM64_BTI_KERNEL",),
    ),
    Mark(
        fact="return addresses",
        value="signed (PACIASP)",
        shown=marks.traced(bytes.fromhex("3f2303d5"), 16),
        instructions=True,
        options=("CONFIG_ARM64_PTR_AUTH_KERNEL", "CONFIG_ARM64_PTR_AUTH"),  # before 5.14
    ),
    marks.GLOBAL_GUARD,
    marks.TASK_GUARD,
    marks.KCFI,
)
_ENTRIES = (
    PatchableEntry(code=exactly(_NOPS2), function=(0, -4), idle=same(0, _MOV.tobytes())),
    PatchableEntry(code=exactly(2 * _NOPS2), function=(8,), align=8, idle=_call_ops(8)),
    PatchableEntry(
        code=(
            (
                _NOPS2 + _BTI.to_bytes(4, "little") + _NOPS2,
                b"\xff" * 8 + _BTI_MASK.to_bytes(4, "little") + b"\xff" * 8,
            ),
        ),
        function=(8,),
        align=8,
        idle=_call_ops(12),
    ),
)


def wanted_alternatives(
    entries: NDArray[np.void], environment: Environment
) -> tuple[NDArray[np.intp], int]:
    """Return the alternatives whose capability is there (alternative.c, __apply_alternatives).

    And how many name one that nobody knows.
    """
    held = CAPABILITIES.held(environment)
    named = entries["capability"] & (_CALLBACK - 1)
    return held.chosen(named), held.strange(named)


_ALTERNATIVE = np.dtype(
    [
        ("place", "<i4"),
        ("replacement", "<i4"),
        ("capability", "<u2"),
        ("length", "u1"),
        ("replacement_length", "u1"),
    ]
)
_TRAMPOLINES = (".text.ftrace_trampoline", ".init.text.ftrace_trampoline")
# A second entry led to ftrace_regs_caller (CONFIG_DYNAMIC_FTRACE_WITH_REGS).
_TRAMPOLINE_SIZE = Since(((0, 0), 12), ((5, 5), 24), ((6, 2), 12))
_EXTABLE = (ENTRY, PAIR)

# Opcode mask and value of instructions with a displacement, and the row of their field.
_BRANCHES = (
    (0x7C00_0000, 0x1400_0000, BRANCH26),  # B, BL
    (0xFF00_0010, 0x5400_0000, BRANCH19),  # B.cond
    (0x7E00_0000, 0x3400_0000, BRANCH19),  # CBZ, CBNZ
    (0x7E00_0000, 0x3600_0000, BRANCH14),  # TBZ, TBNZ
)


def moved(code: bytes, old: int, new: int) -> bytes:
    """Return code with its way out adjusted: branches that leave it, and ADRP (get_alt_insn)."""
    words = []
    for at in range(0, len(code), 4):
        word = int.from_bytes(code[at : at + 4], "little")
        for mask, value, (part,) in _BRANCHES:
            if word & mask == value:
                top = max(piece.x + piece.bits for piece in part.slices)
                x = (part.extract(word) ^ 1 << top - 1) - (1 << top - 1)
                if not 0 <= at + x <= len(code):
                    word = part.insert(word, x + old - new)
                break
        if word & 0x9F00_0000 == 0x9000_0000:
            pages = ((old + at) & ~0xFFF) - ((new + at) & ~0xFFF)
            word = ADRP[0].insert(word, ADRP[0].extract(word) + pages)
        words.append(word.to_bytes(4, "little"))
    return b"".join(words)


def _probe(word: int, relocation: int, *, setup: bool = False, result: str | None = None) -> Probe:
    """Return a probe of one instruction word; `setup` runs mov x0, #0 so that it is taken."""
    return Probe(
        code=word.to_bytes(4, "little"),
        fills=(Fill(relocation),),
        setup=bytes.fromhex("000080d2") if setup else b"",
        result=result,
    )


# Mask and value of the instructions of which one may replace another while it is executed
# (Arm ARM, "Concurrent modification and execution of instructions"; arch/arm64/kernel/
# patching.c): B, BL, NOP, ISB, SVC, HVC, SMC, BRK.
_CONCURRENT = (
    (0xFC00_0000, 0x1400_0000),
    (0xFC00_0000, 0x9400_0000),
    (0xFFFF_FFFF, 0xD503_201F),
    (0xFFFF_F0FF, 0xD503_30DF),
    (0xFFE0_001F, 0xD400_0001),
    (0xFFE0_001F, 0xD400_0002),
    (0xFFE0_001F, 0xD400_0003),
    (0xFFE0_001F, 0xD420_0000),
)


def concurrent(old: bytes, new: bytes) -> bool:
    """Return whether one instruction replaces one, both of the class that allows it."""
    words = [int.from_bytes(code, "little") for code in (old, new) if len(code) == 4]
    return len(words) == 2 and all(
        any(word & mask == value for mask, value in _CONCURRENT) for word in words
    )


def _fixup(word: int) -> tuple[tuple[str, int], ...] | None:
    """Return what an exception table entry sets (asm-extable.h): one register -EFAULT, one 0."""
    kind, error, zero = word & 0xFFFF, word >> 16 & 31, word >> 21 & 31
    if kind not in (2, 3):  # UACCESS_ERR_ZERO, KACCESS_ERR_ZERO
        return None
    values = (error, (1 << 64) - errno.EFAULT), (zero, 0)
    return tuple((f"x{number}", value) for number, value in values if number != 31)


ARM64 = Arch(
    name="arm64",
    aliases=("aarch64",),
    title="arm64",
    machine=183,
    link=Link(
        relocations=RELOCATIONS,
        operands=OPERANDS,
        clean_target=False,
        assembly=ASSEMBLY,
        branches=(
            Branch(mnemonic="bl", reach=signed(28, 4), what="call", probe=_probe(0x9400_0000, 283)),
            Branch(mnemonic="b", reach=signed(28, 4), what="jump", probe=_probe(0x1400_0000, 282)),
            Branch(
                mnemonic="b.cond, cbz, cbnz",
                reach=signed(21, 4),
                what="branch",
                probe=_probe(0xB400_0000, 280, setup=True),
            ),
            Branch(
                mnemonic="tbz, tbnz",
                reach=signed(16, 4),
                what="branch",
                probe=_probe(0x3600_0000, 279, setup=True),
            ),
            Branch(
                mnemonic="adr",
                reach=signed(21),
                what="data",
                probe=_probe(0x1000_0000, 274, result="x0"),
            ),
            Branch(
                mnemonic="adrp + add",
                reach=signed(33),
                what="data",
                probe=Probe(
                    code=bytes.fromhex("0000009000000091"),
                    fills=(Fill(275), Fill(277, 4)),
                    result="x0",
                ),
            ),
        ),
        code_model="small: text within 128 MiB or a PLT, data within 4 GiB",
        code_model_option="-mcmodel=small",
        marks=_MARKS,
    ),
    load=Load(
        prel32=True,
        extable=_EXTABLE,
        address_map=address_map,
        image_size=IMAGE_SIZE,
        trap=(0xD420_0000).to_bytes(4, "little"),  # BRK #0
        # MAX_DVM_OPS of pages of 4 KiB.
        tlb=TlbRules(
            name="TLBI VAALE1IS, DSB ISH (flush_tlb_kernel_range)", interrupts=False, ceiling=512
        ),
        vermagic="6.12.107+deb13-arm64 SMP mod_unload modversions aarch64",
        livepatching=False,
        function_alignment=8,
        # Arm ARM, D8.7.1: how many entries the contiguous bit joins (CONT_PTE_SIZE, CONT_PMD_SIZE).
        pagings=(
            Paging(4 * KIB, run=64 * KIB, large_run=32 * MIB),
            Paging(16 * KIB, run=2 * MIB, large_run=GIB),
            Paging(64 * KIB, run=2 * MIB, large_run=16 * GIB),
        ),
        layouts=Table.of("arm64"),
        plt=Plt(
            section=".plt",
            init_section=".init.plt",
            size=12,
            encode=plt_entry,
            got_section=None,
            sorts=True,
            align=64,
            branches=(282, 283),
            op=Op.PAGE,
            reach=_ADRP,
            placeholders=dict.fromkeys(_TRAMPOLINES, _TRAMPOLINE_SIZE),
            required=True,
        ),
        got_section=".got",
        errata={
            "843419": Erratum(
                rows=(275, 276),
                mask=0xFF8,
                safe_align=erratum_843419_align,
                near=adrp_near,
                veneer=adrp_veneer,
                detour=branch_to,
            )
        },
    ),
    run=Run(
        registers=REGISTERS,
        calling=CallingConvention(
            arguments=tuple(f"x{n}" for n in range(8)),
            result="x0",
            stack_pointer="sp",
            program_counter="pc",
            link="x30",
            sign_extend_32=False,
            va_list=_va_list,
            indirect="x8",
        ),
        emulation=Emulation(
            prefix="ARM64",
            mode="UC_MODE_ARM",
            model="UC_CPU_ARM64_MAX",
            features=frozenset((0, 1, 3, 4, 5, 6, 7)),  # FP ASIMD AES PMULL SHA1 SHA2 CRC32
            compares={
                **dict.fromkeys(("cmp", "ccmp"), "01"),
                **dict.fromkeys(("cmn", "ccmn"), "01-"),
                **dict.fromkeys(("sub", "subs"), "12"),
            },
            capabilities=frozenset(
                ("ALWAYS_BOOT", "ALWAYS_SYSTEM", "HAS_FPSIMD", "HAS_LSE_ATOMICS")  # it runs at EL1
            ),
            registers="UC_ARM64_REG_",
            capstone_prefix="CS_ARCH_ARM64",
            capstone_mode=("CS_MODE_ARM",),
            page_size_varies=True,
            clears=BlockClear(hook="UC_ARM64_INS_SYS", code=(1, 3, 7, 4, 1), size=64),  # DC ZVA
            views=("pstate", 1 << 22),  # PAN
            anchors={
                "sp_el0": Anchor.CURRENT,
                "tpidr_el1": Anchor.PERCPU,
                "vbar_el1": Anchor.IMAGE,
            },
            constants={"cpacr_el1": 0x30_0000},  # FPEN: no trap on SIMD
            canary=(Anchor.CURRENT, "task_struct"),
            percpu_from_zero=False,
            trap=traps.arm64,
            code={},
            fixup=_fixup,
            ret=(0xD65F_03C0).to_bytes(4, "little"),
            longest=lambda _code: 4,
            # 1: ldr w3,[x1],#4; str w3,[x0],#4; subs x2,x2,#4; b.ne 1b; ret
            copy=bytes.fromhex("234440b8034400b8421000f1a1ffff54c0035fd6"),
            exceptions=Exceptions(undefined=1, beyond={2: 4, 11: 4}),  # SVC, HVC
            system=SYSTEM,
            system_registers={
                # A kernel's: the MMU, caches and alignment of the stack checked; 48 bits of
                # addresses in pages of 4 KiB, no tags.
                (3, 0, 1, 0, 0): 0x34D5_D91D,  # SCTLR_EL1
                (3, 0, 2, 0, 2): 0x15_B550_3510,  # TCR_EL1
                # Above it somebody refuses what would change the emulator's own state: the
                # registers of address translation (TVM), SMC (TSC), those of debugging, and of
                # performance counters (TDA, TDOSA, TPM).
                (3, 6, 1, 1, 0): 0x501,  # SCR_EL3: RW, HCE, NS
                (3, 4, 1, 1, 0): 0x8408_0000,  # HCR_EL2: RW, TVM, TSC
                (3, 6, 1, 3, 1): 0x640,  # MDCR_EL3
            },
            # TCR_EL1 again: TG0 and TG1, and with 16 KiB the 47 bits of an address (T0SZ, T1SZ).
            paged_registers={
                16 * KIB: {(3, 0, 2, 0, 2): 0x15_7551_B511},
                64 * KIB: {(3, 0, 2, 0, 2): 0x15_F550_7510},
            },
        ),
        gregset=(*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"),
    ),
    patch=Patch(
        text_poke=TextPoke(
            name="aarch64_insn_copy",
            window=0xFFFF_FFFF_FF5F_E000,
            # FIX_TEXT_POKE0: behind 2 MiB for the device tree and a page of the early console.
            windows={16 * KIB: 0xFFFF_FFFF_FF5F_8000, 64 * KIB: 0xFFFF_FFFF_FF5E_0000},
            pages=1,
            granule=4,
            broadcast=True,
            sync="clean to the point of unification, invalidate, ISB on every CPU",
        ),
        live=LivePatch(
            name="aarch64_insn_patch_text_nosync, else aarch64_insn_patch_text",
            concurrent=concurrent,
            rule="only B, BL, NOP, ISB, SVC, HVC, SMC and BRK may replace one another under them",
            jump=branch_to,
            # caches_clean_inval_pou(); IC IVAU reaches the inner shareable domain.
            maintenance=("dc cvau", "dsb ish", "ic ivau", "dsb ish"),
        ),
        text=PATCHING,
    ),
    environment=environment,
    boot=BOOT,
    debug=DEBUG,
    finalise=(
        Pass("extable", partial(extable.sort, forms=_EXTABLE)),
        Pass(
            "same_size_alternatives",
            partial(
                same_size.apply,
                section=".altinstructions",
                entry=_ALTERNATIVE,
                wanted=wanted_alternatives,
                moved=moved,
                callback=lambda entries: entries["capability"] & _CALLBACK != 0,
                callbacks={
                    "alt_cb_patch_nops": lambda length: _NOP.to_bytes(4, "little") * (length // 4)
                },
            ),
        ),
        Pass(
            "ftrace_trampolines",
            partial(
                trampolines.fill,
                sections=_TRAMPOLINES,
                tracers=("ftrace_caller", "ftrace_regs_caller"),
                encode=plt_entry,
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
