# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64: everything lives in the top 2 GiB, and nothing else ever reaches.

Calls, jumps and RIP-relative operands hold a signed 32-bit displacement. The kernel is
built with -mcmodel=kernel: code also holds *absolute* addresses as sign-extended 32-bit
immediates (R_X86_64_32S), so module data is bound to 0xffffffff80000000 and above as
tightly as module text. There are no veneers: the window behind the kernel image is
within reach of everything, and what lies outside it cannot be used at all. That is why
text from the vmalloc range, four orders of magnitude away, is "completely broken".

P is the address of the field, not of the next instruction: a call carries the addend
-4, an instruction with an immediate behind the displacement -5 or -8.

The kernel's loader (arch/x86/kernel/module.c) does not range-check PC32 and PLT32; it
does insist that a place is zero before it is relocated.

Sources: System V ABI AMD64 supplement, 4.4; Documentation/arch/x86/x86_64/mm.rst;
arch/x86/mm/init.c (execmem_arch_setup); arch/x86/kernel/alternative.c (text_poke,
text_poke_bp_batch, text_poke_loc_init).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from allocator.types import (
    ADDRESS_MASK,
    GIB,
    MIB,
    PAGE_SIZE,
    AddressMap,
    ExecmemRange,
    ExecmemType,
    Interval,
    TextPoke,
    TlbRules,
    align_up,
)
from archs import marks, traps
from archs.arch import Arch
from archs.boot_x86_64 import NUMBERS, environment
from archs.debug_x86_64 import DEBUG
from archs.extable import ENTRY, HANDLED
from archs.insn_x86_64 import NOPS, REGISTERS, decode, holds
from archs.layouts import Table
from archs.levels.link import Assembly, Branch, Fill, Link, Probe, rows
from archs.levels.load import Load
from archs.levels.patch import Emulator, LivePatch, Patch
from archs.levels.run import Anchor, CallingConvention, Emulation, Exceptions, Run
from archs.marks import Mark
from archs.op import Got, Op
from archs.operands_x86_64 import OPERANDS
from archs.passes import extable, ftrace, jump_labels, orc, static_calls, trace_events
from archs.passes.ftrace import PatchableEntry, exactly, same
from archs.passes.subject import Pass
from archs.passes.x86_64 import (
    alternatives,
    callthunks,
    ibt_seal,
    ideal_nops,
    paravirt,
    retpolines,
    returns,
    smp_locks,
)
from archs.passes.x86_64.static_calls import write as write_calls
from archs.registers_x86_64 import REGISTERS as SHOWN
from archs.reloc import Reach, Reloc, data, signed, unsigned
from archs.start_x86_64 import BOOT
from archs.system_x86_64 import SYSTEM
from archs.text import Guest
from archs.text_x86_64 import PATCHING
from archs.versions import MODELLED, Since, Version

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
MODULES_END = 0xFFFF_FFFF_FF00_0000
KERNEL_TEXT = 0xFFFF_FFFF_8100_0000
IMAGE_SIZE = 0x2C3_0000  # [_text, _end) of Debian's 6.12.107 kernel
KERNEL_ALIGN = 2 * MIB


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
    """Return the address map of one boot (arch/x86/mm/init.c, asm/pgtable_64_types.h).

    Debian builds with RANDOMIZE_BASE: the text map is 1 GiB, whether or not a boot uses
    KASLR. With KASLR the image moves in steps of 2 MiB and the module window starts
    1 to 1024 pages late (get_module_load_offset).
    """
    del text_size, page, config, version  # no range depends on them
    size = IMAGE_SIZE if image_size is None else align_up(image_size, PAGE_SIZE)
    text, modules = KERNEL_TEXT if start is None else start, START_KERNEL_MAP + GIB
    if kaslr is not None:
        chance = random.Random(kaslr)  # noqa: S311 - a boot that can be repeated, no secret
        slots = (GIB - 16 * MIB - align_up(size, KERNEL_ALIGN)) // KERNEL_ALIGN
        text += chance.randrange(slots + 1) * KERNEL_ALIGN
        modules += chance.randint(1, 1024) * PAGE_SIZE
    window = ExecmemRange(range=Interval(modules, MODULES_END), alignment=PAGE_SIZE)
    return AddressMap(
        image=Interval(text, text + size),
        direct_map=0xFFFF_8880_0000_0000,
        vmalloc=Interval(0xFFFF_C900_0000_0000, 0xFFFF_E900_0000_0000),
        ranges={ExecmemType.MODULE_TEXT: window},
        kaslr=kaslr,
        vmemmap=0xFFFF_EA00_0000_0000,
    )


