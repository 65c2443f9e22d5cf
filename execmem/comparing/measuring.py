# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem compare --kernel`: what a booted kernel made of a workload, with designs beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import attrs

from allocator.errors import DesignError
from allocator.types import size_text
from allocator.workloads import Measures, sources, write_trace
from archs import arch
from execmem import notices, report
from execmem.booted import open_machine
from execmem.comparing.beside import ModelRun, modelled
from execmem.comparing.compare import designs_of, workloads
from execmem.comparing.measured import KernelRunner, files_of, named
from execmem.comparing.measures import KernelMeasures
from execmem.report import table
from execmem.streams import say
from execmem.terminal import WIDTH, Meter, console

if TYPE_CHECKING:
    from rich.console import Console

_TYPES = ("TEXT", "DATA", "RODATA")
_LEGEND = (
    "{sizes}: leaves that map text; a run is one. text, data, rodata: share under {large} leaves. before,"
    " after, splits: leaves of {small} in the direct map, and large ones that are gone. same place:"
    " live regions at the address that the kernel gave them; same order: all follow each other by"
    " address as there."
)
_FLUSHED = (
    "pages one by one, everything: flushes of TLBs for modules' memory and the direct map; a model's are"
    " what this kernel would execute for what the design does. of other memory: as for the copy of a"
    " module's file. frames: whose physical memory a design had."
)
_MADE = "modules are files made for this kernel, of the workload's sizes: nothing of theirs runs"


def measure(
    name: str,
    designs: Sequence[str],
    options: Mapping[str, Any],
    *,
    cpus: int,
    record: str | None,
    as_json: bool,
) -> bool:
    """Have a kernel and designs do a workload, and show both; whether one of them did not come to its end.

    Parameters
    ----------
    options
        `kernel` and what else shapes how it boots.
    record
        A file for the workload as the kernel was asked for it.
    """
    chosen = designs_of(designs)
    machine = open_machine("", options)
    files: dict[str, Path] | None = None
    if Path(name).is_dir():
        workload, files = files_of(Path(name), machine.arch.name)
    else:
        ((_, workload),) = workloads(name, (machine.arch,))
        notices.assume(_MADE)
    with Meter() as meter:
        runner = KernelRunner(machine)
        found = runner.run(workload, files, meter.show)
        if record is not None:
            write_trace(record, found.asked)
        runs: list[ModelRun] = []
        errors: list[str] = []
        interrupted = found.interrupted  # what is measured is shown
        try:
            for each in () if interrupted else chosen:
                meter.show(each.name, 0)
                try:
                    runs += modelled(runner, found, [each], cpus=cpus)
                except DesignError as error:
                    errors.append(str(error))
        except KeyboardInterrupt:
            interrupted = True
    for note in found.notes:
        notices.assume(note)
    if found.passed_over:
        notices.assume(
            f"{found.passed_over} operations of others than modules, BPF, kprobes and ftrace, or that this"
            " kernel lacks, are not done"
        )
    if as_json:
        document = {
            "workload": workload.name,
            "measured": found.as_json(),
            "runs": [_json(run) for run in runs],
            "errors": errors,
        }
        report.print_json(document)
    else:
        _show(console(), found, runs, workload.name, runner.page)
    for each_error in errors:
        say(f"execmem: {found.arch}: {each_error}", err=True)
    if found.ended:
        far = f"after {found.done} of {found.operations} operations"
        say(f"execmem: Linux {found.kernel} did not come back {far}: {found.ended}", err=True)
    if interrupted:
        far = f"{found.done} of {found.operations} operations and " * found.interrupted
        say(f"{far}{len(runs)} of {len(chosen)} designs are done", err=True)
        raise KeyboardInterrupt
    return bool(errors or found.ended)


def _json(run: ModelRun) -> dict[str, Any]:
    own = attrs.asdict(run, filter=lambda field, _: field.name != "measures")
    return own | attrs.asdict(run.measures)


