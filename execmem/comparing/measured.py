# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel as the measure of designs: it does a workload, and its page tables are read.

A workload's modules are made as files of its sizes (`execmem.comparing.madefile`); of a folder they are the
files themselves. What the kernel was asked for, by its own struct module, is then what the designs are
asked for, with the same memory taken before, so that the rows of one table did the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from allocator.types import (
    Consumer,
    ExecmemType,
    Interval,
    MemType,
    align_down,
    size_text,
)
from allocator.workloads import Alloc, Free, Load, Module, Operation, Region, Unload, Workload
from archs.versions import version_of
from emulator.faults import BadCall, Fault
from emulator.noted import Walk
from execmem.comparing.compare import folder
from execmem.comparing.madefile import Maker
from execmem.comparing.measures import NOTHING, Done, Flushed, Frames, KernelMeasures
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
        self.paging = machine.arch.loads.paging(self.page)
        self.address_map = address_map_of(machine.arch, None, machine.image)
        self.window = self.address_map.range_of(ExecmemType.MODULE_TEXT).range
        self._flushes = Flushes(machine.kernel, (self.window, self._direct))
        self._seen: dict[MemType, Frames] | None = None
        self._leaving: BootedModule | None = None  # what is unloaded now
        # By load, the frames that the kernel took for each type, and where its large ones begin.
        self.frames: list[dict[MemType, Frames]] = []
        self.area_frames: dict[str, Frames] = {}  # by key of what was allocated
        # Offsets in the direct map: of what a large leaf could map and pages or runs do, of what a run
        # could map and pages do; whether there are any runs.
        self.split: tuple[int, ...] = ()
        self.cut: tuple[int, ...] = ()
        self.has_runs = False
        # What the direct map leaves out: data of the image, on arm64 since 7.3.
        self.holes: tuple[Interval, ...] = ()
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

        An interrupt ends the workload, not the measuring: the kernel runs no further, and its page tables
        are read as they are.
        """
        machine = self.machine
        machine.sleep(_SETTLED)
        before = self._stretches()
        self.taken = tuple(self._in_window(before))
        self.split = tuple(self._split(before, self.paging.large))
        self.cut = tuple(self._split(before, self.paging.run)) if self.paging.run else ()
        self.has_runs = self._has_runs(before)
        self.holes = tuple(self._unmapped_directly(before))
        self.frames.clear()
        modules = machine.kernel.modules
        outer, modules.before_init = modules.before_init, self._note
        done = Done(operations=len(workload.operations))
        what = f"Linux {machine.kernel.release}"
        try:
            for operation in workload.operations:
                self._step(operation, files, done)
                done.count += 1
                progress(what, done.count, done.operations)
            machine.sleep(_SETTLED)
        except KeyboardInterrupt:
            done.interrupted = True
        except (BadCall, Fault) as error:
            done.ended = str(error)
        modules.before_init = outer
        done.asked += self._gone()
        after = self._stretches()
        leaves, shares = self._leaves(after)
        live = {
            name: {kind.name: (at.address, at.size) for kind, at in module.regions.items()}
            for name, module in self._live().items()
        }
        return KernelMeasures(
            kernel=machine.kernel.release,
            arch=machine.arch.name,
            page=self.page,
            modules=sum(isinstance(each, Load) for each in done.asked),
            refused=done.refused,
            passed_over=done.passed_over,
            operations=done.operations,
            done=done.count,
            interrupted=done.interrupted,
            ended=done.ended,
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
                workload, operations=tuple(done.asked), memory=machine.kernel.board.ram.size
            ),
            notes=(_ONE_CPU, *self._lacking.values()),
        )

    def _step(self, operation: Operation, files: Mapping[str, Path] | None, done: Done) -> None:
        """Do an operation; BadCall or Fault for one that the kernel does not come back from."""
        if isinstance(operation, Load):
            self._load(operation.module, files, done)
        elif isinstance(operation, Alloc) and operation.consumer is Consumer.BPF:
            try:
                with self._counted("load"):
                    program = self._compiler.load(operation.size)
            except BadCall as error:
                done.refused[operation.key] = str(error)
                return
            self._programs[operation.key] = program
            code = Interval(program.address, program.address + program.size)
            self.area_frames[operation.key] = self._frames(code)
            done.asked.append(attrs.evolve(operation, size=program.size))
        elif isinstance(operation, Alloc) and operation.consumer in _ATTACHED:
            if operation.consumer in self._lacking:
                done.passed_over += 1
                return
            try:
                with self._counted("attach"):
                    done.asked += self._attach(operation)
            except BadCall as error:
                self._lacking[operation.consumer] = str(error)
                done.passed_over += 1
        elif isinstance(operation, Free) and operation.key in self._attached:
            with self._counted("detach"):
                self._attaching.detach(self._attached.pop(operation.key))
            done.asked += self._gone()
        elif isinstance(operation, Free) and operation.key in self._programs:
            with self._counted("unload"):
                self._compiler.unload(self._programs.pop(operation.key))
            done.asked.append(operation)
        elif isinstance(operation, Unload):
            held = self._named(operation.module)
            if held is None:
                return
            self._leaving = held
            with self._counted("unload"):
                self.machine.unload(held)
                self.machine.sleep(_SETTLED)
            self._leaving = None
            done.asked.append(operation)
        else:
            done.passed_over += 1

    # Modules ------------------------------------------------------------------------------------

    def _load(self, wanted: Module, files: Mapping[str, Path] | None, done: Done) -> None:
        try:
            with self._counted("load"):
                self._seen = None
                module = self.machine.load(self._file(wanted, files))
                self.machine.sleep(_SETTLED)
        except LoadError as error:
            done.refused[wanted.name] = str(error)
            return
        self.frames.append(self._seen or {})
        regions = tuple(
            Region(kind, at.size)
            for kind, at in sorted(module.report.regions.items(), key=lambda each: each[0].value)
        )
        together = TOGETHER.at(self.version)
        done.asked.append(Load(Module(name=wanted.name, regions=regions, together=together)))

    def _live(self) -> dict[str, BootedModule]:
        """Return the modules that are loaded; one that is on its way out holds nothing for certain."""
        loaded = self.machine.modules
        return {name: each for name, each in loaded.items() if each is not self._leaving}

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

    def _split(self, stretches: Iterable[tuple[int, int, int, bool]], leaf: int) -> Iterator[int]:
        """Yield the offsets of what a leaf of the direct map could map and smaller ones do."""
        for start, end, size, maps in stretches:
            low, high = max(start, self._direct.start), min(end, self._direct.end)
            if maps and low < high and size < leaf:
                yield from range(
                    align_down(low - self._direct.start, leaf), high - self._direct.start, leaf
                )

    def _has_runs(self, stretches: Iterable[tuple[int, int, int, bool]]) -> bool:
        runs = (self.paging.run, self.paging.large_run)
        return any(
            size in runs and maps and start < self._direct.end and end > self._direct.start
            for start, end, size, maps in stretches
        )

    def _unmapped_directly(
        self, stretches: Iterable[tuple[int, int, int, bool]]
    ) -> Iterator[Interval]:
        """Yield the offsets of what the direct map does not map."""
        for start, end, _, maps in stretches:
            low, high = max(start, self._direct.start), min(end, self._direct.end)
            if not maps and low < high:
                yield Interval(low - self._direct.start, high - self._direct.start)

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
        """Return start, end, bytes of a leaf, and whether it maps something, by address."""
        shape = self._tables.granule, self._tables.granule - 3
        paging = self.paging
        run_of = {paging.page: paging.run, paging.large: paging.large_run}
        in_run = self._tables.format.run
        found = []
        for part in Walk(self._tables, self.machine.kernel.board.ram.words).all():
            starts = part.starts.tolist()
            ends = [*starts[1:], part.end]
            for start, end, depth, kept in zip(
                starts, ends, part.depths.tolist(), part.kept.tolist(), strict=True
            ):
                size = 1 << shape[0] + depth * shape[1]
                if kept & in_run:
                    size = run_of.get(size) or size
                found.append((start, end, size, bool(kept & 1)))
        return found

    def _in_window(self, stretches: Iterable[tuple[int, int, int, bool]]) -> Iterator[Interval]:
        for start, end, _, maps in stretches:
            low, high = max(start, self.window.start), min(end + self.page, self.window.end)
            if maps and low < high:
                yield Interval(low, high)

    def _direct_leaves(self, stretches: Iterable[tuple[int, int, int, bool]]) -> dict[str, int]:
        leaves = dict.fromkeys(map(named, self.paging.leaves), 0)
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
        for name, module in self._live().items():
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
        names = [named(size) for size in self.paging.leaves if size <= self.paging.large]
        found: dict[MemType, dict[str, set[int]]] = {
            kind: {name: set() for name in names} for kind in MemType
        }
        live, large = dict.fromkeys(MemType, 0), dict.fromkeys(MemType, 0)
        regions = [
            (kind, at.address, at.size)
            for module in self._live().values()
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
                    large[kind] += (last - at) * (size >= self.paging.large)
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
