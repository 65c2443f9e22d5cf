# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a module makes of its CPU, the next one finds the CPU that the kernel set up.

Each poison runs as the init of a module three times: it goes on into an undefined
instruction, returns, and returns an error. The oracles are a good module, whose functions
must compute what they always do, and a CPU that nobody has used, register by register.
"""

from __future__ import annotations

import pytest

from allocator.types import MIB
from archs import archs
from emulator.faults import Fault, FaultKind
from loader.errors import ExecmemError, InitFailed
from machine.machine import Machine
from samples import modules
from tests.machine.snippets import put
from tests.support import tools
from tests.support.modules import module

SECONDS = 2.0  # where a poison waits for something
FAILED = 22  # EINVAL
HEADER = 40  # bytes of a context that are no registers

_USER_CS, _USER_SS = 0x33, 0x2B


def _wrmsr(number: int, value: int) -> str:
    high, low = value >> 32, value & 0xFFFF_FFFF
    return f"mov ${number:#x}, %ecx; mov ${low:#x}, %eax; mov ${high:#x}, %edx; wrmsr"


def _cr(register: str, change: str) -> str:
    return f"mov %{register}, %rax; {change}; mov %rax, %{register}"


def _breakpoint(control: int) -> str:
    # At the start of the next module's init, which is where this one's is.
    return f"lea start(%rip), %rax; mov %rax, %dr0; mov ${control:#x}, %eax; mov %rax, %dr7"


_X86_64 = {
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
    "fsbase": _wrmsr(0xC000_0100, 0x1234_5678_9000),
    "gsbase": _wrmsr(0xC000_0101, 0x1234_5678_9000),
    "kernelgsbase": _wrmsr(0xC000_0102, 0x1234_5678_9000),
    "swapgs": "swapgs",
    "wrgsbase": "mov %cr4, %rax; or $0x10000, %rax; mov %rax, %cr4; wrgsbase %rsp",
    "gdt": "push $0; push $0; lgdt (%rsp); pop %rax; pop %rax",
    "idt": "push $0; push $0; lidt (%rsp); pop %rax; pop %rax",
    "ldt": "xor %eax, %eax; lldt %ax",
    "tr": "mov $0x40, %eax; ltr %ax",
    "efer.none": _wrmsr(0xC000_0080, 0),
    "efer.svme": _wrmsr(0xC000_0080, 0x1D01),
    "star": _wrmsr(0xC000_0081, -1 & (1 << 64) - 1),
    "lstar": _wrmsr(0xC000_0082, 0xDEAD_0000),
    "fmask": _wrmsr(0xC000_0084, 0xDEAD_0000),
    "tsc_aux": _wrmsr(0xC000_0103, 77),
    "pat": _wrmsr(0x277, 0),
    "mtrr": _wrmsr(0x200, 0x1000) + "; " + _wrmsr(0x2FF, 0xC06) + "; " + _wrmsr(0x26F, 0xBAD),
    "mce": _wrmsr(0x401, 0xDEAD_BEEF) + "; " + _wrmsr(0x17B, 0),
    "sysenter": _wrmsr(0x174, 0x10) + "; " + _wrmsr(0x176, 0xDEAD),
    "misc_enable": _wrmsr(0x1A0, 0),
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
    "clgi": _wrmsr(0xC000_0080, 0x1D01) + "; clgi",
    "vmrun": _wrmsr(0xC000_0080, 0x1D01) + "; mov $0x10000, %eax; vmrun",
    "vmload": _wrmsr(0xC000_0080, 0x1D01) + "; mov $0x10000, %eax; vmload",
    "hlt": "cli; hlt",
    "mwait": "lea (%rsp), %rax; xor %ecx, %ecx; xor %edx, %edx; monitor; mwait",
    "pause": "pause",
    "rsm": "rsm",
    "xmm": "pcmpeqd %xmm0, %xmm0; movdqa %xmm0, %xmm15",
    "stack": "mov $0x1234, %esp",
    "registers": "; ".join(f"mov $-1, %{r}" for r in ("rbx", "rbp", "r12", "r13", "r14", "r15")),
}


def _sys(name: str, change: str) -> str:
    return f"mrs x9, {name}; {change}; msr {name}, x9; isb"


def _to(spsr: int) -> str:
    return f"ldr x9, ={spsr:#x}; msr spsr_el1, x9; adr x9, 1f; msr elr_el1, x9; eret; 1:"


def _msr(name: str, value: str = "#-1") -> str:
    return f"mov x9, {value}; msr {name}, x9; isb"


_ARM64 = {
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
}


def _csr(name: str, value: str = "-1") -> str:
    return f"li t0, {value}; csrw {name}, t0"


_RISCV64 = {
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
}

POISONS = {"x86_64": _X86_64, "arm64": _ARM64, "riscv64": _RISCV64}
STOP = {"x86_64": "ud2", "arm64": "udf #0", "riscv64": "unimp"}
RETURN = {
    "x86_64": "mov ${0}, %eax; ret",
    "arm64": "mov x0, #{0}; ret",
    "riscv64": "li a0, {0}; ret",
}
PREFIX = {
    "x86_64": "start: endbr64; ",
    "arm64": "start: ",
    "riscv64": ".option norvc; .option arch, +zicsr; start: ",
}
ENDINGS = ("fault", "return", "refuse")
CASES = [(name, poison) for name, poisons in POISONS.items() for poison in poisons]
# Vendor's registers that the emulator keeps apart, and whose effect nothing else shows.
MSRS = (0x200, 0x201, 0x20F, 0x250, 0x26F, 0x277, 0x2FF, 0x17B, 0x401, 0xC000_0103)


def registers(machine):
    """Return all that the emulator saves of a CPU."""
    return bytes(machine.cpu.context().saved)[HEADER:]


def good(machine):
    """Assert that a good module loads and computes what RFC 1950 and CRC-32 say."""
    found = machine.load(modules.path(machine.arch.name, "checksums"))
    assert found.call("checksums_adler32", b"Wikipedia", 9, returns="u32") == 0x11E60398
    assert found.call("checksums_crc32", b"123456789", 9, 0, returns="u32") == 0xCBF43926
    found.unload()


@pytest.mark.parametrize(("name", "poison"), CASES, ids=[f"{a}-{p}" for a, p in CASES])
def test_the_next_module_finds_the_cpu_as_it_was(name, poison, tmp_path):
    """A module that spoils its CPU and faults, returns or is refused leaves nothing behind."""
    record = next(a for a in archs() if a.name == name)
    machine = Machine(name, memory=64 * MIB)
    machine.seconds = SECONDS
    fresh = registers(machine)
    body = PREFIX[name] + POISONS[name][poison] + "; "
    for ending in ENDINGS:
        end = (
            STOP[name] if ending == "fault" else RETURN[name].format(-FAILED * (ending == "refuse"))
        )
        code = tools.code(record.machine, body + end + "\n", tmp_path)
        image = module(record.machine, f"poison_{ending}", undefined=(), init=code)
        try:
            machine.load(image).unload()
        except Fault:
            assert registers(machine) == fresh
        except InitFailed:
            assert ending == "refuse"
        else:
            assert ending != "fault"
        good(machine)


def test_registers_that_only_keep_a_value_are_as_before_a_fault(tmp_path):
    """Model specific registers that a copy of the CPU lacks are put back after a fault."""
    name = "x86_64"
    record = next(a for a in archs() if a.name == name)
    machine = Machine(name, memory=64 * MIB)
    read = put(machine, bytes.fromhex("89f90f3248c1e2204809d0c3"))  # rdmsr of %edi; ret
    before = [machine.call(read, number) for number in MSRS]
    spoil = "; ".join(_wrmsr(number, 0xAB00_0000_00CD) for number in MSRS)
    code = tools.code(record.machine, f"{spoil}; ud2\n", tmp_path)
    with pytest.raises(ExecmemError):
        machine.load(module(record.machine, undefined=(), init=code))
    assert [machine.call(read, number) for number in MSRS] == before


def test_a_task_that_is_current_stays_current_through_a_fault(arch):
    """After a fault the current task and the per-cpu base are the ones the kernel chose."""
    machine = Machine(arch, memory=64 * MIB)
    anchors = {name: machine.cpu.read(name) for name in arch.runs.emulation.anchors}
    with pytest.raises(ExecmemError):
        machine.call(16)
    assert {name: machine.cpu.read(name) for name in anchors} == anchors


# Sets a flag of floating point, calls its argument, and returns the flags; sets another one.
_STATUS = {
    "x86_64": (
        (
            "push %rbx; sub $16, %rsp; movl $0x1f81, (%rsp); ldmxcsr (%rsp); call *%rdi; "
            "stmxcsr (%rsp); mov (%rsp), %eax; add $16, %rsp; pop %rbx; ret"
        ),
        "push $0x1f84; ldmxcsr (%rsp); pop %rax; ret",
    ),
    "arm64": (
        (
            "stp x29, x30, [sp, #-16]!; mov x9, #1; msr fpsr, x9; blr x0; mrs x0, fpsr; "
            "ldp x29, x30, [sp], #16; ret"
        ),
        "mov x9, #4; msr fpsr, x9; ret",
    ),
    "riscv64": (
        (
            "addi sp, sp, -16; sd ra, 0(sp); csrwi fflags, 1; jalr a0; csrr a0, fflags; "
            "ld ra, 0(sp); addi sp, sp, 16; ret"
        ),
        "csrwi fflags, 4; ret",
    ),
}


def test_a_callback_leaves_the_flags_of_who_called_it(arch, tmp_path):
    """Floating-point flags that a nested call raises are not its caller's."""
    outer, inner = (
        tools.code(arch.machine, f"{source}\n", tmp_path) for source in _STATUS[arch.name]
    )
    machine = Machine(arch, memory=64 * MIB)
    other = put(machine, inner)
    machine.stub("nest", lambda: machine.call(other))
    assert machine.call(put(machine, outer), machine.kernel.address("nest")) & 0x3F == 1