def _va_list(address: int, load: Callable[[int], int]) -> Iterator[int]:
    """Yield the integer slots of a va_list (psABI 3.5.7): saved registers, then the stack."""
    offset = load(address) & 0xFFFF_FFFF
    overflow, saved = load(address + 8), load(address + 16)
    while offset < 48:
        yield load(saved + offset)
        offset += 8
    while True:
        yield load(overflow)
        overflow += 8


_THUNKED = "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()
_JUMP_TO = {
    name: bytes((0xFF, 0xE0 | number)) if number < 8 else bytes((0x41, 0xFF, 0xE0 | number & 7))
    for number, name in enumerate(REGISTERS)
}
_RET = b"\xc3"


def _user_access() -> tuple[dict[str, bytes], dict[str, tuple[int, int]]]:
    """Return the functions of arch/x86/lib that access user memory, and their fixups.

    An address of the kernel's half becomes -1, where nothing is.
    """
    # mov %rax,%rdx; sar $63,%rdx; or %rdx,%rax / the access / xor %eax,%eax; ret /
    # mov $-14,%rax; xor %edx,%edx; ret
    get = ("4889c248c1fa3f4809d0", "31c0c3", "48c7c0f2ffffff31d2c3")
    # mov %rcx,%rbx; sar $63,%rbx; or %rbx,%rcx / the access / xor %ecx,%ecx; ret /
    # mov $-14,%ecx; ret
    put = ("4889cb48c1fb3f4809d9", "31c9c3", "b9f2ffffffc3")
    string = ("", "c3", "")  # what is left stays in %rcx
    code, fixups = {}, {}
    for names, access, (before, after, failed) in (
        ("__get_user_1 __get_user_nocheck_1", "0fb610", get),  # movzbl (%rax),%edx
        ("__get_user_2 __get_user_nocheck_2", "0fb710", get),
        ("__get_user_4 __get_user_nocheck_4", "8b10", get),
        ("__get_user_8 __get_user_nocheck_8", "488b10", get),
        ("__put_user_1 __put_user_nocheck_1", "8801", put),  # mov %al,(%rcx)
        ("__put_user_2 __put_user_nocheck_2", "668901", put),
        ("__put_user_4 __put_user_nocheck_4", "8901", put),
        ("__put_user_8 __put_user_nocheck_8", "488901", put),
        ("rep_stos_alternative", "f3aa", string),
        ("rep_movs_alternative", "f3a4", string),
    ):
        parts = [bytes.fromhex(part) for part in (before, access, after, failed)]
        resume = parts[:3] if failed else parts[:2]
        for name in names.split():
            code[name] = b"".join(parts)
            fixups[name] = len(parts[0]), sum(map(len, resume))
    return code, fixups


_USER_CODE, _USER_FIXUPS = _user_access()
# Types of arch/x86/include/asm/extable_fixup_types.h: DEFAULT, FAULT, UACCESS; IMM_REG.
_EX_PLAIN, _EX_IMM_REG = (1, 2, 3), 17


def _length(code: bytes) -> int | None:
    found = decode(code)
    return None if found is None else found.length


def _fixup(word: int) -> tuple[tuple[str, int], ...] | None:
    """Return what an exception table entry sets: type, register, flags and immediate."""
    kind, register, flags, immediate = word & 0xFF, word >> 8 & 15, word >> 12 & 15, word >> 16
    if kind not in (*_EX_PLAIN, _EX_IMM_REG):
        return None
    cleared = tuple((name, 0) for bit, name in ((1, "rax"), (2, "rdx")) if flags & bit)
    if kind in _EX_PLAIN:
        return cleared
    value = (immediate ^ 0x8000) - 0x8000
    return (REGISTERS[register], value & ((1 << 64) - 1)), *cleared


_DYNAMIC = "written by dynamic linkers, never in a relocatable object"
_TLS = "the kernel has no thread-local storage"
_VTABLE = "a note of the C++ compiler for garbage collection"


def _got(number: int, name: str, op: Op, size: int, got: Got) -> Reloc:
    """Return a row that needs a GOT; the kernel has none, an object may bring its own."""
    reach = signed(32) if size == 4 else None
    return Reloc(number, name, op, data(size), reach, got=got, kernel=False)


