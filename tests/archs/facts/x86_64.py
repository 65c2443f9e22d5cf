# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts about x86-64.

Rules: System V ABI AMD64 supplement, tables 4.9 and 4.10. Reach: Intel SDM volume 2, CALL, JMP
and Jcc, and volume 1, 3.7.5.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from archs.boot_x86_64 import FEATURES
from tests.archs.facts import TYPE, Disassembled, Facts, Link, Load, Patch, Reaches, Run, Through
from tests.support.formats import S32, U32, Rule, absolute, either, plain, relative
from tests.support.operands import Case, last, rip

_USER_CS, _USER_SS = 0x33, 0x2B


def wrmsr(number: int, value: int) -> str:
    """Return code that writes a model specific register."""
    high, low = value >> 32, value & 0xFFFF_FFFF
    return f"mov ${number:#x}, %ecx; mov ${low:#x}, %eax; mov ${high:#x}, %edx; wrmsr"


def _cr(register: str, change: str) -> str:
    return f"mov %{register}, %rax; {change}; mov %rax, %{register}"


def _breakpoint(control: int) -> str:
    # At the start of the next module's init, which is where this one's is.
    return f"lea start(%rip), %rax; mov %rax, %dr0; mov ${control:#x}, %eax; mov %rax, %dr7"


def _registers() -> Iterator[tuple[int, bytes, bytes]]:
    read = "0f3248c1e2204809d0"  # rdmsr; shl $32,%rdx; or %rdx,%rax
    ranges = ((0, 0x2000), (0x4000_0000, 0x200), (0x4B56_4D00, 0x10), (0xC000_0000, 0x400))
    for start, count in (*ranges, (0xC001_0000, 0x400), (0xFFFF_FF00, 0x100)):
        for number in range(start, start + count):
            index = "b9" + struct.pack("<I", number).hex()  # mov $number,%ecx
            # mov %edi,%eax; mov %edi,%edx; wrmsr
            yield (
                number,
                bytes.fromhex(index + read + "c3"),
                bytes.fromhex(index + "89f889fa0f30" + read + "c3"),
            )


