# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines as cores: ELF files that debuggers of kernels open, as /proc/vmcore is one.

Every page that the kernel has mapped is there by its virtual and its physical address; pages that
several addresses lead to stand in the file once. The direct map has all memory, also what is not
mapped now, as in the kernel's own dumps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from allocator.files import replacing
from allocator.memory import KernelMemory
from archs import Arch
from emulator.cpu import Cpu
from emulator.paging import Run
from loader import vmcore
from loader.vmcore import Extent, Note, prstatus

PIECE = 1 << 24  # bytes
_MODELLED = (
    "VMCOREINFO, tasks, lists of modules and the log: the modelled kernel is Python, and has none in"
    " memory (a machine whose kernel is booted has all of it)"
)

Progress = Callable[[int, int], object]


@attrs.frozen
class CoreFile:
    """A core that was written.

    Parameters
    ----------
    path
        The file.
    size
        Bytes, holes included.
    segments
        Pieces of memory in it.
    lacks
        What is not in it, and why.
    """

    path: str
    size: int
    segments: int
    lacks: tuple[str, ...]


def modelled(
    path: str | Path,
    arch: Arch,
    memory: KernelMemory,
    cpus: Sequence[Cpu],
    on_progress: Progress | None,
) -> CoreFile:
    """Write a core of a modelled kernel; see `ModelledMachine.core`."""
    notes = [
        prstatus(
            [cpu.read(name) if name else 0 for name in arch.runs.gregset],
            number,
            arch.link.dialect.order,
        )
        for number, cpu in enumerate(cpus)
    ]
    physical = memory.physical
    used = physical.used().nonzero()[0]
    size = (int(used[-1]) + 1) * physical.paging.page
    leaves = (Run(leaf.va, leaf.pa, leaf.size) for leaf in memory.page_table.leaves())
    runs = [
        attrs.evolve(run, size=min(run.size, size - run.physical))
        for run in _joined(leaves)
        if run.physical < size
    ]
    pieces = (
        (start, bytes(physical.view[start : min(start + PIECE, size)]))
        for start in range(0, size, PIECE)
    )
    kept = Kept(((0, size),), pieces)
    extents = list(extents_of(runs, kept))
    return write(path, arch, notes, extents, size, pieces, [_MODELLED], on_progress)


def _joined(runs: Iterable[Run]) -> Iterator[Run]:
    """Yield runs by address, those that lie in a row as one."""
    before: Run | None = None
    for run in runs:
        if before is not None:
            if run.address == before.end and run.physical == before.physical + before.size:
                before = attrs.evolve(before, size=before.size + run.size)
                continue
            yield before
        before = run
    if before is not None:
        yield before


@attrs.frozen
class Kept:
    """Memory that goes into a core.

    Parameters
    ----------
    ranges
        Physical addresses: pairs of start and end, in order.
    pieces
        What may be other than zero: offset in all ranges one behind the other, whole pages.
    """

    ranges: tuple[tuple[int, int], ...]
    pieces: Iterable[tuple[int, bytes]]

    @property
    def size(self) -> int:
        """Bytes of all ranges."""
        return sum(end - start for start, end in self.ranges)

    def of(self, run: Run) -> Iterator[Extent]:
        """Yield what of a run is kept."""
        before = 0
        for start, end in self.ranges:
            low, high = max(run.physical, start), min(run.physical + run.size, end)
            if low < high:
                at = run.address + low - run.physical
                yield Extent(at, low, before + low - start, high - low)
            before += end - start


def extents_of(runs: Sequence[Run], kept: Kept) -> Iterator[Extent]:
    """Yield what a core has of memory: the direct map, and every run that is no part of it.

    The direct map is the linear mapping that has most of the memory. It comes last, as in the kernel's
    own dumps: makedumpfile takes the last one for it.
    """
    weights: Counter[int] = Counter()
    for run in runs:
        weights[run.address - run.physical] += run.size
    ((direct, _),) = weights.most_common(1)
    for run in runs:
        if run.address - run.physical != direct:
            yield from kept.of(run)
    for start, end in kept.ranges:
        yield from kept.of(Run(direct + start, start, end - start))


def write(
    path: str | Path,
    arch: Arch,
    notes: Sequence[Note],
    extents: Sequence[Extent],
    size: int,
    pieces: Iterable[tuple[int, bytes]],
    lacks: Sequence[str],
    on_progress: Progress | None,
) -> CoreFile:
    """Write a core.

    Parameters
    ----------
    extents
        Memory, with offsets into what `pieces` have.
    size
        Bytes of it.
    pieces
        What may be other than zero: offset, whole pages.
    lacks
        What is not in it.
    """
    begin = vmcore.head(arch.machine, 0, arch.link.dialect.order, notes, extents)

    def told() -> Iterator[tuple[int, bytes]]:
        for at, data in pieces:
            if on_progress is not None:
                on_progress(at, size)
            yield at, data

    with replacing(path) as file:
        whole = vmcore.store(file, begin, size, told())
    return CoreFile(str(path), whole, len(extents), tuple(lacks))
