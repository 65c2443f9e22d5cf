# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem diff`: our modules beside a recorded kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import click

from execmem.commands.common import examples
from execmem.streams import say


@click.command()
@click.argument("modules", metavar="[MODULE]...", nargs=-1)
@click.option(
    "--oracle",
    "oracles",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    envvar="EXECMEM_ORACLE",
    required=True,
    help="recordings of real kernels (or EXECMEM_ORACLE, a path list); repeatable",
)
@click.option("--run", "names", multiple=True, metavar="RUN", help="only this boot; repeatable")
@click.option("--arch", "arches", multiple=True, metavar="ARCH", help="only this; repeatable")
@click.option(
    "--root",
    "roots",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    envvar="EXECMEM_CORPUS",
    help="where to find files left out (or EXECMEM_CORPUS); repeatable",
)
@click.option(
    "--without", multiple=True, metavar="MECHANISM", help="leave one out, to see it matter"
)
@click.option("--placement", is_flag=True, help="predict where the kernel put every region")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="show N differing ranges of the modules named; 0: all",
)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="processes (one per CPU)")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
@click.pass_context
@examples(
    "execmem diff --oracle DIR",
    "execmem diff --oracle DIR --run kaslr --arch arm64 --placement",
    "execmem diff loop --oracle DIR --run base --without ftrace",
)
def diff(
    ctx: click.Context,
    modules: tuple[str, ...],
    oracles: tuple[Path, ...],
    names: tuple[str, ...],
    arches: tuple[str, ...],
    roots: tuple[Path, ...],
    without: tuple[str, ...],
    placement: bool,
    limit: int,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Compare modules with what a real kernel made of them.

    Every module is linked at the kernel's addresses and finalised for the CPU and the
    command line of the boot; its bytes are compared after relocation and before init. For
    the modules that are named, each differing range is shown. The exit code is 1 where
    relocation, text or read-only data differ.
    """
    from archs import arch as arch_by_name
    from execmem import diff_report, report
    from execmem.diff import Interrupted, compare_runs
    from execmem.placement import place_runs
    from execmem.terminal import console
    from loader.files import module_name
    from loader.finalize import mechanisms
    from loader.recording import runs

    try:
        chosen = {arch_by_name(name).name for name in arches}
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for name in without:
        if name not in mechanisms():
            expected = ", ".join(mechanisms())
            raise click.UsageError(f"--without {name!r}: expected one of {expected}")
    recorded = [run for oracle in oracles for run in runs(oracle, names)]
    for name in names:
        if recorded and name not in {run.name for run in recorded}:
            raise click.UsageError(f"--run {name!r}: no such recording")
    found = [run for run in recorded if not chosen or run.arch_name in chosen]
    if not found:
        listed = os.pathsep.join(map(str, oracles))
        raise click.UsageError(f"--oracle {listed}: holds no such recording")
    wanted = tuple(module_name(name) for name in modules)
    known = {recording.name for run in found for recording in run.recordings}
    for name in wanted:
        if name not in known:
            raise click.UsageError(f"no recording has a module {name!r}")
    interrupted = False
    try:
        with diff_report.progress_bar() as progress:
            result = compare_runs(
                found,
                modules=wanted,
                trees=roots,
                ranges=bool(wanted),
                without=without,
                jobs=jobs or os.cpu_count() or 1,
                progress=progress,
            )
    except Interrupted as so_far:
        result, interrupted = so_far.result, True
    placements = place_runs(found, roots) if placement and not interrupted else ()
    if as_json:
        document = {"runs": [run.as_json(ranges=bool(wanted)) for run in result]}
        if placement:
            document["placement"] = [p.as_json() for p in placements]
        report.print_json(document)
    else:
        out = console()
        diff_report.show(out, result, limit=limit)
        for placed in placements:
            diff_report.show_placement(out, placed)
    if interrupted:
        done = sum(len(run.modules) for run in result)
        asked = sum(not wanted or r.name in wanted for run in found for r in run.recordings)
        say(f"{done} of {asked} comparisons are done", err=True)
        raise KeyboardInterrupt
    if not all(run.equal for run in result):
        ctx.exit(1)
