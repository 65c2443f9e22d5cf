# SPDX-License-Identifier: GPL-2.0-or-later
"""What checks cost: a parser that allocates and frees five objects a call, beside no checks.

That is as bad as it gets: whoever computes more and allocates less pays less. Ratios of medians of
CPU time; on the modelled kernel of each architecture, with the sample module `parserclean`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from archs import archs
from machine.machine import ModelledMachine
from samples.modules import root

ROUNDS, CALLS = 5, 200
DATA = b"PRS\x01n\x08#1234567c\x08!1234567s\x08abcdefghe\x01~k\x03+12m\x01="


def per_call(function: Callable[[], object]) -> float:
    """Return the median CPU time of one call in microseconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time_ns()
        for _ in range(CALLS):
            function()
        times.append((time.process_time_ns() - start) / CALLS)
    return statistics.median(times) / 1e3


def cost(arch: str, *checks: str, kasan: bool = False) -> float:
    """Return what a call takes under checks."""
    machine = ModelledMachine(arch, root=root(arch), kasan=kasan)
    if checks:
        machine.sanitize(*checks)
    module = machine.load("parserclean")
    return per_call(lambda: module.call("parser_parse", DATA, len(DATA)))


def main() -> None:
    """Print a line for each architecture."""
    print(f"{'arch':10} {'plain us':>8} {'guard':>6} {'all':>6} {'kasan':>6}")
    for arch in archs():
        plain = cost(arch.name)
        ratios = [cost(arch.name, "guard") / plain, cost(arch.name, "guard,leaks,locks,wx") / plain]
        if arch.runs.emulation.delay_slots is None:
            ratios.append(cost(arch.name, kasan=True) / plain)
        print(f"{arch.name:10} {plain:8.0f} " + " ".join(f"{ratio:6.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
