# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory as C sees it: types, values of a type at an address, members by name, by BTF.

`GuestType` is a type, `View` a value in guest memory that is read when it is asked for and written
when a member is set, `Pointer` a number that knows what it points at. Nothing is cached: what the
guest changes is seen at once. Long because a type makes values, and a value knows its type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import index
from typing import Any, Protocol, Self, SupportsIndex

import attrs

from allocator.types import ADDRESS_MASK
from archs import Arch
from emulator.faults import BadCall
from loader.btf import BadBtf, Btf
from loader.btf_records import VOID, Kind, Place, Type

LONGEST_STRING = 1 << 16  # bytes that are read to find the end of a string
SHOWN = 64  # elements of an array, and bytes of a string, that are shown
_TAGS = {"struct": (Kind.STRUCT,), "union": (Kind.UNION,), "enum": (Kind.ENUM, Kind.ENUM64)}
_PLAIN = (Kind.TYPEDEF, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.INT, Kind.FLOAT)
_STRUCTURES = (Kind.STRUCT, Kind.UNION)
_ENUMS = (Kind.ENUM, Kind.ENUM64)
_NAME = re.compile(
    r"\s*(?:(struct|union|enum)\s+)?([A-Za-z_][\w ]*?)\s*((?:\*\s*)*)((?:\[\d+\]\s*)*)$"
)


class Memory(Protocol):
    """Guest memory, as every machine has it."""

    arch: Arch

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of guest memory."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Store bytes in guest memory."""
        ...

    def alloc(self, contents: bytes | int) -> int:
        """Return the address of new guest memory."""
        ...


# Types ------------------------------------------------------------------------------------------


@attrs.frozen
class Field:
    """A member of a structure or union.

    Parameters
    ----------
    name
        Empty for an unnamed structure or union, whose members belong to what holds it.
    type
        Its type.
    offset
        Bytes from the start of the structure, of a bit field those before its first bit.
    bits, shift
        Width of a bit field, and its first bit in the byte at `offset`; 0 bits: it is none.
    """

    name: str
    type: GuestType
    offset: int
    bits: int = 0
    shift: int = 0


