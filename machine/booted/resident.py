# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that a kernel had loaded before anybody looked: what its memory says of them.

Where they lie and what their symbols are the kernel keeps itself (`struct module`, kallsyms), and
their types, too (`btf_modules`). Their files are not needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, cast

from archs.layouts import NotKnown
from emulator.faults import BadCall
from kernels.booted.kernel import BootedKernel
from kernels.booted.modules import Inserted
from loader.btf import BadBtf, Btf
from loader.elfview import STT_FUNC, STT_OBJECT, ElfView
from loader.loaded import LoadedSection, State
from machine.booted.module import BootedModule, LoadReport

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
        report = LoadReport(
            name=name,
            arch=machine.arch.name,
            kernel=machine.kernel.release,
            regions=inserted.regions,
            sections={},
            relocations={},
            init_result=0,
            log=(),
        )
        super().__init__(machine, cast("ElfView", None), name, inserted, report)
        self._holder = machine

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

    @property
    def placed(self) -> None:
        """Its file, which nobody knows."""
        return None

    @cached_property
    def _table(self) -> list[tuple[str, int, int, int]]:
        """Symbols: name, kind, address, size."""
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

    @cached_property
    def symbols(self) -> Mapping[str, int]:
        """Functions, objects and global symbols by name -> address; globals win over locals."""
        found: dict[str, int] = {}
        for name, info, address, _ in self._table:
            wanted = info & 0xF in (STT_FUNC, STT_OBJECT) or info >> 4
            if wanted and (name not in found or info >> 4):
                found[name] = address
        return found

    @cached_property
    def spans(self) -> list[tuple[int, int, str]]:
        """Address, size and name of every function, in ascending order."""
        rows = (row for row in self._table if row[1] & 0xF == STT_FUNC)
        return sorted((address, size, name) for name, _, address, size in rows)

    @cached_property
    def sections(self) -> Mapping[int, LoadedSection]:
        """Number -> name, memory type, address, size, as /sys/module/NAME/sections has them.

        The kernel notes where they begin; each is as long as the next one, or its memory, is away.
        """
        try:
            begins = sorted(self._sections(), key=lambda pair: pair[1])
        except BadCall:
            return {}
        found = {}
        for number, (name, address) in enumerate(begins):
            for kind, region in self.report.regions.items():
                end = region.address + region.size
                if region.address <= address < end:
                    after = next((at for _, at in begins[number + 1 :] if at > address), end)
                    size = min(after, end) - address
                    found[number] = LoadedSection(name, kind, address, size)
        return found

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
