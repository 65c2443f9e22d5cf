# SPDX-License-Identifier: GPL-2.0-or-later
"""A loaded module as a linked ELF file, at the addresses where it lies, or as a flat image.

Disassemblers and debuggers open the file as a program of its architecture: sections and segments
where the loader placed them, bytes as they stand in memory, every symbol with its address, those
of the kernel as absolute ones, and debugging information, where the module or its debug package has
that, says the same addresses. What each relocation was stands in a note (`RELOCATIONS`), a line of
JSON each, because a linked program has none.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence

import attrs
import numpy as np

from allocator.types import MemType
from archs.dialect import MARKS, Dialect
from loader import debugfile
from loader.debugfile import DebugFile
from loader.elfview import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHN_ABS,
    SHN_LORESERVE,
    SHN_UNDEF,
    SHT_NOBITS,
    ElfView,
)
from loader.listing import Listing
from loader.loaded import LoadedModule

ET_EXEC, PT_LOAD = 2, 1
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE = 1, 2, 3, 7
PF_X, PF_W, PF_R = 1, 2, 4
SHF_MERGE, SHF_STRINGS = 0x10, 0x20
RELOCATIONS = ".note.execmem.relocations"
OWNER = b"execmem\0"
NOTE_TYPE = 1
INIT = "init_module"
TEXT = (MemType.TEXT, MemType.INIT_TEXT)
ALIGN = 4096  # of what is loaded, in the file as in memory
_IDENT = 16
_EHDR, _SHDR, _PHDR = {64: 64, 32: 52}, {64: 64, 32: 40}, {64: 56, 32: 32}


@attrs.frozen(kw_only=True)
class Part:
    """A section of the file that is written.

    Parameters
    ----------
    address
        0 for one that is not loaded.
    size
        Bytes in memory; more than its data where the rest is zeros that the file leaves out.
    """

    name: str
    type: int
    flags: int
    address: int
    data: bytes
    size: int
    align: int
    link: int = 0
    info: int = 0
    entry: int = 0


def elf(module: LoadedModule, debug: DebugFile | None = None) -> bytes:
    """Return a loaded module as an ELF file of type ET_EXEC; it begins where its init does.

    Parameters
    ----------
    debug
        A relocatable file that has the module's DWARF, which is then in the file, relocated.

    Raises
    ------
    BadModule
        Relocations of the DWARF cannot be applied.
    """
    view, dialect = module.view, module.view.dialect
    parts, numbers = _loaded(module)
    symbols, strings, local = _symbols(module, numbers)
    parts += debug_parts(view, addresses_of(module), debug)
    parts += [
        Part(
            name=RELOCATIONS,
            type=SHT_NOTE,
            flags=0,
            address=0,
            data=_note(module),
            size=0,
            align=4,
        ),
        Part(
            name=".symtab",
            type=SHT_SYMTAB,
            flags=0,
            address=0,
            data=symbols,
            size=0,
            align=dialect.word,
            link=len(parts) + 3,
            info=local,
            entry=dialect.symbol.itemsize,
        ),
        Part(name=".strtab", type=SHT_STRTAB, flags=0, address=0, data=strings, size=0, align=1),
    ]
    kinds = {section.address: section.type for section in module.sections.values()}
    return assemble(view.data, dialect, parts, kinds, _entry(module))


def addresses_of(module: LoadedModule) -> dict[int, int]:
    """Return where a module's sections lie, by index."""
    return {index: section.address for index, section in module.sections.items()}


def debug_parts(
    view: ElfView, addresses: Mapping[int, int], debug: DebugFile | None
) -> Iterator[Part]:
    """Yield the sections of a module's DWARF, for where its sections lie by index."""
    if debug is None:
        return
    for section, data in debugfile.sections(debug, view, addresses):
        yield Part(
            name=section.name,
            type=SHT_PROGBITS,
            flags=section.flags & (SHF_MERGE | SHF_STRINGS),
            address=0,
            data=data,
            size=0,
            align=max(section.align, 1),
            entry=int(bool(section.flags & SHF_MERGE)),
        )


