# SPDX-License-Identifier: GPL-2.0-or-later
"""Every system register that an instruction can name gives a value or a fault, never the host's.

Each is read, and written and read again, in two processes whose memory lies elsewhere: what
comes from the host (an address, a clock, entropy) would differ. What a kernel reads of a few
comes from the manuals.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest

from allocator.types import MIB
from archs import archs
from emulator.faults import Fault, FaultKind
from machine.machine import Machine
from samples import modules
from tests.machine.snippets import put

_RET = 0xD65F_03C0
SLOT = 32  # bytes for the longest of the functions
SPREAD = 8  # of the registers that debuggers use, which are all refused, every so many


def _words(*words):
    return struct.pack(f"<{len(words)}I", *words)


def _arm64():
    for register in range(1 << 15):
        if register >> 14 or register % SPREAD == 0:
            read, write = 0xD530_0000 | register << 5, 0xD510_0000 | register << 5
            yield register, _words(read, _RET), _words(write, read, _RET)


def _riscv64():
    for csr in range(1 << 12):
        read, write = csr << 20 | 0x2573, csr << 20 | 0x51073  # csrr a0; csrw from a0
        yield csr, _words(read, 0x8067), _words(write, read, 0x8067)


def _x86_64():
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


ALL = {"x86_64": _x86_64, "arm64": _arm64, "riscv64": _riscv64}
# What one function of each architecture returns, and what a kernel sees there.
SEEN = {
    "x86_64": {
        "CS, ring 0": ("8cc8c3", lambda v: v & 3 == 0 and v & 0xFFFF),
        "CR0: PG WP PE": ("0f20c0c3", lambda v: v & 0x8001_0001 == 0x8001_0001),
        "CR3": ("0f20d8c3", lambda v: v != 0),
        "CR4: PAE": ("0f20e0c3", lambda v: v & 0x20),
        "EFER: LMA LME": ("b9800000c00f32c3", lambda v: v & 0x500 == 0x500),
        "a port without a device": ("e460c3", lambda v: v == 0xFF),
    },
    "arm64": {
        "CurrentEL": ("404238d5c0035fd6", lambda v: v == 4),
        "SPSel": ("004238d5c0035fd6", lambda v: v == 1),
        "SCTLR_EL1: M": ("001038d5c0035fd6", lambda v: v & 1 and not v >> 25 & 1),
        "TTBR1_EL1": ("202038d5c0035fd6", lambda v: v != 0),
        "CNTFRQ_EL0": ("00e03bd5c0035fd6", lambda v: v == 62_500_000),
    },
    "riscv64": {
        "satp: a mode and a table": (
            "7325001867800000",
            lambda v: v >> 60 in (8, 9, 10) and v << 20,
        ),
        "sstatus.SIE": ("7325001067800000", lambda v: v & 2),
        "sie": ("7325401067800000", lambda v: v == 0x222),
        "stvec": ("7325501067800000", lambda v: v >> 63),
        "wfi": ("730050101305500067800000", lambda v: v == 5),  # wfi; li a0,5; ret
        "sfence.vma": ("730000121305500067800000", lambda v: v == 5),
        "satp as it was": ("732500187310051867800000", lambda v: v >> 60),  # csrr, csrw, ret
    },
}
# Instructions that belong to somebody else, and what the fault says of them.
REFUSED = {
    "x86_64": {"sysretq": "480f07c3", "syscall": "0f05c3", "rdpmc": "0f33c3"},
    "arm64": {
        "eret": "e0039fd6",
        "mrs hcr_el2": "00113cd5",
        "mrs scr_el3": "00113ed5",
        "msr sctlr_el1": "001018d5",
        "msr ttbr1_el1": "202018d5",
        "mrs mdscr_el1": "400230d5",
        "hlt": "000040d4",
    },
    "riscv64": {
        "csrr mhartid": "732540f1",
        "csrr mstatus": "73250030",
        "csrr mepc": "73251034",
        "csrw satp": "73100018",
        "mret": "73002030",
        "sret": "73002010",
        "uret": "73002000",
    },
}
TRAPS = {
    "x86_64": {"int $0x80": "cd80c3", "int3": "ccc3"},
    "arm64": {"svc": "010000d4", "hvc": "020000d4", "smc": "030000d4", "brk": "000020d4"},
    "riscv64": {"ecall": "73000000", "ebreak": "73001000"},
}


def survey(name):
    """Return what each register holds and takes, or how that ends."""
    machine = Machine(name, memory=64 * MIB)
    machine.seconds = 10.0
    functions = [
        (f"{number:#x} {what}", code)
        for number, *both in ALL[name]()
        for what, code in zip(("read", "written"), both, strict=True)
    ]
    start = put(machine, b"".join(code.ljust(SLOT, b"\0") for _, code in functions))
    found = {}
    for index, (title, _) in enumerate(functions):
        try:
            found[title] = machine.call(start + index * SLOT, (1 << 64) - 1)
        except Fault as fault:
            found[title] = fault.kind.name
    module = machine.load(modules.path(name, "checksums"))
    assert module.call("checksums_crc32", b"123456789", 9, 0, returns="u32") == 0xCBF43926
    return found


def cases(table):
    """Return the parameters of a test for each entry of each architecture."""
    return [
        pytest.param(a.name, n, id=f"{a.name}-{n}") for a in archs() for n in table.get(a.name, {})
    ]


def test_registers_hold_nothing_of_the_host(arch):
    """Two processes read and write the same in every system register there is."""
    if arch.name not in ALL:
        pytest.skip(f"no list of {arch.name}'s registers")
    code = "import json; from tests.emulator.test_registers import survey; print(json.dumps(survey({!r})))"
    command = [sys.executable, "-c", code.format(arch.name)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    first, second = (json.loads(child.communicate()[0]) for child in children)
    assert [child.returncode for child in children] == [0, 0]
    assert first == second
    assert any(isinstance(value, int) for value in first.values())


@pytest.mark.parametrize(("name", "what"), cases(SEEN))
def test_a_kernel_sees_its_own_level(name, what):
    """Control registers read as they do in a kernel that runs at its own privilege."""
    code, holds = SEEN[name][what]
    machine = Machine(name, memory=64 * MIB)
    assert holds(machine.call(put(machine, bytes.fromhex(code))))


@pytest.mark.parametrize(("name", "what"), cases(REFUSED))
def test_what_belongs_to_others_is_refused(name, what):
    """Registers and returns of other privilege levels are invalid instructions, where they stand."""
    machine = Machine(name, memory=64 * MIB)
    at = put(machine, bytes.fromhex(REFUSED[name][what]))
    with pytest.raises(Fault) as caught:
        machine.call(at, 0)
    assert (caught.value.kind, caught.value.pc) == (FaultKind.INSTRUCTION, at)


@pytest.mark.parametrize(("name", "what"), cases(TRAPS))
def test_calls_of_other_levels_trap_where_they_stand(name, what):
    """An instruction that calls another privilege level or a debugger is a trap at its address."""
    machine = Machine(name, memory=64 * MIB)
    at = put(machine, bytes.fromhex(TRAPS[name][what]))
    with pytest.raises(Fault) as caught:
        machine.call(at)
    assert (caught.value.kind, caught.value.pc) == (FaultKind.TRAP, at)
