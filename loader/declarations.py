# SPDX-License-Identifier: GPL-2.0-or-later
"""Structures with offsets, and functions with prototypes, as lists: what types say, for people.

The lines of a structure have the form that pahole made usual: member, offset and size in bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import translate

import attrs

from loader.btf import Btf
from loader.btf_records import Kind, Member, Type

STRUCTURES = (Kind.STRUCT, Kind.UNION)
NAMED = (Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.TYPEDEF)
DEPTH = 32  # unnamed structures in each other


@attrs.frozen(kw_only=True)
class Line:
    """A line of a structure.

    Parameters
    ----------
    depth
        How many unnamed structures it lies in.
    text
        The member as C declares it; of an unnamed structure its first or last line.
    offset, size
        In bytes; None for a line that has none.
    bits, shift
        Width of a bit field and its first bit in the byte at `offset`; 0: it is none.
    hole
        Bytes between the end of the member before and this one.
    """

    depth: int
    text: str
    offset: int | None = None
    size: int | None = None
    bits: int = 0
    shift: int = 0
    hole: int = 0


@attrs.frozen(kw_only=True)
class Declared:
    """A function that types know: its name and prototype in C."""

    name: str
    prototype: str


def lines(btf: Btf, number: int, *, pointer: int = 8) -> Iterator[Line]:
    """Yield the lines of a structure, union or enumeration, without its first and last.

    BadBtf where it is damaged.
    """
    found = btf.resolved(number)
    if found.kind in (Kind.ENUM, Kind.ENUM64):
        for constant in found.values:
            yield Line(depth=0, text=f"{constant.name} = {constant.value},")
        return
    yield from _members(btf, found, 0, 0, pointer)


def _members(btf: Btf, outer: Type, start: int, depth: int, pointer: int) -> Iterator[Line]:
    end = start
    for member in outer.members if depth < DEPTH else ():
        offset, shift = start + member.offset // 8, member.offset % 8 if member.bits else 0
        size = btf.size_of(member.type, pointer=pointer)
        hole = max(offset - end, 0) if outer.kind is Kind.STRUCT else 0
        inner = btf.type(member.type)
        if not member.name and inner.kind in STRUCTURES and not inner.name:
            yield Line(depth=depth, text=f"{inner.kind.name.lower()} {{", hole=hole)
            yield from _members(btf, inner, offset, depth + 1, pointer)
            yield Line(depth=depth, text="};", offset=offset, size=size)
        else:
            bits = f": {member.bits}" if member.bits else ""
            yield Line(
                depth=depth,
                text=f"{_declared(btf, member)}{bits};",
                offset=offset,
                size=size,
                bits=member.bits,
                shift=shift,
                hole=hole,
            )
        end = offset + ((shift + member.bits + 7) // 8 if member.bits else size)


def _declared(btf: Btf, member: Member) -> str:
    return " ".join(btf.c_type(member.type, member.name).split())


def is_glob(text: str) -> bool:
    """Return whether a text is a shell pattern, and not a name."""
    return bool(set("*?[") & set(text))


def matcher(glob: str) -> Callable[[str], object]:
    """Return what tells whether a shell pattern matches a name."""
    return re.compile(translate(glob)).match


def names(btf: Btf, glob: str, *kinds: Kind) -> Iterator[tuple[str, Type]]:
    """Yield the types of a blob's own whose name a shell pattern matches, by name."""
    fits = matcher(glob)
    for name, number in sorted(btf.named(*(kinds or NAMED)).items()):
        if fits(name):
            yield name, btf.type(number)


def functions(btf: Btf, glob: str = "*") -> Iterator[Declared]:
    """Yield a blob's own functions whose name a shell pattern matches, by name."""
    for name, found in names(btf, glob, Kind.FUNC):
        yield Declared(name=name, prototype=btf.c_type(found.target, name))
