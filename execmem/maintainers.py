# SPDX-License-Identifier: GPL-2.0-or-later
"""The report for maintainers: what the thread asked for, what Linux has, and what designs cost.

`python -m execmem.maintainers DOCUMENT... > docs/report.md` writes it from documents of `execmem
compare --json`, one a workload; nothing in its tables comes from anywhere else, and each says by
which command its document is made. `--svg FILE` writes the chart of the first, and one over time of
each that has moments (`--over-time`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from allocator.errors import ExecmemError
from allocator.files import read_regular, reason_of, write_file
from allocator.types import size_text
from allocator.workloads import Moment, sources
from execmem.comparing import overtime
from execmem.comparing.frontier import COLUMNS, Standing, svg
from execmem.streams import say

HEAD = """\
# Report for maintainers

Made by `python -m execmem.maintainers`; how the columns are counted is in [comparing
designs](compare.md#measures), why what costs a flush in [the design](design.md).

## What was asked for, and what there is

| the thread (2022) | Linux today | here, as `strata` | shown by `execmem` |
|---|---|---|---|
| large mappings for text | x86-64, as reworked in 6.15: a cache of 2 MiB read-only executable chunks; arm64: proposed, where live leaves may be split (BBML2); riscv64: pages | text of all architectures under 2 MiB leaves | `compare --workload debian` |
| large mappings for data and rodata | pages | both under 2 MiB leaves; ro_after_init when nobody asks for memory | `compare --workload debian` |
| a distinct range, whatever the configuration | `execmem` has a range for each consumer, with and without modules | the same ranges; scarce room is taken last, so that arm64 needs no PLT entry | `compare --workload no-modules`, `compare --workload debian --arch arm64` |
| aware of the type | `execmem_alloc()` takes a type of range, modules seven types of memory | a stratum for each protection, and one for what is sealed late | `compare --design default --arch arm64 --ptdump` |
| smaller than a page | BPF's packs (64 bytes); modules, kprobes and ftrace whole pages | 8 to 64 bytes for every consumer that text_poke writes | `compare --workload probes` (padding) |
| alloc, write, finish, with and without text_poke | `execmem_alloc_rw()` and `execmem_restore_rox()` (2025) | the same three steps for one or several allocations | `compare --no-text-poke` |
| holes that init leaves are used by others | init is freed by itself, its chunk waits | init is carved from the other end, so no hole is left | `compare --workload probes --over-time 8` |
"""
FLUSHES = """\
## What a flush of all CPUs is paid for

| operation | vmalloc | `strata` |
|---|---|---|
| load | two for each text, one for each rodata (W goes, X comes) | none; one where there is no text_poke |
| write | none | one of the CPU that writes, for all of the load |
| seal | one | one: init may have run anywhere, so any TLB may hold the right to write |
| init memory, unload | one for each region | none; one where chunks go, or text goes without text_poke |

Less than one for a seal is not possible, and large leaves for text without either a local flush or one
of all CPUs for a load are not either ([why](design.md)). Two things that the model showed and that hold
of Linux, too:

* On riscv64 text_poke's fixmap entry is flushed on the hart that pokes only (`set_fixmap()`, before and
  after), though every hart walks the same tables: one that looked the entry up can reach the old frame,
  writable, until it pokes itself. Nothing does so on purpose; it is a translation that W^X does not know
  of (`tests/allocator/test_stale.py`).
* On arm64 a batch of text_poke flushes every CPU once a site, because the fixmap is everybody's. An
  address space in TTBR0 that only the writing CPU has loaded, as EFI's, makes that one local flush a
  batch (the table of `ftrace-all`).
"""
MEASURED = """\
## Measured on booted kernels

The columns of the tables are models'. The same workload on a kernel that runs here, its page tables
read and its flush instructions counted, stands beside them with `execmem compare --kernel VMLINUZ`
([how](compare.md)).

One thing that was found so: Linux 7.2.13 and 7.3-rc7 as Debian builds them for x86-64 unmap text of modules
that live, where a slice of 2 MiB, at a multiple of 2 MiB, in the middle of a larger refill of their ROX cache
is freed (`execmem compare --kernel VMLINUZ --workload middle-slice`: *not mapped although it lives*; modules
for a real machine by `python -m execmem.comparing.madefile VMLINUZ middle-slice DIR`). `execmem_cache_clean()` hands the
slice to `vfree()`, which takes the whole area that the address is in. Freeing
chunks only where they span a whole area, as proposed in 2026 and modelled by `rox_cache_7x`, does not.
"""
SCALE = """\
## At scale

