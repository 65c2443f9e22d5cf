# SPDX-License-Identifier: GPL-2.0-or-later
"""What Unicorn does otherwise than hardware, as small as it can be shown.

Each test holds while the emulator has the fault that something in `emulator` works around; it
fails with the first version that has mended it, and then its workaround can go. Code is
written as bytes: GNU as made them of what stands beside them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
import unicorn
from unicorn import arm64_const as arm
from unicorn import riscv_const as rv
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86

CODE, TABLES, DEVICE = 0x8000_4000, 0x8000_1000, 0x1000_0000
USER, SUPERVISOR, MACHINE = 0, 1, 3
SV39, SV39_GIB = 8, 0xCF  # satp.MODE; an entry: valid, read, write, executed, accessed, dirty
NOP = bytes.fromhex("0100")  # c.nop


def hart(code: bytes = NOP) -> unicorn.Uc:
    """Return a RISC-V hart in S-mode without address translation, and code."""
    uc = unicorn.Uc(uc_const.UC_ARCH_RISCV, uc_const.UC_MODE_RISCV64)
    uc.ctl_set_cpu_model(rv.UC_CPU_RISCV64_SIFIVE_U54)
    uc.mem_map(0x8000_0000, 0x10_0000)
    uc.mem_write(CODE, code)
    uc.reg_write(rv.UC_RISCV_REG_PRIV, SUPERVISOR)
    return uc


def device(uc: unicorn.Uc, read: Callable[[int], int]) -> None:
    """Add a device; `read` gets how often it was read."""
    count = 0

    def answer(_uc: unicorn.Uc, _offset: int, _size: int, _data: object) -> int:
        nonlocal count
        count += 1
        return read(count)

    uc.mmio_map(DEVICE, 0x1000, answer, None, lambda *_: None, None)


def told(uc: unicorn.Uc) -> list[tuple[int, int]]:
    """Return a list that exceptions come into: number and program counter; they end the run."""
    found: list[tuple[int, int]] = []

    def hook(engine: unicorn.Uc, number: int, _data: object) -> None:
        found.append((number, engine.reg_read(rv.UC_RISCV_REG_PC)))
        engine.emu_stop()

    uc.hook_add(uc_const.UC_HOOK_INTR, hook)
    return found


# RISC-V ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "number"),
    [
        pytest.param("732510c0", 2, id="rdtime a0"),
        pytest.param("0000", 2, id="c.unimp"),
        pytest.param("73000000", 8, id="ecall"),
    ],
)
def test_the_pc_of_an_exception_is_four_bytes_behind(code: str, number: int) -> None:
    """Issue 1990: Unicorn adds 4 to it, however long the instruction is (Riscv64Board.exception)."""
    uc = hart(bytes.fromhex(code))
    found = told(uc)
    uc.emu_start(CODE, CODE + 0x100)
    assert found == [(number, CODE + 4)]


@pytest.mark.parametrize("privilege", [USER, SUPERVISOR, MACHINE])
def test_a_call_does_not_tell_of_whom_it_is(privilege: int) -> None:
    """It is 8, 9 or 11 on hardware (Riscv64Board.exception)."""
    uc = hart(bytes.fromhex("73000000"))  # ecall
    uc.reg_write(rv.UC_RISCV_REG_PRIV, privilege)
    found = told(uc)
    uc.emu_start(CODE, CODE + 4)
    assert [number for number, _ in found] == [8]


def test_registers_above_the_guests_privilege_are_refused_in_silence() -> None:
    """Python sees what was there before, or nothing, and no error (Riscv64Board.hart)."""
    uc = hart()
    satp = SV39 << 60 | TABLES >> 12
    uc.reg_write(rv.UC_RISCV_REG_SATP, satp)
    uc.reg_write(rv.UC_RISCV_REG_PRIV, USER)
    assert uc.reg_read(rv.UC_RISCV_REG_SATP) != satp
    uc.reg_write(rv.UC_RISCV_REG_SATP, 0)
    uc.reg_write(rv.UC_RISCV_REG_PRIV, SUPERVISOR)
    assert uc.reg_read(rv.UC_RISCV_REG_SATP) == satp


def test_a_breakpoint_is_an_error() -> None:
    """EBREAK is no exception, and taken care of still ends the run (Riscv64Board._breakpoint)."""
    uc = hart(bytes.fromhex("02900100"))  # c.ebreak; c.nop
    found = told(uc)

    def taken(engine: unicorn.Uc, _data: object) -> bool:
        engine.emu_stop()  # else it is executed for ever
        return True

    uc.hook_add(uc_const.UC_HOOK_INSN_INVALID, taken)
    with pytest.raises(unicorn.UcError, match="UC_ERR_EXCEPTION"):
        uc.emu_start(CODE, CODE + 4)
    assert not found


@pytest.mark.parametrize(("bit", "traps"), [(21, False), (29, True)])
def test_the_timeout_wait_bit_is_elsewhere(bit: int, traps: bool) -> None:
    """It is mstatus.21 (privileged specification, 3.1.6.6) (Riscv64Board.reset)."""
    uc = hart(bytes.fromhex("73005010"))  # wfi
    uc.reg_write(rv.UC_RISCV_REG_PRIV, MACHINE)
    uc.reg_write(rv.UC_RISCV_REG_MSTATUS, 1 << bit)
    uc.reg_write(rv.UC_RISCV_REG_PRIV, SUPERVISOR)
    found = told(uc)
    uc.emu_start(CODE, CODE + 4)
    assert bool(found) is traps


def test_counters_are_the_hosts_or_missing() -> None:
    """`cycle` is the host's though not allowed, and `time` illegal (Riscv64Board._emulated)."""
    cycles = []
    for _ in range(2):
        uc = hart(bytes.fromhex("732500c0"))  # rdcycle a0
        uc.reg_write(rv.UC_RISCV_REG_PRIV, MACHINE)
        uc.reg_write(rv.UC_RISCV_REG_MCOUNTEREN, 2)
        uc.reg_write(rv.UC_RISCV_REG_PRIV, SUPERVISOR)
        uc.emu_start(CODE, CODE + 4)
        cycles.append(uc.reg_read(rv.UC_RISCV_REG_A0))
        uc.mem_write(CODE, bytes.fromhex("732510c0"))  # rdtime a0
        uc.ctl_flush_tb()
        found = told(uc)
        uc.emu_start(CODE, CODE + 4)
        assert [number for number, _ in found] == [2]
    assert cycles[0] != cycles[1]


