# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF bytes -> ElfView: what the kernel checks before it believes a module.

The section headers, the symbol table and the relocation tables are arrays of one form
(`archs.dialect`), views of the file where it has that form itself, because a driver may have
half a million relocations and views cost nothing. Addends that stand in the words that are
relocated are read here, too: nobody later asks how a file was written. Every index and offset
that later phases follow is checked here, once, vectorised; later phases trust it.

`sh_addr` is ignored: relocatable objects carry leftovers there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate
from operator import add
from typing import NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from archs import Arch, Dialect, archs, by_machine, machines
from archs.dialect import SHT_REL, SHT_RELA
from archs.reloc import Part, Rows
from loader.checks import Refused, refused, violation
from loader.elfview import (
    MAX_NAME,
    SHF_ALLOC,
    SHF_RELA_LIVEPATCH,
    SHN_ABS,
    SHN_COMMON,
    SHN_LIVEPATCH,
    SHN_LORESERVE,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_SYMTAB,
    VMLINUX,
    ElfView,
    LongNames,
    RelocationTable,
    Section,
)
from loader.errors import BadModule

ET_REL = 1
MAGIC = b"\x7fELF"
IDENT = 16  # bytes of e_ident

MAX_SECTIONS = SHN_LORESERVE
MAX_ALIGN = 1 << 21
MAX_SIZE = 1 << 31
USUAL_ALIGNS = frozenset((0, *(1 << bit for bit in range(MAX_ALIGN.bit_length()))))
MAX_UNDEFINED = 1 << 16  # the largest drivers have three thousand

# Lengths as in klp_write_section_relocs().
_LIVEPATCH_SECTION = re.compile(r"\.klp\.rela\.([^.]{1,55})")
# As Section(...) does, at half the cost: from one sequence of all fields.
_section = partial(tuple.__new__, Section)


def arch_of(data: bytes, name: str = "<bytes>") -> Arch:
    """Return the architecture that the ELF header names; BadModule as `parse`."""
    return _header(data, name, None).arch


def parse(data: bytes, name: str = "<bytes>", *, arch: Arch | None = None) -> ElfView:
    """Return the checked view of a relocatable object (kernel: elf_validity_check).

    Parameters
    ----------
    data
        The file's bytes.
    name
        For messages.
    arch
        Refuse other machines; by default the architecture comes from the header.

    Raises
    ------
    BadModule
        Naming the place and what is wrong with it.
    """
    header = _header(data, name, arch)
    sections = _sections(data, name, header)
    symbols, first_global, strings = _symbols(data, name, header.arch.link.dialect, sections)
    tables, joint = _tables(data, name, header.arch, sections, symbols)
    arch = _accompanied(header.arch, tables)
    view = ElfView(name, arch, data, sections, symbols, first_global, strings, tables, joint)
    return _with_late(view) if any(t.section.flags & SHF_RELA_LIVEPATCH for t in tables) else view


class _Header(NamedTuple):
    """What counts of a file header: architecture, section headers (where, how many), their names."""

    arch: Arch
    table: int
    sections: int
    names: int


# Class and byte order in e_ident -> a dialect with these; architectures differ in the rest.
_IDENTS = {
    d.ident: d for bits in (64, 32) for d in (Dialect(bits=bits), Dialect(bits=bits, order="big"))
}


