# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a recorded kernel put every region of its modules, predicted from the order of loads.

The design that the kernel had, over its own ranges, plays the boot again: for each module, in
the order in which they came, a region per memory type (before Linux 6.4: an area for core and
one for init), whole pages and a guard page, first fit from the lowest address; once init has
returned, its init regions are free for the next module. Where the kernel caches text (x86-64
since 6.15) it is carved out of chunks of 2 MiB in the same way. On x86-64 the first BPF program
pack, 2 MiB, stands before everything else.

`/proc/modules` gives the order, newest first. A module whose load failed is not listed; it
is put where the list of loads has it, if that was kept, else where its text shows that it came.
Where KASLR chose the start of the range, the first module says which it was. Of a module whose
file nobody has, the kernel's word is taken for where it lies. After a deviation the kernel's
address is taken too, so that each region is judged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import attrs

import archs
from allocator import AllocationError, Execmem
from allocator.designs.base import Allocation, Place, Request
from allocator.designs.pool import Pool
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import (
    CORE_AND_INIT,
    LARGE_PAGE_SIZE,
    MIB,
    PAGE_SIZE,
    AddressMap,
    Consumer,
    ExecmemRange,
    ExecmemType,
    Hex,
    Interval,
    MemType,
    align_down,
    align_up,
    size_text,
)
from archs import Arch
from loader.elf import arch_of, parse
from loader.errors import BadModule
from loader.files import SUFFIXES, module_name, read_module
from loader.kallsyms import sizes_with_symbols
from loader.kernel.config import page_size_in
from loader.layout import TOGETHER, plan
from loader.recording import RecordedBoot, Recording, image_of

PageSpan: TypeAlias = tuple[int, int]  # address, and size in bytes

LATE, UNKNOWN = "init memory of earlier modules freed late", "unknown"
SIZE = "another size"
AMONG = "after modules of which only the text's address and the size are known"
IMAGE = ("_start", "_text", "_stext")  # where a kernel's image begins, as far as symbols tell
BPF_PACK = LARGE_PAGE_SIZE  # bytes, per NUMA node
MEMORY = 256 * MIB  # room for the largest region; nothing is written


@attrs.frozen
class Deviation:
    """A region that lies elsewhere, or has another size, than predicted; sizes in bytes.

    Parameters
    ----------
    reason
        One of a few; `modules` are those that it is about.
    """

    module: str
    type: MemType
    predicted: PageSpan
    recorded: PageSpan
    reason: str
    modules: tuple[str, ...] = ()


@attrs.frozen
class Placed:
    """One boot played again.

    Parameters
    ----------
    loads
        Modules that were placed: recorded, from a file only, and unknown but for their place.
    regions, equal
        Recorded regions, and those whose address and size were predicted.
    slide
        How far KASLR moved the range, as the first module says; None where it did not.
    """

    arch: str
    run: str
    loads: tuple[int, int, int]
    regions: int
    equal: int
    deviations: tuple[Deviation, ...]
    slide: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        recorded, files, unknown = self.loads
        return {
            "arch": self.arch,
            "run": self.run,
            "modules": recorded,
            "modules_not_recorded": files,
            "modules_unknown": unknown,
            "regions": self.regions,
            "regions_equal": self.equal,
            "slide": None if self.slide is None else Hex(self.slide),
            "deviations": [
                {
                    "module": d.module,
                    "type": d.type.name,
                    "predicted": _region(d.predicted),
                    "recorded": _region(d.recorded),
                    "reason": d.reason,
                    "because_of": list(d.modules),
                }
                for d in self.deviations
            ],
        }


def _region(region: PageSpan) -> list[int]:
    return [Hex(region[0]), region[1]]


@attrs.frozen
class BootLoad:
    """One module of the boot, in order: what is known about it.

    Parameters
    ----------
    size, address
        What `/proc/modules` says: bytes of all core regions, and where text begins.
    sizes
        Bytes per memory type, or None where nobody has the file.
    inside
        The module in whose init it came, where one asked for it there.
    """

    name: str
    failed: bool
    size: int
    address: int
    recording: Recording | None
    sizes: Mapping[MemType, int] | None
    inside: str = ""


