# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks that the tool checks: an answer is a small file, a verdict says what is wrong with numbers.

Nothing here runs what an answer holds: whoever grades does it where that can do no harm.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

import attrs

from allocator.errors import ExecmemError, did_you_mean, printable
from archs import Arch, archs
from archs import arch as arch_by_name

WIDTH = 76  # columns of what a file says of a task
LONGEST = 1 << 16  # bytes of an answer
_COMMENT = re.compile(r"# (\w+ = .*)")  # how a file in Python says what a TOML file says


@attrs.define(auto_exc=True, str=False)
class AnswerError(ExecmemError):
    """An answer that cannot be graded: the file, and what of it is not as the task asks."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@attrs.frozen
class Answer:
    """What a file says, by key.

    Parameters
    ----------
    file
        Its path, for messages and for who imports it.
    """

    file: str
    text: str
    task: str
    arch: Arch
    values: Mapping[str, Any]

    def number(self, key: str) -> int:
        """Return a whole number: 4096, or in hex "-0x1000"; AnswerError where there is none."""
        return self._as_number(key, self._get(key))

    def numbers(self, key: str) -> list[int]:
        """Return a list of whole numbers; AnswerError where there is none."""
        return [self._as_number(key, each) for each in self._list(key)]

    def pairs(self, key: str) -> list[tuple[int, int]]:
        """Return a list of two whole numbers each; AnswerError where there is none."""
        found = []
        for each in self._list(key):
            if not isinstance(each, list) or len(each) != 2:
                raise AnswerError(self.file, f"{key} = {each!r}: expected two numbers: [0, 64]")
            found.append((self._as_number(key, each[0]), self._as_number(key, each[1])))
        return found

    def addresses(self, key: str, word: str) -> list[int | str]:
        """Return a list of whole numbers, or the word that may stand there instead."""
        return [each if each == word else self._as_number(key, each) for each in self._list(key)]

    def word(self, key: str) -> str:
        """Return a text; AnswerError where there is none."""
        found = self._get(key)
        if not isinstance(found, str):
            raise AnswerError(self.file, f"{key} = {found!r}: expected a text in quotes")
        return found.strip()

    def code(self, key: str) -> bytes:
        """Return bytes that are written in hex; AnswerError where there are none."""
        return self._as_code(key, self.word(key))

    def codes(self, key: str) -> list[bytes]:
        """Return a list of bytes that are written in hex; AnswerError where there is none."""
        return [self._as_code(key, each) for each in self._list(key)]

    def words(self, key: str, known: Sequence[str] = ()) -> list[str]:
        """Return a list of texts, each one of those `known`; AnswerError where it is not."""
        found = [str(each) for each in self._list(key)]
        for each in found:
            if known and each not in known:
                near = did_you_mean(each, known)
                reason = f"{key} has {each!r}{near}; there are {', '.join(known)}"
                raise AnswerError(self.file, printable(reason))
        return found

    def _get(self, key: str) -> Any:
        if key not in self.values:
            given = ", ".join(self.values) or "nothing"
            raise AnswerError(self.file, printable(f"no {key}; it says {given}"))
        return self.values[key]

    def _list(self, key: str) -> list[Any]:
        found = self._get(key)
        if not isinstance(found, list):
            raise AnswerError(self.file, f"{key} = {found!r}: expected a list: [ ... ]")
        return found

    def _as_code(self, key: str, found: object) -> bytes:
        with contextlib.suppress(ValueError):
            if isinstance(found, str):
                return bytes.fromhex(found)
        reason = f'{key} = {found!r}: expected hex, as "00 1f"'
        raise AnswerError(self.file, printable(reason))

    def _as_number(self, key: str, found: object) -> int:
        if isinstance(found, str):
            with contextlib.suppress(ValueError):
                found = int(found, 0)
        if type(found) is not int or abs(found) >= 1 << 64:
            reason = f'{key} = {found!r}: expected a number, as 4096 or "-0x1000"'
            raise AnswerError(self.file, printable(reason))
        return found


@attrs.frozen
class Check:
    """One thing that a task asks, what was found, and whether that is enough."""

    what: str
    found: str
    wanted: str
    passed: bool


@attrs.frozen
class Verdict:
    """What became of an answer.

    Parameters
    ----------
    checks
        What the task asks, each with what was found.
    score
        What it costs, by the task's unit; fewer is better. None: nothing that could be counted.
    """

    checks: tuple[Check, ...]
    score: int | None = None

    @property
    def passed(self) -> bool:
        """Whether all that is asked was found."""
        return all(check.passed for check in self.checks)


@attrs.frozen(kw_only=True)
class Task:
    """Something to do that the tool checks.

    Parameters
    ----------
    name
        What it is called, in files and on the command line.
    title
        What to do, in a line.
    text
        All that one needs to know, for an architecture.
    template
        The keys of an answer and what stands there first, for an architecture: lines of TOML, or
        a file in Python.
    hints
        From a nudge to nearly all of it.
    grade
        Says what becomes of an answer.
    unit
        What the score counts.
    best
        The best score that is known, by architecture; who is not in it has no such task.
    suffix
        Of an answer's file.
    """

    name: str
    title: str
    text: Callable[[Arch], str]
    template: Callable[[Arch], str]
    hints: tuple[str, ...]
    grade: Callable[[Answer], Verdict]
    unit: str
    best: Mapping[str, int]
    suffix: str = ".toml"

    @property
    def archs(self) -> tuple[Arch, ...]:
        """Architectures that have this task."""
        return tuple(arch for arch in archs() if self.best.get(arch.name) is not None)

    def arch(self, name: str | None) -> Arch:
        """Return the architecture that is meant: the first that has it, where none is named."""
        if name is None:
            return self.archs[0]
        try:
            found = arch_by_name(name)
        except ValueError as error:
            raise ExecmemError(str(error)) from None
        if found not in self.archs:
            has = ", ".join(arch.name for arch in self.archs)
            raise ExecmemError(f"task {self.name}: not for {found.name}, but for {has}")
        return found

    def file(self, arch: Arch) -> str:
        """Return what an answer's file says before anything is answered."""
        head = f'task = "{self.name}"\narch = "{arch.name}"\n'
        lines = [f"# {line}".rstrip() for line in wrapped(self.text(arch))]
        score = f"# Score: {self.unit}; fewer is better."
        about = "\n".join([f"# {self.title}", "#", *lines, score])
        if self.suffix == ".py":
            head = "".join(f"# {line}\n" for line in head.splitlines())
            return f"{head}#\n{about}\n{self.template(arch)}"
        return f"{about}\n\n{head}\n{self.template(arch)}"


def read(file: str, text: str) -> tuple[str, str | None, Mapping[str, Any]]:
    """Return the task, the architecture and the values that a file names; AnswerError."""
    if len(text) > LONGEST:
        raise AnswerError(file, f"an answer has at most {LONGEST:,} characters, not {len(text):,}")
    if file.endswith(".py"):
        text = "\n".join(found[1] for line in text.splitlines() if (found := _COMMENT.match(line)))
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise AnswerError(file, printable(f"no TOML: {error}")) from None
    task, arch = values.pop("task", None), values.pop("arch", None)
    if not isinstance(task, str):
        raise AnswerError(file, 'it names no task; begin with task = "NAME"')
    if arch is not None and not isinstance(arch, str):
        raise AnswerError(file, f"arch = {arch!r}: expected the name of an architecture")
    return task, arch, values


def wrapped(text: str) -> list[str]:
    """Return a text's lines, none longer than a terminal's; what is indented stays a line."""
    lines: list[str] = []
    for indented, group in groupby(text.splitlines(), lambda line: line.startswith(" ")):
        found = list(group)
        lines += found if indented else wrap(" ".join(found), WIDTH, break_on_hyphens=False)
    return lines


def plural(number: int, what: str) -> str:
    """Return a number of things."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
