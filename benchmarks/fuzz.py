# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions a second of the fuzzer's rounds, beside a bare Unicorn loop over the same function.

python -m benchmarks.fuzz [ARCH] runs the sample's CRC over 64 bytes in the modelled kernel: bare
(registers and input set, the emulator started, memory dropped), as rounds without coverage, with it,
and with mutation, which is what `execmem fuzz` does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from execmem import Machine
from execmem.fuzzing.mutate import Mutator
from samples.modules import root

COUNT = 3000


def rate(work: Callable[[], object]) -> float:
    """Return how often a second something can be done; the best of three."""
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(COUNT):
            work()
        best = max(best, COUNT / (time.perf_counter() - began))
    return best


def main(name: str = "arm64") -> None:
    """Print a line for each."""
    machine: Any = Machine(name, root=root(name))
    module = machine.load("checksums")
    address, data = module.symbols["checksums_crc32"], bytes(range(64))
    section = next(each for each in module.sections.values() if each.name == ".text")
    rounds = machine.rounds([(section.address, section.address + section.size)])
    buffer = rounds.buffer(4096)
    mutator = Mutator(64)
    with rounds:
        cpu, calling = machine.cpu, machine.arch.runs.calling
        at = buffer.put(data)
        rounds.run(lambda: rounds.call(address, (at, 64, 0)))
        end = machine.kernel.return_address
        names = (
            *calling.arguments[:3],
            calling.stack_pointer,
            calling.link or calling.arguments[2],
        )
        bank = cpu.bank(names)
        top = machine.calls.stack.start + 0x3F00
        if calling.link is None:
            machine.memory.write(top, end.to_bytes(8, "little"))

        def bare() -> None:
            buffer.put(data)
            if calling.link is None:
                machine.memory.write(top, end.to_bytes(8, "little"))
            bank([at, 64, 0, top, end if calling.link else 0])
            cpu.uc.emu_start(address, end)
            rounds._ram.drop()  # noqa: SLF001 -- what a bare loop would do itself

        def whole() -> None:
            rounds.run(lambda: rounds.call(address, (buffer.put(data), 64, 0)))

        inputs = iter(mutator.inputs([data], 1, 10 * COUNT))

        def mutated() -> None:
            each = next(inputs)
            rounds.run(lambda: rounds.call(address, (buffer.put(each), len(each), 0)))

        first = rate(bare)
        print(f"{name}: bare {first:,.0f}/s")
        for what, work in (("rounds with coverage", whole), ("and mutation", mutated)):
            found = rate(work)
            print(f"{name}: {what} {found:,.0f}/s, {found / first:.2f} of bare")


if __name__ == "__main__":
    main(*sys.argv[1:])