def place_runs(runs: Sequence[RecordedBoot], trees: Sequence[Path] = ()) -> tuple[Placed, ...]:
    """Return every boot played again.

    Parameters
    ----------
    trees
        Folders to look in for module files that the recordings lack.
    """
    files: dict[str, list[Path]] = {}
    for path in (path for tree in trees for path in sorted(tree.rglob("*.ko*"))):
        if path.name.endswith(SUFFIXES):
            files.setdefault(module_name(path), []).append(path)
    sizes = _RegionSizes(tuple(trees), files)
    return tuple(place(run, sizes.of(run)) for run in runs if run.live)


@attrs.define
class _RegionSizes:
    """Region sizes of modules, computed once per file and set of errata."""

    trees: tuple[Path, ...]
    files: Mapping[str, list[Path]]
    _known: dict[tuple[Path, tuple[str, ...]], Mapping[MemType, int] | None] = attrs.field(
        factory=dict
    )

    def of(self, run: RecordedBoot) -> list[BootLoad]:
        """Return the loads of a boot, in order."""
        features = run.environment.features
        arch = archs.arch(run.arch_name)
        errata = tuple(n for n in arch.errata if f"WORKAROUND_{n}" in features)
        recorded = {recording.name: recording for recording in run.recordings}
        loads = []
        for live in run.live:
            recording = recorded.pop(live.name, None)
            sizes = self._of(run, live.name, recording, errata)
            where = (live.size, live.address)
            loads.append(BootLoad(live.name, False, *where, recording, sizes, live.inside))
        for recording in sorted(recorded.values(), key=lambda r: r.regions[MemType.TEXT]):
            text, held = recording.regions[MemType.TEXT]
            sizes = self._of(run, recording.name, recording, errata)
            failed = BootLoad(recording.name, True, held, text, recording, sizes)
            loads.insert(_turn(run, loads, failed), failed)
        return loads

    def _of(
        self,
        run: RecordedBoot,
        name: str,
        recording: Recording | None,
        errata: tuple[str, ...],
    ) -> Mapping[MemType, int] | None:
        path = run.folder / (recording.file if recording else f"ko/{name}")
        if (path, errata) not in self._known:
            self._known[path, errata] = self._read(run, name, recording, errata)
        return self._known[path, errata]

    def _read(
        self,
        run: RecordedBoot,
        name: str,
        recording: Recording | None,
        errata: tuple[str, ...],
    ) -> Mapping[MemType, int] | None:
        # A kernel that says nothing of its configuration is one of Debian's, which have it.
        told = run.boot.config.get("CONFIG_KALLSYMS_ALL", "n" if run.boot.config else "y")
        images = [image_of(recording, self.trees)] if recording else []
        images += [] if recording else [read_module(path) for path in self.files.get(name, ())]
        for image in images:
            if image is not None and (recording or _is_for(run, image)):
                view = parse(image, name)
                layout = plan(view, errata=errata)
                return sizes_with_symbols(view, layout, data_too=told == "y")
        return None


def _is_for(run: RecordedBoot, image: bytes) -> bool:
    """Return whether a file is a module of the kernel that booted."""
    try:
        if arch_of(image).name != run.arch_name:
            return False
        magic = parse(image).modinfo.get("vermagic", "")
    except BadModule:
        return False
    return magic.partition(" ")[0] == run.kernel


def _turn(run: RecordedBoot, loads: Sequence[BootLoad], failed: BootLoad) -> int:
    """Return how many loads came before one that failed."""
    if failed.name in run.order:
        before = set(run.order[: run.order.index(failed.name)])
        return 1 + max((n for n, load in enumerate(loads) if load.name in before), default=-1)
    later = (n for n, load in enumerate(loads) if load.address >= failed.address)
    return next(later, len(loads))