def _header(data: bytes, name: str, wanted: Arch | None) -> _Header:
    """Return what the file header says; BadModule where that is no module's."""
    if data[:4] != MAGIC:
        reason = "not an ELF file (no \\x7fELF at the start)"
        raise refused("elf-magic", name, "ELF header", reason)
    written = _IDENTS.get(data[4:6])
    if written is None and len(data) > IDENT:
        reason = f"not readable: class {data[4]}, byte order {data[5]}; 1 and 2 are known of both"
        raise BadModule(name, "ELF header", reason)
    size = IDENT + (written.header.size if written else 48)
    if len(data) < size or written is None:
        reason = f"truncated: the file has {len(data)} of {size} bytes"
        raise refused("elf-length", name, "ELF header", reason, size=len(data))
    kind, machine, _, _, _, table, _, _, _, _, entry, count, names = written.header.unpack_from(
        data, IDENT
    )
    if kind != ET_REL:
        what = _elf_name("ET", kind)
        reason = f"{what} is not a relocatable object (ET_REL); is it a linked program?"
        raise refused("elf-type", name, "ELF header", reason, type=kind)
    # Whoever wants an architecture gets its record, be it another than the registry's.
    mine = wanted is not None and (machine, written.ident) == (
        wanted.machine,
        wanted.link.dialect.ident,
    )
    found = wanted if mine else by_machine(machine, written.bits, written.order)
    if found is None:
        what = _elf_name("EM", machine).removeprefix("EM_")
        reason = f"{written} {what} (machine {machine}): known are {machines()}"
        if any(known.link.dialect.ident == written.ident for known in archs()):
            raise refused("elf-machine", name, "ELF header", reason, machine=machine)
        # Kernels do not look at class and byte order, but at what they make of the numbers.
        hint = "; hint: build it with -m64, or with the compiler of another architecture"
        raise BadModule(name, "ELF header", reason + hint * (written.bits == 32))
    if wanted is not None and not mine:
        reason = f"built for {found.name}, not for {wanted.name}"
        raise refused("elf-machine", name, "ELF header", reason, machine=machine)
    expected = written.section.size
    if entry != expected:
        reason = f"entry size {entry}, expected {expected}"
        raise refused("elf-entry-size", name, "section headers", reason)
    end = table + count * expected
    if end > len(data):
        reason = f"truncated: they end at {end:#x}, the file at {len(data):#x}"
        raise refused("elf-table", name, "section headers", reason)
    return _Header(found, table, count, names)


def _elf_name(prefix: str, number: int) -> str:
    """Return what ELF calls a file's type (ET) or machine (EM), or the number."""
    from elftools.elf import enums  # only for messages

    known = {"ET": enums.ENUM_E_TYPE, "EM": enums.ENUM_E_MACHINE}[prefix]
    return next((name for name, value in known.items() if value == number), f"{prefix} {number}")


def _no_sections(data: bytes, name: str, header: _Header) -> Refused:
    """Return why a file with e_shnum 0 is no module: it has none, or says elsewhere how many.

    Where the count does not fit sixteen bits, it stands in section 0 (ELF, "extended section
    numbering"), which kernels want to be empty.
    """
    index = header.names
    first = violation("elf-names", "section headers", "there are none", index=index, count=0)
    dialect, table = header.arch.link.dialect, header.table
    if not table or table + dialect.section.size > len(data):
        return Refused.by(name, (first,))
    _, kind, _, _, _, count, *_ = dialect.section.unpack_from(data, table)
    if not kind and not count:
        return Refused.by(name, (first,))
    reason = (
        f"section 0 is not empty: it says that there are {count}, and a module has at most "
        f"{MAX_SECTIONS - 1} (extended section numbering); hint: link its sections together"
    )
    found = violation("elf-section-0", "section headers", reason, type=kind)
    return Refused.by(name, (attrs.evolve(first, reason=reason), found))


