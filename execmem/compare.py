# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs side by side: run workloads under each, show tables, JSON and charts.

`allocator.workloads` knows operations and measures; what it needs of an architecture
(address map, trap, text_poke, how far calls get) comes from the record here, and so do the
sizes of real modules, through the loader's layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

import attrs
import numpy as np

from allocator import DESIGNS, Execmem, ExecmemError, Interval, KernelMemory, PhysicalMemory
from allocator.designs import COUNTEREXAMPLES, Chosen, DesignLike, choose, known_designs
from allocator.designs.find import UnknownDesign
from allocator.errors import DesignError, NoSuchName, printable
from allocator.plugins import said
from allocator.types import GIB, MIB, PAGE_SIZE, MemType, Paging, align_up, size_text
from allocator.workloads import (
    WORKLOADS,
    BranchReach,
    Measures,
    Module,
    Region,
    Workload,
    read_trace,
    run,
    workload,
)
from allocator.workloads.itlb import CORES
from allocator.workloads.sources import modules as module_loads
from archs import Arch, archs
from archs import arch as arch_by_name
from execmem.figure import figure_class, write_png
from execmem.report import table
from execmem.terminal import WIDTH, Meter
from loader.elf import parse
from loader.elfview import ElfView
from loader.files import SUFFIXES, module_name, read_module
from loader.layout import TOGETHER, Layout, plan

if TYPE_CHECKING:
    from rich.console import Console

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

    def as_json(self) -> dict[str, Any]:
        """Return the run as the JSON document shows it."""
        head = {"arch": self.arch.name, "design": self.design, "workload": self.workload.name}
        return head | {"page_size": self.page} | attrs.asdict(self.measures)


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
            PhysicalMemory(memory, paging=Paging(page)), arch.loads.address_map(kaslr, **paged)
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
        ours = ("default", *DESIGNS, *COUNTEREXAMPLES)
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
            {"name": name, "summary": source.title} for name, source in WORKLOADS.items()
        ],
    }


def workloads(name: str, chosen: Sequence[Arch]) -> list[tuple[Arch, Workload]]:
    """Return a workload for each architecture that is chosen, or that it has sizes for.

    Parameters
    ----------
    name
        A name of `WORKLOADS`, a folder of modules, or a trace.
    chosen
        Architectures; none: all that there are sizes for.

    Raises
    ------
    ExecmemError
        No such workload or path, or nothing in it for an architecture that was chosen.
    """
    path = Path(name)
    if name in WORKLOADS:
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
    raise NoSuchName(f"no workload and no path {name!r}; there are {', '.join(WORKLOADS)}")


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
                measures = run(load, execmem, branch_reach(arch), progress=tell)
                if check:
                    _check(execmem)
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
            runs.append(attrs.evolve(found, page=page))
            finished(runs[-1])
    return runs


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


# Tables ----------------------------------------------------------------------------------------


PLACEMENT = "design modules refused before_PLT PLT_slots window padding us/op".split()
MAPPING = "text data rodata splits flushes pokes iTLB".split()
PLACEMENT = [word.replace("_", " ") for word in PLACEMENT]

LEGEND = (
    "modules: loaded. refused: requests that got no memory. before PLT: modules loaded before "
    "the first that needs a PLT entry. PLT slots: entries reserved. window: MiB taken of "
    "the module window. padding: MiB held beyond what was asked for. us/op: microseconds of this "
    "model, not of a kernel, per alloc and free; - where something was refused, as then less was "
    "done. {small}, {large}: leaves that "
    "map text. text, data, rodata: share under {large} leaves. splits: of direct-map leaves. "
    "flushes: of TLBs, of one CPU or of all. pokes: writes through text_poke. "
    "iTLB: misses per 1,000 calls"
)
FLUSHES = (
    "The default design, {default}, flushes the TLBs of all CPUs more often than {others}: text and "
    "rodata lie in large leaves that are read-only from birth, so they are written through "
    "text_poke, page by page, and each page's alias is dropped with a flush, where designs in "
    "pages change a region's protection once; and ro_after_init is opened and closed in a leaf of "
    "its own for every module. That is the price of its large leaves."
)
OPEN_FLUSHES = (
    "The default design, {default}, flushes the TLBs of all CPUs more often than {others}: without "
    "text_poke a slice of a large leaf is opened to write text or rodata and closed again, each "
    "with a flush, and so is ro_after_init, in a leaf of its own for every module. That is the "
    "price of its large leaves."
)
LOCAL_FLUSHES = (
    "The default design, {default}, flushes more often than {others}, but {local:,} of its "
    "{count:,} flushes are of the alias through which a large leaf is written (text_poke), on the "
    "one CPU that writes; those of all CPUs are {broad:,}, no more than under the others."
)