Each command runs anew what its tables say; `--record FILE` writes the workload as lines of JSON
([format](compare.md#workloads)), to be replayed against a patch. From the second on every round of a
tree ends with the memory that the round before ended with, free frames in the same order, under every
design (`tests/allocator/test_scale.py`): `tree-100` is `tree-3` with the last round 97 times more.
"""
AT_SCALE = ("bpf-day", "tree-100", "tree-3", "ftrace-all", "livepatch")
OVER_TIME_HEAD = """\
Over time; *pinned*: chunks of which less than a sixteenth is in use, and by how much; *in pieces*: share
of the free module window outside of its largest run, and of free memory in which no large leaf fits:"""
PER_OPERATION_HEAD = "One operation, median / 99th percentile / most:"
WORDS: Mapping[str, str] = {
    "bpf-day": """\
`strata` and `per_type` keep a day's million programs in 12 to 24 large leaves over one split of the direct map. What
the evening strands heals by itself: when more programs go than come, 19.7 and 23.5 MiB are mapped for nobody, 6
and 7 chunks held by half a MiB together; at midnight it is 2.9 and 2.8 MiB, and none is pinned. All CPUs are
flushed 32 and 50 times in the day, only where a chunk comes or goes. `vmalloc` strands nothing and pays with all
else: up to 20,965 leaves, 2,993,319 flushes of all CPUs, and 43 leaves of the direct map that stay split, so that in
the evening 21,975 leaves map what 513 could.""",
    "tree-3": """\
On x86-64 no design strands memory: what is empty goes back. On arm64, where modules fill their window,
`rox_cache` keeps 412 KiB in 88 leaves for good: like Linux, it gives back only what has 2 MiB at a multiple
of that, and a refill that was smaller for want of room never has. The direct map does not heal under any: what the
first round splits stays split, on x86-64 one leaf under `strata`, 5 under `per_type`, and 92 under `vmalloc` and
`rox_cache`, which is 46,592 leaves of 4 KiB for memory that nobody uses any more. A round flushes all
CPUs 2,000 times under `strata`, 3,934 under `per_type`, 44,040 under `vmalloc` and 80,085 under `rox_cache`.""",
}
OVER_TIME = (
    *("architecture", "design", "unused, at most", "unused at the end", "pinned, at most"),
    *("leaves, at most", "at the end", "of the direct map", "window in pieces", "memory in pieces"),
)
PER_OPERATION = (
    *("architecture", "design", "operation", "flushes, all CPUs", "of one CPU"),
    *("entries written", "bytes written"),
)
TITLES = ("PLT slots", "leaves", "splits", "flushes, all CPUs", "of one CPU", "padding")


@attrs.frozen
class Document:
    """What `execmem compare --json` said of one workload."""

    workload: str
    frontier: tuple[Standing, ...]
    runs: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: str) -> Document:
        """Return a document; ExecmemError for what is none."""
        try:
            held = json.loads(read_regular(path))
            found = tuple(
                Standing(
                    **{**one, "best": tuple(one["best"]), "beaten_by": tuple(one["beaten_by"])}
                )
                for one in held["frontier"]
            )
            return cls(held["runs"][0]["workload"], found, tuple(held["runs"]))
        except OSError as error:
            raise ExecmemError(f"{path}: {reason_of(error)}") from None
        except (ValueError, KeyError, IndexError, TypeError):
            raise ExecmemError(f"{path}: no document of execmem compare --json") from None

    @property
    def command(self) -> str:
        """What makes the document again."""
        designs = dict.fromkeys(run["design"] for run in self.runs)
        archs = dict.fromkeys(run["arch"] for run in self.runs)
        words = [f"--design {name}" for name in designs] + [f"--arch {name}" for name in archs]
        if moments := [len(run["over_time"]) - 1 for run in self.runs if "over_time" in run]:
            words.append(f"--over-time {moments[0]}")
        return f"execmem compare --workload {self.workload} {' '.join(words)} --frontier"

    @property
    def series(self) -> list[overtime.Series]:
        """Moments of its runs; none without `--over-time`."""
        return [
            overtime.Series(run["arch"], run["design"], [Moment(**one) for one in run["over_time"]])
            for run in self.runs
            if "over_time" in run
        ]

    def over_time(self) -> str:
        """Return a table of how memory fared."""
        rows = [
            (
                one.arch,
                f"`{one.design}`",
                size_text(max(m.free_mapped_bytes for m in one.moments)),
                size_text(one.moments[-1].free_mapped_bytes),
                _pinned(one.moments),
                *(f"{max(map(_leaves, one.moments)):,}", f"{_leaves(one.moments[-1]):,}"),
                f"{sum(one.moments[-1].direct_map.values()):,}",
                f"{max(m.window_fragmentation for m in one.moments):.0%}",
                f"{max(m.memory_fragmentation for m in one.moments):.1%}",
            )
            for one in self.series
        ]
        return _table(OVER_TIME, rows)

    def per_operation(self) -> str:
        """Return a table of what single operations cost."""
        rows = [
            (
                run["arch"],
                f"`{run['design']}`",
                cost["kind"],
                *map(_spread, cost["counted"].values()),
            )
            for run in self.runs
            for cost in run.get("per_operation", ())
            if cost["kind"] != "quiet"
        ]
        return _table(PER_OPERATION, rows)

    def table(self) -> str:
        """Return the table of the frontier; what is best in a column is bold."""
        lines = [
            "| architecture | design | " + " | ".join(TITLES) + " |",
            "|---" * (2 + len(TITLES)) + "|",
        ]
        for one in self.frontier:
            cells = [_cell(one, name) for name in COLUMNS]
            lines.append("| " + " | ".join([one.arch, f"`{one.design}`", *cells]) + " |")
        refused = [
            f"`{run['design']}` on {run['arch']} ({len(run['failures'])})"
            for run in self.runs
            if run["failures"]
        ]
        if refused:
            lines += ["", f"Left out, as they refused something: {', '.join(refused)}."]
        return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (" | ".join(row) for row in (head, *rows))
    first, *others = (f"| {line} |" for line in lines)
    return "\n".join([first, "|---" * len(head) + "|", *others])


def _leaves(one: Moment) -> int:
    return sum(one.leaves.values())


def _pinned(moments: Sequence[Moment]) -> str:
    worst = max(moments, key=lambda one: one.chunks_pinned)
    by = f" by {size_text(worst.pinned_by)}" if worst.chunks_pinned else ""
    return f"{worst.chunks_pinned}{by}"


def _spread(cost: Mapping[str, float]) -> str:
    return " / ".join(f"{cost[name]:,}" for name in ("median", "p99", "most"))


def _cell(one: Standing, name: str) -> str:
    value = one.values[name]
    text = size_text(value) if name == "padding_bytes" else f"{value:,}"
    return f"**{text}**" if name in one.best else text


def report(documents: Sequence[Document], *, chart: str = "") -> str:
    """Return the report as Markdown, with a chart's address where there is one."""
    usual = [one for one in documents if one.workload not in AT_SCALE]
    large = [one for one in documents if one.workload in AT_SCALE]
    picture = [f"![Flushes of TLBs by design, {documents[0].workload}]({chart})\n"] if chart else []
    parts = [HEAD, FLUSHES, *picture, "## What designs cost\n", *map(_section, usual), MEASURED]
    return "\n".join([*parts, SCALE, *(_section(one, chart) for one in large)])


def _section(document: Document, chart: str = "") -> str:
    known = sources().get(document.workload)
    title = known.title if known else "a trace or a folder"
    parts = [f"### {document.workload}: {title}", f"`{document.command}`", document.table()]
    if document.series:
        parts += [OVER_TIME_HEAD, document.over_time()]
        if chart:
            picture = beside(chart, document.workload).name
            parts.append(f"![Memory over time by design, {document.workload}]({picture})")
        parts += [PER_OPERATION_HEAD, document.per_operation()]
    parts += [WORDS[document.workload]] if document.workload in WORDS else []
    return "\n\n".join(parts) + "\n"


def beside(chart: str | Path, workload: str) -> Path:
    """Return the name of the chart over time of a workload, beside that of the report's first."""
    path = Path(chart)
    return path.with_name(f"{path.stem}-{workload}{path.suffix}")


@click.command()
@click.argument("documents", nargs=-1, required=True)
@click.option(
    "--svg",
    "chart",
    metavar="FILE",
    help="write the chart of the first document, and beside it those over time",
)
def main(documents: Iterable[str], chart: str | None) -> None:
    """Print the report for maintainers from documents of `execmem compare --json`."""
    try:
        read = [Document.read(path) for path in documents]
        if chart is not None:
            write_file(chart, svg(read[0].frontier))
            for one in read:
                if one.series:
                    write_file(beside(chart, one.workload), overtime.svg(one.workload, one.series))
    except ExecmemError as error:
        say(f"execmem: {error}", err=True)
        sys.exit(1)
    for line in report(read, chart=Path(chart).name if chart else "").splitlines():
        say(line)


if __name__ == "__main__":
    main()
