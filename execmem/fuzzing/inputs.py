# SPDX-License-Identifier: GPL-2.0-or-later
"""What a function is called with: `NAME=bytes`, `NAME=len(OTHER)`, `NAME=int`, `NAME=struct:TYPE`.

An input of the fuzzer is bytes, whatever they are: numbers and structures stand at fixed places at its
beginning, byte strings behind them, the last one up to the end. So each file is an input, and a corpus of
another fuzzer of the same format can be used as it is where there is one byte string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from allocator.errors import ExecmemError
from loader.btf_records import Kind
from machine.types import GuestType

MOST = 4096  # bytes of a byte string, where nothing else is said
_LARGEST = 1 << 24
_ALIGN = 8  # of structures
_INT = 8  # bytes of an input that a number takes
_LENGTH = 2  # bytes in front of a byte string that is not the last
_BYTES = re.compile(r"bytes(?::(\d+)-(\d+))?")
_RANGE = re.compile(r"int(?::(-?\w+)-(-?\w+))?")
_LEN = re.compile(r"len\((\w+)\)")
_OUT = re.compile(r"out:(\d+)")
_STRUCT = re.compile(r"struct:(.+)")
_NUMBERS = (Kind.INT, Kind.ENUM, Kind.ENUM64)


@attrs.define(auto_exc=True, str=False)
class BadInput(ExecmemError):
    """What a target is to be called with is not known, or makes no sense.

    Parameters
    ----------
    name, reason, hint
        Which input, why, and what to write.
    """

    name: str
    reason: str
    hint: str = ""

    usage = True

    def __str__(self) -> str:
        hint = f"; hint: {self.hint}" if self.hint else ""
        return f"input {self.name}: {self.reason}{hint}"


@attrs.frozen
class Input:
    """An argument.

    Parameters
    ----------
    name
        What it is called.
    kind
        `bytes`, `int`, `len`, `struct`, `out` (zeroed memory of `size` bytes) or `constant`.
    low, high
        Bytes of a byte string, or a number's range.
    other
        Of which byte string it is the length.
    fields
        Offset and size of each number of a structure.
    size
        Bytes of a structure, or of memory.
    """

    name: str
    kind: str
    low: int = 0
    high: int = 0
    other: str = ""
    fields: tuple[tuple[int, int], ...] = ()
    size: int = 0


def parse(word: str, types: Callable[[str], GuestType] | None = None) -> Input:
    """Return the input that a word says: `NAME=bytes:1-64`.

    Parameters
    ----------
    types
        Returns a type by its name.

    Raises
    ------
    BadInput
        It says none.
    """
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise BadInput(
            word, "expected NAME=KIND", "bytes[:MIN-MAX], len(NAME), int[:MIN-MAX], out:SIZE ..."
        )
    if found := _BYTES.fullmatch(text):
        low, high = (int(found[1]), int(found[2])) if found[1] else (0, MOST)
        if not low <= high <= _LARGEST:
            raise BadInput(name, f"{low} to {high} bytes: expected MIN-MAX up to {_LARGEST}")
        return Input(name, "bytes", low, high)
    if found := _LEN.fullmatch(text):
        return Input(name, "len", other=found[1])
    if found := _RANGE.fullmatch(text):
        low, high = (_number(name, found[1]), _number(name, found[2])) if found[1] else (0, -1)
        if found[1] and low > high:
            raise BadInput(name, f"{text}: the range is empty")
        return Input(name, "int", low, high)
    if found := _OUT.fullmatch(text):
        return Input(name, "out", size=min(int(found[1]), _LARGEST))
    if found := _STRUCT.fullmatch(text):
        if types is None:
            raise BadInput(name, "no types are known here", "a kernel with BTF: --kernel PATH")
        kind = types(found[1])
        return Input(name, "struct", fields=tuple(leaves(kind)), size=kind.size)
    return Input(name, "constant", _number(name, text))


def _number(name: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        hint = "bytes[:MIN-MAX], len(NAME), int[:MIN-MAX], struct:TYPE or a number"
        raise BadInput(name, f"{text!r} is no kind of input", hint) from None


def leaves(kind: GuestType, at: int = 0) -> Iterator[tuple[int, int]]:
    """Yield offset and size of each number of a type; pointers are none, and stay NULL."""
    if kind.kind in _NUMBERS:
        yield at, kind.size
    elif kind.kind is Kind.ARRAY:
        inner = kind.target
        if inner is not None and inner.size:
            for number in range(kind.count):
                yield from leaves(inner, at + number * inner.size)
    elif kind.kind in (Kind.STRUCT, Kind.UNION):
        seen = set()
        for field in kind.members.values():
            for found in leaves(field.type, at + field.offset):
                if found[0] not in seen:  # members of a union, and bit fields
                    seen.add(found[0])
                    yield found


def guessed(parameters: Mapping[str, GuestType], given: Mapping[str, Input]) -> dict[str, Input]:
    """Return an input for each parameter: those given, and what is obvious of the others.

    A pointer to bytes is a byte string, a number behind one whose name speaks of a length its length;
    other numbers are numbers.

    Raises
    ------
    BadInput
        A parameter is a pointer to something that nobody said anything about.
    """
    for name in given:
        if name not in parameters:
            known = ", ".join(f"{n} ({kind.name})" for n, kind in parameters.items()) or "none"
            raise BadInput(name, "the function has no such parameter", f"it has {known}")
    found: dict[str, Input] = {}
    for name, kind in parameters.items():
        if name in given:
            found[name] = given[name]
        elif kind.kind in _NUMBERS:
            before = [each.name for each in found.values() if each.kind == "bytes"]
            if before and re.search(r"len|size|count|^n$|bytes", name.lower()):
                found[name] = Input(name, "len", other=before[-1])
            else:
                found[name] = Input(name, "int", 0, -1)
        elif kind.kind is Kind.PTR and _is_bytes(kind):
            found[name] = Input(name, "bytes", 0, MOST)
        else:
            raise BadInput(
                name,
                f"{kind.name}: nobody knows what to pass",
                f"--input {name}=bytes, {name}=struct:TYPE, {name}=NUMBER, or a --harness",
            )
    return found


def _is_bytes(kind: GuestType) -> bool:
    target = kind.target
    return (
        target is None or target.kind is Kind.VOID or (target.kind is Kind.INT and target.size == 1)
    )


@attrs.frozen
class Layout:
    """How an input's bytes become arguments.

    Parameters
    ----------
    inputs
        The arguments, in order.
    """

    inputs: tuple[Input, ...]

    def __attrs_post_init__(self) -> None:
        names = [each.name for each in self.inputs]
        for each in self.inputs:
            if names.count(each.name) > 1:
                raise BadInput(each.name, "is given twice")
            if each.kind == "len" and not any(
                other.name == each.other and other.kind in ("bytes", "struct", "out")
                for other in self.inputs
            ):
                raise BadInput(each.name, f"len({each.other}): there are no such bytes")

    @property
    def fields(self) -> list[tuple[int, int]]:
        """Offset and size of each number at a fixed place."""
        found, at = [], 0
        for each in self.inputs:
            if each.kind == "int":
                found.append((at, _INT))
                at += _INT
            elif each.kind == "struct":
                found += [(at + offset, size) for offset, size in each.fields]
                at += each.size
        return found

    @property
    def most(self) -> int:
        """Bytes of the longest input."""
        found = 0
        for each in self.inputs:
            found += {"int": _INT, "struct": each.size, "bytes": each.high + _LENGTH}.get(
                each.kind, 0
            )
        return found

    def values(self, data: bytes) -> dict[str, int | bytes]:
        """Return each argument's value: bytes that guest memory is to hold, or a number."""
        found: dict[str, int | bytes] = {}
        at = 0
        for each in self.inputs:
            if each.kind == "int":
                found[each.name] = _within(each, data[at : at + _INT])
                at += _INT
            elif each.kind == "struct":
                found[each.name] = data[at : at + each.size].ljust(each.size, b"\0")
                at += each.size
        strings = [each for each in self.inputs if each.kind == "bytes"]
        for each in strings:
            length = len(data)
            if each is not strings[-1]:
                length = int.from_bytes(data[at : at + _LENGTH], "little")
                at += _LENGTH
            piece = data[at : at + min(length, each.high)]
            at += len(piece)
            found[each.name] = piece if len(piece) >= each.low else piece.ljust(each.low, b"\0")
        for each in self.inputs:
            if each.kind == "out":
                found[each.name] = bytes(each.size)
        for each in self.inputs:
            if each.kind == "len":
                found[each.name] = len(found[each.other])  # type: ignore[arg-type]  # bytes
            elif each.kind == "constant":
                found[each.name] = each.low
        return {each.name: found[each.name] for each in self.inputs}

    def seeds(self) -> list[bytes]:
        """Return inputs to begin with, where there is no corpus."""
        fixed = max((at + size for at, size in self.fields), default=0)
        return list(
            dict.fromkeys((bytes(fixed), bytes(fixed) + bytes(8), bytes(fixed) + b"A" * 64))
        )


def _within(each: Input, raw: bytes) -> int:
    number = int.from_bytes(raw, "little")
    if each.high < each.low:
        return number
    return each.low + number % (each.high - each.low + 1)


def layout(words: Sequence[str], parameters: Mapping[str, Any] | None, types: Any) -> Layout:
    """Return how a function is called.

    Parameters
    ----------
    words
        `NAME=KIND` each.
    parameters
        Its prototype's; None: it is not known, and the words are all of its arguments, in order.
    types
        As of `parse`.
    """
    given = [parse(word, types) for word in words]
    if parameters is None:
        if not given:
            hint = "--input NAME=bytes, in the order of the parameters"
            raise BadInput("?", "no types tell what the function takes", hint)
        return Layout(tuple(given))
    names = {each.name: each for each in given}
    if len(names) < len(given):
        raise BadInput(given[-1].name, "is given twice")
    return Layout(tuple(guessed(parameters, names).values()))