@attrs.frozen(repr=False)
class GuestType:
    """A type of a kernel or of a module.

    Parameters
    ----------
    btf
        Whose type it is.
    number
        Its number there.
    word
        Bytes of a pointer.
    pointers, dimensions
        Pointers to it, and arrays of those, that have no number of their own.
    """

    btf: Btf = attrs.field(eq=False)
    number: int
    word: int = 8
    pointers: int = 0
    dimensions: tuple[int, ...] = ()

    def _to(self, number: int) -> GuestType:
        return GuestType(self.btf, number, self.word)

    def of(self, number: int) -> GuestType:
        """Return another type of whose this is, by its number."""
        return self._to(number)

    @cached_property
    def _inner(self) -> Type:
        return self.btf.resolved(self.number)

    @property
    def kind(self) -> Kind:
        """What it is, behind typedefs and qualifiers."""
        if self.dimensions:
            return Kind.ARRAY
        return Kind.PTR if self.pointers else self._inner.kind

    @property
    def name(self) -> str:
        """The type as C spells it."""
        stars = "*" * self.pointers
        subscripts = "".join(f"[{count}]" for count in self.dimensions)
        return self.btf.c_type(self.number, f"{stars}{subscripts}")

    def __repr__(self) -> str:
        return f"<{self.name}: {self.size:#x} bytes>"

    def __str__(self) -> str:
        return self.definition

    @property
    def definition(self) -> str:
        """The definition as C spells it, members and all."""
        if self.dimensions or self.pointers:
            return f"{self.name};"
        if self._inner.kind in (*_STRUCTURES, *_ENUMS):
            return self.btf.definition(self._inner.number)
        return self.btf.definition(self.number)

    @property
    def size(self) -> int:
        """Bytes of a value."""
        size = self.word if self.pointers else self.btf.size_of(self.number, pointer=self.word)
        for count in self.dimensions:
            size *= count
        return size

    @property
    def signed(self) -> bool:
        """Whether a number of this type has a sign."""
        if self.kind in _ENUMS:
            return self._inner.flag
        return self.kind is Kind.INT and self._inner.signed

    @property
    def target(self) -> GuestType | None:
        """What a pointer points at, or an array has; None: nothing that has a size."""
        if self.dimensions:
            return attrs.evolve(self, dimensions=self.dimensions[1:])
        if self.pointers:
            return attrs.evolve(self, pointers=self.pointers - 1)
        if self.kind not in (Kind.PTR, Kind.ARRAY):
            return None
        return self._to(self._inner.target)

    @property
    def count(self) -> int:
        """Elements of an array; 0 for what is none, or ends a structure."""
        if self.dimensions:
            return self.dimensions[0]
        return self._inner.count if self.kind is Kind.ARRAY else 0

    @property
    def pointer(self) -> GuestType:
        """A pointer to it."""
        if self.dimensions:
            raise BadCall(self.name, "a pointer to an array has no name here")
        return attrs.evolve(self, pointers=self.pointers + 1)

    @property
    def character(self) -> bool:
        """Whether it is a byte of text: `char`, whatever its sign."""
        inner = self._inner
        return self.kind is Kind.INT and inner.size == 1 and inner.name in ("char", "signed char")

    @property
    def constants(self) -> Mapping[str, int]:
        """The values of an enumeration, by name."""
        return {value.name: value.value for value in self._inner.values}

    def constant(self, name: str) -> int:
        """Return a value of an enumeration; BadCall where none has the name."""
        if name not in self.constants:
            known = ", ".join(list(self.constants)[:12])
            raise BadCall(self.name, f"no constant {name!r}", f"there are {known}")
        return self.constants[name]

    @property
    def members(self) -> Mapping[str, Field]:
        """Members by name, those of unnamed ones among them, in the order of the structure."""
        return {field.name: field for field in self._fields(self._inner.number, 0)}

    def _fields(self, number: int, start: int) -> Iterator[Field]:
        if self.kind not in _STRUCTURES:
            return
        for member in self.btf.resolved(number).members:
            at = start + member.offset
            if member.name:
                yield self._field(member.name, Place(at, member.type, member.bits))
            elif self.btf.resolved(member.type).kind in _STRUCTURES:
                yield from self._fields(member.type, at)

    def _field(self, name: str, place: Place) -> Field:
        shift = place.offset % 8 if place.bits else 0
        return Field(name, self._to(place.type), place.offset // 8, place.bits, shift)

    def member(self, path: str) -> Field:
        """Return a member by its path (`a`, `a.b`, `a[2].c`); BadCall where there is none."""
        found = None
        if self.kind in _STRUCTURES:
            found = self.btf.place(self._inner.number, path)
        if found is None:
            known = ", ".join(list(self.members)[:12])
            raise BadCall(self.name, f"no member {path!r}", f"there are {known}" if known else "")
        return self._field(path, found)

    def __getitem__(self, path: str) -> Field:
        return self.member(path)

    def from_number(self, raw: int, memory: Memory) -> Any:
        """Return what the low bytes of a number are as this type: a number, a truth, a pointer."""
        value = raw & (1 << 8 * self.size) - 1
        if self.kind is Kind.PTR:
            return Pointer(value, self, memory)
        if self.signed and value >> 8 * self.size - 1:
            value -= 1 << 8 * self.size
        return _number(self, value)


# Values -----------------------------------------------------------------------------------------


class EnumValue(int):
    """A number that has a name in its enumeration."""

    name: str

    def __new__(cls, value: int, name: str) -> Self:
        """Return the number, with its name; the name is empty where it has none."""
        made = super().__new__(cls, value)
        made.name = name
        return made

    def __repr__(self) -> str:
        return f"<{self.name}: {int(self)}>" if self.name else int.__repr__(self)


class Pointer(int):
    """An address that knows what is there: its members by name, its elements by number."""

    type_: GuestType
    _memory: Memory

    def __new__(cls, value: int, kind: GuestType, memory: Memory) -> Self:
        """Return a pointer of the pointer type `kind`."""
        made = super().__new__(cls, value)
        made.__dict__.update(type_=kind, _memory=memory)
        return made

    @property
    def target_(self) -> View:
        """What it points at; BadCall where that has no size, or it is NULL."""
        inner = self.type_.target
        if inner is None or inner.kind in (Kind.VOID, Kind.FWD, Kind.FUNC_PROTO):
            raise BadCall(self.type_.name, "what it points at has no size (view() it as something)")
        if not self:
            raise BadCall(self.type_.name, "it is NULL")
        return View(inner, int(self), self._memory)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.target_, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.target_, name, value)

    def __setitem__(self, index: int | str, value: object) -> None:
        if isinstance(index, str):
            self.target_[index] = value
            return
        inner = self.type_.target
        if inner is None or not inner.size:
            raise BadCall(self.type_.name, "its elements have no size")
        _set(inner, int(self) + index * inner.size, value, self._memory)

    def __getitem__(self, index: int | str) -> Any:
        if isinstance(index, str):
            return self.target_[index]
        inner = self.type_.target
        if inner is None or not inner.size:
            raise BadCall(self.type_.name, "its elements have no size")
        return _get(inner, int(self) + index * inner.size, self._memory)

    @property
    def string_(self) -> str:
        """The text that it points at, up to its NUL."""
        return _text(int(self), LONGEST_STRING, self._memory)

    def __repr__(self) -> str:
        return f"({self.type_.name}) {int(self):#x}"


