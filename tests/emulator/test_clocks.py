# SPDX-License-Identifier: GPL-2.0-or-later
"""Clocks and random numbers of the CPU follow guest time and a seed, and nothing of the host.

The oracles are the manuals' rules (a counter never runs backwards, its frequency is what the
frequency register or variable says) and a second process, which must see the same.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from machine.machine import Machine
from tests.machine.snippets import put

# A function that returns what it reads, by architecture; comments say what it was assembled from.
CLOCKS = {
    "x86_64": {
        "rdtsc": "0f3148c1e2204809d0c3",  # rdtsc; shl $32,%rdx; or %rdx,%rax; ret
        "rdtscp": "0f01f948c1e2204809d0c3",
    },
    "arm64": {
        "cntvct_el0": "40e03bd5c0035fd6",  # mrs x0,cntvct_el0; ret
        "cntpct_el0": "20e03bd5c0035fd6",
        "pmccntr_el0": "009d3bd5c0035fd6",
    },
    "riscv64": {
        "time": "732510c067800000",  # rdtime a0; ret
        "cycle": "732500c067800000",
        "instret": "732520c067800000",
    },
}
HERTZ = {"cntvct_el0": 62_500_000, "cntpct_el0": 62_500_000, "time": 10_000_000}  # else 1 GHz
RANDOM = {
    "x86_64": {
        "rdrand": "480fc7f0c3",  # rdrand %rax; ret
        "rdrand32": "0fc7f0c3",
        "rdrand16": "660fc7f0c3",
        "rdrand r9": "490fc7f14c89c8c3",  # rdrand %r9; mov %r9,%rax; ret
        "rdseed": "480fc7f8c3",
    },
    "arm64": {
        "rndr": "00243bd5c0035fd6",  # mrs x0,s3_3_c2_c4_0; ret
        "rndrrs": "20243bd5c0035fd6",
    },
    "riscv64": {},
}
# Waits until a clock has moved on by as much as its argument, and returns by how much it has.
WAIT = {
    # rdtsc; shl $32,%rdx; or %rdx,%rax; mov %rax,%rcx; 1: rdtsc; shl $32,%rdx; or %rdx,%rax;
    # sub %rcx,%rax; cmp %rdi,%rax; jb 1b; ret
    "x86_64": "0f3148c1e2204809d04889c10f3148c1e2204809d04829c84839f872efc3",
    # mrs x1,cntvct_el0; 1: mrs x2,cntvct_el0; sub x2,x2,x1; cmp x2,x0; b.lo 1b; mov x0,x2; ret
    "arm64": "41e03bd542e03bd5420001cb5f0000eba3ffff54e00302aac0035fd6",
    # rdtime a1; 1: rdtime a2; sub a2,a2,a1; bltu a2,a0,1b; mv a0,a2; ret
    "riscv64": "f32510c0732610c03306b640e36ca6fe1305060067800000",
}


def of_arch(table, arch):
    """Return an architecture's functions, or skip the test."""
    found = table.get(arch.name)
    if not found:
        pytest.skip(f"nothing for {arch.name}")
    return found


def values(name, *, seed=0):
    """Return what every clock and generator of an architecture returns, read twice in turn."""
    machine = Machine(name, seed=seed)
    functions = {**CLOCKS.get(name, {}), **RANDOM.get(name, {})}
    placed = {each: put(machine, bytes.fromhex(code)) for each, code in functions.items()}
    return {each: [machine.call(at), machine.call(at)] for each, at in placed.items()}


def test_two_processes_read_the_same(arch):
    """Clocks and random numbers are equal in another process, and differ with the seed."""
    code = f"import json; from tests.emulator.test_clocks import values; print(json.dumps(values({arch.name!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = values(arch.name)
    assert json.loads(done.stdout) == mine
    other = values(arch.name, seed=1)
    assert other == values(arch.name, seed=1)
    for name in RANDOM[arch.name]:
        assert mine[name] != other[name]


def test_clocks_follow_guest_time(arch):
    """A clock never runs backwards, and advances by its frequency while the guest sleeps."""
    machine = Machine(arch)
    for name, code in of_arch(CLOCKS, arch).items():
        read = put(machine, bytes.fromhex(code))
        before, then = machine.call(read), machine.call(read)
        assert before < then
        machine.sleep(2)
        hertz = HERTZ.get(name, 1_000_000_000)
        assert 2 * hertz <= machine.call(read) - then < 2.001 * hertz


def test_random_numbers_are_not_all_alike(arch):
    """Each reading of a generator is another number, as wide as the register that takes it."""
    machine = Machine(arch)
    for name, code in of_arch(RANDOM, arch).items():
        read = put(machine, bytes.fromhex(code))
        found = {machine.call(read) for _ in range(16)}
        assert len(found) == 16
        width = {"rdrand32": 32, "rdrand16": 16}.get(name, 64)
        assert width - 4 <= max(found).bit_length() <= width


def test_loops_that_wait_for_a_clock_end(arch):
    """Code that polls a clock until time has passed comes to its end."""
    machine = Machine(arch)
    wait = put(machine, bytes.fromhex(of_arch(WAIT, arch)))
    assert 20_000 <= machine.call(wait, 20_000) < 30_000


def test_code_that_was_changed_reads_the_clock_as_well(arch):
    """Where a clock's instruction takes the place of other code, guest time answers."""
    machine = Machine(arch)
    for code in of_arch(CLOCKS, arch).values():
        read = put(machine, bytes.fromhex(code))
        plain = put(machine, bytes(len(bytes.fromhex(code))))
        machine.execmem.poke(plain, bytes.fromhex(code))
        first = machine.call(read)
        assert 0 < machine.call(plain) - first < 10_000
