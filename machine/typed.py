# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of the guest as C declares them: arguments by name, structures as dicts, typed results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import attrs

from allocator.types import ADDRESS_MASK
from emulator.faults import BadCall
from loader.btf import BadBtf, Btf
from loader.btf_records import Kind
from machine.arguments import Argument, Out
from machine.types import GuestType, Memory, View, callbacks_of

_REGISTER = 8  # bytes
_NUMBERS = (Kind.INT, Kind.ENUM, Kind.ENUM64)
_STRUCTURES = (Kind.STRUCT, Kind.UNION)


class Calling(Memory, Protocol):
    """A machine, as far as typed calls go."""

    def call(
        self,
        address: int,
        *args: Argument,
        instructions: int | None = ...,
        seconds: float | None = ...,
        returns: str = ...,
    ) -> int:
        """Call the guest function at `address`."""
        ...

    def free(self, address: int) -> None:
        """Free guest memory."""
        ...


@attrs.frozen(kw_only=True, eq=False, repr=False)
class TypedFunction:
    """A function with its prototype; calling it calls the guest.

    Parameters
    ----------
    name, address
        What it is called, and where it is.
    prototype
        Its type; None: the types do not say.
    machine
        The machine.
    """

    name: str
    address: int
    prototype: GuestType | None
    machine: Calling = attrs.field(repr=False)

    def __str__(self) -> str:
        if self.prototype is None:
            return f"{self.name}(?)"
        return self.prototype.btf.c_type(self.prototype.number, self.name)

    def __repr__(self) -> str:
        return f"<{self} at {self.address:#x}>"

    def __index__(self) -> int:
        return self.address

    @property
    def parameters(self) -> Mapping[str, GuestType]:
        """Its parameters' types by name, in order; one without a name is called by its number."""
        kind = self.prototype
        if kind is None:
            return {}
        found = kind.btf.resolved(kind.number).parameters
        return {
            each.name or f"_{number}": attrs.evolve(kind, number=each.type)
            for number, each in enumerate(found)
        }

    @property
    def result(self) -> GuestType | None:
        """What it returns; None where the types do not say."""
        kind = self.prototype
        return (
            None
            if kind is None
            else attrs.evolve(kind, number=kind.btf.resolved(kind.number).target)
        )

    def __call__(self, *args: Any, seconds: float | None = None, **named: Any) -> Any:
        """Call it and return its result: a number, a truth, a pointer, or None for void.

        Parameters
        ----------
        args, named
            A number, a view or function of the guest for its address; a function of Python for a
            pointer to a function, which calls it meanwhile; bytes, str or Out for guest memory that
            holds them during the call; a dict or a list for a structure or an array that a
            pointer points at, which lives as long; the name of an enumeration's constant.
        seconds
            Of the host, at most.

        Raises
        ------
        BadCall
            It takes no such arguments, or they do not fit.
        Fault
            The guest stopped.
        """
        with ExitStack() as lives:
            slots = self._slots(args, named, lives)
            raw = self.machine.call(self.address, *slots, seconds=seconds, returns="u64")
        return self._converted(raw & ADDRESS_MASK)

    def _slots(
        self, args: Sequence[Any], named: Mapping[str, Any], lives: ExitStack
    ) -> list[Argument]:
        if self.prototype is None:
            if named:
                raise BadCall(self.name, "its types are not known, so arguments have no names")
            return list(args)
        parameters = self.parameters
        variadic = self.prototype.btf.resolved(self.prototype.number).variadic
        given = dict(zip(parameters, args, strict=False))
        for name, value in named.items():
            if name not in parameters or name in given:
                why = "twice" if name in given else "no such parameter"
                raise BadCall(self.name, f"{name}: {why}", str(self))
            given[name] = value
        missing = [name for name in parameters if name not in given]
        if missing or (len(args) > len(parameters) and not variadic):
            takes = f"takes {len(parameters)} arguments, not {len(args) + len(named)}"
            raise BadCall(self.name, takes, str(self))
        typed = [self._slot(name, kind, given[name], lives) for name, kind in parameters.items()]
        return [*typed, *args[len(parameters) :]]

    def _slot(self, name: str, kind: GuestType, value: Any, lives: ExitStack) -> Argument:
        if value is None and kind.kind is Kind.PTR:
            return 0
        if isinstance(value, str) and kind.kind in (Kind.ENUM, Kind.ENUM64):
            value = kind.constant(value)
        if isinstance(value, Mapping | list | tuple):
            return self._held(name, kind, value, lives)
        if isinstance(value, str | bytes | bytearray | Out):
            if kind.kind is not Kind.PTR:
                raise BadCall(self.name, f"{name} is {kind.name}, not a pointer", str(self))
            return value
        if isinstance(value, View) and kind.kind in _STRUCTURES:
            return self._by_value(name, kind, value)
        if callable(value) and kind.kind is Kind.PTR and not hasattr(value, "__index__"):
            made = callbacks_of(self.machine, kind).make(kind, value)
            lives.callback(made.free)
            return int(made.address)
        if not hasattr(value, "__index__"):
            raise BadCall(self.name, f"{name}: cannot pass {type(value).__name__}", str(self))
        number = int(value.__index__())
        if kind.kind in _NUMBERS:
            return self._extended(name, kind, number)
        return number

    def _extended(self, name: str, kind: GuestType, number: int) -> int:
        """Return a number as its register holds it (psABIs: narrow arguments are extended)."""
        bits = 8 * min(kind.size, _REGISTER)
        if not -(1 << bits - 1) <= number < 1 << bits:
            raise BadCall(self.name, f"{name}: {number:#x} does not fit {kind.name}", str(self))
        number &= (1 << bits) - 1
        arch = self.machine.arch
        signs = kind.signed or (bits == 32 and arch.runs.calling.sign_extend_32)
        if signs and number >> bits - 1:
            number -= 1 << bits
        return number & ADDRESS_MASK

    def _by_value(self, name: str, kind: GuestType, value: View) -> int:
        if kind.size > _REGISTER:
            raise BadCall(self.name, f"{name}: {kind.name} by value is larger than a register")
        return int.from_bytes(bytes(value), self.machine.arch.link.dialect.order)

    def _held(self, name: str, kind: GuestType, value: Any, lives: ExitStack) -> int:
        """Return the address of a structure or array that lives during the call."""
        inner = kind.target
        if kind.kind is not Kind.PTR or inner is None:
            raise BadCall(self.name, f"{name} is {kind.name}, not a pointer", str(self))
        if isinstance(value, Mapping):
            inner_view = inner
        else:
            inner_view = attrs.evolve(inner, dimensions=(len(value), *inner.dimensions))
        if not inner_view.size and len(value):
            raise BadCall(self.name, f"{name}: {inner.name} has no size", str(self))
        address = self.machine.alloc(max(inner_view.size, 1))
        lives.callback(self.machine.free, address)
        view = View(inner_view, address, self.machine)
        if hasattr(self.machine, "callbacks"):
            callbacks_of(self.machine, kind).own(address, inner_view.size)
        if isinstance(value, Mapping):
            view.set_(**value)
        else:
            for index, each in enumerate(value):
                view[index] = each
        return address

    def _converted(self, raw: int) -> Any:
        kind = self.result
        if kind is None:
            return raw
        if kind.kind is Kind.VOID:
            return None
        if kind.kind in _STRUCTURES:
            return raw
        return kind.from_number(raw, self.machine)