def test_a_handler_that_raises_leaves_nothing(arch, tmp_path):
    """An exception of a kernel function, or an interrupt from the keyboard, spoils no CPU."""
    machine = Machine(arch, memory=64 * MIB)
    fresh = registers(machine)
    outer = put(machine, tools.code(arch.machine, f"{_STATUS[arch.name][0]}\n", tmp_path))

    def fail():
        raise error

    machine.stub("nest", fail)
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            machine.call(outer, machine.kernel.address("nest"))
        assert registers(machine) == fresh
        good(machine)


def test_hardware_breakpoints_are_refused_at_any_depth(tmp_path):
    """A breakpoint that a callback sets is refused where it stands; to switch them off is not."""
    machine = Machine("x86_64", memory=64 * MIB)
    source = "mov %rdi, %dr0; mov %rsi, %r9; mov %r9, %dr7; mov $7, %eax; ret\n"
    inner = put(machine, tools.code(machine.arch.machine, source, tmp_path))
    outer = put(machine, tools.code(machine.arch.machine, f"{_STATUS['x86_64'][0]}\n", tmp_path))
    machine.stub("nest", lambda: machine.call(inner, inner, control))
    nest = machine.kernel.address("nest")
    for control in (0, 0x400, 0xF0000, 1, 0x402, 0xAA, 0xD0080):
        if control & 0xFF == 0:
            assert machine.call(inner, inner, control) == 7
            assert machine.call(outer, nest) & 0x3F == 1
            continue
        with pytest.raises(Fault, match="no hardware debugging") as caught:
            machine.call(outer, nest)
        assert caught.value.kind is FaultKind.INSTRUCTION
        good(machine)


@pytest.mark.parametrize(
    "prefixes", ["66", "67", "f2", "f3", "2e", "65", "48", "49", "4466", "f366674f"]
)
def test_prefixes_do_not_hide_a_breakpoint(prefixes):
    """However an instruction is spelled that sets hardware breakpoints, it is refused."""
    machine = Machine("x86_64", memory=64 * MIB)
    # mov %rdi,%rax and to other registers; mov %rax,%dr7; ret
    every = "4889f84989f84989f9"
    start = put(machine, bytes.fromhex(f"{every}{prefixes}0f23f8c3"))
    with pytest.raises(Fault) as caught:
        machine.call(start, 0x402)
    assert caught.value.pc == start + len(every) // 2
    good(machine)
