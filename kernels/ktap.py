# SPDX-License-Identifier: GPL-2.0-or-later
"""KTAP, the kernel's protocol of test results: Documentation/dev-tools/ktap.rst, version 1.

Lines that are none of the protocol may stand anywhere between, and results may be cut off
anywhere: the kernel that prints them may die. Older kernels' TAP, which nests by `# Subtest:` and
has no inner version lines, is read as well. What tells levels apart is how far a line is indented.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import attrs

_VERSION = re.compile(r"(?P<indent> *)K?TAP version \d+\s*")
_SUBTEST = re.compile(r"(?P<indent> *)# Subtest: (?P<name>.*)")
_PLAN = re.compile(r"(?P<indent> *)1\.\.(?P<count>\d{1,9})\s*")
_RESULT = re.compile(r"(?P<indent> *)(?P<ok>ok|not ok) (?P<number>\d{1,9})(?:\s(?P<rest>.*))?")
_DIRECTIVE = re.compile(r"(SKIP|TODO|XFAIL|TIMEOUT|ERROR)\b:?\s*", re.IGNORECASE)
_SKIP = "SKIP"
_FEW = 1  # results may wait to be printed


class Status(enum.Enum):
    """What became of a test."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CRASHED = "crashed"  # it never said

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return self in (self.PASSED, self.SKIPPED)


@attrs.frozen(kw_only=True)
class Entry:
    """A test, which other tests may make up.

    Parameters
    ----------
    name
        Empty where nobody says it.
    number
        In the test around it, from 1.
    said
        What its own line says.
    directive, diagnostic
        What follows the line's hash sign: `SKIP` and the like, and text.
    log
        Lines before its result, as they were printed.
    tests
        What it is made up of.
    problems
        Where it is not as the protocol has it: numbers, plans.
    """

    name: str
    number: int
    said: Status
    directive: str = ""
    diagnostic: str = ""
    log: tuple[str, ...] = ()
    tests: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """What became of it: what it says itself, or the worst of what it is made up of."""
        below = {test.status for test in self.tests}
        for worst in (Status.CRASHED, Status.FAILED):
            if self.said is worst or worst in below:
                return worst
        if below == {Status.SKIPPED}:
            return Status.SKIPPED
        return self.said

    def leaves(self, above: str = "") -> Iterator[tuple[str, Entry]]:
        """Yield the tests that are not made up of others, each with its full name.

        One that fails though all that it is made up of passed is one, too.
        """
        name = f"{above}.{self.name}" if above else self.name
        for test in self.tests:
            yield from test.leaves(name)
        if not self.tests or (
            not self.said.is_good and all(test.status.is_good for test in self.tests)
        ):
            yield name, self


@attrs.frozen(kw_only=True)
class Results:
    """What a log says of tests.

    Parameters
    ----------
    tests
        The outermost, in order.
    problems
        Where their frame is not as the protocol has it.
    cut
        Whether it ends in the middle of a test.
    """

    tests: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()
    cut: bool = False

    def leaves(self) -> Iterator[tuple[str, Entry]]:
        """Yield the tests that are not made up of others, each with its full name."""
        for test in self.tests:
            yield from test.leaves()

    @property
    def counts(self) -> dict[str, int]:
        """How many of them passed, failed, were skipped, crashed."""
        found = Counter(test.status.value for _, test in self.leaves())
        return {status.value: found[status.value] for status in Status}


@attrs.define(eq=False)
class _Level:
    """Tests at one depth, so far."""

    indent: int
    name: str = ""
    plan: int | None = None
    tests: list[Entry] = attrs.field(factory=list)
    log: list[str] = attrs.field(factory=list)  # since the last result
    problems: list[str] = attrs.field(factory=list)

    def add(self, test: Entry) -> None:
        """Take a test's result."""
        self.tests.append(test)
        self.log = []

    def whole(self) -> tuple[str, ...]:
        """Return what is wrong with it now that it has ended."""
        planned = self.plan is not None and self.plan != len(self.tests)
        text = f"{self.plan} tests planned, {len(self.tests)} seen"
        return (*self.problems, *([text] if planned else ()))


