# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of a booted kernel: its own loader takes them, and says where it put them.

Where sections lie is read from the section headers that it relocates by, in every version the
first argument of apply_relocate_add(); what a module takes from `struct module`, by the kernel's
types, when do_init_module() is given it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs

from allocator.types import MemType
from emulator.faults import BadCall
from kernels.booted.guest import Guest
from loader.btf import BadBtf, Btf
from loader.btf_records import Kind

_FORCE, _NONBLOCK = 0o1000, 0o4000  # O_TRUNC, O_NONBLOCK of delete_module(2)
_SHDR, _ADDRESS = 64, 16  # bytes of Elf64_Shdr, and sh_addr in it
_SHNUM = 60  # e_shnum in Elf64_Ehdr
_USER_PAGE = 0x1_0000
# Called for each table of relocations; once with the last applied, and nothing else done; before init.
_RELOCATE, _RELOCATED, _INIT = "apply_relocate_add", "sort_extable", "do_init_module"
# struct module before 6.4: core and init areas, and what is inside of each, by sizes up to there.
_AREAS = ("core_layout", "init_layout")
_AREA_ENDS = ("text_size", "ro_size", "ro_after_init_size", "size")
_AREA_TYPES = (
    (MemType.TEXT, MemType.RODATA, MemType.RO_AFTER_INIT, MemType.DATA),
    (MemType.INIT_TEXT, MemType.INIT_RODATA, MemType.INIT_RODATA, MemType.INIT_DATA),
)


@attrs.frozen
class Region:
    """Memory of a module: `size` bytes at an address."""

    address: int
    size: int


@attrs.frozen(kw_only=True)
class Inserted:
    """What became of a module.

    Parameters
    ----------
    result
        0, or the errno of init_module(2), negative.
    addresses
        Section index -> where the kernel placed it; empty where it came to no relocation.
    module
        Where its `struct module` was when its init was about to run; 0 where it did not come
        to that.
    regions
        Memory type -> what it took before its init ran; empty where types do not say it.
    """

    result: int
    addresses: Mapping[int, int]
    module: int = 0
    regions: Mapping[MemType, Region] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Loading:
    """What was seen of a load under way.

    Parameters
    ----------
    image
        The file's bytes.
    headers
        The section headers as the kernel has rewritten them (Elf64_Shdr); empty before relocation.
    symbols
        Which section is the symbol table, whose values the kernel has filled in.
    inside
        The load in whose init this one came, where one asked for it there.
    addresses, module, regions
        As in `Inserted`.
    """

    image: bytes = attrs.field(repr=False)
    inside: Loading | None = None
    headers: bytes = attrs.field(default=b"", repr=False)
    symbols: int = 0
    addresses: dict[int, int] = attrs.field(factory=dict)
    module: int = 0
    regions: dict[MemType, Region] = attrs.field(factory=dict)
    relocated: bool = False