def place(run: RecordedBoot, loads: Sequence[BootLoad]) -> Placed:
    """Play the loads of one boot again and compare.

    BadModule where the kernel that was recorded had other pages than those of 4 KiB.
    """
    arch = archs.arch(run.arch_name)
    page = page_size_in(run.boot.config)
    if page not in (None, PAGE_SIZE):
        reason = f"pages of {size_text(page or 0)}; places are predicted for those of 4 KiB"
        raise BadModule(f"the kernel {run.kernel}", "configuration", reason)
    version = run.boot.version
    design, together = arch.loads.execmem.at(version), TOGETHER.at(version)
    address_map = ranges_of(arch, run)
    slide = None
    if "nokaslr" not in run.boot.options:
        slide = _slide(loads[0], _Regions(arch, address_map, design), together=together)
        address_map = _moved(address_map, slide or 0)
    kernel = _Regions(arch, address_map, design)
    equal, regions, deviations = 0, 0, list[Deviation]()
    unknown, strange = 0, 0
    following = [(load.address, load) for load in loads]
    inits: list[tuple[str, list[tuple[MemType, PageSpan]]]] = []  # that run, and what is freed then
    for (_, load), (after, _) in pairwise([*following, (0, loads[-1])]):
        while inits and inits[-1][0] != load.inside:
            kernel.end_init(*inits.pop())
        if load.sizes is None and load.recording is None:
            kernel.take_unknown(load, after, together=together)
            unknown += 1
            continue
        recorded = load.recording.regions if load.recording else {}
        sizes = load.sizes or {kind: size for kind, (_, size) in recorded.items()}
        strange += load.recording is None
        held = []
        kernel.release_late()
        for kinds in CORE_AND_INIT if together else [(kind,) for kind in MemType]:
            parts = _parts(kinds, sizes)
            if not parts:
                continue
            kind = next(iter(parts))
            ours = kernel.alloc(kind, sum(size for _, size in parts.values()))
            predicted = {kind: (ours[0] + at, size) for kind, (at, size) in parts.items()}
            wanted = {kind: recorded.get(kind, place) for kind, place in predicted.items()}
            wanted |= {kind: recorded[kind] for kind in kinds if kind in recorded}
            start = min(at for at, _ in wanted.values())
            theirs = (start, sum(size for _, size in wanted.values()))
            different = [kind for kind in wanted if predicted.get(kind) != wanted[kind]]
            regions += sum(kind in recorded for kind in wanted)
            equal += sum(kind in recorded for kind in wanted if kind not in different)
            reason, modules = SIZE, tuple[str, ...]()
            if ours != theirs:
                reason, modules = kernel.correct(kind, ours, theirs)
                reason = AMONG if reason == UNKNOWN and unknown else reason
            deviations += [
                Deviation(load.name, k, predicted.get(k, (0, 0)), wanted[k], reason, modules)
                for k in different
            ]
            held.append((kind, theirs))
        inits.append((load.name, [each for each in held if each[0].is_init or load.failed]))
    recordings = sum(load.recording is not None for load in loads)
    counts = (recordings, strange, unknown)
    return Placed(run.arch_name, run.name, counts, regions, equal, tuple(deviations), slide)


def _parts(kinds: Sequence[MemType], sizes: Mapping[MemType, int]) -> dict[MemType, PageSpan]:
    """Return offset and size of each part of one allocation, in whole pages."""
    found: dict[MemType, PageSpan] = {}
    at = 0
    for kind in kinds:
        if size := align_up(sizes.get(kind, 0), PAGE_SIZE):
            found[kind] = (at, size)
            at += size
    return found


def ranges_of(arch: Arch, run: RecordedBoot) -> AddressMap:
    """Return where a kernel's ranges lie, by what its symbols say of its image."""
    symbols = run.kernel_symbols
    start = next((symbols[name] for name in IMAGE if name in symbols), None)
    if start is None or "nokaslr" not in run.boot.options:
        return arch.loads.address_map()
    end, text = symbols.get("_end"), symbols.get("_etext")
    return arch.loads.address_map(
        image_size=None if end is None else end - start,
        start=start,
        text_size=None if text is None else text - start,
    )


