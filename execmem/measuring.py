# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem compare --kernel`: what a booted kernel made of a workload, with designs beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import attrs

from allocator.errors import DesignError
from allocator.types import Paging
from allocator.workloads import WORKLOADS, Measures, write_trace
from execmem import notices, report
from execmem.booted import open_machine
from execmem.compare import designs_of, workloads
from execmem.measured import KernelMeasures, KernelRunner, ModelRun, files_of, modelled, named
from execmem.report import table
from execmem.streams import say
from execmem.terminal import WIDTH, Meter, console

if TYPE_CHECKING:
    from rich.console import Console

_TYPES = ("TEXT", "DATA", "RODATA")
_LEGEND = (
    "{small}, {large}: leaves that map text. text, data, rodata: share under {large} leaves. before,"
    " after, splits: leaves of {small} in the direct map, and large ones that are gone. same place:"
    " live regions at the address that the kernel gave them; same order: all follow each other by"
    " address as there."
)
_FLUSHED = (
    "The kernel's: instructions by kind, and calls of functions. A model's: flushes of all CPUs that"
    " it asks for, and the invalidations that one CPU executes for them by its architecture's rules."
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
    """Have a kernel and designs do a workload, and show both; whether something was refused by a design.

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
        for each in chosen:
            meter.show(each.name, 0)
            try:
                runs += modelled(runner, found, [each], cpus=cpus)
            except DesignError as error:
                errors.append(str(error))
    for note in found.notes:
        notices.assume(note)
    if found.passed_over:
        notices.assume(f"{found.passed_over} operations of others than modules are not done")
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
    return bool(errors)


def _json(run: ModelRun) -> dict[str, Any]:
    own = {"design": run.design, "same_place": run.same_place, "same_order": run.same_order}
    return own | {"regions": run.regions} | attrs.asdict(run.measures)


def _show(
    out: Console, found: KernelMeasures, runs: Sequence[ModelRun], name: str, page: int
) -> None:
    known = WORKLOADS.get(name)
    out.print(
        f"Linux {found.kernel} ({found.arch}), booted: {known.title if known else name}",
        soft_wrap=True,
    )
    out.print()
    small, large = (named(size) for size in Paging(page).leaves[:2])
    head = ["", "modules", "refused", small, large, *(kind.lower() for kind in _TYPES)]
    both: list[tuple[str, KernelMeasures | Measures, int, ModelRun | None]]
    both = [("measured", found, len(found.refused), None)]
    both += [(run.design, run.measures, len(run.measures.failures), run) for run in runs]
    rows: list[tuple[object, ...]] = [
        (
            who,
            m.modules,
            refused,
            m.leaves["TEXT"].get(small, 0),
            m.leaves["TEXT"].get(large, 0),
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
    out.print()
    rows = []
    for step, flushed in found.flushes.items():
        for kind, count in {**flushed.instructions, **flushed.functions}.items():
            rows.append(("measured", step, kind, count))
    for run in runs:
        rows.append((run.design, "all", "flushes of all CPUs", run.measures.tlb_flushes_all))
        rows.append((run.design, "all", "invalidations", run.measures.flushes.instructions))
    out.print(table(("", "step", "what", "count"), rows, right="count"))
    for text in (_LEGEND.format(small=small, large=large), _FLUSHED):
        out.print()
        for line in wrap(text, WIDTH):
            out.print(line, soft_wrap=True)
    for first, reason in list(found.refused.items())[:1]:
        out.print()
        out.print(f"{len(found.refused)} refused by the kernel, first {first}: {reason}")
