# SPDX-License-Identifier: GPL-2.0-or-later
"""Many relocations for one link of a linker that reads scripts: what it makes, and what it refuses.

It is told to go on after what it refuses, and to tell of all of it. Its own global offset table
gets a place, too, so that what goes through it can be compared.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from execmem.check.linkers import (
    OPTIONS,
    Linker,
    Said,
    compared,
    discarded,
    quoted,
    reason,
    run,
    without_merging,
)
from execmem.check.subject import Planned
from execmem.check.toolchain import TIMEOUT
from loader.elfview import GOT_SYMBOL

# So that it goes on where relocations are refused, and tells of all of them.
GOING_ON = {
    "ld": ("--noinhibit-exec", "--verbose"),
    "lld": ("--noinhibit-exec", "--error-limit=0", "--color-diagnostics=never"),
}
# So that the symbol table says what offsets in its global offset table count from.
TELLING = {
    "ld": ("-u", GOT_SYMBOL),
    "lld": (f"--defsym=execmem_table={GOT_SYMBOL}",),
}
NAMES = tuple(GOING_ON)
GOT_ROOM = 0x800  # bytes from where its table may stand to where the other half of it may

# What it says of a type that it does not know, after which it cannot be relied upon.
_AS_A_WHOLE = "(?i)(unsupported|unrecogni[sz]ed|unknown) relocation"
_PLACE = re.compile(r"\((?:function .*?: )?([^\s()+]+)\+0x([0-9a-fA-F]+)\):? ?(.*)")


def link(
    linker: Linker,
    planned: Planned,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    *,
    going_on: bool,
    got: int | None,
) -> Said:
    """Return what a linker makes of an object at addresses.

    Parameters
    ----------
    addresses
        By section index; the sections' names must differ.
    going_on
        Let it link what it can, and tell what it refuses.
    got
        Where its own global offset table may stand, if it needs one.
    """
    own = planned.own(addresses)
    more = GOING_ON[linker.name] if going_on else ()
    if got is not None:
        more = (*more, *TELLING[linker.name])
    with tempfile.TemporaryDirectory(prefix="execmem-check-") as name:
        folder = Path(name)
        (folder / "script.ld").write_text(_script(planned, own, symbols, got), "utf-8")
        (folder / "in.o").write_bytes(without_merging(planned, own))
        command = [linker.path, *OPTIONS, *more, "-T", "script.ld", "in.o", "-o", "out.elf"]
        done = run(command, folder)
        if done is None:
            return Said(sections=None, refused=f"takes over {TIMEOUT} s")
        out, places = folder / "out.elf", dict(_refused_places(done.stderr))
        if done.returncode or not out.is_file():
            why = next(iter(places.values()), "") or reason(done.stderr)
            why = why or f"exit status {done.returncode}"
            return Said(sections=None, refused=why, places=places)
        whole = [line for line in done.stderr.splitlines() if re.search(_AS_A_WHOLE, line)]
        if whole:
            return Said(sections=None, refused=whole[0].strip())
        try:
            return _read(out.read_bytes(), planned, own, places if going_on else {})
        except ELFError as error:
            return Said(sections=None, refused=f"writes no ELF file: {error}")


def _script(
    planned: Planned, own: Mapping[int, int], symbols: Mapping[str, int], got: int | None
) -> str:
    """Return a script with every section at its address, in a segment of its own.

    In one segment the file would be as long as the addresses are apart.
    """
    view = planned.view
    outputs = [(at, view.sections[index].name) for index, at in own.items()]
    if got is not None:
        outputs += [(got, ".got"), (got + GOT_ROOM, ".got.plt")]
    segments = " ".join(f"p{number} PT_LOAD;" for number in range(len(outputs)))
    lines = [f"{quoted(name)} = {value:#x};" for name, value in symbols.items()]
    lines += [f"PHDRS {{ {segments} }}", "SECTIONS {"]
    for number, (at, each) in enumerate(sorted(outputs)):
        name = quoted(each)
        lines.append(f"  {name} {at:#x} : {{ KEEP(*({name})) }} :p{number}")
    return "\n".join([*lines, *discarded(planned), "}"]) + "\n"


def _read(
    image: bytes, planned: Planned, own: Mapping[int, int], places: Mapping[tuple[str, int], str]
) -> Said:
    """Return what stands in a file that a linker wrote."""
    linked = ELFFile(io.BytesIO(image))
    by_name = {section.name: section for section in linked.iter_sections()}
    sections = {}
    for index in own:
        section = planned.view.sections[index]
        if section.name in by_name and compared(planned, section):
            sections[index] = by_name[section.name].data()[: section.size]
    tables = [by_name[name] for name in (".got", ".got.plt") if name in by_name]
    start = tables[0]["sh_addr"] if tables else None
    symtab = by_name.get(".symtab")
    if tables and isinstance(symtab, SymbolTableSection):
        for symbol in symtab.get_symbol_by_name(GOT_SYMBOL) or ():
            start = symbol["st_value"]
    return Said(
        sections=sections,
        places=places,
        got={section["sh_addr"]: section.data() for section in tables},
        got_start=start,
    )


def _refused_places(said: str) -> Iterator[tuple[tuple[str, int], str]]:
    """Yield section, offset and reason of every relocation that a linker complains about."""
    for line in said.splitlines():
        found = _PLACE.search(line)
        if found:
            yield (found[1], int(found[2], 16)), found[3].strip()
