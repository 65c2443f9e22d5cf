# SPDX-License-Identifier: GPL-2.0-or-later
"""What a case is about: objects linked at their addresses, to be asked and executed.

Several objects may see each other's global symbols, as modules see each other's exports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import attrs

from archs import Arch, Checks
from execmem.check import operands
from execmem.check.outcome import Unanswerable
from loader.elf import parse
from loader.elfview import SHN_ABS, ElfView, Section
from loader.layout import Layout, plan, with_stub_sections
from loader.link import link_view
from loader.linked import Linked

__all__ = ("Object", "Planned", "Subject", "Unanswerable", "exports")
STB_LOCAL = 0
_INSTRUCTIONS = 16  # bytes that any instruction, or pair of them, fits in


@attrs.frozen(eq=False)
class Planned:
    """An object before it has addresses: its name in questions, and what it needs."""

    name: str
    image: bytes
    view: ElfView
    layout: Layout

    @classmethod
    def of(
        cls, name: str, image: bytes, *, errata: Sequence[str] = (), stubs: bool = True
    ) -> Planned:
        """Parse an object and plan it, with the PLT and GOT sections of its architecture or as it is.

        LoadError where it is no relocatable object.
        """
        view = parse(image, name)
        if stubs:
            view = with_stub_sections(view)
        return cls(name, image, view, plan(view, errata=errata))

    @property
    def own_sections(self) -> Sequence[Section]:
        """The sections that the file has, without those that the loader adds."""
        count = int.from_bytes(self.image[60:62], self.view.dialect.order)
        return self.view.sections[:count]

    def own(self, addresses: Mapping[int, int]) -> dict[int, int]:
        """Return the addresses of the sections that the file has."""
        count = len(self.own_sections)
        return {index: at for index, at in addresses.items() if index < count}


@attrs.frozen(eq=False)
class Object:
    """A linked object: where its sections lie, and what the link made of them."""

    planned: Planned
    addresses: Mapping[int, int]
    linked: Linked

    @cached_property
    def symbols(self) -> Mapping[str, int]:
        """Addresses of what it defines, by name; a local name that is there twice is left out."""
        view, values = self.planned.view, self.linked.symbols
        found: dict[str, int] = {}
        twice: set[str] = set()
        for index in range(1, len(view.symbols)):
            where = int(view.symbols["shndx"][index])
            if where != SHN_ABS and where not in self.addresses:
                continue
            name = view.own_name(index) or view.symbol_name(index)
            local = int(view.symbols["info"][index]) >> 4 == STB_LOCAL
            if name in found and local:
                twice.add(name)
                continue
            found[name] = int(values[index])
        return {name: value for name, value in found.items() if name and name not in twice}

    def section(self, name: str) -> int | None:
        """Return the address of a section."""
        found = self.planned.view.section(name)
        return None if found is None else self.addresses.get(found.index)

    def stubs(self) -> Mapping[int, int]:
        """Return the addresses of PLT entries, by where they lead."""
        arch, stubs = self.planned.view.arch, self.linked.stubs
        template = arch.plt
        if template is None:
            return {}
        goals: dict[int, int] = {int(value): int(value) for value in self.linked.symbols}
        if stubs.targets is not None:
            base, word = self.addresses[stubs.targets.section], self.planned.view.dialect.word
            held = bytes(stubs.targets.image)
            goals = {
                base + at: int.from_bytes(held[at : at + word], self.planned.view.dialect.order)
                for at in range(0, len(held), word)
            }
        found: dict[int, int] = {}
        for use in stubs.plt.values():
            for entry in range(use.used):
                at = self.addresses[use.section] + entry * template.size
                code = bytes(use.image[entry * template.size : (entry + 1) * template.size])
                for leads, target in goals.items():
                    if template.leads(at, leads) and template.encode(at, leads) == code:
                        found.setdefault(target, at)
        return found

    def slots(self) -> Mapping[int, int]:
        """Return the addresses of slots that hold addresses, by what they hold.

        Those of the global offset table come before those that PLT entries load from.
        """
        dialect = self.planned.view.dialect
        found: dict[int, int] = {}
        for use in filter(None, (self.linked.stubs.got, self.linked.stubs.targets)):
            base, held = self.addresses[use.section], bytes(use.image)
            for at in range(0, len(held), dialect.word):
                value = int.from_bytes(held[at : at + dialect.word], dialect.order)
                found.setdefault(value, base + at)
        return found

    def where(self, address: int) -> str | None:
        """Return section and function of an address; None outside."""
        view = self.planned.view
        for index, start in self.addresses.items():
            section = view.sections[index]
            if not start <= address < start + max(self.planned.layout.size_of(section), 1):
                continue
            text = f"{section.name}+{address - start:#x}"
            below = [(at, name) for name, at in self.symbols.items() if start <= at <= address]
            if below:
                at, name = max(below)
                text += f", {name}" + (f"+{address - at:#x}" if address > at else "")
            return text
        return None


@attrs.frozen(eq=False)
class Subject:
    """Objects of one architecture, linked.

    Parameters
    ----------
    objects
        In the order they were given.
    given
        Values of the symbols that none of them defines.
    """

    arch: Arch
    objects: tuple[Object, ...]
    given: Mapping[str, int]

    @classmethod
    def of(
        cls,
        planned: Sequence[Planned],
        addresses: Sequence[Mapping[int, int]],
        given: Mapping[str, int],
        *,
        checks: Checks = Checks.HARDWARE,
        errata: Sequence[str] = (),
    ) -> Subject:
        """Link objects at addresses (section index -> address, for each).

        LoadError with everything that fails in the first object that does.
        """
        known = {**exports(planned, addresses), **given}
        objects = []
        for one, where in zip(planned, addresses, strict=True):
            missing = [name for name in one.view.undefined if name not in known]
            missing = [name for name in missing if name not in one.view.weak_undefined]
            if missing:
                names = ", ".join(missing)
                raise Unanswerable(f"{one.name} needs a value for {names}")
            linked = link_view(one.view, one.layout, where, known, checks=checks, errata=errata)
            objects.append(Object(one, where, linked))
        return cls(planned[0].view.arch, tuple(objects), given)

    def symbol(self, name: str) -> int:
        """Return the address of a symbol; Unanswerable where there is none."""
        for one in self.objects:
            if name in one.symbols:
                return one.symbols[name]
        if name in self.given:
            return self.given[name]
        for one in self.objects:
            for index, other in enumerate(one.planned.view.names):
                if other == name and index in one.addresses:
                    return one.addresses[index]
            if name == "_GLOBAL_OFFSET_TABLE_" and self.arch.got_section:
                found = one.section(self.arch.got_section)
                if found is not None:
                    return found
        raise Unanswerable(f"there is no symbol {name}")

    def read(self, address: int, size: int) -> bytes:
        """Return linked bytes; Unanswerable outside every section."""
        for one in self.objects:
            for index, start in one.addresses.items():
                held = one.linked.sections.get(index)
                length = one.planned.layout.size_of(one.planned.view.sections[index])
                if start <= address and address + size <= start + length:
                    if held is None:
                        return bytes(size)
                    return bytes(held[address - start : address - start + size])
        raise Unanswerable(f"{size} bytes at {address:#x} are in no section")

    def code(self, address: int) -> bytes:
        """Return the bytes of an instruction at an address, and some behind it.

        Unanswerable outside every section.
        """
        for one in self.objects:
            for index, start in one.addresses.items():
                held = one.linked.sections.get(index)
                if held is not None and start <= address < start + len(held):
                    return bytes(held[address - start : address - start + _INSTRUCTIONS])
        raise Unanswerable(f"no code lies at {address:#x}")

    @property
    def order(self) -> Literal["little", "big"]:
        """The order of bytes in numbers."""
        return self.arch.link.dialect.order

    def where(self, address: int) -> str:
        """Return object, section and function of an address; empty outside."""
        for one in self.objects:
            text = one.where(address)
            if text is not None:
                return text if len(self.objects) == 1 else f"{one.planned.name} {text}"
        return ""

    def only(self) -> str:
        """Return the name of the object, where there is one; else Unanswerable."""
        if len(self.objects) != 1:
            names = ", ".join(one.planned.name for one in self.objects)
            raise Unanswerable(f"there are several objects ({names}): say which")
        return self.objects[0].planned.name

    def operand(self, address: int, number: int) -> int:
        """Return an operand of the instruction at an address, by LLVM's count, as 64 bits."""
        return operands.operand(self.arch, self.code(address), address, number)

    def next_pc(self, address: int) -> int:
        """Return the address behind the instruction at an address."""
        return address + operands.decode(self.arch, self.code(address), address).size

    def target(self, address: int) -> int:
        """Return where the branch at an address leads."""
        return operands.target(self.arch, self.code(address), address)

    def object(self, name: str) -> Object:
        """Return an object by the name of its file; Unanswerable where there is none."""
        for one in self.objects:
            if one.planned.name == name:
                return one
        names = ", ".join(one.planned.name for one in self.objects)
        raise Unanswerable(f"there is no object {name} (there is {names})")

    @property
    def _made_up(self) -> Mapping[str, str]:
        """Names that JITLink has for the sections that it adds, and what they are in modules."""
        plt, got = self.arch.plt, self.arch.got_section
        added = {"$__STUBS": plt.section if plt is not None else None, "$__GOT": got}
        return {name: section for name, section in added.items() if section is not None}

    def section(self, name: str, section: str) -> int:
        """Return the address of an object's section; Unanswerable where there is none."""
        found = self.object(name).section(self._made_up.get(section, section))
        if found is None:
            raise Unanswerable(f"{name} has no section {section}")
        return found

    def stub(self, name: str, symbol: str) -> int:
        """Return the address of an object's PLT entry for a symbol; Unanswerable: there is none."""
        if self.arch.plt is None:
            raise Unanswerable(f"modules of {self.arch.title} have no PLT", foreign=True)
        found = self.object(name).stubs().get(self.symbol(symbol))
        if found is None:
            raise Unanswerable(f"{name} has no PLT entry for {symbol}")
        return found

    def got(self, name: str, symbol: str) -> int:
        """Return the address of an object's GOT slot for a symbol; Unanswerable: there is none."""
        found = self.object(name).slots().get(self.symbol(symbol))
        if found is None:
            raise Unanswerable(f"{name} has no GOT slot for {symbol}")
        return found


def exports(
    planned: Sequence[Planned], addresses: Sequence[Mapping[int, int]]
) -> Mapping[str, int]:
    """Return the addresses of the global symbols that objects define for each other."""
    found: dict[str, int] = {}
    for one, where in zip(planned, addresses, strict=True):
        view = one.view
        for name, index in view.global_symbols.items():
            section = int(view.symbols["shndx"][index])
            value = int(view.symbols["value"][index])
            if section == SHN_ABS:
                found.setdefault(name, value)
            elif section in where:
                found.setdefault(name, where[section] + value)
    return found
