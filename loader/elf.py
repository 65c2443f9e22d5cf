# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF bytes -> ElfView: what the kernel checks before it believes a module.

pyelftools reads and judges the file header; the section headers, the symbol table and
the relocation tables are numpy views of the file, because a driver may have half a
million relocations and the views cost nothing. Every index and offset that later phases
follow is checked here, once, vectorised; later phases trust it.

`sh_addr` is ignored: relocatable objects carry leftovers there.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate
from operator import add
from typing import NamedTuple

import attrs
import numpy as np
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from archs import ALL, Arch, by_machine
from loader.checks import Refused, refused, violation
from loader.errors import BadModule

SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 2, 4, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_RELA_LIVEPATCH = 1, 2, 4, 0x0010_0000
SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_COMMON = 0, 0xFF00, 0xFFF1, 0xFFF2
SHN_LIVEPATCH = 0xFF20
STB_LOCAL, STB_WEAK = 0, 2
STT_OBJECT, STT_FUNC, STT_SECTION = 1, 2, 3

MAX_SECTIONS = SHN_LORESERVE
MAX_ALIGN = 1 << 21
MAX_SIZE = 1 << 31
USUAL_ALIGNS = frozenset((0, *(1 << bit for bit in range(MAX_ALIGN.bit_length()))))
# Names may overlap, so that a small file could ask for their number times its own size. So long
# ones are counted: those of symbols, of sections, and of exports, each kind by itself.
MAX_NAME = 1024  # bytes from which a name is long; KSYM_NAME_LEN is 512
MAX_LONG = 1 << 24  # bytes of all long names of a kind
USUAL_NAME = 128  # bytes; what is copied to look for the end of a name
MAX_UNDEFINED = 1 << 16  # the largest drivers have three thousand