class View:
    """A value in guest memory: a structure, a union, an array, or anything else, at its address.

    Members are attributes, or items where a name is Python's own; elements are items. Setting one
    writes it. What is the view's own ends in an underscore, as in drgn: `address_`, `type_`,
    `value_`, `string_`, `set_()`.
    """

    __slots__ = ("_memory", "address_", "type_")

    address_: int
    type_: GuestType
    _memory: Memory

    def __init__(self, kind: GuestType, address: int, memory: Memory) -> None:
        object.__setattr__(self, "type_", kind)
        object.__setattr__(self, "address_", address & ADDRESS_MASK)
        object.__setattr__(self, "_memory", memory)

    def __index__(self) -> int:
        return self.address_

    def __bytes__(self) -> bytes:
        return self._memory.read(self.address_, self.type_.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, View):
            return NotImplemented
        return (self.address_, self.type_) == (other.address_, other.type_)

    def __hash__(self) -> int:
        return hash((self.address_, self.type_))

    @property
    def value_(self) -> Any:
        """What stands there, of a type that has no members: a number, a pointer."""
        return _get(self.type_, self.address_, self._memory)

    @property
    def string_(self) -> str:
        """The text of an array of characters, up to its NUL or its end."""
        count = self.type_.count or LONGEST_STRING
        return _text(self.address_, count, self._memory)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: object) -> None:
        self[name] = value

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            field = self.type_.member(key)
            return _get_field(field, self.address_, self._memory)
        inner, at = self._element(key)
        return _get(inner, at, self._memory)

    def __setitem__(self, key: int | str, value: object) -> None:
        if isinstance(key, str):
            _set_field(self.type_.member(key), self.address_, value, self._memory)
            return
        inner, at = self._element(key)
        _set(inner, at, value, self._memory)

    def _element(self, index: int) -> tuple[GuestType, int]:
        inner = self.type_.target
        if self.type_.kind is not Kind.ARRAY or inner is None:
            raise BadCall(self.type_.name, f"is no array: it has no element {index}")
        count = self.type_.count
        place = index + count if index < 0 else index
        if place < 0 or (count and place >= count):
            raise BadCall(self.type_.name, f"has {count} elements, and no element {index}")
        return inner, self.address_ + place * inner.size

    def at_(self, path: str) -> View:
        """Return the view of a member by its path, of a number or a pointer, too: `&view->path`."""
        field = self.type_.member(path)
        if field.bits:
            raise BadCall(self.type_.name, f"{path} is a bit field, which has no address")
        return View(field.type, self.address_ + field.offset, self._memory)

    def __len__(self) -> int:
        if self.type_.kind is not Kind.ARRAY:
            raise TypeError(f"{self.type_.name} has no length")
        return self.type_.count

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.type_.members]

    def set_(self, **members: object) -> View:
        """Set several members, and return the view."""
        for name, value in members.items():
            self[name] = value
        return self

    def __repr__(self) -> str:
        return f"<{self.type_.name} at {self.address_:#x}>"

    def __str__(self) -> str:
        return _shown(self, 0)


