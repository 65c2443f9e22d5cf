# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operation costs, and a live area occupies, from a thousand live areas to a million.

BPF-like programs (64 to 512 bytes) and areas of one page, on arm64, whose BPF text has the
whole vmalloc range: no other window holds a million pages with guard pages between them.
Memory grows from one size to the next with a free after every eighth allocation, so that
there are holes to search; then, with that many areas alive, operations are measured. The
floor keeps the same addresses in a sorted dict: insert, delete, and the lookup of what
begins at or below an address. That is the least that anything that finds areas by address
does.

    python -m benchmarks.alloc                     # to a million areas: about ten minutes
    python -m benchmarks.alloc --largest 100000    # under a minute
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

from sortedcontainers import SortedDict

from allocator import Allocation, Consumer, Execmem, KernelMemory, MemType, Pending, PhysicalMemory
from allocator.types import GIB, PAGE_SIZE
from archs import arch

SIZES = {"programs": range(64, 513), "pages": range(PAGE_SIZE, PAGE_SIZE + 1)}
# Under vmalloc a program takes a page, so programs stand for both.
CASES = (("vmalloc", "programs"), ("strata", "programs"), ("strata", "pages"))
COUNTS = (10**3, 10**4, 10**5, 10**6)
ROUNDS, BATCH, HOLES = 5, 500, 8


class Areas:
    """Live areas of one design, and the sizes that new ones have."""

    def __init__(self, design: str, sizes: range, largest: int) -> None:
        self.chance = random.Random(1)
        self.sizes = sizes
        arm64 = arch("arm64")
        # A quarter more than what is alive, and the emptiest chunk of every stratum.
        memory = PhysicalMemory(GIB + largest * PAGE_SIZE * 5 // 4)
        self.execmem = Execmem(
            KernelMemory(memory, arm64.loads.address_map(None)),
            trap=arm64.loads.trap,
            text_poke=arm64.text_poke,
            design=design,
        )
        self.live: list[int] = []

    def alloc(self) -> Pending:
        """Take text of a size by chance."""
        size = self.chance.choice(self.sizes)
        return self.execmem.alloc(MemType.TEXT, size, consumer=Consumer.BPF)

    def grow(self, count: int) -> None:
        """Allocate until `count` areas are alive, freeing one in `HOLES` on the way."""
        while len(self.live) < count:
            for _ in range(min(HOLES, count - len(self.live))):
                self.live.append(self.alloc().finish().address)
            if len(self.live) < count:
                self.execmem.free(self.victim())

    def victim(self) -> int:
        """Take an address out of the live ones by chance and return it."""
        index = self.chance.randrange(len(self.live))
        self.live[index], self.live[-1] = self.live[-1], self.live[index]
        return self.live.pop()

    def round(self) -> Iterator[float]:
        """Yield microseconds of alloc, write with finish, lookup and free, one of each."""
        pending, taken = timed(self.alloc, [()] * BATCH)
        yield taken
        contents = [(one, b"\x5a" * one.size) for one in pending]
        finished, taken = timed(_written, contents)
        yield taken
        self.live += [one.address for one in finished]
        wanted = [(address,) for address in self.chance.choices(self.live, k=BATCH)]
        found, taken = timed(self.execmem.find, wanted)
        assert all(found), "an area that lives is not found"
        yield taken
        _, taken = timed(self.execmem.free, [(self.victim(),) for _ in range(BATCH)])
        yield taken


def _written(pending: Pending, data: bytes) -> Allocation:
    pending.write(0, data)
    return pending.finish()


def timed(function: Callable[..., object], arguments: list[tuple[object, ...]]) -> tuple:
    """Return the results of the calls, and the CPU time of one in microseconds."""
    began = time.process_time_ns()
    results = [function(*given) for given in arguments]
    return results, (time.process_time_ns() - began) / 1e3 / len(arguments)


def floor(live: list[int], chance: random.Random) -> tuple[float, float, float]:
    """Return what inserting, finding and deleting cost in a sorted dict of these addresses."""
    held = SortedDict((address, None) for address in live)
    fresh = [(chance.choice(live) + 1, None) for _ in range(BATCH)]
    _, insert = timed(held.__setitem__, fresh)
    _, find = timed(
        lambda address: held.peekitem(held.bisect_right(address) - 1),
        [(address,) for address in chance.choices(live, k=BATCH)],
    )
    _, delete = timed(held.__delitem__, [(key,) for key, _ in dict(fresh).items()])
    return insert, find, delete


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(design: str, kind: str, largest: int) -> None:
    """Print one line per number of live areas."""
    areas = Areas(design, SIZES[kind], largest)
    areas.grow(HOLES)
    physical = areas.execmem.memory.physical
    before = resident() - (physical.size - physical.free_bytes)
    for count in (count for count in COUNTS if count <= largest):
        areas.grow(count)
        rounds = [tuple(areas.round()) for _ in range(ROUNDS)]
        own = [statistics.median(column) for column in zip(*rounds, strict=True)]
        host = resident() - before - (physical.size - physical.free_bytes)
        floors = [floor(areas.live, areas.chance) for _ in range(ROUNDS)]
        least = [statistics.median(column) for column in zip(*floors, strict=True)]
        figures = " ".join(f"{figure:6.1f}" for figure in (*own, *least))
        times = f"{sum(own) / sum(least):6.1f}"
        print(f"{design:8} {kind:9} {count:8} {figures} {times} {host / count:6.0f}", flush=True)


def main() -> None:
    """Measure every design and kind of area, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=COUNTS[-1], metavar="N")
    largest = parser.parse_args().largest
    print("CPU microseconds per operation; x: all four, divided by insert, find and delete of a")
    print("sorted dict. bytes: resident memory per live area, without the memory it hands out.")
    names = ("alloc", "write", "find", "free", "insert", "find", "delete", "x", "bytes")
    print(f"{'design':8} {'areas':9} {'live':>8} " + " ".join(f"{name:>6}" for name in names))
    sys.stdout.flush()
    for design, kind in CASES:
        # What one leaves behind would spoil the memory of the next.
        process = get_context("spawn").Process(target=measure, args=(design, kind, largest))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
