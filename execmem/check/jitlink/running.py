# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs LLVM's own JITLink tests, unmodified: links as their RUN lines say, and holds their checks.

Each `llvm-jitlink` that a file calls becomes an outcome. Our link takes the place of JITLink's, at
the addresses of the slab; where a file leaves them open, where modules lie, far from what it calls.
What asks for something that no module loader does is told by name, check by check.

Source: LLVM's llvm/tools/llvm-jitlink/llvm-jitlink.cpp, for the options.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import attrs

import archs
from allocator.errors import ExecmemError
from allocator.types import ADDRESS_MASK, PAGE_SIZE, MemType, align_up
from archs import Checks
from archs.engine import Problem
from execmem.check import expressions, placing
from execmem.check.expressions import BadExpression
from execmem.check.jitlink import foreign, lit, tables
from execmem.check.jitlink.workshop import Options, Stopped, Workshop, kind, options
from execmem.check.outcome import Finding, Outcome, Verdict
from execmem.check.subject import Planned, Subject, Unanswerable, exports
from loader.elfview import SHF_WRITE
from loader.errors import BadModule, LoadError, RelocationError

SUFFIXES = (".s", ".S", ".test", ".yaml", ".ll", ".c")
LARGEST = 1 << 24  # characters of a test
AWAY = 1 << 30  # bytes from what a file defines to where its link is tried next
MOST_NEAR = 8
LOW = 0x1000_0000  # where a link is tried that fits nowhere else
_SECTIONS = 60  # where an ELF header counts sections
ROUNDS = 4  # how often records are taken out before a link that still fails is given up

_SAID_BY_BOTH = ("out of range", "not aligned", "alignment", "unsupported", "unknown")


def is_jitlink(text: str) -> bool:
    """Return whether a file is a test of llvm-jitlink: whether its RUN lines call it."""
    return "llvm-jitlink" in text and re.search(r"\bRUN:[^\n]*", text) is not None


def run_jitlink(path: Path, *, arch: str | None = None) -> Sequence[Outcome]:
    """Run a test.

    Parameters
    ----------
    arch
        Run what concerns this architecture only; None: everything.

    Returns one outcome of each `llvm-jitlink` in its RUN lines, and one where the file itself
    cannot be run.
    """
    try:
        if path.stat().st_size > LARGEST:
            return (_whole(path, Verdict.FAILED, f"is larger than {LARGEST:#x} bytes"),)
        text = path.read_text("utf-8", errors="replace")
        with tempfile.TemporaryDirectory(prefix="execmem-jitlink-") as folder:
            return tuple(_Test(path, text, Workshop(path, Path(folder)), arch).outcomes())
    except OSError as error:
        return (_whole(path, Verdict.FAILED, error.strerror or "cannot be read"),)


def _whole(path: Path, verdict: Verdict, text: str, line: int = 0) -> Outcome:
    finding = Finding(verdict=verdict, line=line, text=text)
    return Outcome(path=str(path), arch="", findings=(finding,))


