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
from emulator.cpu import Cpu
from emulator.disassembly import Disassembler
from emulator.faults import Stop

MOST = 64  # instructions that are tried
ENCODING = 4  # bytes of the longest, where an instruction's first bytes tell its size


def attempt(arch: Arch, code: bytes) -> None:
    """Execute an instruction by itself, at the end of the last page that is executable."""
    memory = KernelMemory(PhysicalMemory(8 * MIB), arch.loads.address_map())
    start = memory.vmalloc(2 * PAGE_SIZE)
    memory.write(start + PAGE_SIZE - len(code), code)
    memory.page_table.protect(start, PAGE_SIZE, Prot.R | Prot.X)
    cpu = Cpu(arch, memory)
    at = start + PAGE_SIZE - len(code)
    with suppress(Stop):
        cpu.run(at, start + PAGE_SIZE, instructions=1, seconds=1.0)


def find(
    name: str, code: bytes, pc: int, survives: Callable[[Callable[[], object]], bool]
) -> tuple[int, bytes, str] | None:
    """Return address, bytes and text of the first instruction that ends a process, or None.

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
        rest = code[at : at + arch.runs.emulation.longest(code[at:])]
        size = next((size for _, size, _ in disassembler.all(rest, 0)), 0)
        # Of an instruction that the disassembler does not know, the size is tried too: the
        # emulator gives up, alive, where the last one does not end with its page.
        known = size or (0 if arch.runs.emulation.longest(b"") > ENCODING else len(rest))
        for length in (known,) if known else range(1, len(rest) + 1):
            piece = rest[:length]
            if piece and not survives(partial(attempt, arch, piece)):
                text = disassembler.one(piece, pc + at)
                return pc + at, piece, text if size else f"(bytes {piece.hex(' ')})"
        if not known:
            break
        at += known
    return None
