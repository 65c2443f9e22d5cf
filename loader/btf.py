# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF: the types of a kernel or of one module, as the file holds them.

A blob is a header, type records of varying length and a table of strings
(Documentation/bpf/btf.rst, include/uapi/linux/btf.h). Opening one finds where each record
begins and checks that every record lies inside; what a record says is read when it is asked
for, because a kernel has a hundred thousand and a module wants ten.

*Split* BTF goes on where a base ends: a module's blob numbers its types and strings after
the kernel's, and refers to both.

    >>> from loader.btf import Btf
    >>> Btf.parse(b"")
    Traceback (most recent call last):
      ...
    loader.btf.BadBtf: BTF: header: 0 bytes are too few
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property, lru_cache

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.errors import ExecmemError, printable
from loader.btf_records import (
    NOTHING,
    VOID,
    Constant,
    Entry,
    Kind,
    Member,
    Parameter,
    Place,
    Type,
    Variable,
)

MAGIC = 0xEB9F
HEADER = "HBBIIIII"  # magic, version, flags, header's size, then offset and size of both parts
HEADER_SIZE = 24
VERSION = 1
RECORD = 3  # words: name, info, size or type
DEPTH = 64  # most types that one may be made of, one behind the other
MAX_ELEMENTS = 1 << 40  # of all dimensions of an array together


# Words behind the record: once, and for each of its entries.
_ONCE = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_EACH = {
    Kind.STRUCT: 3,
    Kind.UNION: 3,
    Kind.ENUM: 2,
    Kind.FUNC_PROTO: 2,
    Kind.DATASEC: 3,
    Kind.ENUM64: 3,
}
_QUALIFIERS = frozenset((Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG))
_TRANSPARENT = _QUALIFIERS | {Kind.TYPEDEF}
_SIZED = frozenset(
    (Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.FLOAT, Kind.ENUM64, Kind.DATASEC)
)
_TAGGED = {Kind.STRUCT: "struct", Kind.UNION: "union", Kind.ENUM: "enum", Kind.ENUM64: "enum"}


@attrs.define(auto_exc=True, str=False)
class BadBtf(ExecmemError):
    """A blob that is not BTF, or whose records contradict each other."""

    name: str
    where: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.where}: {self.reason}")


