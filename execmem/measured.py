# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel as the measure of designs: it does a workload, and its page tables are read.

A workload's modules are made as files of its sizes (`execmem.madefile`); of a folder they are the
files themselves. What the kernel was asked for, by its own struct module, is then what the designs are
asked for, with the same memory taken before, so that the rows of one table did the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from allocator.types import (
    Consumer,
    ExecmemType,
    Hex,
    Interval,
    MemType,
    Paging,
    align_down,
    size_text,
)
from allocator.workloads import Alloc, Free, Load, Module, Operation, Region, Unload, Workload
from archs.versions import version_of
from emulator.faults import BadCall, Fault
from emulator.noted import Walk
from execmem.compare import folder
from execmem.madefile import Maker
from kernels.booted.modules import Loading
from loader.errors import LoadError
from loader.files import SUFFIXES, ModuleFile, module_name
from loader.layout import TOGETHER
from machine.booted.attaching import Attached, Attaching
from machine.booted.flushing import Flushes
from machine.booted.machine import BootedMachine
from machine.booted.module import BootedModule
from machine.booted.pagetables import direct_map, own_tables
from machine.booted.programs import Program, Programs
from machine.computer import address_map_of

_ATTACHED = (Consumer.KPROBES, Consumer.FTRACE)
_SETTLED = 0.06  # seconds of guest time after which freed init memory is back
_ONE_CPU = (
    "one CPU runs, so none is interrupted: rounds of interrupts are the calls of the functions named"
    " in the table, each of which interrupts every other CPU once where there are more"
)

Progress = Callable[[str, int, int], None]


@attrs.frozen(kw_only=True)
class Flushed:
    """What a kernel executed to drop translations.

    Parameters
    ----------
    instructions
        By kind, of all memory.
    functions
        Calls by name.
    pages, whole
        Of memory of modules and of the direct map: pages that were dropped one by one, and times that
        everything was.
    elsewhere
        The same of memory elsewhere, as of the copy of a module's file.
    """

    instructions: dict[str, int]
    functions: dict[str, int]
    pages: int
    whole: float
    elsewhere: int

    @property
    def total(self) -> float:
        """Flushes of memory of modules and of the direct map: pages one by one, and everything."""
        return self.pages + self.whole


NOTHING = Flushed(instructions={}, functions={}, pages=0, whole=0.0, elsewhere=0)


@attrs.frozen(kw_only=True)
class KernelMeasures:
    """What a booted kernel made of a workload.

    Parameters
    ----------
    kernel, arch, page
        Its release, its architecture, and the bytes of a page.
    modules
        Modules that were loaded, unloaded ones included.
    refused
        Modules that were not, and what the kernel said.
    passed_over
        Operations that were not done.
    leaves
        By type: leaves that hold live memory of the type, by size.
    large_share
        By type: share of live bytes under leaves larger than a page.
    direct_map_before, direct_map_after
        Leaves of the direct map by size.
    flushes
        By step (`load`, `unload`), what was executed to drop translations.
    regions
        By module, what it holds: type, address and size.
    asked
        The workload as the kernel was asked for it.
    unmapped
        Live memory that the page tables do not map: module and type. Nobody should ever see any.
    programs
        BPF programs that are loaded at the end, the bytes of their code, and the leaves that map it by
        size.
    attached
        By consumer (kprobes, ftrace), what is registered at the end (`held`), areas of memory that were
        taken for it and are still there (`areas`), their bytes, and the leaves that map them by size.
    areas
        By key, such an area: where it is.
    notes
        What the measures do not show.
    """

    kernel: str
    arch: str
    page: int
    modules: int
    refused: dict[str, str]
    passed_over: int
    leaves: dict[str, dict[str, int]]
    large_share: dict[str, float]
    direct_map_before: dict[str, int]
    direct_map_after: dict[str, int]
    flushes: dict[str, Flushed]
    regions: dict[str, dict[str, tuple[int, int]]]
    asked: Workload
    unmapped: list[str]
    programs: dict[str, int]
    attached: dict[str, dict[str, int]]
    areas: dict[str, int]
    notes: tuple[str, ...]

    @property
    def direct_map_splits(self) -> int:
        """Large leaves of the direct map that are gone."""
        return _splits(self.direct_map_before, self.direct_map_after)

    def as_json(self) -> dict[str, Any]:
        """Return it as the JSON document shows it."""
        found = attrs.asdict(self, filter=lambda field, _: field.name not in ("regions", "asked"))
        found["areas"] = {key: Hex(at) for key, at in self.areas.items()}
        regions = {
            name: {kind: [Hex(at), size] for kind, (at, size) in held.items()}
            for name, held in self.regions.items()
        }
        return found | {"direct_map_splits": self.direct_map_splits, "regions": regions}


