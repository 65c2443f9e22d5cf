# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem check`: relocation cases as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from execmem.commands.common import REQUIRE, SANDBOX, archs_option, examples, json_option

if TYPE_CHECKING:
    from execmem.check.outcome import Outcome
    from execmem.check.running import Wanted


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, type=click.Path(path_type=Path))
@archs_option
@click.option(
    "--linker",
    "linkers",
    multiple=True,
    metavar="NAME",
    help="ask only this linker, or none; repeatable (default: all that are here)",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="of what is random")
@click.option("--jobs", type=click.IntRange(min=1), help="processes (default: one for each CPU)")
@click.option("--pack", is_flag=True, help="write each case with its objects to PATH.case instead")
@click.option(
    "--matrix", "as_matrix", is_flag=True, help="show what the cases try of each relocation"
)
@click.option(
    "--random",
    "count",
    type=click.IntRange(min=1),
    metavar="N",
    help="make N cases of each architecture at random, and compare them with ld and lld",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="with --random: where what differs is written, as small a case as shows it",
)
@click.option("--known", is_flag=True, help="with --random: write what is known to differ, too")
@click.option("--tap", "as_tap", is_flag=True, help="print a TAP stream")
@click.option("--junit", metavar="FILE", help="write JUnit's XML to a file")
@click.option("--verbose", "-v", is_flag=True, help="show what holds, too")
@click.option("--sandbox", is_flag=True, help=SANDBOX)
@click.option("--require-sandbox", is_flag=True, help=f"--sandbox, and {REQUIRE}")
@json_option
@examples(
    "execmem check call.s",
    "execmem check cases/ --arch riscv64 --linker none --tap",
    "execmem check --random 1000 --seed 1 --arch arm64 --output found/",
)
def check(
    paths: tuple[Path, ...],
    names: tuple[str, ...],
    linkers: tuple[str, ...],
    seed: int,
    jobs: int | None,
    pack: bool,
    as_matrix: bool,
    count: int | None,
    output: Path | None,
    known: bool,
    as_tap: bool,
    junit: str | None,
    verbose: bool,
    sandbox: bool,
    require_sandbox: bool,
    as_json: bool,
) -> None:
    """Run relocation cases: link, compare, execute, ask other linkers.

    A PATH is a case (.s, .S, .c or .case; LLVM's own JITLink tests, too) or a folder of them.
    A case says in comments what it is for and what must hold: see docs/howto/check.md.
    """
    from allocator.files import write_file
    from execmem import report
    from execmem.check import executing, files, reporting
    from execmem.check.outcome import Verdict, worst
    from execmem.pool import each
    from execmem.streams import say
    from execmem.terminal import Meter

    if sandbox or require_sandbox:
        _fence(whole=require_sandbox)
    if count is not None:
        if paths or pack or as_matrix or as_tap or junit is not None:
            raise click.UsageError("--random makes its own cases, and shows them as text or JSON")
        wanted = _wanted(names, linkers, seed)
        _show_random(count, wanted, jobs or os.cpu_count() or 1, output, known, as_json=as_json)
        return
    if output is not None or known:
        raise click.UsageError("--output and --known belong to --random")
    if not paths:
        raise click.UsageError("name a case, or a folder of cases, or say --random N")
    if as_tap and (as_json or as_matrix):
        raise click.UsageError("--tap shows outcomes only, and no JSON")
    wanted = _wanted(names, linkers, seed)
    try:
        found = list(files.find(paths))
    except OSError as error:
        raise click.UsageError(f"{error.filename}: {error.strerror}") from None
    if not found:
        raise click.UsageError("there is no case in " + ", ".join(map(str, paths)))
    if pack:
        for path in found:
            say(files.pack_file(path, wanted))
        return
    by_path: dict[str, list[Outcome]] = {str(path): [] for path in found}
    with Meter() as meter:
        work = [files.Job(path, wanted) for path in found]
        for number, some in enumerate(
            each(executing.apart(files.run_file), work, jobs or os.cpu_count() or 1), 1
        ):
            for outcome in some:
                by_path[outcome.path].append(outcome)
            meter.show("cases", number, len(work))
    outcomes = [outcome for some in by_path.values() for outcome in some]
    if junit is not None:
        write_file(junit, reporting.junit(outcomes))
    if as_matrix:
        _show_matrix(outcomes, wanted, as_json=as_json)
        return
    if as_json:
        report.print_json({"outcomes": reporting.as_json(outcomes)})
    elif as_tap:
        for line in reporting.tap(outcomes):
            say(line)
    else:
        for outcome in outcomes:
            if verbose or outcome.verdict is not Verdict.PASSED:
                for line in reporting.lines(outcome, verbose=verbose):
                    say(line)
        say(reporting.summary(outcomes))
    if worst(outcomes) is Verdict.FAILED:
        click.get_current_context().exit(1)


