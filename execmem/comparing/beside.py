# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs that are asked for what a kernel was asked for, in memory such as it had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from sortedcontainers import SortedDict

from allocator import Execmem, KernelMemory, PhysicalMemory
from allocator.designs import DesignLike
from allocator.designs.base import Allocation
from allocator.designs.pool import Pool
from allocator.errors import ExecmemError
from allocator.events import Step
from allocator.types import CORE_AND_INIT, Consumer, Interval, MemType, Paging, Prot, align_down
from allocator.workloads import Alloc, Load, Measures
from allocator.workloads.run import Runner
from archs.levels.boot import Flushing
from archs.versions import MODELLED, Since, version_of
from execmem.comparing.compare import branch_reach
from execmem.comparing.measured import KernelRunner, named
from execmem.comparing.measures import Frames, KernelMeasures


@attrs.frozen(kw_only=True)
class ModelRun:
    """A design that was asked for what the kernel was asked for.

    Parameters
    ----------
    design
        Its name.
    measures
        As for every run of `compare`.
    same_frames
        Whether its memory has the frames that the kernel took; else the lowest free ones, because it
        takes others than the kernel.
    pages, whole
        What the kernel would execute for its flushes, by the architecture's rules: of single pages, and
        of everything.
    consumers
        By consumer (bpf, kprobes, ftrace), areas that it holds, and the leaves that map them by size.
    same_areas
        Areas of kprobes and ftrace at the address that the kernel gave them.
    same_place, same_order
        Live regions at the address that the kernel gave them, and whether all follow each other by
        address as there.
    """

    design: str
    measures: Measures
    same_frames: bool
    pages: int
    whole: int
    consumers: dict[str, dict[str, int]]
    same_areas: int
    same_place: int
    same_order: bool
    regions: int


class Given(PhysicalMemory):
    """Memory whose frames come as a kernel gave them."""

    def __init__(self, size: int, *, paging: Paging) -> None:
        super().__init__(size, paging=paging)
        while self.alloc_run_of_ours() is not None:  # all are somebody's
            pass
        self.pages: list[int] = []
        self.runs: list[int] = []
        self.handed: set[int] = set()  # runs that were taken

    def alloc_run_of_ours(self) -> int | None:
        """Take the largest run that is left."""
        for order in range(self.size.bit_length(), -1, -1):
            found = super().alloc_run(order)
            if found is not None:
                return found
        return None

    @property
    def free_bytes(self) -> int:
        """As much as anybody asks for."""
        return self.size

    def alloc_run(self, order: int) -> int | None:
        """Return the next large run that the kernel had."""
        if order != self.paging.large_order or not self.runs:
            return None
        self.handed.add(self.runs[0])
        return self.runs.pop(0)

    def alloc_frames(self, count: int) -> NDArray[np.uint64]:
        """Return the next frames that the kernel had."""
        if count > len(self.pages):
            raise self._exhausted(count)
        taken, self.pages = self.pages[:count], self.pages[count:]
        return np.array(taken, np.uint64)

    def free(self, address: int, order: int = 0) -> None:
        """Keep them: whoever had them may have them again."""

    def free_frames(self, frames: NDArray[np.uint64]) -> None:
        """Keep them."""


# What Linux makes read-only once more when init is done (module_enable_ro, module_enable_rodata_ro).
_TEXT, _RODATA = (MemType.TEXT, MemType.INIT_TEXT), (MemType.RODATA, MemType.INIT_RODATA)
AGAIN: Since[tuple[MemType, ...]] = Since(
    ((0, 0), _TEXT + _RODATA), ((6, 10), _RODATA), ((6, 14), ())
)


@attrs.frozen
class Noted:
    """A flush that a design asked for.

    Parameters
    ----------
    step, all_cpus
        In which step, and of which CPUs.
    start
        The first address.
    pages
        Of each place: memory's own first, then that of the direct map.
    area
        Pages of the area that it is in.
    """

    step: Step
    all_cpus: bool
    start: int
    pages: tuple[int, ...]
    area: int


