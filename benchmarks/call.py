# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call costs beside the bare Unicorn call, and what limits cost in a long one.

The same function of the same module on the same engine: once through `Module.call`, once
by setting the registers and starting Unicorn by hand. Ratios of medians of CPU time. The
long one is LZ4 of 1 MiB, where `EXECMEM_CORPUS` has the module; with a limit on instructions
the emulator calls back for each of them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from archs import archs
from machine.machine import ModelledMachine
from samples.modules import root

ROUNDS, CALLS = 7, 1000
LZ4 = "LZ4_compress_default"
MODULE, FUNCTION, ARGUMENTS = "mathlib", "mathlib_gcd", (12, 18)


def per_call(function: Callable[[], object]) -> float:
    """Return the median CPU time of one call in microseconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time_ns()
        for _ in range(CALLS):
            function()
        times.append((time.process_time_ns() - start) / CALLS)
    return statistics.median(times) / 1e3


def bare(machine: ModelledMachine, address: int, arguments: tuple[int, ...]) -> Callable[[], int]:
    """Return the least that calls the function: registers, emu_start, result."""
    calling, uc, register = machine.arch.runs.calling, machine.cpu.uc, machine.cpu.register
    registers = [register(name) for name in calling.arguments[: len(arguments)]]
    result, stack = register(calling.result), register(calling.stack_pointer)
    end, top = machine.kernel.return_address, machine.memory.vmalloc(0x1000) + 0xFF8
    machine.write(top, end.to_bytes(8, "little"))
    link = register(calling.link) if calling.link else None

    def call() -> int:
        for number, value in zip(registers, arguments, strict=True):
            uc.reg_write(number, value)
        uc.reg_write(stack, top)
        if link is not None:
            uc.reg_write(link, end)
        uc.emu_start(address, end)
        return int(uc.reg_read(result))

    return call


def once(function: Callable[[], object]) -> float:
    """Return the median CPU time of one run in milliseconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time_ns()
        function()
        times.append(time.process_time_ns() - start)
    return statistics.median(times) / 1e6


def compression(folder: Path) -> None:
    """Print what LZ4 of 1 MiB costs: through a call, bare, and with counted instructions."""
    print(f"{'LZ4 1 MiB':10} {'call ms':>8} {'bare ms':>8} {'ratio':>6} {'counted ms':>11}")
    data = b"".join(b"%d bottles of beer, %d hexes " % (n, n * n) for n in range(60000))[: 1 << 20]
    for arch in archs():
        found = [folder / name for name in (arch.name, *arch.aliases) if (folder / name).is_dir()]
        if not found:
            continue
        machine = ModelledMachine(arch, root=found[0])
        module = machine.load("lz4_compress")
        room = len(data) + len(data) // 255 + 16
        work = machine.alloc(1 << 14)
        arguments = (machine.alloc(data), machine.alloc(room), len(data), room, work)
        least = bare(machine, module.symbols[LZ4], arguments)
        mine = once(lambda m=module, a=arguments: m.call(LZ4, *a))
        alone = once(least)
        counted = once(lambda m=module, a=arguments: m.call(LZ4, *a, instructions=1 << 40))
        ratio = f"{mine / alone:6.2f}"
        print(f"{arch.name:10} {mine:8.1f} {alone:8.1f} {ratio} {counted:11.1f}")


def main() -> None:
    """Print one line per architecture."""
    print(f"{'arch':8} {'call us':>8} {'bare us':>8} {'ratio':>6}")
    for arch in archs():
        machine = ModelledMachine(arch, root=root(arch.name))
        module = machine.load(MODULE)
        least = bare(machine, module.symbols[FUNCTION], ARGUMENTS)
        if least() != module.call(FUNCTION, *ARGUMENTS):
            raise SystemExit(f"{arch.name}: the two calls disagree")
        mine = per_call(lambda m=module: m.call(FUNCTION, *ARGUMENTS))
        alone = per_call(least)
        print(f"{arch.name:8} {mine:8.1f} {alone:8.1f} {mine / alone:6.2f}")
    corpus = os.environ.get("EXECMEM_CORPUS")
    if corpus:
        compression(Path(corpus))


if __name__ == "__main__":
    main()