def test_an_interrupt_does_not_leave_chained_blocks() -> None:
    """A loop in which it was raised goes on; hardware takes it (Riscv64Board._look)."""
    uc = hart(bytes.fromhex("0c41fdfd"))  # 1: lw a1, 0(a0); c.bnez a1, 1b
    handler = CODE + 0x800
    uc.mem_write(handler, NOP * 2)

    def read(count: int) -> int:
        if count == 5:
            uc.reg_write(rv.UC_RISCV_REG_PRIV, MACHINE)
            uc.reg_write(rv.UC_RISCV_REG_MIP, 1 << 5)
            uc.reg_write(rv.UC_RISCV_REG_PRIV, SUPERVISOR)
        return int(count < 1000)

    device(uc, read)
    uc.reg_write(rv.UC_RISCV_REG_PRIV, MACHINE)
    uc.reg_write(rv.UC_RISCV_REG_MIDELEG, 1 << 5)
    uc.reg_write(rv.UC_RISCV_REG_PRIV, SUPERVISOR)
    uc.reg_write(rv.UC_RISCV_REG_SIE, 1 << 5)
    uc.reg_write(rv.UC_RISCV_REG_STVEC, handler)
    uc.reg_write(rv.UC_RISCV_REG_SSTATUS, 2)
    uc.reg_write(rv.UC_RISCV_REG_A0, DEVICE)
    uc.emu_start(CODE, handler + 2)
    assert uc.reg_read(rv.UC_RISCV_REG_A1) == 0  # it got out of the loop by itself
    # What Unicorn does between runs of chained blocks is right, and relied on.
    assert uc.reg_read(rv.UC_RISCV_REG_SEPC) == CODE + 4
    assert uc.reg_read(rv.UC_RISCV_REG_SCAUSE) == 1 << 63 | 5


