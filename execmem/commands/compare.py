# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem compare`: designs of executable memory side by side."""

from __future__ import annotations

from typing import Any

import attrs
import click

from execmem.commands.common import (
    LINES,
    PNG,
    SVG,
    archs_option,
    cpu_option,
    examples,
    json_option,
    sandbox_option,
)
from execmem.streams import say


@click.command()
@click.option(
    "--design",
    "designs",
    multiple=True,
    metavar="NAME",
    help="only this (or ./FILE.py); repeatable",
)
@click.option(
    "--workload", default="server", show_default=True, metavar="W", help="a name or a path"
)
@archs_option
@click.option(
    "--kaslr", type=click.IntRange(min=0), metavar="SEED", help="randomise as this boot would"
)
@click.option(
    "--page-size",
    type=click.Choice(["4KiB", "16KiB", "64KiB"]),
    default="4KiB",
    show_default=True,
    metavar="SIZE",
    help="4KiB, 16KiB or 64KiB, where an architecture has such",
)
@click.option(
    "--cpus",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="online CPUs, whose interrupts are counted",
)
@click.option("--kernel", metavar="PATH", help="measure this kernel, booted, beside the designs")
@cpu_option
@click.option("--no-text-poke", is_flag=True, help="do without text_poke")
@click.option("--check", is_flag=True, help="verify every invariant of memory after each run")
@click.option("--ptdump", is_flag=True, help="print each run's page tables as the kernel does")
@click.option("--svg", type=SVG, metavar="FILE", help="write a chart")
@click.option("--png", type=PNG, metavar="FILE", help="write a chart; needs matplotlib")
@click.option(
    "--record", type=LINES, metavar="FILE", help="write the workload as a trace (one ARCH)"
)
@click.option(
    "--film",
    type=click.IntRange(min=1, max=10_000),
    metavar="N",
    help="with --json: memory at N moments of each run",
)
@click.option(
    "--closely",
    type=click.IntRange(min=1),
    metavar="K",
    help="with --film: end with every moment of operation K",
)
@click.option(
    "--over-time",
    "moments",
    type=click.IntRange(min=1, max=10_000),
    metavar="N",
    help="how memory stands at N moments, what operations cost",
)
@click.option(
    "--frontier", "of_frontier", is_flag=True, help="say which designs no other one beats"
)
@click.option("--list", "only_list", is_flag=True, help="say what designs and workloads there are")
@sandbox_option
@json_option
@click.pass_context
@examples(
    "execmem compare --list",
    "execmem compare",
    "execmem compare --workload debian --arch arm64 --svg debian.svg",
    "execmem compare --workload churn --arch x86_64 --record churn.jsonl",
    "execmem compare --page-size 16KiB --arch arm64",
    "execmem compare --design rox_cache --arch x86_64 --ptdump",
    "execmem compare --kernel VMLINUZ --design vmalloc --design default",
    "execmem compare --frontier --svg frontier.svg",
    "execmem compare --workload probes --arch arm64 --over-time 8",
)
def compare(
    ctx: click.Context,
    designs: tuple[str, ...],
    workload: str,
    names: tuple[str, ...],
    kaslr: int | None,
    page_size: str,
    cpus: int,
    kernel: str | None,
    cpu: str,
    no_text_poke: bool,
    check: bool,
    ptdump: bool,
    svg: str | None,
    png: str | None,
    record: str | None,
    film: int | None,
    closely: int | None,
    moments: int | None,
    of_frontier: bool,
    only_list: bool,
    as_json: bool,
) -> None:
    """Compare designs of executable memory on a workload.

    W is a name that --list tells, a folder of modules, or a trace that --record wrote. A
    design that fails ends its own run only; the exit code is 1 then. With --kernel that
    kernel loads and unloads them, too, and its own page tables are read.
    """
    from allocator.files import write_file
    from allocator.workloads import write_trace
    from archs import arch as arch_by_name
    from execmem import report
    from execmem.comparing import compare, comparison, frontier, overtime
    from execmem.terminal import console

    try:
        chosen = [arch_by_name(name) for name in names]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if only_list:
        found = compare.listing()
        if as_json:
            report.print_json(found)
        else:
            comparison.show_listing(console(), found)
        return
    if cpu and kernel is None:
        raise click.UsageError("--cpu: nothing is booted here; it goes with --kernel")
    if kernel is not None:
        from execmem.comparing.measuring import measure

        others = {
            "--arch": names,
            "--kaslr": kaslr is not None,
            "--page-size": page_size != "4KiB",
            "--no-text-poke": no_text_poke,
            "--check": check,
            "--ptdump": ptdump,
            "--svg": svg,
            "--png": png,
            "--film": film,
            "--over-time": moments,
        }
        for option, given in others.items():
            if given:
                raise click.UsageError(f"{option} does not go with --kernel, which decides that")
        options = {"kernel": kernel, "cpu": cpu}
        if measure(workload, designs, options, cpus=cpus, record=record, as_json=as_json):
            ctx.exit(1)
        return
    if film is not None and not as_json:
        raise click.UsageError("--film is told in JSON: give --json")
    if closely is not None and film is None:
        raise click.UsageError("--closely needs --film")
    using = compare.designs_of(designs)
    page = int(page_size.removesuffix("KiB")) << 10
    pairs = compare.with_pages(compare.workloads(workload, chosen), page, asked=bool(chosen))
    if record is not None:
        if len(pairs) != 1:
            raise click.UsageError("--record writes the trace of one architecture: give one --arch")
        write_trace(record, pairs[0][1])
    named = {each.name: each for each in using}

    def filmed(found: compare.DesignRun) -> dict[str, Any]:
        if film is None:
            return {}
        from execmem.comparing.film import film as film_of

        options: dict[str, Any] = {
            "page": page,
            "kaslr": kaslr,
            "text_poke": not no_text_poke,
            "cpus": cpus,
        }
        if closely is not None:
            options["closely"] = min(closely, len(found.workload.operations))
        design = named[found.design]
        return {"film": film_of(found.arch, found.workload, design, frames=film, **options)}

    broken: list[compare.DesignFailed] = []
    runs: list[compare.DesignRun] = []
    interrupted = False
    try:
        with compare.progress_bar() as progress:
            compare.compare(
                pairs,
                using,
                kaslr=kaslr,
                text_poke=not no_text_poke,
                page=page,
                check=check,
                cpus=cpus,
                ptdump=ptdump,
                moments=moments,
                progress=progress,
                broken=broken,
                finished=runs.append,
            )
    except KeyboardInterrupt:
        interrupted = True
    if svg is not None and runs:
        if moments is not None:
            chart = overtime.svg(runs[0].workload.name, overtime.series(runs))
        else:
            chart = frontier.svg(frontier.standings(runs)) if of_frontier else comparison.svg(runs)
        write_file(svg, chart)
    if png is not None and runs:
        comparison.png(png, runs)
    if as_json:
        report.print_json(
            {
                "frontier": frontier.as_json(frontier.standings(runs)),
                "runs": [found.as_json() | filmed(found) for found in runs],
                "errors": [attrs.asdict(each) for each in broken],
            }
        )
    else:
        if of_frontier:
            frontier.show(console(), frontier.standings(runs))
        else:
            comparison.show(console(), runs)
        overtime.show(console(), runs)
        for run in runs if ptdump else ():
            say()
            say(f"{run.arch.title}, {run.design}, {run.workload.name}")
            for line in run.page_tables or (run.arch.title + ": its kernel prints none",):
                say(line)
        for each in broken:
            say(f"execmem: {each.arch}: {each.error}", err=True)
    if interrupted:
        say(f"{len(runs)} of {len(pairs) * len(using)} runs are done", err=True)
        raise KeyboardInterrupt
    if broken:
        ctx.exit(1)