def _loaded(module: LoadedModule) -> tuple[list[Part], dict[int, int]]:
    """Return the sections in memory by address, and their new numbers by their old ones."""
    view = module.view
    placed = sorted(module.sections.items(), key=lambda item: (item[1].address, item[0]))
    parts: list[Part] = []
    numbers: dict[int, int] = {}
    for index, section in placed:
        held = module.linked.sections.get(index)
        data = bytes(held) if held is not None else bytes(section.size)
        old = view.sections[index]
        empty = old.type == SHT_NOBITS and not any(data)
        numbers[index] = len(parts) + 1
        # What the loader makes itself, PLT entries, has in the file no right that memory gives it.
        # Notes become data: for the build id in them debuggers would load debugging information of
        # the module's file, in which no section has an address.
        flags = old.flags & SHF_WRITE | SHF_ALLOC | SHF_EXECINSTR * (section.type in TEXT)
        parts.append(
            Part(
                name=section.name,
                type=SHT_NOBITS if empty else SHT_PROGBITS,
                flags=flags,
                address=section.address,
                data=b"" if empty else data,
                size=len(data),
                align=max(old.align, 1),
            )
        )
    return parts, numbers


def _symbols(module: LoadedModule, numbers: Mapping[int, int]) -> tuple[bytes, bytes, int]:
    """Return the symbol table, its strings, and the number of its first global symbol."""
    view = module.view
    rows, names = [0], [b""]
    where = []
    for index in range(1, len(view.symbols)):
        section = int(view.symbols["shndx"][index])
        name = view.symbol_name(index)
        if section in numbers:
            number = numbers[section]
        elif section in (SHN_UNDEF, SHN_ABS):
            number = SHN_ABS
        else:
            continue  # of a section that takes no memory
        if section >= SHN_LORESERVE and section != SHN_ABS:
            continue
        if not name and section == SHN_UNDEF:
            continue
        rows.append(index)
        names.append(name.encode("utf-8", "surrogateescape"))
        where.append(number)
    table = np.zeros(len(rows), view.dialect.symbol)
    chosen = view.symbols[rows]
    strings = bytearray(b"\0")
    starts = [0]
    for text in names[1:]:
        starts.append(len(strings) if text else 0)
        strings += text + b"\0" if text else b""
    table["name"] = starts
    for field in ("info", "other", "size"):
        table[field] = chosen[field]
    table["value"] = module.linked.symbols[rows]
    table["shndx"] = [0, *where]
    table[0] = np.zeros(1, view.dialect.symbol)[0]
    local = int((chosen["info"] >> 4 == 0).sum())
    return table.tobytes(), bytes(strings), local


def _note(module: LoadedModule) -> bytes:
    """Return an ELF note with a line for each relocation."""
    lines = []
    for each in Listing.of(module).select():
        record = {
            "place": f"{each.place:#x}",
            "type": each.type,
            "symbol": each.symbol,
            "addend": each.addend,
            "value": f"{each.value:#x}",
        }
        lines.append(json.dumps(record))
    text = "\n".join(lines).encode()
    order = MARKS[module.view.dialect.order]
    head = struct.pack(f"{order}III", len(OWNER), len(text), NOTE_TYPE)
    padding = bytes(-len(text) % 4)
    return head + OWNER + text + padding


def _segments(
    kinds: Mapping[int, MemType | None], parts: Sequence[Part]
) -> Iterator[tuple[int, list[int]]]:
    """Yield the rights of each segment and the numbers of the sections that are in it."""
    before: tuple[MemType | None, int] | None = None
    found: list[int] = []
    rights = 0
    for number, part in enumerate(parts):
        if not part.flags & SHF_ALLOC or not part.size:
            continue
        kind = kinds.get(part.address)
        mine = PF_R | (PF_X if part.flags & 4 else 0) | (PF_W if part.flags & 1 else 0)
        far = before is not None and part.address - before[1] > ALIGN
        if before is not None and (kind is not before[0] or far or mine != rights):
            yield rights, found
            found = []
        rights = mine
        found.append(number)
        before = kind, part.address + part.size
    if found:
        yield rights, found