class Btf:
    """The types of one blob, with those of its base in front.

    Made by `parse`; `strings` are its own, whose offsets count from `strings_from`. `numbers` are
    all types of this blob; `len()` counts the base's and void too, so that it is the number that
    the next type would have.
    """

    def __init__(
        self,
        name: str,
        words: memoryview,
        strings: bytes,
        starts: NDArray[np.uint32],
        base: Btf | None,
    ) -> None:
        self.name = name
        self.base = base
        self.strings_from: int = 0 if base is None else base.strings_from + len(base.strings)
        self.strings: bytes = strings
        self._words = words
        self._starts = starts
        self._first = 1 if base is None else len(base)
        table = np.frombuffer(words, np.uint32)
        self._names = table[starts]
        self._kinds = (table[starts + 1] >> 24 & 31).astype(np.uint8)
        self.type = lru_cache(maxsize=4096)(self._type)
        self.place = lru_cache(maxsize=4096)(self._place)

    @classmethod
    def parse(cls, data: bytes, *, base: Btf | None = None, name: str = "BTF") -> Btf:
        """Return the types that a blob holds.

        Parameters
        ----------
        data
            The blob: `/sys/kernel/btf/*`, a `.BTF` section.
        base
            The kernel's, for a module's split BTF.
        name
            For messages.

        Raises
        ------
        BadBtf
            Naming the place and what is wrong with it.
        """
        words, strings = _parts(bytes(data), name)
        if base is None and (not strings or strings[0]):
            raise BadBtf(name, "strings", "do not begin with the empty one")
        if strings and strings[-1]:
            raise BadBtf(name, "strings", "the last one does not end")
        first = 1 if base is None else len(base)
        return cls(name, words, strings, _starts(words, name, first), base)

    def __len__(self) -> int:
        return self._first + len(self._starts)

    @property
    def numbers(self) -> range:
        """The numbers of this blob's own types."""
        return range(self._first, len(self))

    def string(self, offset: int) -> str:
        """Return the string at an offset of the table; BadBtf outside of it."""
        if offset < self.strings_from:
            assert self.base is not None
            return self.base.string(offset)
        at = offset - self.strings_from
        if at >= len(self.strings):
            raise BadBtf(self.name, "strings", f"{offset:#x} is outside of them")
        end = self.strings.find(0, at)
        return self.strings[at:end].decode("utf-8", "backslashreplace")

    def _type(self, number: int) -> Type:
        """Return a type by its number; BadBtf where there is none."""
        if number == VOID:
            return NOTHING
        if not 0 < number < len(self):
            raise BadBtf(self.name, f"type {number}", f"there are {len(self) - 1}")
        if number < self._first:
            assert self.base is not None
            return self.base.type(number)
        words, at = self._words, int(self._starts[number - self._first])
        info, last = words[at + 1], words[at + 2]
        kind, count, flag = Kind(info >> 24 & 31), info & 0xFFFF, bool(info >> 31)
        at, name = at + RECORD, self.string(words[at])
        has_size = kind in _SIZED
        found = Type(
            number,
            kind,
            name,
            size=last if has_size else 0,
            target=VOID if has_size or kind is Kind.FWD else last,
            flag=flag,
        )
        if kind in _EACH:
            return attrs.evolve(found, entries=tuple(self._entries(kind, at, count, flag)))
        if kind is Kind.INT:
            how = words[at]
            return attrs.evolve(
                found,
                signed=bool(how >> 24 & 1),
                character=bool(how >> 25 & 1),
                boolean=bool(how >> 26 & 1),
                bit_offset=how >> 16 & 0xFF,
                bits=how & 0xFF,
            )
        if kind is Kind.ARRAY:
            element, index, length = words[at : at + 3].tolist()
            return attrs.evolve(found, target=element, index=index, count=length)
        if kind is Kind.FUNC:
            return attrs.evolve(found, linkage=count)
        if kind is Kind.VAR:
            return attrs.evolve(found, linkage=words[at])
        if kind is Kind.DECL_TAG:
            return attrs.evolve(found, component=_signed(words[at], 32))
        return found

    def _entries(self, kind: Kind, at: int, count: int, flag: bool) -> Iterator[Entry]:
        width, words = _EACH[kind], self._words
        for start in range(at, at + count * width, width):
            one, two = words[start], words[start + 1]
            if kind in (Kind.STRUCT, Kind.UNION):
                where = words[start + 2]
                bits = where >> 24 if flag else 0
                yield Member(self.string(one), two, where & 0xFF_FFFF if flag else where, bits)
            elif kind is Kind.FUNC_PROTO:
                yield Parameter(self.string(one), two)
            elif kind is Kind.ENUM:
                yield Constant(self.string(one), _signed(two, 32) if flag else two)
            elif kind is Kind.ENUM64:
                value = two | words[start + 2] << 32
                yield Constant(self.string(one), _signed(value, 64) if flag else value)
            else:
                yield Variable(one, two, words[start + 2])

    @cached_property
    def fits(self) -> bool:
        """Whether its names, those that it takes from its base among them, begin where strings do.

        Numbers and offsets go into the base without saying which it is: on one of another build
        they would be read as anything.
        """
        table = np.frombuffer(self._words, np.uint32)
        used = [self._names]
        for kind, width in _EACH.items():
            if kind is Kind.DATASEC:
                continue
            rows = self._starts[self._kinds == kind]
            counts = (table[rows + 1] & 0xFFFF).astype(np.intp)
            nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            used.append(table[np.repeat(rows.astype(np.intp) + RECORD, counts) + width * nth])
        offsets = np.concatenate(used).astype(np.intp)
        return self._are_starts(offsets[offsets > 0])

    def _are_starts(self, offsets: NDArray[np.intp]) -> bool:
        """Return whether a string begins at each offset of the table, its base's included."""
        own = offsets >= self.strings_from
        if self.base is not None and not self.base._are_starts(offsets[~own]):  # noqa: SLF001 -- itself
            return False
        here = offsets[own] - self.strings_from
        strings = np.frombuffer(self.strings, np.uint8)
        if here.size and int(here.max()) >= strings.size:
            return False
        return not bool(strings[here[here > 0] - 1].any())

    # By name ---------------------------------------------------------------------------------

    def find(self, name: str, *kinds: Kind) -> Type | None:
        """Return the first type of a name, this blob's own before its base's; None: there is none.

        Parameters
        ----------
        kinds
            Only these; by default any but the tags, which are no types.
        """
        return next(self.all(name, *kinds), None)

    def all(self, name: str, *kinds: Kind) -> Iterator[Type]:
        """Yield every type of a name, this blob's own before its base's; see `find`."""
        offsets = self.offsets_of(name)
        for index in np.flatnonzero(np.isin(self._names, offsets)).tolist():
            kind = Kind(self._kinds[index])
            if kind in kinds if kinds else kind not in (Kind.DECL_TAG, Kind.TYPE_TAG):
                yield self.type(self._first + index)
        if self.base is not None:
            yield from self.base.all(name, *kinds)

    def offsets_of(self, name: str) -> list[int]:
        """Return the offsets at which a string is `name`: alone, or as the end of a longer one."""
        wanted = name.encode("utf-8", "surrogateescape") + b"\0"
        if not name or b"\0" in wanted[:-1]:
            return []
        found = [] if self.base is None else self.base.offsets_of(name)
        at = self.strings.find(wanted)
        while at >= 0:
            found.append(self.strings_from + at)
            at = self.strings.find(wanted, at + 1)
        return found

    def named(self, *kinds: Kind) -> dict[str, int]:
        """Return the names of this blob's own types of some kinds -> the first such number."""
        chosen = np.flatnonzero(np.isin(self._kinds, [int(kind) for kind in kinds]))
        offsets = self._names[chosen].tolist()
        numbers = (chosen + self._first).tolist()
        found: dict[str, int] = {}
        for offset, number in zip(offsets, numbers, strict=True):
            found.setdefault(self.string(offset), number)
        found.pop("", None)
        return found

    @cached_property
    def counts(self) -> dict[Kind, int]:
        """How many types of each kind this blob itself has."""
        numbers = np.bincount(self._kinds, minlength=len(Kind)).tolist()
        return {kind: numbers[kind] for kind in Kind if numbers[kind]}

    # What types mean -------------------------------------------------------------------------

    def resolved(self, number: int) -> Type:
        """Return what is behind typedefs, qualifiers and tags; BadBtf where they go in a circle."""
        found = self.type(number)
        for _ in range(DEPTH):
            if found.kind not in _TRANSPARENT:
                return found
            found = self.type(found.target)
        raise BadBtf(self.name, f"type {number}", f"more than {DEPTH} names one behind the other")

    def size_of(self, number: int, *, pointer: int = 8) -> int:
        """Return the bytes of a type; 0 for void, functions and what is only declared.

        Parameters
        ----------
        pointer
            Bytes of a pointer, which BTF does not say.

        Raises
        ------
        BadBtf
            Where arrays nest too deep or come to more than any memory.
        """
        elements = 1
        for _ in range(DEPTH):
            found = self.resolved(number)
            if found.kind is Kind.VAR:
                number = found.target
            elif found.kind is Kind.ARRAY:
                elements *= found.count
                if elements > MAX_ELEMENTS:
                    break
                number = found.target
            else:
                return elements * (pointer if found.kind is Kind.PTR else found.size)
        raise BadBtf(self.name, f"type {number}", "an array of more elements than there is memory")

    def _place(self, number: int, path: str) -> Place | None:
        """Return where a member lies; None where there is none of that name.

        Parameters
        ----------
        number
            A structure or union, or something that is one by another name.
        path
            `member`, `member.of.a.member`, `member[2].name`; members of unnamed structures
            and unions belong to what holds them, as in C.
        """
        offset, bits = 0, 0
        for part in path.split("."):
            name, *subscripts = part.split("[")
            found = self._member(number, name, DEPTH)
            if found is None:
                return None
            offset, bits, number = offset + found.offset, found.bits, found.type
            for text in subscripts:
                array = self.resolved(number)
                digits = text.removesuffix("]")
                if array.kind is not Kind.ARRAY or not digits.isdecimal():
                    return None
                number = array.target
                offset += 8 * int(digits) * self.size_of(number)
        return Place(offset, number, bits)

    def _member(self, number: int, name: str, depth: int) -> Place | None:
        outer = self.resolved(number)
        if not name or outer.kind not in (Kind.STRUCT, Kind.UNION):
            return None
        if not depth:
            raise BadBtf(self.name, f"type {number}", f"nests deeper than {DEPTH}")
        for member in outer.members:
            if member.name == name:
                return Place(member.offset, member.type, member.bits)
            if not member.name:
                inside = self._member(member.type, name, depth - 1)
                if inside is not None:
                    return attrs.evolve(inside, offset=member.offset + inside.offset)
        return None

    def prototype(self, name: str) -> Type | None:
        """Return the FUNC_PROTO of the function called `name`, or None."""
        function = self.find(name, Kind.FUNC)
        found = None if function is None else self.type(function.target)
        return found if found is not None and found.kind is Kind.FUNC_PROTO else None

    # As C ------------------------------------------------------------------------------------

    def c_type(self, number: int, declarator: str = "") -> str:
        """Return a declaration of `declarator` as C spells it; without one, the type's name.

        Structures without a name are spelt out.
        """
        return self._c(number, declarator, DEPTH)

    def _c(self, number: int, inner: str, depth: int) -> str:
        if not depth:
            raise BadBtf(self.name, f"type {number}", f"nests deeper than {DEPTH}")
        depth -= 1
        found = self.type(number)
        kind = found.kind
        if kind is Kind.PTR:
            behind = self.type(found.target)
            while behind.kind in _QUALIFIERS:
                behind, depth = self.type(behind.target), depth - 1
                if depth <= 0:
                    raise BadBtf(self.name, f"type {number}", f"nests deeper than {DEPTH}")
            tight = behind.kind in (Kind.ARRAY, Kind.FUNC_PROTO)
            return self._c(found.target, f"(*{inner})" if tight else f"*{inner}", depth)
        if kind is Kind.ARRAY:
            return self._c(found.target, f"{inner}[{found.count}]", depth)
        if kind is Kind.FUNC_PROTO:
            return self._c(found.target, f"{inner}({self._parameters(found, depth)})", depth)
        if kind is Kind.FUNC:
            return self._c(found.target, found.name, depth)
        if kind is Kind.VAR:
            return self._c(found.target, inner or found.name, depth)
        if kind in (Kind.CONST, Kind.VOLATILE, Kind.RESTRICT):
            word = kind.name.lower()
            if self._is_pointer(found.target):
                return self._c(found.target, f"{word} {inner}".rstrip(), depth)
            return f"{word} {self._c(found.target, inner, depth)}"
        if kind is Kind.TYPE_TAG:
            return self._c(found.target, inner, depth)
        return f"{self._plain(found, depth)} {inner}".rstrip()

    def _is_pointer(self, number: int) -> bool:
        found = self.type(number)
        for _ in range(DEPTH):
            if found.kind not in _QUALIFIERS:
                break
            found = self.type(found.target)
        return found.kind is Kind.PTR

    def _plain(self, found: Type, depth: int) -> str:
        if found.kind is Kind.VOID:
            return "void"
        if found.kind is Kind.FWD:
            return f"{'union' if found.flag else 'struct'} {found.name}"
        word = _TAGGED.get(found.kind)
        if word is None:
            return found.name or found.kind.name.lower()
        return f"{word} {found.name}" if found.name else self._body(found, depth)

    def _parameters(self, prototype: Type, depth: int) -> str:
        listed = [self._c(p.type, p.name, depth) for p in prototype.parameters]
        return ", ".join(listed + ["..."] * prototype.variadic) or "void"

    def definition(self, number: int) -> str:
        """Return the definition of a structure, union or enumeration as C, members and all.

        Of other types, the declaration. Padding and alignment are not spelt out: the
        offsets stand in `Type.members`.
        """
        found = self.type(number)
        if found.kind is Kind.TYPEDEF:
            return f"typedef {self.c_type(found.target, found.name)};"
        if found.kind not in _TAGGED:
            return f"{self.c_type(number)};"
        return f"{self._body(found, DEPTH)};"

    def _body(self, found: Type, depth: int) -> str:
        head = f"{_TAGGED[found.kind]} {found.name}".rstrip()
        if found.kind in (Kind.ENUM, Kind.ENUM64):
            lines = [f"{value.name} = {value.value}," for value in found.values]
        else:
            lines = [
                self._c(m.type, m.name, depth) + (f": {m.bits}" if m.bits else "") + ";"
                for m in found.members
            ]
        inside = "".join(f"\t{line}\n" for text in lines for line in text.split("\n"))
        return f"{head} {{\n{inside}}}"

    def __repr__(self) -> str:
        return f"<Btf {self.name}: types {self._first} to {len(self) - 1}>"