@attrs.frozen(kw_only=True)
class Frames:
    """Where the kernel put a region: its address, and the physical one of each page."""

    address: int
    pages: list[int]


def _splits(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """Return how many leaves above pages are gone."""
    sizes = list(before)
    return sum(max(0, before[size] - after.get(size, 0)) for size in sizes[1:])


class KernelRunner:
    """Has a booted kernel do a workload.

    Parameters
    ----------
    machine
        The machine, which nobody else uses meanwhile.
    """

    def __init__(self, machine: BootedMachine) -> None:
        self.machine = machine
        self._maker: Maker | None = None
        self._compiler = Programs(machine.kernel)
        self._programs: dict[str, Program] = {}
        self._attaching = Attaching(machine.kernel)
        self._attached: dict[str, Attached] = {}
        self._areas: dict[str, tuple[Consumer, Interval]] = {}
        self._lacking: dict[Consumer, str] = {}
        self._counts: dict[str, Flushed] = {}
        self._tables = own_tables(machine.kernel) or machine.kernel.board.tables()
        self._direct = direct_map(machine.kernel)
        self.page = 1 << self._tables.granule
        self.address_map = address_map_of(machine.arch, None, machine.image)
        self.window = self.address_map.range_of(ExecmemType.MODULE_TEXT).range
        self._flushes = Flushes(machine.kernel, (self.window, self._direct))
        self._seen: dict[MemType, Frames] | None = None
        # By load, the frames that the kernel took for each type, and where its large ones begin.
        self.frames: list[dict[MemType, Frames]] = []
        self.area_frames: dict[str, Frames] = {}  # by key of what was allocated
        self.split: tuple[int, ...] = ()  # offsets in the direct map where pages are mapped
        self.version = version_of(machine.kernel.release) or (0, 0)
        # What is mapped in the window of modules before, each with a guard page behind it.
        self.taken: tuple[Interval, ...] = ()

    def run(
        self,
        workload: Workload,
        files: Mapping[str, Path] | None = None,
        progress: Progress = lambda _what, _done, _total: None,
    ) -> KernelMeasures:
        """Do a workload and measure it.

        Parameters
        ----------
        files
            Files of its modules, by name; None: they are made by their sizes.
        progress
            Told what runs, operations done, and operations in all.
        """
        machine, refused, loaded, passed = self.machine, dict[str, str](), 0, 0
        machine.sleep(_SETTLED)
        before = self._stretches()
        self.taken = tuple(self._in_window(before))
        self.split = tuple(self._split(before))
        self.frames.clear()
        modules = machine.kernel.modules
        outer, modules.before_init = modules.before_init, self._note
        asked: list[Operation] = []
        total = len(workload.operations)
        what = f"Linux {machine.kernel.release}"
        for number, operation in enumerate(workload.operations):
            if isinstance(operation, Load):
                name = operation.module.name
                try:
                    file = self._file(operation.module, files)
                    with self._counted("load"):
                        self._seen = None
                        module = machine.load(file)
                        machine.sleep(_SETTLED)
                except (LoadError, Fault) as error:
                    refused[name] = str(error)
                    if isinstance(error, Fault):
                        break
                    continue
                loaded += 1
                self.frames.append(self._seen or {})
                regions = tuple(
                    Region(kind, at.size)
                    for kind, at in sorted(
                        module.report.regions.items(), key=lambda each: each[0].value
                    )
                )
                asked.append(
                    Load(Module(name=name, regions=regions, together=TOGETHER.at(self.version)))
                )
            elif isinstance(operation, Alloc) and operation.consumer is Consumer.BPF:
                try:
                    with self._counted("load"):
                        program = self._compiler.load(operation.size)
                except (BadCall, Fault) as error:
                    refused[operation.key] = str(error)
                    if isinstance(error, Fault):
                        break
                    continue
                self._programs[operation.key] = program
                asked.append(attrs.evolve(operation, size=program.size))
            elif isinstance(operation, Alloc) and operation.consumer in _ATTACHED:
                if operation.consumer in self._lacking:
                    passed += 1
                    continue
                try:
                    with self._counted("attach"):
                        asked += self._attach(operation)
                except BadCall as error:
                    self._lacking[operation.consumer] = str(error)
                    passed += 1
                except Fault as error:
                    refused[operation.key] = str(error)
                    break
            elif isinstance(operation, Free) and operation.key in self._attached:
                with self._counted("detach"):
                    self._attaching.detach(self._attached.pop(operation.key))
                asked += self._gone()
            elif isinstance(operation, Free) and operation.key in self._programs:
                with self._counted("unload"):
                    self._compiler.unload(self._programs.pop(operation.key))
                asked.append(operation)
            elif isinstance(operation, Unload):
                held = self._named(operation.module)
                if held is not None:
                    with self._counted("unload"):
                        machine.unload(held)
                        machine.sleep(_SETTLED)
                    asked.append(operation)
            else:
                passed += 1
            progress(what, number + 1, total)
        modules.before_init = outer
        machine.sleep(_SETTLED)
        asked += self._gone()
        after = self._stretches()
        leaves, shares = self._leaves(after)
        live = {
            name: {kind.name: (at.address, at.size) for kind, at in module.regions.items()}
            for name, module in machine.modules.items()
        }
        return KernelMeasures(
            kernel=machine.kernel.release,
            arch=machine.arch.name,
            page=self.page,
            modules=loaded,
            refused=refused,
            passed_over=passed,
            leaves=leaves,
            large_share=shares,
            direct_map_before=self._direct_leaves(before),
            direct_map_after=self._direct_leaves(after),
            flushes=dict(self._counts),
            regions=live,
            unmapped=self._unmapped(after),
            programs=self._placed(after),
            attached=self._consumers(after),
            areas={key: area.start for key, (_, area) in self._areas.items()},
            asked=attrs.evolve(
                workload, operations=tuple(asked), memory=machine.kernel.board.ram.size
            ),
            notes=(_ONE_CPU, *self._lacking.values()),
        )

    # Modules ------------------------------------------------------------------------------------

    def _file(self, module: Module, files: Mapping[str, Path] | None) -> ModuleFile | Path:
        if files is not None:
            return files[module.name]
        if self._maker is None:
            self._maker = Maker.of(self.machine.kernel, self.machine.image)
        return ModuleFile(module.name, self._maker.file(module))

    def _named(self, name: str) -> BootedModule | None:
        known = self.machine.modules
        return known.get(name) or known.get(name.replace("-", "_"))

    @contextmanager
    def _counted(self, step: str) -> Iterator[None]:
        """Count what is executed in a `with` block as part of a step."""
        flushes = self._flushes
        flushes.clear()
        with flushes.counting():
            yield
        former = self._counts.get(step, NOTHING)
        self._counts[step] = Flushed(
            pages=former.pages + flushes.pages,
            whole=former.whole + flushes.whole,
            elsewhere=former.elsewhere + flushes.elsewhere,
            instructions=_sum(former.instructions, flushes.instructions),
            functions=_sum(former.functions, dict.fromkeys(flushes.known, 0), flushes.functions),
        )

    def _note(self, load: Loading) -> None:
        """Note the frames of a module whose memory is formed."""
        seen = self._seen = {}
        for kind, region in load.regions.items():
            seen[kind] = self._frames(Interval(region.address, region.address + region.size))

    def _frames(self, region: Interval) -> Frames:
        """Return where a region is."""
        board = self.machine.kernel.board
        places = range(align_down(region.start, self.page), region.end, self.page)
        found = [board.translate(at) for at in places]
        return Frames(
            address=region.start, pages=[at - board.ram.start for at in found if at is not None]
        )

    def _split(self, stretches: Iterable[tuple[int, int, int, bool]]) -> Iterator[int]:
        """Yield the offsets of what a large leaf of the direct map would map and pages do."""
        large = Paging(self.page).large
        for start, end, size, maps in stretches:
            low, high = max(start, self._direct.start), min(end, self._direct.end)
            if maps and low < high and size == self.page:
                yield from range(
                    align_down(low - self._direct.start, large), high - self._direct.start, large
                )

    # Kprobes and ftrace -------------------------------------------------------------------------

    def _attach(self, operation: Alloc) -> Iterator[Alloc]:
        """Register what an operation stands for; yield what memory the kernel took for it."""
        consumer = operation.consumer
        traces = consumer is Consumer.FTRACE
        held = self._attaching.trace() if traces else self._attaching.probe()
        self._attached[operation.key] = held
        known = {area.start for _, area in self._areas.values()}
        for code in filter(None, (held.code, held.detour)):
            start = align_down(code, self.page)
            if start not in known:
                known.add(start)
                key = f"{consumer.value}-at-{start:#x}"
                area = Interval(start, code + held.size if traces else start + self.page)
                self._areas[key] = consumer, area
                self.area_frames[key] = self._frames(area)
                yield Alloc(key=key, size=area.size, consumer=consumer)

    def _gone(self) -> list[Free]:
        """Return what of such memory the kernel has given back."""
        board, pages = self.machine.kernel.board, self._attaching.pages()
        trampolines = {each.code for each in self._attached.values() if each.traces}
        gone = []
        for key, (whose, area) in self._areas.items():
            held = trampolines if whose is Consumer.FTRACE else pages
            unknown = held is None  # then it is as long as it is mapped
            if board.translate(area.start) is None or not (unknown or area.start in (held or ())):
                gone.append(key)
        for key in gone:
            del self._areas[key]
        return [Free(key) for key in gone]

    def _consumers(self, stretches: list[tuple[int, int, int, bool]]) -> dict[str, dict[str, int]]:
        """Return what kprobes and ftrace have, and which leaves map it."""
        found = {}
        for consumer in _ATTACHED:
            areas = [area for whose, area in self._areas.values() if whose is consumer]
            traces = consumer is Consumer.FTRACE
            found[consumer.value] = {
                "held": sum(each.traces is traces for each in self._attached.values()),
                "areas": len(areas),
                "bytes": sum(area.size for area in areas),
                **self._mapping(stretches, areas),
            }
        return found

    # Page tables --------------------------------------------------------------------------------

    def _stretches(self) -> list[tuple[int, int, int, bool]]:
        """Return start, end, bytes of an entry, and whether it maps something, by address."""
        shape = self._tables.granule, self._tables.granule - 3
        found = []
        for part in Walk(self._tables, self.machine.kernel.board.ram.words).all():
            starts = part.starts.tolist()
            ends = [*starts[1:], part.end]
            for start, end, depth, kept in zip(
                starts, ends, part.depths.tolist(), part.kept.tolist(), strict=True
            ):
                found.append((start, end, 1 << shape[0] + depth * shape[1], bool(kept & 1)))
        return found

    def _in_window(self, stretches: Iterable[tuple[int, int, int, bool]]) -> Iterator[Interval]:
        for start, end, _, maps in stretches:
            low, high = max(start, self.window.start), min(end + self.page, self.window.end)
            if maps and low < high:
                yield Interval(low, high)

    def _direct_leaves(self, stretches: Iterable[tuple[int, int, int, bool]]) -> dict[str, int]:
        leaves = dict.fromkeys(map(named, Paging(self.page).leaves), 0)
        for start, end, size, maps in stretches:
            low, high = max(start, self._direct.start), min(end, self._direct.end)
            if maps and low < high:
                leaves[named(size)] += (high - low) // size
        return leaves

    def _placed(self, stretches: list[tuple[int, int, int, bool]]) -> dict[str, int]:
        """Return how many programs there are, their bytes, and the leaves that map them."""
        code = [
            Interval(each.address, each.address + each.size) for each in self._programs.values()
        ]
        size = sum(each.size for each in code)
        return {"programs": len(code), "bytes": size, **self._mapping(stretches, code)}

    def _mapping(
        self, stretches: list[tuple[int, int, int, bool]], areas: Iterable[Interval]
    ) -> dict[str, int]:
        """Return how many leaves map memory, by size."""
        starts = [each[0] for each in stretches]
        leaves: dict[str, set[int]] = {}
        for area in areas:
            at = area.start
            while at < area.end:
                _, end, size, _ = stretches[bisect_right(starts, at) - 1]
                last = min(area.end, end)
                found = range(align_down(at, size), last, size)
                leaves.setdefault(named(size), set()).update(found)
                at = last
        return {size: len(found) for size, found in leaves.items()}

    def _unmapped(self, stretches: list[tuple[int, int, int, bool]]) -> list[str]:
        """Return which regions of live modules are not mapped, or not all of them."""
        starts, found = [each[0] for each in stretches], []
        for name, module in self.machine.modules.items():
            for kind, region in module.regions.items():
                first = bisect_right(starts, region.address) - 1
                last = bisect_right(starts, region.address + region.size - 1)
                if not all(maps for _, _, _, maps in stretches[first:last]):
                    found.append(f"{name} {kind.name}")
        return found

    def _leaves(
        self, stretches: list[tuple[int, int, int, bool]]
    ) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
        """Return leaves by type and size, and the share of bytes under large ones."""
        starts = [each[0] for each in stretches]
        names = [named(size) for size in Paging(self.page).leaves[:2]]
        found: dict[MemType, dict[str, set[int]]] = {
            kind: {name: set() for name in names} for kind in MemType
        }
        live, large = dict.fromkeys(MemType, 0), dict.fromkeys(MemType, 0)
        regions = [
            (kind, at.address, at.size)
            for module in self.machine.modules.values()
            for kind, at in module.regions.items()
        ]
        regions += [(MemType.TEXT, each.address, each.size) for each in self._programs.values()]
        regions += [(MemType.TEXT, area.start, area.size) for _, area in self._areas.values()]
        for kind, start, length in regions:
            at, stop = start, start + length
            while at < stop:
                _, end, size, maps = stretches[bisect_right(starts, at) - 1]
                last = min(stop, end)
                if maps:
                    leaf = found[kind].setdefault(named(size), set())
                    leaf.update(range(align_down(at, size), last, size))
                    live[kind] += last - at
                    large[kind] += (last - at) * (size > self.page)
                at = last
        leaves = {kind.name: {n: len(s) for n, s in by.items()} for kind, by in found.items()}
        return leaves, {kind.name: large[kind] / (live[kind] or 1) for kind in MemType}


def named(size: int) -> str:
    """Return the name of a leaf's size, as measures have it."""
    return size_text(size).replace(" ", "")


def _sum(*parts: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            found[name] = found.get(name, 0) + count
    return found


def files_of(path: Path, arch: str) -> tuple[Workload, dict[str, Path]]:
    """Return the loads of a folder's modules for an architecture, and their files by name."""
    found = {
        module_name(file.name): file
        for file in sorted(path.rglob("*.ko*"))
        if file.name.endswith(SUFFIXES) and file.is_file()
    }
    return folder(path)[arch], found
