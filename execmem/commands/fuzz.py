# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem fuzz`: inputs that come to new code, and those with which something goes wrong."""

from __future__ import annotations

from typing import Any

import click

from execmem.commands.common import (
    boots,
    console_option,
    cpu_option,
    examples,
    importing,
    is_path,
    machine_for,
    modelled_option,
    module_options,
    sample_root,
    scheduler_address,
    unknown_option,
    workers_option,
)

EXECUTIONS = 20_000
_AGAIN = ("replay", "report")


@click.command()
@click.argument("module", metavar="MODULE")
@click.argument("function", required=False, metavar="[FUNCTION]")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=KIND",
    help="an argument: bytes[:MIN-MAX], len(NAME), int[:MIN-MAX], struct:TYPE, out:SIZE, or a number",
)
@click.option("--device", metavar="NAME", help="fuzz a device of /dev instead of a function")
@click.option(
    "--operation",
    default="write",
    show_default=True,
    metavar="NAME",
    help="of --device: write, read, ioctl, ioctl:COMMAND",
)
@click.option(
    "--syscall", metavar="CALL", help="fuzz a system call: write:fd=/dev/x,buf=bytes,count=len(buf)"
)
@click.option(
    "--harness", metavar="FILE:FUNCTION", help="fuzz what a function of Python does with an input"
)
@click.option("--corpus", "corpora", multiple=True, metavar="PATH", help="inputs to begin with")
@click.option("--out", metavar="DIR", help="keep corpus and findings, and go on where DIR is there")
@click.option(
    "--executions",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"end after so many inputs ({EXECUTIONS:,}, where --duration is not given)",
)
@click.option(
    "--duration", type=click.FloatRange(min=0), metavar="S", help="end after so many seconds"
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="processes",
)
@click.option(
    "--scheduler",
    callback=scheduler_address,
    metavar="ADDRESS",
    help="work on this dask cluster, --jobs parts at a time",
)
@click.option(
    "--sanitize",
    default="guard,locks",
    show_default=True,
    metavar="CHECKS",
    help="checks that the machine is put under: guard, locks, none",
)
@workers_option
@click.option("--exact", is_flag=True, help="tell edges and how often apart, not blocks (slower)")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="instructions of one execution, after which it hangs (10,000,000)",
)
@module_options
@modelled_option
@console_option
@cpu_option
@unknown_option("fault")
@examples(
    "execmem fuzz mathuser mathuser_lcm --input a=int --input b=1 --executions 99",
    "execmem fuzz notes --device notes --executions 2000 --out OUT",
    "execmem fuzz notes --device notes --jobs 8 --scheduler ADDRESS",
    "execmem fuzz replay CRASH",
    "execmem fuzz report CRASH",
)
def fuzz(
    module: str,
    function: str | None,
    **options: Any,
) -> int:
    """Fuzz a function of a module, a device, or a system call; 1 where something was found.

    The module is loaded once; then each input runs on the machine as it was, which costs
    microseconds. Inputs that come to new code are kept, and what goes wrong is told once for
    each place, with the smallest input that was found. Equal --seed and --jobs find the same,
    in the same order.

    fuzz replay CRASH runs the input of a finding again, fuzz report CRASH writes what a
    maintainer needs; MODULE may be vmlinux for functions of a kernel that is booted.
    """
    with importing():
        from execmem import fuzzed
        from execmem.fuzzing.targets import VMLINUX

    if module in _AGAIN and function is not None:
        return fuzzed.again(module, function, as_json=options["as_json"])
    own = module != VMLINUX
    if not own and not boots(options):
        raise click.UsageError("vmlinux: functions of a kernel need one that is booted (--kernel)")
    if not boots(options):
        machine = machine_for(module, options)  # what is wrong with the options is told here
        options["arch"] = machine.arch.name
        if options["root"] is None and not is_path(module):
            options["root"] = sample_root(module, machine.arch.name)
    return fuzzed.fuzz(module, function or "", options, executions=EXECUTIONS)
