# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem course`: tasks that are checked, and how far one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from execmem.commands.common import examples, json_option
from execmem.streams import say

ACTIONS = "new", "hint", "check"


@click.command()
@click.argument("action", required=False, metavar="[new|hint|check]")
@click.argument("words", nargs=-1, metavar="[TASK|FILE]...")
@click.option("--arch", "name", metavar="ARCH", help="for which architecture a task is, with new")
@click.option("--output", metavar="FILE", help="where new writes; the task's name otherwise")
@click.option("--number", type=click.IntRange(1), default=1, metavar="N", help="which hint")
@json_option
@click.pass_context
@examples(
    "execmem course",
    "execmem course new by-hand --arch riscv64",
    "execmem course hint one-plt --number 2",
    "execmem course check answer.toml",
)
def course(
    ctx: click.Context,
    action: str | None,
    words: tuple[str, ...],
    name: str | None,
    output: str | None,
    number: int,
    as_json: bool,
) -> None:
    """List the course's tasks and what was passed, or work on one.

    new TASK writes a file that says what to do; change it, and check FILE says what is wrong,
    with numbers, or passes. hint TASK helps, --number 2 more so. An answer is graded in a process
    of its own, without network or files; the exit code is 1 where one does not pass.
    """
    from execmem import coursework

    if action is None:
        found = coursework.course() if as_json else coursework.overview()
        _overview(found, as_json=as_json)
        return
    if action not in ACTIONS:
        raise click.UsageError(f"no action {action!r}; there are {', '.join(ACTIONS)}")
    if not words:
        raise click.UsageError(f"{action}: of which {'file' if action == 'check' else 'task'}?")
    if action == "check":
        if not _check(words, as_json=as_json):
            ctx.exit(1)
        return
    if len(words) > 1:
        raise click.UsageError(f"{action}: one task at a time")
    task = coursework.task_of(words[0])
    if action == "hint":
        _hint(task.name, task.hints, number, as_json=as_json)
        return
    _new(task, name, output, as_json=as_json)


def _overview(found: dict[str, Any], *, as_json: bool) -> None:
    from execmem import report, teaching
    from execmem.terminal import console

    if as_json:
        report.print_json(found)
        return
    teaching.print_tasks(console(), found)


def _new(task: Any, name: str | None, output: str | None, *, as_json: bool) -> None:
    from allocator.errors import ExecmemError
    from allocator.files import write_file
    from execmem import report

    arch = task.arch(name)
    file = output or f"{task.name}{task.suffix}"
    if output is None and Path(file).exists():
        raise ExecmemError(f"{file} is there already; name another file with --output")
    write_file(file, task.file(arch))
    if as_json:
        report.print_json({"file": file, "task": task.name, "arch": arch.name})
        return
    say(f"{file}: {task.title}")
    others = ", ".join(each.name for each in task.archs if each is not arch)
    if others:
        say(f"For {arch.name}; with --arch also for {others}.")
    say(f"Read it, change it, then: execmem course check {file}")


def _hint(name: str, hints: tuple[str, ...], number: int, *, as_json: bool) -> None:
    from execmem import report
    from execmem.terminal import console

    if number > len(hints):
        raise click.UsageError(f"{name} has {len(hints)} hints")
    if as_json:
        found = {"task": name, "number": number, "hints": len(hints), "text": hints[number - 1]}
        report.print_json(found)
        return
    console().print(f"Hint {number} of {len(hints)}: {hints[number - 1]}")
    if number < len(hints):
        say(f"More: execmem course hint {name} --number {number + 1}")


def _check(files: tuple[str, ...], *, as_json: bool) -> bool:
    """Grade answers; return whether all passed."""
    from execmem import coursework, notices, report, teaching
    from execmem.fencing import NOT
    from execmem.terminal import console

    verdicts = []
    for file in files:
        verdict = coursework.check(file)
        for kept in verdict.pop("kept"):
            notices.assume(f"{NOT}: {kept}")
        if why := coursework.keep(verdict):
            notices.assume(why)
        verdicts.append(verdict)
        if not as_json:
            teaching.print_verdict(console(), verdict)
    if as_json:
        report.print_json({"verdicts": verdicts})
    return all(verdict["passed"] for verdict in verdicts)
