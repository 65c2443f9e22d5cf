# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel that modules call, as a table: one declarative entry per symbol.

An entry is a C prototype and what the function does. Arguments arrive as Python ints,
converted by the prototype's types; results go back the same way; nothing in an entry
knows an architecture. Adding a symbol is adding one entry to a file beside this one.

    @function("size_t strlen(const char *s)")
    def strlen(k, s):
        return len(k.string(s))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar

import attrs

from kernels.prototypes import Prototype, name_of, parse

# What is called with the kernel first; the table itself needs to know nothing of it.
Handler: TypeAlias = Callable[..., int | None]
Content: TypeAlias = Callable[..., bytes]
Size: TypeAlias = Callable[..., int]
Read: TypeAlias = Callable[..., object]
_Handler = TypeVar("_Handler", bound=Handler)


class Arguments(Protocol):
    """The variadic arguments of a call, slot by slot."""

    def next(self) -> int:
        """Return the next 64-bit slot."""
        ...


@attrs.frozen
class Function:
    """A kernel function: what it is called with, and what it does.

    A declaration is parsed when somebody asks for its types, so that a start is not paid for
    functions that nobody calls.

    The handler gets the kernel, the converted arguments and, where the prototype is
    variadic, a source of further slots; it returns the result or None for void.
    """

    declaration: str
    handler: Handler

    @property
    def prototype(self) -> Prototype:
        """What it takes and returns."""
        return parse(self.declaration)

    @property
    def name(self) -> str:
        """The symbol."""
        return name_of(self.declaration)

    @property
    def ours(self) -> bool:
        """Whether it is part of execmem, and not brought by another package."""
        return self.handler.__module__.startswith("kernels.")


@attrs.frozen(kw_only=True)
class Data:
    """A kernel variable.

    Parameters
    ----------
    size
        Bytes, or what returns them, given the kernel; where that has no such structure, there
        is no such variable.
    percpu
        Whether every CPU has its own copy.
    align
        Bytes; a page where code goes by way of its struct page, which names whole pages. Or
        what returns them, given the kernel.
    fill
        Returns the initial contents, given the kernel; zeros without it.
    read
        Called with the kernel before each time that the guest reads the variable, which has a page of its own.
    """

    name: str
    size: int | Size
    percpu: bool = False
    align: int | Size = 16
    fill: Content | None = None
    read: Read | None = None


FUNCTIONS: dict[str, Function] = {}
DATA: dict[str, Data] = {}


def function(*prototypes: str) -> Callable[[_Handler], _Handler]:
    """Register the decorated handler for one or several prototypes of the same shape."""

    def register(handler: _Handler) -> _Handler:
        for text in prototypes:
            found = Function(text, handler)
            if not found.ours:
                parse(text)  # ours are parsed by the tests
            name = found.name
            if name in FUNCTIONS:
                raise ValueError(f"kernel symbol {name!r} is declared twice")
            FUNCTIONS[name] = found
        return handler

    return register


def data(
    name: str,
    size: int | Size,
    *,
    percpu: bool = False,
    align: int | Size = 16,
    fill: Content | None = None,
    read: Read | None = None,
) -> None:
    """Register a kernel variable."""
    if name in DATA:
        raise ValueError(f"kernel symbol {name!r} is declared twice")
    DATA[name] = Data(name=name, size=size, percpu=percpu, align=align, fill=fill, read=read)