@attrs.define
class _Test:
    """A test file while its commands are carried out, one after the other."""

    path: Path
    text: str
    shop: Workshop
    only: str | None

    def outcomes(self) -> Iterator[Outcome]:
        script = lit.read(self.text, self.shop.substitutions)
        if "*" in script.expected_to_fail:
            yield _whole(self.path, Verdict.SKIPPED, "LLVM expects it to fail (XFAIL: *)")
            return
        several = sum(_calls(command) for command in script.commands) > 1
        found = False
        for command in script.commands:
            if command.problem:
                found = True
                yield _whole(self.path, Verdict.SKIPPED, command.problem, command.line)
            elif _calls(command):
                outcome = self._linked(command, several=several)
                found = True
                if outcome is not None:
                    yield outcome
            else:
                try:
                    self._carried_out(command)
                except Stopped as stopped:
                    # What it was to make tells, where it is used; what makes nothing tells now.
                    if not _makes(command):
                        found = True
                        text = stopped.reason
                        yield _whole(self.path, stopped.verdict, text, command.line)
        if not found:
            yield _whole(self.path, Verdict.SKIPPED, "none of its RUN lines calls llvm-jitlink")

    def _carried_out(self, command: lit.Command) -> None:
        first = PurePath(command.stages[0][0]).name
        if first in tables.LOOKS:
            raise Stopped(Verdict.FOREIGN, f"{first} looks at an object, and not at a link")
        if len(command.stages) > 1:
            names = " | ".join(stage[0] for stage in command.stages)
            raise Stopped(Verdict.SKIPPED, f"{names} is not carried out here")
        self.shop.carry_out(command.stages[0])

    def _linked(self, command: lit.Command, *, several: bool) -> Outcome | None:
        """Return what became of one call of llvm-jitlink; None where it is another's."""
        words = list(command.stages[0])
        inverted = words[0] == "not"
        words = words[1:] if inverted else words
        if words and words[0] in ("--crash", "env"):
            words = words[next((n for n, w in enumerate(words) if "llvm-jitlink" in w), 0) :]
        link = _Link(self, command, inverted=inverted)
        try:
            link.prepare(options(words, tables.VALUED, tables.PLAIN))
            if self.only is not None and link.arch != self.only:
                return None
            link.check()
        except Stopped as stopped:
            link.arch = link.arch or stopped.arch
            link.found(stopped.verdict, command.line, stopped.reason)
        except ExecmemError as error:
            link.found(Verdict.FAILED, command.line, str(error).partition("\n")[0])
        # Of what is no module's, and no architecture's, those who ask for one need not know.
        unsaid = not link.arch and any(one.verdict is not Verdict.FOREIGN for one in link.findings)
        if self.only is not None and link.arch != self.only and not unsaid:
            return None
        where = [f"line {command.line}"] if several else []
        return Outcome(
            path=str(self.path),
            arch=link.arch,
            placement=", ".join(where + link.at),
            findings=tuple(link.findings),
        )


def _calls(command: lit.Command) -> bool:
    """Return whether a command calls llvm-jitlink."""
    return (
        any(PurePath(word).name == "llvm-jitlink" for word in command.stages[0])
        if (command.stages)
        else False
    )


def _makes(command: lit.Command) -> bool:
    """Return whether a command names a file that it writes."""
    words = command.stages[0]
    return any(word in ("-o", "--o") or word.startswith(("-o=", "--o=")) for word in words)