_LINK = Link(
    disassembled=Disassembled(
        options=("-triple=x86_64",),
        mark="41bf00000000",
        shift=16,
        pattern=r"movl\t\$(\d+), %r15d",
        branches="call 1f\n1: jne 1b\njmp 1b",
        leads=(5, 5, 5),
    ),
    triple=("x86_64-linux-gnu", "x86_64"),
    call=4,
    abs64=1,
    prel32=2,
    call_code=(b"\xe8\0\0\0\0", 1, -4),
    ret=b"\xc3",
    spin=b"\xeb\xfe",
    keep=(b"", b""),
    return_0=bytes.fromhex("31c0c3"),
    vermagic="6.12.0-samples SMP preempt mod_unload ",
    init_at=312,
    exit_at=1200,
    this_module_size=1280,
    directives="",
    base=0xFFFF_FFFF_C020_0000,
    kernel=0xFFFF_FFFF_8112_3450,
    window=(0xFFFF_FFFF_8000_0000, 0x7E00_0000),
    rules={
        1: Rule(absolute, 8, plain(8)),
        2: Rule(relative, 4, plain(4), *S32),
        4: Rule(relative, 4, plain(4), *S32),
        10: Rule(absolute, 4, plain(4), *U32),
        11: Rule(absolute, 4, plain(4), *S32),
        12: Rule(absolute, 2, plain(2), *either(16)),
        13: Rule(relative, 2, plain(2), -0x8000, 0x7FFF),
        14: Rule(absolute, 1, plain(1), *either(8)),
        15: Rule(relative, 1, plain(1), -0x80, 0x7F),
        24: Rule(relative, 8, plain(8)),
        # What stands for S where a GOT is used: see `got`.
        3: Rule(absolute, 4, plain(4), *S32),
        9: Rule(relative, 4, plain(4), *S32),
        25: Rule(absolute, 8, plain(8)),
        26: Rule(relative, 4, plain(4), *S32),
        27: Rule(absolute, 8, plain(8)),
        28: Rule(relative, 8, plain(8)),
        29: Rule(relative, 8, plain(8)),
        30: Rule(absolute, 8, plain(8)),
        31: Rule(absolute, 8, plain(8)),
        41: Rule(relative, 4, plain(4), *S32),
        42: Rule(relative, 4, plain(4), *S32),
        # Z stands for S.
        32: Rule(absolute, 4, plain(4), *U32),
        33: Rule(absolute, 8, plain(8)),
    },
    nothing={0},
    sized={32, 33},  # Z stands for S
    got={
        **dict.fromkeys((3, 27, 30), lambda s, a, got, g: g(s) - got + a),
        **dict.fromkeys((9, 28, 41, 42), lambda s, a, _got, g: g(s) + a),
        **dict.fromkeys((25, 31), lambda s, a, got, _g: s + a - got),
        **dict.fromkeys((26, 29), lambda _s, a, got, _g: got + a),
    },
    source="""
        .text
function:
        call    far
        jmp     far + 3
        jne     far
        call    function
        lea     far(%rip), %rax
        cmpb    $7, local(%rip)
        movl    $0x12345678, local + 16(%rip)
        mov     $far, %rax
        mov     far(, %rbx, 8), %rcx
        movabs  $far, %rdx
        mov     $small, %eax
        .byte   0xeb
        .reloc  ., R_X86_64_PC8, near - 1
        .byte   0
        .section .text.unlikely, "ax"
        call    function
        jmp     function + 5
        .data
local:  .quad   function, far + 8, local - 8
        .long   far - .
        .quad   far - .
        .long   small
        .short  tiny
        .byte   tiny
        .reloc  ., R_X86_64_PC16, near
        .short  0
        .globl  object
        .type   object, @object
        .size   object, 24
object: .long   object@SIZE, object@SIZE + 5
        .quad   object@SIZE - 25
""",
    got_source="""
        .text
function:
        mov     far@GOTPCREL(%rip), %rax
        call    *near@GOTPCREL(%rip)
        cmpl    $7, far@GOTPCREL(%rip)
        .reloc  ., R_X86_64_GOTPCREL, far - 4
        .long   0
        movabs  $far@GOT, %rax
        movabs  $far@GOTOFF, %rcx
        movabs  $far@PLTOFF, %rcx
        .data
        .quad   far@GOTOFF, near@GOTOFF
        .reloc  ., R_X86_64_GOT32, far
        .long   0
        .reloc  ., R_X86_64_GOTPC32, _GLOBAL_OFFSET_TABLE_
        .long   0
        .reloc  ., R_X86_64_GOTPCREL64, near + 3
        .quad   0
        .reloc  ., R_X86_64_GOTPC64, _GLOBAL_OFFSET_TABLE_
        .quad   0
        .reloc  ., R_X86_64_GOTPLT64, near
        .quad   0
""",
    beyond_gas=(),
    never_in_lld={28, 30},
    beyond_pyelftools={32, 33, 38, 41},
    wrong_in_pyelftools=set[int](),
    newer_than_readelf={39: "R_X86_64_PC32_BND", 40: "R_X86_64_PLT32_BND"},
    got_rows=(9, 42),
    absolute_rows=(10,),
    narrow_row=10,
    code_model_option="-mcmodel=kernel",
    tls_rows=(23, 19),
    abs64_name="R_X86_64_64",
    shown={
        ("hello", ".init.text"): {"R_X86_64_32S", "R_X86_64_PC32", "R_X86_64_PLT32"},
        ("hello", "__param"): {"R_X86_64_64"},
        ("mathlib", "__ksymtab"): {"R_X86_64_PC32"},
        ("mathlib", "__ksymtab_gpl"): {"R_X86_64_PC32"},
        ("mathuser", ".text"): {"R_X86_64_PC32", "R_X86_64_PLT32"},
        ("tables", ".text"): {"R_X86_64_32S"},
        ("tables", ".rodata"): {"R_X86_64_64", "R_X86_64_PC32"},
        ("sorting", ".data"): {"R_X86_64_64"},
        ("logbook", ".text"): {"R_X86_64_PLT32", "R_X86_64_32S"},
        ("branches", ".data"): {"R_X86_64_64"},
        ("branches", ".text.unlikely"): {"R_X86_64_PC32"},
        ("branches", ".init.text"): {"R_X86_64_PC32", "R_X86_64_PLT32"},
        ("branches", ".text"): {"R_X86_64_32S", "R_X86_64_64", "R_X86_64_PC32"},
    },
    prefix="R_X86_64_",
    distance=(24,),
    export_word=4,
    clean_target=True,  # arch/x86/kernel/module.c alone checks
    placeholders=(),
    plt_beyond=False,
    pyelftools="ENUM_RELOC_TYPE_x64",
    branches={
        "call rel32": Reaches(4, 5, -2147483648, 2147483647, "call far"),
        "jmp rel32": Reaches(4, 5, -2147483648, 2147483647, "jmp far"),
        "jcc rel32": Reaches(4, 6, -2147483648, 2147483647, "xor %eax, %eax; je far"),
        "jcc rel8": Reaches(
            15, 2, -128, 127, "xor %eax, %eax; .byte 0x74; .reloc ., R_X86_64_PC8, far - 1; .byte 0"
        ),
        "lea disp32(%rip)": Reaches(2, 7, -2147483648, 2147483647, "lea far(%rip), %rax"),
    },
    got_loads=[
        Through("488b0500000000", [(3, 9, -4)], rip),  # mov far@GOTPCREL(%rip), %rax
        Through("488b0500000000", [(3, 42, -4)], rip),
        Through("ff1500000000", [(2, 41, -4)], rip),  # call *far@GOTPCREL(%rip)
    ],
    decoded=[
        Case((4,), "e800000000", last, 1, -4),  # call
        Case((4,), "e900000000", last, 1, -4),  # jmp
        Case((2,), "0f8400000000", last, 2, -4),  # je
        Case((2,), "488d0500000000", rip, 3, -4),  # lea 0(%rip), %rax
        Case((2,), "803d0000000007", rip, 2, -5),  # cmpb $7, 0(%rip)
        Case((2,), "c7050000000001020304", rip, 2, -8),  # movl $imm, 0(%rip)
        Case((15,), "eb00", last, 1, -1),  # jmp rel8
        Case((15,), "7500", last, 1, -1),  # jne rel8
        Case((11,), "48c7c000000000", last, 3),  # mov $imm32s, %rax
        Case((10,), "b800000000", last, 1),  # mov $imm32, %eax
        Case((1,), "48b80000000000000000", last, 2),  # movabs
        Case((9,), "ff2500000000", rip, 2, -4),  # jmp *0(%rip)
        Case((41,), "ff1500000000", rip, 2, -4),  # call *0(%rip)
        Case((42,), "488b0500000000", rip, 3, -4),  # mov 0(%rip), %rax
        Case((26,), "488d1d00000000", rip, 3, -4),  # lea 0(%rip), %rbx
    ],
)

