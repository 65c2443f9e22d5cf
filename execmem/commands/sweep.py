# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem sweep`: many modules in parallel, a line each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from execmem import notices
from execmem.commands.common import (
    LINES,
    boots,
    cpu_option,
    examples,
    kernel_option,
    modelled_option,
    scheduler_address,
    unknown_option,
    workers_option,
)
from execmem.streams import say

COLUMNS = 80
KINDS = 8  # entries of a list, and kinds of errors, that the summary shows


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--init", is_flag=True, help="run each module's init too")
@unknown_option("fault")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="processes; all CPUs")
@click.option(
    "--scheduler",
    callback=scheduler_address,
    metavar="ADDRESS",
    help="work on this dask cluster instead",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="wall-clock limit of an init; 20 more for the module",
)
@click.option(
    "--memory",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="MIB",
    help="what a module may take beside the guest's memory",
)
@click.option("--output", type=LINES, metavar="FILE", help="keep rows here as they are done")
@click.option("--force", is_flag=True, help="as modprobe --force: whatever they were built for")
@kernel_option
@modelled_option
@cpu_option
@workers_option
@click.option("--resume", is_flag=True, help="do only what FILE does not hold yet")
@click.option(
    "--design", default="default", metavar="NAME", help="design of executable memory, or ./FILE.py"
)
@click.option("--json", "as_json", is_flag=True, help="print JSON lines, the summary last")
@examples(
    "execmem sweep TREE --init --unknown zero",
    "execmem sweep linux-image.deb kernel-modules.rpm a.ko.xz --json",
    "execmem sweep TREE --output rows.jsonl --resume",
    "execmem sweep TREE --scheduler ADDRESS",
    "execmem sweep TREE --init --kernel VMLINUZ --modelled",
)
def sweep(
    paths: tuple[str, ...],
    jobs: int | None,
    scheduler: str | None,
    memory: int,
    output: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Load many modules, each by itself and in parallel, and say what becomes of each.

    PATH is a module, a .deb or .rpm package or a tarball with modules, or a folder with
    any of these below. A module is ok, init-ok, init-error (its init returned an error),
    fault (the guest stopped, or a limit was reached) or refused.
    """
    from allocator.designs import absolute, choose
    from execmem.own_kernel import kernel_of
    from execmem.sweep import Journal, Options, Summary, files_under, tasks_for
    from execmem.sweep import sweep as rows
    from execmem.terminal import Meter
    from loader.archives import is_archive
    from loader.kernel.find import RUNNING
    from loader.kernel.own import AUTO
    from machine.computer import given

    if resume and output is None:
        raise click.UsageError("--resume needs --output FILE")
    if jobs is not None and scheduler is not None:
        raise click.UsageError("--jobs is for this machine; a cluster has its own")
    boots(options)
    choose(options["design"])
    options["design"] = absolute(options["design"])  # the workers' folder may be another
    files = files_under(paths)
    if options["kernel"] == AUTO and files:
        options["kernel"] = kernel_of(files[0], [])  # of all of them: of one build, as in a tree
    if options["kernel"] is not None:
        if options["modelled"]:
            given(options["kernel"], modelled=True)  # refused once, and not in each row
        else:
            options["init"] = True  # its loader runs the init of what it loads
            from execmem import booted

            # Workers find it booted.
            booted.open_machine("", {"kernel": options["kernel"], "cpu": options["cpu"]})
        if options["kernel"] != RUNNING:
            options["kernel"] = str(Path(options["kernel"]).resolve())
    settings = Options(memory=memory << 20, **options)
    summary, start = Summary(), time.monotonic()
    total = None if any(map(is_archive, files)) else len(files)
    interrupted = False
    with closing(Journal(output, settings, resume=resume)) as journal, Meter() as meter:
        earlier = dict.fromkeys(journal)
        done: dict[str, None] = {}
        found = rows(
            tasks_for(files), settings, journal, jobs=jobs, scheduler=scheduler, files=files
        )
        try:
            with closing(found):
                meter.show("modules", 0, total)
                for row in found:
                    done[row["file"]] = None
                    summary.add(row)
                    _print(row, as_json=as_json)
                    meter.show("modules", len(done), total)
        except KeyboardInterrupt:
            interrupted = True
        # What FILE holds besides belongs to the result.
        others = [file for file in journal if file not in done]
        for file in others:
            row = journal.row(file)
            summary.add(row)
            if file not in earlier:  # done, but not in its turn yet
                _print(row, as_json=as_json)
        document = summary.document(time.monotonic() - start)
        if not interrupted:
            journal.finish((*others, *done), document)
    _print_summary(document, as_json=as_json)
    if interrupted:
        if output is not None:
            say(f"--resume goes on with what {output} does not hold", err=True)
        raise KeyboardInterrupt


def _print(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from execmem import documents

        say(documents.line(row))
        return
    arch, outcome = row["arch"] or "?", row["outcome"]
    say(f"{arch:8} {outcome:10} {row['module']:24} {row['error'] or ''}".rstrip())


def _print_summary(document: dict[str, Any], *, as_json: bool) -> None:
    from allocator.types import size_text
    from loader.files import module_name

    for notice in document["notices"]:
        notices.show(notice)
    if as_json:
        from execmem import documents

        say(documents.line(document))
        return
    told = document["summary"]
    counts = ", ".join(f"{n} {name}" for name, n in told["outcomes"].items() if n)
    say(f"summary: {told['modules']} modules: {counts or 'none'}")
    lists = {
        "relocations": [f"{name} ({n})" for name, n in told["relocation_types"].items()],
        "memory": [f"{kind} {size_text(size)}" for kind, size in told["sizes"].items()],
        "missing most often": [f"{name} ({n})" for name, n in told["missing"].items()],
        "slowest": [
            f"{module_name(each['file'])} ({each['seconds']:.1f} s)" for each in told["slowest"][:3]
        ],
    }
    for title, entries in lists.items():
        if entries:
            for line in _folded([f"{title}:", *entries[:KINDS], *["..."] * (len(entries) > KINDS)]):
                say(line)
    for each in told["errors"][:KINDS]:
        say(f"{each['count']} x {each['error']}")
    if len(told["errors"]) > KINDS:
        say(f"and {len(told['errors']) - KINDS} kinds of errors more: --json shows all")


def _folded(entries: Sequence[str]) -> Iterator[str]:
    """Yield a title and its entries in lines that fit a terminal; no entry is broken."""
    line = entries[0]
    for number, entry in enumerate(entries[1:]):
        text = entry + "," * (number < len(entries) - 2)
        if len(line) + 1 + len(text) > COLUMNS:
            yield line
            line = f" {text}"
        else:
            line += f" {text}"
    yield line