@attrs.define
class _Link:
    """One call of llvm-jitlink."""

    test: _Test
    command: lit.Command
    inverted: bool
    arch: str = ""
    at: list[str] = attrs.field(factory=list)
    findings: list[Finding] = attrs.field(factory=list)
    told: Options = attrs.field(factory=lambda: Options((), ()))
    objects: list[tuple[str, bytes]] = attrs.field(factory=list)
    given: dict[str, int] = attrs.field(factory=dict)

    def found(self, verdict: Verdict, line: int, text: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(verdict=verdict, line=line, text=text))

    # What it is called with ------------------------------------------------------------------

    def prepare(self, told: Options) -> None:
        """Read options and objects; Stopped where that is none of a module's."""
        self.told = told
        if not told.rest:
            raise Stopped(Verdict.SKIPPED, "llvm-jitlink is called without an object")
        late: Stopped | None = None
        for word in told.rest:
            name = PurePath(word).name
            try:
                image = self.test.shop.made(word)
            except Stopped as stopped:
                if stopped.verdict is Verdict.FOREIGN:
                    raise
                late = late or stopped
                continue
            wrong = kind(image, name)
            if wrong:
                verdict = Verdict.SKIPPED if wrong.endswith("no object file") else Verdict.FOREIGN
                raise Stopped(verdict, wrong)
            self.objects.append((name, image))
        if told.unknown:
            what = f"the option {told.unknown[0]} of llvm-jitlink is not understood here"
            raise Stopped(Verdict.SKIPPED, what)
        if late is not None:
            raise late
        machines = {int.from_bytes(image[18:20], "little") for _, image in self.objects}
        known = [arch for arch in archs.archs() if arch.machine in machines]
        if len(machines) != 1 or not known:
            numbers = ", ".join(map(str, sorted(machines)))
            raise Stopped(
                Verdict.FOREIGN, f"objects of machine {numbers}, of which no module is known"
            )
        self.arch = known[0].name
        for name, what in tables.FOREIGN.items():
            if told.has(name):
                raise Stopped(Verdict.FOREIGN, f"-{name} {what}")
        for text in told.every("abs", "define-abs"):
            name, _, value = text.partition("=")
            self.given[name] = _number(value, f"-abs {text}")

    def _planned(self) -> list[Planned]:
        found = []
        for name, image in self.objects:
            try:
                found.append(Planned.of(name, image))
            except BadModule as error:
                for text, what in tables.BAD.items():
                    if text in error.reason:
                        raise Stopped(Verdict.FOREIGN, what) from None
                raise
        return found

    # The link --------------------------------------------------------------------------------

    def check(self) -> None:
        """Link, and hold every check."""
        if self.inverted:
            self._refused()
            return
        planned = self._planned()
        for text in self.told.every("alias"):
            name, _, other = text.partition("=")
            self._alias(planned, name, other)
        if self.told.has("phony-externals"):
            known = exports(planned, [dict.fromkeys(p.layout.placements, 0) for p in planned])
            for one in planned:
                for name in one.view.undefined:
                    if name not in known:
                        self.given.setdefault(name, 0)
        subject, gone = self._link(planned)
        for each in gone:
            for reason in dict.fromkeys(one.reason for one in each):
                self.found(Verdict.FOREIGN, self.command.line, reason)
        names = ", ".join(name for name, _ in self.objects)
        self.found(Verdict.PASSED, self.command.line, f"{names} links")
        self._printed()
        self._checked(subject, foreign.Differences(subject, gone))

    def _alias(self, planned: Sequence[Planned], name: str, other: str) -> None:
        addresses = self._addresses(planned, *self._bases(planned)[0])
        value = {**exports(planned, addresses), **self.given}.get(other)
        if value is None:
            raise Stopped(Verdict.SKIPPED, f"-alias {name}={other}: there is no {other}")
        self.given[name] = value

    def _bases(self, planned: Sequence[Planned]) -> list[tuple[int, int]]:
        """Return where a link may be tried: address, and bytes from one group to the next."""
        slab = self.told.last("slab-address")
        page = self.told.last("slab-page-size")
        size = _number(page, "-slab-page-size") if page else PAGE_SIZE
        if size < 1 or size & (size - 1):
            raise Stopped(Verdict.SKIPPED, f"a page of {size:#x} bytes is no power of two")
        if slab is not None:
            return [(_number(slab, "-slab-address"), size)]
        base = placing.base_of(planned[0].view.arch)
        # A GiB off, a PLT reaches on every architecture that has one, and branches do not.
        off = [value + AWAY if value < AWAY else value - AWAY for value in self.given.values()]
        near = [(align_up(at, PAGE_SIZE) & ADDRESS_MASK, PAGE_SIZE) for at in off[:MOST_NEAR]]
        return [(base, PAGE_SIZE), (base, 1), *near, (LOW, PAGE_SIZE), (LOW, 1)]

    def _addresses(
        self, planned: Sequence[Planned], base: int, page: int
    ) -> list[Mapping[int, int]]:
        """Return addresses as a slab gives them: what is read, what is written, code, each from a page on."""
        found: list[Mapping[int, int]] = []
        at = base
        for one in planned:
            mine: dict[int, int] = {}
            groups: dict[tuple[bool, bool, bool], list[int]] = {}
            own = int.from_bytes(one.image[_SECTIONS:][:2], one.view.dialect.order)
            for index, placement in one.layout.placements.items():
                code = placement.type in (MemType.TEXT, MemType.INIT_TEXT)
                writable = bool(placement.section.flags & SHF_WRITE) and not code
                # An added GOT comes last: JITLink adds none that is not used.
                added = index >= own and not code
                groups.setdefault((added, code, writable), []).append(index)
            for _, indices in sorted(groups.items()):
                start = at
                for index in sorted(indices):
                    place = one.layout.placements[index]
                    at = align_up(at, max(place.align, 1))
                    mine[index] = at
                    at += place.size
                at = start + align_up(at - start, page)
            found.append(mine)
        return found

    def _link(self, planned: list[Planned]) -> tuple[Subject, list[list[foreign.Without]]]:
        """Link where it can be, without what no module loader applies.

        Raises
        ------
        LoadError
            It cannot be linked anywhere that was tried.
        """
        gone: list[list[foreign.Without]] = [[] for _ in planned]
        nothing = exports(planned, [dict.fromkeys(p.layout.placements, 0) for p in planned])
        known = {**nothing, **self.given}
        for number, one in enumerate(planned):
            gone[number] += foreign.unsupported(one, known)
            if gone[number]:
                planned[number] = foreign.without(one, [each.record for each in gone[number]])
        given = dict(self.given)
        for one in planned:
            left = set(one.view.undefined) - set(known) - one.view.weak_undefined
            given.update(dict.fromkeys(left, 0))  # of records that are left out
        first: RelocationError | None = None
        bases = [(base, page, Checks.HARDWARE) for base, page in self._bases(planned)]
        for base, page, checks in [*bases, (*bases[0][:2], Checks.KERNEL)]:
            if checks is Checks.KERNEL and not _sums_only(planned, first):
                break
            for _ in range(ROUNDS):
                addresses = self._addresses(planned, base, page)
                try:
                    subject = Subject.of(planned, addresses, given, checks=checks)
                except RelocationError as error:
                    first = first or error
                    if not self._excuse(planned, gone, error):
                        break
                else:
                    if base != placing.base_of(subject.arch):
                        self.at.append(f"at {base:#x}")
                    if checks is Checks.KERNEL:
                        assert first is not None
                        types = ", ".join(sorted({one.reloc for one in first.failures}))
                        self.at.append(f"by the checks of kernels, which let {types} overflow")
                    return subject, gone
        assert first is not None
        raise first

    def _excuse(
        self, planned: list[Planned], gone: list[list[foreign.Without]], error: RelocationError
    ) -> bool:
        """Take out what fails for want of something that modules do not have; False: that is none."""
        for number, one in enumerate(planned):
            if one.name != error.module:
                continue
            more = foreign.excused(one, error.failures, gone[number])
            if len(more) < error.total:
                return False
            gone[number] += more
            planned[number] = foreign.without(one, [each.record for each in more])
            return True
        return False

    # What is expected ------------------------------------------------------------------------

    def _printed(self) -> None:
        """Name what JITLink does besides linking."""
        for name, what in tables.PRINTED.items():
            if self.told.has(name):
                self.found(Verdict.FOREIGN, self.command.line, f"{what} (-{name})")
        if not self.told.has("noexec"):
            what = "what JITLink runs in a process of its own (without -noexec)"
            self.found(Verdict.FOREIGN, self.command.line, what)
        if len(self.command.stages) > 1 and not any(map(self.told.has, tables.PRINTED)):
            names = ", ".join(stage[0] for stage in self.command.stages[1:])
            self.found(Verdict.FOREIGN, self.command.line, f"what {names} reads: JITLink's output")

    def _checked(self, subject: Subject, differences: foreign.Differences) -> None:
        file = self.told.last("check")
        if file is None:
            return
        text = self.test.shop.made(file).decode("utf-8", "replace")
        name = self.told.last("check-name") or "jitlink-check"
        rules = list(lit.rules(text, name))
        if not rules:
            self.found(Verdict.FAILED, self.command.line, f"there is no check called {name}")
        for line, rule in rules:
            self.found(*self._held(line, rule, subject, differences))

    def _held(
        self, line: int, rule: str, subject: Subject, differences: foreign.Differences
    ) -> tuple[Verdict, int, str]:
        """Return what became of a check."""
        try:
            comparison = expressions.parse(rule)
        except BadExpression as error:
            return Verdict.FAILED, line, str(error)
        spans = expressions.touched(comparison, subject)
        missing = differences.missing(spans)
        if missing:
            return Verdict.FOREIGN, line, f"{rule}: {missing}"
        named = expressions.symbols(comparison)
        try:
            result = expressions.evaluate(comparison, subject)
        except Unanswerable as error:
            reason = differences.change(spans, named) or self._no_stub(
                comparison, subject, differences.left_out
            )
            if error.foreign or reason:
                return Verdict.FOREIGN, line, f"{rule}: {reason or error.reason}"
            return Verdict.FAILED, line, f"{rule}: {error.reason}"
        if result.holds:
            return Verdict.PASSED, line, rule
        reason = differences.change(spans, named)
        if reason:
            return Verdict.FOREIGN, line, f"{rule}: {reason}"
        return Verdict.FAILED, line, result.explanation

    def _no_stub(
        self,
        comparison: expressions.Comparison,
        subject: Subject,
        gone: Sequence[Sequence[foreign.Without]],
    ) -> str:
        """Return why a module has none of the entries that a check asks for; empty: it should."""
        lost = {one.record.name: one.reason for each in gone for one in each}
        for stub in expressions.names(comparison, "stub_addr", "got_addr"):
            if stub.words[1] in lost:
                return lost[stub.words[1]]
        for stub in expressions.names(comparison, "stub_addr"):
            symbol = stub.words[1]
            for address in expressions.decoded(comparison, subject):
                try:
                    direct = subject.target(address) == subject.symbol(symbol)
                except Unanswerable:
                    continue
                if direct:
                    what = f"{symbol} is within reach, and the branch leads there itself"
                    return f"{what}; module loaders make PLT entries for what is not"
        for slot in expressions.names(comparison, "got_addr"):
            plt = subject.arch.plt
            if plt is None or plt.got_section is not None:
                continue
            try:
                subject.stub(*slot.words[:2])
            except Unanswerable:
                continue
            what = f"PLT entries of {subject.arch.title} hold the address themselves"
            return f"{what}: no slot holds that of {slot.words[1]}"
        return ""

    # What has to be refused --------------------------------------------------------------------

    def _refused(self) -> None:
        """Expect that the link is refused, for the reason that FileCheck looks for."""
        patterns = self._patterns()
        said = " ".join(text for _, text in patterns)
        line = patterns[0][0] if patterns else self.command.line
        symbol = re.search(r'relocation target "([^"]+)"', said)
        try:
            planned = self._planned()
            addresses = self._addresses(planned, *self._bases(planned)[0])
            Subject.of(planned, addresses, self.given)
        except RelocationError as error:
            wanted = [
                one
                for one in error.failures
                if symbol is None
                or one.symbol == symbol.group(1)
                or symbol.group(1) in one.containing
            ]
            kinds = {Problem.RANGE.value} if "out of range" in said else None
            alike = [one for one in wanted if kinds is None or one.reason in kinds]
            if not alike:
                text = f"{said or 'a refusal'}: refused for another reason: {error}"
                self.found(Verdict.FAILED, line, " ".join(text.split()))
                return
            text = alike[0].text(error.module).partition("\n")[0]
            self.found(Verdict.PASSED, line, f"refused: {text}")
        except (LoadError, Unanswerable) as error:
            text = str(error).partition("\n")[0]
            if "out of range" in said:
                self.found(Verdict.FAILED, line, f"{said}: refused for another reason: {text}")
            elif any(word in said.lower() for word in ("symbols not found", "undefined")):
                self.found(Verdict.PASSED, line, f"refused: {text}")
            else:
                self.found(Verdict.FOREIGN, line, f"{said or 'an error of JITLink'} (ours: {text})")
        else:
            if any(word in said for word in _SAID_BY_BOTH):
                self.found(Verdict.FAILED, line, f"{said}: the link is not refused")
            else:
                what = said or "an error of JITLink that is not told"
                self.found(Verdict.FOREIGN, line, f"{what}: module loaders do not look for that")

    def _patterns(self) -> list[tuple[int, str]]:
        """Return what FileCheck looks for in the output."""
        for stage in self.command.stages[1:]:
            if PurePath(stage[0]).name != "FileCheck":
                continue
            told = options(
                stage,
                frozenset(("check-prefix", "check-prefixes", "implicit-check-not", "D")),
                frozenset(("strict-whitespace", "match-full-lines", "allow-empty")),
            )
            prefixes = [
                word
                for text in told.every("check-prefix", "check-prefixes")
                for word in text.split(",")
            ] or ["CHECK"]
            file = told.rest[0] if told.rest else str(self.test.path)
            text = self.test.shop.made(file).decode("utf-8", "replace")
            return lit.check_lines(text, tuple(prefixes))
        return []


def _sums_only(planned: Sequence[Planned], error: RelocationError | None) -> bool:
    """Return whether nothing fails but sums that are too large, which kernels store all the same."""
    rows = planned[0].view.arch.link.relocations.values()
    sums = {row.name for row in rows if row.accumulates}
    return error is not None and all(
        one.reloc in sums and one.reason == Problem.RANGE.value for one in error.failures
    )


def _number(text: str, where: str) -> int:
    """Return a number as LLVM's options take it; Stopped where it is none of 64 bits."""
    try:
        base = 8 if re.fullmatch(r"0[0-7]+", text) else 0
        value = int(text, base) if len(text) < 40 else -1
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise Stopped(Verdict.SKIPPED, f"{where}: {text[:40]} is no number of 64 bits")
    return value
