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

from allocator import Execmem, KernelMemory, PhysicalMemory
from allocator.designs import DesignLike
from allocator.types import ExecmemType, Hex, Interval, MemType, Paging, align_down, size_text
from allocator.workloads import Load, Measures, Module, Operation, Region, Unload, Workload
from allocator.workloads.run import Runner
from archs.versions import version_of
from emulator.faults import Fault
from emulator.noted import Walk
from execmem.compare import branch_reach, folder
from execmem.madefile import Maker
from loader.errors import LoadError
from loader.files import SUFFIXES, ModuleFile, module_name
from loader.layout import TOGETHER
from machine.booted.flushing import Flushes
from machine.booted.machine import BootedMachine
from machine.booted.module import BootedModule
from machine.booted.pagetables import direct_map, own_tables
from machine.computer import address_map_of

_SETTLED = 0.06  # seconds of guest time after which freed init memory is back
_ONE_CPU = (
    "one CPU runs, so none is interrupted: rounds of interrupts are the calls of the functions named"
    " in the table, each of which interrupts every other CPU once where there are more"
)

Progress = Callable[[str, int, int], None]


@attrs.frozen(kw_only=True)
class Flushed:
    """What a kernel executed to drop translations: instructions by kind, calls of functions by name."""

    instructions: dict[str, int]
    functions: dict[str, int]

    @property
    def total(self) -> int:
        """Instructions of all kinds but those that switch between processes, too."""
        return sum(count for kind, count in self.instructions.items() if kind not in _SWITCHES)


_SWITCHES = ("mov cr3",)


@attrs.frozen(kw_only=True)
class KernelMeasures:
    """What a booted kernel made of a workload.

    Parameters
    ----------
    kernel, arch
        Its release and architecture.
    modules
        Modules that were loaded, unloaded ones included.
    refused
        Modules that were not, and what the kernel said.
    passed_over
        Operations of other consumers than modules, which were not done.
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
    notes
        What the measures do not show.
    """

    kernel: str
    arch: str
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
    notes: tuple[str, ...]

    @property
    def direct_map_splits(self) -> int:
        """Large leaves of the direct map that are gone."""
        return _splits(self.direct_map_before, self.direct_map_after)

    def as_json(self) -> dict[str, Any]:
        """Return it as the JSON document shows it."""
        found = attrs.asdict(self, filter=lambda field, _: field.name not in ("regions", "asked"))
        regions = {
            name: {kind: [Hex(at), size] for kind, (at, size) in held.items()}
            for name, held in self.regions.items()
        }
        return found | {"direct_map_splits": self.direct_map_splits, "regions": regions}


@attrs.frozen(kw_only=True)
class ModelRun:
    """A design that was asked for what the kernel was asked for.

    Parameters
    ----------
    design
        Its name.
    measures
        As for every run of `compare`.
    same_place, same_order
        Live regions at the address that the kernel gave them, and whether all follow each other by
        address as there.
    """

    design: str
    measures: Measures
    same_place: int
    same_order: bool
    regions: int


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
        self._flushes = Flushes(machine.kernel)
        self._counts: dict[str, Flushed] = {}
        self._tables = own_tables(machine.kernel) or machine.kernel.board.tables()
        self._direct = direct_map(machine.kernel)
        self.page = 1 << self._tables.granule
        self.address_map = address_map_of(machine.arch, None, machine.image)
        self.window = self.address_map.range_of(ExecmemType.MODULE_TEXT).range
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
        asked: list[Operation] = []
        total = len(workload.operations)
        what = f"Linux {machine.kernel.release}"
        for number, operation in enumerate(workload.operations):
            if isinstance(operation, Load):
                name = operation.module.name
                try:
                    file = self._file(operation.module, files)
                    with self._counted("load"):
                        module = machine.load(file)
                        machine.sleep(_SETTLED)
                except (LoadError, Fault) as error:
                    refused[name] = str(error)
                    if isinstance(error, Fault):
                        break
                    continue
                loaded += 1
                regions = tuple(
                    Region(kind, at.size)
                    for kind, at in sorted(
                        module.report.regions.items(), key=lambda each: each[0].value
                    )
                )
                asked.append(
                    Load(Module(name=name, regions=regions, together=TOGETHER.at(self.version)))
                )
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
        machine.sleep(_SETTLED)
        after = self._stretches()
        leaves, shares = self._leaves(after)
        live = {
            name: {kind.name: (at.address, at.size) for kind, at in module.regions.items()}
            for name, module in machine.modules.items()
        }
        return KernelMeasures(
            kernel=machine.kernel.release,
            arch=machine.arch.name,
            modules=loaded,
            refused=refused,
            passed_over=passed,
            leaves=leaves,
            large_share=shares,
            direct_map_before=self._direct_leaves(before),
            direct_map_after=self._direct_leaves(after),
            flushes=dict(self._counts),
            regions=live,
            asked=attrs.evolve(
                workload, operations=tuple(asked), memory=machine.kernel.board.ram.size
            ),
            notes=(_ONE_CPU,),
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
        flushes.instructions.clear()
        flushes.functions.clear()
        with flushes.counting():
            yield
        former = self._counts.get(step, Flushed(instructions={}, functions={}))
        self._counts[step] = Flushed(
            instructions=_sum(former.instructions, flushes.instructions),
            functions=_sum(former.functions, dict.fromkeys(flushes.known, 0), flushes.functions),
        )

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
        for module in self.machine.modules.values():
            for kind, region in module.regions.items():
                at, stop = region.address, region.address + region.size
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


def modelled(
    runner: KernelRunner, found: KernelMeasures, designs: Iterable[DesignLike], *, cpus: int
) -> Iterator[ModelRun]:
    """Yield what designs make of what the kernel was asked for.

    Memory is as large, and of the window of modules the same is taken before.
    """
    machine = runner.machine
    arch = machine.arch
    for design in designs:
        memory = KernelMemory(
            PhysicalMemory(found.asked.memory, paging=Paging(runner.page)), runner.address_map
        )
        for taken in runner.taken:
            for free in list(memory.free_space.clipped(taken)):
                memory.free_space.remove(free)
        poke = arch.text_poke
        execmem = Execmem(memory, trap=arch.loads.trap, text_poke=poke, design=design)
        rules = arch.loads.tlb
        model = Runner(execmem, branch_reach(arch), rules=rules, cpus=cpus)
        for operation in found.asked.operations:
            model.step(operation)
        theirs = [
            (name, kind, at)
            for name, held in found.regions.items()
            for kind, (at, _) in held.items()
        ]
        ours = {
            (name.replace("-", "_"), kind.name): allocation.address
            for name, held in model.live.items()
            for kind, allocation in held.items()
        }
        pairs = [(at, ours.get((name, kind))) for name, kind, at in theirs]
        places = [mine for _, mine in sorted(pairs, key=lambda pair: pair[0])]
        known = [place for place in places if place is not None]
        yield ModelRun(
            design=execmem.design.name,
            measures=model.measure(itlb=False),
            same_place=sum(at == mine for at, mine in pairs),
            same_order=len(known) == len(places) and known == sorted(known),
            regions=len(pairs),
        )


def files_of(path: Path, arch: str) -> tuple[Workload, dict[str, Path]]:
    """Return the loads of a folder's modules for an architecture, and their files by name."""
    found = {
        module_name(file.name): file
        for file in sorted(path.rglob("*.ko*"))
        if file.name.endswith(SUFFIXES) and file.is_file()
    }
    return folder(path)[arch], found
