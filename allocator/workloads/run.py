# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a workload against one Execmem and measure what the design made of it.

A module goes the way that the kernel's loader takes it: allocate every region, write,
finish, run init (nothing here), seal RO_AFTER_INIT, free init memory. Contents are zeros;
protections, pokes and flushes happen for real, and the page table and the allocator count
them. A module that gets no memory, or memory from where its calls can reach nothing, is
refused: everything it took goes back, the run continues, and the failure is reported.
What depends on a refused module is refused too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import attrs

from allocator.designs.base import Allocation
from allocator.errors import AllocationError, DesignError, ExecmemError
from allocator.events import Events, FlushCosts, flush_costs
from allocator.execmem import Execmem, Pending, Report
from allocator.types import (
    CORE_AND_INIT,
    Consumer,
    ExecmemType,
    Interval,
    MemType,
    Site,
    TlbRules,
    size_text,
)
from allocator.workloads.cores import CORES
from allocator.workloads.itlb import CalledText, Translations, mapped, translations
from allocator.workloads.operations import (
    Alloc,
    Free,
    Load,
    Module,
    Operation,
    Pages,
    Patch,
    Quiet,
    Region,
    Seal,
    Settle,
    Unload,
    Workload,
)
from allocator.workloads.overtime import OverTime, leaf_name, pinned
from allocator.workloads.reach import BranchReach, within

SITE = 8  # bytes that are written at a place: an instruction or two, in whole granules
_BRANCHING = (Consumer.FTRACE, Consumer.THUNK)
CPUS = 64  # of the machine whose interrupts are counted, where nobody says how many
ONE_BY_ONE = TlbRules(name="page by page on all CPUs", interrupts=False, ceiling=1 << 64)


@attrs.frozen(kw_only=True)
class RefusedOperation:
    """A refused operation: its place in the workload, who, which memory, and why."""

    operation: int
    who: str
    what: str
    size: int
    reason: str


@attrs.frozen(kw_only=True)
class Measures:
    """What one design made of one workload.

    Parameters
    ----------
    modules
        Modules that were loaded, unloaded ones included.
    modules_before_first_plt
        Those of them before the first that needs a PLT entry; all, when none does.
    plt_modules, plt_slots
        Modules that need PLT entries, and the entries they reserve: their text, or a
        module's text that they call, lies where a direct branch does not get.
    out_of_reach
        Trampolines and thunks from where a direct branch does not reach all of the image.
    leaves
        By type: leaves that hold live memory of the type, by size; a run is one leaf.
    leaf_entries
        By type: entries of page tables that these are.
    large_share, run_share
        By type: share of live bytes under large leaves, and under runs of pages, 0..1.
    direct_map_splits, direct_map_before, direct_map_after
        Direct-map leaves split during the run; its leaves by size before and at the end.
    run_splits, direct_map_run_splits, run_entries
        Runs split, of what was allocated and of the direct map; entries that were written again for
        runs that were split or made.
    tlb_flushes, tlb_flushes_local, tlb_flushes_all
        Flushes: all of them, those of one CPU, those of all CPUs.
    flushes
        By step, what CPUs do for them, on how many CPUs (`allocator.events.FlushCosts`).
    icache_syncs
        Times that all CPUs were made to fetch what was written.
    entries_made, entries_cleared, entries_changed, leaves_resized
        Updates of page tables, by what has to follow (`allocator.events.Events`).
    padding_bytes
        Bytes that live allocations hold beyond what was asked for.
    largest_free_share
        Largest free run of the module window as a share of its free address space.
    chunks_pinned
        2 MiB regions mapped as a whole of which less than a sixteenth is in use.
    free_mapped_bytes
        Mapped memory that no allocation uses.
    window_used, fallback_used
        Address space taken from the window of module text, and from the rest of its
        fallback window.
    fallbacks
        Allocations that took the fallback range, freed ones included.
    itlb_misses
        By core: first-level instruction TLB misses per million calls (`itlb`).
    itlb_walks, walk_reads
        By core: misses of the last level per million calls, and what these page walks read of
        page tables, at least and at most.
    operations
        Calls of alloc and free.
    """

    modules: int
    modules_before_first_plt: int
    plt_modules: int
    plt_slots: int
    out_of_reach: int
    leaves: dict[str, dict[str, int]]
    leaf_entries: dict[str, int]
    large_share: dict[str, float]
    run_share: dict[str, float]
    direct_map_splits: int
    direct_map_before: dict[str, int]
    direct_map_after: dict[str, int]
    tlb_flushes: int
    tlb_flushes_local: int
    tlb_flushes_all: int
    flushes: FlushCosts
    cpus: int
    icache_syncs: int
    entries_made: int
    entries_cleared: int
    entries_changed: int
    leaves_resized: int
    run_splits: int
    direct_map_run_splits: int
    run_entries: int
    pokes: int
    poked_bytes: int
    padding_bytes: int
    free_mapped_bytes: int
    largest_free_share: float
    chunks_pinned: int
    window_used: int
    fallback_used: int
    fallbacks: int
    refills: int
    chunks_returned: int
    guard_pages: int
    live_bytes: int
    itlb_misses: dict[str, float]
    itlb_walks: dict[str, float]
    walk_reads: dict[str, list[float]]
    failures: tuple[RefusedOperation, ...]
    operations: int
    seconds: float
    microseconds_per_operation: float


