# SPDX-License-Identifier: GPL-2.0-or-later
"""How `execmem compare` shows what it found: tables and charts of designs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

from allocator.designs import choose
from allocator.errors import printable
from allocator.types import MIB, size_text
from allocator.workloads import sources
from allocator.workloads.cores import CORES
from execmem.comparing.compare import DesignRun
from execmem.figure import figure_class, write_png
from execmem.report import table
from execmem.terminal import WIDTH

if TYPE_CHECKING:
    from rich.console import Console

PLACEMENT = "design modules refused before_PLT PLT_slots window padding us/op".split()
MAPPING = "text data rodata splits pokes iTLB".split()
FLUSHING = "design one_CPU all_CPUs full alloc write finish seal free".split()
PLACEMENT, FLUSHING = ([word.replace("_", " ") for word in row] for row in (PLACEMENT, FLUSHING))

LEGEND = (
    "modules: loaded. refused: requests that got no memory. before PLT: modules loaded before "
    "the first that needs a PLT entry. PLT slots: entries reserved. window: MiB taken of "
    "the module window. padding: MiB held beyond what was asked for. us/op: microseconds of this "
    "model, not of a kernel, per alloc and free; - where something was refused, as then less was "
    "done. {leaves}: leaves that "
    "map text; a run is one. text, data, rodata: share under {large} leaves. splits: of direct-map leaves. "
    "pokes: writes through text_poke. iTLB: misses per 1,000 calls"
)
FLUSH_LEGEND = (
    "one CPU, all CPUs: flushes of TLBs. full: of all CPUs, and of so many pages that whole TLBs "
    "go. alloc to free: those of all CPUs, by step."
)
FLUSHES = (
    "The default design, {default}, flushes the TLBs of all CPUs more often than {others} here. It "
    "does so where a right has to go from memory that CPUs may have looked up: once for a seal, once "
    "for chunks that come or go, and, without text_poke, once for a load and once for text that is "
    "freed."
)
LOCAL_FLUSHES = (
    "The default design, {default}, flushes more often than {others}, but {local:,} of its "
    "{count:,} flushes are of the window through which large leaves are written, on the one CPU "
    "that writes; those of all CPUs are {broad:,}, no more than under the others."
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
    sizes: dict[int, None] = {}
    for found in runs:
        by_arch.setdefault(found.arch.name, []).append(found)
    for number, group in enumerate(by_arch.values()):
        if number:
            out.print()
        title = f"{group[0].arch.title}, {group[0].workload.name}"
        known = sources().get(group[0].workload.name)
        out.print(title + (f": {known.title}" if known else ""), soft_wrap=True)
        out.print()
        out.print(table(PLACEMENT, map(_placement, group), right=",".join(PLACEMENT[1:])))
        out.print()
        core = _core(group[0])
        rows = [_mapping(found, core) for found in group]
        paging = group[0].arch.loads.paging(group[0].page)
        own = [size for size in paging.leaves if size <= paging.large]
        sizes |= dict.fromkeys(own)
        head = ["design", *map(size_text, own), *MAPPING]
        out.print(table(head, rows, right=",".join(head[1:])))
        out.print()
        out.print(table(FLUSHING, map(_flushing, group), right=",".join(FLUSHING[1:])))
    if not runs:
        return
    named = filter(None, (_core(group[0]) for group in by_arch.values()))
    cores = ", ".join(dict.fromkeys(CORES[core].title for core in named))
    out.print()
    leaves = [size_text(size) for size in sorted(sizes)]
    legend = LEGEND.format(leaves=", ".join(leaves), large=leaves[-1])
    for line in wrap(f"{legend} ({cores})." if cores else f"{legend}.", WIDTH):
        out.print(line, soft_wrap=True)
    out.print()
    for line in wrap(FLUSH_LEGEND, WIDTH):
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
        told = FLUSHES.format(default=ours.design, others=", ".join(broadly))
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
        m.pokes,
        "-" if core is None else f"{m.itlb_misses[core] / 1000:.0f}",
    )


def _flushing(found: DesignRun) -> tuple[object, ...]:
    m, steps = found.measures, found.measures.flushes.steps
    return (
        found.design,
        m.tlb_flushes_local,
        m.tlb_flushes_all,
        m.flushes.full,
        *(steps[name]["all"] for name in FLUSHING[4:]),
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
