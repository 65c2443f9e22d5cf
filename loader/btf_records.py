# SPDX-License-Identifier: GPL-2.0-or-later
"""What a record of BTF says: a type, and what it is made of."""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs

VOID = 0  # the number of `void`


class Kind(enum.IntEnum):
    """BTF_KIND_*: what a record describes."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


@attrs.frozen
class Member:
    """A member of a structure or union: its type's number, and where it lies in bits.

    `bits` is the width of a bit field, else 0.
    """

    name: str
    type: int
    offset: int
    bits: int = 0


@attrs.frozen
class Parameter:
    """A parameter of a function: its type's number."""

    name: str
    type: int


@attrs.frozen
class Constant:
    """A value of an enumeration."""

    name: str
    value: int


@attrs.frozen
class Variable:
    """A variable of a section: its record's number, its offset there and its bytes."""

    type: int
    offset: int
    size: int


Entry: TypeAlias = Member | Parameter | Constant | Variable


@attrs.frozen
class Type:
    """One record.

    Parameters
    ----------
    number
        Its number; 0 is void, and a module's own follow on the kernel's.
    kind, name
        What it describes, and its name; empty where it has none.
    size
        Bytes of an integer, float, structure, union, enumeration or section; else 0.
    target
        Number of the type that it points at, renames, qualifies, returns, or has as elements.
    flag
        A FWD of a union; an enumeration with signed values; a structure with bit fields.
    entries
        Members, parameters, values or variables.
    count
        Elements of an array.
    index
        Number of the type that an array is indexed with.
    signed, boolean, character
        How an integer is encoded.
    bits, bit_offset
        Width of an integer, and where in its bytes it begins.
    linkage
        Of a function or variable: 0 static, 1 global, 2 extern.
    component
        Member or parameter that a DECL_TAG is about; -1: the whole.
    """

    number: int
    kind: Kind
    name: str = ""
    size: int = 0
    target: int = VOID
    flag: bool = False
    entries: tuple[Entry, ...] = ()
    count: int = 0
    index: int = VOID
    signed: bool = False
    boolean: bool = False
    character: bool = False
    bits: int = 0
    bit_offset: int = 0
    linkage: int = 0
    component: int = -1

    @property
    def members(self) -> tuple[Member, ...]:
        """The members of a structure or union."""
        return tuple(e for e in self.entries if isinstance(e, Member))

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of a function prototype, without the `...` that may end them."""
        found = tuple(e for e in self.entries if isinstance(e, Parameter))
        return found[:-1] if self.variadic else found

    @property
    def variadic(self) -> bool:
        """Whether a function prototype ends in `...`."""
        last = self.entries[-1] if self.entries else None
        return isinstance(last, Parameter) and last.type == VOID and not last.name

    @property
    def values(self) -> tuple[Constant, ...]:
        """The values of an enumeration."""
        return tuple(e for e in self.entries if isinstance(e, Constant))

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables of a section."""
        return tuple(e for e in self.entries if isinstance(e, Variable))


@attrs.frozen
class Place:
    """Where a member lies: bits from the start of the outermost structure, width of a bit field."""

    offset: int
    type: int
    bits: int = 0

    @property
    def bytes(self) -> int:
        """Whole bytes before it."""
        return self.offset // 8


NOTHING = Type(VOID, Kind.VOID)