def _slide(first: BootLoad, trial: _Regions, *, together: bool) -> int | None:
    """Return how much higher the first module lies than where the range begins by itself.

    By a region that is not carved out of a chunk, whose own alignment may have moved it.
    """
    recorded = first.recording.regions if first.recording else {}
    sizes = first.sizes or {kind: size for kind, (_, size) in recorded.items()}
    if not recorded and not trial.caches(MemType.TEXT):
        return first.address - trial.alloc(MemType.TEXT, PAGE_SIZE)[0]
    for kinds in CORE_AND_INIT if together else [(kind,) for kind in MemType]:
        kind = next((kind for kind in kinds if sizes.get(kind)), None)
        if kind is not None and not trial.caches(kind):
            size = sum(size for _, size in _parts(kinds, sizes).values())
            at, _ = trial.alloc(kind, size)
            if kind in recorded:
                return recorded[kind][0] - at
    return None


class _Regions:
    """Executable memory as the kernel has it; regions are address and size, page-rounded."""

    def __init__(self, arch: Arch, address_map: AddressMap, design: str) -> None:
        self.memory = KernelMemory(PhysicalMemory(MEMORY), address_map)
        self.execmem = Execmem(
            self.memory, trap=arch.loads.trap, text_poke=arch.text_poke, design=design
        )
        pack = address_map.range_of(ExecmemType.BPF).range
        self.memory.reserve(BPF_PACK + PAGE_SIZE, pack, alignment=PAGE_SIZE)
        self._taken: dict[PageSpan, list[Interval]] = {}
        self._carved: dict[PageSpan, Allocation] = {}
        self._freed: list[tuple[Interval, str]] = []  # init memory, oldest first
        self._late: list[Interval] = []

    def _request(self, kind: MemType, size: int) -> Request:
        where = self.execmem.design.where(kind, Consumer.MODULE)
        return Request(type=kind, consumer=Consumer.MODULE, size=size, align=1, where=where)

    def _pool(self, kind: MemType) -> Pool | None:
        store = self.execmem.design.store(self._request(kind, PAGE_SIZE))
        return store if isinstance(store, Pool) else None

    def caches(self, kind: MemType) -> bool:
        """Return whether such memory is carved out of chunks."""
        return self._pool(kind) is not None

    def alloc(self, kind: MemType, size: int) -> PageSpan:
        """Place a region as the design does."""
        request, pool = self._request(kind, size), self._pool(kind)
        if pool is not None:
            carved = pool.alloc(request, self.execmem.design.places(request))
            pool.finish(carved)
            region = (carved.address, carved.reserved)
            self._carved[region] = carved
            return region
        with self.execmem.alloc(kind, size) as pending:
            region = (pending.address, align_up(size, PAGE_SIZE))
        self._take(region)
        return region

    def end_init(self, module: str, regions: Sequence[tuple[MemType, PageSpan]]) -> None:
        """Free the init memory of a module, or all of it."""
        for kind, region in regions:
            self._release(kind, region)
            if not self.caches(kind):
                self._freed.append((_span(region), module))

    def correct(
        self, kind: MemType, predicted: PageSpan, recorded: PageSpan
    ) -> tuple[str, tuple[str, ...]]:
        """Take the region that the kernel took instead of ours; return why, and because of whom.

        Init memory is freed by a worker: with several CPUs the next module may be faster.
        """
        self._release(kind, predicted)
        pool = self._pool(kind)
        if pool is not None:
            self._carve(pool, self._request(kind, recorded[1]), recorded)
            return (SIZE if predicted[1] != recorded[1] else UNKNOWN), ()
        reason, modules = SIZE, tuple[str, ...]()
        if predicted[1] == recorded[1]:
            late = self._late_modules(kind, predicted, recorded)
            reason, modules = (UNKNOWN, ()) if late is None else (LATE, late)
        self._take(recorded)
        return reason, modules

    def _carve(self, pool: Pool, request: Request, region: PageSpan) -> None:
        """Take a region of a chunk, of a new one where there is none; nothing where it is taken."""
        exact = Interval(region[0], sum(region))
        chunks = Interval(
            align_down(exact.start, LARGE_PAGE_SIZE),
            align_up(exact.end, LARGE_PAGE_SIZE) + PAGE_SIZE,
        )
        for _ in range(2):
            try:
                self._carved[region] = pool.alloc(request, [Place(interval=exact)])
            except AllocationError:
                pool.refill(chunks.size - PAGE_SIZE, LARGE_PAGE_SIZE, Place(interval=chunks))
            else:
                return

    def release_late(self) -> None:
        """Let the worker free what it was late with."""
        for span in self._late:
            self.memory.release(span)
        self._late.clear()

    def _late_modules(
        self, kind: MemType, predicted: PageSpan, recorded: PageSpan
    ) -> tuple[str, ...] | None:
        """Return whose init memory would still be there, if that explains the place."""
        for span in [span for span in self._late if span.overlaps(_span(recorded))]:
            self._late.remove(span)
            self.memory.release(span)
        names: list[str] = []
        place = self._find(kind, predicted[1])
        while place < recorded[0]:
            probe = _span((place, predicted[1]))
            held = [(s, m) for s, m in self._freed if s.overlaps(probe) and self._reserve(s)]
            if not held:
                return None
            self._late += [span for span, _ in held]
            names += [module for _, module in held]
            place = self._find(kind, predicted[1])
        return tuple(dict.fromkeys(names)) if place == recorded[0] else None

    def _find(self, kind: MemType, size: int) -> int:
        address, _ = region = self.alloc(kind, size)
        self._release(kind, region)
        return address

    def _take(self, region: PageSpan) -> None:
        """Take what is free of a region: after a deviation it may overlap another."""
        free = list(self.memory.free_space.clipped(_span(region)))
        self._taken[region] = [part for part in free if self._reserve(part)]

    def _release(self, kind: MemType, region: PageSpan) -> None:
        carved, pool = self._carved.pop(region, None), self._pool(kind)
        if pool is not None and carved is not None:
            pool.free(carved)
        for part in self._taken.pop(region, ()):
            self.memory.release(part)

    def _reserve(self, span: Interval) -> bool:
        """Take address space; False, and nothing taken, where some of it is."""
        return self.memory.reserve(span.size, span) is not None

    def take_unknown(self, load: BootLoad, after: int, *, together: bool) -> None:
        """Take the place of a module of which only address and size are known.

        Its core regions follow one another, a guard page behind each, up to the next
        module's text where that shows how many there are; an area has one guard page. Of a
        module whose text is in a chunk nobody knows where its data is.
        """
        if self.caches(MemType.TEXT):
            return
        gap = (after - load.address - load.size) // PAGE_SIZE
        guards = 1 if together else gap if 1 <= gap <= len(MemType) else 3
        span = Interval(load.address, load.address + load.size + guards * PAGE_SIZE)
        self._take((span.start, span.size - PAGE_SIZE))


def _span(region: PageSpan) -> Interval:
    """Return the address space of a region and its guard page."""
    return Interval(region[0], region[0] + region[1] + PAGE_SIZE)


def _moved(address_map: AddressMap, slide: int) -> AddressMap:
    """Return the map with the module range moved."""

    def moved(where: Interval) -> Interval:
        return Interval(where.start + slide, where.end + slide)

    text = address_map.range_of(ExecmemType.MODULE_TEXT)
    bpf = address_map.range_of(ExecmemType.BPF)
    ranges = {ExecmemType.MODULE_TEXT: ExecmemRange(range=moved(text.range))}
    if bpf.range != text.range:
        ranges[ExecmemType.BPF] = bpf
    return attrs.evolve(address_map, ranges=ranges)
