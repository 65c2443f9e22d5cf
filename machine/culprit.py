# SPDX-License-Identifier: GPL-2.0-or-later
"""Which instruction of a block an emulator dies over: each is tried in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from allocator import KernelMemory, PhysicalMemory, Prot
from allocator.types import MIB, PAGE_SIZE
from archs import Arch
from archs import arch as arch_by_name
from machine.cpu import Cpu, Stop
from machine.disassembly import Disassembler

MOST = 64  # instructions that are tried


def attempt(arch: Arch, code: bytes) -> None:
    """Execute an instruction by itself, at the end of the last page that is executable."""
    memory = KernelMemory(PhysicalMemory(8 * MIB), arch.address_map())
    start = memory.vmalloc(2 * PAGE_SIZE)
    memory.write(start + PAGE_SIZE - len(code), code)
    memory.page_table.protect(start, PAGE_SIZE, Prot.R | Prot.X)
    cpu = Cpu(arch, memory)
    at = start + PAGE_SIZE - len(code)
    with suppress(Stop):
        cpu.run(at, start + PAGE_SIZE, instructions=1, seconds=1.0)


def find(
    name: str, code: bytes, pc: int, survives: Callable[[Callable[[], object]], bool]
) -> tuple[int, str] | None:
    """Return the address and the text of the first instruction that ends a process, or None.

    Parameters
    ----------
    code
        What stands at `pc`.
    survives
        Tells whether a process survives a function.
    """
    arch = arch_by_name(name)
    disassembler = Disassembler(arch)
    at = 0
    for _ in range(MOST):
        size = instruction_size(arch, disassembler, code[at:])
        if not size:
            break
        piece = code[at : at + size]
        if not survives(partial(attempt, arch, piece)):
            return pc + at, disassembler.one(piece, pc + at)
        at += size
    return None


def instruction_size(arch: Arch, disassembler: Disassembler, code: bytes) -> int:
    """Return the bytes of the first instruction, valid or not; 0 for none."""
    known = next((size for _, size, _ in disassembler.all(code[:16], 0)), 0)
    return known or len(code[: arch.emulation.longest(code)])