def _sections(data: bytes, name: str, header: _Header) -> tuple[Section, ...]:
    """Return the checked sections."""
    if not header.sections:
        raise _no_sections(data, name, header)
    dialect, string_index, count = header.arch.link.dialect, header.names, header.sections
    end = header.table + count * dialect.section.size
    headers = list(dialect.section.iter_unpack(data[header.table : end]))
    if not 0 < string_index < count:
        reason = f"e_shstrndx {string_index} is no section"
        raise refused("elf-names", name, "ELF header", reason, index=string_index, count=count)
    _, kind, _, address, _, size, *_ = headers[0]
    if kind or address or size:
        reason = f"is not empty: type {kind}, address {address:#x}, size {size:#x}"
        raise refused("elf-section-0", name, "section 0", reason, type=kind)
    starts, kinds, flags, _, offsets, sizes, links, infos, aligns, entsizes = zip(
        *headers, strict=True
    )
    strings = _strings(data, name, offsets[string_index], sizes[string_index], string_index)
    limit = len(strings)
    if max(starts) >= limit:
        index = next(number for number, start in enumerate(starts) if start >= limit)
        reason = f"name offset {starts[index]:#x} is outside the string table"
        more = {"index": index, "type": kinds[index]}
        raise refused("elf-section-name", name, f"section {index}", reason, **more)
    # Without a NUL at the end of the range, find() gives -1.
    ends = [strings.find(0, start, start + MAX_NAME) for start in starts]
    if min(ends) < 0:
        long = LongNames(name, "section headers")
        ends = [
            end if end >= 0 else start + len(long.at(strings, start))
            for start, end in zip(starts, ends, strict=True)
        ]
    spans = zip(starts, ends, strict=True)
    if strings.isascii():
        # Offsets into ASCII are the same in bytes and in text.
        text = strings.decode("ascii")
        titles = [text[start:end] for start, end in spans]
    else:
        titles = [str(strings[start:end], "utf-8", "backslashreplace") for start, end in spans]
    wanted, width = dialect.relocation_type, dialect.relocation.itemsize
    widths = [width for kind, width in zip(kinds, entsizes, strict=True) if kind == wanted]
    # Nearly always nothing is wrong: whether anything may be is asked of the columns.
    if (
        max(map(add, offsets, sizes)) > len(data)
        or not USUAL_ALIGNS.issuperset(aligns)
        or max(sizes) >= MAX_SIZE
        or widths.count(width) != len(widths)
    ):
        for index, fields in enumerate(headers):
            where = f"section {index} ({titles[index]})"
            _check_section(data, name, where, index, fields, dialect)
    aligns = tuple([align or 1 for align in aligns])
    columns = range(count), titles, kinds, flags, offsets, sizes, aligns, links, infos
    return tuple(map(_section, zip(*columns, strict=True)))


def _check_section(
    data: bytes, name: str, where: str, index: int, fields: tuple[int, ...], dialect: Dialect
) -> None:
    """Refuse a section header that says what cannot be."""
    _, kind, flags, _, offset, size, _, _, align, entsize = fields
    if index and kind != SHT_NOBITS and offset + size > len(data):
        reason = f"truncated: it ends at {offset + size:#x}, the file at {len(data):#x}"
        raise refused("elf-section", name, where, reason, index=index, type=kind)
    if align and align & (align - 1):
        raise BadModule(name, where, f"alignment {align:#x} is no power of two")
    if flags & SHF_ALLOC and align > MAX_ALIGN:
        raise BadModule(name, where, f"alignment {align:#x} is above {MAX_ALIGN:#x}")
    if flags & SHF_ALLOC and size >= MAX_SIZE:
        raise BadModule(name, where, f"size {size:#x} is 2 GiB or more")
    width = dialect.relocation.itemsize
    if kind == dialect.relocation_type and entsize != width:
        raise BadModule(name, where, f"entry size {entsize}, expected {width}")


def _strings(data: bytes, name: str, offset: int, size: int, index: int) -> bytes:
    strings = data[offset : offset + size]
    if len(strings) != size or not strings or strings[-1] != 0:
        check = "elf-names-end" if size else "elf-names-empty"
        reason = "string table is truncated or not NUL-terminated"
        raise refused(check, name, f"section {index}", reason)
    return strings


