# SPDX-License-Identifier: GPL-2.0-or-later
"""GNU ld and lld as second opinions: the same object, the same addresses, bytes per section.

A linker script puts every section at its address and gives every undefined name its
value, so the linker has nothing left to decide and its relocated bytes can be compared with
ours. What it makes itself (a global offset table) is told apart by name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from execmem.check import elfwriter
from tests.archs.facts import facts
from tests.support.psabi import Table, slots_of
from tests.support.tools import cross, llvm, run

SHF_MERGE_STRINGS = 0x30
LINKERS = ("ld", "ld.lld")
COMPLETE_LLD = 19
GLOBAL_OFFSET_TABLE = "_GLOBAL_OFFSET_TABLE_"


@attrs.frozen
class Result:
    """What a linker made.

    Parameters
    ----------
    sections
        Relocated bytes of the object's own sections with contents, by section index.
    got
        Its global offset table, at what it takes for the table's address.
    """

    sections: Mapping[int, bytes]
    got: Table


def link(
    image: bytes,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    folder: Path,
    *,
    linker: str = "ld",
    got: int | None = None,
) -> Result:
    """Return what a linker makes of an object.

    Parameters
    ----------
    image
        An ET_REL file whose allocated sections have distinct names.
    addresses
        Section index -> address.
    symbols
        Undefined name -> address.
    folder
        For the linker's files.
    linker
        One of `LINKERS`.
    got
        Where the linker's own global offset table may stand, if it needs one.
    """
    source = ELFFile(io.BytesIO(image))
    machine = int.from_bytes(image[18:20], "little")
    sections = list(source.iter_sections())
    names = {index: sections[index].name for index in addresses}
    assert len(set(names.values())) == len(names), "ld merges sections of one name"
    lines = [f"{_quoted(name)} = {value:#x};" for name, value in symbols.items()]
    lines += ["SECTIONS {"]
    outputs = [
        (address, sections[index]["sh_size"], names[index]) for index, address in addresses.items()
    ]
    if got is not None:
        outputs += [(got, 1, ".got"), (got + 0x800, 1, ".got.plt")]
    for address, _, name in sorted(outputs):
        lines.append(f"  {_quoted(name)} {address:#x} : {{ KEEP(*({_quoted(name)})) }}")
    others = {
        s.name for s in sections[1:] if s["sh_type"] in ("SHT_PROGBITS", "SHT_NOBITS", "SHT_NOTE")
    } - set(names.values())
    lines += [f"  /DISCARD/ : {{ *({_quoted(name)}) }}" for name in sorted(others)] + ["}"]
    script, object_file, out = folder / "script.ld", folder / "in.o", folder / "out.elf"
    script.write_text("\n".join(lines) + "\n", "utf-8")
    for index in addresses:  # ld would share equal strings, which a module loader does not
        flags = sections[index]["sh_flags"] & ~SHF_MERGE_STRINGS
        image = elfwriter.section(image, index, flags=flags)
    object_file.write_bytes(image)
    program = cross(machine, "ld") if linker == "ld" else llvm(linker)
    options = "--no-relax -e 0 --nmagic --no-gc-sections --build-id=none -static".split()
    run(program, *options, "-T", script, object_file, "-o", out)
    linked = ELFFile(io.BytesIO(out.read_bytes()))
    by_name = {s.name: s for s in linked.iter_sections()}
    found = {}
    for index, name in names.items():
        section = sections[index]
        if section["sh_size"] and section["sh_type"] != "SHT_NOBITS":
            assert by_name[name]["sh_addr"] == addresses[index], name
            found[index] = by_name[name].data()[: section["sh_size"]]
    table = Table(0, {})
    if ".got" in by_name and got is not None:
        table = slots_of(by_name[".got"]["sh_addr"], by_name[".got"].data())
        symtab = by_name[".symtab"]
        assert isinstance(symtab, SymbolTableSection)
        named = symtab.get_symbol_by_name(GLOBAL_OFFSET_TABLE)
        if named:
            table = attrs.evolve(table, got=named[0]["st_value"])
    return Result(found, table)


def _quoted(name: str) -> str:
    """Return a name for a linker script; lld before 19 keeps the quotes of an output section."""
    return name if re.fullmatch(r"[A-Za-z_.$][\w.$]*", name) else f'"{name}"'


def too_late_for_lld(machine: int) -> Collection[int]:
    """Return the types that only later versions of lld know than the one that is installed."""
    version = re.search(r"LLD (\d+)", run(llvm("ld.lld"), "--version"))
    assert version is not None
    return facts(machine).link.late_in_lld if int(version[1]) < COMPLETE_LLD else ()