_LOAD = Load(
    image_base=0xFFFF_FFFF_8100_0000,
    features=frozenset(FEATURES),
    debian=(4229, 78.33, 57.60, 22.54),
    image_marks=None,
)

_RUN = Run(
    snippets={
        # mov $1,%eax; ret
        "one": "b801000000c3",
        # mov $2,%eax; ret
        "two": "b802000000c3",
        # mov (%rdi),%rax; ret
        "load": "488b07c3",
        # mov %rsi,(%rdi); ret
        "store": "488937c3",
        # mov %rdi,%rax; mov %rsi,%rdi; mov %rdx,%rsi; jmp *%rax
        "jump": "4889f84889f74889d6ffe0",
        # push %rbx; mov %rdi,%rax; mov %rsi,%rbx; mov %rsi,%rdi; call *%rax; add %rbx,%rax; pop %rbx; ret
        "apply": "534889f84889f34889f7ffd04801d85bc3",
        # push %rbx; mov %rdi,%rbx; 1: call *%rbx; jmp 1b
        "loop": "534889fbffd3ebfc",
        # jmp .
        "spin": "ebfe",
        # 1: incq (%rdi); jmp 1b
        "count": "48ff07ebfb",
        # 1: call 1b
        "recurse": "e8fbffffff",
        # ud2
        "invalid": "0f0b",
        # return a + 2 * b + 3 * c + ... + 10 * j
        "weigh": (
            "486b4424200a4c8b5424104f8d04804d6bc906488d14524a8d04d04c6b542418094c01d0"
            "4c01c84c6b4c2408074c01c8488d04884801f84c01c04801d0488d0470c3"
        ),
        # return ((f)a)(b, b + 1, ..., b + 9)
        "forward": (
            "504889f84889f7488d4e034c8d4709488d560241504c8d4708488d760141504c8d47074c"
            "8d4f0541504c8d470641504c8d4704ffd04883c428c3"
        ),
        # mov $1,%eax; ret
        "straddle": "b801000000c3",
        # nop5; mov $1,%eax; ret; 1: incq (%rdi); mov $2,%eax; ret
        "site": "0f1f440000b801000000c348ff07b802000000c3",
        # call 1f
        "call": "e806000000",
        # jmp 1f
        "hop": "e906000000",
        # mov $17,%al; mov $17,%ah; movzwl %ax,%eax; ret
        "pair": "b011b4110fb7c0c3",
        # mov $34,%al; mov $34,%ah
        "other": "b022b422",
        # push %rdi; popf; nop6; mov $1,%eax; ret; mov $2,%eax; ret
        "flags": "579d660f1f440000b801000000c3b802000000c3",
    },
    clocks={
        "rdtsc": "0f3148c1e2204809d0c3",  # rdtsc; shl $32,%rdx; or %rdx,%rax; ret
        "rdtscp": "0f01f948c1e2204809d0c3",
    },
    random={
        "rdrand": ("480fc7f0c3", 64),  # rdrand %rax; ret
        "rdrand32": ("0fc7f0c3", 32),
        "rdrand16": ("660fc7f0c3", 16),
        "rdrand r9": ("490fc7f14c89c8c3", 64),  # rdrand %r9; mov %r9,%rax; ret
        "rdseed": ("480fc7f8c3", 64),
    },
    # rdtsc; shl $32,%rdx; or %rdx,%rax; mov %rax,%rcx; 1: rdtsc; shl $32,%rdx; or %rdx,%rax;
    # sub %rcx,%rax; cmp %rdi,%rax; jb 1b; ret
    wait="0f3148c1e2204809d04889c10f3148c1e2204809d04829c84839f872efc3",
    poisons={
        "eflags.tf": "pushf; orq $0x100, (%rsp); popf",
        "eflags.df": "std",
        "eflags.ac": "pushf; orq $0x40000, (%rsp); popf",
        "eflags.nt": "pushf; orq $0x4000, (%rsp); popf",
        "eflags.iopl": "pushf; orq $0x3000, (%rsp); popf",
        "eflags.if": "cli",
        "cr0.wp": _cr("cr0", "and $~0x10000, %rax"),
        "cr0.ts": _cr("cr0", "or $8, %rax"),
        "cr0.em": _cr("cr0", "or $4, %rax"),
        "cr0.am": _cr("cr0", "xor $0x40000, %rax"),
        "cr0.cd": _cr("cr0", "or $0x60000000, %rax"),
        "cr0.pg": _cr("cr0", "and $0x7fffffff, %eax"),
        "cr0.pe": _cr("cr0", "and $~1, %rax"),
        "lmsw": "mov $0xe, %eax; lmsw %ax",
        "cr2": "mov $-1, %rax; mov %rax, %cr2",
        "cr3": "mov $0x123000, %rax; mov %rax, %cr3",
        "cr4.osfxsr": _cr("cr4", "and $~0x200, %rax"),
        "cr4.smap": _cr("cr4", "or $0x300000, %rax"),
        "cr4.none": "xor %eax, %eax; mov %rax, %cr4",
        "cr8": "mov $15, %eax; mov %rax, %cr8",
        "dr.execute": _breakpoint(0x402),
        "dr.local": _breakpoint(0x401),
        "dr.write": _breakpoint(0xD0402),
        "dr.access": _breakpoint(0xF0402),
        "dr.all": _breakpoint(0x4AA) + "; mov %rax, %dr1; mov %rax, %dr2; mov %rax, %dr3",
        "dr6": "mov $0xffff0fff, %eax; mov %rax, %dr6",
        "mxcsr": "push $0; ldmxcsr (%rsp); pop %rax; sqrtss %xmm0, %xmm0",
        "mxcsr.round": "push $0x7f80; ldmxcsr (%rsp); pop %rax",
        "fpu.control": "push $0; fldcw (%rsp); pop %rax; fld1; fldz; fdivrp",
        "fpu.stack": "fld1; " * 9 + "fldpi",
        "fpu.mmx": "pcmpeqd %mm0, %mm0; movq %mm0, %mm7",
        "ds": "xor %eax, %eax; mov %eax, %ds; mov %eax, %es",
        "fs": "mov $0x2b, %eax; mov %eax, %fs; mov %eax, %gs",
        "ss": "xor %eax, %eax; mov %eax, %ss",
        "fsbase": wrmsr(0xC000_0100, 0x1234_5678_9000),
        "gsbase": wrmsr(0xC000_0101, 0x1234_5678_9000),
        "kernelgsbase": wrmsr(0xC000_0102, 0x1234_5678_9000),
        "swapgs": "swapgs",
        "wrgsbase": "mov %cr4, %rax; or $0x10000, %rax; mov %rax, %cr4; wrgsbase %rsp",
        "gdt": "push $0; push $0; lgdt (%rsp); pop %rax; pop %rax",
        "idt": "push $0; push $0; lidt (%rsp); pop %rax; pop %rax",
        "ldt": "xor %eax, %eax; lldt %ax",
        "tr": "mov $0x40, %eax; ltr %ax",
        "efer.none": wrmsr(0xC000_0080, 0),
        "efer.svme": wrmsr(0xC000_0080, 0x1D01),
        "star": wrmsr(0xC000_0081, -1 & (1 << 64) - 1),
        "lstar": wrmsr(0xC000_0082, 0xDEAD_0000),
        "fmask": wrmsr(0xC000_0084, 0xDEAD_0000),
        "tsc_aux": wrmsr(0xC000_0103, 77),
        "pat": wrmsr(0x277, 0),
        "mtrr": wrmsr(0x200, 0x1000) + "; " + wrmsr(0x2FF, 0xC06) + "; " + wrmsr(0x26F, 0xBAD),
        "mce": wrmsr(0x401, 0xDEAD_BEEF) + "; " + wrmsr(0x17B, 0),
        "sysenter": wrmsr(0x174, 0x10) + "; " + wrmsr(0x176, 0xDEAD),
        "misc_enable": wrmsr(0x1A0, 0),
        "iretq": (
            f"mov %rsp, %rdx; push ${_USER_SS}; push %rdx; pushf; push ${_USER_CS}; "
            "lea 1f(%rip), %rax; push %rax; iretq; 1:"
        ),
        "iretq.compat": (
            "mov %rsp, %rdx; push $0x2b; push %rdx; pushf; push $0x23; lea 1f(%rip), %rax; push %rax; "
            "iretq; 1:"
        ),
        "sysret": "lea 1f(%rip), %rcx; mov $0x2, %r11; sysretq; 1:",
        "syscall": "syscall",
        "sysenter.taken": "sysenter",
        "int80": "int $0x80",
        "int1": ".byte 0xf1",
        "clgi": wrmsr(0xC000_0080, 0x1D01) + "; clgi",
        "vmrun": wrmsr(0xC000_0080, 0x1D01) + "; mov $0x10000, %eax; vmrun",
        "vmload": wrmsr(0xC000_0080, 0x1D01) + "; mov $0x10000, %eax; vmload",
        "hlt": "cli; hlt",
        "mwait": "lea (%rsp), %rax; xor %ecx, %ecx; xor %edx, %edx; monitor; mwait",
        "pause": "pause",
        "rsm": "rsm",
        "xmm": "pcmpeqd %xmm0, %xmm0; movdqa %xmm0, %xmm15",
        "stack": "mov $0x1234, %esp",
        "registers": "; ".join(
            f"mov $-1, %{r}" for r in ("rbx", "rbp", "r12", "r13", "r14", "r15")
        ),
    },
    poison_stop="ud2",  # 0", "riscv64": "unimp"}
    poison_return=("mov ${0}, %eax; ret"),
    poison_prefix="start: endbr64; ",
    status=(
        (
            "push %rbx; sub $16, %rsp; movl $0x1f81, (%rsp); ldmxcsr (%rsp); call *%rdi; "
            "stmxcsr (%rsp); mov (%rsp), %eax; add $16, %rsp; pop %rbx; ret"
        ),
        "push $0x1f84; ldmxcsr (%rsp); pop %rax; ret",
    ),
    seen={
        "CS, ring 0": ("8cc8c3", lambda v: v & 3 == 0 and v & 0xFFFF),
        "CR0: PG WP PE": ("0f20c0c3", lambda v: v & 0x8001_0001 == 0x8001_0001),
        "CR3": ("0f20d8c3", lambda v: v != 0),
        "CR4: PAE": ("0f20e0c3", lambda v: v & 0x20),
        "EFER: LMA LME": ("b9800000c00f32c3", lambda v: v & 0x500 == 0x500),
        "a port without a device": ("e460c3", lambda v: v == 0xFF),
    },
    refused={"sysretq": "480f07c3", "syscall": "0f05c3", "rdpmc": "0f33c3"},
    traps={"int $0x80": "cd80c3", "int3": "ccc3"},
    views=(),
    lethal={
        # lock bt, bts, btr, btc of a register (which has no lock) by a register
        "bit by register": ("f00fbbc1", "f00fabc1", "f00fb3c1", "f00fa3c1", "f0644f0fabf9"),
        # the same by a number
        "bit by number": ("f00fbae901", "f00fbae11d", "f00fbaf11d", "f00fbaf91d", "f0670fbaf01d"),
    },
    peek=("488b07 31c0c3 b807000000c3", 6),
    # mov order, %rax; mov (%rax), %rcx; lea N(%rcx, %rcx), %rcx; mov %rcx, (%rax); xor; ret
    count=(
        lambda n: (
            bytes.fromhex("48b8000000000000000048 8b08")
            + bytes.fromhex("488d4c09")
            + bytes([n])
            + bytes.fromhex("48890831c0c3")
        ),
        2,
    ),
    watch="488b07ebfb",  # 1: mov (%rdi),%rax; jmp 1b
    ask="0f31ebfc",  # 1: rdtsc; jmp 1b
    through="ffe1",  # jmp *%rcx
    percpu={
        "relative": ("mov %gs:one(%rip), %rax", "one"),
        "relative_field": ("mov %gs:one+0x88(%rip), %rax", "one+0x88"),
        "absolute": ("mov %gs:one, %rax", "one"),
        "write": ("mov %rdi, %gs:one+8", "one+0x8"),
        "increment": ("incl %gs:two(%rip)", "two"),
        "far_field": ("mov %gs:one+0x2000(%rip), %rax", "one+0x2000"),
        "add_offset": ("mov $two, %rdi; add %gs:this_cpu_off(%rip), %rdi; mov (%rdi), %rax", "two"),
        "register_r11": (
            "mov $one, %r11; add %gs:this_cpu_off, %r11; mov 0x18(%r11), %rax",
            "one+0x18",
        ),
        "indexed": ("mov $3, %eax; mov %gs:two(, %rax, 8), %rax", "two+0x18"),
        "of_a_cpu": (
            "xor %eax, %eax; mov __per_cpu_offset(, %rax, 8), %rdx; mov two+0x10(%rdx), %rax",
            "two+0x10",
        ),
        "string": ("mov $two, %rsi; add %gs:this_cpu_off, %rsi; lodsb", "two"),
    },
    type_checks={
        "r11": f"mov %rdi, %r11; movl $-{TYPE}, %r10d; addl -4(%r11), %r10d; je 1f; ud2; 1: mov $1, %eax",
        "rax": f"mov %rdi, %rax; movl $-{TYPE}, %r10d; addl -4(%rax), %r10d; je 1f; ud2; 1: mov $1, %eax",
        "r12": f"mov %rdi, %r12; movl $-{TYPE}, %r10d; addl -4(%r12), %r10d; je 1f; ud2; 1: mov $1, %eax",
        "away": f"lea 11(%rdi), %r11; movl $-{TYPE}, %r10d; addl -15(%r11), %r10d; je 1f; ud2; 1: mov $1, %eax",
    },
    read_guard="mov __stack_chk_guard(%rip), %rax",
    trap="ud2",  # 0x800", RISCV: "ebreak"}
    one=("mov $1, %eax"),  # 1", RISCV: "li a0, 1"}
    va_list_flags="-mgeneral-regs-only -mno-red-zone -fcf-protection=none",
    va_list_code=(
        {"relay": 0, "wrap": 0xCA, "nested": 0x19B},
        (
            "534889f84989f24189d331ffba280000004883ec60488d5c24704c894c2458488d7424704531c948"
            "895c2408488d5c2430c704242800000048895c241085c97e1883fa2f770883c20840b701eb074883"
            "c60841b101ffc9ebe44584c9740548897424084084ff74038914244c8d4c24184889e34183fb01b9"
            "060000004c89cf4889def3a5498b3a750f4c89ce4585c075034889deffd0eb2a498b72084183fb02"
            "750f4c89ca4585c075034889daffd0eb13498b52104c89c94585c075034889d9ffd048984883c460"
            "5bc34883ec684989fa4889f04531db488d742470488d7c24304c894c24584531c9c7442418280000"
            "004889742420be2800000048897c2428488d7c247085c97e1883fe2f770883c60841b101eb074883"
            "c70841b301ffc9ebe44584db740548897c24204584c9740489742418488d4c24184c89442408488b"
            "3848894c241083fa017514488d542408b94d00000031c04889d641ffd2eb35488b700883fa027515"
            "488d4c240841b84d00000031c04889ca41ffd2eb194c8d442408488b501041b94d00000031c04c89"
            "c141ffd248984883c468c34883ec68488d44247048894c2448488d4c24084889442420488d442430"
            "4889442428488d4424184c8944245041b8060000004889542408ba05000000488944241031c04c89"
            "4c2458c744241818000000e8070000004883c4684898c34883ec684889f04989fa48894c2448488d"
            "7c2430488d4c24704c8944245041b84d00000048895424404c894c2458488b561848894c2420488d"
            "4c24084889542408488d54241848897c2428488b3831c04889542410488b5610c744241810000000"
            "488b760841ffd24883c468c3"
        ),
    ),
    rounds=2,
    hertz={},
    registers=_registers,
    trap_mnemonic="int3",
    nop="90",
    harmless="9089c8",
    percpu_by_register=True,
    # AMD64 3.5.7: gp_offset 32 leaves r8 and r9; overflow_arg_area, reg_save_area follow.
    va_list={0: 32 | 48 << 32, 8: 0x2000, 16: 0x1000, 0x1020: "r8", 0x1028: "r9"},
    va_list_first=["r8", "r9"],
    checks=[
        (".byte 0x67, 0x0f, 0xb9, 0x40, 0x14", "UBSAN: shift out of bounds"),
        (".byte 0x67, 0x0f, 0xb9, 0x00", "UBSAN: addition overflow"),
        (".byte 0x67, 0x0f, 0xb9, 0x40, 0x0d", "UBSAN: negation overflow"),
    ],
)

