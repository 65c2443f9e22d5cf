# SPDX-License-Identifier: GPL-2.0-or-later
"""What looking on costs: a call plainly, with coverage, and while other memory is watched.

The same call on the same machine in one run, in turns; ratios of medians of CPU time. CRC-16 of
16 KiB is a tight loop of one block, where coverage costs most; a sort calls through pointers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from archs import archs
from machine.machine import ModelledMachine
from samples.modules import root

ROUNDS = 7
CALLS = 5


def median(
    function: Callable[[], object], looking: Callable[[], AbstractContextManager[object]]
) -> float:
    """Return the median CPU time of a call in milliseconds, while somebody looks on."""
    times = []
    for _ in range(ROUNDS):
        with looking():
            function()  # what is translated is not counted
            start = time.process_time_ns()
            for _ in range(CALLS):
                function()
            times.append((time.process_time_ns() - start) / CALLS)
    return statistics.median(times) / 1e6


def main() -> None:
    """Print a line for each architecture and call."""
    print(f"{'arch':9} {'call':8} {'plain ms':>9} {'coverage':>9} {'watch':>7} {'blocks':>8}")
    for arch in archs():
        machine = ModelledMachine(arch, root=root(arch.name))
        data = machine.alloc(bytes(range(256)) * 64)
        other = machine.alloc(16)
        checksums, sorting = machine.load("checksums"), machine.load("sorting")
        calls: dict[str, Callable[[], object]] = {
            "crc16": partial(checksums.call, "checksums_crc16", data, 1 << 14, 0),
            "sort": partial(sorting.call, "sorting_sort", data, 1000),
        }
        for name, call in calls.items():
            plain = median(call, nullcontext)
            covered = median(call, machine.coverage)
            watched = median(call, partial(machine.watch, other, 16))
            with machine.coverage() as coverage:
                call()
            blocks = sum(b.count for c in coverage.covered.values() for b in c.blocks)
            print(
                f"{arch.name:9} {name:8} {plain:9.2f} {covered / plain:8.1f}x "
                f"{watched / plain:6.1f}x {blocks:8,}"
            )


if __name__ == "__main__":
    main()
