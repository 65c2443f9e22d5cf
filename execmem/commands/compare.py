# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem compare`: designs of executable memory side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--design", "designs", multiple=True, metavar="NAME", help="only this; repeatable")
@click.option(
    "--workload", default="server", show_default=True, metavar="W", help="a name or a path"
)
@click.option("--arch", "names", multiple=True, metavar="ARCH", help="only this one; repeatable")
@click.option("--kaslr", type=int, metavar="SEED", help="randomise as this boot would")
@click.option("--no-text-poke", is_flag=True, help="do without text_poke")
@click.option("--check", is_flag=True, help="verify every invariant of memory after each run")
@click.option("--svg", metavar="FILE", help="write a chart")
@click.option("--png", metavar="FILE", help="write a chart; needs matplotlib")
@click.option("--record", metavar="FILE", help="write the workload as a trace (one ARCH)")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
def compare(
    designs: tuple[str, ...],
    workload: str,
    names: tuple[str, ...],
    kaslr: int | None,
    no_text_poke: bool,
    check: bool,
    svg: str | None,
    png: str | None,
    record: str | None,
    as_json: bool,
) -> None:
    r"""Compare designs of executable memory on a workload.

    W is debian (every module of Debian 6.12), debian-alphabetical, desktop, server, churn,
    bpf, bpf-512, bpf-1024, bpf-2048, bpf-50-pages, probes or no-modules; or a folder of
    modules; or a trace that --record wrote.

    \b
    Examples:
      execmem compare
      execmem compare --workload debian --arch arm64 --svg debian.svg
      execmem compare --workload churn --arch x86_64 --record churn.jsonl
    """
    from allocator.workloads import write_trace
    from archs import arch as arch_by_name
    from execmem import compare, report
    from execmem.figure import write

    try:
        chosen = [arch_by_name(name) for name in names]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    using = compare.known_designs(designs)
    pairs = compare.workloads(workload, chosen)
    if record is not None:
        if len(pairs) != 1:
            raise click.UsageError("--record writes the trace of one architecture: give one --arch")
        write_trace(record, pairs[0][1])
    with compare.progress_bar() as progress:
        runs = compare.compare(
            pairs,
            using,
            kaslr=kaslr,
            text_poke=not no_text_poke,
            check=check,
            progress=progress,
        )
    if svg is not None:
        write(svg, lambda: Path(svg).write_text(compare.svg(runs), "utf-8"))
    if png is not None:
        compare.png(png, runs)
    if as_json:
        report.print_json({"runs": [found.as_json() for found in runs]})
        return
    compare.show(report.console(), runs)
