# SPDX-License-Identifier: GPL-2.0-or-later
"""GNU ld as a second opinion: the same object, the same addresses, bytes per section.

A linker script puts every section at its address and gives every undefined name its
value, so ld has nothing left to decide and its relocated bytes can be compared with ours.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from elftools.elf.elffile import ELFFile

from tests.support import elfwriter
from tests.support.tools import cross, run

SHF_MERGE_STRINGS = 0x30


def link(
    image: bytes, addresses: Mapping[int, int], symbols: Mapping[str, int], folder: Path
) -> dict[int, bytes]:
    """Return the relocated bytes of every section with contents, by section index.

    Parameters
    ----------
    image
        An ET_REL file whose allocated sections have distinct names.
    addresses
        Section index -> address.
    symbols
        Undefined name -> address.
    folder
        For ld's files.
    """
    source = ELFFile(io.BytesIO(image))
    machine = int.from_bytes(image[18:20], "little")
    sections = list(source.iter_sections())
    names = {index: sections[index].name for index in addresses}
    assert len(set(names.values())) == len(names), "ld merges sections of one name"
    lines = [f'"{name}" = {value:#x};' for name, value in symbols.items()]
    lines += ["SECTIONS {"]
    for index in sorted(addresses, key=lambda i: (addresses[i], sections[i]["sh_size"])):
        name = names[index]
        lines.append(f'  "{name}" {addresses[index]:#x} : {{ KEEP(*("{name}")) }}')
    lines += ["  /DISCARD/ : { *(*) }", "}"]
    script, object_file, out = folder / "script.ld", folder / "in.o", folder / "out.elf"
    script.write_text("\n".join(lines) + "\n", "utf-8")
    for index in addresses:  # ld would share equal strings, which a module loader does not
        flags = sections[index]["sh_flags"] & ~SHF_MERGE_STRINGS
        image = elfwriter.section(image, index, flags=flags)
    object_file.write_bytes(image)
    options = "--no-relax -e 0 --nmagic --no-gc-sections --build-id=none -static".split()
    run(cross(machine, "ld"), *options, "-T", script, object_file, "-o", out)
    linked = {s.name: s for s in ELFFile(io.BytesIO(out.read_bytes())).iter_sections()}
    found = {}
    for index, name in names.items():
        section = sections[index]
        if section["sh_size"] and section["sh_type"] != "SHT_NOBITS":
            assert linked[name]["sh_addr"] == addresses[index], name
            found[index] = linked[name].data()[: section["sh_size"]]
    return found