@pytest.mark.parametrize("by_itself", [True, False], ids=["register", "context"])
def test_a_pc_that_a_hook_sets_spoils_the_next_stop_inside_of_a_block(by_itself: bool) -> None:
    """After a stop at the second instruction the first runs again (Riscv64Board._set_hart).

    Set with the whole context it is right, and a load that was ended has not happened.
    """
    # ecall, then at +4: addi s0, s0, 1; lw a1, 0(a0); addi s1, s1, 1
    uc = hart(bytes.fromhex("7300000005040c418504"))

    def hook(engine: unicorn.Uc, _number: int, _data: object) -> None:
        if by_itself:
            engine.reg_write(rv.UC_RISCV_REG_PC, CODE + 4)
        else:
            engine.context_restore(engine.context_save())

    def read(count: int) -> int:
        if count == 1:
            uc.emu_stop()
        return count

    uc.hook_add(uc_const.UC_HOOK_INTR, hook)
    device(uc, read)
    uc.reg_write(rv.UC_RISCV_REG_A0, DEVICE)
    uc.emu_start(CODE, CODE + 10)
    stopped = uc.reg_read(rv.UC_RISCV_REG_PC)
    uc.emu_start(stopped, CODE + 10)
    assert stopped == (CODE + 4 if by_itself else CODE + 6)
    assert uc.reg_read(rv.UC_RISCV_REG_S0) == (2 if by_itself else 1)
    assert uc.reg_read(rv.UC_RISCV_REG_S1) == 1
    assert uc.reg_read(rv.UC_RISCV_REG_A1) == 2


def test_a_block_that_jumps_to_itself_is_never_translated_anew() -> None:
    """So a hook that is added while it runs does not come (Riscv64Board._look stops at loads)."""
    uc = hart(bytes.fromhex("0c41fdfd"))  # 1: lw a1, 0(a0); c.bnez a1, 1b
    blocks = []

    def read(count: int) -> int:
        if count == 5:
            uc.hook_add(uc_const.UC_HOOK_BLOCK, lambda *_: blocks.append(count))
            uc.ctl_remove_cache(CODE, CODE + 0x1000)
        return int(count < 100)

    device(uc, read)
    uc.reg_write(rv.UC_RISCV_REG_A0, DEVICE)
    uc.emu_start(CODE, CODE + 4)
    assert not blocks


def test_the_width_of_user_mode_reads_as_unknown() -> None:
    """`sstatus.UXL` is 0 instead of 2, and stays so: a kernel asks it for nothing else."""
    uc = hart(bytes.fromhex("73250010"))  # csrr a0, sstatus
    uc.emu_start(CODE, CODE + 4)
    assert uc.reg_read(rv.UC_RISCV_REG_A0) >> 32 & 3 == 0


def test_an_access_where_nothing_answers_is_an_error() -> None:
    """It is no exception; the registers are as before it (Board._slice)."""
    uc = hart(bytes.fromhex("8c61"))  # ld a1, 0(a1)
    found = told(uc)
    uc.reg_write(rv.UC_RISCV_REG_A1, 0x4000_0000)
    with pytest.raises(unicorn.UcError, match="UC_ERR_READ_UNMAPPED"):
        uc.emu_start(CODE, CODE + 2)
    assert not found
    assert uc.reg_read(rv.UC_RISCV_REG_PC) == CODE
    assert uc.reg_read(rv.UC_RISCV_REG_A1) == 0x4000_0000


# All of them ----------------------------------------------------------------------------------


def twice_mapped(hook: bool) -> tuple[int, int]:
    """Return what a function gives, and then what after it was overwritten by another address."""
    page, executed, stored = 0x8000_8000, 0x4000_0000, 0x4000_1000
    uc = hart(
        # jalr a5; mv s0, a0; sd zero, 0x700(a4); sd zero, 0x708(a4); sh a3, (a4); fence.i; jalr a5
        code := bytes.fromhex("82972a8423300770233407702310d7000f1000008297")
    )
    uc.mem_write(page, bytes.fromhex("05458280"))  # li a0, 1; ret
    middle, last = TABLES + 0x1000, TABLES + 0x2000
    uc.mem_write(TABLES + 8, struct.pack("<QQ", middle >> 2 | 1, 0x8000_0000 >> 2 | SV39_GIB))
    uc.mem_write(middle, struct.pack("<Q", last >> 2 | 1))
    not_stored, not_executed = SV39_GIB & ~4, SV39_GIB & ~8
    uc.mem_write(last, struct.pack("<QQ", page >> 2 | not_stored, page >> 2 | not_executed))
    uc.reg_write(rv.UC_RISCV_REG_SATP, SV39 << 60 | TABLES >> 12)
    uc.reg_write(rv.UC_RISCV_REG_A5, executed)
    uc.reg_write(rv.UC_RISCV_REG_A4, stored)
    uc.reg_write(rv.UC_RISCV_REG_A3, 0x4509)  # li a0, 2
    if hook:
        uc.hook_add(uc_const.UC_HOOK_MEM_FETCH_UNMAPPED, lambda *_: False, None, page, page + 0xFFF)
    uc.emu_start(CODE, CODE + len(code))
    return uc.reg_read(rv.UC_RISCV_REG_S0), uc.reg_read(rv.UC_RISCV_REG_A0)