class Runner:
    """Carries out operations one after the other and remembers what is live.

    Parameters
    ----------
    execmem
        Fresh, or used before; only what happens from now on is measured.
    reach
        How far calls get on this architecture.
    rules, cpus
        How TLBs of all CPUs are flushed there, and how many are online.
    watch
        Told what each operation cost.
    """

    def __init__(
        self,
        execmem: Execmem,
        reach: BranchReach,
        *,
        rules: TlbRules = ONE_BY_ONE,
        cpus: int = CPUS,
        watch: OverTime | None = None,
    ) -> None:
        self.execmem = execmem
        self._watch = watch
        self.reach = reach
        self.rules, self.cpus = rules, cpus
        self.failures: list[RefusedOperation] = []
        self._memory = execmem.memory
        self._image = self._memory.address_map.image
        self._window = self._memory.address_map.range_of(ExecmemType.MODULE_TEXT)
        self._modules: dict[str, tuple[Module, dict[MemType, Allocation]]] = {}
        self._coming: set[str] = set()
        self._held: dict[str, Allocation] = {}
        self._failed: set[str] = set()
        self._loaded = self._plt_modules = self._plt_slots = self._operations = 0
        self._before_first_plt: int | None = None
        self._done = 0
        self._events = self._memory.events.copy()
        self._flushes = self._memory.flushes.copy()
        self._direct_map = self._leaves_of_direct_map()
        self._free = self._free_space()
        self._seconds = 0.0

    def step(self, operation: Operation) -> None:
        """Carry out one operation; a refusal by the allocator becomes a `RefusedOperation`.

        DesignError where a design from outside fails, which ends the run.
        """
        began = time.perf_counter() - self.execmem.design.aside
        if isinstance(operation, Load):
            self._load(operation.module, settled=operation.settled)
        elif isinstance(operation, Settle):
            self._settle(operation.module)
        elif isinstance(operation, Alloc):
            self._alloc(operation)
        elif isinstance(operation, Unload):
            self._unload(operation.module)
        elif isinstance(operation, Free):
            self._release(operation.key)
        elif isinstance(operation, Seal):
            self._seal(operation.key)
        elif isinstance(operation, Patch):
            self._patch(operation)
        elif isinstance(operation, Quiet):
            self.execmem.quiet()
        else:
            self._pages(operation)
        self._seconds += time.perf_counter() - self.execmem.design.aside - began
        self._done += 1
        if self._watch is not None:
            self._watch.note(operation, self.execmem)

    def quiet(self) -> None:
        """Let the design do what it puts off until nobody asks."""
        began = time.perf_counter() - self.execmem.design.aside
        self.execmem.quiet()
        self._seconds += time.perf_counter() - self.execmem.design.aside - began

    def measure(self, *, itlb: bool = True) -> Measures:
        """Return the measures of everything since the start; without `itlb`, no misses."""
        report = self.execmem.report()
        events = report.events - self._events
        free, fetches = self._free_space(), self._translations() if itlb else {}
        return Measures(
            modules=self._loaded,
            modules_before_first_plt=(
                self._loaded if self._before_first_plt is None else self._before_first_plt
            ),
            plt_modules=self._plt_modules,
            plt_slots=self._plt_slots,
            out_of_reach=self._out_of_reach(),
            leaves=self._leaves(report),
            leaf_entries={
                kind.name: sum(
                    count * self._memory.paging.entries_of(size)
                    for size, count in report.leaves.get(kind, {}).items()
                )
                for kind in MemType
            },
            large_share={kind.name: report.large_share.get(kind, 0.0) for kind in MemType},
            run_share={kind.name: report.run_share.get(kind, 0.0) for kind in MemType},
            direct_map_before=self._direct_map,
            direct_map_after=self._leaves_of_direct_map(),
            chunks_pinned=pinned(self.execmem)[0],
            window_used=self._free[0] - free[0],
            fallback_used=self._free[1] - free[1],
            padding_bytes=report.padding_bytes,
            free_mapped_bytes=report.free_mapped_bytes,
            largest_free_share=report.largest_free_share,
            live_bytes=sum(report.bytes.values()),
            itlb_misses={name: each.misses for name, each in fetches.items()},
            itlb_walks={name: each.walks for name, each in fetches.items()},
            walk_reads={name: list(each.reads) for name, each in fetches.items()},
            failures=tuple(self.failures),
            operations=self._operations,
            seconds=self._seconds,
            microseconds_per_operation=self._seconds * 1e6 / max(self._operations, 1),
            flushes=flush_costs(self._memory.flushes - self._flushes, self.rules, cpus=self.cpus),
            cpus=self.cpus,
            leaves_resized=events.resized,
            **_counts(events),
        )

    @property
    def live(self) -> dict[str, dict[MemType, Allocation]]:
        """What each module holds."""
        return {name: live for name, (_, live) in self._modules.items()}

    @property
    def held(self) -> dict[str, Allocation]:
        """What others than modules hold, by key."""
        return dict(self._held)

    def _load(self, module: Module, *, settled: bool) -> None:
        missing = [name for name in module.depends if name in self._failed]
        if missing:
            self._fail(module.name, f"needs {missing[0]}, which was refused")
            self._failed.add(module.name)
            return
        if module.name in self._modules:
            self._fail(module.name, "is loaded already")
            return
        callees = [
            self._modules[name][1][MemType.TEXT].interval
            for name in module.depends
            if name in self._modules and MemType.TEXT in self._modules[name][1]
        ]
        pending: dict[MemType, Pending] = {}
        live: dict[MemType, Allocation] = {}
        try:
            with ExitStack() as undo:
                for area in self._areas(module):
                    self._operations += 1
                    taken = self.execmem.alloc_area(
                        {region.type: region.size for region in area},
                        align=max(region.align for region in area),
                    )
                    pending |= {kind: undo.enter_context(one) for kind, one in taken.items()}
                for region in module.regions:
                    if region.type in pending:
                        continue
                    self._operations += 1
                    alone = self.execmem.alloc(region.type, region.size, align=region.align)
                    pending[region.type] = undo.enter_context(alone)
                texts = [
                    Interval(text.address, text.address + text.size)
                    for text in pending.values()
                    if text.type.is_text
                ]
                direct = self._reach(module, texts, callees)
                undo.callback(self.execmem.give_back, pending.values())
                self.execmem.write_many((one, 0, bytes(one.size)) for one in pending.values())
                live = dict(zip(pending, self.execmem.finish_many(pending.values()), strict=True))
                undo.pop_all()
        except DesignError:
            raise  # nobody knows what the design has left behind
        except ExecmemError as error:
            self._fail(module.name, error)
            self._failed.add(module.name)
            return
        self._failed.discard(module.name)
        if not direct:
            self._plt_modules += 1
            self._plt_slots += sum(module.plt_slots)
            if self._before_first_plt is None:
                self._before_first_plt = self._loaded
        self._loaded += 1
        self._modules[module.name] = (module, live)
        self._coming.add(module.name)
        if settled:
            self._settle(module.name)

    def _areas(self, module: Module) -> Iterator[list[Region]]:
        """Yield which regions of a module the design allocates as one."""
        if module.together and self.execmem.mixes:
            by_type = {region.type: region for region in module.regions}
            for kinds in CORE_AND_INIT:
                if found := [by_type[kind] for kind in kinds if kind in by_type]:
                    yield found

    def _settle(self, name: str) -> None:
        if name not in self._coming:
            return
        self._coming.discard(name)
        _, live = self._modules[name]
        if MemType.RO_AFTER_INIT in live:
            self.execmem.seal(live[MemType.RO_AFTER_INIT])
        self._free_all([live.pop(kind) for kind in list(live) if kind.is_init])

    def _reach(self, module: Module, texts: list[Interval], callees: list[Interval]) -> bool:
        """Return whether every call is direct; AllocationError where one reaches nothing."""
        kernel, modules, _ = module.calls
        targets = [self._image, *callees]
        if not (kernel or modules or any(module.plt_slots)) or all(
            self.reach.reaches(text, target) for text in texts for target in targets
        ):
            return True
        plt = self.reach.plt if any(module.plt_slots) else None
        called = targets if kernel or any(module.plt_slots) else callees
        for text in texts:
            lost = [to for to in called if not self.reach.touches(text, to)]
            if lost and (plt is None or not all(within(text, to, plt) for to in called)):
                what = "the kernel image" if lost[0] is self._image else "a module it needs"
                distance = size_text(abs(lost[0].start - text.start))
                reason = f"a call from {text.start:#x} does not reach {what}, {distance} away"
                raise AllocationError(
                    f"text of {module.name}",
                    text.size,
                    (self._window.range,),
                    reason + (", not even through a PLT entry" if plt else ""),
                )
        return not any(module.plt_slots)

    def _alloc(self, operation: Alloc) -> None:
        self._operations += 1
        if operation.key in self._held:
            self._fail(operation.key, "is allocated already")
            return
        try:
            with self.execmem.alloc(
                operation.type,
                operation.size,
                consumer=operation.consumer,
                align=operation.align,
            ) as pending:
                pending.write(0, bytes(operation.size))
                self._held[operation.key] = pending.finish()
        except DesignError:
            raise
        except ExecmemError as error:
            self._fail(operation.key, error)

    def _unload(self, name: str) -> None:
        if name not in self._modules:
            return
        self._coming.discard(name)
        # DATA goes last: it holds struct module.
        _, live = self._modules.pop(name)
        self._free_all([live[k] for k in sorted(live, key=lambda kind: kind is MemType.DATA)])

    def _free_all(self, allocations: Sequence[Allocation]) -> None:
        self._operations += len(allocations)
        self.execmem.free_many(one.address for one in allocations)

    def _seal(self, key: str) -> None:
        if key in self._held:
            try:
                self.execmem.seal(self._held[key])
            except DesignError:
                raise
            except ExecmemError as error:
                self._fail(key, error)

    def _patch(self, operation: Patch) -> None:
        """Write NOPs' length at evenly spread places of a module's text, in one batch."""
        if operation.module not in self._modules:
            return
        text = self._modules[operation.module][1].get(MemType.TEXT)
        places = 0 if text is None else text.size // SITE
        step = max(1, places // operation.sites)
        try:
            self.execmem.poke_many(
                (
                    Site(text.address + SITE * place, bytes(SITE))
                    for place in range(0, places, step)[: operation.sites]
                    if text is not None
                ),
                through_window=True,
            )
        except DesignError:
            raise
        except ExecmemError as error:
            self._fail(operation.module, error)

    def _release(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._operations += 1
            self.execmem.free(held.address)

    def _pages(self, operation: Pages) -> None:
        try:
            self._memory.physical.alloc_frames(operation.count)
        except ExecmemError as error:
            self._fail("pages", error)

    def _fail(self, who: str, why: ExecmemError | str) -> None:
        what, size, reason = "", 0, str(why)
        if isinstance(why, AllocationError):
            what, size, reason = why.what, why.size, why.reason
        self.failures.append(
            RefusedOperation(operation=self._done, who=who, what=what, size=size, reason=reason)
        )

    def _out_of_reach(self) -> int:
        return sum(
            not self.reach.reaches(held.interval, self._image)
            for held in self._held.values()
            if held.consumer in _BRANCHING
        )

    def _leaves_of_direct_map(self) -> dict[str, int]:
        leaves = self._memory.page_table.leaf_counts(self._memory.direct_map)
        return {leaf_name(size): count for size, count in leaves.items()}

    def _leaves(self, report: Report) -> dict[str, dict[str, int]]:
        large = self._memory.large_size
        sizes = [size for size in self._memory.paging.leaves if size <= large]
        return {
            kind.name: {leaf_name(size): report.leaves.get(kind, {}).get(size, 0) for size in sizes}
            for kind in MemType
        }

    def _free_space(self) -> tuple[int, int]:
        """Return free address space of the text window, and of the rest of its fallback."""
        space, where = self._memory.free_space, self._window
        fallback = where.fallback or Interval(0, 0)
        both = Interval(max(fallback.start, where.range.start), min(fallback.end, where.range.end))
        free, beside, shared = (
            sum(part.size for part in space.clipped(within)) if within.size > 0 else 0
            for within in (where.range, fallback, both)
        )
        return free, beside - shared

    def _translations(self) -> dict[str, Translations]:
        targets = [
            CalledText(live[MemType.TEXT].interval, module.calls)
            for module, live in self._modules.values()
            if MemType.TEXT in live
        ]
        targets += [CalledText(held.interval) for held in self._held.values() if held.type.is_text]
        page, longest = self._memory.page_size, max(core.merges for core in CORES.values())
        leaves, runs = mapped(self._memory.page_table, targets, page, longest)
        return translations(targets, leaves, self._image, runs=runs, paging=self._memory.paging)


def run(
    workload: Workload,
    execmem: Execmem,
    reach: BranchReach,
    *,
    rules: TlbRules = ONE_BY_ONE,
    cpus: int = CPUS,
    progress: Callable[[int], None] = lambda _done: None,
    watch: OverTime | None = None,
) -> Measures:
    """Run every operation of a workload and return the measures.

    Parameters
    ----------
    rules, cpus
        See `Runner`.
    progress
        Told now and then how many operations are done.
    watch
        Looks at memory on the way, before anything and when all was given time to heal, too.
    """
    runner = Runner(execmem, reach, rules=rules, cpus=cpus, watch=watch)
    total = len(workload.operations)
    looks = set() if watch is None else {0, *watch.ends(total)} - {total}
    for number, operation in enumerate(workload.operations):
        if watch is not None and number in looks:
            watch.look(execmem, number)
        runner.step(operation)
        if number % 64 == 0:
            progress(number)
    runner.quiet()
    if watch is not None:
        watch.look(execmem, total)
    progress(total)
    return runner.measure()


def _counts(events: Events) -> dict[str, int]:
    names = (
        "direct_map_splits",
        "tlb_flushes",
        "tlb_flushes_local",
        "tlb_flushes_all",
        "icache_syncs",
        "entries_made",
        "entries_cleared",
        "entries_changed",
        "run_splits",
        "direct_map_run_splits",
        "run_entries",
        "pokes",
        "poked_bytes",
        "fallbacks",
        "refills",
        "chunks_returned",
        "guard_pages",
    )
    return {name: getattr(events, name) for name in names}
