# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the RUN lines of LLVM's tests: commands, as words, with nothing for a shell to do.

A line that ends in a backslash goes on in the next RUN line. `&&` separates commands, `|` pipes,
`2>&1` is taken off; anything else that a shell would act on is not understood, and said so.

Source: LLVM's documentation, "lit - LLVM Integrated Tester" and TestingGuide.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import attrs

from allocator.errors import ExecmemError, printable

_LINE = re.compile(r"\b(RUN|REQUIRES|UNSUPPORTED|XFAIL):(.*)")
_SUBSTITUTION = re.compile(r"%(%|\{[^}]*\}|basename_t|[A-Za-z]\w*)")
_LONGEST_FIRST = ("basename_t", "s", "S", "p", "t", "T", "%")
_UNQUOTED = frozenset("$`;&<>()")


class NotUnderstood(ExecmemError):
    """Something in a RUN line that is not understood here; `line` is where, from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(printable(reason))
        self.line, self.reason = line, reason


@attrs.frozen
class Command:
    """A pipeline.

    Parameters
    ----------
    line
        Where it begins, from 1.
    stages
        The words of each command in it.
    problem
        What of it is not understood; it has no stages then.
    """

    line: int
    stages: tuple[tuple[str, ...], ...] = ()
    problem: str = ""


@attrs.frozen
class Script:
    """What a test says of how it is run.

    Parameters
    ----------
    commands
        In their order.
    requires, unsupported
        What the lines of these names say, word by word.
    expected_to_fail
        What the XFAIL lines say.
    """

    commands: tuple[Command, ...]
    requires: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    expected_to_fail: tuple[str, ...] = ()


def read(text: str, substitutions: Mapping[str, str]) -> Script:
    """Read a test.

    Parameters
    ----------
    substitutions
        By what stands behind the percent sign: `s`, `S`, `t` and so on.
    """
    words: dict[str, list[str]] = {"REQUIRES": [], "UNSUPPORTED": [], "XFAIL": []}
    commands: list[Command] = []
    start, held = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        found = _LINE.search(line)
        if found is None:
            continue
        name, rest = found.groups()
        if name != "RUN":
            words[name] += (word.strip() for word in rest.split(",") if word.strip())
            continue
        start, held = (start, held) if held else (number, "")
        held = f"{held} {rest.strip()}".strip() or " "
        if held.endswith("\\"):
            held = held[:-1].rstrip() or " "
            continue
        commands += _commands(start, held, substitutions)
        held = ""
    if held.strip():
        commands.append(Command(start, problem="the last RUN line goes on, and nothing follows"))
    return Script(
        tuple(commands),
        tuple(words["REQUIRES"]),
        tuple(words["UNSUPPORTED"]),
        tuple(words["XFAIL"]),
    )


def _commands(line: int, text: str, substitutions: Mapping[str, str]) -> Iterator[Command]:
    try:
        tokens = list(_tokens(line, text, substitutions))
    except NotUnderstood as error:
        yield Command(line, problem=error.reason)
        return
    stages: list[tuple[str, ...]] = []
    words: list[str] = []
    for token in [*tokens, _AND]:
        if isinstance(token, str):
            words.append(token)
            continue
        if words:
            stages.append(tuple(words))
        elif stages or token is not _AND:
            yield Command(line, problem="a command has no words")
            return
        words = []
        if token is _AND:
            if stages:
                yield Command(line, tuple(stages))
            stages = []


@attrs.frozen
class _Mark:
    text: str


_AND, _PIPE = _Mark("&&"), _Mark("|")


def _tokens(line: int, text: str, substitutions: Mapping[str, str]) -> Iterator[str | _Mark]:
    """Yield words and marks; NotUnderstood at what only a shell could do."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif text.startswith("&&", at):
            at += 2
            yield _AND
        elif text[at] == "|" and not text.startswith("||", at):
            at += 1
            yield _PIPE
        elif text.startswith("2>&1", at) and text[at + 4 : at + 5] in ("", " ", "\t", "|"):
            at += 4
        else:
            word, at = _word(line, text, at)
            yield _filled(line, word, substitutions)


def _word(line: int, text: str, at: int) -> tuple[str, int]:
    """Return a word without its quotes, and where it ends."""
    found: list[str] = []
    quote = ""
    while at < len(text):
        mark = text[at]
        if quote:
            if mark == quote:
                quote = ""
            elif mark == "\\" and quote == '"' and text[at + 1 : at + 2] in ("\\", '"', "$", "`"):
                at += 1
                found.append(text[at])
            elif mark in "$`" and quote == '"':
                raise NotUnderstood(line, f"{mark} in a RUN line is for a shell, and there is none")
            else:
                found.append(mark)
        elif mark.isspace() or mark == "|":
            if text.startswith("||", at):
                raise NotUnderstood(line, "|| in a RUN line is for a shell, and there is none")
            break
        elif mark in "\"'":
            quote = mark
        elif mark == "\\":
            at += 1
            if at >= len(text):
                raise NotUnderstood(line, "a backslash ends a RUN line, and nothing follows")
            found.append(text[at])
        elif text.startswith("&&", at):
            break
        elif mark in _UNQUOTED:
            raise NotUnderstood(line, f"{mark} in a RUN line is for a shell, and there is none")
        else:
            found.append(mark)
        at += 1
    if quote:
        raise NotUnderstood(line, f"{quote} in a RUN line has no end")
    return "".join(found), at


def _filled(line: int, word: str, substitutions: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        text = found.group(1)
        for name in _LONGEST_FIRST:
            if text.startswith(name) and name in substitutions:
                # `%t.o` is %t with more behind it; `%lli` and the like are names of their own.
                if name in ("s", "S", "p", "T") and text != name:
                    break
                return substitutions[name] + text[len(name) :]
        raise NotUnderstood(line, f"the substitution %{text} is not known here")

    return _SUBSTITUTION.sub(value, word)


# What FileCheck is told ---------------------------------------------------------------------------


def check_lines(text: str, prefixes: tuple[str, ...]) -> list[tuple[int, str]]:
    """Return the patterns that FileCheck looks for, with their lines from 1; `-NOT` is left out."""
    names = "|".join(map(re.escape, prefixes))
    pattern = re.compile(rf"(?<![\w-])(?:{names})(?:-(?:NEXT|SAME|DAG|LABEL))?:\s*(.*\S)")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = pattern.search(line)
        if match is not None:
            found.append((number, match.group(1)))
    return found


def rules(text: str, name: str) -> Iterator[tuple[int, str]]:
    """Yield the checks of a name, with the line that each begins in: as llvm-jitlink finds them.

    They begin a line, behind `# `, and go on in the next one of their kind after a backslash.
    """
    start, held = 0, ""
    prefix = f"# {name}:"
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.lstrip()
        if not line.startswith(prefix):
            continue
        start = start if held else number
        held += line[len(prefix) :]
        if held.endswith("\\"):
            held = held[:-1] or " "
            continue
        if held:
            yield start, " ".join(held.split())
        held = ""
    if held.strip():
        yield start, " ".join(held.split())
