# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem disasm`: functions of a module as they stand in memory."""

from __future__ import annotations

from typing import Any

import click

from execmem.commands.common import examples, loaded_to_read, module_options, unknown_option


@click.command()
@click.argument("module", metavar="MODULE")
@click.argument("functions", metavar="FUNCTION...", nargs=-1, required=True)
@module_options
@unknown_option("fault")
@examples(
    "execmem disasm hello hello_greet --arch arm64",
    "execmem disasm crc16 crc16 --root TREE",
)
def disasm(module: str, functions: tuple[str, ...], **options: Any) -> None:
    """Disassemble functions of a module, with the names of targets and the relocations.

    The module is loaded with its dependencies, without running init; shown is what stands in
    memory then, after relocation and what the kernel edits.
    """
    from execmem import disasm, report
    from execmem.streams import say

    loaded, models = loaded_to_read(module, options)
    _ = loaded.view.arch.runs  # without the level nobody knows what instructions look like
    found = [disasm.function(loaded, name) for name in functions]
    if options["as_json"]:
        head = {"module": loaded.name, "arch": loaded.view.arch.name, "models": models}
        report.print_json(head | {"functions": [disasm.as_json(each) for each in found]})
        return
    for number, each in enumerate(found):
        if number:
            say()
        for line in disasm.lines(each):
            say(line)
