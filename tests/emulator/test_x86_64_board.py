# SPDX-License-Identifier: GPL-2.0-or-later
"""An x86-64 computer and a few instructions: what a kernel finds on its stack, by Intel's manual.

Code is written as bytes: GNU as made them of what stands beside them.
"""

from __future__ import annotations

import struct

import pytest
from unicorn import x86_const as x86

import archs
from archs.levels.boot import Start
from emulator.boards import board_of
from emulator.boards.board import Halt
from emulator.boards.x86_64 import X86Board

ARCH = archs.arch("x86_64")
GDT, TSS, IDT, CODE, VECTORS, STACK = 0x2000, 0x2800, 0x3000, 0x4000, 0x6000, 0x9000
KERNEL_STACK, FAULT_STACK, USER_STACK = 0xA000, 0xB000, 0xC000
TABLES, ABSENT = 0x1_0000, 0x60_0000  # the first 4 MiB are mapped as they are
KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE = 0x10, 0x18, 0x2B, 0x33
DESCRIPTORS = (
    *(0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF),
    *(0, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF),
)
INTERRUPT, TRAP, NMI = 0x8E, 0x8F, 2
FLAGS, IF, RF, DF = 0x2, 0x200, 0x1_0000, 0x400
USERS = (3, 0x80)  # gates that user code may ask for
STAR, LSTAR, FMASK, EFER = 0xC000_0081, 0xC000_0082, 0xC000_0084, 0xC000_0080


def make(code: str, *, user: bool = False, flags: int = FLAGS) -> X86Board:
    """Return a computer in long mode that is about to execute code."""
    board = board_of(ARCH, 4 << 20)
    assert isinstance(board, X86Board)
    board.reset(Start(contents={}, image=0, entry=0, registers={}))
    board.ram.write(TABLES, struct.pack("<Q", TABLES + 0x1000 | 7))
    board.ram.write(TABLES + 0x1000, struct.pack("<Q", TABLES + 0x2000 | 7))
    board.ram.write(TABLES + 0x2000, struct.pack("<QQ", 0x87, 0x20_0087))
    board.ram.write(GDT, struct.pack("<7Q", *DESCRIPTORS))
    board.ram.write(TSS + 4, struct.pack("<Q", KERNEL_STACK))
    board.ram.write(TSS + 0x24, struct.pack("<Q", FAULT_STACK))
    for vector in range(256):
        gate(board, vector, INTERRUPT | (0x60 if vector in USERS else 0))
    board.set("cr3", TABLES)
    board.set("gdtr", GDT << 16 | 8 * len(DESCRIPTORS) - 1)
    board.set("idtr", IDT << 16 | 16 * 256 - 1)
    board.uc.reg_write(x86.UC_X86_REG_TR, (0x40, TSS, 0x67, 0x8B00))
    board.sp = STACK
    board.ram.write(CODE, bytes.fromhex(code))
    board.pc = CODE
    board.set("rflags", flags)
    if user:
        entry = CODE + 0x800
        board.ram.write(entry, bytes.fromhex("48cf"))  # iretq
        board.sp = STACK - 40
        board.ram.write(board.sp, struct.pack("<5Q", CODE, USER_CODE, flags, USER_STACK, USER_DATA))
        board.pc = entry
    return board


def gate(board: X86Board, vector: int, kind: int, stack: int = 0) -> None:
    """Set the gate of a vector; its handler is 16 bytes behind that of the one before."""
    low = VECTORS + 16 * vector
    board.ram.write(
        IDT + 16 * vector, struct.pack("<HHBBHII", low, KERNEL_CODE, stack, kind, 0, 0, 0)
    )


def frame(board: X86Board, *, error: bool) -> tuple[int, ...]:
    """Return what was pushed: error code, if there is one, program counter, CS, flags, SP, SS."""
    return struct.unpack(f"<{5 + error}Q", board.read(board.sp, 8 * (5 + error)))


CASES = [
    pytest.param("488b03", 14, 0, 0, id="mov (%rbx),%rax"),
    pytest.param("90488903", 14, 2, 1, id="nop; mov %rax,(%rbx)"),
    pytest.param("ffe3", 14, 0x00, None, id="jmp *%rbx"),
    pytest.param("90cc", 3, None, 2, id="nop; int3"),
    pytest.param("cd80", 0x80, None, 2, id="int $0x80"),
    pytest.param("900f0b", 6, None, 1, id="nop; ud2"),
    pytest.param("9048f7f1", 0, None, 1, id="nop; div %rcx"),
    pytest.param("488b02", 13, 0, 0, id="mov (%rdx),%rax"),
    pytest.param("908eda", 13, 0x1230, 1, id="nop; mov %edx,%ds"),
]