def show_listing(out: Console, found: dict[str, list[dict[str, Any]]]) -> None:
    """Print what designs and workloads can be named."""
    rows = []
    for one in found["designs"]:
        notes = ["the default"] * one["default"] + [f"from {one['origin']}"] * bool(one["origin"])
        name, told = one["name"], one["error"] or one["summary"]
        rows.append((name, f"{told} ({', '.join(notes)})" if notes else told))
    rows.append(("./FILE.py", "the design that a file of yours holds"))
    out.print(table(("design", "what it does"), rows))
    out.print()
    rows = [(one["name"], one["summary"]) for one in found["workloads"]]
    rows += [("a folder", "the modules in it"), ("a file", "a trace that --record wrote")]
    out.print(table(("workload", "what happens"), rows))


def show(out: Console, runs: Sequence[DesignRun]) -> None:
    """Print, per architecture, where the designs put things and how they are mapped."""
    by_arch: dict[str, list[DesignRun]] = {}
    for found in runs:
        by_arch.setdefault(found.arch.name, []).append(found)
    for number, group in enumerate(by_arch.values()):
        if number:
            out.print()
        title = f"{group[0].arch.title}, {group[0].workload.name}"
        known = WORKLOADS.get(group[0].workload.name)
        out.print(title + (f": {known.title}" if known else ""), soft_wrap=True)
        out.print()
        out.print(table(PLACEMENT, map(_placement, group), right=",".join(PLACEMENT[1:])))
        out.print()
        core = _core(group[0])
        rows = [_mapping(found, core) for found in group]
        small, large = (size_text(size) for size in Paging(group[0].page).leaves[:2])
        head = ["design", small, large, *MAPPING]
        out.print(table(head, rows, right=",".join(head[1:])))
    if not runs:
        return
    named = filter(None, (_core(group[0]) for group in by_arch.values()))
    cores = ", ".join(dict.fromkeys(CORES[core].title for core in named))
    out.print()
    legend = LEGEND.format(small=small, large=large)
    for line in wrap(f"{legend} ({cores})." if cores else f"{legend}.", WIDTH):
        out.print(line, soft_wrap=True)
    for group in by_arch.values():
        _explain_flushes(out, group)
    for found in runs:
        if found.measures.failures:
            first = found.measures.failures[0]
            out.print()
            out.print(
                f"{found.arch.name} {found.design}: {len(found.measures.failures)} refused, "
                f"first {first.who}: {first.reason}",
            )


def _explain_flushes(out: Console, group: Sequence[DesignRun]) -> None:
    """Say why the default design flushes more often than others, as long as it does."""
    ours = next((found for found in group if found.design == choose("default").name), None)
    if ours is None:
        return
    m, told = ours.measures, ""
    broadly = [f.design for f in group if f.measures.tlb_flushes_all < m.tlb_flushes_all]
    often = [f.design for f in group if f.measures.tlb_flushes < m.tlb_flushes]
    if broadly:
        why = FLUSHES if m.pokes else OPEN_FLUSHES
        told = why.format(default=ours.design, others=", ".join(broadly))
    elif often:
        told = LOCAL_FLUSHES.format(
            default=ours.design,
            others=", ".join(often),
            count=m.tlb_flushes,
            local=m.tlb_flushes_local,
            broad=m.tlb_flushes_all,
        )
    if told:
        out.print()
        for line in wrap(f"{group[0].arch.title}: {told}", WIDTH):
            out.print(line)


def _core(found: DesignRun) -> str | None:
    """Return the core whose TLB stands for an architecture; None: that of none is known."""
    # Of several cores the first one listed stands for its architecture.
    by_arch = {core.arch: key for key, core in reversed(list(CORES.items()))}
    return by_arch.get(found.arch.name)


def _placement(found: DesignRun) -> tuple[object, ...]:
    m = found.measures
    return (
        found.design,
        m.modules,
        len(m.failures),
        m.modules_before_first_plt,
        m.plt_slots,
        f"{m.window_used / MIB:.1f}",
        f"{m.padding_bytes / MIB:.1f}",
        "-" if m.failures else f"{m.microseconds_per_operation:.0f}",
    )


def _misses(found: DesignRun) -> float:
    """Return misses per 1,000 calls; 0 where no core stands for the architecture."""
    core = _core(found)
    return 0 if core is None else found.measures.itlb_misses[core] / 1000


