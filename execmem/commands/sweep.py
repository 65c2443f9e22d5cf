# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem sweep`: many modules in parallel, a line each."""

from __future__ import annotations

import json
import time

import click

from execmem.commands.common import examples, unknown_option


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--init", is_flag=True, help="run each module's init too")
@unknown_option("fault")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="processes; all CPUs")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="wall-clock limit of an init",
)
@click.option("--design", default="default", metavar="NAME", help="design of executable memory")
@click.option("--json", "as_json", is_flag=True, help="print JSON lines, the summary last")
@examples(
    "execmem sweep TREE/lib/modules/6.12.0 --init --unknown zero",
    "execmem sweep a.ko b.ko.xz --json",
)
def sweep(
    paths: tuple[str, ...],
    init: bool,
    unknown: str,
    jobs: int | None,
    seconds: float,
    design: str,
    as_json: bool,
) -> None:
    """Load many modules, each by itself and in parallel, and say what becomes of each.

    PATH is a module or a folder with modules anywhere below. A module is ok, init-ok,
    init-error (its init returned an error), fault (the guest stopped) or refused.
    """
    from rich.console import Console
    from rich.progress import track

    from execmem.sweep import Options, Summary, modules_under
    from execmem.sweep import sweep as rows

    files = list(modules_under(paths))
    options = Options(init=init, unknown=unknown, seconds=seconds, design=design)
    summary, start = Summary(), time.monotonic()
    errors = Console(stderr=True)
    found = track(
        rows(files, options, jobs),
        description="modules",
        total=len(files),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    for row in found:
        summary.add(row)
        if as_json:
            click.echo(json.dumps(row))
        else:
            arch, outcome = row["arch"] or "?", row["outcome"]
            click.echo(f"{arch:8} {outcome:10} {row['module']:24} {row['error'] or ''}".rstrip())
    document = summary.document(time.monotonic() - start)
    if as_json:
        click.echo(json.dumps(document))
        return
    told = document["summary"]
    counts = ", ".join(f"{n} {name}" for name, n in told["outcomes"].items() if n)
    click.echo(f"summary: {told['modules']} modules: {counts or 'none'}")
    if told["missing"]:
        first = [f"{name} ({n})" for name, n in list(told["missing"].items())[:8]]
        click.echo(f"missing most often: {', '.join(first)}")