@pytest.mark.parametrize("user", [False, True], ids=["kernel", "user"])
@pytest.mark.parametrize(("code", "vector", "error", "offset"), CASES)
def test_an_exception_is_on_the_handlers_stack(
    code: str, vector: int, error: int | None, offset: int | None, user: bool
) -> None:
    """An exception is on the handler's stack."""
    board = make(code, user=user, flags=FLAGS | IF | DF)
    board.set("rbx", ABSENT)
    board.set("rcx", 0)
    board.set("rdx", 0x1230 if error == 0x1230 else 1 << 60)
    assert board.run(VECTORS + 16 * vector) is Halt.RETURNED
    if vector == 14 and error is not None:
        error |= 4 * user
    selectors = (USER_CODE, USER_DATA) if user else (KERNEL_CODE, KERNEL_DATA)
    rf = 0 if vector in (3, 0x80) else RF
    pc = ABSENT if offset is None else CODE + offset
    want = (pc, selectors[0], FLAGS | IF | DF | rf, USER_STACK if user else STACK, selectors[1])
    if error is not None:
        want = (error, *want)
    assert frame(board, error=error is not None) == want
    assert board.sp == (KERNEL_STACK if user else STACK) - 8 * len(want)
    assert board.get("rflags") == FLAGS | DF
    assert board.get("cs") == KERNEL_CODE
    if vector == 14:
        assert board.get("cr2") == ABSENT


@pytest.mark.parametrize("user", [False, True], ids=["kernel", "user"])
def test_handlers_go_back_to_where_they_came_from(user: bool) -> None:
    """Handlers go back to where they came from, as often as one likes."""
    board = make("488b034883e90175f7cc", user=user, flags=FLAGS | IF)
    # mov (%rbx),%rax; sub $1,%rcx; jne; int3. The handler: addq $3,8(%rsp); add $8,%rsp; iretq
    board.ram.write(VECTORS + 16 * 14, bytes.fromhex("4883442408034883c40848cf"))
    board.set("rbx", ABSENT)
    board.set("rcx", 5)
    assert board.run(VECTORS + 16 * 3) is Halt.RETURNED
    assert board.get("rcx") == 0
    assert frame(board, error=False)[1] == (USER_CODE if user else KERNEL_CODE)


def test_a_trap_gate_leaves_interrupts_allowed() -> None:
    """A trap gate leaves interrupts allowed."""
    board = make("cc", flags=FLAGS | IF)
    gate(board, 3, TRAP)
    assert board.run(VECTORS + 16 * 3) is Halt.RETURNED
    assert board.get("rflags") & IF


@pytest.mark.parametrize("user", [False, True], ids=["kernel", "user"])
def test_a_gate_may_have_a_stack_of_its_own(user: bool) -> None:
    """A gate may have a stack of its own, which is aligned."""
    board = make("488b03", user=user)
    board.set("rbx", ABSENT)
    board.ram.write(TSS + 0x24, struct.pack("<Q", FAULT_STACK + 9))
    gate(board, 14, INTERRUPT, stack=1)
    assert board.run(VECTORS + 16 * 14) is Halt.RETURNED
    assert board.sp == FAULT_STACK - 48


@pytest.mark.parametrize(("code", "vector"), [("cd0e", 14), ("cd0d", 13), ("cd21", 0x21)])
def test_user_code_may_not_ask_for_what_is_the_kernels(code: str, vector: int) -> None:
    """User code may not ask for what is the kernel's."""
    board = make(code, user=True)
    assert board.run(VECTORS + 16 * 13) is Halt.RETURNED
    assert frame(board, error=True)[:2] == (vector << 3 | 2, CODE)


def test_a_stack_without_memory_is_a_double_fault_and_without_a_handler_the_end() -> None:
    """A stack without memory is a double fault, and without a handler the end."""
    board = make("488b03")
    board.set("rbx", ABSENT)
    board.sp = ABSENT + 0x1000
    gate(board, 8, INTERRUPT, stack=1)
    assert board.run(VECTORS + 16 * 8) is Halt.RETURNED
    assert frame(board, error=True)[:2] == (0, CODE)
    board = make("488b03")
    board.set("rbx", ABSENT)
    board.sp = ABSENT + 0x1000
    assert board.run(VECTORS + 16 * 8) is Halt.OFF
    assert board.broken == f"triple fault at {CODE:#x}: nothing is mapped at {ABSENT + 0xFD0:#x}"


