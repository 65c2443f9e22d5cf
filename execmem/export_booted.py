# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel and a module in it as one ELF file: what a debugger reads beside their core.

The module's sections have the bytes that stand in memory; of the kernel there are symbols only, in
sections without contents, because its memory is in the core. DWARF of the module is there as in any
export.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping

import attrs
import numpy as np

from allocator.types import MemType
from archs.dialect import SYMBOL
from execmem.export import SHT_PROGBITS, SHT_STRTAB, SHT_SYMTAB, Part, assemble, debug_parts
from loader.debugfile import DebugFile
from loader.elfview import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHN_ABS,
    SHT_NOBITS,
    STT_FUNC,
    STT_OBJECT,
    STT_SECTION,
)
from machine.booted.account import symbols_of
from machine.booted.machine import BootedMachine
from machine.booted.module import BootedModule

_GLOBAL = 1 << 4
_RIGHTS = SHF_WRITE | SHF_ALLOC | SHF_EXECINSTR
# Where the kernel's own parts begin and end, by its linker script.
_PARTS = (
    (".kernel.text", ("_stext", "_text"), ("_etext",), SHF_ALLOC | SHF_EXECINSTR),
    (".kernel.data", ("_sdata", "_data"), ("_end", "__bss_stop", "_edata"), SHF_ALLOC | SHF_WRITE),
)


@attrs.frozen
class _Symbol:
    name: str
    address: int
    size: int
    kind: int
    section: int


def elf(machine: BootedMachine, module: BootedModule, debug: DebugFile | None = None) -> bytes:
    """Return a module as it stands in a booted kernel, and the kernel's symbols, as an ELF file."""
    symbols = symbols_of(machine)
    parts, kinds = [], dict[int, MemType | None]()
    for section in module.sections.values():
        if section.type is None or section.type.is_init or not section.size:
            continue
        flags = SHF_ALLOC | (SHF_EXECINSTR if section.type.is_text else 0) | _writable(section.type)
        data = machine.read(section.address, section.size)
        parts.append(_part(section.name, SHT_PROGBITS, flags, section.address, data, len(data)))
        kinds[section.address] = section.type
    for name, starts, ends, flags in _PARTS:
        start, end = (
            next((symbols[word] for word in words if word in symbols), 0)
            for words in (starts, ends)
        )
        if start < end:
            parts.append(_part(name, SHT_NOBITS, flags, start, b"", end - start))
    parts.sort(key=lambda part: part.address)
    table, strings, local = _table(list(_symbols(symbols, module, parts)), parts)
    parts += [
        attrs.evolve(
            _part(".symtab", SHT_SYMTAB, 0, 0, table, 0),
            align=8,
            link=len(parts) + 2,
            info=local,
            entry=SYMBOL.itemsize,
        ),
        _part(".strtab", SHT_STRTAB, 0, 0, strings, 0),
    ]
    view = module.view
    addresses = {index: section.address for index, section in module.sections.items()}
    parts += debug_parts(view, addresses, debug)
    return assemble(view.data, view.dialect, parts, kinds)


def _part(name: str, kind: int, flags: int, address: int, data: bytes, size: int) -> Part:
    return Part(
        name=name, type=kind, flags=flags & _RIGHTS, address=address, data=data, size=size, align=1
    )


def _writable(kind: MemType) -> int:
    return SHF_WRITE if kind in (MemType.DATA, MemType.RO_AFTER_INIT) else 0


def _symbols(
    symbols: Mapping[str, int], module: BootedModule, parts: list[Part]
) -> Iterator[_Symbol]:
    """Yield the kernel's symbols, each as long as the next is away, and the module's."""
    order = sorted((address, name) for name, address in symbols.items())
    addresses = [address for address, _ in order]
    for address, name in order:
        number = _section(parts, address)
        after = bisect.bisect_right(addresses, address)
        size = addresses[after] - address if after < len(addresses) else 0
        if not number:
            yield _Symbol(name, address, 0, 0, SHN_ABS)
            continue
        kind = STT_FUNC if parts[number - 1].flags & SHF_EXECINSTR else STT_OBJECT
        yield _Symbol(name, address, size, kind, number)
    spans = {name: (address, size) for address, size, name in module.spans}
    for name, address in module.symbols.items():
        number = _section(parts, address)
        if number:
            size = spans[name][1] if name in spans else 0
            kind = STT_FUNC if name in spans else STT_OBJECT
            yield _Symbol(name, address, size, kind, number)


def _section(parts: list[Part], address: int) -> int:
    """Return the number of the section that an address lies in; 0: none."""
    for number, part in enumerate(parts, 1):
        if part.address <= address < part.address + part.size:
            return number
    return 0


def _table(found: list[_Symbol], parts: list[Part]) -> tuple[bytes, bytes, int]:
    """Return the symbol table, its strings, and the number of its first global symbol."""
    local = 1 + len(parts)
    table = np.zeros(local + len(found), SYMBOL)
    for number, part in enumerate(parts, 1):
        table[number] = (0, STT_SECTION, 0, number, part.address, 0)
    strings, starts = bytearray(b"\0"), []
    for each in found:
        starts.append(len(strings))
        strings += each.name.encode("utf-8", "surrogateescape") + b"\0"
    rows = table[local:]
    rows["name"] = starts
    rows["info"] = [_GLOBAL | each.kind for each in found]
    rows["shndx"] = [each.section for each in found]
    rows["value"] = [each.address for each in found]
    rows["size"] = [each.size for each in found]
    return table.tobytes(), bytes(strings), local
