# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of the structures of a kernel that was given: its BTF, and that of its modules."""

from __future__ import annotations

from archs.layouts import As, Layouts, Member, NotKnown, Unknown
from loader.btf import Btf
from loader.btf_records import Kind, Type
from loader.kernel.image import KernelImage

_NUMBERS = (Kind.INT, Kind.ENUM, Kind.ENUM64)
_TAGGED = (Kind.STRUCT, Kind.UNION)


class BtfLayouts(Layouts):
    """What types say of structures.

    Parameters
    ----------
    release
        Of the kernel.
    types
        The kernel's, and those of modules, asked one after the other.
    """

    hint = "its types have none"

    def __init__(self, release: str, *types: Btf) -> None:
        super().__init__()
        self._release = release
        self._types = types

    @property
    def release(self) -> str:
        """Of the kernel whose types they are."""
        return self._release

    def find_size(self, structure: str) -> int | None:
        """Return the bytes of the first type of that name."""
        found = self._structure(structure)
        return None if found is None else found[1].size

    def find(self, structure: str, path: str) -> Member | None:
        """Return a member of the first type of that name."""
        found = self._structure(structure)
        if found is None:
            return None
        btf, outer = found
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

    def _structure(self, name: str) -> tuple[Btf, Type] | None:
        for btf in self._types:
            for kinds in (Kind.STRUCT, Kind.UNION, Kind.TYPEDEF):
                found = btf.find(name, kinds)
                if found is not None:
                    inner = btf.resolved(found.number)
                    if inner.kind in _TAGGED:
                        return btf, inner
        return None


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