def test_code_that_is_overwritten_by_another_address_stays() -> None:
    """Only the first store by it is seen; where a memory hook is, each (emulator.boards.pieces)."""
    assert twice_mapped(hook=False) == (1, 1)
    assert twice_mapped(hook=True) == (1, 2)


def test_the_end_of_a_run_is_looked_up_as_by_the_guest() -> None:
    """Where a run goes until is translated when it ends: a fault is x86's (Board.expect_code)."""
    uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
    uc.mem_map(0, 0x10_0000)
    for at, entry in ((0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x83)):  # 2 MiB as they are
        uc.mem_write(at, entry.to_bytes(8, "little"))
    uc.mem_write(0x8000, bytes.fromhex("90"))  # nop
    uc.reg_write(x86.UC_X86_REG_CR3, 0x1000)
    uc.reg_write(x86.UC_X86_REG_CR4, 0x20)
    uc.reg_write(x86.UC_X86_REG_MSR, (0xC000_0080, 0x500))
    uc.reg_write(x86.UC_X86_REG_CR0, 0x8001_0033)
    uc.hook_add(uc_const.UC_HOOK_BLOCK, lambda engine, *_: engine.emu_stop())
    uc.emu_start(0x8000, 0x1234_5678)
    assert uc.reg_read(x86.UC_X86_REG_CR2) // 0x1000 == 0x1234_5678 // 0x1000


# arm64 ----------------------------------------------------------------------------------------

SCR_EL3, HCR_EL2, VBAR_EL1 = (1, 1, 3, 6, 0), (1, 1, 3, 4, 0), (12, 0, 3, 0, 0)
EL1H, EL0 = 0x3C5, 0x3C0  # PSTATE, interrupts masked


def core(code: bytes, *, prepared: bool = True) -> unicorn.Uc:
    """Return an arm64 CPU at EL1, its exception levels set as firmware does, and code."""
    uc = unicorn.Uc(uc_const.UC_ARCH_ARM64, uc_const.UC_MODE_ARM)
    uc.ctl_set_cpu_model(arm.UC_CPU_ARM64_A72)
    uc.mem_map(0x8000_0000, 0x10_0000)
    uc.mem_write(CODE, code)
    if prepared:
        uc.reg_write(arm.UC_ARM64_REG_CP_REG, (*SCR_EL3, 0x501))
        uc.reg_write(arm.UC_ARM64_REG_CP_REG, (*HCR_EL2, 1 << 31))
    level(uc, EL1H)
    return uc


def level(uc: unicorn.Uc, state: int, *, refreshed: bool = True) -> None:
    """Set PSTATE, and a system register behind it that does not matter."""
    uc.reg_write(arm.UC_ARM64_REG_PSTATE, state)
    if refreshed:
        uc.reg_write(arm.UC_ARM64_REG_CP_REG, (*VBAR_EL1, 0x800))


def run(uc: unicorn.Uc, size: int) -> list[int]:
    """Return the numbers of the exceptions that code gives; each ends it."""
    found: list[int] = []

    def hook(engine: unicorn.Uc, number: int, _data: object) -> None:
        found.append(number)
        engine.emu_stop()

    handle: Any = uc.hook_add(uc_const.UC_HOOK_INTR, hook)
    uc.ctl_flush_tb()
    uc.emu_start(CODE, CODE + size)
    uc.hook_del(handle)
    return found


def test_a_level_that_is_set_is_not_the_level_that_code_runs_at() -> None:
    """A system register must be written behind PSTATE (Arm64Board._enter)."""
    uc = core(bytes.fromhex("00c038d5"))  # mrs x0, vbar_el1: undefined at EL0
    assert not run(uc, 4)
    level(uc, EL0, refreshed=False)
    assert not run(uc, 4)  # on hardware it is
    level(uc, EL0)
    assert run(uc, 4)


def test_timer_control_is_not_written() -> None:
    """CNTV_CTL_EL0 keeps nothing (Arm64Board._told)."""
    uc = core(bytes.fromhex("20e31bd521e33bd5"))  # msr cntv_ctl_el0, x0; mrs x1, cntv_ctl_el0
    uc.reg_write(arm.UC_ARM64_REG_X0, 3)
    run(uc, 8)
    assert uc.reg_read(arm.UC_ARM64_REG_X1) & 3 != 3


