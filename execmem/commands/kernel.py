# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem kernel`: what kernel an image is, and what is known of it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from execmem.commands.common import cpu_option, examples, json_option, sandbox_option

if TYPE_CHECKING:
    from loader.kernel.find import KernelFiles
    from loader.kernel.image import KernelImage

SHOWN = 1000  # symbols that are like one pattern


@click.command()
@click.argument("path", required=False, metavar="[PATH]")
@click.option("--config", "options", multiple=True, metavar="OPTION", help="show it; repeatable")
@click.option("--type", "types", multiple=True, metavar="NAME", help="show it as C; repeatable")
@click.option(
    "--symbol", "names", multiple=True, metavar="NAME", help="show it; also kstrto*, 0xADDRESS"
)
@click.option("--ptdump", is_flag=True, help="boot it, and print its page tables as it would")
@click.option("--since", metavar="FILE", help="with --ptdump: what differs from that")
@cpu_option
@click.option("--kaslr", type=click.IntRange(min=0), metavar="SEED", help="with --ptdump")
@click.option("--cache", is_flag=True, help="list the kernels that are kept booted")
@click.option("--forget", is_flag=True, help="with --cache: delete them")
@sandbox_option
@json_option
@examples(
    "execmem kernel VMLINUZ",
    "execmem kernel linux-image.deb --type list_head",
    "execmem kernel TREE --symbol kfree --config CONFIG_HZ",
    "execmem kernel running --json",
    "execmem kernel VMLINUZ --ptdump",
    "execmem kernel --cache",
)
def kernel(
    path: str | None,
    options: tuple[str, ...],
    types: tuple[str, ...],
    names: tuple[str, ...],
    ptdump: bool,
    since: str | None,
    cpu: str,
    kaslr: int | None,
    cache: bool,
    forget: bool,
    as_json: bool,
) -> None:
    """Show what kernel an image is, and what is known of it.

    PATH is an image (bzImage, zboot, Image, vmlinux; packed or not), a package, a folder
    that holds boot or lib/modules, or `running`. Nothing of it is executed, but with --ptdump,
    which boots it and prints what /sys/kernel/debug/kernel_page_tables would hold; FILE is such
    a text, too.
    """
    from execmem import report
    from execmem.terminal import console

    if cache:
        if path is not None or options or types or names or ptdump:
            raise click.UsageError("--cache takes no PATH, and asks no kernel")
        _cache(forget=forget, as_json=as_json)
        return
    if forget or path is None:
        raise click.UsageError("--forget needs --cache" if forget else "name a PATH, or --cache")
    if ptdump:
        if options or types or names:
            raise click.UsageError("--ptdump shows page tables, and nothing else")
        _page_tables(path, since, {"cpu": cpu, "kaslr": kaslr, "as_json": as_json})
        return
    if since is not None or cpu or kaslr is not None:
        raise click.UsageError("--since, --cpu and --kaslr go with --ptdump")
    from loader.kernel.find import find_kernel

    files = find_kernel(path)
    image = files.read()
    document = facts(files, image) | asked(image, options, types, names)
    if as_json:
        report.print_json(document)
        return
    report.print_kernel(console(), document)


def _page_tables(path: str, since: str | None, options: dict[str, Any]) -> None:
    """Boot a kernel, and print its page tables, or what differs from others."""
    from allocator.types import Hex
    from execmem import ptdump
    from execmem.booted import open_machine

    before = None if since is None else ptdump.read(since)
    machine = open_machine("", options | {"kernel": path})
    runs = [
        {"address": Hex(run.address), "physical": Hex(run.physical), "size": run.size}
        for run in machine.kernel.board.mapped()
    ]
    head = {"release": machine.kernel.release, "arch": machine.arch.name, "runs": runs}
    ptdump.show(machine.page_tables(), before, head, as_json=options["as_json"])


