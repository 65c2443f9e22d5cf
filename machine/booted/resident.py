# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that a kernel had loaded before anybody looked: what its memory says of them.

Where they lie and what their symbols are the kernel keeps itself (`struct module`, kallsyms), and
their types, too (`btf_modules`). Their files are not needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from allocator.types import MemType
from archs.layouts import NotKnown
from emulator.faults import BadCall
from kernels.booted.kernel import BootedKernel
from kernels.booted.modules import Inserted, Region
from loader.btf import BadBtf, Btf
from loader.loaded import LoadedSection, State
from machine.booted.module import BootedModule, LoadReport
from machine.booted.remade import Row, file_of

_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
_MOST, _SYMBOLS, _SECTIONS = 10_000, 1 << 20, 4096
_NAME, _TYPES = 256, 1 << 26  # bytes
_LIVE = "MODULE_STATE_LIVE"


class ResidentModule(BootedModule):
    """A module that was there.

    Parameters
    ----------
    machine
        Whose.
    name
        Its name.
    inserted
        Where it is.
    """

    def __init__(self, machine: Any, name: str, inserted: Inserted) -> None:
        self._holder = machine
        self.inserted, self.name = inserted, name
        sections = self._placed(inserted.regions)
        report = LoadReport(
            name=name,
            arch=machine.arch.name,
            kernel=machine.kernel.release,
            regions=inserted.regions,
            sections=dict(enumerate(sections, 1)),
            relocations={},
            init_result=0,
            log=(),
        )
        view = file_of(name, machine.arch, sections, self._table())
        super().__init__(machine, view, name, inserted, report)

    def types_over(self, kernel: Btf | None, release: str) -> Btf | None:
        """Return its types, as the kernel has them in memory; None: there are none."""
        del release
        if kernel is None:
            return None
        try:
            found = _types_of(self._holder, self.inserted.module)
            return None if found is None else Btf.parse(found, base=kernel, name=self.name)
        except (BadCall, BadBtf):
            return None

    def _table(self) -> list[Row]:
        """Return its symbols, as the kernel keeps them."""
        machine, word = self._holder, self._word
        try:
            outer, inner = (
                machine.own_types.find("struct module"),
                machine.own_types.find("struct mod_kallsyms"),
            )
            at = word(self.inserted.module + outer["kallsyms"].offset)
            table, strings = (word(at + inner[name].offset) for name in ("symtab", "strtab"))
            field = inner["num_symtab"]
            count = min(word(at + field.offset, field.type.size), _SYMBOLS)
            rows = machine.read(table, count * _SYMBOL.size)
            found = []
            for name, info, _, section, value, size in _SYMBOL.iter_unpack(rows):
                text = self._string(strings + name) if name and section else ""
                if text:
                    found.append((text, info, value, size))
        except BadCall:
            return []
        return found

    def _word(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self._holder.read(address, size), "little")

    def _string(self, address: int) -> str:
        data = b""
        while len(data) < _NAME and b"\0" not in data:
            size = 64 - (address + len(data)) % 64
            data += self._holder.read(address + len(data), size)
        return data.partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def _placed(self, regions: Mapping[MemType, Region]) -> list[LoadedSection]:
        """Return its sections, as /sys/module/NAME/sections has them; without those its memory.

        The kernel notes where they begin; each is as long as the next one, or its memory, is away.
        """
        try:
            begins = sorted(self._sections(), key=lambda pair: pair[1])
        except BadCall:
            begins = []
        found = []
        for number, (name, address) in enumerate(begins):
            for kind, region in regions.items():
                end = region.address + region.size
                if region.address <= address < end:
                    after = next((at for _, at in begins[number + 1 :] if at > address), end)
                    found.append(LoadedSection(name, kind, address, min(after, end) - address))
        return found or [
            LoadedSection(f".{kind.name.lower()}", kind, region.address, region.size)
            for kind, region in regions.items()
        ]

    def _sections(self) -> Iterator[tuple[str, int]]:
        machine, word = self._holder, self._word
        outer = machine.own_types.find("struct module")
        at = word(self.inserted.module + outer["sect_attrs"].offset)
        attributes = machine.own_types.find("struct module_sect_attrs")
        file = machine.own_types.find("struct bin_attribute")
        field = attributes["attrs"]
        if "nsections" in attributes.members:
            each = machine.own_types.find("struct module_sect_attr")
            count = word(at + attributes["nsections"].offset, 4)
            name_at, place_at = each["battr.attr.name"].offset, each["address"].offset
        else:  # since 6.14: the files themselves, up to the first without a name
            each, count = file, _SECTIONS
            name_at, place_at = each["attr.name"].offset, each["private"].offset
        for number in range(min(count, _SECTIONS)):
            start = at + field.offset + number * each.size
            name = word(start + name_at)
            if not name:
                return
            yield self._string(name), word(start + place_at)

    @property
    def depends(self) -> tuple[str, ...]:
        """The modules that it uses, as the kernel has noted them."""
        try:
            return self.holding.depends
        except NotKnown:
            return ()


def resident_modules(machine: Any) -> Iterator[ResidentModule]:
    """Yield the modules of a kernel, in the order of its list: last loaded first.

    None where its symbols or types do not say where that is.
    """
    kernel: BootedKernel = machine.kernel
    head = kernel.symbols.get("modules")
    if head is None or kernel.standing.types is None:
        return
    try:
        kind = machine.own_types.find("struct module")
        live = kind["state"].type.constant(_LIVE)
        name, link, state = (kind[each] for each in ("name", "list", "state"))
        at = _next(machine, head)
        for _ in range(_MOST):
            if at in (head, 0):
                return
            module = at - link.offset
            text = machine.read(module + name.offset, name.type.size).partition(b"\0")[0]
            inserted = Inserted(
                result=0, addresses={}, module=module, regions=dict(kernel.modules.regions(module))
            )
            found = ResidentModule(machine, text.decode("utf-8", "backslashreplace"), inserted)
            value = int.from_bytes(machine.read(module + state.offset, state.type.size), "little")
            found.state = State.LIVE if value == live else State.COMING
            yield found
            at = _next(machine, at)
    except BadCall:  # the dump lacks the rest of the list
        return


def _next(machine: Any, at: int) -> int:
    return int.from_bytes(machine.read(at, 8), "little")


def _types_of(machine: Any, module: int) -> bytes | None:
    """Return the types that the kernel has noted of a module (kernel/bpf/btf.c)."""
    head = machine.kernel.symbols.get("btf_modules")
    if head is None:
        return None
    outer, inner = machine.own_types.find("struct btf_module"), machine.own_types.find("struct btf")
    at = _next(machine, head)
    for _ in range(_MOST):
        if at in (head, 0):
            return None
        start = at - outer["list"].offset
        if _next(machine, start + outer["module"].offset) == module:
            types = _next(machine, start + outer["btf"].offset)
            size = int.from_bytes(machine.read(types + inner["data_size"].offset, 4), "little")
            if size > _TYPES:
                return None
            found: bytes = machine.read(_next(machine, types + inner["data"].offset), size)
            return found
        at = _next(machine, at)
    return None
