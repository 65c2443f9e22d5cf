# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the members of kernel structures lie (Linux 6.12, Debian's configuration).

A structure is declared as its header declares it, member after member, and laid out by C's
rules: every member at the next multiple of its own alignment. That is the same for all
architectures, CRYPTO_MINALIGN included: it is ARCH_KMALLOC_MINALIGN, 8 in all these kernels.
Members that nobody here reads are there because the ones behind them are, or are left out:
`@N` says that the next member is at byte N, or, at the end, that the structure has N bytes.
`...` at the end says that there is more that nobody reads; then nobody may ask for the size,
unless the architecture's record has it (`Arch.structure_sizes`).

    struct("miscdevice", "minor:i32 name:str fops:ptr ...")

Types: u8 .. u64, i8 .. i64, `ptr`, `fn` (a pointer to a function), `str` (a pointer to a
string), `list` (struct list_head), `char[N]`, and structures declared before. A dotted name is
that of a member of a member, which is declared as if it stood here.

Whoever has room for a structure without reading it says so by `room`. tests/kernels/modelled/test_btf.py
compares all of it with what kernels say of themselves.
"""

from __future__ import annotations

import functools
import re
import struct as struct_
from collections.abc import Mapping
from typing import TypeAlias

import attrs

from allocator.types import ADDRESS_MASK, align_up
from kernels.modelled.services import Words

POINTERS = frozenset({"ptr", "fn", "str"})
_SIZES = dict.fromkeys(POINTERS, 8) | {f"{s}{8 << n}": 1 << n for s in "ui" for n in range(4)}
_ARRAY = re.compile(r"(.+)\[(\d+)\]")
_DECLARED: dict[str, str] = {}
_ROOMS: dict[str, list[int]] = {}
Sizes: TypeAlias = tuple[tuple[str, int], ...]


@attrs.frozen
class StructMember:
    """One member: its type as declared, where it lies, and its bytes."""

    type: str
    offset: int
    size: int


@attrs.frozen
class StructLayout:
    """A structure; members of members by their dotted names; `end` is None if there is more."""

    name: str
    end: int | None
    align: int
    members: Mapping[str, StructMember]

    @property
    def size(self) -> int:
        """Its bytes."""
        if self.end is None:
            raise ValueError(f"struct {self.name} is declared in part only")
        return self.end


def struct(name: str, members: str) -> None:
    """Declare a structure."""
    if name in _DECLARED:
        raise ValueError(f"struct {name} is declared twice")
    _DECLARED[name] = members


def room(name: str, size: int) -> int:
    """Return `size`: bytes in which the structure `name` fits, whatever the architecture."""
    _ROOMS.setdefault(name, []).append(size)
    return size


def offset_of(name: str, member: str) -> int:
    """Return where a member of a declared structure lies."""
    return layout(name).members[member].offset


@functools.cache
def layout(name: str, sizes: Sizes = ()) -> StructLayout:
    """Return where the members of a declared structure lie.

    Parameters
    ----------
    name
        The structure.
    sizes
        Bytes of the structures whose size depends on the architecture (`Arch.structure_sizes`).
    """
    members: dict[str, StructMember] = {}
    end, most, whole = 0, 1, True
    for word in _DECLARED[name].split():
        if word == "...":
            whole = False
            continue
        if word[0] == "@":
            end = int(word[1:])
            continue
        title, _, kind = word.partition(":")
        size, align, inner = _type(kind, sizes)
        at = align_up(end, align)
        members[title] = StructMember(kind, at, size)
        members |= {
            f"{title}.{name}": attrs.evolve(m, offset=at + m.offset) for name, m in inner.items()
        }
        end, most = at + size, max(most, align)
    size_here = dict(sizes).get(name)
    if size_here is None and whole:
        size_here = align_up(end, most)
    return StructLayout(name, size_here, most, members)


def _type(kind: str, sizes: Sizes) -> tuple[int, int, Mapping[str, StructMember]]:
    """Return size, alignment and members of a type."""
    if kind == "list":
        return 16, 8, {}
    if found := _ARRAY.fullmatch(kind):
        size, align, _ = _type(found[1], sizes)
        return size * int(found[2]), align, {}
    if kind == "char":
        return 1, 1, {}
    if kind in _SIZES:
        return _SIZES[kind], _SIZES[kind], {}
    inner = layout(kind, sizes)
    return inner.size, inner.align, inner.members


def packed(name: str) -> struct_.Struct:
    """Return what packs and unpacks the members of a declared structure that are numbers."""
    code, end = "<", 0
    for member in layout(name).members.values():
        kind = "BHxIxxxQ"[member.size - 1]
        code += "x" * (member.offset - end) + (kind.lower() if member.type[0] == "i" else kind)
        end = member.offset + member.size
    return struct_.Struct(code + "x" * (layout(name).size - end))


# What most structures are made of: lists, and arrays of pointers.
struct("list_head", "next:ptr prev:ptr")
PREV = offset_of("list_head", "prev")
POINTER = _SIZES["u64"]


@attrs.frozen
class StructView:
    """A structure in guest memory, member by member."""

    kernel: Words
    layout: StructLayout
    address: int

    def at(self, member: str) -> int:
        """Return the address of a member."""
        return (self.address + self.layout.members[member].offset) & ADDRESS_MASK

    def number(self, member: str) -> int:
        """Return an integer or a pointer."""
        found = self.layout.members[member]
        raw = self.kernel.memory.read(self.address + found.offset, found.size)
        return int.from_bytes(raw, "little", signed=found.type[0] == "i")

    def text(self, member: str) -> str:
        """Return a string: the member's own characters, or those that it points at."""
        found = self.layout.members[member]
        at, limit = self.address + found.offset, found.size
        if found.type == "str":
            at, limit = self.kernel.word(at), 256
        return self.kernel.string(at, limit).decode("utf-8", "backslashreplace") if at else ""

    def put(self, member: str, value: int) -> None:
        """Store an integer or a pointer."""
        found = self.layout.members[member]
        self.kernel.store(self.address + found.offset, value, found.size)

    def functions(self) -> dict[str, int]:
        """Return every callback that is set, by its member's name (in full where it is taken)."""
        named: dict[str, int] = {}
        for name, member in self.layout.members.items():
            if member.type == "fn" and (address := self.number(name)):
                short = name.rpartition(".")[2]
                named[name if short in named else short] = address
        return named


def view(kernel: Words, name: str, address: int) -> StructView:
    """Return the declared structure `name` at `address`."""
    return StructView(kernel, layout(name, kernel.arch.loads.structure_sizes), address)