_PATCH = Patch(
    site=0,
    imitated=[
        *(f"{0x70 + cc:02x}10" for cc in range(16)),  # jcc +0x10
        *(f"0f{0x80 + cc:02x}e0ffffff" for cc in range(16)),  # jcc -0x20
        "eb20",  # jmp +0x20
        "e900010000",  # jmp +0x100
        "e8f0ffffff",  # call -0x10
        "e008",  # loopne
        "e108",  # loope
        "e208",  # loop
        "e3f0",  # jrcxz
        "c3",  # ret
        "c21000",  # ret $16
        "ffd0",  # call *%rax
        "41ffd3",  # call *%r11
        "ffe1",  # jmp *%rcx
        "41ffe7",  # jmp *%r15
        "f3c3",  # rep ret
    ],
    writable="rax rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(),
    flags=("eflags", 0x8D5, 0x202),
    allowed=None,
    others=None,
    tail=("48ffc7e900000000", 4, 4, -4),  # inc %rdi ; jmp
    jump_reach={2: 7, 5: 31},
    exclusive=None,
    load="488b07",
    mcount="__mcount_loc",
    alternatives=(
        "__alt_instructions",
        "__alt_instructions_end",
        {
            (0, 0): [("at", "i4"), ("new", "i4"), ("cap", "u2"), ("size", "u1"), ("length", "u1")],
            (6, 3): [
                *(("at", "i4"), ("new", "i4"), ("cap", "u2"), ("flags", "u2")),
                *(("size", "u1"), ("length", "u1")),
            ],
        },
    ),
    runtime_constants=(8, 1),
    mcount_site=(b"\xe8\0\0\0\0\xc3", ("__fentry__", 2, -4)),
    refused_probes=[
        ("ff10", "indirect branch through memory"),  # call *(%rax)
        ("ff6c2408", "far transfer"),  # ljmp *8(%rsp)
        ("0f0b", "ud2"),
        ("06", "no valid instruction"),
    ],
)

FACTS = Facts(link=_LINK, load=_LOAD, run=_RUN, patch=_PATCH)
