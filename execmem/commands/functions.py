# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem functions`: the functions of a kernel or module, with their prototypes."""

from __future__ import annotations

import click

from execmem.commands.common import examples, json_option


@click.command()
@click.argument("path", metavar="KERNEL|MODULE")
@click.argument("glob", metavar="[GLOB]", default="*")
@click.option("--kernel", metavar="PATH", help="of a module: the kernel that it is for")
@json_option
@examples(
    'execmem functions linux-image.deb "kstrto*"',
    "execmem functions hello.ko",
)
def functions(path: str, glob: str, kernel: str | None, as_json: bool) -> None:
    """List functions: where they are, and what they take and return.

    Prototypes are those of the types that a kernel has (CONFIG_DEBUG_INFO_BTF); a module's need
    its kernel's (--kernel). Nothing is executed. GLOB is a name or a shell pattern.
    """
    from execmem import declared, report
    from execmem.streams import say

    of = declared.source(path, kernel)
    rows = list(declared.functions(of, glob))
    if as_json:
        lacks = None if of.types is not None else of.lacks
        report.print_json(
            {"of": of.name, "arch": of.arch.name, "functions": rows, "types_unknown": lacks}
        )
        return
    for row in rows:
        place = f"{row['address']:#x}" if row["address"] is not None else ""
        if row["section"] is not None:
            place = f"{row['section']}+{row['offset']:#x}"
        say(f"{place:<20} {row['prototype'] or row['name'] + '(?)'}")
    if of.types is None:
        say(f"prototypes are not known: {of.lacks}", err=True)
