# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs side by side: run workloads under each, as tables, JSON and charts want them.

`allocator.workloads` knows operations and measures; what it needs of an architecture
(address map, trap, text_poke, how far calls get) comes from the record here, and so do the
sizes of real modules, through the loader's layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from allocator import DESIGNS, Execmem, ExecmemError, Interval, KernelMemory, PhysicalMemory
from allocator.designs import COUNTEREXAMPLES, UPSTREAM, Chosen, DesignLike, choose, known_designs
from allocator.designs.find import UnknownDesign
from allocator.errors import DesignError, NoSuchName
from allocator.plugins import said
from allocator.types import GIB, PAGE_SIZE, MemType, align_up, size_text
from allocator.workloads import (
    BranchReach,
    Measures,
    Module,
    OverTime,
    Region,
    Workload,
    read_trace,
    run,
    sources,
    workload,
)
from allocator.workloads.run import CPUS
from allocator.workloads.sources import modules as module_loads
from archs import Arch, archs
from archs import arch as arch_by_name
from execmem.terminal import Meter
from loader.elf import parse
from loader.elfview import ElfView
from loader.files import SUFFIXES, module_name, read_module
from loader.layout import TOGETHER, Layout, plan
from machine.ptdump import NotPrinted, modelled

if TYPE_CHECKING:
    pass

ANYWHERE = Interval(-(1 << 64), 1 << 64)
MatrixProgression = Callable[[str, int, int], None]


@attrs.frozen(kw_only=True)
class DesignFailed:
    """A run that a design ended: it raised something, or did not do what it owes."""

    arch: str
    design: str
    workload: str
    error: str


@attrs.frozen(kw_only=True)
class DesignRun:
    """One workload under one design on one architecture."""

    arch: Arch
    design: str
    workload: Workload
    measures: Measures
    page: int = PAGE_SIZE
    page_tables: tuple[str, ...] | None = None  # where they were asked for
    over_time: OverTime | None = None  # so was that

    def as_json(self) -> dict[str, Any]:
        """Return the run as the JSON document shows it."""
        head = {"arch": self.arch.name, "design": self.design, "workload": self.workload.name}
        more: dict[str, Any] = {}
        if self.page_tables is not None:
            more["page_tables"] = list(self.page_tables)
        if self.over_time is not None:
            more["over_time"] = [attrs.asdict(one) for one in self.over_time.moments]
            more["per_operation"] = [attrs.asdict(one) for one in self.over_time.costs()]
        return head | {"page_size": self.page} | attrs.asdict(self.measures) | more


def branch_reach(arch: Arch) -> BranchReach:
    """Return how far calls get on an architecture, directly and through a PLT entry.

    An entry that loads its target from a slot gets anywhere; one that forms an address
    gets as far as the widest instructions that do. So does a call through a register.
    """
    call, plt = arch.link.call, None
    if arch.plt is not None:
        formed = [b.span(0) for b in arch.link.branches if b.what == "data"]
        widest = max(formed, key=lambda span: span.end, default=ANYWHERE)
        plt = ANYWHERE if arch.plt.got_section else widest
    if call is None:
        return BranchReach(direct=ANYWHERE, plt=plt)
    region = call.region.size if call.region else 0
    return BranchReach(direct=Interval(call.reach.lo, call.reach.hi), plt=plt, region=region)


def execmem_for(
    arch: Arch,
    design: DesignLike,
    *,
    memory: int = 2 * GIB,
    kaslr: int | None = None,
    text_poke: bool = True,
    page: int = PAGE_SIZE,
) -> Execmem:
    """Return fresh executable memory of an architecture; ExecmemError for an unknown design."""
    paged = {} if page == PAGE_SIZE else {"page": page}
    return Execmem(
        KernelMemory(
            PhysicalMemory(memory, paging=arch.loads.paging(page)),
            arch.loads.address_map(kaslr, **paged),
        ),
        trap=arch.loads.trap,
        text_poke=arch.text_poke if text_poke else None,
        design=design,
    )


