# SPDX-License-Identifier: GPL-2.0-or-later
"""What it costs to write text through the alias, beside a plain write; a batch beside single ones.

The same bytes at the same distances: stored plainly in writable memory, poked one by one,
poked in one batch, poked by a CPU's own stores, patched live. A CPU drops what it must not
use any more when it executes again, so calls are measured too, with a poke before them and
without. Then one poke of more and more bytes. CPU time, medians; ratios to the plain write of
the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from allocator import Events, Site
from allocator.types import KIB, PAGE_SIZE, MemType
from archs import Arch, archs
from machine.machine import ModelledMachine

# An even number of rounds: each one writes back what the one before changed.
ROUNDS, SITES, DISTANCE, CPUS = 8, 128, 256, 4


def median(function: Callable[[], object]) -> float:
    """Return the median CPU time of a call in microseconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time_ns()
        function()
        times.append(time.process_time_ns() - start)
    return statistics.median(times) / 1e3


def measure(arch: Arch) -> None:
    """Print the costs on one architecture: a machine of CPUS CPUs, each of which must hear."""
    live = arch.live_patch
    if live is None:
        return
    machine = ModelledMachine(arch, cpus=CPUS)
    execmem, memory = machine.execmem, machine.memory
    pending = execmem.alloc(MemType.TEXT, 64 * KIB, align=PAGE_SIZE)
    text, data = pending.address, memory.vmalloc(64 * KIB)
    places = [text + n * DISTANCE for n in range(SITES)]
    # Jumps, so that the live protocols take them; each round writes what differs from before.
    jumps = [(live.jump(p, text) or b"", live.jump(p, text + 64) or b"") for p in places]
    for place, (old, _) in zip(places, jumps, strict=True):
        pending.write(place - text, old)
    pending.finish()
    turn = 0

    def sites() -> list[Site]:
        nonlocal turn
        turn ^= 1
        return [Site(p, j[turn], j[1 - turn]) for p, j in zip(places, jumps, strict=True)]

    def plain() -> None:
        for site in sites():
            memory.write(site.address - text + data, site.new)

    def single(write: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            for site in sites():
                write(site.address, site.new, expected=site.old)

        return run

    ret = execmem.alloc(MemType.TEXT, 64)
    ret.write(0, arch.runs.emulation.ret)
    nothing = ret.finish().address

    def called(*_: object, **__: object) -> None:
        for cpu in range(CPUS):
            machine.call(nothing, cpu=cpu)

    def poked_and_called(address: int, new: bytes, *, expected: bytes | None) -> None:
        execmem.poke(address, new, expected)
        called()

    ways = {
        "plain write": plain,
        "poke, one by one": single(execmem.poke),
        "poke, in one batch": lambda: execmem.poke_many(sites()),
        "poke by a CPU's stores": single(machine.poke),
        "live patch, one by one": single(machine.patch),
        "live patch, in one batch": lambda: machine.patch_many(sites()),
        "call on every CPU": single(called),
        "poke, then call on every CPU": single(poked_and_called),
    }
    plainly = 0.0
    for name, way in ways.items():
        before = memory.events.copy()
        cost = median(way) / SITES
        plainly = plainly or cost
        line(arch, name, len(jumps[0][0]), cost, plainly, memory.events - before, ROUNDS * SITES)
    for size in (64, PAGE_SIZE, 64 * KIB):
        new = bytes(size)
        plainly = median(lambda new=new: memory.write(data, new))
        before = memory.events.copy()
        cost = median(lambda new=new: execmem.poke(text, new))
        line(arch, "one poke", size, cost, plainly, memory.events - before, ROUNDS)


def line(
    arch: Arch, name: str, size: int, cost: float, plainly: float, events: Events, times: int
) -> None:
    """Print one row: what a write cost, and the flushes and synchronisations that it caused."""
    print(
        f"{arch.name:8} {name:28} {size:6} {cost:9.2f} {1e6 / cost:9.0f} {cost / plainly:8.1f} "
        f"{events.tlb_flushes / times:8.2f} {events.icache_syncs / times:6.2f}"
    )


def main() -> None:
    """Print one block per architecture."""
    print(
        f"{'arch':8} {f'way ({SITES} sites)':28} {'bytes':>6} {'us':>9} {'a second':>9} "
        f"{'x plain':>8} {'flushes':>8} {'syncs':>6}"
    )
    for arch in archs():
        measure(arch)


if __name__ == "__main__":
    main()