RELOCATIONS = rows(
    Reloc(0, "R_X86_64_NONE", Op.NONE),
    Reloc(1, "R_X86_64_64", Op.ABS, data(8)),
    Reloc(2, "R_X86_64_PC32", Op.PC, data(4), signed(32), kernel_reach=None),
    _got(3, "R_X86_64_GOT32", Op.ABS, 4, Got.OFFSET),
    Reloc(4, "R_X86_64_PLT32", Op.PC, data(4), signed(32), kernel_reach=None),
    Reloc(5, "R_X86_64_COPY", Op.NONE, unsupported=_DYNAMIC),
    Reloc(6, "R_X86_64_GLOB_DAT", Op.NONE, unsupported=_DYNAMIC),
    Reloc(7, "R_X86_64_JUMP_SLOT", Op.NONE, unsupported=_DYNAMIC),
    Reloc(8, "R_X86_64_RELATIVE", Op.NONE, unsupported=_DYNAMIC),
    _got(9, "R_X86_64_GOTPCREL", Op.PC, 4, Got.SLOT),
    Reloc(10, "R_X86_64_32", Op.ABS, data(4), unsigned(32)),
    Reloc(11, "R_X86_64_32S", Op.ABS, data(4), signed(32)),
    Reloc(12, "R_X86_64_16", Op.ABS, data(2), Reach(-(1 << 15), 1 << 16), kernel=False),
    Reloc(13, "R_X86_64_PC16", Op.PC, data(2), signed(16), kernel=False),
    Reloc(14, "R_X86_64_8", Op.ABS, data(1), Reach(-(1 << 7), 1 << 8), kernel=False),
    Reloc(15, "R_X86_64_PC8", Op.PC, data(1), signed(8), kernel=False),
    Reloc(16, "R_X86_64_DTPMOD64", Op.NONE, unsupported=_TLS),
    Reloc(17, "R_X86_64_DTPOFF64", Op.NONE, unsupported=_TLS),
    Reloc(18, "R_X86_64_TPOFF64", Op.NONE, unsupported=_TLS),
    Reloc(19, "R_X86_64_TLSGD", Op.NONE, unsupported=_TLS),
    Reloc(20, "R_X86_64_TLSLD", Op.NONE, unsupported=_TLS),
    Reloc(21, "R_X86_64_DTPOFF32", Op.NONE, unsupported=_TLS),
    Reloc(22, "R_X86_64_GOTTPOFF", Op.NONE, unsupported=_TLS),
    Reloc(23, "R_X86_64_TPOFF32", Op.NONE, unsupported=_TLS),
    Reloc(24, "R_X86_64_PC64", Op.PC, data(8)),
    _got(25, "R_X86_64_GOTOFF64", Op.ABS, 8, Got.RELATIVE),
    _got(26, "R_X86_64_GOTPC32", Op.PC, 4, Got.BASE),
    _got(27, "R_X86_64_GOT64", Op.ABS, 8, Got.OFFSET),
    _got(28, "R_X86_64_GOTPCREL64", Op.PC, 8, Got.SLOT),
    _got(29, "R_X86_64_GOTPC64", Op.PC, 8, Got.BASE),
    _got(30, "R_X86_64_GOTPLT64", Op.ABS, 8, Got.OFFSET),
    _got(31, "R_X86_64_PLTOFF64", Op.ABS, 8, Got.RELATIVE),
    Reloc(32, "R_X86_64_SIZE32", Op.SIZE, data(4), unsigned(32), kernel=False),
    Reloc(33, "R_X86_64_SIZE64", Op.SIZE, data(8), kernel=False),
    Reloc(34, "R_X86_64_GOTPC32_TLSDESC", Op.NONE, unsupported=_TLS),
    Reloc(35, "R_X86_64_TLSDESC_CALL", Op.NONE, unsupported=_TLS),
    Reloc(36, "R_X86_64_TLSDESC", Op.NONE, unsupported=_TLS),
    Reloc(37, "R_X86_64_IRELATIVE", Op.NONE, unsupported=_DYNAMIC),
    Reloc(38, "R_X86_64_RELATIVE64", Op.NONE, unsupported=_DYNAMIC),
    _got(41, "R_X86_64_GOTPCRELX", Op.PC, 4, Got.SLOT),
    _got(42, "R_X86_64_REX_GOTPCRELX", Op.PC, 4, Got.SLOT),
    Reloc(250, "R_X86_64_GNU_VTINHERIT", Op.NONE, unsupported=_VTABLE),
    Reloc(251, "R_X86_64_GNU_VTENTRY", Op.NONE, unsupported=_VTABLE),
)