def with_pages(
    pairs: Sequence[tuple[Arch, Workload]], page: int, *, asked: bool
) -> list[tuple[Arch, Workload]]:
    """Return the workloads of architectures that have pages of `page` bytes.

    ExecmemError where none has, or where one that was `asked` for has not.
    """
    found = [pair for pair in pairs if page in pair[0].loads.page_sizes]
    lacking = [arch for arch, _ in pairs if page not in arch.loads.page_sizes]
    if lacking and (asked or not found):
        has = ", ".join(map(size_text, lacking[0].loads.page_sizes))
        raise ExecmemError(f"{lacking[0].name}: no pages of {size_text(page)}; it has {has}")
    return found


def designs_of(names: Iterable[DesignLike]) -> tuple[Chosen, ...]:
    """Return the designs that are named (`default` stands for one); ours, where none is.

    Designs that cannot work must be named, and so must those of other packages. ExecmemError
    for a name that no design has, and for two designs of one name.
    """
    found: dict[str, Chosen] = {}
    try:
        all_chosen = [choose(name) for name in list(names) or DESIGNS]
    except UnknownDesign as error:
        ours = ("default", *DESIGNS, *UPSTREAM, *COUNTEREXAMPLES)
        brought = (name for name in error.known if name not in ours)
        raise UnknownDesign(error.name, (*ours, *brought)) from None
    for chosen in all_chosen:
        if found.setdefault(chosen.name, chosen).design is not chosen.design:
            raise ExecmemError(f"two designs are called {chosen.name!r}")
    return tuple(found.values())


def listing() -> dict[str, list[dict[str, Any]]]:
    """Return what designs and workloads can be named, as the JSON document shows it."""
    default = choose("default").name
    return {
        "designs": [
            attrs.asdict(one) | {"default": one.name == default} for one in known_designs()
        ],
        "workloads": [
            {"name": name, "summary": source.title} for name, source in sources().items()
        ],
    }


def workloads(name: str, chosen: Sequence[Arch]) -> list[tuple[Arch, Workload]]:
    """Return a workload for each architecture that is chosen, or that it has sizes for.

    Parameters
    ----------
    name
        A name of `sources()`, a folder of modules, or a trace.
    chosen
        Architectures; none: all that there are sizes for.

    Raises
    ------
    ExecmemError
        No such workload or path, or nothing in it for an architecture that was chosen.
    """
    path = Path(name)
    if name in sources():
        return [(arch, workload(name, arch.name)) for arch in chosen or archs()]
    if path.is_dir():
        found = folder(path)
        missing = sorted({arch.name for arch in chosen} - found.keys())
        if missing or not found:
            raise ExecmemError(f"{name}: no module of {missing[0] if missing else 'any kernel'}")
        return [(arch_by_name(key), found[key]) for key in ([a.name for a in chosen] or found)]
    if path.exists():
        trace = read_trace(path)
        try:
            recorded = arch_by_name(trace.arch)
        except ValueError as error:
            raise ExecmemError(f"{name}: {error}") from None
        return [(arch, attrs.evolve(trace, arch=arch.name)) for arch in chosen or (recorded,)]
    raise NoSuchName(f"no workload and no path {name!r}; there are {', '.join(sources())}")


def folder(path: Path) -> dict[str, Workload]:
    """Return, by architecture, the loads of the modules under a folder, dependencies first.

    Dependencies outside the folder do not count. LoadError for a file that is no module.
    """
    found: dict[str, dict[str, Module]] = {}
    for file in sorted(path.rglob("*.ko*")):
        if file.name.endswith(SUFFIXES) and file.is_file():
            view = parse(read_module(file), file.name)
            module = measured(view)
            found.setdefault(view.arch.name, {}).setdefault(module.name, module)
    result = {}
    order = [arch.name for arch in archs()]
    for arch in sorted(found, key=order.index):
        modules = found[arch]
        kept = {
            name: attrs.evolve(module, depends=tuple(n for n in module.depends if n in modules))
            for name, module in modules.items()
        }
        size = sum(align_up(r.size, PAGE_SIZE) for m in kept.values() for r in m.regions)
        result[arch] = Workload(
            name=path.name,
            arch=arch,
            operations=tuple(module_loads(kept, kept)),
            memory=max(2 * GIB, align_up(4 * size, GIB)),
        )
    return result


