# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem types`: the structures of a kernel or module, with offsets."""

from __future__ import annotations

import click

from execmem.commands.common import examples, json_option


@click.command()
@click.argument("path", metavar="KERNEL|MODULE")
@click.argument("names", metavar="NAME|GLOB...", nargs=-1, required=True)
@click.option("--kernel", metavar="PATH", help="of a module: the kernel that it is for")
@json_option
@examples(
    "execmem types linux-image.deb file_operations list_head",
    'execmem types linux-image.deb "hid_*"',
)
def types(path: str, names: tuple[str, ...], kernel: str | None, as_json: bool) -> None:
    """Show structures, unions, enumerations and typedefs: members, offsets, sizes, holes.

    A GLOB (with *, ? or [) lists the names that it matches. A module's own types need its kernel's
    (--kernel). Offsets and sizes are bytes in hex, of bit fields the first bit stands behind.
    """
    from execmem import declared, report
    from execmem.streams import say
    from loader import declarations
    from loader.errors import BadKernel

    of = declared.source(path, kernel)
    btf = of.known()
    shown, listed, unknown = [], [], []
    for name in names:
        word = name.removeprefix("struct ").removeprefix("union ").removeprefix("enum ")
        if declarations.is_glob(word):
            listed += [found for found, _ in declarations.names(btf, word)]
            continue
        found = list(btf.all(word, *declarations.NAMED))
        if not found:
            unknown.append(name)
        shown += [declared.structure(of, each) for each in found]
    if unknown:
        raise BadKernel(of.name, "types", f"there is no {', '.join(unknown)}")
    if as_json:
        report.print_json({"of": of.name, "arch": of.arch.name, "types": shown, "names": listed})
        return
    for document in shown:
        for line in declared.as_c(document):
            say(line)
    for name in listed:
        say(name)
