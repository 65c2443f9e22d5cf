# SPDX-License-Identifier: GPL-2.0-or-later
"""The root of the error family; its own module so that no import loop arises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import Any, ClassVar

import attrs

from allocator.types import Interval


def printable(text: str) -> str:
    """Return `text` with what could move a cursor or forge a line escaped: names are input, too."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question about the names that are nearest to one that nobody knows, or nothing."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


class ExecmemError(Exception):
    """Anything that execmem refuses: one line a person can act on, with fields."""

    multiline: ClassVar[bool] = False  # whether a line of the text may be followed by others
    usage: ClassVar[bool] = (
        False  # whether the words of a command line are wrong, whatever they are about
    )

    def __init_subclass__(cls, **more: Any) -> None:
        """Let whatever a class says of its errors be text: names are input."""
        super().__init_subclass__(**more)
        told = vars(cls).get("__str__")
        if told is not None:
            setattr(cls, "__str__", _escaped(told))  # noqa: B010 -- a method is assigned

    def __str__(self) -> str:
        return printable(super().__str__())


class NoSuchName(ExecmemError):
    """A name that is none of those that there are: of a design, an erratum, a workload ..."""

    usage: ClassVar[bool] = True


def _escaped(told: Callable[[Any], str]) -> Callable[[Any], str]:
    @wraps(told)
    def text(self: ExecmemError) -> str:
        lines = told(self).split("\n") if self.multiline else [told(self)]
        return "\n".join(map(printable, lines))

    return text


@attrs.define(auto_exc=True, str=False)
class AllocationError(ExecmemError):
    """No room: names the request, the ranges that were tried and what was free there."""

    what: str
    size: int
    ranges: tuple[Interval, ...]
    reason: str
    hint: str = ""
    design: str = ""

    def __str__(self) -> str:
        tried = ", ".join(str(interval) for interval in self.ranges) or "no range"
        hint = f"; hint: {self.hint}" if self.hint else ""
        design = f" (design {self.design})" if self.design else ""
        return (
            f"cannot allocate {self.size:#x} bytes of {self.what} in {tried}: "
            f"{self.reason}{design}{hint}"
        )


@attrs.define(auto_exc=True, str=False)
class MappingError(ExecmemError):
    """A page-table operation that the table refuses; nothing was changed."""

    operation: str
    address: int
    size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.operation} [{self.address:#x}, {self.address + self.size:#x}): {self.reason}"


@attrs.define(auto_exc=True, str=False)
class AccessError(ExecmemError):
    """A read or write through a mapping that does not allow it."""

    access: str
    address: int
    size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.access} of {self.size:#x} bytes at {self.address:#x}: {self.reason}"


@attrs.define(auto_exc=True, str=False)
class LifecycleError(ExecmemError):
    """An allocation used out of order: written after finish, freed twice, poked while pending."""

    operation: str
    address: int
    reason: str

    def __str__(self) -> str:
        return f"{self.operation} at {self.address:#x}: {self.reason}"


@attrs.define(auto_exc=True, str=False)
class PokeError(ExecmemError):
    """A poke that was refused before any byte changed."""

    address: int
    size: int
    reason: str

    def __str__(self) -> str:
        return f"poke of {self.size:#x} bytes at {self.address:#x}: {self.reason}"


@attrs.define(auto_exc=True, str=False)
class DesignError(ExecmemError):
    """A design from outside that raised something, or did not do what it owes.

    What it manages is in no known state then: it is not called again.

    Parameters
    ----------
    operation
        What it was asked for: `alloc`, `write`, `finish`, `seal`, `free` ...
    what
        Type and consumer of the request; empty where there was none.
    size, address
        Bytes that were asked for, and where they lie; None before they lie anywhere.
    """

    design: str
    operation: str
    what: str
    size: int
    address: int | None
    reason: str

    def __str__(self) -> str:
        of = f" of {self.size:#x} bytes of {self.what}" if self.what else ""
        at = "" if self.address is None else f" at {self.address:#x}"
        return printable(f"design {self.design}: {self.operation}{of}{at}: {self.reason}")