def read(lines: Iterable[str]) -> Results:
    """Return the results in lines of a log, whatever else they hold.

    Parameters
    ----------
    lines
        Without what the log puts in front of them (level, time).
    """
    reader = _Reader()
    for line in lines:
        reader.take(line)
    return reader.end()


class _Reader:
    """Reads line by line; the levels that are open, outermost first."""

    def __init__(self) -> None:
        self._levels: list[_Level] = []
        self._tests: list[Entry] = []
        self._problems: list[str] = []

    def take(self, line: str) -> None:
        """Take the next line."""
        for pattern, take in (
            (_VERSION, self._version),
            (_SUBTEST, self._subtest),
            (_PLAN, self._plan),
            (_RESULT, self._result),
        ):
            match = pattern.fullmatch(line)
            if match is not None and take(match):
                return
        if self._levels:
            self._levels[-1].log.append(line)

    def end(self) -> Results:
        """Return everything."""
        cut = any(level.indent for level in self._levels) or any(
            level.plan is not None and level.plan > len(level.tests) for level in self._levels
        )
        self._leave(1)
        self._finish()
        return Results(tests=tuple(self._tests), problems=tuple(self._problems), cut=cut)

    # The lines ----------------------------------------------------------------------------------

    def _version(self, match: re.Match[str]) -> bool:
        indent = len(match["indent"])
        if indent:
            self._leave(indent)
        else:
            self._leave(1)
            self._finish()
        self._levels.append(_Level(indent))
        return True

    def _subtest(self, match: re.Match[str]) -> bool:
        indent = len(match["indent"])
        level = self._levels[-1] if self._levels else None
        if level is not None and level.indent == indent and not (level.name or level.tests):
            level.name = match["name"].strip()
            return True
        if not indent:
            return False
        self._leave(indent)
        self._levels.append(_Level(indent, match["name"].strip()))
        return True

    def _plan(self, match: re.Match[str]) -> bool:
        indent = len(match["indent"])
        level = self._levels[-1] if self._levels else None
        if level is not None and level.indent == indent and level.plan is None and not level.tests:
            level.plan = int(match["count"])
            return True
        return False

    def _result(self, match: re.Match[str]) -> bool:
        indent = len(match["indent"])
        if not self._levels and indent:
            return False  # the log of something else
        inner = self._inner(indent, name := _Line.of(match))
        if not self._levels or self._levels[-1].indent < indent:
            self._levels.append(_Level(indent))
        level = self._levels[-1]
        problems = []
        if name.number != len(level.tests) + 1:
            problems.append(f"number {name.number}, expected {len(level.tests) + 1}")
        log = tuple(level.log)
        tests: tuple[Entry, ...] = ()
        if inner is not None:
            tests = tuple(inner.tests)
            problems += inner.whole()
            log += tuple(inner.log)
        level.add(
            Entry(
                name=name.name,
                number=name.number,
                said=name.status,
                directive=name.directive,
                diagnostic=name.diagnostic,
                log=log,
                tests=tests,
                problems=tuple(problems),
            )
        )
        return True

    # The levels ---------------------------------------------------------------------------------

    def _inner(self, indent: int, line: _Line) -> _Level | None:
        """Close what is deeper than a result; return the level that it is the result of."""
        deeper = [level for level in self._levels if level.indent > indent]
        if not deeper:
            return None
        first = deeper[0]
        if first.name and first.name != line.name:
            self._leave(indent + 1)  # it has none, this one is another test's
            return None
        self._leave(first.indent + 1)
        self._levels.remove(first)
        return first

    def _leave(self, indent: int) -> None:
        """Close levels that are as deep or deeper: what they belong to has no result, it crashed."""
        innermost = True
        while self._levels and self._levels[-1].indent >= indent:
            level = self._levels.pop()
            problems = level.problems
            if innermost and (level.plan is None or level.plan > len(level.tests)):
                left = "" if level.plan is None else f" of {level.plan}"
                crashed = Entry(
                    name="",
                    number=len(level.tests) + 1,
                    said=Status.CRASHED,
                    log=tuple(level.log),
                    problems=(f"no result: it is test {len(level.tests) + 1}{left}",),
                )
                if level.plan is not None or level.log or not level.tests:
                    level.add(crashed)
            if level.plan is not None and level.plan > len(level.tests):
                problems = [*problems, f"{level.plan - len(level.tests)} tests were not run"]
            innermost = False
            if not self._levels:
                self._levels.append(_Level(0))
            outer = self._levels[-1]
            outer.add(
                Entry(
                    name=level.name,
                    number=len(outer.tests) + 1,
                    said=Status.CRASHED,
                    log=(*outer.log, *level.log),
                    tests=tuple(level.tests),
                    problems=(*problems, "no result"),
                )
            )

    def _finish(self) -> None:
        """Close the outermost level, which has no result of its own."""
        for level in self._levels:
            self._tests += level.tests
            self._problems += level.whole()
        self._levels = []