def test_a_system_call_enters_the_kernel_and_sysret_leaves_it() -> None:
    """A system call enters the kernel, and SYSRET leaves it."""
    board = make("900f05cc", user=True, flags=FLAGS | IF | DF)  # nop; syscall; int3
    entry = CODE + 0x100
    board.uc.msr_write(EFER, 0x501)
    board.uc.msr_write(STAR, (USER_DATA - 8) << 48 | KERNEL_CODE << 32)
    board.uc.msr_write(LSTAR, entry)
    board.uc.msr_write(FMASK, IF)
    assert board.run(entry) is Halt.RETURNED
    assert (board.get("cs"), board.get("ss")) == (KERNEL_CODE, KERNEL_DATA)
    assert (board.get("rcx"), board.get("r11")) == (CODE + 3, FLAGS | IF | DF)
    assert board.get("rflags") == FLAGS | DF
    assert board.sp == USER_STACK
    board.ram.write(entry, bytes.fromhex("0f22d8480f07"))  # mov %rax,%cr3; sysretq
    board.set("rax", TABLES)
    assert board.run(VECTORS + 16 * 3) is Halt.RETURNED
    assert frame(board, error=False)[:2] == (CODE + 4, USER_CODE)


def test_a_system_call_that_is_not_enabled_is_no_instruction() -> None:
    """A system call that is not enabled is no instruction."""
    board = make("900f05", user=True)
    assert board.run(VECTORS + 16 * 6) is Halt.RETURNED
    assert frame(board, error=False)[0] == CODE + 1


@pytest.mark.parametrize("levels", [4, 5])
def test_addresses_are_walked_as_the_cpu_does(levels: int) -> None:
    """Addresses are walked as the CPU does, whatever the size of a page."""
    board = make("90")
    tables = iter(range(0x2_0000, 0x4_0000, 0x1000))
    top = next(tables)
    pages = {12: 0x30_5000, 21: 0x20_0000, 30: 0}
    bases = {12: 0x7F12_3456_7000, 21: 0xFFFF_8800_0060_0000, 30: 0xFFFF_FE80_4000_0000}
    for size, base in bases.items():
        at = top
        for shift in range(12 + 9 * (levels - 1), size, -9):
            place = at + 8 * (base >> shift & 511)
            if not board.ram.word(place):
                board.ram.write(place, struct.pack("<Q", next(tables) | 7))
            at = board.ram.word(place) & -0x1000
        leaf = pages[size] | (0x87 if size > 12 else 7) | 1 << 63  # not executable
        board.ram.write(at + 8 * (base >> size & 511), struct.pack("<Q", leaf))
    board.set("cr3", top | 0x18)
    board.set("cr4", 0x20 | (1 << 12 if levels == 5 else 0))
    for size, base in bases.items():
        within = 0x1234_5678 & (1 << size) - 1
        assert board.translate(base + within) == pages[size] + within
        assert board.translate(base ^ 1 << 30) is None
    high = 1 << (47 if levels == 4 else 56)
    assert board.translate(high) is None  # not canonical
    with pytest.raises(LookupError, match="nothing is mapped at 0x1000"):
        board.read(0x1000, 4)


def test_where_there_is_no_memory_all_bits_are_set_and_stores_are_lost() -> None:
    """Where there is no memory, all bits are set, and stores are lost."""
    board = make("488b03488913488b13")  # mov (%rbx),%rax; mov %rdx,(%rbx); mov (%rbx),%rdx
    board.ram.write(TABLES + 0x1000 + 8, struct.pack("<Q", 0xC000_0087))  # 1 GiB at 3 GiB
    board.set("rbx", 0x4000_0000 + 0x2EE0_0000)
    assert board.run(CODE + 9) is Halt.RETURNED
    assert board.get("rax") == board.get("rdx") == (1 << 64) - 1


def test_ports_that_nothing_answers_at_are_all_ones() -> None:
    """Ports that nothing answers at are all ones."""
    board = make("ecedee")  # in (%dx),%al; in (%dx),%eax; out %al,(%dx)
    board.set("rdx", 0x80)
    board.set("rax", 0)
    assert board.run(CODE + 1) is Halt.RETURNED
    assert board.get("rax") == 0xFF
    assert board.run(CODE + 3) is Halt.RETURNED
    assert board.get("rax") == 0xFFFF_FFFF


def test_the_console_is_a_port() -> None:
    """The console is a port, and the reset register the end."""
    board = make("ee66bafc0c66baf90cb006ee")
    # out %al,(%dx); mov $0xcfc,%dx; mov $0xcf9,%dx; mov $6,%al; out %al,(%dx)
    board.set("rdx", 0x3F8)
    board.set("rax", ord("k"))
    assert board.run(CODE + 0x40) is Halt.OFF
    assert board.wires.console == b"k"


