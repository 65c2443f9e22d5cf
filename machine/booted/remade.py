# SPDX-License-Identifier: GPL-2.0-or-later
"""A module's file made again, as far as memory says it: sections without contents, and symbols.

What looks modules up asks their files; this one answers for a module whose file nobody has.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from allocator.types import MemType
from archs import Arch
from loader.elf import parse
from loader.elfview import SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, SHT_SYMTAB, ElfView
from loader.loaded import LoadedSection

_EHDR, _SHDR = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_REL, _STRTAB = 1, 3
_LOCAL = 0
_WRITTEN = (MemType.DATA, MemType.INIT_DATA, MemType.RO_AFTER_INIT)

Row = tuple[str, int, int, int]  # a symbol: name, kind and binding, address, size


def file_of(
    name: str, arch: Arch, sections: Sequence[LoadedSection], symbols: Sequence[Row]
) -> ElfView:
    """Return the view of an object file that has sections, in this order from 1 on, and symbols.

    Symbols that lie in none of the sections are left out.
    """
    titles, names = bytearray(b"\0"), bytearray(b"\0")
    headers = [bytes(_SHDR.size)]
    for section in sections:
        kind = section.type
        flags = SHF_ALLOC
        if kind is not None:
            flags |= (SHF_EXECINSTR if kind.is_text else 0) | (SHF_WRITE if kind in _WRITTEN else 0)
        headers.append(
            _SHDR.pack(len(titles), SHT_NOBITS, flags, 0, _EHDR.size, section.size, 0, 0, 1, 0)
        )
        titles += section.name.encode("utf-8", "backslashreplace") + b"\0"
    rows = [bytes(_SYMBOL.size)]
    ordered = sorted(symbols, key=lambda row: row[1] >> 4 != _LOCAL)
    local = 1
    for text, info, address, size in ordered:
        for number, section in enumerate(sections, 1):
            if section.address <= address < section.address + section.size:
                value = address - section.address
                rows.append(_SYMBOL.pack(len(names), info, 0, number, value, size))
                names += text.encode("utf-8", "backslashreplace") + b"\0"
                local += info >> 4 == _LOCAL
                break
    table, count = b"".join(rows), len(headers)
    at = _EHDR.size
    headers.append(
        _SHDR.pack(
            *(len(titles), SHT_SYMTAB, 0, 0, at, len(table), count + 1, local, 8, _SYMBOL.size)
        )
    )
    titles += b".symtab\0"
    at += len(table)
    headers.append(_SHDR.pack(len(titles), _STRTAB, 0, 0, at, len(names), 0, 0, 1, 0))
    titles += b".strtab\0"
    at += len(names)
    start = len(titles)
    titles += b".shstrtab\0"
    headers.append(_SHDR.pack(start, _STRTAB, 0, 0, at, len(titles), 0, 0, 1, 0))
    at += len(titles)
    padding = bytes(-at % 8)
    head = _EHDR.pack(
        *(b"\x7fELF\2\1\1" + bytes(9), _REL, arch.machine, 1, 0, 0, at + len(padding), 0),
        *(_EHDR.size, 0, 0, _SHDR.size, len(headers), len(headers) - 1),
    )
    data = b"".join((head, table, names, titles, padding, *headers))
    return parse(data, f"{name} (out of memory)", arch=arch)
