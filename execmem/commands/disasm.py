# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem disasm`: functions of a module as they stand in memory."""

from __future__ import annotations

from typing import Any

import click

from execmem.commands.common import (
    examples,
    is_path,
    loaded_to_read,
    module_options,
    unknown_option,
)


@click.command()
@click.argument("module", metavar="MODULE")
@click.argument("functions", metavar="FUNCTION...", nargs=-1, required=True)
@click.option(
    "--debug", metavar="PATH", help="file with the module's DWARF, or folder like /usr/lib/debug"
)
@click.option("--source", metavar="DIR", help="show the source that is below this folder")
@module_options
@unknown_option("fault")
@examples(
    "execmem disasm hello hello_greet --arch arm64",
    "execmem disasm crc16 crc16 --root TREE",
)
def disasm(
    module: str, functions: tuple[str, ...], debug: str | None, source: str | None, **options: Any
) -> None:
    """Disassemble functions of a module, with the names of targets and the relocations.

    The module is loaded with its dependencies, without running init; shown is what stands in
    memory then, after relocation and what the kernel edits. Lines of source come from the DWARF of
    the module or of its debug package.
    """
    from execmem import disasm, report
    from execmem.streams import say
    from loader.debugfile import NoDebug
    from loader.lines import Lines

    loaded, models = loaded_to_read(module, options)
    _ = loaded.view.arch.runs  # without the level nobody knows what instructions look like
    known, why = None, ""
    try:
        beside = module if is_path(module) else None
        known = Lines.of_loaded(loaded, debug=debug, beside=beside)
    except NoDebug as none:
        if debug is not None or source is not None:
            raise
        why = none.reason
    found = [disasm.function(loaded, name, known) for name in functions]
    if options["as_json"]:
        head = {"module": loaded.name, "arch": loaded.view.arch.name, "models": models}
        named = {"debug": None if known is None else known.name, "no_debug": why or None}
        report.print_json(head | named | {"functions": [disasm.as_json(each) for each in found]})
        return
    if why:
        say(f"No lines of source: {why} (--debug PATH names it).")
    for number, each in enumerate(found):
        if number or why:
            say()
        for line in disasm.lines(each, disasm.Sources(source) if source is not None else None):
            say(line)