def _cache(*, forget: bool, as_json: bool) -> None:
    """Show, or delete, the kernels that are kept booted."""
    from allocator.types import size_text
    from execmem import report
    from execmem.terminal import console
    from kernels.booted import cache

    kept = list(cache.entries())
    forgotten = cache.clear() if forget else 0
    if as_json:
        rows = [{"key": e.key, "size": e.size, **e.facts} for e in kept]
        place, limit = str(cache.folder()), cache.LIMIT
        report.print_json({"cache": place, "limit": limit, "kernels": rows, "forgotten": forgotten})
        return
    out = console()
    out.print(f"{cache.folder()} (at most {size_text(cache.LIMIT)})")
    if forget:
        out.print(f"{forgotten} deleted")
    elif kept:
        cells = [
            (e.facts["release"], e.facts["arch"], size_text(e.size), e.facts["command_line"])
            for e in kept
        ]
        out.print(report.table(("kernel", "arch", "size", "command line"), cells, right="size"))


def facts(files: KernelFiles, image: KernelImage) -> dict[str, Any]:
    """Return what is known of a kernel."""
    from allocator.types import Hex

    exports = image.exports.values()
    btf = image.btf
    counts = {} if btf is None else {kind.name.lower(): n for kind, n in btf.counts.items()}
    percpu = image.percpu
    return {
        "release": image.release or None,
        "banner": image.banner or None,
        "build_id": image.build_id or None,
        "arch": image.arch.name,
        "page_size": image.page_size,
        "wrappers": list(image.wrappers),
        "image": [Hex(image.interval.start), Hex(image.interval.end)],
        "percpu": None if percpu is None else [Hex(percpu.start), Hex(percpu.end)],
        "symbols": image.symbols.count,
        "exports": len(exports),
        "exports_gpl": sum(export.gpl for export in exports),
        "exports_with_crc": sum(export.crc is not None for export in exports),
        "namespaces": sorted({export.namespace for export in exports} - {""}),
        "types": sum(counts.values()),
        "type_kinds": counts,
        "config": None if image.config is None else len(image.config),
        "sources": dict(files.sources),
        "unknown": dict(image.unknown),
    }


def asked(
    image: KernelImage, options: tuple[str, ...], types: tuple[str, ...], names: tuple[str, ...]
) -> dict[str, Any]:
    """Return what was asked for by name; what the kernel does not have is None."""
    from allocator.types import Hex

    config = image.config or {}
    settings = {name: config.get(_full(name)) for name in options}
    definitions = {name: _definition(image, name) for name in types}
    places = {}
    for name in _meant(image, names):
        at, export = image.symbols.get(name), image.exports.get(name)
        places[name] = {
            "address": None if at is None else Hex(at),
            "exported": export is not None,
            "gpl": None if export is None else export.gpl,
            "crc": None if export is None or export.crc is None else Hex(export.crc),
            "namespace": None if export is None else export.namespace,
            "prototype": _prototype(image, name),
        }
    return {"options": settings, "definitions": definitions, "places": places}


def _meant(image: KernelImage, names: tuple[str, ...]) -> Iterator[str]:
    """Yield names of symbols: those that are given, those like a pattern, who is at an address."""
    from execmem import notices

    for name in names:
        if re.fullmatch("0x[0-9a-fA-F]{1,16}", name):
            at = image.symbols.around(int(name, 16))
            yield name if at is None else at[0]
        elif any(sign in name for sign in "*?["):
            found = sorted(fnmatch.filter(image.symbols, name))
            if len(found) > SHOWN:
                say = f"{len(found):,} symbols are like it, the first {SHOWN:,} are shown"
                notices.assume(f"{name}: {say}")
            yield from found[:SHOWN] or [name]
        else:
            yield name


def _full(option: str) -> str:
    return option if option.startswith("CONFIG_") else f"CONFIG_{option}"


def _definition(image: KernelImage, name: str) -> str | None:
    btf = image.btf
    found = None if btf is None else btf.find(name.removeprefix("struct ").removeprefix("union "))
    return None if btf is None or found is None else btf.definition(found.number)


def _prototype(image: KernelImage, name: str) -> str | None:
    from loader.btf_records import Kind

    btf = image.btf
    found = None if btf is None else btf.find(name, Kind.FUNC, Kind.VAR)
    return None if btf is None or found is None else btf.c_type(found.number)