class Modules:
    """The modules of a kernel.

    Parameters
    ----------
    guest
        The kernel.
    types
        Returns its types, or None.

    `on_relocated` is called with a load when relocations are applied and nothing else was done,
    `before_init` when everything is done but its init.
    `last` is where the sections of the last load are, or were.
    """

    def __init__(self, guest: Guest, types: Callable[[], Btf | None]) -> None:
        self._guest = guest
        self._types = types
        self._loads: list[Loading] = []
        self.last: Mapping[int, int] = {}
        self.on_relocated: Callable[[Loading], None] | None = None
        self.before_init: Callable[[Loading], None] | None = None
        self._arguments = guest.arch.runs.calling.arguments
        for name, handler in (
            (_RELOCATE, self._relocating),
            (_RELOCATED, self._relocated),
            (_INIT, self._starting),
        ):
            if name in guest.symbols:
                guest.board.break_at(guest.symbols[name], handler)

    @property
    def loading(self) -> Sequence[Loading]:
        """The loads under way, one inside the other."""
        return tuple(self._loads)

    def insert(self, image: bytes, parameters: str = "") -> Inserted:
        """Give a module to init_module(2), as insmod does.

        Parameters
        ----------
        image
            The file's bytes, unpacked.
        parameters
            `name=value` and so on, with blanks between.

        Raises
        ------
        Ended
            It did not come back: an oops, a panic, a limit.
        BadCall
            The kernel takes no modules.
        """
        guest = self._guest
        if _RELOCATE not in guest.symbols:
            raise BadCall("load", "the kernel is built without CONFIG_MODULES")
        load = Loading(image, self._loads[-1] if self._loads else None)
        self._loads.append(load)
        try:
            with self._user(image, parameters.encode()) as (file, words):
                result = guest.system_call("init_module", file, len(image), words)
        finally:
            self.last = load.addresses
            self._loads.remove(load)
        return Inserted(
            result=result,
            addresses=load.addresses,
            module=load.module,
            regions=load.regions,
        )

    def remove(self, name: str, *, force: bool = False) -> int:
        """Give a module's name to delete_module(2); 0, or the errno, negative."""
        flags = _NONBLOCK | (_FORCE if force else 0)
        with self._user(name.encode()) as (words,):
            return self._guest.system_call("delete_module", words, flags)

    @contextmanager
    def _user(self, *contents: bytes) -> Iterator[list[int]]:
        """Give user memory that holds bytes, each with a NUL behind, for a while."""
        guest, places, size = self._guest, [], 0
        for data in contents:
            places.append(size)
            size += len(data) + 8 & -8
        size += -size % _USER_PAGE
        user = guest.user(size)
        try:
            for at, data in zip(places, contents, strict=True):
                guest.board.write(user + at, data)
            yield [user + at for at in places]
        finally:
            if not guest.board.broken:
                guest.free_user(user, size)

    # What is seen of a load ---------------------------------------------------------------------

    def _relocating(self) -> None:
        """Note the section headers, as apply_relocate_add() is given them."""
        if not self._loads or self._loads[-1].headers:
            return
        load, board = self._loads[-1], self._guest.board
        count = int.from_bytes(load.image[_SHNUM : _SHNUM + 2], "little")
        load.headers = board.read(board.get(self._arguments[0]), count * _SHDR)
        load.symbols = board.get(self._arguments[2]) & 0xFFFF_FFFF
        for index in range(count):
            at = index * _SHDR + _ADDRESS
            address = int.from_bytes(load.headers[at : at + 8], "little")
            if address:
                load.addresses[index] = address

    def _relocated(self) -> None:
        """Tell that all tables are applied: the exceptions' table is about to be sorted."""
        if not self._loads or not self._loads[-1].headers or self._loads[-1].relocated:
            return
        self._loads[-1].relocated = True
        if self.on_relocated is not None:
            self.on_relocated(self._loads[-1])

    def _starting(self) -> None:
        """Note struct module, as do_init_module() is given it."""
        if not self._loads or self._loads[-1].module:
            return
        load = self._loads[-1]
        load.module = self._guest.board.get(self._arguments[0])
        load.regions = dict(self.regions(load.module))
        if self.before_init is not None:
            self.before_init(load)

    def regions(self, module: int) -> Iterator[tuple[MemType, Region]]:
        """Yield what a `struct module` has of memory, by the kernel's types."""
        types = self._types()
        outer = None if types is None else types.find("module", Kind.STRUCT)
        if types is None or outer is None:
            return
        word = self._guest.word

        def value(path: str) -> int | None:
            place = types.place(outer.number, path)
            if place is None:
                return None
            return word(module + place.bytes, min(types.size_of(place.type), 8))

        try:
            for kind in MemType:
                base, size = value(f"mem[{kind.value}].base"), value(f"mem[{kind.value}].size")
                if base and size:
                    yield kind, Region(base, size)
            for area, kinds in zip(_AREAS, _AREA_TYPES, strict=True):
                base = value(f"{area}.base")
                if not base:
                    continue
                start = 0
                for member, kind in zip(_AREA_ENDS, kinds, strict=True):
                    end = value(f"{area}.{member}") or start
                    if end > start:
                        yield kind, Region(base + start, end - start)
                    start = max(start, end)
        except BadBtf:
            return
