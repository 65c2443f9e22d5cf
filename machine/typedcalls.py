# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that were seen, as C declares them: arguments by name and type, results.

What registers do not say is not known, and says so (`UNKNOWN`): arguments on the stack, and those
from a structure on that is passed by value and needs more than a register.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cached_property
from typing import Any

import attrs

from allocator.errors import ExecmemError
from emulator.faults import BadCall
from kernels.tracing import AnyProbe, CallTrace, TracedCall, UntilStopped
from loader.btf_records import Kind
from machine.typed import TypedFunction
from machine.types import EnumValue, GuestType, Memory, Pointer

STRING = 48  # bytes of a string that are shown
_REGISTER, _INDIRECT = 8, 16  # bytes; a larger result is stored where a hidden argument says
_BY_VALUE = (Kind.STRUCT, Kind.UNION, Kind.ARRAY, Kind.FLOAT)


class Unknown(Enum):
    """A value that nobody knows."""

    UNKNOWN = "?"

    def __repr__(self) -> str:
        return self.value

    __str__ = __repr__


UNKNOWN = Unknown.UNKNOWN


def arguments_of(function: TypedFunction, slots: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of a call by name, out of the argument registers at its entry."""
    memory = function.machine
    result = function.result
    left = list(slots)
    if result is not None and result.kind in _BY_VALUE and result.size > _INDIRECT:
        left = left[memory.arch.runs.calling.indirect is None :]
    found: dict[str, Any] = {}
    for name, kind in function.parameters.items():
        if kind.kind in _BY_VALUE and (kind.kind is Kind.FLOAT or kind.size > _REGISTER):
            left.clear()  # where it is, and what comes behind it, is a matter of the ABI
        if not left:
            found[name] = UNKNOWN
        elif kind.kind in _BY_VALUE:
            found[name] = left.pop(0)
        else:
            found[name] = kind.from_number(left.pop(0), memory)
    return found


@attrs.define(eq=False, repr=False)
class Call:
    """A call that was seen.

    Parameters
    ----------
    function
        What was called, with its prototype where types are known.
    traced
        The call as registers have it.
    strings
        Text that arguments pointed at when the call began, by name.
    """

    function: TypedFunction
    traced: TracedCall
    strings: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.name

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name; empty where types are not known."""
        return arguments_of(self.function, self.traced.arguments)

    @property
    def caller(self) -> int:
        """Where it returns to."""
        return self.traced.caller

    @property
    def returned(self) -> bool:
        """Whether it has returned."""
        return self.traced.result is not None

    @property
    def result(self) -> Any:
        """What it returned: None for void, and while it has not returned."""
        raw, kind = self.traced.result, self.function.result
        if raw is None or kind is None:
            return raw
        if kind.kind is Kind.VOID:
            return None
        return UNKNOWN if kind.kind in _BY_VALUE else kind.from_number(raw, self.function.machine)

    def __getitem__(self, name: str) -> Any:
        if name not in self.arguments:
            known = ", ".join(self.arguments) or "types are not known"
            raise BadCall(self.name, f"no argument {name!r}", known)
        return self.arguments[name]

    def shown(self) -> str:
        """Return the arguments as text: `name=value, ...`; registers where types are not known."""
        if self.function.prototype is None:
            return ", ".join(f"{value:#x}" for value in self.traced.arguments)
        return ", ".join(
            f"{name}={_text(value)}" + (f" {self.strings[name]!r}" if name in self.strings else "")
            for name, value in self.arguments.items()
        )

    def __str__(self) -> str:
        text = f"{self.name}({self.shown()})"
        if not self.returned:
            return text
        kind = self.function.result
        if kind is not None and kind.kind is Kind.VOID:
            return text
        return f"{text} = {_text(self.result)}"

    def __repr__(self) -> str:
        return f"<{self}>"


def call_of(function: TypedFunction, traced: TracedCall, *, strings: bool) -> Call:
    """Return a call with its types; with the text that arguments point at now, if that counts."""
    made = Call(function, traced)
    if strings:
        made.strings = {
            name: text
            for name, value in made.arguments.items()
            if isinstance(value, Pointer) and (text := _string(value, function.machine)) is not None
        }
    return made


def _string(pointer: Pointer, memory: Memory) -> str | None:
    """Return the text that a `char *` points at; None where it is none, or not all there."""
    target: GuestType | None = pointer.type_.target
    if target is None or not target.character or not pointer:
        return None
    data = b""
    while b"\0" not in data and len(data) < STRING:
        at = int(pointer) + len(data)
        try:
            data += memory.read(at, min(STRING - len(data), 256 - at % 256))
        except ExecmemError:
            return None
    return data.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _text(value: Any) -> str:
    if isinstance(value, EnumValue) and value.name:
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Pointer) or (isinstance(value, int) and abs(value) > 0xFFFF):
        return f"{int(value):#x}"
    return str(value)


OnTyped = Callable[[Call], object]


class Listening(UntilStopped):
    """A function whose calls are told of, until `stop`. Made by `Machine.on`.

    `calls` are those that were kept, in the order in which they began.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.calls: list[Call] = []
        self.count = 0
        self._traced: dict[int, Call] = {}
        self.source: CallTrace | AnyProbe | None = None

    def began(self, call: Call) -> None:
        """Keep a call, within the limit."""
        self.count += 1
        if len(self.calls) < self.limit:
            self.calls.append(call)
        self._traced[id(call.traced)] = call

    def ended(self, traced: TracedCall) -> Call | None:
        """Return the call that has returned."""
        return self._traced.pop(id(traced), None)

    def stop(self) -> None:
        """Tell of nothing more; a second time does nothing."""
        source, self.source = self.source, None
        if source is not None:
            source.remove() if not isinstance(source, CallTrace) else source.stop()
        self._traced.clear()