# Bytes <-> values ---------------------------------------------------------------------------------


def _get_field(field: Field, base: int, memory: Memory) -> Any:
    if not field.bits:
        return _get(field.type, base + field.offset, memory)
    value = _bits(field, base, memory) >> field.shift & (1 << field.bits) - 1
    if field.type.signed and value >> field.bits - 1:
        value -= 1 << field.bits
    return _number(field.type, value)


def _bits(field: Field, base: int, memory: Memory) -> int:
    """Return the bytes that hold a bit field, as a number."""
    order = memory.arch.link.dialect.order
    if order != "little":
        raise BadCall(field.name, "bit fields of big-endian machines are not known")
    size = (field.shift + field.bits + 7) // 8
    return int.from_bytes(memory.read(base + field.offset, size), order)


def _set_field(field: Field, base: int, value: object, memory: Memory) -> None:
    if not field.bits:
        _set(field.type, base + field.offset, value, memory)
        return
    number = _as_number(field.type, value)
    lowest = -(1 << field.bits - 1) if field.type.signed else 0
    if not lowest <= number < 1 << field.bits:
        raise BadCall(field.name, f"{number} does not fit {field.bits} bits")
    mask = (1 << field.bits) - 1 << field.shift
    held = _bits(field, base, memory) & ~mask | number << field.shift & mask
    size = (field.shift + field.bits + 7) // 8
    memory.write(base + field.offset, held.to_bytes(size, memory.arch.link.dialect.order))


def _number(kind: GuestType, value: int) -> Any:
    if kind.kind in _ENUMS:
        name = next((n for n, v in kind.constants.items() if v == value), "")
        return EnumValue(value, name)
    if kind.kind is Kind.INT and kind._inner.boolean:  # noqa: SLF001 # the type is of this file
        return bool(value)
    return value


def _get(kind: GuestType, address: int, memory: Memory) -> Any:
    """Return a value: a number, a pointer, or a view of what has parts."""
    if kind.kind in (*_STRUCTURES, Kind.ARRAY):
        return View(kind, address, memory)
    size = kind.size
    if not size:
        raise BadCall(kind.name, "has no value")
    order = memory.arch.link.dialect.order
    raw = int.from_bytes(memory.read(address, size), order, signed=kind.signed)
    if kind.kind is Kind.PTR:
        return Pointer(raw, kind, memory)
    if kind.kind is Kind.FLOAT:
        raise BadCall(kind.name, "floating-point numbers are not for kernels")
    return _number(kind, raw)


def _as_number(kind: GuestType, value: object) -> int:
    if isinstance(value, str) and kind.kind in _ENUMS:
        return kind.constant(value)
    if isinstance(value, SupportsIndex):
        return index(value)
    raise BadCall(kind.name, f"cannot be set to {type(value).__name__}")


