# SPDX-License-Identifier: GPL-2.0-or-later
"""A workload under a design as a film: after every few operations, what each page holds.

The operations are carried out by the runner that `execmem compare` measures with, so a frame's
measures are what `compare` says of a workload that ends there. A frame tells only what changed
since the one before; the first tells everything. Pages are told in runs of equal ones, by a
palette: which memory type lives there, under how large a leaf, with which protection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator import Allocation, Execmem
from allocator.designs import DesignLike
from allocator.types import PAGE_SIZE, ExecmemType, Hex, Interval, MemType, Prot, align_down
from allocator.workloads import Alloc, Load, Operation, Pages, Patch, Quiet, Runner, Workload
from allocator.workloads.run import CPUS
from archs import Arch
from execmem.comparing.compare import branch_reach, execmem_for

FRAMES = 80
# What `compare` says of a whole run and a frame does not: it takes long, or is the host's time.
LEFT_OUT = (
    *("itlb_misses", "itlb_walks", "walk_reads", "failures"),
    *("seconds", "microseconds_per_operation"),
)


def film(
    arch: Arch,
    load: Workload,
    design: DesignLike,
    *,
    frames: int = FRAMES,
    closely: int | None = None,
    page: int = PAGE_SIZE,
    kaslr: int | None = None,
    text_poke: bool = True,
    cpus: int = CPUS,
    progress: Callable[[int], None] = lambda _done: None,
) -> dict[str, Any]:
    """Run a workload and return what memory was like at so many moments.

    Parameters
    ----------
    frames
        Moments beside the one before everything, evenly many operations apart; fewer where there
        are not so many operations.
    closely
        An operation, counted from 1, inside of which there are more: whenever memory was
        taken, sealed or freed. The film ends with it.
    page, kaslr, text_poke, cpus
        As `execmem compare` takes them.
    progress
        Told how many operations are done.

    Raises
    ------
    ExecmemError
        No such design; DesignError where one from outside fails.
    """
    execmem = execmem_for(
        arch, design, memory=load.memory, page=page, kaslr=kaslr, text_poke=text_poke
    )
    runner = Runner(execmem, branch_reach(arch), rules=arch.loads.tlb, cpus=cpus)
    camera = _Camera(execmem, runner)
    total = len(load.operations)
    ends = [total * n // frames for n in range(1, frames + 1)]
    if closely is not None:
        ends = [end for end in ends if end < closely - 1] + [closely - 1, closely]
    camera.shoot(0, "")
    done = 0
    for end in sorted(set(ends) - {0}):
        for number, operation in enumerate(load.operations[done:end], done + 1):
            execmem.observer = camera if number == closely else None
            runner.step(operation)
        if end == total:
            runner.quiet()
        camera.shoot(end, told(load.operations[end - 1]))
        done = end
        progress(end)
    execmem.observer = None  # else they would hold each other, and two gigabytes
    return {
        "arch": arch.name,
        "title": arch.title,
        "design": execmem.design.name,
        "workload": load.name,
        "kaslr": None if kaslr is None else str(kaslr),
        "text_poke": execmem.text_poke is not None,
        "operations": total,
        "page": execmem.memory.page_size,
        "large": execmem.memory.large_size,
        "memory": load.memory,
        "areas": [
            {"kind": kind, "start": Hex(where.start), "end": Hex(where.end)}
            for kind, where in camera.areas
        ],
        "palette": camera.colours(),
        "chunks": [Hex(at) for at in camera.chunks],
        "frames": camera.frames,
    }


def told(operation: Operation) -> str:
    """Return an operation in words."""
    if isinstance(operation, Load):
        return f"load {operation.module.name}"
    if isinstance(operation, Alloc):
        return f"{operation.consumer.value} takes {operation.size} bytes ({operation.key})"
    if isinstance(operation, Patch):
        return f"{operation.sites} places of {operation.module} are written"
    if isinstance(operation, Quiet):
        return "nobody asks for memory"
    if isinstance(operation, Pages):
        return f"the rest of the kernel takes {operation.count} pages"
    return f"{type(operation).__name__.lower()} {next(iter(attrs.astuple(operation)))}"


class _Camera:
    """Looks at memory and tells what changed since it looked before."""

    def __init__(self, execmem: Execmem, runner: Runner) -> None:
        self._execmem = execmem
        self._memory = execmem.memory
        self._runner = runner
        self._leaves = execmem.memory.paging.leaves
        self._image = execmem.memory.address_map.image
        self.areas = _areas(execmem)
        self.palette: dict[int, int] = {0: 0}  # a page's code -> its number
        self.chunks: dict[int, int] = {}  # address -> its number, in order of first use
        self._held: dict[int, tuple[list[int], int]] = {}
        self._blocks: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._counts: dict[int, int] = {}
        self._events = self._memory.events.copy()
        self.frames: list[dict[str, Any]] = []
        self._pending: dict[int, Allocation] = {}

    def allocated(self, allocation: Allocation, *, align: int) -> None:
        """Take a frame: memory is pending."""
        del align
        self._pending[allocation.address] = allocation
        self._inside("taken", allocation)

    def quieted(self) -> None:
        """See what memory is like when nobody asks for more."""
        self.shoot(self.frames[-1]["operation"], "what was put off is done", inside=True)

    def sealed(self, allocation: Allocation) -> None:
        """Take a frame: memory is read-only from now on."""
        self._inside("sealed", allocation)

    def freed(self, allocation: Allocation) -> None:
        """Take a frame: memory went back."""
        self._pending.pop(allocation.address, None)
        self._inside("freed", allocation)

    def _inside(self, what: str, allocation: Allocation) -> None:
        told = f"{what}: {allocation.type.name} of {allocation.consumer.value}"
        self.shoot(self.frames[-1]["operation"], told, inside=True)

    def shoot(self, operation: int, last: str, *, inside: bool = False) -> None:
        """Take a frame: measures of all so far, and what changed since the frame before."""
        now = self._memory.events.copy()
        events = {name: count for name, count in (now - self._events).as_dict().items() if count}
        self._events = now
        measures = attrs.asdict(self._runner.measure(itlb=False))
        refused = len(measures["failures"])
        for name in LEFT_OUT:
            del measures[name]
        frame = {
            "operation": operation,
            "inside": inside,
            "last": last,
            "measures": measures | {"refused": refused},
            "events": events,
            "chunks": self._changed_chunks(),
            "direct_map": self._changed_blocks(),
        }
        self.frames.append(frame)

    def colours(self) -> list[dict[str, Any]]:
        """Return the palette: what the numbers of pages stand for."""
        found = []
        for code in self.palette:
            kind, leaf, prot = code & 7, code >> 3 & 7, Prot(code >> 6 & 7)
            found.append(
                {
                    "type": MemType(kind - 1).name if kind else None,
                    "leaf": self._leaves[leaf - 1] if leaf else 0,
                    "prot": str(prot) if leaf else "",
                }
            )
        return found

    def _changed_chunks(self) -> list[dict[str, Any]]:
        """Return the chunks whose pages or live bytes are others than before."""
        memory = self._memory
        page, large = memory.page_size, memory.large_size
        rows: dict[int, NDArray[np.uint16]] = {}
        live: dict[int, int] = {}
        for _, area in self.areas:
            for leaf in memory.page_table.leaves(area):
                if leaf.va in self._image:
                    continue
                code = self._leaves.index(leaf.size) + 1 << 3 | leaf.prot.value << 6
                for at, stop in _pieces(leaf.va, leaf.va + leaf.size, large):
                    row = rows.get(chunk := align_down(at, large))
                    if row is None:
                        row = rows[chunk] = np.zeros(large // page, np.uint16)
                    row[(at - chunk) // page : (stop - chunk) // page] = code
        held = {each.address: each for each in self._execmem.allocations()}
        for allocation in (held | self._pending).values():
            interval = allocation.interval
            for at, stop in _pieces(interval.start, interval.end, large):
                chunk = align_down(at, large)
                live[chunk] = live.get(chunk, 0) + stop - at
                row = rows[chunk]
                first, last = (at - chunk) // page, -(-(stop - chunk) // page)
                row[first:last] = row[first:last] & ~np.uint16(7) | allocation.type.value + 1
        changed = []
        for chunk in sorted(rows.keys() | self._held.keys()):
            row = rows.get(chunk)
            runs = [0, large // page] if row is None else self._runs(row)
            state = runs, live.get(chunk, 0)
            if state == self._held.get(chunk, ([0, large // page], 0)):
                continue
            self._held[chunk] = state
            number = self.chunks.setdefault(chunk, len(self.chunks))
            changed.append({"chunk": number, "runs": runs, "live": state[1]})
        return changed

    def _runs(self, row: NDArray[np.uint16]) -> list[int]:
        """Return pages as runs: a number of the palette, how many pages, and so on."""
        starts = np.concatenate(([0], np.flatnonzero(np.diff(row)) + 1))
        found: list[int] = []
        for code, count in zip(
            row[starts].tolist(), np.diff(np.append(starts, row.size)).tolist(), strict=True
        ):
            found += (self.palette.setdefault(code, len(self.palette)), count)
        return found

    def _changed_blocks(self) -> list[int]:
        """Return, of the direct map, which blocks of a large leaf are mapped by which leaves now.

        A number for each change: the block's, times 4, plus the size of its leaves (1: pages or runs of
        them, 2: large ones or runs of these, 3: larger ones).
        """
        table, area = self._memory.page_table, self._memory.direct_map
        counts = table.leaf_counts(area)
        if counts == self._counts:
            return []
        self._counts = counts
        large, upper = self._memory.large_size, self._memory.paging.upper
        now = np.zeros(-(-area.size // large), np.uint8)
        at = area.start
        while at < area.end:
            found = table.translate(at)
            size = found.leaf if found is not None else large
            first, count = (at - area.start) // large, max(size // large, 1)
            level = 1 + (size >= large) + (size >= upper)
            now[first : first + count] = 0 if found is None else level
            at += count * large
        before = self._blocks if self._blocks.size else np.zeros_like(now)
        self._blocks = now
        return [int(index) * 4 + int(now[index]) for index in np.flatnonzero(now != before)]


def _pieces(start: int, end: int, large: int) -> Iterator[tuple[int, int]]:
    """Yield an interval in pieces that do not leave a chunk."""
    while start < end:
        stop = min(end, align_down(start, large) + large)
        yield start, stop
        start = stop


def _areas(execmem: Execmem) -> list[tuple[str, Interval]]:
    """Return where executable memory may lie, by kind, ascending and disjoint."""
    address_map = execmem.memory.address_map
    ranges = [address_map.range_of(kind) for kind in ExecmemType]
    found = {spec.range: "module window" for spec in ranges}
    for spec in ranges:
        if spec.fallback is not None:
            found.setdefault(spec.fallback, "fallback window")
    found[address_map.vmalloc] = "vmalloc"
    areas: list[tuple[str, Interval]] = []
    end = 0
    for where in sorted(found, key=lambda each: (each.start, -each.end)):
        start = max(where.start, end)
        if start < where.end:
            areas.append((found[where], Interval(start, where.end)))
            end = where.end
    return areas
