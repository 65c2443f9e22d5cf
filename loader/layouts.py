# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of the structures of a kernel that was given: its BTF, and that of its modules.

A module's `.BTF` goes on where the kernel's ends, and has what the kernel's lacks: structures
that only a subsystem in modules knows (`usb_driver`). Each module brings a copy of what it uses of
others', so a name may be there several times: where the copies differ, nobody guesses which is
meant. A module that was built apart from its kernel's tree brings the part of the kernel's types that
it uses, by name (`.BTF.base`, since Linux 6.11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from archs.layouts import As, Layouts, Member, NotKnown, Unknown
from archs.versions import version_of
from loader.btf import BadBtf, Btf
from loader.btf_records import Kind, Type
from loader.elfview import ElfView
from loader.kernel.image import KernelImage

T = TypeVar("T")
TYPES, BASE = ".BTF", ".BTF.base"

_NUMBERS = (Kind.INT, Kind.ENUM, Kind.ENUM64)
_TAGGED = (Kind.STRUCT, Kind.UNION)


class BtfLayouts(Layouts):
    """What types say of structures.

    Parameters
    ----------
    release
        Of the kernel.
    types
        The kernel's, and any that count as its own, asked one after the other.
    """

    hint = "its types have none"

    def __init__(self, release: str, *types: Btf) -> None:
        super().__init__()
        self._release = release
        self._types = types
        self._modules: dict[str, Btf] = {}

    @property
    def release(self) -> str:
        """Of the kernel whose types they are."""
        return self._release

    def add(self, module: str, types: Btf) -> None:
        """Ask a module's types, too, for what the kernel's lack."""
        self._modules[module] = types
        self.forget()

    def remove(self, module: str) -> None:
        """Ask a module's types no longer; nothing where they were not asked."""
        if self._modules.pop(module, None) is not None:
            self.forget()

    def find_size(self, structure: str) -> int | None:
        """Return the bytes of a type of that name; NotKnown where modules differ about it."""
        return self._agreed(structure, structure, lambda _btf, outer: outer.size)

    def find(self, structure: str, path: str) -> Member | None:
        """Return a member of a type of that name; NotKnown where modules differ about it."""

        def placed(btf: Btf, outer: Type) -> Member | None:
            return self._member(btf, outer, structure, path)

        return self._agreed(structure, f"{structure}.{path}", placed)

    def _agreed(self, structure: str, what: str, ask: Callable[[Btf, Type], T | None]) -> T | None:
        """Return what the kernel's types say, or where they lack the structure, all modules'."""
        for btf in self._types:
            if (outer := _structure(btf, structure)) is not None:
                return ask(btf, outer)
        told: dict[str, T | None] = {}
        for module, btf in self._modules.items():
            # The base's is asked above; a base that the module brought has no members.
            if (outer := _structure(btf, structure)) is not None and outer.number in btf.numbers:
                told[module] = ask(btf, outer)
        answers = list(told.values())
        if any(answer != answers[0] for answer in answers[1:]):
            other = next(module for module, answer in told.items() if answer != answers[0])
            reason = f"is not the same in {next(iter(told))} and {other}"
            raise NotKnown(what, self._release, "load one of them", reason)
        return answers[0] if answers else None

    def _member(self, btf: Btf, outer: Type, structure: str, path: str) -> Member | None:
        place = btf.place(outer.number, path)
        if place is None:
            return None
        inner = btf.resolved(place.type)
        whole = 8 * btf.size_of(place.type)
        number = inner.kind is Kind.INT and inner.bits != whole
        if place.bits or place.offset % 8 or number:
            raise NotKnown(f"{structure}.{path}", self._release, self.hint, "is a bit field")
        kind = _kind(btf, inner)
        tag = inner.name if kind is As.STRUCTURE else ""
        return Member(place.bytes, btf.size_of(place.type), kind, tag)


def _structure(btf: Btf, name: str) -> Type | None:
    """Return the first structure or union of a name, or one that has it by typedef."""
    for kinds in (Kind.STRUCT, Kind.UNION, Kind.TYPEDEF):
        found = btf.find(name, kinds)
        if found is not None:
            inner = btf.resolved(found.number)
            if inner.kind in _TAGGED:
                return inner
    return None


def types_of(view: ElfView, kernel: KernelImage) -> Btf | None:
    """Return the types that a module brings; see `types_over`."""
    return types_over(view, kernel.btf, kernel.release)


def types_over(view: ElfView, base: Btf | None, release: str | None) -> Btf | None:
    """Return the types that a module brings; None where it has none, or its kernel none.

    Parameters
    ----------
    base, release
        The kernel's types, and its release; None: they are not known.

    Raises
    ------
    BadBtf
        When they are damaged, or not those of a module of this kernel.
    """
    section = view.section(TYPES)
    if section is None or base is None:
        return None
    own = view.section(BASE)
    if own is not None:
        base = Btf.parse(bytes(view.contents(own)), name=f"{view.name} {BASE}")
    found = Btf.parse(bytes(view.contents(section)), base=base, name=f"{view.name} {TYPES}")
    built_for = view.modinfo.get("vermagic", "").partition(" ")[0]
    named = own is None and version_of(built_for) is not None and release is not None
    if named and built_for != release:
        raise BadBtf(found.name, "base", f"goes on from {built_for}, given is {release}")
    if not found.fits:
        raise BadBtf(found.name, "base", "goes on from types of another build")
    return found


def layouts_of(kernel: KernelImage) -> Layouts:
    """Return what a kernel's types say, which may be nothing; BadBtf where they are damaged."""
    release = kernel.release or kernel.name
    if kernel.btf is None:
        return Unknown(release, f"give {kernel.unknown['types']}")
    return BtfLayouts(release, kernel.btf)


def _kind(btf: Btf, found: Type) -> As:
    """Return what a member of a type is read as."""
    if found.kind is Kind.PTR:
        behind = btf.resolved(found.target)
        if behind.kind is Kind.FUNC_PROTO:
            return As.FUNCTION
        return As.STRING if behind.kind is Kind.INT and behind.name == "char" else As.POINTER
    if found.kind in _NUMBERS:
        signed = found.signed if found.kind is Kind.INT else found.flag
        return As.SIGNED if signed else As.UNSIGNED
    if found.kind in _TAGGED:
        return As.STRUCTURE
    if found.kind is Kind.ARRAY:
        element = btf.resolved(found.target)
        return As.CHARACTERS if element.kind is Kind.INT and element.size == 1 else As.OTHER
    return As.OTHER
