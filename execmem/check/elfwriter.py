# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes small relocatable objects, for cases that no assembler writes.

Sections, symbols and relocations are plain records; `write` numbers them, adds the three
tables that every object has (.symtab, .strtab, .shstrtab) and keeps the caller's order,
because a module's layout depends on it. `patch` then damages a finished file field by
field, to make the objects that no assembler would write (of ELF64, little-endian).

`Form` is what ELF leaves to architectures; the formats here are written from the ELF and MIPS64
psABIs, and share nothing with `archs.dialect`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import attrs

PROGBITS, SYMTAB, STRTAB, RELA, NOTE, NOBITS, REL = 1, 2, 3, 4, 7, 8, 9
W, A, X, MERGE, STRINGS, RELA_LIVEPATCH = 1, 2, 4, 0x10, 0x20, 0x100000
UNDEF, LIVEPATCH, ABS, COMMON = 0, 0xFF20, 0xFFF1, 0xFFF2
LOCAL, GLOBAL, WEAK = 0, 1, 2
NOTYPE, OBJECT, FUNC, SECTION = 0, 1, 2, 3

X86_64, AARCH64, RISCV, MIPS = 62, 183, 243, 8

HEADER = {  # field -> offset, size
    "magic": (0, 4),
    "class": (4, 1),
    "data": (5, 1),
    "type": (16, 2),
    "machine": (18, 2),
    "shoff": (40, 8),
    "shentsize": (58, 2),
    "shnum": (60, 2),
    "shstrndx": (62, 2),
}
SECTION_HEADER = {
    "name": (0, 4),
    "type": (4, 4),
    "flags": (8, 8),
    "addr": (16, 8),
    "offset": (24, 8),
    "size": (32, 8),
    "link": (40, 4),
    "info": (44, 4),
    "align": (48, 8),
    "entsize": (56, 8),
}
SYMBOL = {"name": (0, 4), "info": (4, 1), "shndx": (6, 2), "value": (8, 8), "size": (16, 8)}
RELOCATION = {"offset": (0, 8), "type": (8, 4), "symbol": (12, 4), "addend": (16, 8)}


@attrs.frozen(kw_only=True)
class Form:
    """How a file is written: class, byte order, REL, and MIPS64's three types in a record."""

    bits: int = 64
    order: str = "little"
    rel: bool = False
    mips64: bool = False

    def pack(self, codes: str, *values: int) -> bytes:
        """Return numbers in the file's byte order; `a` is as wide as an address."""
        wide = codes.replace("a", "Q" if self.bits == 64 else "I")
        return struct.pack(("<" if self.order == "little" else ">") + wide, *values)

    def address(self, value: int) -> int:
        """Return a number, which may be negative, as wide as an address."""
        return value & (1 << self.bits) - 1


@attrs.frozen
class Rela:
    """One relocation record; a REL one has no addend. `symbol` is a name, or an index into the finished table."""

    offset: int
    type: int
    symbol: str | int
    addend: int = 0


@attrs.frozen
class Sec:
    """One section; `size` counts for NOBITS only, `relas` become a `.rela` section behind it.

    `livepatch` holds records by object; each object's become a `.klp.rela` section.
    """

    name: str
    data: bytes = b""
    flags: int = 0
    type: int = PROGBITS
    align: int = 1
    size: int = 0
    relas: Sequence[Rela] = ()
    addr: int = 0
    livepatch: Mapping[str, Sequence[Rela]] = attrs.field(factory=dict)
    entry: int = 0


@attrs.frozen
class Sym:
    """One symbol; `section` is a section's name, or a reserved index such as ABS."""

    name: str
    section: str | int = UNDEF
    value: int = 0
    size: int = 0
    type: int = NOTYPE
    bind: int = GLOBAL


