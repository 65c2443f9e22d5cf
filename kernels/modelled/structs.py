# SPDX-License-Identifier: GPL-2.0-or-later
"""Structures of the kernel by the names of their members; where those lie, types say.

A file names what it uses of a structure, and nothing else. Where members lie, how large they
are and what they are read as, `kernel.layouts` knows: from the types of the kernel that was
given, or from the table of the one that is modelled, which `python -m kernels.modelled.tables`
makes of such types and of the names here.

    struct("miscdevice", "minor name fops")
    FOPS, SIZE = offset_of("miscdevice", "fops"), size_of("miscdevice")

    k.word(misc + FOPS(k))
    view(k, "miscdevice", misc).number("minor")

A member of a member has a dotted name; where both structures are named, it needs none of its
own. What the types lack raises `NotKnown`, which stops the guest in the function that asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs

from allocator.types import ADDRESS_MASK
from archs.layouts import As, Layouts, Member, NotKnown
from kernels.modelled.services import Words

POINTER = 8
USED: dict[str, tuple[str, ...]] = {}  # structure -> members, as files name them


class HasLayouts(Protocol):
    """Something that knows where members of structures lie: a kernel."""

    @property
    def layouts(self) -> Layouts:
        """Where they lie."""
        ...


@attrs.frozen
class OffsetOf:
    """Where a member lies, in any kernel."""

    structure: str
    member: str

    def __call__(self, k: HasLayouts) -> int:
        """Return the bytes before it in this kernel; NotKnown where its types have none."""
        return k.layouts.offset_of(self.structure, self.member)


@attrs.frozen
class SizeOf:
    """How large a structure is, in any kernel."""

    structure: str

    def __call__(self, k: HasLayouts) -> int:
        """Return its bytes in this kernel; NotKnown where its types have none."""
        return k.layouts.size_of(self.structure)


def struct(name: str, members: str = "") -> None:
    """Name a structure, and the members of it that are used."""
    if USED.get(name):
        raise ValueError(f"struct {name} is named twice")
    USED[name] = tuple(members.split())


def offset_of(name: str, member: str) -> OffsetOf:
    """Return what says where a member lies."""
    return OffsetOf(name, member)


def size_of(name: str) -> SizeOf:
    """Return what says how large a structure is; one that has not been named is then."""
    USED.setdefault(name, ())
    return SizeOf(name)


# struct list_head: two pointers in every kernel, which the tests hold to those there are.
PREV = POINTER


@attrs.frozen
class StructView:
    """A structure in guest memory, member by member."""

    kernel: Words
    name: str
    address: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.kernel.layouts.size_of(self.name)

    def member(self, member: str) -> Member:
        """Return what is known of a member; NotKnown where there is none."""
        return self.kernel.layouts.member(self.name, member)

    def at(self, member: str) -> int:
        """Return the address of a member."""
        return (self.address + self.member(member).offset) & ADDRESS_MASK

    def number(self, member: str) -> int:
        """Return an integer or a pointer."""
        found = self.member(member)
        raw = self.kernel.memory.read(self.address + found.offset, found.size)
        return found.read(raw)

    def text(self, member: str) -> str:
        """Return a string: the member's own characters, or those that it points at."""
        found = self.member(member)
        at, limit = self.address + found.offset, found.size
        if found.kind is As.STRING:
            at, limit = self.kernel.word(at), 256
        return self.kernel.string(at, limit).decode("utf-8", "backslashreplace") if at else ""

    def put(self, member: str, value: int) -> None:
        """Store an integer or a pointer."""
        found = self.member(member)
        self.kernel.store(self.address + found.offset, value, found.size)

    def functions(self) -> dict[str, int]:
        """Return every callback that is set, by its member's name (in full where it is taken)."""
        found: dict[str, int] = {}
        for member, offset in callbacks(self.kernel.layouts, self.name):
            raw = self.kernel.memory.read(self.address + offset, POINTER)
            if address := int.from_bytes(raw, "little"):
                short = member.rpartition(".")[2]
                found[member if short in found else short] = address
        return found


def made(k: HasLayouts, name: str, values: Mapping[str, int | bytes]) -> bytes:
    """Return the bytes of a structure with some members set, and the others zero."""
    whole = bytearray(k.layouts.size_of(name))
    for title, value in values.items():
        member = k.layouts.member(name, title)
        raw = value
        if isinstance(raw, int):
            raw = (raw % (1 << 8 * member.size)).to_bytes(member.size, "little")
        whole[member.offset : member.offset + len(raw)] = raw
    return bytes(whole)


def callbacks(layouts: Layouts, name: str) -> tuple[tuple[str, int], ...]:
    """Return the named members that point at functions, and where they lie, those of members too.

    A kernel that lacks one calls none there.
    """
    found = layouts.callbacks.get(name)
    if found is None:
        layouts.size_of(name)
        found = layouts.callbacks[name] = tuple(_callbacks(layouts, name))
    return found


def _callbacks(layouts: Layouts, name: str) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for title in USED[name]:
        try:
            member = layouts.member(name, title)
        except NotKnown:
            continue
        if member.kind is As.FUNCTION:
            found.append((title, member.offset))
        elif member.kind is As.STRUCTURE and member.tag in USED:
            inside = callbacks(layouts, member.tag)
            found += [(f"{title}.{inner}", member.offset + at) for inner, at in inside]
    return found


def view(kernel: Words, name: str, address: int) -> StructView:
    """Return the structure `name` at `address`."""
    return StructView(kernel, name, address)