_EXTABLE = (ENTRY, HANDLED)
_ENTRIES = (
    PatchableEntry(
        code=((b"\xe8\0\0\0\0", b"\xff\0\0\0\0"),), calls="__fentry__", idle=same(0, NOPS[5])
    ),
    PatchableEntry(code=exactly(NOPS[5]), idle=same(0, NOPS[5])),
)

_RETHUNK = ("CONFIG_MITIGATION_RETHUNK", "CONFIG_RETHUNK")  # renamed in 6.9, as other mitigations
_RETPOLINE = ("CONFIG_MITIGATION_RETPOLINE", "CONFIG_RETPOLINE")
_MARKS = (
    Mark(
        fact="returns",
        value="through __x86_return_thunk",
        shown=marks.section(".return_sites"),
        options=_RETHUNK,
    ),
    Mark(
        fact="returns",
        value="plain",
        shown=marks.ends(b"\xc3", b"\xcc"),
        instructions=True,
        without=_RETHUNK,
    ),
    Mark(
        fact="indirect branches",
        value="through retpolines",
        shown=marks.tag("retpoline", "Y"),
        options=_RETPOLINE,
    ),
    Mark(
        fact="alternatives",
        value="entries of 14 bytes",
        shown=marks.entries_of(alternatives.SECTION, 14, (0, 4)),
        since=(6, 3),
    ),
    Mark(
        fact="alternatives",
        value="entries of 12 bytes",
        shown=marks.entries_of(alternatives.SECTION, 12, (0, 4)),
        until=(6, 3),
    ),
    Mark(
        fact="landing pads",
        value="ENDBR64",
        shown=marks.begins(bytes.fromhex("f30f1efa")),
        instructions=True,
        options=("CONFIG_X86_KERNEL_IBT",),
        since=(5, 18),
    ),
    Mark(
        fact="call depth",
        value="sites of calls are listed",
        shown=marks.section(".call_sites"),
        options=("CONFIG_CALL_THUNKS",),
        since=(6, 2),
    ),
    Mark(
        fact="stack guard",
        value="__ref_stack_chk_guard",
        shown=marks.needs("__ref_stack_chk_guard"),
        options=marks.PROTECTED,
        since=(6, 15),
    ),
    Mark(
        fact="stack guard",
        value="%gs:40",
        shown=marks.needs("__stack_chk_fail", "__ref_stack_chk_guard"),
        options=marks.PROTECTED,
        until=(6, 15),
    ),
    marks.KCFI,
)

_ZERO = bytes.fromhex("31c0")  # xor %eax, %eax: so that JE is taken

_INT3 = b"\xcc"
_NOPS = (bytes.fromhex("6690"), bytes.fromhex("0f1f440000"))


def jump_to(place: int, target: int) -> bytes | None:
    """Return JMP rel32, or None where it is too far."""
    distance = target - place - 5
    return b"\xe9" + struct.pack("<i", distance) if distance in signed(32) else None


def emulator(new: bytes) -> Emulator | None:
    """Return what emulates the instruction that INT3 stands for, as text_poke_loc_init() knows it.

    CALL, JMP, Jcc, RET and the NOPs of two and five bytes; INT3 may fill what follows.
    """
    opcode = new[:1]
    size = {b"\xe8": 5, b"\xe9": 5, b"\xeb": 2, b"\xc3": 1}.get(opcode, 0)
    condition = None
    if len(new) > 1 and opcode == b"\x0f" and new[1] & 0xF0 == 0x80:
        size, condition = 6, new[1] & 15
    elif opcode and new[0] & 0xF0 == 0x70:
        size, condition = 2, new[0] & 15
    nop = next((nop for nop in _NOPS if new.startswith(nop)), None)
    if nop is not None:
        size = len(nop)
    if not size or len(new) < size or new[size:].strip(_INT3):
        return None
    field = b"" if nop is not None else new[size - 4 : size] if size > 4 else new[1:size]
    displacement = int.from_bytes(field, "little", signed=True)

    def emulate(address: int, guest: Guest) -> None:
        following, stack = address + size, guest.read("rsp")
        target = (following + displacement) & ADDRESS_MASK
        if opcode == b"\xe8":
            guest.write("rsp", stack - 8)
            guest.store(stack - 8, following)
        elif opcode == b"\xc3":
            target = guest.load(stack)
            guest.write("rsp", stack + 8)
        elif condition is not None and not holds(condition, guest.read("eflags")):
            target = following
        guest.write("rip", target)

    return emulate


