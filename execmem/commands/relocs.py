# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem relocs`: each relocation of a module, before and after."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import click

from execmem.commands.common import (
    examples,
    loaded_to_read,
    module_options,
    unknown_option,
)


@click.command()
@click.argument("module", metavar="MODULE")
@click.option("--section", metavar="GLOB", help="only places in these sections")
@click.option("--type", "kind", metavar="GLOB", help="only these types: R_X86_64_PC32, pc*")
@click.option("--symbol", metavar="GLOB", help="only against these symbols")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="show at most N")
@module_options
@unknown_option("fault")
@examples(
    'execmem relocs hello --arch arm64 --section .init.text --type "call*"',
    'execmem relocs ext4 --symbol "jbd2_*" --limit 3 --root TREE',
)
def relocs(
    module: str,
    section: str | None,
    kind: str | None,
    symbol: str | None,
    limit: int | None,
    **options: Any,
) -> None:
    """Show each relocation of a module: place, formula, value, before and after.

    The module is loaded with its dependencies, without running init. A GLOB is a name or
    a shell pattern (*, ?, [abc]).
    """
    from execmem import relocs, report
    from execmem.terminal import console
    from loader.listing import Listing

    loaded, models = loaded_to_read(module, options)
    arch = loaded.view.arch
    listing = Listing.of(loaded)
    if kind is not None and not listing.types(kind):
        raise click.UsageError(f"--type {kind!r}: {arch.name} has no such relocation")
    names = {table.target.name for table in listing.tables}
    if section is not None and not any(fnmatchcase(name, section) for name in names):
        shown = ", ".join(sorted(names)[:12]) + (", ..." if len(names) > 12 else "")
        raise click.UsageError(f"--section {section!r}: there are relocations in {shown or 'none'}")
    selection = listing.select(section=section, kind=kind, symbol=symbol)
    code = relocs.Code(listing)
    if options["as_json"]:
        head = {"module": loaded.name, "arch": arch.name, "models": models}
        report.print_json(head | relocs.as_json(code, selection, limit))
        return
    relocs.show(console(), code, selection, limit)