def _parts(data: bytes, name: str) -> tuple[memoryview, bytes]:
    """Return the words of all records, in this machine's byte order, and the strings."""
    if len(data) < HEADER_SIZE:
        raise BadBtf(name, "header", f"{len(data)} bytes are too few")
    order = next((o for o in "<>" if struct.unpack_from(f"{o}H", data)[0] == MAGIC), None)
    if order is None:
        raise BadBtf(name, "header", f"begins with {data[:2].hex(' ')}, not with {MAGIC:#x}")
    header = struct.unpack_from(order + HEADER, data)
    _, version, flags, start, types_at, types_size, strings_at, strings_size = header
    if version != VERSION or flags:
        raise BadBtf(name, "header", f"version {version}, flags {flags:#x}: not known")
    if start < HEADER_SIZE or types_at % 4 or types_size % 4 or start % 4:
        raise BadBtf(name, "header", "size or place of the types is no multiple of 4")
    for what, at, size in (("types", types_at, types_size), ("strings", strings_at, strings_size)):
        if start + at + size > len(data):
            end = start + at + size
            raise BadBtf(name, what, f"truncated: they end at {end:#x}, the data at {len(data):#x}")
    types = np.frombuffer(data, f"{order}u4", types_size // 4, start + types_at)
    words = np.ascontiguousarray(types.astype(np.uint32, copy=False))
    return words.data, data[start + strings_at : start + strings_at + strings_size]


def _starts(words: memoryview, name: str, number: int) -> NDArray[np.uint32]:
    """Return the index of each record's first word; BadBtf where one is of no known kind or cut."""
    once = [_ONCE.get(Kind(kind), 0) if kind in _KINDS else -1 for kind in range(32)]
    each = [_EACH.get(Kind(kind), 0) if kind in _KINDS else 0 for kind in range(32)]
    once[Kind.VOID] = -1
    found: list[int] = []
    at, end = 0, len(words)
    listed = words.tolist()  # an index of a list costs half of a view's
    while at + RECORD <= end:
        info = listed[at + 1]
        kind = info >> 24 & 31
        if once[kind] < 0:
            reason = f"kind {kind} is none of 1 to {max(Kind)}"
            raise BadBtf(name, f"type {number + len(found)}", reason)
        found.append(at)
        at += RECORD + once[kind] + each[kind] * (info & 0xFFFF)
    if at != end:
        raise BadBtf(name, f"type {number + len(found) - (at > end)}", "is cut off")
    return np.array(found, np.uint32)


_KINDS = frozenset(map(int, Kind))


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
