# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem export`: a loaded module as a file that other tools open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from execmem.commands.common import (
    WrittenFile,
    examples,
    is_path,
    load_one,
    loaded_to_read,
    machine_for,
    module_options,
    parameters,
    sandbox_option,
    unknown_option,
)

if TYPE_CHECKING:
    from loader.debugfile import DebugFile
    from loader.elfview import ElfView
    from loader.loaded import LoadedModule
    from machine.face import Machine


@click.command()
@click.argument("module", metavar="MODULE")
@click.option(
    "--elf",
    type=WrittenFile(),
    metavar="FILE",
    help="write a linked ELF file, at the module's addresses",
)
@click.option(
    "--core", type=WrittenFile(), metavar="FILE", help="write an ELF core of the whole machine"
)
@click.option(
    "--bin",
    "flat",
    type=WrittenFile(".map"),
    metavar="FILE",
    help="write a flat image, and FILE.map beside it",
)
@click.option(
    "--debug", metavar="PATH", help="file with the module's DWARF, or folder like /usr/lib/debug"
)
@module_options
@unknown_option("fault")
@sandbox_option
@examples(
    "execmem export hello --elf hello.elf --arch arm64",
    "execmem export crc16 --elf crc16.elf --bin crc16.bin --root TREE",
    "execmem export hello --core hello.core",
)
def export(
    module: str,
    elf: str | None,
    core: str | None,
    flat: str | None,
    debug: str | None,
    **options: Any,
) -> None:
    """Write a module as it lies in memory, for disassemblers and debuggers.

    The module is loaded with its dependencies, without running init. The ELF file has its
    sections, segments and symbols at their addresses, those of the kernel as absolute ones, and
    what each relocation was in a note; and the DWARF of the module or of its debug package.

    A core has the whole memory and the registers, for debuggers of kernels. With --kernel that is
    booted and loads the module, init and all; --elf beside it has the symbols of both.
    """
    from allocator.files import write_file
    from execmem import export, report
    from execmem.streams import say

    if elf is None and flat is None and core is None:
        raise click.UsageError("name a file: --elf FILE, --bin FILE or --core FILE")
    written: list[dict[str, Any]] = []

    def wrote(file: str, form: str, size: int) -> None:
        written.append({"file": file, "format": form, "size": size})

    if core is not None and options["kernel"] is not None:
        if flat is not None:
            raise click.UsageError("--bin: of a booted kernel there is --core, and --elf beside it")
        head = _booted(module, elf, core, {**options, "debug": debug}, wrote)
    else:
        if core is not None:
            loaded, models = _modelled(module, core, options, wrote)
        else:
            loaded, models = loaded_to_read(module, options)
        head = {"module": loaded.name, "arch": loaded.view.arch.name, "models": models}
        if elf is not None:
            data = export.elf(loaded, _debug(loaded.view, module, debug))
            write_file(elf, data)
            wrote(elf, "elf", len(data))
        if flat is not None:
            data, listing = export.flat(loaded)
            write_file(flat, data)
            write_file(f"{flat}.map", listing.encode())
            wrote(flat, "bin", len(data))
            wrote(f"{flat}.map", "map", len(listing))
    if options["as_json"]:
        report.print_json(head | {"files": written})
        return
    for row in written:
        say(f"{row['file']}: {row['size']:,} bytes")


def _debug(view: ElfView, module: str, debug: str | None) -> DebugFile | None:
    """Return what has the module's DWARF; None where nothing has, and none was named."""
    from loader.debugfile import NoDebug, find

    try:
        return find(view, given=debug, beside=module if is_path(module) else None)
    except NoDebug:
        if debug is not None:
            raise
        return None


Wrote = Callable[[str, str, int], None]


def _booted(
    module: str, elf: str | None, core: str, options: dict[str, Any], wrote: Wrote
) -> dict[str, Any]:
    """Boot a kernel, load a module into it, and write both."""
    from allocator.files import write_file
    from execmem import booted, export_booted

    machine = booted.open_machine(module, options)
    loaded = booted.load_one(machine, module, parameters(options["params"]))
    if elf is not None:
        data = export_booted.elf(machine, loaded, _debug(loaded.view, module, options["debug"]))
        write_file(elf, data)
        wrote(elf, "elf", len(data))
    _core(machine, core, wrote)
    return {"module": loaded.name, "arch": machine.arch.name, "models": machine.models}


def _modelled(
    module: str, core: str, options: dict[str, Any], wrote: Wrote
) -> tuple[LoadedModule, str]:
    """Load a module, its init not run, and write a core of its machine; the module, and which kernel."""
    machine = machine_for(module, options)
    loaded = load_one(machine, module, options, init=False).loaded
    _core(machine, core, wrote)
    return loaded, machine.models


def _core(machine: Machine, core: str, wrote: Wrote) -> None:
    """Write a core, and say what it lacks."""
    from execmem import notices
    from execmem.terminal import Meter

    with Meter() as meter:
        found = machine.core(core, on_progress=lambda at, size: meter.show(core, at, size))
    for lack in found.lacks:
        notices.assume(f"{core}: not in it: {lack}")
    wrote(core, "core", found.size)