class TypedFunctions(Mapping[str, TypedFunction]):
    """The functions of a module or of the kernel, by name; those without types are there, too.

    Parameters
    ----------
    machine
        Whose.
    addresses
        Returns name -> address of what is in memory now.
    types
        Returns the types; None: there are none.
    """

    def __init__(
        self,
        machine: Calling,
        addresses: Callable[[], Mapping[str, int]],
        types: Callable[[], Btf | None],
    ) -> None:
        self._machine, self._addresses, self._types = machine, addresses, types
        self._known: dict[
            str, tuple[Btf | None, GuestType | None]
        ] = {}  # to look up a name takes long

    def __getitem__(self, name: str) -> TypedFunction:
        addresses = self._addresses()
        return TypedFunction(
            name=name,
            address=addresses[name],
            prototype=self._known_prototype(name),
            machine=self._machine,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses())

    def __len__(self) -> int:
        return len(self._addresses())

    def __getattr__(self, name: str) -> TypedFunction:
        if name.startswith("_") or name not in self:
            raise AttributeError(name)
        return self[name]

    def _known_prototype(self, name: str) -> GuestType | None:
        btf = self._types()
        known = self._known.get(name)
        if known is None or known[0] is not btf:
            known = self._known[name] = btf, self._prototype(btf, name)
        return known[1]

    def _prototype(self, btf: Btf | None, name: str) -> GuestType | None:
        """Return the type of a function; None where there is none, or several that differ."""
        if btf is None:
            return None
        found: dict[str, GuestType] = {}
        try:
            for function in btf.all(name, Kind.FUNC):
                if function.number not in btf.numbers:
                    break  # the kernel's, and these are a module's
                text = btf.c_type(function.target, name)
                word = self._machine.arch.link.dialect.word
                found[text] = GuestType(btf, function.target, word)
        except BadBtf:
            return None
        return next(iter(found.values())) if len(found) == 1 else None