def _set(kind: GuestType, address: int, value: object, memory: Memory) -> None:
    if isinstance(value, View) and value.type_.kind is kind.kind and kind.kind is not Kind.PTR:
        if value.type_.size != kind.size:
            raise BadCall(kind.name, f"is not as large as {value.type_.name}")
        memory.write(address, bytes(value))
        return
    if kind.kind in _STRUCTURES:
        if not isinstance(value, Mapping):
            raise BadCall(kind.name, f"takes a dict of members, not {type(value).__name__}")
        View(kind, address, memory).set_(**value)
        return
    if kind.kind is Kind.ARRAY:
        _set_array(kind, address, value, memory)
        return
    if kind.kind is Kind.PTR and isinstance(value, str | bytes | bytearray):
        data = value.encode() + b"\0" if isinstance(value, str) else bytes(value)
        value = memory.alloc(data)  # which stays as long as what points at it may
    elif kind.kind is Kind.PTR and callable(value) and not isinstance(value, SupportsIndex):
        value = callbacks_of(memory, kind).store(kind, address, value)
    size, number = kind.size, _as_number(kind, value)
    lowest = -(1 << 8 * size - 1)
    if not lowest <= number < 1 << 8 * size:
        raise BadCall(kind.name, f"{number:#x} does not fit {size} bytes")
    data = (number & (1 << 8 * size) - 1).to_bytes(size, memory.arch.link.dialect.order)
    memory.write(address, data)


def callbacks_of(memory: Memory, kind: GuestType) -> Any:
    """Return who makes functions of Python callable there; BadCall where nobody does."""
    found = getattr(memory, "callbacks", None)  # of machines: buffers of bytes have none
    if found is None:
        raise BadCall(kind.name, "nothing there calls functions of Python")
    return found


def _set_array(kind: GuestType, address: int, value: object, memory: Memory) -> None:
    inner = kind.target
    assert inner is not None  # an array has elements of some type
    if isinstance(value, str):
        value = value.encode() + b"\0"
    if isinstance(value, bytes | bytearray):
        if inner.size != 1:
            raise BadCall(kind.name, "takes a list: its elements are no bytes")
        if kind.count and len(value) > kind.count:
            raise BadCall(kind.name, f"{len(value)} bytes do not fit")
        memory.write(address, bytes(value))
        return
    if not isinstance(value, Sequence):
        raise BadCall(kind.name, f"takes a list, not {type(value).__name__}")
    if kind.count and len(value) > kind.count:
        raise BadCall(kind.name, f"{len(value)} elements do not fit")
    for number, each in enumerate(value):
        _set(inner, address + number * inner.size, each, memory)


def _text(address: int, longest: int, memory: Memory) -> str:
    """Return text up to its NUL; read page by page, because the next page may not be there."""
    found = b""
    while len(found) < longest and b"\0" not in found:
        size = min(longest - len(found), 256 - (address + len(found)) % 256)
        found += memory.read(address + len(found), size)
    return found.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _shown(view: View, depth: int) -> str:
    """Return a value as C initialises one."""
    kind = view.type_
    if kind.kind is Kind.ARRAY:
        inner = kind.target
        if inner is not None and inner.character:
            return repr(view.string_[:SHOWN])
        shown = [_one(view[n], depth) for n in range(min(kind.count, SHOWN))]
        more = ", ..." if kind.count > SHOWN else ""
        return f"{{{', '.join(shown)}{more}}}"
    if kind.kind not in _STRUCTURES:
        return _one(view.value_, depth)
    pad = "\t" * (depth + 1)
    lines = [f"{pad}.{name} = {_one(view[name], depth + 1)},\n" for name in kind.members]
    return f"({kind.name}) {{\n{''.join(lines)}{pad[1:]}}}"


def _one(value: object, depth: int) -> str:
    if isinstance(value, View):
        return _shown(value, depth)
    if isinstance(value, Pointer):
        return f"{int(value):#x}"
    if isinstance(value, EnumValue) and value.name:
        return value.name
    return str(value)


# By name ------------------------------------------------------------------------------------------