class Noting(KernelMemory):
    """Memory that notes each flush."""

    @cached_property
    def noted(self) -> list[Noted]:
        """What was noted."""
        return []

    @cached_property
    def _mapped(self) -> SortedDict:
        return SortedDict()

    def populate(self, va: int, size: int, *args: Any, **more: Any) -> bool:
        """Note the area."""
        self._mapped[va] = size
        return super().populate(va, size, *args, **more)

    def flush_tlb(self, *intervals: Interval, all_cpus: bool = True) -> None:
        """Note it."""
        if not intervals:
            super().flush_tlb(all_cpus=all_cpus)
            return
        start = intervals[0].start
        before = self._mapped.bisect_right(start) - 1
        area = self._mapped.peekitem(before)[1] if before >= 0 else intervals[0].size
        sizes = tuple(each.size // self.page_size for each in intervals)
        self.noted.append(Noted(self._step, all_cpus, start, sizes, area // self.page_size))
        super().flush_tlb(*intervals, all_cpus=all_cpus)


def executed(
    noted: Sequence[Noted], found: KernelMeasures, rules: Flushing, ceiling: int, splits: int
) -> tuple[int, int]:
    """Return what a kernel would execute for flushes of a design: of single pages, of everything.

    A flush of two places or more reached the direct map, too; one that frees an area is given one range
    that holds both, so that everything goes.

    Parameters
    ----------
    splits
        Large leaves that were split.
    """
    version = version_of(found.kernel) or MODELLED
    always, at_once = rules.always_whole.at(version), rules.rox_at_once.at(version)
    pages, whole = 0, splits * rules.splits_whole

    def protect(sizes: Iterable[int], *, aliased: bool) -> None:
        nonlocal pages, whole
        if always or (rules.protects_whole and aliased):
            whole += 1
            return
        for size in sizes:
            if size > ceiling:
                whole += 1
            else:
                pages += size

    before: Noted | None = None
    for each in noted:
        aliased = len(each.pages) > 1
        if not each.all_cpus:
            pages += sum(each.pages)
        elif each.step is Step.FREE:
            whole += 1 + rules.resets * each.pages[0]
        elif at_once and before is not None and not aliased and before.start == each.start:
            pass  # execution, in the step that took the right to write
        elif rules.by_area and aliased:
            protect([each.pages[0], *[1] * each.area], aliased=True)
        else:
            protect(each.pages, aliased=aliased)
        before = each
    for module in (o.module for o in found.asked.operations if isinstance(o, Load) and rules.idle):
        sizes = {region.type: -(-region.size // found.page) for region in module.regions}
        areas = CORE_AND_INIT if module.together else [[kind] for kind in sizes]
        of = {k: sum(sizes.get(kind, 0) for kind in area) for area in areas for k in area}
        for kind, count in sizes.items():
            if not kind.is_text:  # set_memory_nx of what never was executable
                protect([count], aliased=False)
            if kind in AGAIN.at(version):
                protect([count, *[1] * of[kind]] if rules.by_area else [count] * 2, aliased=True)
    return pages, whole


class _Others(Exception):
    """A design took other memory than the kernel."""


def modelled(
    runner: KernelRunner, found: KernelMeasures, designs: Iterable[DesignLike], *, cpus: int
) -> Iterator[ModelRun]:
    """Yield what designs make of what the kernel was asked for.

    Memory is as large, and of the window of modules the same is taken before; frames are those that
    the kernel took, as far as a design takes memory as it does.
    """
    for design in designs:
        try:
            yield _run(runner, found, design, cpus, given=True)
        except _Others:
            yield _run(runner, found, design, cpus, given=False)


def _run(
    runner: KernelRunner, found: KernelMeasures, design: DesignLike, cpus: int, *, given: bool
) -> ModelRun:
    arch, paging = runner.machine.arch, runner.paging
    kind = Given if given else PhysicalMemory
    physical = kind(found.asked.memory, paging=paging)
    # A kernel that may split what is in use has runs in its direct map, and others have none.
    live = runner.address_map.live_splits and runner.has_runs
    memory = Noting(physical, attrs.evolve(runner.address_map, live_splits=live))
    for taken in runner.taken:
        for free in list(memory.free_space.clipped(taken)):
            memory.free_space.remove(free)
    cut = set(runner.cut)
    for offset in [*runner.split, *(cut if live else ())]:  # as it was before
        page = memory.direct_map.start + offset
        memory.page_table.change(page, runner.page, off=Prot.W)
        memory.page_table.change(page, runner.page, on=Prot.RW)
        if offset not in cut:
            memory.page_table.fold(page)
    for hole in runner.holes if given else ():  # else its frames could be anybody's
        memory.page_table.unmap(memory.direct_map.start + hole.start, hole.size)
    already = memory.events.direct_map_splits
    execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke, design=design)
    model = Runner(execmem, branch_reach(arch), rules=arch.loads.tlb, cpus=cpus)
    frames = iter(runner.frames)
    pools = [isinstance(store, Pool) for store in execmem.design.stores()]
    if given and (sum(pools) > 1 or all(pools)):
        raise _Others  # large runs for what the kernel has in pages
    for operation in found.asked.operations:
        if isinstance(operation, Load) and isinstance(physical, Given):
            together = operation.module.together and execmem.mixes
            large = memory.large_size if any(pools) else None
            _give(physical, next(frames), large, together=together)
        elif isinstance(operation, Alloc) and isinstance(physical, Given):
            held = runner.area_frames.get(operation.key)
            large = memory.large_size if any(pools) else None
            _give(physical, {} if held is None else {MemType.TEXT: held}, large, together=False)
        refused = len(model.failures)
        try:
            model.step(operation)
        except ExecmemError as error:
            if given:
                raise _Others from error
            raise
        if given and len(model.failures) > refused:
            raise _Others
    theirs = [
        (name, kind, at) for name, held in found.regions.items() for kind, (at, _) in held.items()
    ]
    ours = {
        (name.replace("-", "_"), kind.name): allocation.address
        for name, held in model.live.items()
        for kind, allocation in held.items()
    }
    pairs = [(at, ours.get((name, kind))) for name, kind, at in theirs]
    places = [mine for _, mine in sorted(pairs, key=lambda pair: pair[0])]
    known = [place for place in places if place is not None]
    assert arch.boot is not None
    rules, events = arch.boot.flushing, memory.events
    splits = events.direct_map_splits + events.leaf_splits - already
    pages, whole = executed(memory.noted, found, rules, arch.loads.tlb.ceiling, splits)
    return ModelRun(
        design=execmem.design.name,
        measures=model.measure(itlb=False),
        same_frames=given,
        pages=pages,
        whole=whole,
        consumers=_consumers(model.held, memory),
        same_areas=sum(
            key in model.held and model.held[key].address == at for key, at in found.areas.items()
        ),
        same_place=sum(at == mine for at, mine in pairs),
        same_order=len(known) == len(places) and known == sorted(known),
        regions=len(pairs),
    )


def _consumers(held: Mapping[str, Allocation], memory: KernelMemory) -> dict[str, dict[str, int]]:
    """Return what consumers other than modules hold, and which leaves map it."""
    found = {}
    for consumer in (Consumer.BPF, Consumer.KPROBES, Consumer.FTRACE):
        areas = [each.interval for each in held.values() if each.consumer is consumer]
        leaves = {(leaf.va, leaf.size) for area in areas for leaf in memory.page_table.leaves(area)}
        counts = Counter(named(size) for _, size in leaves)
        found[consumer.value] = {"areas": len(areas), **counts}
    return found


def _give(
    physical: Given, frames: dict[MemType, Frames], large: int | None, *, together: bool
) -> None:
    """Let memory have the frames of a load, in the order in which they are asked for.

    Text that lies in chunks has `large` runs, else pages as all other memory.
    """
    kinds = [k for area in CORE_AND_INIT for k in area] if together else list(MemType)
    physical.pages.clear()
    physical.runs.clear()
    for kind in kinds:
        if kind not in frames:
            continue
        held = frames[kind]
        if kind.is_text and large is not None:
            run = align_down(held.pages[0], large)
            if run not in physical.handed and run not in physical.runs:
                physical.runs.append(run)
        else:
            physical.pages += held.pages
