# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem run`: run a module's init, or call one of its functions."""

from __future__ import annotations

from typing import Any

import click

from allocator.types import Hex
from execmem.commands.common import (
    argument,
    boots,
    examples,
    importing,
    load_one,
    machine_for,
    parameters,
    record_option,
    recording,
    run_options,
    sandbox_option,
    shortened,
)
from execmem.streams import say


@click.command()
@click.argument("module", metavar="MODULE")
@click.argument("function", required=False, metavar="[FUNCTION")
@click.argument("args", nargs=-1, metavar="[ARG...]]")
@run_options
@record_option
@sandbox_option
@click.option(
    "--core", metavar="FILE", help="call it in a dump of --kernel's memory; MODULE may be vmlinux"
)
@click.option(
    "--sanitize",
    metavar="CHECKS",
    help="find what is wrong with memory and locks: guard,leaks,uninit,locks,wx or all",
)
@examples(
    "execmem run hello --param who=you",
    "execmem run mathuser mathuser_lcm 21 6 --arch riscv64",
    "execmem run parser parser_parse hex:505253016b022b31 8 --sanitize all",
    "execmem run crc16 crc16 0 str:123456789 9 --root TREE --arch arm64",
)
def run(
    module: str,
    function: str | None,
    args: tuple[str, ...],
    no_init: bool,
    core: str | None,
    returns: str,
    **options: Any,
) -> None:
    """Run a module's init, or call one of its functions.

    An ARG is an integer (10, 0x10, -1), str:TEXT, hex:BYTES, file:PATH or out:SIZE (a
    buffer that is shown afterwards).

    With --core the function is called where it stood when a kernel's memory was dumped: a module
    that was loaded then, or vmlinux. Nothing is loaded and no time passes.
    """
    with importing():
        from execmem import findings, notices, report
        from machine.machine import Out

    values = [argument(text) for text in args]
    if core is not None:
        from execmem import dumped

        dumped.run(core, module, function, values, returns=returns, options=options)
        return
    if boots(options):
        if no_init:
            raise click.UsageError("--no-init: a booted kernel runs the init of what it loads")
        from execmem import booted

        booted.run(
            module,
            function,
            values,
            returns=returns,
            options=options,
            params=parameters(options["params"]),
        )
        return
    machine = machine_for(module, options)
    checks = findings.begin(machine, options["sanitize"])
    save = recording(machine, options)
    click.get_current_context().call_on_close(lambda: report.print_missing(machine))
    loaded = load_one(machine, module, options, init=not no_init)
    fault = loaded.report.init_fault
    if fault is not None and function is None:
        raise fault
    if fault is not None:
        say(f"{loaded.name}: init stopped: {fault}", err=True)
    result = None
    if function is not None:
        result = loaded.call(function, *values, returns=returns)
        machine.kernel.flush_log()
    save()
    outputs = [bytes(value).hex() for value in values if isinstance(value, Out)]
    if options["as_json"]:
        document = report.module_json(machine, loaded) | {
            "function": function,
            "result": None if result is None else Hex(result),
            "outputs": outputs,
            "log": [line.text for line in machine.log],
            "notices": notices.texts(),
            **report.missing(machine),
        }
        if options["kasan"] or checks is not None:
            machine.unload(loaded, force=True)
        report.print_json(document | {"leaks": machine.leaks, "findings": findings.as_json(checks)})
        return
    for line in machine.log:
        say(line.text, err=line.loading)
    if function is None:
        said = "has no init" if loaded.report.init_result is None else "init returned 0"
        if loaded.report.init_result:
            said = f"init returned {loaded.report.init_result}"
        say(f"{loaded.name}: {said if not no_init else 'init was not run'}")
        from execmem.terminal import console

        report.print_registered(console(), machine, loaded.name)
    else:
        say(f"{function} = {result:#x} ({result})")
    for output in outputs:
        say(f"out: {shortened(output)}")
    if options["kasan"] or checks is not None:
        machine.unload(loaded, force=True)
        for leak in machine.leaks:
            say(leak)
    findings.show(checks)