def measured(view: ElfView, layout: Layout | None = None) -> Module:
    """Return a module's numbers: its layout, its PLT slots and the calls that leave it."""
    layout = layout or plan(view)
    leaving = {
        fill.relocation
        for branch in view.arch.link.branches
        if branch.what == "call" and branch.probe
        for fill in branch.probe.fills
    } | set(view.arch.plt.branches if view.arch.plt else ())
    undefined = view.symbols["shndx"] == 0
    kernel = own = 0
    for section in view.tables:
        records = section.records[np.isin(section.records["type"], list(leaving))]
        outside = int(undefined[records["symbol"]].sum())
        kernel += outside
        own += len(records) - outside
    core, init = (layout.plt[key].slots if key in layout.plt else 0 for key in (False, True))
    depends = view.modinfo.get("depends", "").split(",")
    return Module(
        name=view.modinfo.get("name") or module_name(view.name),
        regions=tuple(
            Region(kind, layout.sizes[kind], layout.aligns[kind])
            for kind in MemType
            if layout.sizes.get(kind)
        ),
        plt_slots=(core, init),
        calls=(kernel, 0, own),
        depends=tuple(name.replace("-", "_") for name in depends if name),
        together=TOGETHER.at(view.version),
    )


def compare(
    pairs: Iterable[tuple[Arch, Workload]],
    designs: Iterable[DesignLike],
    *,
    kaslr: int | None = None,
    text_poke: bool = True,
    page: int = PAGE_SIZE,
    check: bool = False,
    cpus: int = CPUS,
    ptdump: bool = False,
    moments: int | None = None,
    progress: MatrixProgression = lambda _what, _done, _total: None,
    broken: list[DesignFailed] | None = None,
    finished: Callable[[DesignRun], None] = lambda _run: None,
) -> list[DesignRun]:
    """Run every workload under every design.

    Parameters
    ----------
    page
        Bytes of a page, which every architecture here has.
    check
        Verify every invariant of memory after each run.
    cpus
        CPUs that are online.
    ptdump
        Keep each run's page tables, as the kernel of its architecture prints its own.
    moments
        Look at memory at so many moments of each run, and at what each operation costs.
    progress
        Told what runs, operations done, and operations in all.
    broken
        Gets the runs that a design ended; the others go on. Without it, DesignError.
    finished
        Gets each run as soon as it is done.
    """
    runs = []
    chosen = designs_of(designs)
    for arch, load in pairs:
        for design in chosen:
            what, total = f"{arch.name} {design.name}", len(load.operations)

            def tell(done: int, what: str = what, total: int = total) -> None:
                progress(what, done, total)

            try:
                execmem = execmem_for(
                    arch, design, memory=load.memory, page=page, kaslr=kaslr, text_poke=text_poke
                )
                watch = None if moments is None else OverTime(moments)
                measures = run(
                    load,
                    execmem,
                    branch_reach(arch),
                    rules=arch.loads.tlb,
                    cpus=cpus,
                    progress=tell,
                    watch=watch,
                )
                if check:
                    _check(execmem)
                tables = tuple(_printed(execmem, arch)) if ptdump else None
                del execmem  # gigabytes, which the next one may need
            except DesignError as error:
                if broken is None:
                    raise
                broken.append(
                    DesignFailed(
                        arch=arch.name, design=design.name, workload=load.name, error=str(error)
                    )
                )
                continue
            found = DesignRun(arch=arch, design=design.name, workload=load, measures=measures)
            runs.append(attrs.evolve(found, page=page, page_tables=tables, over_time=watch))
            finished(runs[-1])
    return runs


def _printed(execmem: Execmem, arch: Arch) -> Iterator[str]:
    """Yield page tables; of an architecture whose kernel prints none, nothing."""
    with suppress(NotPrinted):
        yield from modelled(execmem.memory, arch).lines()


def _check(execmem: Execmem) -> None:
    """Verify every invariant; DesignError where one does not hold."""
    try:
        execmem.check()
    except AssertionError as error:
        reason = str(error) or said(error)
        raise DesignError(execmem.design.name, "check", "", 0, None, reason) from error


@contextmanager
def progress_bar() -> Iterator[MatrixProgression]:
    """Show progress on stderr, where that is a terminal."""
    with Meter() as meter:
        yield meter.show