def _show(
    out: Console, found: KernelMeasures, runs: Sequence[ModelRun], name: str, page: int
) -> None:
    known = sources().get(name)
    out.print(
        f"Linux {found.kernel} ({found.arch}), booted: {known.title if known else name}",
        soft_wrap=True,
    )
    out.print()
    paging = arch(found.arch).loads.paging(page)
    small, large = named(paging.page), named(paging.large)
    sizes = [named(size) for size in paging.leaves if size <= paging.large]
    head = ["", "modules", "refused", *sizes, *(kind.lower() for kind in _TYPES)]
    both: list[tuple[str, KernelMeasures | Measures, int, ModelRun | None]]
    both = [("measured", found, len(found.refused), None)]
    both += [(run.design, run.measures, len(run.measures.failures), run) for run in runs]
    rows: list[tuple[object, ...]] = [
        (
            who,
            m.modules,
            refused,
            *(m.leaves["TEXT"].get(size, 0) for size in sizes),
            *(f"{m.large_share[kind]:.0%}" for kind in _TYPES),
        )
        for who, m, refused, _ in both
    ]
    out.print(table(head, rows, right=",".join(head[1:])))
    out.print()
    head = ["", "before", "after", "splits", "same place", "same order"]
    rows = [
        (
            who,
            m.direct_map_before[small],
            m.direct_map_after[small],
            m.direct_map_splits,
            "" if run is None else f"{run.same_place} of {run.regions}",
            "" if run is None else "yes" if run.same_order else "no",
        )
        for who, m, _, run in both
    ]
    out.print(table(head, rows, right=",".join(head[1:])))
    _show_consumers(out, found, runs, small, large)
    out.print()
    head = ["", "pages one by one", "everything", "of other memory", "frames"]
    flushes = found.flushes.values()
    rows = [
        (
            "measured",
            sum(each.pages for each in flushes),
            round(sum(each.whole for each in flushes)),
            sum(each.elsewhere for each in flushes),
            "",
        )
    ]
    for run in runs:
        frames = "the kernel's" if run.same_frames else "its own"
        rows.append((run.design, run.pages, run.whole, "", frames))
    out.print(table(head, rows, right=",".join(head[1:4])))
    out.print()
    rows = [
        (step, kind, count)
        for step, flushed in found.flushes.items()
        for kind, count in {**flushed.instructions, **flushed.functions}.items()
    ]
    out.print(table(("step", "measured: instruction, function", "count"), rows, right="count"))
    for text in (_LEGEND.format(sizes=", ".join(sizes), small=small, large=large), _FLUSHED):
        out.print()
        for line in wrap(text, WIDTH):
            out.print(line, soft_wrap=True)
    if found.programs["programs"]:
        told = ", ".join(
            f"{count} leaves of {size}" for size, count in list(found.programs.items())[2:]
        )
        out.print()
        out.print(
            f"BPF programs: {found.programs['programs']}, whose code of"
            f" {size_text(found.programs['bytes'])} is mapped by {told}"
        )
    if found.unmapped:
        out.print()
        out.print(
            f"not mapped although it lives, in Linux {found.kernel}: {', '.join(found.unmapped)}",
            soft_wrap=True,
        )
    for first, reason in list(found.refused.items())[:1]:
        out.print()
        out.print(f"{len(found.refused)} refused by the kernel, first {first}: {reason}")


def _show_consumers(
    out: Console, found: KernelMeasures, runs: Sequence[ModelRun], small: str, large: str
) -> None:
    """Print what kprobes and ftrace have, where they had something."""
    if not any(each["held"] or each["areas"] for each in found.attached.values()):
        return
    head = ["", *(each for who in found.attached for each in (who, f"{who} on"))]
    both = [("measured", found.attached, "")]
    same = f"of {len(found.areas)}"
    both += [(run.design, run.consumers, f"{run.same_areas} {same}") for run in runs]
    rows = [
        (
            who,
            *(
                cell
                for each in map(consumers.__getitem__, found.attached)
                for cell in (each["areas"], f"{each.get(small, 0)} + {each.get(large, 0)}")
            ),
            place,
        )
        for who, consumers, place in both
    ]
    head.append("same place")
    out.print()
    out.print(table(head, rows, right=",".join(head[1:])))
    told = ", ".join(f"{each['held']} of {who}" for who, each in found.attached.items())
    out.print()
    text = (
        f"Registered: {told}. Slots lie in pages of the kernel's: these and trampolines are counted, and what"
        f" they lie on, leaves of {small} + {large}. Designs were asked for the same."
    )
    for line in wrap(text, WIDTH):
        out.print(line, soft_wrap=True)
