# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps on the command line: a function called in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from allocator.types import Hex
from execmem import notices, report
from execmem.streams import say
from execmem.terminal import Meter
from loader.files import module_name
from machine.arguments import Argument, Out
from machine.booted.dumped import DumpedMachine
from machine.booted.functions import VMLINUX

# Options that mean nothing in a dump -> what they are when not given.
_OTHERS: Mapping[str, object] = {
    "root": None,
    "kaslr": None,
    "params": (),
    "stubs": (),
    "record": None,
    "sanitize": None,
    "modelled": False,
    "console": False,
    "design": "default",
    "force": False,
}


def run(
    core: str,
    module: str,
    function: str | None,
    values: list[Argument],
    *,
    returns: str,
    options: Mapping[str, Any],
) -> None:
    """Call a function in a dump, and show what it returns."""
    if options["kernel"] is None:
        raise click.UsageError("--core: name the image of the kernel that was dumped (--kernel)")
    if function is None:
        raise click.UsageError("--core: name a FUNCTION: what was loaded has run its init")
    for name, default in _OTHERS.items():
        if options.get(name, default) != default:
            spelled = {"params": "param", "stubs": "stub"}.get(name, name)
            raise click.UsageError(f"--{spelled}: nothing is loaded or booted in a dump")
    with Meter() as meter:
        meter.show(core, 0)
        machine = DumpedMachine(
            options["arch"], core=core, kernel=options["kernel"], cpu=options["cpu"]
        )
    for lack in machine.lacks:
        notices.assume(f"{core}: not known: {lack}")
    for limit in ("instructions", "seconds"):
        if options[limit] is not None:
            setattr(machine, limit, options[limit] or None)
    if module == VMLINUX:
        result = machine.call(machine.function(function), *values, returns=returns)
    else:
        found = machine.interposing.functions.module(module_name(module))
        result = found.call(function, *values, returns=returns)
    outputs = [bytes(value).hex() for value in values if isinstance(value, Out)]
    if options["as_json"]:
        report.print_json(
            {
                "module": module,
                "arch": machine.arch.name,
                "kernel": machine.kernel.release,
                "modules": list(machine.modules),
                "function": function,
                "result": Hex(result),
                "outputs": outputs,
            }
        )
        return
    say(f"{function} = {result:#x} ({result})")
    for output in outputs:
        say(f"out: {output}")
