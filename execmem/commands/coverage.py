# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem coverage`: what of a module is executed by its init and by a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from allocator.types import Hex
from execmem.commands.common import (
    DRCOV,
    LCOV,
    argument,
    boots,
    examples,
    importing,
    is_path,
    load_one,
    machine_for,
    parameters,
    run_options,
    sandbox_option,
)
from execmem.streams import say

if TYPE_CHECKING:
    from machine.coverage import Coverage


@click.command()
@click.argument("module", metavar="MODULE")
@click.argument("function", required=False, metavar="[FUNCTION")
@click.argument("args", nargs=-1, metavar="[ARG...]]")
@click.option(
    "--drcov",
    type=DRCOV,
    metavar="FILE",
    help="write blocks as Lighthouse and Cartographer read them",
)
@click.option(
    "--lcov", type=LCOV, metavar="FILE", help="write lines of source as genhtml reads them"
)
@click.option(
    "--debug", metavar="PATH", help="file with the module's DWARF, or folder like /usr/lib/debug"
)
@click.option("--like", metavar="ELF", help="exported file whose layout --drcov follows")
@click.option("--with-kernel", is_flag=True, help="what a booted kernel executes counts, too")
@run_options
@sandbox_option
@examples(
    "execmem coverage patchable patchable_digits 321",
    "execmem coverage crc16 crc16 0 str:123456789 9 --root TREE --drcov a.cov",
)
def coverage(
    module: str,
    function: str | None,
    args: tuple[str, ...],
    drcov: str | None,
    lcov: str | None,
    debug: str | None,
    like: str | None,
    with_kernel: bool,
    **options: Any,
) -> None:
    """Show which functions of a module its init and a call execute, and how much of each.

    An ARG is what `execmem run` takes. Instructions count that came to their end. --drcov has
    offsets from the lowest section, as disassemblers count that open what `execmem export --elf`
    wrote; --lcov needs debugging information.
    """
    with importing():
        from emulator.faults import Fault
        from execmem import report
        from machine.arguments import Out

    values = [argument(text) for text in args]
    machine: Any
    if boots(options):
        if options.pop("no_init"):
            raise click.UsageError("--no-init: a booted kernel runs the init of what it loads")
        from execmem import booted

        machine = booted.open_machine(module, options)

        def load() -> Any:
            return booted.load_one(machine, module, parameters(options["params"]))
    else:
        if with_kernel:
            raise click.UsageError("--with-kernel: the kernel is Python; it goes with --kernel")
        machine, init = machine_for(module, options), not options.pop("no_init")

        def load() -> Any:
            return load_one(machine, module, options, init=init)

    result = fault = None
    with machine.coverage(kernel=with_kernel) as found:
        loaded = load()
        if function is not None:
            try:
                result = loaded.call(function, *values, returns=options["returns"])
            except Fault as stopped:  # what was executed until then counts
                fault = stopped
    files = _written(found, drcov, lcov, like, debug, module)
    if options["as_json"]:
        document = {
            "module": loaded.name,
            "arch": machine.arch.name,
            "models": machine.models,
            "function": function,
            "result": None if result is None else Hex(result),
            "fault": None if fault is None else str(fault),
            "outputs": [bytes(value).hex() for value in values if isinstance(value, Out)],
            "files": files,
        }
        report.print_json(document | found.found.document())
        if fault is not None:
            raise fault
        return
    _show(found)
    for file in files:
        say(f"{file['file']}: {file['count']:,} {file['what']}")
    if fault is not None:
        raise fault
    if function is not None and result is not None:
        say(f"{function} = {result:#x} ({result})")


def _written(
    found: Coverage,
    drcov: str | None,
    lcov: str | None,
    like: str | None,
    debug: str | None,
    module: str,
) -> list[dict[str, Any]]:
    """Write the files that were asked for; return what they hold."""
    written: list[dict[str, Any]] = []
    if drcov is not None:
        count = found.drcov(drcov, like=like)
        written.append({"file": drcov, "count": count, "what": "blocks", "without": []})
    if lcov is not None:
        beside = module if is_path(module) else None
        done = found.lcov(lcov, debug=debug, beside=beside)
        for name, why in done.without.items():
            say(f"{lcov} lacks {name}: {why}", err=True)
        rest = [*done.without]
        written.append({"file": lcov, "count": done.lines, "what": "lines", "without": rest})
    return written


def _show(found: Coverage) -> None:
    """Print the functions that were executed, those of each module together."""
    from execmem import report
    from execmem.terminal import console

    rows = [
        (
            f"{each.begun:,}",
            str(each.blocks),
            f"{each.executed:,} of {each.size:,}",
            covered.name,
            each.name,
        )
        for covered in found.covered.values()
        for each in covered.functions
    ]
    heads = ("begun", "blocks", "bytes", "module", "function")
    console().print(report.table(heads, rows, right="begun,blocks,bytes"), soft_wrap=True)