X86_64 = Arch(
    name="x86_64",
    aliases=("amd64", "x86-64", "x64"),
    title="x86-64",
    machine=62,
    link=Link(
        relocations=RELOCATIONS,
        operands=OPERANDS,
        clean_target=True,
        assembly=Assembly(
            triple="x86_64-linux-gnu",
            hosts=("x86_64", "AMD64"),
            lines={
                "function": ("push %rbp",),
                "return": ("pop %rbp", "ret"),
                "value": ("mov ${0}, %rax",),
                "call": ("call {0}",),
                "branch": ("pop %rbp", "jmp {0}"),
                "address-of": ("lea {0}(%rip), %rax",),
                "load": ("mov (%rax), %rax",),
                "word": (".quad {0}",),
            },
            flags=("-m64", "-mcmodel=kernel", "-mno-red-zone", "-mno-sse", "-fcf-protection=none"),
        ),
        branches=(
            Branch(
                mnemonic="call rel32",
                reach=Reach(-(1 << 31) + 5, (1 << 31) + 5),
                what="call",
                probe=Probe(code=bytes.fromhex("e800000000"), fills=(Fill(4, 1, -4),)),
            ),
            Branch(
                mnemonic="jmp rel32",
                reach=Reach(-(1 << 31) + 5, (1 << 31) + 5),
                what="jump",
                probe=Probe(code=bytes.fromhex("e900000000"), fills=(Fill(4, 1, -4),)),
            ),
            Branch(
                mnemonic="jcc rel32",
                reach=Reach(-(1 << 31) + 6, (1 << 31) + 6),
                what="branch",
                probe=Probe(
                    code=bytes.fromhex("0f8400000000"), fills=(Fill(4, 2, -4),), setup=_ZERO
                ),
            ),
            Branch(
                mnemonic="jcc rel8",
                reach=Reach(-128 + 2, 128 + 2),
                what="branch",
                probe=Probe(code=bytes.fromhex("7400"), fills=(Fill(15, 1, -1),), setup=_ZERO),
            ),
            Branch(
                mnemonic="lea disp32(%rip)",
                reach=Reach(-(1 << 31) + 7, (1 << 31) + 7),
                what="data",
                probe=Probe(
                    code=bytes.fromhex("488d0500000000"), fills=(Fill(2, 3, -4),), result="rax"
                ),
            ),
        ),
        code_model="kernel: text and data in the top 2 GiB",
        code_model_option="-mcmodel=kernel",
        code_model_absolute=(11,),  # R_X86_64_32S
        marks=_MARKS,
    ),
    load=Load(
        prel32=True,
        extable=_EXTABLE,
        address_map=address_map,
        image_size=IMAGE_SIZE,
        trap=b"\xcc",
        # tlb_single_page_flush_ceiling; INVLPGB of newer AMD CPUs is not counted on.
        tlb=TlbRules(
            name="INVLPG on every CPU, by interrupts (flush_tlb_kernel_range)",
            interrupts=True,
            ceiling=33,
        ),
        vermagic="6.12.107+deb13-amd64 SMP preempt mod_unload modversions ",
        livepatching=True,
        function_alignment=16,
        layouts=Table.of("x86_64"),
        plt=None,
        got_section=".got",
        errata={},
        # CONFIG_ARCH_HAS_EXECMEM_ROX, for good after 6.13's first attempt was switched off.
        execmem=Since(((0, 0), "vmalloc"), ((6, 15), "rox_cache")),
    ),
    run=Run(
        registers=SHOWN,
        calling=CallingConvention(
            arguments=("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
            result="rax",
            stack_pointer="rsp",
            program_counter="rip",
            link=None,
            sign_extend_32=False,
            va_list=_va_list,
        ),
        emulation=Emulation(
            prefix="X86",
            mode="UC_MODE_64",
            model="UC_CPU_X86_EPYC_ROME",
            # FPU TSC CX8 CMOV MMX FXSR SSE SSE2; SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 MOVBE
            # POPCNT AES: what QEMU 5.0 executes of it (no AVX)
            features=frozenset((0, 4, 8, 15, 23, 24, 25, 26))
            | {4 * 32 + bit for bit in (0, 1, 9, 13, 19, 20, 22, 23, 25)},
            registers="UC_X86_REG_",
            capstone_prefix="CS_ARCH_X86",
            capstone_mode=("CS_MODE_64",),
            page_size_varies=False,
            anchors={"gs_base": Anchor.PERCPU},
            constants={
                # As a booted kernel has them: PGE MCE, OSFXSR OSXMMEXCPT and PAE; PG AM WP NE ET MP PE; the selectors of kernel code, stack and task.
                "cr4": 0x6E0,
                "cr0": 0x8005_0033,
                "cs": 0x10,
                "ss": 0x18,
            },
            canary=(Anchor.PERCPU, "fixed_percpu_data"),
            current_variables=("pcpu_hot", "const_pcpu_hot"),
            guard_variables=("__ref_stack_chk_guard",),  # since Linux 6.15
            percpu_from_zero=True,
            trap=traps.x86_64,
            code={
                "__fentry__": _RET,
                "__x86_return_thunk": _RET,
                **{f"__x86_indirect_thunk_{name}": _JUMP_TO[name] for name in _THUNKED},
                **_USER_CODE,
            },
            fixups=_USER_FIXUPS,
            fixup=_fixup,
            ret=_RET,
            longest=lambda _code: 15,
            # ModRM and what it says stands behind them (SDM, volume 2, "UD").
            shortened=dict.fromkeys(("ud0", "ud1"), _length),
            copy=bytes.fromhex("4889d1f3a4c3"),  # mov %rdx,%rcx; rep movsb; ret
            # INT3 has one byte, INT n two.
            exceptions=Exceptions(beyond={3: 1, **dict.fromkeys(range(32, 256), 2)}),
            msrs={0xC000_0080: 0xD01},  # EFER: NXE LMA LME SCE
            unsaved_msrs=(
                *range(0x200, 0x210),  # MTRRs: eight of variable ranges, then the fixed ones
                *(0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF),
                0x17B,  # MCG_CTL, and ten banks of machine checks
                *range(0x400, 0x428),
            ),
            views=("eflags", 1 << 18),  # AC, where SMAP is on
            system=SYSTEM,
            compares={"cmp": "01", "sub": "01"},
            capabilities=frozenset(
                (
                    "always fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush "
                    "mmx fxsr sse sse2 syscall nx mmxext pdpe1gb rdtscp lm pni pclmulqdq monitor ssse3 "
                    "cx16 sse4_1 sse4_2 movbe popcnt aes xsave rdrand hypervisor lahf_lm svm cr8_legacy "
                    "abm sse4a fsgsbase bmi1 smep bmi2 adx smap clflushopt clwb xsaveopt xgetbv1 npt "
                    "lfence_rdtsc"
                ).split()
            ),
        ),
        gregset=(
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx"),
            *("rdx", "rsi", "rdi", "", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base"),
            *("ds", "es", "fs", "gs"),
        ),
    ),
    patch=Patch(
        text_poke=TextPoke(
            name="text_poke",
            window=0x0000_7FFF_F000_0000,
            pages=2,
            granule=1,
            private=True,
            sync="a serialising instruction on every CPU (text_poke_sync)",
        ),
        live=LivePatch(
            name="text_poke_bp",
            concurrent=lambda _old, new: len(new) == 1,
            rule="only a single byte may be written under them",
            jump=jump_to,
            breakpoint=_INT3,
            emulator=emulator,
            emulates="CALL, JMP, Jcc, RET and the NOPs of 2 and 5 bytes",
        ),
        text=PATCHING,
    ),
    environment=environment,
    boot=BOOT,
    debug=DEBUG,
    finalise=(
        Pass("extable", partial(extable.sort, forms=_EXTABLE)),
        Pass("paravirt", paravirt.apply),
        Pass("retpolines", retpolines.apply),
        Pass("returns", returns.apply),
        Pass("early_callthunks", partial(callthunks.apply, early=True)),
        Pass("alternatives", partial(alternatives.apply, features=NUMBERS)),
        Pass("callthunks", partial(callthunks.apply, early=False)),
        Pass("ibt_seal", ibt_seal.seal),
        Pass("smp_locks", smp_locks.drop),
        Pass("orc", orc.sort),
        Pass("ftrace", partial(ftrace.prepare, section="__mcount_loc", entries=_ENTRIES)),
        Pass("jump_labels", partial(jump_labels.attach, forms=PATCHING.jump_labels)),
        Pass("static_calls", partial(static_calls.attach, write=write_calls)),
        Pass("ideal_nops", ideal_nops.choose),
        Pass("trace_events", trace_events.register),
        Pass("running_kernel", trace_events.running),
    ),
)
