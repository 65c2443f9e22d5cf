# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies at an address: modules, symbols, instructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from allocator import KernelMemory
from allocator.types import ADDRESS_MASK
from emulator.disassembly import Disassembler
from loader.loaded import LoadedModule
from machine.sources import Placed, Sources

KSYM_NAME_LEN = 512  # what kallsyms shows of a name, with its NUL
LONGEST = 16  # bytes of an instruction, and no less


def _nothing(_address: int) -> str | None:
    return None


@attrs.define(eq=False)
class Places:
    """Names what lies in guest memory.

    Parameters
    ----------
    memory
        The memory.
    modules
        By name; those that are being loaded too.
    disassembler
        Of the machine's architecture.
    name_at
        Returns the kernel symbol at or around an address, or None.
    """

    memory: KernelMemory
    modules: Mapping[str, LoadedModule]
    disassembler: Disassembler
    name_at: Callable[[int], str | None] = _nothing
    _sources: Sources = attrs.field(init=False, factory=lambda: Sources(lambda _name: None))

    def symbolize(self, address: int) -> str | None:
        """Return `name+0xoff/0xsize [module]` of a function, a kernel symbol's name, or None."""
        for loaded in self.modules.values():
            if loaded.region_at(address) is not None:
                found = loaded.symbol_at(address)
                if found is None:
                    return None
                title = found[0][: KSYM_NAME_LEN - 1]
                return f"{title}+{found[1]:#x}/{found[2]:#x} [{loaded.name}]"
        return self.name_at(address)

    def locate(self, address: int) -> tuple[str, str]:
        """Return the module that `address` lies in and the symbol that it is; empty for none."""
        for loaded in self.modules.values():
            if loaded.region_at(address) is not None:
                return loaded.name, loaded.names.get(address, "")
        return "", ""

    def module_at(self, address: int) -> LoadedModule | None:
        """Return the module that an address lies in."""
        return self.modules.get(self.locate(address)[0])

    def where(self, address: int) -> str:
        """Return what lies at an address, for messages."""
        for loaded in self.modules.values():
            found = loaded.symbol_at(address) if loaded.region_at(address) else None
            if found is not None:
                return f"{found[0]}+{found[1]:#x} [{loaded.name}]"
        return self.name_at(address) or f"{address:#x}"

    def sources(self, address: int) -> tuple[str, ...]:
        """Return the line of source of an address, alone; nothing where none is known."""
        loaded = self.module_at(address)
        if loaded is None:
            return ()
        addresses = {index: section.address for index, section in loaded.sections.items()}
        found = self._sources.at(loaded.name, Placed(loaded.view, addresses), address)
        return (found,) if found else ()

    def code(self, address: int, size: int) -> bytes:
        """Return up to `size` bytes at an address: as many as are mapped."""
        code = b""
        for span in self.memory.page_table.spans(address, min(size, ADDRESS_MASK - address)):
            if span.pa is None:
                break
            code += self.memory.physical.read(span.pa, span.size)
        return code

    def disassemble(self, address: int) -> str:
        """Return the instruction at `address` as text; empty where nothing is mapped."""
        code = self.code(address, LONGEST)
        return self.disassembler.one(code, address) if code else ""

    def instruction_size(self, address: int) -> int:
        """Return the bytes of the instruction at `address`; 0 where there is none."""
        page = self.memory.page_size
        code = self.memory.read(address, min(LONGEST, page - address % page))
        if len(code) < LONGEST and self.memory.translate(address + len(code)) is not None:
            code += self.memory.read(address + len(code), LONGEST - len(code))
        return next((size for _, size, _ in self.disassembler.all(code, address)), 0)