def _symbols(
    data: bytes, name: str, dialect: Dialect, sections: tuple[Section, ...]
) -> tuple[NDArray[np.void], int, Section]:
    # Entry 0 is no section, whatever it says.
    found = [section for section in sections[1:] if section.type == SHT_SYMTAB]
    if len(found) != 1:
        what = "no symbol table; was it stripped?" if not found else "more than one symbol table"
        raise refused("symtab-once", name, "symbol table", what)
    (table,) = found
    if not 0 < table.link < len(sections):
        reason, count = f"string table {table.link} is no section", len(sections)
        more = {"link": table.link, "count": count}
        raise refused("elf-string-link", name, "symbol table", reason, **more)
    names = sections[table.link]
    end = names.offset + names.size
    if not names.size or names.type == SHT_NOBITS or data[end - 1 : end] != b"\0":
        raise BadModule(name, "symbol table", "its string table is not NUL-terminated")
    width = dialect.symbol.itemsize
    if table.size % width or not table.size:
        raise BadModule(name, "symbol table", f"size {table.size:#x} is no multiple of {width}")
    symbols = dialect.symbols(data, table.size // width, table.offset)
    first = table.info
    if first > symbols.size:
        raise BadModule(name, "symbol table", f"first global {first} is no symbol")
    # Local symbols may be hundreds of thousands; those that are used are looked at when they are.
    named = symbols[first:]
    index = named["shndx"]
    if named.size and int(np.maximum.reduce(index)) >= len(sections):
        beyond = index >= len(sections)
        _first(
            name,
            "symbol",
            index == SHN_COMMON,
            "is COMMON; build with -fno-common",
            first,
            "common",
        )
        beyond &= (index != SHN_ABS) & (index != SHN_LIVEPATCH)
        _first(name, "symbol", beyond, "lies in a section that does not exist", first)
    if named.size > MAX_UNDEFINED:
        undefined = int(((index == SHN_UNDEF) | (index == SHN_LIVEPATCH)).sum())
        if undefined > MAX_UNDEFINED:
            reason = f"{undefined} undefined symbols; the limit is {MAX_UNDEFINED}"
            raise BadModule(name, "symbol table", reason)
    if named.size and int(np.maximum.reduce(named["name"])) >= names.size:
        lost = named["name"] >= names.size
        _first(name, "symbol", lost, "name is outside the string table", first)
    return symbols, first, names


def _tables(
    data: bytes,
    name: str,
    arch: Arch,
    sections: tuple[Section, ...],
    symbols: NDArray[np.void],
) -> tuple[tuple[RelocationTable, ...], NDArray[np.void] | None]:
    """Return the checked relocation tables, and the records of all, if theirs are slices of it."""
    dialect = arch.link.dialect
    wanted, width = dialect.relocation_type, dialect.relocation.itemsize
    found = [section for section in sections[1:] if section.type in (SHT_RELA, SHT_REL)]
    for section in found:
        if not 0 < section.info < len(sections):
            reason = f"applies to section {section.info}, which does not exist"
            raise BadModule(name, _where(section), reason)
        if section.type != wanted and sections[section.info].allocated:
            other, own = ("REL", "RELA") if wanted == SHT_RELA else ("RELA", "REL")
            reason = f"{other} relocations; {arch.name} uses {own}"
            raise BadModule(name, _where(section), reason)
        if section.type == wanted and section.size % width:
            reason = f"size {section.size:#x} is no multiple of {width}"
            raise BadModule(name, _where(section), reason)
    counts = [section.size // width if section.type == wanted else 0 for section in found]
    starts = [section.offset for section in found]
    ends = [section.offset + section.size for section in found]
    joint = None
    if found and starts[1:] == ends[:-1] and all(section.type == wanted for section in found):
        # A slice costs a third of a view.
        joint = dialect.relocations(data, sum(counts), starts[0])
        slices = [
            joint[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)
        ]
    else:
        slices = [
            dialect.relocations(data, count, section.offset if count else 0)
            for section, count in zip(found, counts, strict=True)
        ]
    tables = [
        RelocationTable(section, sections[section.info], records)
        for section, records in zip(found, slices, strict=True)
    ]
    _check_symbols_of(name, tables, joint, symbols.size)
    if dialect.addends_in_place:
        for table in tables:
            _read_addends(data, name, arch.link.relocations, table)
    return tuple(tables), joint


def _accompanied(arch: Arch, tables: Iterable[RelocationTable]) -> Arch:
    """Return the architecture as it is for an object with these records (`Reloc.unless`)."""
    companions = arch.link.relocations.companions
    if companions and any(np.isin(t.records["type"], companions).any() for t in tables):
        return attrs.evolve(arch, link=arch.link.accompanied)
    return arch


def _read_addends(data: bytes, name: str, rows: Rows, table: RelocationTable) -> None:
    """Set the addends of records to what stands in the words that they change.

    Records that do not lie in the section are refused later, where it is linked.
    """
    records, target = table.records, table.target
    if not table.target.allocated or target.type == SHT_NOBITS:
        return
    contents = np.frombuffer(data, np.uint8, target.size, target.offset if target.size else 0)
    for number in np.unique(records["type"]).tolist():
        row = rows.get(number)
        if row is None or not row.parts:
            continue
        (index,) = (records["type"] == number).nonzero()
        offset = records["offset"][index]
        there = (offset <= target.size) & (np.uint64(row.size) <= target.size - offset)
        index, offset = index[there], offset[there]

        def words(part: Part, offset: NDArray[np.uint64] = offset) -> NDArray[np.uint64]:
            at = offset[:, None] + np.arange(part.offset, part.offset + part.size, dtype=np.uint64)
            found: NDArray[np.uint64] = contents[at].view(part.word)[:, 0].astype(np.uint64)
            return found

        records["addend"][index] = row.held(words, addend=True)
    _complete_addends(name, rows, table)


def _complete_addends(name: str, rows: Rows, table: RelocationTable) -> None:
    """Add to addends of which fields hold the high part what the next record of the low part has."""
    records = table.records
    high, own = records.copy(), np.arange(records.size, dtype=np.uint64)
    # Same symbol, and then by place in the table.
    key = records["symbol"].astype(np.uint64) << np.uint64(32) | own
    for number in np.unique(records["type"]).tolist():
        row = rows.get(number)
        if row is None or row.low is None:
            continue
        (index,) = (records["type"] == number).nonzero()
        (low,) = (records["type"] == row.low).nonzero()
        low = low[np.argsort(key[low])]
        at = np.searchsorted(key[low], key[index])
        missing = at == low.size
        partner = low[np.minimum(at, max(low.size - 1, 0))] if low.size else index
        missing |= records["symbol"][partner] != records["symbol"][index]
        if missing.any():
            lost = np.zeros(records.size, np.bool_)
            lost[index[missing]] = True
            reason = (
                f"{row.name} without a {rows[row.low].name} of the same symbol behind it, which "
                "has the low part of its addend"
            )
            _first(name, f"{_where(table.section)} relocation", lost, reason)
        records["addend"][index] += high["addend"][partner]


def _with_late(view: ElfView) -> ElfView:
    """Return the view of a livepatch, whose tables say whose symbols they name."""
    named = []
    for table in view.tables:
        if not table.section.flags & SHF_RELA_LIVEPATCH:
            named.append(table)
            continue
        found = _LIVEPATCH_SECTION.match(table.section.name)
        if found is None:
            reason = "a livepatch's relocations are called .klp.rela.OBJECT.SECTION"
            raise BadModule(view.name, _where(table.section), reason)
        named.append(table._replace(object=found[1]))
    late = tuple(table for table in named if table.object not in ("", VMLINUX))
    now = tuple(table for table in named if table.object in ("", VMLINUX))
    return attrs.evolve(view, tables=now, late=late, joint=None)


def _where(section: Section) -> str:
    return f"section {section.index} ({section.name})"


def _check_symbols_of(
    name: str,
    tables: Sequence[RelocationTable],
    joint: NDArray[np.void] | None,
    count: int,
) -> None:
    """Refuse relocations that name no symbol."""
    arrays = [joint] if joint is not None else [table.records for table in tables]
    for records in arrays:
        if records.size and int(np.maximum.reduce(records["symbol"])) >= count:
            for table in tables:
                lost = table.records["symbol"] >= count
                _first(name, f"{_where(table.section)} relocation", lost, "names no symbol")


def check_local_names(view: ElfView) -> None:
    """Refuse a module that has a local symbol whose name is outside the string table; BadModule.

    To link needs none of them; of a module that is loaded, anybody may ask for all.
    """
    names = view.symbols["name"]
    if int(np.maximum.reduce(names)) >= view.symbol_names.size:
        lost = names >= view.symbol_names.size
        _first(view.name, "symbol", lost, "name is outside the string table")


def _first(
    name: str,
    what: str,
    bad: NDArray[np.bool_],
    reason: str,
    number_from: int = 0,
    check: str = "",
) -> None:
    """Refuse the file when any entry is bad, naming the first and how many there are."""
    if bad.any():
        count = int(bad.sum())
        more = f" (and {count - 1} more)" if count > 1 else ""
        where = f"{what} {int(bad.argmax()) + number_from}"
        if check:
            raise refused(check, name, where, reason + more)
        raise BadModule(name, where, reason + more)
