# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted x86-64 kernels: how they see their computer, their processes' faults and their own.

Their first process is let go on with other code, as bytes: GNU as made them of what stands
beside them. The signal that ends it is the kernel's word for what the computer told it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from emulator.boards.board import Halt
from machine.booted.machine import BootedMachine
from tests.support import booted

KERNELS = [(name, folder) for name, folder, arch in booted.releases() if arch.name == "x86_64"]
IP, SP, AX = 128, 152, 80  # in struct pt_regs
SIGILL, SIGTRAP, SIGFPE, SIGSEGV = 4, 5, 8, 11


@pytest.fixture(params=[folder for _, folder in KERNELS], ids=[name for name, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return each x86-64 kernel that is at hand, booted, as it was at first."""
    found = booted.machine(request.param)
    with found.fork():
        yield found


def go_on(machine: BootedMachine, code: str) -> Halt:
    """Let the first process return from its system call to other code; return what ends it."""
    board = machine.kernel.board
    registers = board.get("rdi")
    pc = int.from_bytes(board.read(registers + IP, 8), "little")
    board.write(pc, bytes.fromhex(code))
    board.forget_code()
    return board.run(machine.kernel.guest.trap, seconds=60)


def test_the_computer_is_one_that_linux_takes(machine: BootedMachine) -> None:
    """The computer is one that Linux takes: nothing that it says is a complaint."""
    text = "\n".join(line.text for line in machine.log)
    assert "ACPI: 1 ACPI AML tables successfully acquired and loaded" in text
    assert "ttyS0 at I/O 0x3f8 (irq = 4, base_baud = 115200) is a 16550A" in text
    assert "ACPI: PM: (supports S0)" in text or "ACPI: (supports S0)" in text
    assert re.search(r"clocksource: tsc", text)
    assert "setting system clock to 1970-01-01T00:00:0" in text
    bad = r"\bBUG\b|WARNING|Oops|Call Trace|ACPI.*(Error|Warning)|Firmware Bug|unstable|purious"
    assert re.search(bad, text) is None


def test_the_counter_has_the_frequency_that_is_measured(machine: BootedMachine) -> None:
    """The time stamp counter has the frequency that Linux measures by the interval timer."""
    text = "\n".join(line.text for line in machine.log)
    found = re.search(r"tsc: Detected (\d+\.\d+) MHz", text)
    assert found is not None
    assert float(found[1]) == pytest.approx(1000, rel=2e-4)


@pytest.mark.parametrize(
    ("code", "signal"),
    [
        pytest.param("0f0b", SIGILL, id="ud2"),
        pytest.param("cc", SIGTRAP, id="int3"),
        pytest.param("31c9f7f1", SIGFPE, id="xor %ecx,%ecx; div %ecx"),
        pytest.param("31c08b00", SIGSEGV, id="xor %eax,%eax; mov (%rax),%eax"),
        pytest.param("48b800000000000080ff8a00", SIGSEGV, id="a kernel address"),
        pytest.param("48b80000000000000012ffe0", SIGSEGV, id="no canonical address"),
        pytest.param("f4", SIGSEGV, id="hlt"),
        pytest.param("cd0e", SIGSEGV, id="int $14"),
        pytest.param("488d05f9ffffff880090", SIGSEGV, id="a store into its own code"),
    ],
)
def test_a_fault_of_a_process_is_the_signal_for_it(
    machine: BootedMachine, code: str, signal: int
) -> None:
    """A fault of a process is the signal for it, which is the end of the first."""
    assert go_on(machine, code) is Halt.OFF
    words = f"Attempted to kill init! exitcode={signal:#010x}"
    assert any(words in line.text for line in machine.log)


def test_a_forbidden_interrupt_has_its_error_code(machine: BootedMachine) -> None:
    """A forbidden interrupt has its error code: the gate's number, in the IDT."""
    go_on(machine, "cd0e")
    text = "\n".join(line.text for line in machine.log)
    assert re.search(r"init\[1\].*general protection fault ip:.* error:72", text)


def test_memory_comes_when_a_process_touches_it(machine: BootedMachine) -> None:
    """Memory comes when a process touches it: its stack grows by page faults, and is zero."""
    board = machine.kernel.board
    met = machine.function("__x64_sys_getpgrp")
    sp = int.from_bytes(board.read(board.get("rdi") + SP, 8), "little")
    board.break_at(met, board.stop_here)
    # mov $16,%ecx; mov %rsp,%rbx; 1: sub $4096,%rbx; or (%rbx),%rax; mov %rcx,(%rbx); loop 1b;
    # mov %rax,%rsi; mov $111,%eax; syscall
    code = "b9100000004889e34881eb00100000480b0348890be2f14889c6b86f0000000f05"
    assert go_on(machine, "31c0" + code) is Halt.STOPPED
    assert board.pc == met
    registers = board.get("rdi")
    assert int.from_bytes(board.read(registers + 104, 8), "little") == 0  # RSI
    for page in range(1, 17):
        assert int.from_bytes(board.read(sp - 4096 * page, 8), "little") == 17 - page


def test_a_process_may_call_by_an_interrupt(machine: BootedMachine) -> None:
    """A process may call by an interrupt, as 32-bit programs do."""
    board = machine.kernel.board
    met = machine.function("__x64_sys_getpgrp")
    board.break_at(met, board.stop_here)
    # mov $20,%eax; int $0x80 (getpid); mov %eax,%esi; mov $111,%eax; syscall
    assert go_on(machine, "b814000000cd8089c6b86f0000000f05") is Halt.STOPPED
    assert int.from_bytes(board.read(board.get("rdi") + 104, 8), "little") == 1


def test_a_fault_that_the_kernel_expects_is_mended(machine: BootedMachine) -> None:
    """A fault that the kernel expects is mended: its exception table says where to go on."""
    before = len(machine.log)
    name = next(
        n for n in ("asm_load_gs_index", "native_load_gs_index") if n in machine.kernel.symbols
    )
    machine.call(machine.function(name), 0x7FF8)  # no such selector: #GP
    name = next(
        n for n in ("copy_from_kernel_nofault", "probe_kernel_read") if n in machine.kernel.symbols
    )
    at = machine.alloc(bytes(16))
    assert machine.call(machine.function(name), at, 0xFFFF_FFFF_FFFF_0000, 8) >> 32  # an errno
    assert len(machine.log) == before


def test_a_warning_is_an_instruction_that_goes_on(machine: BootedMachine) -> None:
    """A warning is an instruction (UD2) that goes on, and the kernel's own words."""
    at = machine.alloc(bytes(8))
    machine.call(machine.function("refcount_warn_saturate"), at, 3)
    text = "\n".join(line.text for line in machine.log)
    assert "cut here" in text
    assert "refcount_t: underflow; use-after-free." in text
    assert re.search(r"RIP: 0010:.*refcount_warn_saturate\+0x", text)
    assert "end trace" in text
    assert machine.syscall("getpid") == 1
