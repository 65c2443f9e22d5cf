# SPDX-License-Identifier: GPL-2.0-or-later
"""Where members of kernel structures lie, by name: what a kernel's types say.

Code names structures and members only. The numbers come from types: those of a kernel that was
given, or a table that was generated from the types of the kernel that an architecture models
(`archs/structures/NAME.json`). What the types lack is `NotKnown`, and never guessed.
"""

from __future__ import annotations

import abc
import enum
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, cast

import attrs

from allocator.errors import ExecmemError, printable

HERE = Path(__file__).parent / "structures"
# Structure -> its bytes, and member -> offset, bytes and what it is read as.
_Rows: TypeAlias = Mapping[str, tuple[int, Mapping[str, tuple[int, int, str]]]]
_SERIES = re.compile(r"\d+\.\d+")


class As(enum.StrEnum):
    """What a member is read as."""

    UNSIGNED = "u"
    SIGNED = "i"
    POINTER = "ptr"
    FUNCTION = "fn"  # a pointer to one
    STRING = "str"  # a pointer to characters
    CHARACTERS = "char"  # an array of them
    STRUCTURE = "struct"  # or a union
    OTHER = "-"


@attrs.frozen
class Member:
    """One member: where it lies, its bytes, what it is read as, and the tag of a structure."""

    offset: int
    size: int
    kind: As
    tag: str = ""

    def read(self, raw: bytes) -> int:
        """Return the number that the member's own bytes hold."""
        return int.from_bytes(raw, "little", signed=self.kind is As.SIGNED)

    def value(self, data: bytes, start: int = 0) -> int:
        """Return its number in bytes that hold a structure from `start` on."""
        at = start + self.offset
        return self.read(data[at : at + self.size])


@attrs.define(auto_exc=True, str=False)
class NotKnown(ExecmemError):
    """Types lack a structure, or a member of one.

    Parameters
    ----------
    name
        The structure, or `structure.member`.
    release
        Of the kernel whose types were asked.
    hint
        What would make it known.
    reason
        What is wrong with it, where it is not that there is none.
    """

    name: str
    release: str
    hint: str
    reason: str = ""

    @property
    def what(self) -> str:
        """What is not known."""
        return printable(f"{self.name} of {self.release} {self.reason or 'is not known'}")

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}"


class Layouts(abc.ABC):
    """The structures of one kernel.

    `hint` is what would make known what is not. Whoever has types says by `find_size` and `find` what they say; both are asked once.
    """

    hint = "give the kernel with --kernel"

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._members: dict[tuple[str, str], Member] = {}
        self.callbacks: dict[str, tuple[tuple[str, int], ...]] = {}  # as their reader found them

    def forget(self) -> None:
        """Ask again for everything: there are other types."""
        self._sizes.clear()
        self._members.clear()
        self.callbacks.clear()

    @property
    @abc.abstractmethod
    def release(self) -> str:
        """Of which kernel, as `uname -r` prints it."""

    @property
    def series(self) -> str:
        """The release's first two numbers."""
        found = _SERIES.match(self.release)
        return found[0] if found else self.release

    @abc.abstractmethod
    def find_size(self, structure: str) -> int | None:
        """Return the bytes of a structure, union, or type of that name; None: there is none."""

    @abc.abstractmethod
    def find(self, structure: str, path: str) -> Member | None:
        """Return a member by its dotted path, or None; NotKnown where it is a bit field.

        Members of unnamed structures and unions belong to what holds them; `[N]` is an element.
        """

    def size_of(self, structure: str) -> int:
        """Return the bytes of a structure; NotKnown where there is none."""
        found = self._sizes.get(structure)
        if found is None:
            found = self.find_size(structure)
            if found is None:
                raise NotKnown(structure, self.release, self.hint)
            self._sizes[structure] = found
        return found

    def member(self, structure: str, path: str) -> Member:
        """Return a member by its dotted path; NotKnown where there is none, or a bit field."""
        found = self._members.get((structure, path))
        if found is None:
            self.size_of(structure)  # a structure that is not there is named alone
            found = self.find(structure, path)
            if found is None:
                raise NotKnown(f"{structure}.{path}", self.release, self.hint)
            self._members[structure, path] = found
        return found

    def offset_of(self, structure: str, path: str) -> int:
        """Return how many bytes of the structure lie before a member; see `member`."""
        found = self._members.get((structure, path))
        return (self.member(structure, path) if found is None else found).offset

    def has(self, structure: str, path: str = "") -> bool:
        """Return whether a structure, or a member of it, is known."""
        try:
            if path:
                self.member(structure, path)
            else:
                self.size_of(structure)
        except NotKnown:
            return False
        return True


class Unknown(Layouts):
    """A kernel whose types nobody has."""

    def __init__(self, release: str, hint: str = "") -> None:
        super().__init__()
        self._release = release
        self.hint = hint or self.hint

    @property
    def release(self) -> str:
        """Of which kernel."""
        return self._release

    def find_size(self, structure: str) -> None:
        """Return None."""

    def find(self, structure: str, path: str) -> None:
        """Return None."""


class Table(Layouts):
    """A table that was generated from a kernel's types, read when somebody first asks.

    It has the members that the modelled kernel names. The members of a member stand with its
    own structure, where that has a line in the table; else they have dotted names.

    Parameters
    ----------
    source
        The table's file, or what it holds.
    """

    def __init__(self, source: Path | Mapping[str, object]) -> None:
        super().__init__()
        self._source = source

    @classmethod
    def of(cls, name: str) -> Table:
        """Return the table of an architecture."""
        return cls(HERE / f"{name}.json")

    @cached_property
    def _table(self) -> Mapping[str, object]:
        if isinstance(self._source, Path):
            found: Mapping[str, object] = json.loads(self._source.read_bytes())
            return found
        return self._source

    @cached_property
    def _rows(self) -> _Rows:
        return cast("_Rows", self._table["structures"])

    @property
    def release(self) -> str:
        """Of the kernel that the table models."""
        return str(self._table["release"])

    def find_size(self, structure: str) -> int | None:
        """Return the bytes that the table has for a structure."""
        row = self._rows.get(structure)
        return None if row is None else row[0]

    def find(self, structure: str, path: str) -> Member | None:
        """Return the member that the table has, or one of a member that is a structure."""
        row = self._rows.get(structure)
        if row is None:
            return None
        found = row[1].get(path)
        if found is not None:
            offset, size, kind = found
            word, _, tag = kind.partition(" ")
            return Member(offset, size, As(word), tag)
        parts = path.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            outer = row[1].get(".".join(parts[:cut]))
            if outer is not None:
                inner = self.find(outer[2].partition(" ")[2], ".".join(parts[cut:]))
                return (
                    None if inner is None else attrs.evolve(inner, offset=outer[0] + inner.offset)
                )
        return None