def _mapping(found: DesignRun, core: str | None) -> tuple[object, ...]:
    m = found.measures
    shares = (f"{m.large_share[kind]:.0%}" for kind in ("TEXT", "DATA", "RODATA"))
    return (
        found.design,
        *m.leaves["TEXT"].values(),
        *shares,
        m.direct_map_splits,
        m.tlb_flushes,
        m.pokes,
        "-" if core is None else f"{m.itlb_misses[core] / 1000:.0f}",
    )


# Charts ----------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """One measure of a chart: its title, its value, and how a value is written."""

    title: str
    value: Callable[[DesignRun], float]
    text: Callable[[float], str]


PANELS = (
    Panel(
        "Modules before the first PLT entry",
        lambda r: r.measures.modules_before_first_plt,
        "{:,.0f}".format,
    ),
    Panel(
        "Leaves that map text", lambda r: sum(r.measures.leaves["TEXT"].values()), "{:,.0f}".format
    ),
    Panel("Direct-map leaves split", lambda r: r.measures.direct_map_splits, "{:,.0f}".format),
    Panel("TLB flushes on all CPUs", lambda r: r.measures.tlb_flushes_all, "{:,.0f}".format),
    Panel(
        "Address space of the module window",
        lambda r: r.measures.window_used,
        lambda value: size_text(int(value)),
    ),
    Panel(
        "iTLB misses per 1,000 calls",
        _misses,
        lambda value: f"{value:,.0f}" if value else "-",
    ),
)
COLOUR = "#2b6cb0"
BAR, HEAD, LABELS, COLUMN, VALUE = 16, 52, 116, 250, 66
STYLE = (
    "text{fill:#444;font-family:sans-serif;font-size:12px}.name{font-weight:bold}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}}"
)


def _escape(text: str) -> str:
    """Return text as XML has it, which has no control characters."""
    return escape(printable(text))


def svg(runs: Sequence[DesignRun]) -> str:
    """Return an SVG: a row of bars per measure, a column per architecture."""
    designs = list(dict.fromkeys(r.design for r in runs))
    columns = list(dict.fromkeys(r.arch.name for r in runs))
    row = HEAD + BAR * len(designs)
    width, height = LABELS + COLUMN * len(columns), row * len(PANELS) + 12
    title = _escape(f"Designs of executable memory: {runs[0].workload.name}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
    ]

    def text(x: float, y: float, said: str, more: str = "") -> None:
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{more}>{_escape(said)}</text>')

    for number, panel in enumerate(PANELS):
        top = number * row
        text(8, top + 20, panel.title, ' class="name"')
        for index, name in enumerate(columns):
            text(LABELS + COLUMN * index, top + 38, name)
        for index, name in enumerate(designs):
            text(LABELS - 8, top + HEAD + BAR * index, name, ' text-anchor="end"')
        most = max(1, *map(panel.value, runs))
        for found in runs:
            value = panel.value(found)
            x = LABELS + COLUMN * columns.index(found.arch.name)
            y = top + HEAD + BAR * designs.index(found.design)
            length = (COLUMN - VALUE) * value / most
            parts.append(
                f'<rect x="{x}" y="{y - 10}" width="{length:.1f}" height="12" fill="{COLOUR}"/>'
            )
            text(x + length + 4, y, panel.text(value))
    return "\n".join([*parts, "</svg>"]) + "\n"


def png(path: str | Path, runs: Sequence[DesignRun]) -> None:
    """Write the chart as PNG; ExecmemError without matplotlib (extra `plots`)."""
    columns: dict[str, list[DesignRun]] = {}
    for found in runs:
        columns.setdefault(found.arch.name, []).append(found)
    designs = len({r.design for r in runs})
    size = (4 * len(columns) + 1, len(PANELS) * (0.8 + 0.2 * designs))
    figure = figure_class(path)(figsize=size, layout="constrained")
    axes = figure.subplots(len(PANELS), len(columns), squeeze=False)
    for panel, across in zip(PANELS, axes, strict=True):
        for (name, group), axis in zip(columns.items(), across, strict=True):
            bars = axis.barh([r.design for r in group], [panel.value(r) for r in group])
            axis.bar_label(bars, [panel.text(panel.value(r)) for r in group], padding=2)
            axis.invert_yaxis()
            axis.set_title(f"{panel.title}, {name}", fontsize="small")
            axis.margins(x=0.25)
    write_png(path, figure)