def _entry(module: LoadedModule) -> int:
    """Return where the file begins: at the module's init, or where its first code is."""
    code = [(s.type is not TEXT[0], s.address) for s in module.sections.values() if s.type in TEXT]
    return module.symbols.get(INIT, min(code)[1] if code else 0)


def assemble(
    source: bytes | memoryview,
    dialect: Dialect,
    parts: list[Part],
    kinds: Mapping[int, MemType | None],
    entry: int = 0,
) -> bytes:
    """Return an ELF file of type ET_EXEC.

    Parameters
    ----------
    source
        A file that says for which machine.
    parts
        Its sections, those in memory by address.
    kinds
        What kind of memory is at the addresses of sections.
    entry
        Where it begins.
    """
    bits, order = dialect.bits, MARKS[dialect.order]
    titles = bytearray(b"\0")
    starts = []
    for part in (*parts, None):
        starts.append(len(titles))
        titles += (part.name.encode() if part else b".shstrtab") + b"\0"
    parts = [
        *parts,
        Part(
            name=".shstrtab",
            type=SHT_STRTAB,
            flags=0,
            address=0,
            data=bytes(titles),
            size=0,
            align=1,
        ),
    ]
    segments = list(_segments(kinds, parts))
    out = bytearray(_EHDR[bits] + _PHDR[bits] * len(segments))
    offsets = []
    for part in parts:
        if part.flags & SHF_ALLOC:
            out += bytes((part.address - len(out)) % ALIGN)
        else:
            out += bytes(-len(out) % part.align)
        offsets.append(len(out))
        out += part.data
    out += bytes(-len(out) % 8)
    table_at = len(out)
    out += bytes(_SHDR[bits])
    for part, start, offset in zip(parts, starts, offsets, strict=True):
        out += dialect.section.pack(
            start,
            part.type,
            part.flags,
            part.address,
            offset,
            part.size or len(part.data),
            part.link,
            part.info,
            part.align,
            part.entry,
        )
    header = list(dialect.header.unpack_from(source, _IDENT))
    machine, flags = header[1], header[6]
    sizes = (_EHDR[bits], _PHDR[bits], len(segments), _SHDR[bits], len(parts) + 1, len(parts))
    fields = (
        ET_EXEC,
        machine,
        1,
        entry,
        _EHDR[bits] if segments else 0,
        table_at,
        flags,
        *sizes,
    )
    out[:_IDENT] = bytes(source[:_IDENT])
    dialect.header.pack_into(out, _IDENT, *fields)
    at = _EHDR[bits]
    for rights, inside in segments:
        first, last = parts[inside[0]], parts[inside[-1]]
        offset = offsets[inside[0]]
        stored = max(
            (offsets[n] + len(parts[n].data) for n in inside if parts[n].data), default=offset
        )
        memory = last.address + last.size - first.address
        common = (first.address, first.address, min(stored - offset, memory), memory)
        if bits == 64:
            packed = struct.pack(f"{order}IIQQQQQQ", PT_LOAD, rights, offset, *common, ALIGN)
        else:
            packed = struct.pack(f"{order}IIIIIIII", PT_LOAD, offset, *common, rights, ALIGN)
        out[at : at + len(packed)] = packed
        at += len(packed)
    return bytes(out)


def flat(module: LoadedModule) -> tuple[bytes, str]:
    """Return a module's sections one after the other, and a map of them in lines.

    The map says for each section its offset in the image, its address, its size and its name, then
    each symbol's address and name.
    """
    parts, _ = _loaded(module)
    out = bytearray()
    lines = ["# offset address size section"]
    for part in parts:
        if part.size:
            out += bytes(-len(out) % 16)
            lines.append(f"{len(out):#x} {part.address:#x} {part.size:#x} {part.name}")
            out += part.data.ljust(part.size, b"\0")
    lines.append("# address symbol")
    symbols = sorted(module.symbols.items(), key=lambda item: (item[1], item[0]))
    lines += [f"{address:#x} {name}" for name, address in symbols]
    return bytes(out), "\n".join(lines) + "\n"
