# SPDX-License-Identifier: GPL-2.0-or-later
"""A RISC-V computer and a few instructions: what a kernel is told, by the privileged specification.

Code is written as bytes: GNU as made them of what stands beside them.
"""

from __future__ import annotations

import struct

import pytest

import archs
from emulator.boards import board_of
from emulator.boards.board import Halt
from emulator.boards.riscv64 import Riscv64Board
from emulator.clock import NSEC_PER_SEC

ARCH = archs.arch("riscv64")
RAM = ARCH.boots.ram
CODE, VECTOR, TABLES, DATA = (RAM + at for at in (0x4000, 0x6000, 0x10_0000, 0x20_0000))
USER, SUPERVISOR = 0, 1
SIE, SPIE, SPP = 1 << 1, 1 << 5, 1 << 8
TIMER_ENABLED, INTERRUPT = 1 << 5, 1 << 63
TIME = 0x5449_4D45
HERTZ = 10_000_000
NOWHERE, GIB = 0x4000_0000, 1 << 30
BAD = 0x1234_5000  # a virtual address without a page


def make(code: str) -> Riscv64Board:
    """Return a computer with code, whose exceptions end the run."""
    board = board_of(ARCH, 4 << 20)
    assert isinstance(board, Riscv64Board)
    board.reset(ARCH.boots.start)  # type: ignore[arg-type] # it does not matter to firmware
    board.ram.write(CODE, bytes.fromhex(code))
    board.set("stvec", VECTOR)
    board.pc = CODE
    return board


def paged(board: Riscv64Board, mode: int, *, user: bool = False) -> None:
    """Turn on address translation: the memory where it is, and 1 GiB above for the kernel."""
    flags = 0xDF if user else 0xCF
    for level in range(mode - 6, 1, -1):
        table = TABLES + 0x1000 * level
        board.ram.write(table, struct.pack("<Q", table - 0x1000 >> 2 | 1))
    board.ram.write(TABLES + 0x1000 + 16, struct.pack("<QQ", RAM >> 2 | flags, RAM >> 2 | 0xCF))
    board.set("stvec", VECTOR + GIB)
    board.set("satp", mode << 60 | (TABLES + 0x1000 * (mode - 7)) >> 12)


PAGED = {"bare": None, "Sv39": 8, "Sv48": 9, "Sv57": 10}


@pytest.mark.parametrize(
    ("code", "a0", "pages", "cause", "pc", "value"),
    [
        pytest.param("0000", 0, None, 2, CODE, 0, id="c.unimp"),
        pytest.param("ffffffff", 0, None, 2, CODE, 0xFFFF_FFFF, id="no instruction"),
        pytest.param("010002900100", 0, None, 3, CODE + 2, CODE + 2, id="c.nop; c.ebreak; c.nop"),
        pytest.param("0c61", NOWHERE, None, 5, CODE, 0, id="ld a1, 0(a0): nothing there"),
        pytest.param("01000ce1", NOWHERE, None, 7, CODE + 2, 0, id="sd a1, 0(a0): nothing there"),
        pytest.param("0285", NOWHERE, None, 1, NOWHERE, 0, id="jr a0: nothing there"),
        pytest.param("0c61", BAD, 8, 13, CODE, BAD, id="ld a1, 0(a0): no page"),
        pytest.param("01000ce1", BAD, 10, 15, CODE + 2, BAD, id="sd a1, 0(a0): no page"),
        pytest.param("0285", BAD, 9, 12, BAD, BAD, id="jr a0: no page"),
        pytest.param("0c61", 1 << 63, 8, 13, CODE, 1 << 63, id="ld a1, 0(a0): no such address"),
    ],
)
@pytest.mark.parametrize("privilege", [USER, SUPERVISOR])
@pytest.mark.parametrize("interrupts", [0, SIE])
def test_an_exception_tells_what_where_and_of_which_address(
    code: str,
    a0: int,
    pages: int | None,
    cause: int,
    pc: int,
    value: int,
    privilege: int,
    interrupts: int,
) -> None:
    """An exception tells what, where and of which address, and what was before."""
    board = make(code)
    if pages is not None:
        paged(board, pages, user=privilege == USER)
    board.set("a0", a0)
    board.set("a1", 0x5A)
    board.set("sstatus", interrupts)
    board.set("priv", privilege)
    assert board.run(board.hart("stvec")[0]) is Halt.RETURNED
    assert board.hart("scause", "sepc", "stval") == (cause, pc, value)
    status, now, a1 = board.hart("mstatus", "priv", "x11")
    assert now == SUPERVISOR
    assert status & (SIE | SPIE | SPP) == (SPIE if interrupts else 0) | (SPP if privilege else 0)
    assert a1 == 0x5A