def _fence(*, whole: bool) -> None:
    """Let what cases call be executed behind a fence; assemblers and linkers are started outside."""
    from execmem import notices
    from execmem.check import executing
    from execmem.fencing import NOT
    from execmem.worker.fence import NotFenced

    fence = executing.behind()
    if whole and not fence.whole:
        raise NotFenced(fence.kept)
    for kept in fence.kept:
        notices.assume(f"{NOT}: {kept}")


def _show_matrix(outcomes: Sequence[Outcome], wanted: Wanted, *, as_json: bool) -> None:
    """Print what outcomes cover; exit 1 where there are holes, or a case failed."""
    from archs import archs as all_archs
    from execmem import report
    from execmem.check import matrix, reporting
    from execmem.check.outcome import Verdict
    from execmem.streams import say

    rows = {
        arch.name: (arch, matrix.matrix(arch, outcomes))
        for arch in all_archs()
        if wanted.takes(arch)
    }
    failed = [outcome for outcome in outcomes if outcome.verdict is Verdict.FAILED]
    if as_json:
        cells = [row for arch, some in rows.values() for row in matrix.as_json(arch, some)]
        report.print_json({"rows": cells, "outcomes": reporting.as_json(failed)})
    else:
        for arch, some in rows.values():
            for line in matrix.lines(arch, some):
                say(line)
        for outcome in failed:
            for line in reporting.lines(outcome):
                say(line)
    if failed or any(row.holes for _, some in rows.values() for row in some):
        click.get_current_context().exit(1)


def _show_random(
    count: int,
    wanted: Wanted,
    jobs: int,
    output: Path | None,
    known: bool,
    *,
    as_json: bool,
) -> None:
    """Print what became of random cases; exit 1 where nobody can explain what differs."""
    from archs import arch as arch_by_name
    from archs import archs as all_archs
    from execmem import report
    from execmem.check import batches, differing, executing
    from execmem.check.comparing import Asked
    from execmem.pool import each
    from execmem.streams import say
    from execmem.terminal import Meter

    for name in wanted.linkers or ():
        if name not in batches.NAMES:
            able = ", ".join(batches.NAMES)
            raise click.UsageError(f"--linker {name}: random cases are compared with {able}")
    here = [arch_by_name(name) for name in wanted.archs] or list(all_archs())
    names = [arch.name for arch in here if not arch.link.dialect.addends_in_place]
    if not names:
        raise click.UsageError(
            f"--random writes records with addends, which {here[0].name} has not"
        )
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.UsageError(f"--output {output}: {error.strerror}") from None
    done: list[differing.Done] = []
    for name in names:
        linkers = None if wanted.linkers is None else tuple(wanted.linkers)
        asked = Asked.of(arch_by_name(name), linkers).linkers
        work = differing.jobs(name, count, wanted.seed, linkers=linkers, known=known)
        parts = []
        with Meter() as meter:
            for number, part in enumerate(each(executing.apart(differing.run), work, jobs), 1):
                parts.append(part)
                meter.show(f"drafts of {name}", number, len(work))
        one = differing.joined(name, parts)
        done.append(one)
        if not as_json:
            for line in differing.lines(one, asked):
                say(line)
        for found in one.found:
            if output is not None:
                path = output / f"{found.name}.case"
                path.write_text(found.case, "utf-8")
                told = f"  {path}: {found.text}"
            else:
                told = found.case
            if not as_json:
                say(told)
    if as_json:
        report.print_json({"random": [differing.as_json(one) for one in done]})
    if any(one.unknown for one in done):
        click.get_current_context().exit(1)


def _wanted(archs: Sequence[str], linkers: Sequence[str], seed: int) -> Wanted:
    from archs import arch as arch_by_name
    from execmem.check.linkers import NAMES
    from execmem.check.running import Wanted

    try:
        names = tuple(arch_by_name(name).name for name in archs)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for name in linkers:
        if name not in (*NAMES, "none"):
            raise click.UsageError(f"--linker {name!r}: known are {', '.join(NAMES)} and none")
    asked = None if not linkers else tuple(name for name in linkers if name != "none")
    return Wanted(archs=names, linkers=asked, seed=seed)
