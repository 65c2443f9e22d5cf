# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a recorded kernel put every region of its modules, predicted from the order of loads.

The `vmalloc` design over the kernel's own ranges plays the boot again: for each module, in
the order in which they came, a region per memory type, whole pages and a guard page, first
fit from the lowest address; once init has returned, its init regions are free for the next
module. On x86-64 the first BPF program pack, 2 MiB, stands before everything else.

`/proc/modules` gives the order, newest first. A module whose load failed is not listed; it
is put where its text shows that it came. Where KASLR chose the start of the range, the
first module says which it was. Of a module whose file nobody has, the kernel's word is
taken for where it lies. After a deviation the kernel's address is taken too, so that each
region is judged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import attrs

import archs
from allocator import Execmem
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import (
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
    align_up,
)
from archs import Arch
from loader.elf import arch_of, parse
from loader.errors import BadModule
from loader.files import SUFFIXES, module_name, read_module
from loader.kallsyms import sizes_with_symbols
from loader.layout import plan
from loader.recording import RecordedBoot, Recording, image_of

PageSpan: TypeAlias = tuple[int, int]  # address, and size in bytes

LATE, UNKNOWN = "init memory of earlier modules freed late", "unknown"
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
    """

    arch: str
    run: str
    loads: tuple[int, int, int]
    regions: int
    equal: int
    deviations: tuple[Deviation, ...]

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
    """

    name: str
    failed: bool
    size: int
    address: int
    recording: Recording | None
    sizes: Mapping[MemType, int] | None


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
            sizes = self._of(arch, run, live.name, recording, errata)
            loads.append(BootLoad(live.name, False, live.size, live.address, recording, sizes))
        for recording in sorted(recorded.values(), key=lambda r: r.regions[MemType.TEXT]):
            text, held = recording.regions[MemType.TEXT]
            before = (n for n, load in enumerate(loads) if load.address >= text)
            sizes = self._of(arch, run, recording.name, recording, errata)
            failed = BootLoad(recording.name, True, held, text, recording, sizes)
            loads.insert(next(before, len(loads)), failed)
        return loads

    def _of(
        self,
        arch: Arch,
        run: RecordedBoot,
        name: str,
        recording: Recording | None,
        errata: tuple[str, ...],
    ) -> Mapping[MemType, int] | None:
        path = run.folder / (recording.file if recording else f"ko/{name}")
        if (path, errata) not in self._known:
            self._known[path, errata] = self._read(arch, name, recording, errata)
        return self._known[path, errata]

    def _read(
        self, arch: Arch, name: str, recording: Recording | None, errata: tuple[str, ...]
    ) -> Mapping[MemType, int] | None:
        images = [image_of(recording, self.trees)] if recording else []
        images += [] if recording else [read_module(path) for path in self.files.get(name, ())]
        for image in images:
            if image is not None and _is_for(arch, image):
                view = parse(image, name)
                return sizes_with_symbols(view, plan(view, errata=errata))
        return None


def _is_for(arch: Arch, image: bytes) -> bool:
    """Return whether a file is a module of the architecture."""
    try:
        return arch_of(image) is arch
    except BadModule:
        return False


def place(run: RecordedBoot, loads: Sequence[BootLoad]) -> Placed:
    """Play the loads of one boot again and compare."""
    arch = archs.arch(run.arch_name)
    address_map = arch.loads.address_map()
    first = next((load for load in loads if load.recording is not None), None)
    if first is loads[0] and "nokaslr" not in run.boot.options:
        trial = _Regions(arch, address_map)
        predicted, _ = trial.alloc(PAGE_SIZE)
        address_map = _moved(address_map, first.address - predicted)
    kernel = _Regions(arch, address_map)
    equal, regions, deviations = 0, 0, []
    unknown, strange = 0, 0
    following = [(load.address, load) for load in loads]
    for (_, load), (after, _) in pairwise([*following, (0, loads[-1])]):
        if load.sizes is None and load.recording is None:
            kernel.take_unknown(load, after)
            unknown += 1
            continue
        recorded = load.recording.regions if load.recording else {}
        sizes = load.sizes or {kind: size for kind, (_, size) in recorded.items()}
        strange += load.recording is None
        held = []
        kernel.release_late()
        for kind in MemType:
            if not sizes.get(kind):
                continue
            part = kernel.alloc(sizes[kind])
            wanted = recorded.get(kind, part)
            regions += kind in recorded
            equal += kind in recorded and part == wanted
            if part != wanted:
                reason, modules = kernel.correct(part, wanted)
                if reason == UNKNOWN and unknown:
                    reason = "after modules of which only the text's address and the size are known"
                deviations.append(Deviation(load.name, kind, part, wanted, reason, modules))
            held.append((kind, wanted))
        for kind, part in held:
            if kind.is_init or load.failed:
                kernel.free(part, load.name)
    recordings = sum(load.recording is not None for load in loads)
    counts = (recordings, strange, unknown)
    return Placed(run.arch_name, run.name, counts, regions, equal, tuple(deviations))


