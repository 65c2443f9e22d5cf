# SPDX-License-Identifier: GPL-2.0-or-later
"""A case run: each architecture, each placement, each directive -> findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import PurePath

import attrs

from archs import Arch, Checks
from archs import arch as arch_by_name
from archs import archs as all_archs
from archs.op import Got
from execmem.check import circumstances, objects, toolchain
from execmem.check import linkers as others
from execmem.check.case import BadCase, Case, Directive, Form, Placement
from execmem.check.coverage import Tried, tried, was_executed
from execmem.check.ends import ENDS, takes_plt
from execmem.check.executing import CannotRun, Ran, call
from execmem.check.expressions import BadExpression, evaluate, parse
from execmem.check.linkers import Linker
from execmem.check.outcome import Covered, Finding, Outcome, Verdict
from execmem.check.placing import Places, labels, places
from execmem.check.quirks import How, reason_for
from execmem.check.subject import Planned, Subject, Unanswerable
from execmem.check.values import value
from loader.errors import LoadError, RelocationError, RelocationFailure

FITS = ENDS[:3]
# Through a table only by where a slot lies: of these X says nothing of where the table starts.
_BY_SLOT = (Got.SLOT, Got.SLOT_SUM)
LONGEST_ULEB = 10  # bytes


@attrs.frozen(kw_only=True)
class Wanted:
    """What of cases is run, and with whom.

    Parameters
    ----------
    archs
        Names of architectures; empty: all that a case is for.
    linkers
        Names of linkers to ask where a case does not say; None: all that are here.
    seed
        Of what is random.
    """

    archs: Collection[str] = ()
    linkers: Collection[str] | None = None
    seed: int = 0

    def takes(self, arch: Arch) -> bool:
        """Return whether an architecture is one of them."""
        return not self.archs or any(arch is each for each in map(arch_by_name, self.archs))


def run(case: Case, wanted: Wanted | None = None) -> Iterator[Outcome]:
    """Yield what became of a case on each architecture at each placement.

    BadCase where it says what means nothing.
    """
    wanted = Wanted() if wanted is None else wanted
    for arch in archs_of(case):
        if not wanted.takes(arch):
            continue
        try:
            made = image(case, arch) if case.form is not Form.TEXT else None
        except toolchain.NoTool as error:
            skipped = Finding(verdict=Verdict.SKIPPED, line=0, text=str(error))
            yield Outcome(path=case.path, arch=arch.name, findings=(skipped,))
            continue
        plans: dict[tuple[Directive, ...], Planned] = {}  # by what of a placement decides them
        for placement in case.placements:
            if not placement.is_for(arch.name):
                continue
            key = tuple(placement.of(arch.name, *objects.WORDS, "stubs", "errata"))
            if key not in plans:
                plans[key] = planned(case, arch, placement, made)
            plan = plans[key]
            for where in places(case, placement, plan, seed=wanted.seed):
                yield _Run(case, placement, plan, where, wanted).outcome()


def archs_of(case: Case) -> Sequence[Arch]:
    """Return the architectures that a case is for; BadCase where it does not say."""
    if case.archs:
        return [arch_by_name(name) for name in case.archs]
    if case.form is Form.PACKED:
        return [arch_by_name(name) for name in case.objects]
    if case.form is Form.SHARED:
        return [arch for arch in all_archs() if arch.link.assembly is not None]
    known = ", ".join(arch.name for arch in all_archs())
    raise BadCase(case.path, 0, f"does not say its architecture (execmem: arch NAME; {known})")


def image(case: Case, arch: Arch, placement: Placement | None = None) -> toolchain.Made:
    """Return a case's object for an architecture; BadCase or NoTool where there is none.

    Of a case that writes it out it is that of a placement, the first by default.
    """
    if case.form is Form.PACKED:
        if case.objects.get(arch.name) is None:
            raise BadCase(case.path, 0, f"holds no object for {arch.name}")
        return toolchain.Made(case.objects[arch.name], case.tools[arch.name])
    if case.form is Form.TEXT:
        return toolchain.Made(objects.write(case, arch, placement), "")
    return toolchain.make(case, arch)


def planned(
    case: Case, arch: Arch, placement: Placement, made: toolchain.Made | None = None
) -> Planned:
    """Return a case's object with the sections that its loader adds; `made` where it is made."""
    made = image(case, arch, placement) if made is None else made
    stubs = True
    for directive in placement.of(arch.name, "stubs"):
        if directive.rest != "none":
            raise case.bad(directive.line, "stubs: none, or no such directive")
        stubs = False
    name = PurePath(case.path).with_suffix(".o").name
    try:
        found = Planned.of(name, made.image, errata=_errata(placement, arch), stubs=stubs)
    except LoadError as error:
        raise BadCase(case.path, 0, f"its object is refused: {error}") from None
    if found.view.arch.machine != arch.machine or found.view.dialect != arch.link.dialect:
        raise BadCase(case.path, 0, f"its object is of {found.view.arch.name}, not {arch.name}")
    return found


