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
arch/x86/mm/init.c (execmem_arch_setup); arch/x86/kernel/alternative.c (text_poke).
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
from archs.arch import (
    Anchor,
    Arch,
    Branch,
    CallingConvention,
    Emulation,
    Exceptions,
    Fill,
    Finalisation,
    Ftrace,
    Probe,
    rows,
)
from archs.reloc import Got, Op, Reach, Reloc, data, signed, unsigned

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
MODULES_END = 0xFFFF_FFFF_FF00_0000
KERNEL_TEXT = 0xFFFF_FFFF_8100_0000
IMAGE_SIZE = 0x2C3_0000  # [_text, _end) of Debian's 6.12.107 kernel
KERNEL_ALIGN = 2 * MIB


def address_map(kaslr: int | None = None, image_size: int | None = None) -> AddressMap:
    """Return the address map of one boot (arch/x86/mm/init.c, asm/pgtable_64_types.h).

    Debian builds with RANDOMIZE_BASE: the text map is 1 GiB, whether or not a boot uses
    KASLR. With KASLR the image moves in steps of 2 MiB and the module window starts
    1 to 1024 pages late (get_module_load_offset).
    """
    size = IMAGE_SIZE if image_size is None else align_up(image_size, PAGE_SIZE)
    text, modules = KERNEL_TEXT, START_KERNEL_MAP + GIB
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


_REGISTERS = "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()
_JUMP_TO = {
    name: bytes((0xFF, 0xE0 | number)) if number < 8 else bytes((0x41, 0xFF, 0xE0 | number & 7))
    for number, name in enumerate(
        "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
    )
}
_RET = b"\xc3"

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

# The NOPs that the kernel prefers, by length (asm/nops.h; Intel SDM vol. 2, NOP, table 4-12).
NOPS = tuple(
    bytes.fromhex(code)
    for code in (
        "",
        "90",
        "6690",
        "0f1f00",
        "0f1f4000",
        "0f1f440000",
        "660f1f440000",
        "0f1f8000000000",
        "0f1f840000000000",
        "660f1f840000000000",
        "66660f1f840000000000",
        "6666660f1f840000000000",
    )
)

_ZERO = bytes.fromhex("31c0")  # xor %eax, %eax: so that JE is taken

X86_64 = Arch(
    name="x86_64",
    aliases=("amd64", "x86-64", "x64"),
    title="x86-64",
    machine=62,
    relocations=RELOCATIONS,
    clean_target=True,
    prel32=True,
    address_map=address_map,
    image_size=IMAGE_SIZE,
    trap=b"\xcc",
    function_alignment=16,
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
            probe=Probe(code=bytes.fromhex("0f8400000000"), fills=(Fill(4, 2, -4),), setup=_ZERO),
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
    plt=None,
    got_section=".got",
    errata={},
    text_poke=TextPoke(
        name="text_poke",
        window=0x0000_7FFF_F000_0000,
        pages=2,
        granule=1,
        private=True,
        sync="a serialising instruction on every CPU (text_poke_sync)",
    ),
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
        registers="UC_X86_REG_",
        capstone_prefix="CS_ARCH_X86",
        capstone_mode=("CS_MODE_64",),
        page_size_varies=False,
        anchors={"gs_base": Anchor.PERCPU},
        constants={"cr4": 0x620},  # OSFXSR, OSXMMEXCPT and PAE, as a booted kernel has them
        canary=(Anchor.PERCPU, 40),
        percpu_from_zero=True,
        code={
            "__fentry__": _RET,
            "__x86_return_thunk": _RET,
            **{f"__x86_indirect_thunk_{name}": _JUMP_TO[name] for name in _REGISTERS},
        },
        ret=_RET,
        exceptions=Exceptions(beyond={3: 1}),
    ),
    finalisation=Finalisation(
        order=("extable", "ftrace", "trace_events", "running_kernel"),
        ftrace=Ftrace(section="__mcount_loc", before=0, idle=lambda _: NOPS[5]),
    ),
)