def timer(board: X86Board, count: int, mode: int) -> None:
    """Set the interval timer, and let the interrupt controller give it vector 0x30."""
    for port, value in (
        *((0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01), (0x21, 0xFE)),
        *((0x43, 0x30 | mode << 1), (0x40, count & 0xFF), (0x40, count >> 8)),
    ):
        device, offset = board._ports[port]
        device.write(offset, 1, value)


@pytest.mark.parametrize("mode", [2, 4], ids=["periodic", "once"])
def test_waiting_ends_when_the_timer_fires(mode: int) -> None:
    """Waiting ends when the timer fires; if it fires once, the next time nothing will happen."""
    board = make("f4f4", flags=FLAGS | IF)  # hlt; hlt
    timer(board, 11932, mode)
    before = board.clock.now
    assert board.run(VECTORS + 16 * 0x30) is Halt.RETURNED
    assert 9_999_000 <= board.clock.now - before <= 10_001_000
    assert frame(board, error=False)[0] == CODE + 1
    board.ram.write(VECTORS + 16 * 0x30, bytes.fromhex("b020e62048cf"))
    # mov $0x20,%al; out %al,$0x20; iretq
    board.forget_code()
    board.ram.write(VECTORS + 16 * 0x31, bytes.fromhex("90"))
    halt = board.run(VECTORS + 16 * 0x31)
    assert halt is Halt.STUCK if mode == 4 else halt is not Halt.RETURNED
    assert board.clock.now - before > (10_001_000 if mode == 4 else 19_999_000)


def test_waiting_with_interrupts_off_is_told() -> None:
    """Waiting with interrupts off is told."""
    board = make("f4")
    timer(board, 11932, 4)
    assert board.run(VECTORS) is Halt.STUCK


@pytest.mark.parametrize("code", ["0f31", "0f01f9"], ids=["rdtsc", "rdtscp"])
def test_the_time_stamp_counter_shows_guest_time(code: str) -> None:
    """The time stamp counter shows guest time, and looking takes some."""
    board = make(code * 2)
    board.uc.msr_write(0xC000_0103, 7)
    for number in (1, 2):
        before = board.clock.now
        assert board.run(CODE + number * len(code) // 2) is Halt.RETURNED
        value = board.get("rdx") << 32 | board.get("rax")
        assert before < value == board.clock.now
    if code == "0f01f9":
        assert board.get("rcx") == 7


def test_a_busy_wait_for_the_clock_is_interrupted() -> None:
    """A busy wait for the clock is interrupted, also in a block that reaches into the next page."""
    loop = CODE + 0x1000 - 3
    board = make("90", flags=FLAGS | IF)
    board.ram.write(loop, bytes.fromhex("0f314883c301ebf8"))  # rdtsc; add $1,%rbx; jmp
    board.pc = loop
    timer(board, 1193, 4)
    assert board.run(VECTORS + 16 * 0x30) is Halt.RETURNED
    assert loop <= frame(board, error=False)[0] < loop + 8


def test_the_cpu_says_what_the_record_says() -> None:
    """The CPU says what the record says, and knows no entropy of the host."""
    board = make("0fa2")  # cpuid
    seen = {}
    for leaf in (0, 1, 7, 0x8000_0001, 0x8000_0002):
        board.pc = CODE
        board.set("rax", leaf)
        board.set("rcx", 0)
        assert board.run(CODE + 2) is Halt.RETURNED
        seen[leaf] = {name: board.get(f"r{name}x") for name in "abcd"}
    assert struct.pack("<III", *(seen[0][name] for name in "bdc")) == b"AuthenticAMD"
    assert seen[1]["a"] == seen[0x8000_0001]["a"] == 0x6_0FB1  # as the recordings' cpuinfo: 15, 107
    assert not seen[1]["c"] >> 30 & 1
    assert not seen[7]["b"] >> 18 & 1
    assert seen[1]["c"] >> 25 & 1  # AES
    assert seen[7]["b"] >> 20 & 1  # SMAP
    assert struct.pack("<II", seen[0x8000_0002]["a"], seen[0x8000_0002]["b"]) == b"Unicorn "


def test_a_copy_of_all_is_the_same_computer() -> None:
    """A copy of all is the same computer."""
    board = make("488b03")
    timer(board, 11932, 2)
    board.set("rbx", ABSENT)
    state, ram = board.save(), bytes(board.ram.view)
    board.run(VECTORS + 16 * 14)
    board.restore(state)
    board.ram.write(0, ram)
    assert board.deadline() == state.devices[2]["counters"][0].end
    assert board.pc == CODE
    assert board.run(VECTORS + 16 * 14) is Halt.RETURNED
    assert frame(board, error=True)[:2] == (0, CODE)