def _errata(placement: Placement, arch: Arch) -> Sequence[str]:
    return [word for d in placement.of(arch.name, "errata") for word in d.rest.split()]


@attrs.define
class _Run:
    """One link of a case, and everything that is held against it."""

    case: Case
    placement: Placement
    planned: Planned
    where: Places
    wanted: Wanted
    findings: list[Finding] = attrs.field(factory=list)
    executed: set[int] = attrs.field(factory=set)
    agreed: list[str] = attrs.field(factory=list)
    tried: list[Tried] = attrs.field(factory=list)

    @property
    def arch(self) -> Arch:
        return self.planned.view.arch

    def outcome(self) -> Outcome:
        """Link, hold everything against the link, and return what was found."""
        subject, failures = self._link()
        self._refusals(failures)
        if subject is not None:
            self._expectations(subject)
        where = self.where
        self.tried = list(tried(self.planned, where.addresses, where.values, subject, failures))
        self._linkers(subject, failures)
        findings = sorted(self.findings, key=lambda finding: finding.line)
        if not findings:
            reason = "nothing is expected: no expect, refuse, run or linker says anything of it"
            findings = [Finding(verdict=Verdict.SKIPPED, line=0, text=reason)]
        return Outcome(
            path=self.case.path,
            arch=self.arch.name,
            placement=self.where.title,
            findings=tuple(findings),
            covers=tuple(self._covered(failures, subject)),
        )

    def _directives(self, *words: str) -> Iterator[Directive]:
        return self.placement.of(self.arch.name, *words)

    def _found(self, directive: Directive, verdict: Verdict, text: str = "") -> None:
        line = directive.line
        self.findings.append(Finding(verdict=verdict, line=line, text=text or str(directive)))

    # The link --------------------------------------------------------------------------------

    def _link(self) -> tuple[Subject | None, Sequence[RelocationFailure]]:
        checks = Checks.HARDWARE
        for directive in self._directives("checks"):
            try:
                checks = Checks(directive.rest)
            except ValueError:
                known = " or ".join(each.value for each in Checks)
                raise self.case.bad(directive.line, f"checks: {known}") from None
        try:
            subject = Subject.of(
                [self.planned],
                [self.where.addresses],
                self.where.values,
                checks=checks,
                errata=_errata(self.placement, self.arch),
            )
        except RelocationError as error:
            return None, error.failures
        except (LoadError, Unanswerable) as error:
            raise BadCase(self.case.path, self.placement.line, str(error)) from None
        return subject, ()

    def _refusals(self, failures: Sequence[RelocationFailure]) -> None:
        """Hold what was refused against what must be, one to one."""
        left = list(failures)
        for directive in self._directives("refuse"):
            kind, place, words = self._refusal(directive)
            found = next(
                (
                    failure
                    for failure in left
                    if failure.reloc == kind
                    and place in (None, failure.place)
                    and words in failure.text("").replace("\n", " ")
                ),
                None,
            )
            if found is None:
                links = "nothing is refused" if not failures else _told(failures[0])
                self._found(directive, Verdict.FAILED, f"{directive}: {links}")
            else:
                left.remove(found)
                self._found(directive, Verdict.PASSED)
        limit = self.where.limit
        about = Directive(self.placement.line, "place", self.where.title)
        if limit is not None:
            row, end, x = limit
            mine = [failure for failure in left if failure.reloc == row.name]
            left = [failure for failure in left if failure.reloc != row.name]
            detour = end in ENDS[3:5] and takes_plt(self.arch, row)
            if end in FITS and mine:
                self._found(about, Verdict.FAILED, f"{self.where.title}: {_told(mine[0])}")
            elif end not in FITS and not mine and not detour:
                text = (
                    f"{self.where.title}: {row.name} takes X = {x:#x}, which is not in {row.reach}"
                )
                self._found(about, Verdict.FAILED, text)
            else:
                self._found(about, Verdict.PASSED, self.where.title)
        for failure in left:
            self._found(about, Verdict.FAILED, f"refused: {_told(failure)}")

    def _refusal(self, directive: Directive) -> tuple[str, int | None, str]:
        kind, _, rest = directive.rest.partition(" ")
        number = objects.type_number(self.case, directive, self.arch, kind)
        kind = self.arch.link.type_name(number)
        place = None
        words = rest.strip()
        if words.startswith("at "):
            spot, _, words = words[3:].strip().partition(" ")
            place = self._number(directive, spot, self._lies)
        return kind, place, words.strip()

    def _number(self, directive: Directive, text: str, look_up: Callable[[str], int]) -> int:
        try:
            return value(text, look_up)
        except (ValueError, Unanswerable) as error:
            raise self.case.bad(directive.line, f"{directive.word}: {error}") from None

    def _lies(self, name: str) -> int:
        """Return the address of a name before the link."""
        section = self.planned.view.section(name)
        if section is not None and section.index in self.where.addresses:
            return self.where.addresses[section.index]
        known = {**self.where.values, **labels(self.planned, self.where.addresses)}
        if name not in known:
            raise ValueError(f"there is no {name}")
        return known[name]

    # After the link ----------------------------------------------------------------------------

    def _expectations(self, subject: Subject) -> None:
        for directive in self._directives("expect", "run"):
            if directive.word == "run":
                self._run(directive, subject)
                continue
            try:
                result = evaluate(parse(directive.rest), subject)
            except BadExpression as error:
                raise self.case.bad(directive.line, f"expect: {error}") from None
            except Unanswerable as error:
                verdict = Verdict.FOREIGN if error.foreign else Verdict.FAILED
                self._found(directive, verdict, f"{directive}: {error}")
                continue
            if result.holds:
                self._found(directive, Verdict.PASSED)
            else:
                self._found(directive, Verdict.FAILED, result.explanation)

    def _run(self, directive: Directive, subject: Subject) -> None:
        text, equals, wanted = directive.rest.partition("=")
        reaches = ""
        if not equals:
            text, _, reaches = text.partition(" reaches ")
        name, *arguments = text.split()
        try:
            function = subject.symbol(name)
        except Unanswerable as error:
            raise self.case.bad(directive.line, f"run: {error}") from None
        given = [self._number(directive, word, subject.symbol) for word in arguments]
        try:
            ran = call(subject, self.where.symbols, function, given)
        except CannotRun as error:
            self._found(directive, Verdict.SKIPPED, f"{directive}: {error}")
            return
        goal = self._number(directive, wanted, subject.symbol) if equals else None
        wrong = _wrong(ran, goal, reaches.strip())
        if wrong:
            self._found(directive, Verdict.FAILED, f"{directive}: {wrong}")
        else:
            self.executed |= ran.executed
            self._found(directive, Verdict.PASSED)

    # Others ------------------------------------------------------------------------------------

    def _linkers(self, subject: Subject | None, failures: Sequence[RelocationFailure]) -> None:
        """Ask other linkers for the same, where the link needs nothing that they would invent."""
        names: Collection[str] | None = self.wanted.linkers
        must: set[str] = set()
        about = Directive(0, "linkers", "")
        for directive in self._directives("linkers"):
            word, *rest = directive.rest.split()
            about = directive
            if word == "none":
                names = ()
            elif word == "except":
                unwanted = {self._known(directive, each) for each in rest}
                known = others.NAMES if names is None else names
                names = [name for name in known if name not in unwanted]
            elif word != "all":
                must = {self._known(directive, each) for each in (word, *rest)}
        if must:
            names = [n for n in must if self.wanted.linkers is None or n in self.wanted.linkers]
        if names is not None and not names:
            return
        own = self._own_making(subject)
        if own:
            self._found(about, Verdict.NOTED, f"no linker is asked: {own}")
            return
        here = others.linkers(self.arch)
        for name in sorted(must - set(here)):
            self._found(about, Verdict.SKIPPED, f"{name} for {self.arch.name} is not installed")
        for name, linker in here.items():
            if names is None or name in names:
                self._ask(about, linker, subject, failures)

    def _own_making(self, subject: Subject | None) -> str:
        """Return what linkers would make by themselves here; empty: nothing."""
        for one in self.tried:
            if one.row.unsupported:
                return f"{one.row.name} is for linkers, and not for module loaders"
            if one.row.got is not None and (subject is None or one.row.got not in _BY_SLOT):
                return f"{one.row.name} goes through a table, and each makes its own"
            if one.row.stub is not None and one.where in ENDS[3:5]:
                return f"{one.row.name} does not reach, and each makes a veneer of its own"
        if subject is not None and _has_entries(subject):
            return "each makes PLT entries and veneers of its own"
        return ""

    def _known(self, directive: Directive, name: str) -> str:
        if name not in others.NAMES:
            known = ", ".join(others.NAMES)
            raise self.case.bad(directive.line, f"linkers: no linker {name!r} (there are: {known})")
        return name

    def _ask(
        self,
        about: Directive,
        linker: Linker,
        subject: Subject | None,
        failures: Sequence[RelocationFailure],
    ) -> None:
        symbols = {n: v for n, v in self.where.values.items() if n in self.planned.view.undefined}
        try:
            slots = subject.objects[0].slots() if subject is not None else {}
            slots = {content: at for content, at in slots.items() if content}
            said = others.link(linker, self.planned, self.where.addresses, symbols, slots)
        except ValueError as error:
            self._found(about, Verdict.NOTED, f"{linker.name} is not asked: {error}")
            return
        name = linker.name
        if said.sections is None and subject is None and said.about_relocation:
            self.agreed.append(name)
            self._found(about, Verdict.PASSED, f"{name} refuses, too: {said.refused}")
            return
        those: Sequence[Tried]
        if said.sections is None:
            how, those, text = How.REFUSES, self.tried, f"{name} refuses: {said.refused}"
        elif subject is None:
            refused = {(failure.place, failure.reloc) for failure in failures}
            those = [one for one in self.tried if (one.place, one.row.name) in refused]
            how, text = How.LINKS, f"{name} links what is refused here"
        else:
            how = How.DIFFERS
            those, text = self._differences(linker, said.sections, subject)
        if not text:
            self.agreed.append(name)
            self._found(about, Verdict.PASSED, f"{name} makes the same")
            return
        if how is How.REFUSES:  # which of them it is about it does not say in words for machines
            known = [one for one in those if reason_for(name, self.arch.name, how, [one])]
            those = known or those
        reason = reason_for(name, self.arch.name, how, those) if those else ""
        if not reason and those:
            reason = circumstances.reason_for(self.planned.view, name, how, those, text)
        if reason:
            self._found(about, Verdict.NOTED, f"{text}; as is known of {reason}")
        else:
            self._found(about, Verdict.FAILED, f"{text} ({linker.version})")

    def _differences(
        self, linker: Linker, sections: Mapping[int, bytes], subject: Subject
    ) -> tuple[Sequence[Tried], str]:
        """Return the relocations at whose places a linker makes other bytes, and what to say.

        Empty where some byte belongs to none of them.
        """
        linked, first = subject.objects[0].linked.sections, ""
        places: dict[int, Tried] = {}
        for one in self.tried:
            size = max(one.row.size, LONGEST_ULEB if one.row.uleb else 1)
            places.update(dict.fromkeys(range(one.place, one.place + size), one))
        those: dict[int, Tried] = {}
        strange = False
        for index, theirs in sections.items():
            ours, start = bytes(linked[index])[: len(theirs)], self.where.addresses[index]
            for at, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
                if mine == other:
                    continue
                if not first:
                    begin = at & ~3
                    first = (
                        f"{self.planned.view.sections[index].name}+{begin:#x} "
                        f"({start + begin:#x}): {linker.name} makes "
                        f"{theirs[begin : begin + 8].hex(' ')}, "
                        f"here it is {ours[begin : begin + 8].hex(' ')}"
                    )
                found = places.get(start + at)
                strange = strange or found is None
                if found is not None:
                    those[found.place] = found
        return [] if strange else list(those.values()), first

    # What was tried ----------------------------------------------------------------------------

    def _covered(
        self, failures: Sequence[RelocationFailure], subject: Subject | None
    ) -> Iterator[Covered]:
        refused = {(failure.place, failure.reloc) for failure in failures}
        if any(d.rest != Checks.HARDWARE.value for d in self._directives("checks")):
            return  # where the kernel's checks end is not where the field ends
        for one in self.tried:
            name = one.row.name
            if (one.place, name) in refused:
                how = "refused"
            elif subject is None:
                continue  # others were refused, so this one was not linked
            else:
                how = "plt" if self._through_plt(one) else "linked"
            yield Covered(
                reloc=name,
                where=one.where,
                how=how,
                executed=subject is not None and was_executed(one.place, self.executed, subject),
                linkers=tuple(self.agreed),
            )

    def _through_plt(self, one: Tried) -> bool:
        beyond = one.row.reach is not None and one.x is not None and one.x not in one.row.reach
        return beyond and takes_plt(self.arch, one.row)


def _told(failure: RelocationFailure) -> str:
    """Return a failure in one line, without the hint."""
    first, _, _ = failure.text("").partition("\n")
    return f"{first.removeprefix(': ')} (place {failure.place:#x}, target {failure.target:#x})"


def _wrong(ran: Ran, goal: int | None, reaches: str) -> str:
    """Return what is wrong with how a call ended; empty: nothing."""
    if ran.reason:
        return f"it stops: {ran.reason}"
    if reaches:
        if ran.arrived == reaches:
            return ""
        return f"it arrives at {ran.arrived}" if ran.arrived else "it returns"
    if ran.arrived:
        return f"it arrives at {ran.arrived}, which does not say what it returns"
    if goal is not None and ran.value != goal:
        return f"it returns {ran.value:#x}, not {goal:#x}"
    return ""


def _has_entries(subject: Subject) -> bool:
    """Return whether a link needed an entry of a PLT or a veneer."""
    stubs = [one.linked.stubs for one in subject.objects]
    return any(use.used for each in stubs for use in each.plt.values()) or any(
        each.patches for each in stubs
    )
