# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call costs beside the bare Unicorn call, and what limits cost in a long one.

The same function of the same module on the same engine: once through `Module.call`, once
by setting the registers and starting Unicorn by hand. Ratios of medians of CPU time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from archs import archs
from machine.machine import Machine
from samples.modules import root

ROUNDS, CALLS = 7, 1000
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


def bare(machine: Machine, address: int) -> Callable[[], int]:
    """Return the least that calls the function: registers, emu_start, result."""
    calling, uc, register = machine.arch.calling, machine.cpu.uc, machine.cpu.register
    registers = [register(name) for name in calling.arguments[: len(ARGUMENTS)]]
    result, stack = register(calling.result), register(calling.stack_pointer)
    end, top = machine.kernel.return_address, machine.memory.vmalloc(0x1000) + 0xFF8
    machine.write(top, end.to_bytes(8, "little"))
    link = register(calling.link) if calling.link else None

    def call() -> int:
        for number, value in zip(registers, ARGUMENTS, strict=True):
            uc.reg_write(number, value)
        uc.reg_write(stack, top)
        if link is not None:
            uc.reg_write(link, end)
        uc.emu_start(address, end)
        return int(uc.reg_read(result))

    return call


def main() -> None:
    """Print one line per architecture."""
    print(f"{'arch':8} {'call us':>8} {'bare us':>8} {'ratio':>6}")
    for arch in archs():
        machine = Machine(arch, root=root(arch.name))
        module = machine.load(MODULE)
        least = bare(machine, module.symbols[FUNCTION])
        if least() != module.call(FUNCTION, *ARGUMENTS):
            raise SystemExit(f"{arch.name}: the two calls disagree")
        mine = per_call(lambda m=module: m.call(FUNCTION, *ARGUMENTS))
        alone = per_call(least)
        print(f"{arch.name:8} {mine:8.1f} {alone:8.1f} {mine / alone:6.2f}")


if __name__ == "__main__":
    main()