def test_a_call_of_a_process_is_the_kernels() -> None:
    """A call of a process is the kernel's, one of the kernel is firmware's."""
    board = make("73000000")  # ecall
    board.set("priv", USER)
    board.run(VECTOR)
    assert board.hart("scause", "sepc") == (8, CODE)
    board = make("73000000")
    board.set("a7", 0x10)  # base
    board.set("a0", 77)
    assert board.run(CODE + 4) is Halt.RETURNED
    assert (board.get("a0"), board.get("a1")) == (0, 2 << 24)


def test_a_clock_shows_guest_time() -> None:
    """A clock shows guest time, and looking takes some."""
    board = make("f32510c0732610c0")  # rdtime a1; rdtime a2
    before = board.clock.now
    assert board.run(CODE + 8) is Halt.RETURNED
    first, second = board.get("a1"), board.get("a2")
    assert before * HERTZ // NSEC_PER_SEC <= first < second
    assert second == board.clock.now * HERTZ // NSEC_PER_SEC


@pytest.mark.parametrize("read", ["f32500c0", "f32520c0"], ids=["rdcycle a1", "rdinstret a1"])
def test_other_counters_are_of_guest_time_where_the_kernel_reads_them(read: str) -> None:
    """Other counters are of guest time where the kernel reads them."""
    found = set()
    for _ in range(3):
        board = make(f"0100{read}0100")
        board.watch_clocks(board.ram.read(CODE, 16), CODE)
        assert board.run(CODE + 8) is Halt.RETURNED
        found.add(board.get("a1"))
    assert found == {board.clock.now}  # of 1 GHz


@pytest.mark.parametrize("allowed", [False, True])
def test_a_process_sees_the_clock_if_the_kernel_lets_it(allowed: bool) -> None:
    """A process sees the clock if the kernel lets it (scounteren.TM)."""
    board = make("f32510c0732610c0")
    board.set("scounteren", 2 * allowed)
    board.set("priv", USER)
    assert board.run(CODE + 8 if allowed else VECTOR) is Halt.RETURNED
    assert bool(board.get("a1")) is allowed
    assert allowed or board.hart("scause", "sepc") == (2, CODE)


