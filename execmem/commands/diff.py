# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem diff`: our modules beside a real kernel's, recorded or booted here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from execmem.commands.common import (
    boots,
    console_option,
    cpu_option,
    examples,
    json_option,
    sandbox_option,
)
from execmem.streams import say

if TYPE_CHECKING:
    from loader.recording import RecordedBoot

_SECONDS = 600.0  # of the host, for a load: raid6_pq measures a minute where it is busy


@click.command()
@click.argument("modules", metavar="[MODULE]...", nargs=-1)
@click.option(
    "--oracle",
    "oracles",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    envvar="EXECMEM_ORACLE",
    help="recordings of real kernels (or EXECMEM_ORACLE, a path list); repeatable",
)
@click.option(
    "--kernel",
    metavar="PATH",
    help="instead: boot this one, and let it load the modules (all of its tree)",
)
@console_option
@cpu_option
@sandbox_option
@click.option(
    "--kaslr",
    type=click.IntRange(min=0),
    metavar="SEED",
    help="put --kernel and modules at random places",
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
    help="folder with lib/modules, or files left out (or EXECMEM_CORPUS); repeatable",
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
@json_option
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
    kernel: str | None,
    console: bool,
    cpu: str,
    kaslr: int | None,
    names: tuple[str, ...],
    arches: tuple[str, ...],
    roots: tuple[Path, ...],
    without: tuple[str, ...],
    placement: bool,
    limit: int,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Compare modules with what a real kernel made of them: recorded, or booted now.

    Every module is linked at the kernel's addresses and finalised for the CPU and the
    command line of the boot; its bytes are compared after relocation and before init. For
    the modules that are named, each differing range is shown. The exit code is 1 where
    relocation, text or read-only data differ.
    """
    from execmem import report, terminal
    from execmem.diffing import diff_report
    from execmem.diffing.diff import Interrupted, compare_runs
    from execmem.diffing.placement import place_runs
    from loader.files import module_name
    from loader.finalize import mechanisms

    for name in without:
        if name not in mechanisms():
            expected = ", ".join(mechanisms())
            raise click.UsageError(f"--without {name!r}: expected one of {expected}")
    explicit = ParameterSource.COMMANDLINE
    options = {"kernel": kernel, "console": console, "cpu": cpu, "kaslr": kaslr}
    if not boots(options) or kernel is None:
        if kaslr is not None:
            raise click.UsageError("--kaslr: recordings are what they are; it goes with --kernel")
        found = _recorded(modules, oracles, names, arches)
    else:
        for option, given in (("--run", names), ("--arch", arches)):
            if given:
                raise click.UsageError(f"{option}: --kernel boots one kernel, once")
        if oracles and ctx.get_parameter_source("oracles") is explicit:
            raise click.UsageError("--oracle or --kernel: recordings, or a kernel to boot")
        given_here = ctx.get_parameter_source("roots") is explicit
        own = [Path(kernel)] if Path(kernel).is_dir() and not given_here else []
        found = [_booted(options, modules, [*own, *roots])]
        roots = ()
    wanted = tuple(module_name(name) for name in modules)
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
        out = terminal.console()
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


def _recorded(
    modules: Sequence[str],
    oracles: Sequence[Path],
    names: tuple[str, ...],
    arches: Sequence[str],
) -> list[RecordedBoot]:
    """Return the recordings that a command line means."""
    from archs import arch as arch_by_name
    from loader.files import module_name
    from loader.recording import runs

    if not oracles:
        raise click.UsageError("--oracle DIR or --kernel PATH: what to compare with?")
    try:
        chosen = {arch_by_name(name).name for name in arches}
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    recorded = [run for oracle in oracles for run in runs(oracle, names)]
    for name in names:
        if recorded and name not in {run.name for run in recorded}:
            raise click.UsageError(f"--run {name!r}: no such recording")
    found = [run for run in recorded if not chosen or run.arch_name in chosen]
    if not found:
        listed = os.pathsep.join(map(str, oracles))
        raise click.UsageError(f"--oracle {listed}: holds no such recording")
    known = {recording.name for run in found for recording in run.recordings}
    for name in map(module_name, modules):
        if name not in known:
            raise click.UsageError(f"no recording has a module {name!r}")
    return found


def _booted(
    options: Mapping[str, Any], modules: Sequence[str], roots: Sequence[Path]
) -> RecordedBoot:
    """Return what a kernel makes of modules, or of all that its tree has."""
    from execmem.booted import open_machine
    from execmem.diffing.diff_report import progress_bar
    from execmem.diffing.live import Recorder, record
    from loader.depends import tree_of
    from loader.errors import BadModule
    from loader.files import is_file

    machine = open_machine("", options)
    machine.seconds = _SECONDS
    machine.tree = tree_of(machine.kernel.release, roots)
    if machine.tree is None and not (modules and all(map(is_file, modules))):
        place = f"lib/modules/{machine.kernel.release}"
        listed = ", ".join(map(str, roots)) or "no folder"
        raise BadModule(place, "module tree", f"not in {listed}; name one that has it: --root DIR")
    wanted = modules or sorted(machine.tree.files if machine.tree is not None else ())
    with progress_bar("loading") as progress:
        return record(Recorder(machine), wanted, progress)