@attrs.frozen
class _Line:
    """What a line of a result says."""

    number: int
    name: str
    status: Status
    directive: str
    diagnostic: str

    @classmethod
    def of(cls, match: re.Match[str]) -> _Line:
        """Return it, taken apart."""
        text = match["rest"] or ""
        text = text.removeprefix("- ")
        description, mark, rest = (
            ("", "#", text[1:]) if text.startswith("#") else text.partition(" #")
        )
        rest = rest.strip() if mark else ""
        found = _DIRECTIVE.match(rest)
        directive = found[1].upper() if found is not None else ""
        if found is not None:
            rest = rest[found.end() :]
        status = Status.PASSED if match["ok"] == "ok" else Status.FAILED
        if directive == _SKIP:  # either way
            status = Status.SKIPPED
        return cls(int(match["number"]), description.strip(), status, directive, rest)


def with_names(results: Results, begun: Sequence[str]) -> Results:
    """Return results that were cut off, with what was under way by its name.

    Parameters
    ----------
    begun
        Names of the tests that had begun, in order. Those that had ended too, but whose results
        were not printed yet, are told: a line of the log waits for the next one.
    """

    def named(tests: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if not tests or not begun or tests[-1].said is not Status.CRASHED:
            return tests
        last = tests[-1]
        if last.tests:
            return (*tests[:-1], attrs.evolve(last, tests=named(last.tests)))
        if last.name:
            return tests
        seen = {test.name for test in tests[:-1]}
        first = max((n for n, name in enumerate(begun) if name in seen), default=-1) + 1
        ended = begun[first:-1] if seen or first else begun[:-1][-_FEW:]
        problems = last.problems
        if ended:
            said = f"results that were not printed yet: {', '.join(ended)}"
            problems = (said,)
        return (*tests[:-1], attrs.evolve(last, name=begun[-1], problems=problems))

    return attrs.evolve(results, tests=named(results.tests))


def lines_of(test: Entry, number: int, indent: str = "") -> Iterator[str]:
    """Yield a test as KTAP: what it is made up of, what was logged, and its result.

    Parameters
    ----------
    number
        What it has among those beside it.
    indent
        What each line begins with.
    """
    if test.tests:
        inner = f"{indent}    "
        yield f"{inner}KTAP version 1"
        yield f"{inner}# Subtest: {test.name}"
        yield f"{inner}1..{len(test.tests)}"
        for at, each in enumerate(test.tests, 1):
            yield from lines_of(each, at, inner)
    for line in (*test.log, *test.problems):
        text = line.strip()
        marked = text.startswith("# ") and not _SUBTEST.fullmatch(text)
        yield f"{indent}{text}" if marked else f"{indent}# {text}".rstrip()
    good = "ok" if test.status.is_good else "not ok"
    rest = f"{test.directive} {test.diagnostic}".strip()
    if test.said is Status.CRASHED and not rest:
        rest = "ERROR no result"
    name = f" {test.name}" if test.name else ""
    yield f"{indent}{good} {number}{name}{f' # {rest}' if rest else ''}"


def is_version(line: str) -> bool:
    """Return whether a line begins results."""
    return _VERSION.fullmatch(line) is not None