class _Strings:
    """A string table under construction."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")

    def add(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.data)
        self.data += text.encode() + b"\0"
        return at


def _record(form: Form, relocation: Rela, symbol: int) -> bytes:
    kind = relocation.type
    if form.mips64:
        types = (kind >> shift & 0xFF for shift in (24, 16, 8, 0))  # ssym, type3, type2, type
        info = form.pack("IBBBB", symbol, *types)
    elif form.bits == 64:
        info = form.pack("Q", symbol << 32 | kind)
    else:
        info = form.pack("I", symbol << 8 | kind)
    assert not (form.rel and relocation.addend), "a REL record has its addend in the section"
    more = b"" if form.rel else form.pack("a", form.address(relocation.addend))
    return form.pack("a", relocation.offset) + info + more


def _symbol(form: Form, title: int, info: int, where: int, symbol: Sym) -> bytes:
    if form.bits == 64:
        return form.pack("IBBHQQ", title, info, 0, where, symbol.value, symbol.size)
    return form.pack("IIIBBH", title, symbol.value, symbol.size, info, 0, where)


def write(
    machine: int,
    sections: Sequence[Sec],
    symbols: Sequence[Sym] = (),
    form: Form | None = None,
) -> bytes:
    """Return the object file; symbols are reordered so that locals stand first."""
    form = Form(mips64=machine == MIPS) if form is None else form
    header_size, section_size = (64, 64) if form.bits == 64 else (52, 40)
    symbol_size = 24 if form.bits == 64 else 16
    record_size = len(_record(form, Rela(0, 0, 0), 0))
    prefix, kind = (".rel", REL) if form.rel else (".rela", RELA)
    titles, names = _Strings(), _Strings()
    plain: list[Sec] = []
    tables: list[tuple[int, int, Sequence[Rela]]] = []  # index of the .rela section, of its target
    numbers: dict[str, int] = {}
    for section in sections:
        plain.append(section)
        numbers.setdefault(section.name, len(plain))
        target = len(plain)
        if section.relas:
            plain.append(Sec(f"{prefix}{section.name}", type=kind, align=form.bits // 8))
            tables.append((len(plain), target, section.relas))
        for title, relas in section.livepatch.items():
            flags = A | RELA_LIVEPATCH
            plain.append(Sec(f".klp.rela.{title}.{section.name}", b"", flags, RELA, 8))
            tables.append((len(plain), target, relas))
    ordered = sorted(symbols, key=lambda s: s.bind != LOCAL)
    local = 1 + sum(s.bind == LOCAL for s in ordered)
    rows: dict[str, int] = {}
    table = bytearray(symbol_size)
    for index, symbol in enumerate(ordered, 1):
        rows.setdefault(symbol.name, index)
        where = numbers[symbol.section] if isinstance(symbol.section, str) else symbol.section
        named = 0 if symbol.type == SECTION else names.add(symbol.name)
        info = symbol.bind << 4 | symbol.type
        table += _symbol(form, named, info, where, symbol)
    symtab = len(plain) + 1
    contents = {index: section.data for index, section in enumerate(plain, 1)}
    for at, _, relas in tables:
        contents[at] = b"".join(
            _record(form, r, rows[r.symbol] if isinstance(r.symbol, str) else r.symbol)
            for r in relas
        )
    plain += [
        Sec(".symtab", bytes(table), type=SYMTAB, align=8),
        Sec(".strtab", bytes(names.data), type=STRTAB),
        Sec(".shstrtab", type=STRTAB),
    ]
    contents |= {symtab: plain[-3].data, symtab + 1: plain[-2].data}
    starts = [titles.add(section.name) for section in plain]
    contents[symtab + 2] = bytes(titles.data)
    targets = {at: target for at, target, _ in tables}
    image, headers = bytearray(header_size), bytearray(section_size)
    for index, section in enumerate(plain, 1):
        data = contents[index]
        image += bytes(-len(image) % max(section.align, 1))
        size = section.size if section.type == NOBITS else len(data)
        link, info, entry = 0, 0, section.entry
        if index in targets:
            link, info, entry = symtab, targets[index], record_size
        elif index == symtab:
            link, info, entry = symtab + 1, local, symbol_size
        headers += form.pack(
            "IIaaaaIIaa",
            starts[index - 1],
            section.type,
            section.flags,
            section.addr,
            len(image),
            size,
            link,
            info,
            section.align,
            entry,
        )
        image += data
    image += bytes(-len(image) % 8)
    ident = bytes((0x7F, *b"ELF", form.bits // 32, 1 if form.order == "little" else 2, 1))
    sizes = (header_size, 0, 0, section_size, len(plain) + 1, symtab + 2)
    fields = (1, machine, 1, 0, 0, len(image), 0, *sizes)
    image[:header_size] = ident.ljust(16, b"\0") + form.pack("HHIaaaIHHHHHH", *fields)
    return bytes(image + headers)


def patch(
    image: bytes, fields: Mapping[str, int], layout: Mapping[str, tuple[int, int]], at: int = 0
) -> bytes:
    """Return `image` with fields of the record at file offset `at` overwritten."""
    damaged = bytearray(image)
    for name, value in fields.items():
        offset, size = layout[name]
        mask = (1 << 8 * size) - 1
        damaged[at + offset : at + offset + size] = (value & mask).to_bytes(size, "little")
    return bytes(damaged)


def header(image: bytes, /, **fields: int) -> bytes:
    """Return `image` with fields of the file header overwritten."""
    return patch(image, fields, HEADER)


def index_of(image: bytes, name: str) -> int:
    """Return the index of the section called `name`."""
    strings = field_of(image, int.from_bytes(image[62:64], "little"), "offset")
    for index in range(int.from_bytes(image[60:62], "little")):
        start = strings + field_of(image, index, "name")
        if image[start : image.index(0, start)] == name.encode():
            return index
    raise KeyError(name)


def section(image: bytes, which: str | int, /, **fields: int) -> bytes:
    """Return `image` with fields of a section header overwritten."""
    return patch(image, fields, SECTION_HEADER, header_at(image, which))


def symbol(image: bytes, index: int, /, **fields: int) -> bytes:
    """Return `image` with fields of a symbol overwritten."""
    return patch(image, fields, SYMBOL, field_of(image, ".symtab", "offset") + 24 * index)


def relocation(image: bytes, table: str, index: int, /, **fields: int) -> bytes:
    """Return `image` with fields of a relocation record overwritten."""
    return patch(image, fields, RELOCATION, field_of(image, table, "offset") + 24 * index)


def header_at(image: bytes, name: str | int) -> int:
    """Return the file offset of a section's header, by name or index."""
    number = index_of(image, name) if isinstance(name, str) else name
    return int.from_bytes(image[40:48], "little") + 64 * number


def field_of(image: bytes, name: str | int, field: str) -> int:
    """Return a field of a section's header."""
    offset, size = SECTION_HEADER[field]
    at = header_at(image, name) + offset
    return int.from_bytes(image[at : at + size], "little")