GOT_SYMBOL = "_GLOBAL_OFFSET_TABLE_"
VMLINUX = "vmlinux"
# Lengths as in klp_write_section_relocs().
_LIVEPATCH_SECTION = re.compile(r"\.klp\.rela\.([^.]{1,55})")
HEADER = struct.Struct("<HHIQQQIHHHHHH")  # Elf64_Ehdr from e_type on
# Elf64_Shdr: name, type, flags, addr, offset, size, link, info, align, entsize
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("shndx", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
VERSION = np.dtype([("crc", "<u8"), ("name", "S56")])  # struct modversion_info
RELA = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<u8")])


class Section(NamedTuple):
    """One section header; `size` and `align` in bytes.

    A named tuple, because a small module has fifty and little else.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    name: str
    type: int
    flags: int
    offset: int
    size: int
    align: int
    link: int
    info: int

    @property
    def allocated(self) -> bool:
        """Whether the section is part of the loaded module."""
        return bool(self.flags & SHF_ALLOC)

    @property
    def executable(self) -> bool:
        """Whether the section holds instructions."""
        return bool(self.flags & SHF_EXECINSTR)


# As Section(...) does, at half the cost: from one sequence of all fields.
_section = partial(tuple.__new__, Section)


@attrs.define
class LongNames:
    """Names of `MAX_NAME` bytes and more, each read once, as long as all together are few.

    Parameters
    ----------
    module, where
        For messages.
    """

    module: str
    where: str
    _left: int = MAX_LONG
    _found: dict[int, bytes] = attrs.field(factory=dict, init=False)

    def at(self, data: bytes, start: int) -> bytes:
        """Return what stands in `data` from `start` to the next NUL; BadModule for too much."""
        found = self._found.get(start)
        if found is None:
            end = data.find(0, start, start + self._left)
            if end < 0:
                reason = f"names of {MAX_NAME} bytes or more come to more than {MAX_LONG:#x}"
                raise BadModule(self.module, self.where, reason)
            found = self._found[start] = data[start:end]
            self._left -= end - start
        return found


class RelocationTable(NamedTuple):
    """One RELA section: where it applies, and its records as an array of RELA.

    `object` is whose symbols a livepatch's table names: a module, or `vmlinux`.
    """

    section: Section
    target: Section
    records: NDArray[np.void]
    object: str = ""


@attrs.frozen(eq=False)
class ElfView:
    """A checked relocatable object; arrays are views of `data`.

    Parameters
    ----------
    name
        For messages: the file's name.
    arch
        From e_machine.
    data
        The whole file.
    sections
        In header order, the null section first.
    symbols
        The symbol table as an array of SYMBOL.
    first_global
        Index of the first symbol that is not local; local ones are never undefined.
    tables
        RELA sections in header order.
    adjoining
        Whether each of the tables begins where the one before ends.
    late
        Those that wait until a module is there, which a livepatch is for (`.klp.rela.MODULE.*`).
    """

    name: str
    arch: Arch
    data: bytes
    sections: tuple[Section, ...]
    symbols: NDArray[np.void]
    first_global: int
    symbol_names: Section
    tables: tuple[RelocationTable, ...]
    adjoining: bool = False
    late: tuple[RelocationTable, ...] = ()

    def joined(self, numbers: Sequence[int] | None = None) -> NDArray[np.void]:
        """Return the records of some tables, by ascending number, as one array.

        It is a view of the file wherever these tables adjoin in it.
        """
        numbers = range(len(self.tables)) if numbers is None else numbers
        if not numbers:
            return np.empty(0, RELA)
        first, last = self.tables[numbers[0]], self.tables[numbers[-1]]
        if len(numbers) == 1:
            return first.records
        if self.adjoining and numbers[-1] - numbers[0] == len(numbers) - 1:
            start, end = first.section.offset, last.section.offset + last.section.size
            return np.frombuffer(self.data, RELA, (end - start) // RELA.itemsize, start)
        tables = [self.tables[number].records for number in numbers]
        return np.frombuffer(b"".join([table.tobytes() for table in tables]), RELA)

    def contents(self, section: Section) -> memoryview:
        """Return the file bytes of `section`; empty for NOBITS."""
        size = 0 if section.type == SHT_NOBITS else section.size
        return memoryview(self.data)[section.offset : section.offset + size]

    def section(self, name: str) -> Section | None:
        """Return the first section called `name`."""
        return self._by_name.get(name)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the sections, by index; of the null section none."""
        return ("", *[section.name for section in self.sections[1:]])

    def find(self, name: str) -> Section | None:
        """Return the first allocated section called `name` (kernel: find_sec)."""
        found = self._by_name.get(name)
        if found is None or found.allocated:
            return found
        return next((s for s in self.sections[1:] if s.name == name and s.allocated), None)

    @cached_property
    def _by_name(self) -> Mapping[str, Section]:
        names = [section.name for section in self.sections]
        return dict(zip(reversed(names), reversed(self.sections), strict=True))

    def symbol_name(self, index: int) -> str:
        """Return the name of a symbol; section symbols are called after their section."""
        symbol = self.symbols[index]
        if symbol["info"] & 0xF == STT_SECTION and symbol["shndx"] < len(self.sections):
            return self.sections[int(symbol["shndx"])].name
        return self._string(int(symbol["name"]))

    def _string(self, offset: int) -> str:
        if offset >= self.symbol_names.size:
            raise BadModule(self.name, "symbol table", f"name {offset:#x} is outside its strings")
        start = self.symbol_names.offset + offset
        end = self.data.find(0, start, start + MAX_NAME)
        found = self.data[start:end] if end >= 0 else self._long_names.at(self.data, start)
        return str(found, "utf-8", "backslashreplace")

    @cached_property
    def _long_names(self) -> LongNames:
        return LongNames(self.name, "symbol table")

    @cached_property
    def undefined_indices(self) -> NDArray[np.intp]:
        """Indices of undefined symbols, the null symbol apart; they stand among the globals.

        Those of a livepatch (SHN_LIVEPATCH) are among them.
        """
        first = max(self.first_global, 1)
        where = self.symbols["shndx"][first:]
        return np.flatnonzero((where == SHN_UNDEF) | (where == SHN_LIVEPATCH)) + first

    @cached_property
    def undefined_names(self) -> tuple[str, ...]:
        """Names of the undefined symbols, in the order of their indices."""
        data, start = self.data, self.symbol_names.offset
        names = (self.symbols["name"][self.undefined_indices] + np.uint64(start)).tolist()
        found = [data[at : at + USUAL_NAME].partition(b"\0")[0] for at in names]
        if found and len(max(found, key=len)) == USUAL_NAME:
            found = [data[at : at + MAX_NAME].partition(b"\0")[0] for at in names]
            found = [
                text if len(text) < MAX_NAME else self._long_names.at(data, at)
                for text, at in zip(found, names, strict=True)
            ]
        together = b"\0".join(found)
        if found and together.isascii():
            return tuple(together.decode("ascii").split("\0"))
        return tuple(text.decode("utf-8", "backslashreplace") for text in found)

    @cached_property
    def undefined(self) -> Mapping[str, int]:
        """Names of undefined symbols -> symbol index (several entries of a name are legal).

        Without those of a livepatch.
        """
        indices = self.undefined_indices
        mine = (self.symbols["shndx"][indices] == SHN_UNDEF).tolist()
        pairs = zip(self.undefined_names, indices.tolist(), mine, strict=True)
        return {name: index for name, index, plain in pairs if name and plain}

    def livepatch_symbols(self, tables: Iterable[RelocationTable]) -> Mapping[str, int]:
        """Names of the SHN_LIVEPATCH symbols that a livepatch's tables use -> symbol index."""
        used = [table.records["symbol"] for table in tables if table.object]
        indices = np.unique(np.concatenate(used)) if used else np.empty(0, np.uint32)
        indices = indices[self.symbols["shndx"][indices] == SHN_LIVEPATCH]
        return {self.symbol_name(index): index for index in indices.tolist()}

    @cached_property
    def weak_undefined(self) -> frozenset[str]:
        """Names of undefined symbols whose value may stay 0: weak ones, and the GOT's.

        Assemblers name the table wherever they refer to a slot; kernels ignore the name.
        """
        weak = self.symbols["info"][self.undefined_indices] >> 4 == STB_WEAK
        names = {self.undefined_names[i] for i in np.flatnonzero(weak).tolist()}
        return frozenset(names | ({GOT_SYMBOL} & set(self.undefined_names)))

    @cached_property
    def called(self) -> frozenset[str]:
        """Names of undefined symbols that a call or a jump leads to: functions, that is."""
        first = max(self.first_global, 1)
        found: set[int] = set()
        for table in (*self.tables, *self.late):
            records = table.records[np.isin(table.records["type"], self.arch.link.calls)]
            found.update(np.unique(records["symbol"]).tolist())
        wanted = found & set(self.undefined_indices.tolist())
        return frozenset(self.symbol_name(index) for index in wanted if index >= first)

    @cached_property
    def global_symbols(self) -> Mapping[str, int]:
        """Names of defined global and weak symbols -> symbol index."""
        bind = self.symbols["info"] >> 4
        indices = np.flatnonzero((bind != STB_LOCAL) & (self.symbols["shndx"] != SHN_UNDEF))
        return {self.symbol_name(int(i)): int(i) for i in indices}

    @cached_property
    def modinfo(self) -> Mapping[str, str]:
        """The `tag=value` strings of `.modinfo`; of a repeated tag the first counts."""
        found: dict[str, str] = {}
        for tag, value in self._modinfo:
            found.setdefault(tag, value)
        return found

    @cached_property
    def aliases(self) -> tuple[str, ...]:
        """The names that the module answers to besides its own (MODULE_ALIAS)."""
        return tuple(value for tag, value in self._modinfo if tag == "alias")

    @cached_property
    def _modinfo(self) -> tuple[tuple[str, str], ...]:
        section = self.section(".modinfo")
        entries = bytes(self.contents(section)).split(b"\0") if section is not None else []
        parts = (e.decode("utf-8", "backslashreplace").partition("=") for e in entries if e)
        return tuple((tag, value) for tag, _, value in parts)

    def all_modinfo(self, tag: str) -> tuple[str, ...]:
        """Return every value of a tag of `.modinfo`, in order."""
        return tuple(value for name, value in self._modinfo if name == tag)

    @property
    def versions(self) -> frozenset[str]:
        """Names that the kernel build vouched for in `__versions` (CONFIG_MODVERSIONS)."""
        return frozenset(self.crcs)

    @cached_property
    def crcs(self) -> Mapping[str, int]:
        """Names -> CRCs of what the module was built against; of a repeated name the first.

        From the extended tables where they are there (since Linux 6.13), else `__versions`.
        """
        crcs, names = self.find("__version_ext_crcs"), self.find("__version_ext_names")
        if crcs is not None and names is not None:
            values = np.frombuffer(self.contents(crcs)[: crcs.size & -4], "<u4").tolist()
            titles = bytes(self.contents(names)).split(b"\0")
            pairs = zip(titles, values, strict=False)
        else:
            section = self.find("__versions")
            raw = self.contents(section) if section is not None else memoryview(b"")
            table = np.frombuffer(raw[: len(raw) // VERSION.itemsize * VERSION.itemsize], VERSION)
            titles = [title.partition(b"\0")[0] for title in table["name"].tolist()]
            pairs = zip(titles, table["crc"].tolist(), strict=True)
        found: dict[str, int] = {}
        for title, value in pairs:
            found.setdefault(title.decode("utf-8", "backslashreplace"), value)
        return found


def arch_of(data: bytes, name: str = "<bytes>") -> Arch:
    """Return the architecture that the ELF header names; BadModule as `parse`."""
    return _header(data, name, None)[0]


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
    found, count, table = _header(data, name, arch)
    if count == 0:
        raise _no_sections(data, name, table)
    string_index = int.from_bytes(data[62:64], "little")
    sections = _sections(data, name, data[table : table + count * SECTION.size], string_index)
    symbols, first_global, strings = _symbols(data, name, sections)
    tables, adjoining = _tables(data, name, sections)
    view = ElfView(name, found, data, sections, symbols, first_global, strings, tables, adjoining)
    _check_symbols_of(view)
    return _with_late(view) if any(t.section.flags & SHF_RELA_LIVEPATCH for t in tables) else view


def _header(data: bytes, name: str, wanted: Arch | None) -> tuple[Arch, int, int]:
    """Return architecture, number of section headers and their file offset."""
    if data[:4] != b"\x7fELF":
        reason = "not an ELF file (no \\x7fELF at the start)"
        raise refused("elf-magic", name, "ELF header", reason)
    if len(data) < 64:
        reason = f"truncated: the file has {len(data)} of 64 bytes"
        raise refused("elf-length", name, "ELF header", reason, size=len(data))
    usual = _usual_header(data)
    if usual is not None and (wanted is None or wanted.machine == usual[0].machine):
        return usual
    try:
        header = ELFFile(io.BytesIO(data)).header
    except (ELFError, UnicodeDecodeError, ValueError, OverflowError, AttributeError) as error:
        raise BadModule(name, "ELF header", f"not readable: {error}") from None
    ident = header.e_ident
    if ident.EI_CLASS != "ELFCLASS64":
        reason = (
            "a 32-bit file; modules here are 64-bit (ELFCLASS64); hint: build it with -m64, or with "
            "the compiler of a 64-bit architecture"
        )
        raise BadModule(name, "ELF header", reason)
    if ident.EI_DATA != "ELFDATA2LSB":
        raise BadModule(name, "ELF header", "big endian; modules here are little endian")
    if header.e_type != "ET_REL":
        reason = f"{header.e_type} is not a relocatable object (ET_REL); is it a linked program?"
        kind = int.from_bytes(data[16:18], "little")
        raise refused("elf-type", name, "ELF header", reason, type=kind)
    machine = int.from_bytes(data[18:20], "little")
    found = by_machine(machine)
    if found is None:
        known = ", ".join(f"{a.name} ({a.machine})" for a in ALL)
        reason = f"machine {machine} is none of {known}"
        raise refused("elf-machine", name, "ELF header", reason, machine=machine)
    if wanted is not None and found.machine != wanted.machine:
        reason = f"built for {found.name}, not for {wanted.name}"
        raise refused("elf-machine", name, "ELF header", reason, machine=machine)
    if header.e_shentsize != SECTION.size:
        reason = f"entry size {header.e_shentsize}, expected {SECTION.size}"
        raise refused("elf-entry-size", name, "section headers", reason)
    if header.e_shoff + header.e_shnum * SECTION.size > len(data):
        end = header.e_shoff + header.e_shnum * SECTION.size
        reason = f"truncated: they end at {end:#x}, the file at {len(data):#x}"
        raise refused("elf-table", name, "section headers", reason)
    return found, int(header.e_shnum), int(header.e_shoff)


def _no_sections(data: bytes, name: str, table: int) -> Refused:
    """Return why a file with e_shnum 0 is no module: it has none, or says elsewhere how many.

    Where the count does not fit sixteen bits, it stands in section 0 (ELF, "extended section
    numbering"), which kernels want to be empty.
    """
    index = int.from_bytes(data[62:64], "little")
    first = violation("elf-names", "section headers", "there are none", index=index, count=0)
    if not table or table + SECTION.size > len(data):
        return Refused.by(name, (first,))
    _, kind, _, _, _, count, *_ = SECTION.unpack_from(data, table)
    if not kind and not count:
        return Refused.by(name, (first,))
    reason = (
        f"section 0 is not empty: it says that there are {count}, and a module has at most "
        f"{MAX_SECTIONS - 1} (extended section numbering); hint: link its sections together"
    )
    found = violation("elf-section-0", "section headers", reason, type=kind)
    return Refused.by(name, (attrs.evolve(first, reason=reason), found))


def _usual_header(data: bytes) -> tuple[Arch, int, int] | None:
    """Return what `_header` does for a header without anything unusual, else None.

    pyelftools takes a millisecond, as long as everything else for a small module; it is
    asked only about files that are not what they should be, to say why.
    """
    kind, machine, _, _, _, table, _, _, _, _, size, count, _ = HEADER.unpack_from(data, 16)
    found = by_machine(machine)
    usual = (
        data[4:7] == b"\x02\x01\x01"
        and kind == 1
        and size == SECTION.size
        and count
        and table + count * size <= len(data)
    )
    return (found, count, table) if usual and found is not None else None


def _sections(data: bytes, name: str, table: bytes, string_index: int) -> tuple[Section, ...]:
    """Return the checked sections; column by column, because most are as they should be."""
    headers = list(SECTION.iter_unpack(table))
    if not 0 < string_index < len(headers):
        reason, count = f"e_shstrndx {string_index} is no section", len(headers)
        raise refused("elf-names", name, "ELF header", reason, index=string_index, count=count)
    _, kind, _, address, _, size, *_ = headers[0]
    if kind or address or size:
        reason = f"is not empty: type {kind}, address {address:#x}, size {size:#x}"
        raise refused("elf-section-0", name, "section 0", reason, type=kind)
    strings = _strings(data, name, headers[string_index], string_index)
    starts, kinds, flags, _, offsets, sizes, links, infos, aligns, entsizes = zip(
        *headers, strict=True
    )
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
    widths = [width for kind, width in zip(kinds, entsizes, strict=True) if kind == SHT_RELA]
    if (
        max(map(add, offsets, sizes)) > len(data)
        or not USUAL_ALIGNS.issuperset(aligns)
        or max(sizes) >= MAX_SIZE
        or widths.count(RELA.itemsize) != len(widths)
    ):
        for index, header in enumerate(headers):
            reason = _bad_section(data, header, index)
            where = f"section {index} ({titles[index]})"
            if reason.startswith("truncated"):
                raise refused("elf-section", name, where, reason, index=index, type=header[1])
            if reason:
                raise BadModule(name, where, reason)
    aligns = tuple([align or 1 for align in aligns])
    columns = range(len(headers)), titles, kinds, flags, offsets, sizes, aligns, links, infos
    return tuple(map(_section, zip(*columns, strict=True)))


def _bad_section(data: bytes, header: tuple[int, ...], index: int) -> str:
    """Return what is wrong with a section header, if anything."""
    _, kind, flags, _, offset, size, _, _, align, entsize = header
    if index and kind != SHT_NOBITS and offset + size > len(data):
        return f"truncated: it ends at {offset + size:#x}, the file at {len(data):#x}"
    if align and align & (align - 1):
        return f"alignment {align:#x} is no power of two"
    if flags & SHF_ALLOC and align > MAX_ALIGN:
        return f"alignment {align:#x} is above {MAX_ALIGN:#x}"
    if flags & SHF_ALLOC and size >= MAX_SIZE:
        return f"size {size:#x} is 2 GiB or more"
    if kind == SHT_RELA and entsize != RELA.itemsize:
        return f"entry size {entsize}, expected {RELA.itemsize}"
    return ""


def _strings(data: bytes, name: str, header: tuple[int, ...], index: int) -> bytes:
    _, _, _, _, offset, size, *_ = header
    strings = data[offset : offset + size]
    if len(strings) != size or not strings or strings[-1] != 0:
        check = "elf-names-end" if size else "elf-names-empty"
        reason = "string table is truncated or not NUL-terminated"
        raise refused(check, name, f"section {index}", reason)
    return strings


def _symbols(
    data: bytes, name: str, sections: tuple[Section, ...]
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
    if table.size % SYMBOL.itemsize or not table.size:
        raise BadModule(name, "symbol table", f"size {table.size:#x} is no multiple of 24")
    symbols = np.frombuffer(data, SYMBOL, table.size // SYMBOL.itemsize, table.offset)
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
    data: bytes, name: str, sections: tuple[Section, ...]
) -> tuple[tuple[RelocationTable, ...], bool]:
    """Return the relocation tables, and whether each begins where the one before ends."""
    found = [section for section in sections[1:] if section.type in (SHT_RELA, SHT_REL)]
    starts = [section.offset for section in found]
    sizes = [section.size for section in found]
    for section in found:
        if not 0 < section.info < len(sections):
            reason = f"applies to section {section.info}, which does not exist"
            raise BadModule(name, _where(section), reason)
        if section.type == SHT_REL and sections[section.info].allocated:
            raise BadModule(name, _where(section), "REL relocations; these architectures use RELA")
        if section.type == SHT_RELA and section.size % RELA.itemsize:
            reason = f"size {section.size:#x} is no multiple of {RELA.itemsize}"
            raise BadModule(name, _where(section), reason)
    rela = [section.type for section in found].count(SHT_RELA)
    ends = list(map(add, starts, sizes))
    if found and starts[1:] == ends[:-1] and len(found) == rela:
        # A slice costs a third of a view.
        counts = [size // RELA.itemsize for size in sizes]
        whole = np.frombuffer(data, RELA, sum(counts), starts[0])
        tables = [
            RelocationTable(section, sections[section.info], whole[end - count : end])
            for section, count, end in zip(found, counts, accumulate(counts), strict=True)
        ]
        return tuple(tables), True
    tables = [
        RelocationTable(
            section,
            sections[section.info],
            np.frombuffer(data, RELA, section.size // RELA.itemsize, section.offset)
            if section.type == SHT_RELA
            else np.empty(0, RELA),
        )
        for section in found
    ]
    return tuple(tables), False


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
    return attrs.evolve(view, tables=now, late=late, adjoining=False)


def _where(section: Section) -> str:
    return f"section {section.index} ({section.name})"


def _check_symbols_of(view: ElfView) -> None:
    """Refuse relocations that name no symbol."""
    arrays = [view.joined()] if view.adjoining else [table.records for table in view.tables]
    for records in arrays:
        if records.size and int(np.maximum.reduce(records["symbol"])) >= view.symbols.size:
            for table in view.tables:
                lost = table.records["symbol"] >= view.symbols.size
                where = f"{_where(table.section)} relocation"
                _first(view.name, where, lost, "names no symbol")


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
