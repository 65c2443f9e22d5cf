# SPDX-License-Identifier: GPL-2.0-or-later
"""ElfView: a relocatable object as later phases see it, made and checked by `loader.elf.parse`.

What it holds are sections, symbols and relocation tables; what the tables of a module say
(`.modinfo`, `__versions`, names) is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from archs import Arch, Dialect
from archs.dialect import RELA
from archs.versions import MODELLED, Version, version_of
from loader.errors import BadModule

SHT_SYMTAB, SHT_NOBITS = 2, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_RELA_LIVEPATCH = 1, 2, 4, 0x0010_0000
SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_COMMON = 0, 0xFF00, 0xFFF1, 0xFFF2
SHN_LIVEPATCH = 0xFF20
STB_LOCAL, STB_WEAK = 0, 2
STT_OBJECT, STT_FUNC, STT_SECTION = 1, 2, 3

# Names may overlap, so that a small file could ask for their number times its own size. So long
# ones are counted: those of symbols, of sections, and of exports, each kind by itself.
MAX_NAME = 1024  # bytes from which a name is long; KSYM_NAME_LEN is 512
MAX_LONG = 1 << 24  # bytes of all long names of a kind
USUAL_NAME = 128  # bytes; what is copied to look for the end of a name

GOT_SYMBOL = "_GLOBAL_OFFSET_TABLE_"
VMLINUX = "vmlinux"


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
    """One relocation section: where it applies, and its records as an array of RELA.

    `object` is whose symbols a livepatch's table names: a module, or `vmlinux`.
    """

    section: Section
    target: Section
    records: NDArray[np.void]
    object: str = ""


@attrs.frozen(eq=False)
class ElfView:
    """A checked relocatable object; arrays are views of `data` where its dialect is the native one.

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
        Relocation sections in header order.
    joint
        The records of all tables, of which those of each are a slice; None where they are not.
    late
        Those that wait until a module is there, which a livepatch is for (`.klp.rela.MODULE.*`).
    taken_for
        The version of Linux that it is for, where that is known better than from its vermagic.
    """

    name: str
    arch: Arch
    data: bytes
    sections: tuple[Section, ...]
    symbols: NDArray[np.void]
    first_global: int
    symbol_names: Section
    tables: tuple[RelocationTable, ...]
    joint: NDArray[np.void] | None = None
    late: tuple[RelocationTable, ...] = ()
    taken_for: Version | None = None

    def joined(self, numbers: Sequence[int] | None = None) -> NDArray[np.void]:
        """Return the records of some tables, by ascending number, as one array.

        It is a view wherever the records of these tables adjoin.
        """
        numbers = range(len(self.tables)) if numbers is None else numbers
        if not numbers:
            return np.empty(0, RELA)
        if len(numbers) == 1:
            return self.tables[numbers[0]].records
        if self.joint is not None and numbers[-1] - numbers[0] == len(numbers) - 1:
            return self.joint[self._starts[numbers[0]] : self._starts[numbers[-1] + 1]]
        tables = [self.tables[number].records for number in numbers]
        return np.frombuffer(b"".join([table.tobytes() for table in tables]), RELA)

    @cached_property
    def _starts(self) -> list[int]:
        """Where the records of each table begin among all."""
        return list(accumulate([table.records.size for table in self.tables], initial=0))

    @property
    def dialect(self) -> Dialect:
        """How the file is written."""
        return self.arch.link.dialect

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
        return self.own_name(index)

    def own_name(self, index: int) -> str:
        """Return the name that the symbol table has of a symbol; section symbols may have one."""
        return self._string(int(self.symbols["name"][index]))

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

    @cached_property
    def release(self) -> str:
        """The release of the kernel that the module was built for; empty where it says none."""
        # Every link asks, and nearly none asks for the rest of `modinfo`.
        section = self.section(".modinfo")
        text = b"\0" + bytes(self.contents(section)) if section is not None else b""
        magic = text.partition(b"\0vermagic=")[2].partition(b"\0")[0]
        return magic.decode("utf-8", "backslashreplace").partition(" ")[0]

    @cached_property
    def built_for(self) -> Version | None:
        """The version of Linux that the module was built for; None where nothing says which."""
        return version_of(self.release) if self.taken_for is None else self.taken_for

    @property
    def version(self) -> Version:
        """The version of Linux that the module was built for; the modelled one where none is said."""
        return MODELLED if self.built_for is None else self.built_for

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
            values = np.frombuffer(
                self.contents(crcs)[: crcs.size & -4], self.dialect.unsigned(4)
            ).tolist()
            titles = bytes(self.contents(names)).split(b"\0")
            pairs = zip(titles, values, strict=False)
        else:
            section = self.find("__versions")
            raw = self.contents(section) if section is not None else memoryview(b"")
            version = self.dialect.version
            table = np.frombuffer(raw[: len(raw) // version.itemsize * version.itemsize], version)
            titles = [title.partition(b"\0")[0] for title in table["name"].tolist()]
            pairs = zip(titles, table["crc"].tolist(), strict=True)
        found: dict[str, int] = {}
        for title, value in pairs:
            found.setdefault(title.decode("utf-8", "backslashreplace"), value)
        return found