def _same(some: Sequence[Btf], others: Sequence[Btf]) -> bool:
    """Return whether these are the very same."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


class Types:
    """The types of a kernel and of the modules that it has loaded.

    Parameters
    ----------
    memory
        The machine.
    sources
        Returns whose types there are: the kernel's first.
    nothing
        Why there are none, where there are none.
    """

    def __init__(
        self, memory: Memory, sources: Callable[[], Mapping[str, Btf]], nothing: str
    ) -> None:
        self._memory, self._sources, self._nothing = memory, sources, nothing
        self._found: dict[tuple[str, str], tuple[list[Btf], GuestType]] = {}

    def find(self, name: str, module: str = "") -> GuestType:
        """Return a type by its name, as C spells it: `struct list_head`, `u32`, `char *`, `int[4]`.

        Parameters
        ----------
        module
            Whose types come first, where several have one of this name.

        Raises
        ------
        BadCall
            There is none, or several that differ.
        """
        sources = self._sources()
        whose = list(sources.values())
        known = self._found.get((name, module))
        if known is None or not _same(known[0], whose):
            known = self._found[name, module] = whose, self._find(name, module, sources)
        return known[1]

    def _find(self, name: str, module: str, sources: Mapping[str, Btf]) -> GuestType:
        found = _NAME.match(name)
        if found is None:
            raise BadCall(name, "is no name of a type")
        tag, word, stars, subscripts = found.groups()
        if module:
            if module not in sources:
                known = ", ".join(sources) or "none"
                raise BadCall(name, f"{module} has no types that are known (there are: {known})")
            sources = {module: sources[module]}
        if not sources:
            raise BadCall(name, self._nothing)
        if word == "void" and not tag:
            return self._made(next(iter(sources.values())), VOID, stars, subscripts)
        kinds = _TAGS.get(tag or "", _PLAIN)
        candidates: list[tuple[str, Btf, Type]] = []
        try:
            for owner, btf in sources.items():
                candidates += [
                    (owner, btf, each) for each in btf.all(" ".join(word.split()), *kinds)
                ]
            chosen = self._only(name, candidates)
        except BadBtf as error:
            raise BadCall(name, str(error)) from None
        return self._made(chosen[1], chosen[2].number, stars, subscripts)

    def _made(self, btf: Btf, number: int, stars: str, subscripts: str) -> GuestType:
        dimensions = tuple(map(int, re.findall(r"\d+", subscripts)))
        word = self._memory.arch.link.dialect.word
        return GuestType(btf, number, word, stars.count("*"), dimensions)

    def _only(self, name: str, candidates: list[tuple[str, Btf, Type]]) -> tuple[str, Btf, Type]:
        """Return the type that all candidates are; BadCall where they differ."""
        by_shape: dict[str, tuple[str, Btf, Type]] = {}
        for owner, btf, each in candidates:
            shape = f"{each.kind} {each.size} {btf.definition(each.number)}"
            by_shape.setdefault(shape, (owner, btf, each))
        if not by_shape:
            raise BadCall(name, "there is no such type", self._near(name))
        if len(by_shape) > 1:
            owners = ", ".join(sorted({owner for owner, _, _ in by_shape.values()}))
            reason = f"{len(by_shape)} types of this name differ (in {owners})"
            raise BadCall(name, reason, "say struct, union or enum, or whose (module=)")
        return next(iter(by_shape.values()))

    def _near(self, name: str) -> str:
        from difflib import get_close_matches

        word = name.rsplit(maxsplit=1)[-1]
        names = [n for btf in self._sources().values() for n in btf.named(*_PLAIN)]
        near = get_close_matches(word, names, n=3)
        return f"near: {', '.join(near)}" if near else ""

    def view(self, kind: str | GuestType, address: int) -> View:
        """Return the value of a type that is at an address."""
        return View(self.find(kind) if isinstance(kind, str) else kind, address, self._memory)

    def new(self, kind: str | GuestType, members: Mapping[str, object]) -> View:
        """Return a zeroed value of a type in new guest memory, with members set."""
        found = self.find(kind) if isinstance(kind, str) else kind
        if not found.size:
            raise BadCall(found.name, "has no size")
        made = View(found, self._memory.alloc(found.size), self._memory)
        if hasattr(self._memory, "callbacks"):
            callbacks_of(self._memory, found).own(made.address_, found.size)
        return made.set_(**members)