def test_a_load_that_a_stop_ends_has_overwritten_its_base() -> None:
    """It runs again, with another address: runs end at blocks only (Board._look)."""
    uc = core(bytes.fromhex("000040b9"))  # ldr w0, [x0]

    def read(_count: int) -> int:
        uc.emu_stop()
        return 0x1234

    device(uc, read)
    uc.reg_write(arm.UC_ARM64_REG_X0, DEVICE)
    uc.emu_start(CODE, CODE + 4)
    assert uc.reg_read(arm.UC_ARM64_REG_PC) == CODE
    assert uc.reg_read(arm.UC_ARM64_REG_X0) == 0x1234


def test_a_level_is_aarch32_unless_firmware_says_otherwise() -> None:
    """A core that starts at EL1 has no EL3 to set SCR_EL3 (Arm64Board.reset)."""
    svc = bytes.fromhex("010000d4")  # svc #0
    syndromes = []
    for prepared in (False, True):
        uc = core(svc, prepared=prepared)
        level(uc, EL0)
        run(uc, 4)
        syndromes.append(uc.reg_read(arm.UC_ARM64_REG_ESR_EL1) >> 26)
    assert syndromes[0] != 0x15 or syndromes[1] != 0x15


# x86-64 ---------------------------------------------------------------------------------------

PC_TABLES, PC_CODE, PC_GDT, PC_ABSENT, PC_DEVICE = 0x1000, 0x8000, 0x4000, 0x30_0000, 0x1F_0000
FLAT = (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0, 0x00CF_F300_0000_FFFF)
USER_FLAT = 0x00AF_FB00_0000_FFFF
LONG_MODE, SYSCALLS = 0x500, 1


def processor(code: str, model: int = x86.UC_CPU_X86_EPYC) -> unicorn.Uc:
    """Return an x86-64 CPU in long mode, its first 2 MiB mapped as they are, and code."""
    uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
    uc.ctl_set_cpu_model(model)
    uc.mem_map(0, 0x10_0000)
    for at, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x87)):
        uc.mem_write(at, entry.to_bytes(8, "little"))
    uc.mem_write(PC_GDT, struct.pack("<7Q", *FLAT, USER_FLAT))
    uc.reg_write(x86.UC_X86_REG_CR3, PC_TABLES)
    uc.reg_write(x86.UC_X86_REG_CR4, 0x20)
    uc.msr_write(0xC000_0080, LONG_MODE | SYSCALLS)
    uc.reg_write(x86.UC_X86_REG_CR0, 0x8001_0033)
    uc.reg_write(x86.UC_X86_REG_GDTR, (0, PC_GDT, 55, 0))
    uc.reg_write(x86.UC_X86_REG_CS, 0x10)
    uc.reg_write(x86.UC_X86_REG_SS, 0x18)
    uc.reg_write(x86.UC_X86_REG_RSP, PC_GDT)
    uc.reg_write(x86.UC_X86_REG_RBX, PC_ABSENT)
    uc.mem_write(PC_CODE, bytes.fromhex(code))
    return uc


def as_user(uc: unicorn.Uc, pc: int) -> int:
    """Prepare IRETQ to user mode; return where it is."""
    frame = struct.pack("<5Q", pc, 0x33, 0x202, PC_GDT, 0x2B)
    uc.mem_write(PC_GDT - len(frame), frame)
    uc.reg_write(x86.UC_X86_REG_RSP, PC_GDT - len(frame))
    uc.mem_write(PC_CODE + 0x800, bytes.fromhex("48cf"))
    return PC_CODE + 0x800


def test_an_exception_that_was_taken_is_still_under_way() -> None:
    """Issue 1883: the next page fault is a double fault, then nothing (X86Board._end_exception)."""
    uc, seen = processor("488b0390"), []  # mov (%rbx),%rax; nop
    uc.hook_add(
        uc_const.UC_HOOK_INTR,
        lambda engine, number, _: (
            seen.append(number),
            engine.reg_write(x86.UC_X86_REG_RIP, PC_CODE + 3),
        ),
    )
    for _ in range(3):
        uc.emu_start(PC_CODE, PC_CODE + 4)
    assert seen == [14, 8]


