# SPDX-License-Identifier: GPL-2.0-or-later
"""Python functions that guest code calls: each has an address, and a prototype by the types.

An address is a landing place that the kind of machine gives (`Landing`). A callback lasts until
`free`, or as long as what it was made for: a call that it is an argument of, or a structure of
`Machine.new` until that is freed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from allocator.types import ADDRESS_MASK
from emulator.faults import BadCall
from kernels.tracing import UntilStopped
from loader.btf_records import Kind
from machine.types import GuestType, Memory, Types

_REGISTER = 8  # bytes
_BY_VALUE = (Kind.STRUCT, Kind.UNION, Kind.FLOAT, Kind.ARRAY)
_NUMBERS = (Kind.INT, Kind.ENUM, Kind.ENUM64)


class Landing(Protocol):
    """Where guest code lands that calls Python."""

    def land(self, answer: Callable[[Iterator[int]], int], count: int, /) -> int:
        """Return an address; `answer` gets `count` slots of arguments and returns the register.

        BadCall where the machine has no place for it.
        """
        ...

    def leave(self, address: int) -> None:
        """Let an address answer no more."""
        ...


class Callback(UntilStopped):
    """A Python function with an address, until `free`; a context manager.

    Made by `Machine.callback`; `calls` counts how often it was called.
    """

    def __init__(
        self, prototype: GuestType, function: Callable[..., Any], memory: Memory, landing: Landing
    ) -> None:
        self.prototype, self.function = prototype, function
        self.calls = 0
        self._memory, self._landing = memory, landing
        declared = prototype.btf.resolved(prototype.number)
        make = prototype.of
        self._parameters = [make(each.type) for each in declared.parameters]
        self._result = make(declared.target)
        for kind in (*self._parameters, self._result):
            if kind.kind in _BY_VALUE:
                raise BadCall(self.name, f"{kind.name} is passed by value, which is not known here")
        self._check_signature()
        self._address: int | None = landing.land(self._answer, len(self._parameters))

    @property
    def name(self) -> str:
        """The function's name in Python."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def address(self) -> int:
        """What guest code calls; BadCall where it has been freed."""
        if self._address is None:
            raise BadCall(self.name, "this callback has been freed")
        return self._address

    def __index__(self) -> int:
        return self.address

    def __repr__(self) -> str:
        at = "freed" if self._address is None else f"at {self._address:#x}"
        text = self.prototype.btf.c_type(self.prototype.number, self.name)
        return f"<{text} {at}>"

    def _check_signature(self) -> None:
        try:
            inspect.signature(self.function).bind(*self._parameters)
        except TypeError:
            count = len(self._parameters)
            text = self.prototype.btf.c_type(self.prototype.number, "*")
            raise BadCall(
                self.name, f"must take {count} arguments: it is called as {text}"
            ) from None
        except ValueError:  # one that says nothing of itself
            return

    def _answer(self, slots: Iterator[int]) -> int:
        self.calls += 1
        args = [kind.from_number(next(slots), self._memory) for kind in self._parameters]
        return self._slot(self.function(*args))

    def _slot(self, value: Any) -> int:
        """Return what the result register is to hold (psABIs: narrow results are extended)."""
        kind = self._result
        if value is None or kind.kind is Kind.VOID:
            return 0
        if isinstance(value, str) and kind.kind in (Kind.ENUM, Kind.ENUM64):
            value = kind.constant(value)
        if not hasattr(value, "__index__"):
            raise BadCall(self.name, f"returned {type(value).__name__}, not {kind.name}")
        number = int(value.__index__())
        bits = 8 * min(kind.size, _REGISTER)
        if not -(1 << bits - 1) <= number < 1 << bits:
            raise BadCall(self.name, f"returned {number:#x}, which does not fit {kind.name}")
        number &= (1 << bits) - 1
        extends = bits == 32 and self._memory.arch.runs.calling.sign_extend_32
        if kind.kind in _NUMBERS and (kind.signed or extends) and number >> bits - 1:
            number -= 1 << bits
        return number & ADDRESS_MASK

    def free(self) -> None:
        """Let the address answer no more; a second time does nothing."""
        address, self._address = self._address, None
        if address is not None:
            self._landing.leave(address)

    stop = free


class Callbacks:
    """The callbacks of a machine, and what they belong to.

    Parameters
    ----------
    memory, types
        The machine, and its types.
    landing
        Where guest code lands.
    """

    def __init__(self, memory: Memory, types: Types, landing: Landing) -> None:
        self._memory, self._types, self._landing = memory, types, landing
        self._kept: dict[int, Callback] = {}  # by the pointer in memory that leads to it
        self._sizes: dict[int, int] = {}  # of structures that are freed with what is in them

    def make(self, prototype: str | GuestType, function: Callable[..., Any]) -> Callback:
        """Return a callback; BadCall where that is no type of a function, or nothing is called."""
        kind = self._types.find(prototype) if isinstance(prototype, str) else prototype
        inner = kind.target if kind.kind is Kind.PTR else kind
        if inner is None or inner.kind is not Kind.FUNC_PROTO:
            raise BadCall(kind.name, "is no function, nor a pointer to one")
        if not callable(function):
            raise BadCall(kind.name, f"{type(function).__name__} cannot be called")
        return Callback(inner, function, self._memory, self._landing)

    def store(self, kind: GuestType, place: int, function: Callable[..., Any]) -> int:
        """Return the address of a callback that a pointer at `place` is to lead to."""
        made = self.make(kind, function)
        before = self._kept.pop(place, None)
        if before is not None:
            before.free()
        self._kept[place] = made
        return made.address

    def own(self, start: int, size: int) -> None:
        """Let what pointers in a structure lead to last as long as that."""
        self._sizes[start] = size

    def freed(self, start: int) -> None:
        """Free what belongs to memory that is freed."""
        size = self._sizes.pop(start, 0)
        for place in [each for each in self._kept if start <= each < start + size]:
            self._kept.pop(place).free()
