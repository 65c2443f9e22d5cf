# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem load`: bring modules into memory and show where everything lies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from execmem.commands.common import (
    PNG,
    SVG,
    boots,
    console_option,
    cpu_option,
    examples,
    importing,
    load_one,
    machine_for,
    modelled_option,
    module_options,
    parameters,
    print_log,
    record_option,
    recording,
    sandbox_option,
    unknown_option,
)
from execmem.streams import say


@click.command()
@click.argument("modules", nargs=-1, metavar="[MODULE...]")
@module_options
@modelled_option
@console_option
@cpu_option
@record_option
@sandbox_option
@unknown_option("refuse")
@click.option("--init", is_flag=True, help="run the modules' init too")
@click.option("--all", "whole_tree", is_flag=True, help="load all modules under --root")
@click.option(
    "--ptdump",
    type=click.Choice(["all", "changes"]),
    metavar="WHAT",
    help="page tables as the kernel prints them: all, or changes by the load",
)
@click.option("--svg", type=SVG, metavar="FILE", help="draw the address map")
@click.option("--png", type=PNG, metavar="FILE", help="draw the address map; needs matplotlib")
@examples(
    "execmem load hello --init --param who=you",
    "execmem load mathuser --arch riscv64 --svg map.svg",
    "execmem load mathuser --arch arm64 --ptdump changes",
    "execmem load ext4 --root TREE --json",
    "execmem load ext4 --root TREE --arch arm64 --record ext4.jsonl",
    "execmem load --all --root TREE --design default,vmalloc",
)
def load(
    modules: tuple[str, ...],
    init: bool,
    whole_tree: bool,
    ptdump: str | None,
    svg: str | None,
    png: str | None,
    **options: Any,
) -> None:
    """Load modules with their dependencies and show where everything lies.

    MODULE is a file (.ko, .ko.xz, .ko.gz, .ko.zst) or a name under --root. With --all, every
    module under --root is loaded into one guest, for each of the designs named (`all`: each
    that can work), with time, memory and reach; without --init, only its memory is formed.
    """
    if whole_tree:
        if modules or options["params"] or options["record"] or svg or png or ptdump:
            raise click.UsageError(
                "--all takes no modules, --param, --record, --ptdump, --svg or --png"
            )
        _load_everything(init=init, options=options)
        return
    if not modules:
        raise click.UsageError("name a MODULE, or --all with --root DIR")
    if boots(options):
        from execmem import booted

        more = {"svg": svg, "png": png, "ptdump": ptdump}
        booted.load(modules, options | more, parameters(options["params"]))
        return
    with importing():
        from execmem import report
        from execmem.terminal import console

    machine = machine_for(modules[0], options)
    save = recording(machine, options)
    before = list(machine.page_tables().lines()) if ptdump == "changes" else None
    loaded = [load_one(machine, name, options, init=init) for name in modules]
    save()
    for module in machine.modules.values():
        if module.report.init_fault is not None and module not in loaded:
            say(f"{module.name}: init stopped: {module.report.init_fault}", err=True)
    if svg is not None or png is not None:
        from execmem import figure

        figure.save(machine, list(machine.modules.values()), svg=svg, png=png)
    tables: list[str] = []
    if ptdump is not None:
        from execmem.ptdump import chosen

        tables = list(chosen(machine.page_tables().lines(), before))
    if options["as_json"]:
        everything = machine.modules.values()
        document: dict[str, Any] = {"modules": [report.module_json(machine, m) for m in everything]}
        report.print_json(document | ({"page_tables": tables} if ptdump is not None else {}))
        return
    out = console()
    for number, module in enumerate(loaded):
        if number:
            out.print()
        report.print_module(out, machine, module)
        print_log(out, module)
    for line in tables:
        say(line)


def _load_everything(*, init: bool, options: dict[str, Any]) -> None:
    """Load the whole tree, design by design."""
    import gc
    from itertools import count

    from execmem import report
    from execmem.comparing.compare import designs_of
    from execmem.everything import MEMORY, load_all, show
    from execmem.terminal import Meter, console
    from loader.depends import open_tree

    if options["root"] is None:
        raise click.UsageError("--all needs --root DIR")
    names = sorted(open_tree(options["root"]).files)
    if not names:
        raise click.UsageError(f"{options['root']}: modules.dep lists no module")
    wanted = options["design"].split(",")
    runs = []
    with Meter() as meter:
        for design in designs_of(() if wanted == ["all"] else wanted):
            machine = machine_for(names[0], options | {"design": design}, memory=MEMORY)
            done = count(1)

            def after_each(name: str = design.name, done: Iterator[int] = done) -> None:
                meter.show(name, next(done), len(names))

            found = load_all(machine, names, init=init, after_each=after_each)
            runs.append(found.as_json())
            if not options["as_json"]:
                if len(runs) > 1:
                    say()
                show(console(), runs[-1])
            del machine, found
            gc.collect()  # a machine is a cycle that holds gigabytes
    if options["as_json"]:
        report.print_json({"runs": runs})