def test_selectors_do_not_change_the_privilege() -> None:
    """They are written without what belongs to them (X86Board._become_kernel)."""
    uc, seen = processor("cd80f4"), []  # int $0x80; hlt
    uc.hook_add(
        uc_const.UC_HOOK_INTR,
        lambda engine, number, _: (
            seen.append(number),
            engine.reg_write(x86.UC_X86_REG_CS, 0x10),
            engine.reg_write(x86.UC_X86_REG_SS, 0x18),
            engine.emu_stop() if number == 13 else None,
        ),
    )
    uc.emu_start(as_user(uc, PC_CODE), 0)
    assert seen == [0x80, 13]  # HLT is refused


def test_a_system_call_does_nothing() -> None:
    """It goes on behind it, in user mode, and RCX and R11 stay (X86Board.finish)."""
    uc = processor("0f0590")  # syscall; nop
    uc.msr_write(0xC000_0081, 0x10 << 32)
    uc.msr_write(0xC000_0082, PC_CODE + 0x100)
    uc.reg_write(x86.UC_X86_REG_RCX, 5)
    uc.emu_start(as_user(uc, PC_CODE), PC_CODE + 3)
    assert uc.reg_read(x86.UC_X86_REG_RIP) == PC_CODE + 3
    assert uc.reg_read(x86.UC_X86_REG_RCX) == 5
    assert uc.reg_read(x86.UC_X86_REG_CS) == 0x33


def test_a_pc_that_a_hook_of_a_system_call_sets_is_advanced() -> None:
    """By the size of the instruction, so the run is ended instead (X86Board._system_call)."""
    uc, entry = processor("0f05"), PC_CODE + 0x100
    uc.mem_write(entry, bytes.fromhex("90" * 8))
    uc.hook_add(
        uc_const.UC_HOOK_INSN,
        lambda engine, _: engine.reg_write(x86.UC_X86_REG_RIP, entry),
        aux1=x86.UC_X86_INS_SYSCALL,
    )
    blocks: list[int] = []
    uc.hook_add(uc_const.UC_HOOK_BLOCK, lambda _uc, at, _size, _data: blocks.append(at))
    uc.emu_start(as_user(uc, PC_CODE), entry + 4)
    assert blocks[-1] == entry + 2


@pytest.mark.parametrize("number", [x86.UC_X86_INS_RDTSC, x86.UC_X86_INS_RDTSCP])
def test_the_binding_knows_no_hook_of_the_counter(number: int) -> None:
    """The library does (emulator.instructions)."""
    with pytest.raises(unicorn.UcError, match="UC_ERR_ARG"):
        processor("90").hook_add(uc_const.UC_HOOK_INSN, lambda *_: 1, aux1=number)


def test_random_numbers_are_the_hosts() -> None:
    """Two runs differ, so CPUID must not tell of RDRAND (emulator.boards.x86_64._RANDOM)."""
    found = set()
    for _ in range(2):
        uc = processor("480fc7f0")  # rdrand %rax
        uc.emu_start(PC_CODE, PC_CODE + 4)
        found.add(uc.reg_read(x86.UC_X86_REG_RAX))
    assert len(found) == 2


def test_dropping_code_where_nothing_is_mapped_is_a_fault() -> None:
    """CR2 says so, and the next exception is a double fault (X86Board.translate_anew)."""
    uc, seen = processor("488b0390"), []
    uc.hook_add(
        uc_const.UC_HOOK_INTR,
        lambda engine, number, _: (seen.append(number), engine.emu_stop()),
    )
    uc.ctl_remove_cache(PC_ABSENT + 0x123, PC_ABSENT + 0x124)
    assert uc.reg_read(x86.UC_X86_REG_CR2) == PC_ABSENT + 0x123
    uc.emu_start(PC_CODE, PC_CODE + 4)
    assert seen == [8]


def test_a_device_does_not_learn_which_instruction_reads_it() -> None:
    """The pc is that of some block of the same page before (Board._look)."""
    # 1: nop; jmp 2f; 2: nop; mov (%rbx),%al; dec %ecx; jnz 1b
    uc, seen = processor("90eb00908a03ffc975f690"), []

    def read(engine: unicorn.Uc, _offset: int, _size: int, _data: object) -> int:
        seen.append(engine.reg_read(x86.UC_X86_REG_RIP) - PC_CODE)
        return 0

    uc.mmio_map(PC_DEVICE, 0x1000, read, None, lambda *_: None, None)
    uc.reg_write(x86.UC_X86_REG_RBX, PC_DEVICE)
    uc.reg_write(x86.UC_X86_REG_RCX, 3)
    uc.emu_start(PC_CODE, PC_CODE + 10)
    assert len(seen) == 3
    assert 4 not in seen
