# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem export`: a loaded module as a file that other tools open."""

from __future__ import annotations

from typing import Any

import click

from execmem.commands.common import examples, loaded_to_read, module_options, unknown_option


@click.command()
@click.argument("module", metavar="MODULE")
@click.option("--elf", metavar="FILE", help="write a linked ELF file, at the module's addresses")
@click.option("--bin", "flat", metavar="FILE", help="write a flat image, and FILE.map beside it")
@module_options
@unknown_option("fault")
@examples(
    "execmem export hello --elf hello.elf --arch arm64",
    "execmem export crc16 --elf crc16.elf --bin crc16.bin --root TREE",
)
def export(module: str, elf: str | None, flat: str | None, **options: Any) -> None:
    """Write a module as it lies in memory, for disassemblers and debuggers.

    The module is loaded with its dependencies, without running init. The ELF file has its
    sections, segments and symbols at their addresses, those of the kernel as absolute ones, and
    what each relocation was in a note.
    """
    from allocator.files import write_file
    from execmem import export, report
    from execmem.streams import say

    if elf is None and flat is None:
        raise click.UsageError("name a file: --elf FILE or --bin FILE")
    loaded, models = loaded_to_read(module, options)
    written: list[dict[str, Any]] = []
    if elf is not None:
        data = export.elf(loaded)
        write_file(elf, data)
        written.append({"file": elf, "format": "elf", "size": len(data)})
    if flat is not None:
        data, listing = export.flat(loaded)
        write_file(flat, data)
        write_file(f"{flat}.map", listing.encode())
        written.append({"file": flat, "format": "bin", "size": len(data)})
        written.append({"file": f"{flat}.map", "format": "map", "size": len(listing)})
    if options["as_json"]:
        head = {"module": loaded.name, "arch": loaded.view.arch.name, "models": models}
        report.print_json(head | {"files": written})
        return
    for row in written:
        say(f"{row['file']}: {row['size']:,} bytes")
