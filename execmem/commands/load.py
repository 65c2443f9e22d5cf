# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem load`: bring modules into memory and show where everything lies."""

from __future__ import annotations

from typing import Any

import click

from execmem.commands.common import (
    examples,
    load_one,
    machine_for,
    module_options,
    print_log,
    record_option,
    recording,
    unknown_option,
)


@click.command()
@click.argument("modules", nargs=-1, required=True, metavar="MODULE...")
@module_options
@record_option
@unknown_option("refuse")
@click.option("--init", is_flag=True, help="run the modules' init too")
@click.option("--svg", metavar="FILE", help="draw the address map")
@click.option("--png", metavar="FILE", help="draw the address map; needs matplotlib")
@examples(
    "execmem load hello.ko --param who=you",
    "execmem load ext4 --root /path/to/tree --json",
    "execmem load ext4 --root /path/to/tree --arch arm64 --record ext4.jsonl",
)
def load(
    modules: tuple[str, ...], init: bool, svg: str | None, png: str | None, **options: Any
) -> None:
    """Load modules with their dependencies and show where everything lies.

    MODULE is a file (.ko, .ko.xz, .ko.gz, .ko.zst) or a name under --root.
    """
    from execmem import report

    machine = machine_for(modules[0], options)
    save = recording(machine, options)
    loaded = [load_one(machine, name, options, init=init) for name in modules]
    save()
    if svg is not None or png is not None:
        from execmem import figure

        figure.save(machine, list(machine.modules.values()), svg=svg, png=png)
    if options["as_json"]:
        everything = machine.modules.values()
        report.print_json({"modules": [report.module_json(machine, m) for m in everything]})
        return
    out = report.console()
    for number, module in enumerate(loaded):
        if number:
            out.print()
        report.print_module(out, machine, module)
        print_log(out, module)