class _Regions:
    """Executable memory as the kernel has it; regions are address and size, page-rounded."""

    def __init__(self, arch: Arch, address_map: AddressMap) -> None:
        self.memory = KernelMemory(PhysicalMemory(MEMORY), address_map)
        self.execmem = Execmem(
            self.memory, trap=arch.loads.trap, text_poke=arch.text_poke, design="vmalloc"
        )
        self.execmem.alloc(MemType.TEXT, BPF_PACK, consumer=Consumer.BPF).finish()
        self._taken: dict[PageSpan, list[Interval]] = {}
        self._freed: list[tuple[Interval, str]] = []  # init memory, oldest first
        self._late: list[Interval] = []

    def alloc(self, size: int) -> PageSpan:
        """Place a region as the design does."""
        with self.execmem.alloc(MemType.TEXT, size) as pending:
            region = (pending.address, align_up(size, PAGE_SIZE))
        self._take(region)
        return region

    def free(self, region: PageSpan, module: str) -> None:
        """Free the init memory of a module."""
        self._release(region)
        self._freed.append((_span(region), module))

    def correct(self, predicted: PageSpan, recorded: PageSpan) -> tuple[str, tuple[str, ...]]:
        """Take the region that the kernel took instead of ours; return why, and because of whom.

        Init memory is freed by a worker: with several CPUs the next module may be faster.
        """
        self._release(predicted)
        reason, modules = "another size", tuple[str, ...]()
        if predicted[1] == recorded[1]:
            late = self._late_modules(predicted, recorded)
            reason, modules = (UNKNOWN, ()) if late is None else (LATE, late)
        self._take(recorded)
        return reason, modules

    def release_late(self) -> None:
        """Let the worker free what it was late with."""
        for span in self._late:
            self.memory.release(span)
        self._late.clear()

    def _late_modules(self, predicted: PageSpan, recorded: PageSpan) -> tuple[str, ...] | None:
        """Return whose init memory would still be there, if that explains the place."""
        for span in [span for span in self._late if span.overlaps(_span(recorded))]:
            self._late.remove(span)
            self.memory.release(span)
        names: list[str] = []
        place = self._find(predicted[1])
        while place < recorded[0]:
            probe = _span((place, predicted[1]))
            held = [(s, m) for s, m in self._freed if s.overlaps(probe) and self._reserve(s)]
            if not held:
                return None
            self._late += [span for span, _ in held]
            names += [module for _, module in held]
            place = self._find(predicted[1])
        return tuple(dict.fromkeys(names)) if place == recorded[0] else None

    def _find(self, size: int) -> int:
        address, _ = region = self.alloc(size)
        self._release(region)
        return address

    def _take(self, region: PageSpan) -> None:
        """Take what is free of a region: after a deviation it may overlap another."""
        free = list(self.memory.free_space.clipped(_span(region)))
        self._taken[region] = [part for part in free if self._reserve(part)]

    def _release(self, region: PageSpan) -> None:
        for part in self._taken.pop(region, ()):
            self.memory.release(part)

    def _reserve(self, span: Interval) -> bool:
        """Take address space; False, and nothing taken, where some of it is."""
        return self.memory.reserve(span.size, span) is not None

    def take_unknown(self, load: BootLoad, after: int) -> None:
        """Take the place of a module of which only address and size are known.

        Its core regions follow one another, a guard page behind each, up to the next
        module's text where that shows how many there are.
        """
        gap = (after - load.address - load.size) // PAGE_SIZE
        guards = gap if 1 <= gap <= len(MemType) else 3
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