@pytest.mark.parametrize("masked", [False, True])
def test_waiting_ends_when_the_timer_fires(masked: bool) -> None:
    """Waiting ends when the timer fires, even where interrupts are masked: then nothing comes."""
    board = make("73000000730050100100")  # ecall; wfi; c.nop
    later = board.clock.now + NSEC_PER_SEC
    board.set("a7", TIME)
    board.set("a6", 0)
    board.set("a0", later * HERTZ // NSEC_PER_SEC)
    board.set("sie", TIMER_ENABLED)
    board.set("sstatus", 0 if masked else SIE)
    end = CODE + 10 if masked else VECTOR
    assert board.run(end) is Halt.RETURNED
    assert board.clock.now == later
    assert board.get("sip") & TIMER_ENABLED
    if not masked:
        assert board.hart("scause", "sepc") == (INTERRUPT | 5, CODE + 8)
        return
    # It is pending until the kernel allows it, or sets the timer anew; also in a copy.
    state = board.save()
    for _ in range(2):
        board.ram.write(CODE, bytes.fromhex("732005100100"))  # csrs sstatus, a0; c.nop
        board.forget_code()
        board.set("a0", SIE)
        board.pc = CODE
        assert board.run(VECTOR) is Halt.RETURNED
        assert board.hart("scause", "sepc") == (INTERRUPT | 5, CODE + 4)
        board.restore(state)


def test_a_timer_that_is_set_anew_is_not_pending() -> None:
    """A timer that is set anew is not pending."""
    board = make("7300000073000000")  # ecall; ecall
    board.set("a7", TIME)
    board.set("a6", 0)
    board.set("a0", 0)
    board.set("sie", TIMER_ENABLED)
    board.run(CODE + 4)
    assert board.get("sip") & TIMER_ENABLED
    board.set("a0", (1 << 64) - 1)
    board.run(CODE + 8)
    assert not board.get("sip") & TIMER_ENABLED
    assert board.deadline() is None


@pytest.mark.parametrize("enabled", [0, TIMER_ENABLED])
def test_waiting_for_nothing_is_told(enabled: int) -> None:
    """Waiting for nothing is told."""
    board = make("730050109d45")  # wfi; c.li a1, 7
    board.set("sie", enabled)
    assert board.run(VECTOR) is Halt.STUCK


def test_firmware_switches_off() -> None:
    """Firmware switches off."""
    board = make("73000000")  # ecall
    board.set("a7", 0x5352_5354)
    for name in ("a6", "a0", "a1"):
        board.set(name, 0)
    assert board.run(VECTOR) is Halt.OFF


@pytest.mark.parametrize("mode", [8, 9, 10], ids=["Sv39", "Sv48", "Sv57"])
@pytest.mark.parametrize("size", [1 << 12, 1 << 21, 1 << 30])
def test_addresses_are_translated_as_the_cpu_does(mode: int, size: int) -> None:
    """Addresses are translated as the CPU does, whatever the size of a page."""
    board = make("0c61")  # ld a1, 0(a0)
    paged(board, mode)
    top = (1 << 64) - (1 << 9 * (mode - 5) + 11)  # the lowest address of the upper half
    address = top + 3 * GIB
    shifts = range(12 + 9 * (mode - 6), 11, -9)
    table, spare = TABLES + 0x1000 * (mode - 7), TABLES + 0x8000
    for shift in shifts:
        at = table + 8 * (address >> shift & 511)
        if 1 << shift == size:
            page = RAM if size == GIB else DATA
            board.ram.write(at, struct.pack("<Q", page >> 2 | 0xCF))
            break
        board.ram.write(at, struct.pack("<Q", spare >> 2 | 1))
        table, spare = spare, spare + 0x1000
    page = RAM if size == GIB else DATA
    offset = (DATA - page) + 0x128 % size
    board.ram.write(page + offset, b"12345678")
    board.set("a0", address + offset)
    assert board.run(CODE + 2) is Halt.RETURNED
    assert board.get("a1").to_bytes(8, "little") == b"12345678"
    assert board.translate(address + offset) == page + offset
    assert board.read(address + offset, 8) == b"12345678"
    for outside in (top - 8, address - size, BAD):
        assert board.translate(outside) is None
        with pytest.raises(LookupError):
            board.read(outside, 1)


@pytest.mark.parametrize("entry", [0, 0x5A5A << 40 | 1, 1, (1 << 54) - 1])
def test_tables_that_make_no_sense_are_the_guests_fault(entry: int) -> None:
    """Tables that make no sense are the guest's fault, never the host's."""
    board = make("0c61")  # ld a1, 0(a0)
    paged(board, 8)
    address = 5 * GIB
    board.ram.write(TABLES + 0x1000 + 8 * 5, struct.pack("<Q", entry))
    board.set("a0", address)
    board.run(VECTOR + GIB)
    assert board.hart("sepc") == (CODE,)
    assert board.hart("scause")[0] in (5, 13)
    assert board.translate(address) is None or entry & 0xE
