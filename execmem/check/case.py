# SPDX-License-Identifier: GPL-2.0-or-later
"""A case as it stands in its file: directives in order, by placement, with their line numbers."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping

import attrs

from allocator.errors import ExecmemError, printable


class Form(enum.Enum):
    """What a case's objects are made from."""

    ASSEMBLY = "assembly"
    PREPROCESSED = "assembly that the C preprocessor sees first"
    C = "C"
    SHARED = "assembly of every architecture"
    TEXT = "sections, symbols and relocations, written out"
    PACKED = "objects"


@attrs.define(auto_exc=True, str=False)
class BadCase(ExecmemError):
    """A file is no case, or a directive means nothing.

    Parameters
    ----------
    path, line
        The file, and the line from 1; 0: the whole file.
    reason
        One line.
    """

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return printable(f"{where}: {self.reason}")


@attrs.frozen
class Directive:
    """One directive.

    Parameters
    ----------
    line
        Where it stands, from 1.
    word, rest
        Its first word, and what follows.
    only
        Names of the architectures that it is for; empty: every one.
    """

    line: int
    word: str
    rest: str
    only: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.word} {self.rest}".strip()

    def is_for(self, arch: str) -> bool:
        """Return whether it is for an architecture."""
        return not self.only or arch in self.only


@attrs.frozen(kw_only=True)
class Placement:
    """Where everything lies in one link, and what must hold there.

    Parameters
    ----------
    title
        What its `place` directive says; empty for a case without one.
    line
        Where that stands.
    directives
        Of the whole case, then its own.
    only
        Names of the architectures that it is for; empty: every one.
    """

    title: str
    line: int
    directives: tuple[Directive, ...]
    only: frozenset[str] = frozenset()

    def is_for(self, arch: str) -> bool:
        """Return whether there is such a link on an architecture."""
        return not self.only or arch in self.only

    def of(self, arch: str, *words: str) -> Iterator[Directive]:
        """Yield the directives for an architecture, in order; of all words by default."""
        for directive in self.directives:
            if (not words or directive.word in words) and directive.is_for(arch):
                yield directive


@attrs.frozen(kw_only=True)
class Case:
    """A case.

    Parameters
    ----------
    path
        The file, as it was given.
    form
        What its objects are made from.
    placements
        At least one.
    archs
        Names of the architectures that it says it is for; empty: it says nothing.
    source
        What is assembled or compiled, line by line as in the file.
    objects
        Of a packed case: objects by architecture.
    tools
        Of a packed case: what made them.
    flags
        Options for the assembler or compiler, by the architectures they are for.
    suffix
        Of the name of its source.
    """

    path: str
    form: Form
    placements: tuple[Placement, ...]
    archs: tuple[str, ...] = ()
    source: str = ""
    objects: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)
    tools: Mapping[str, str] = attrs.field(factory=dict)
    flags: tuple[Directive, ...] = ()
    suffix: str = ".s"

    def bad(self, line: int, reason: str) -> BadCase:
        """Return the error that a line of this case is."""
        return BadCase(self.path, line, reason)
