# SPDX-License-Identifier: GPL-2.0-or-later
"""Random relocation cases: that they are what the seed says, and that faults in them are found.

What is right is told by the scalar model of the psABIs, by the guest, and by linkers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import hypothesis
import hypothesis.strategies as st
import pytest

import archs
from archs.levels.link import Probe
from archs.reloc import Reloc, Rows
from execmem.check import (
    batches,
    differing,
    generating,
    linkers,
    objects,
    quirks,
    reading,
    running,
    shrinking,
)
from execmem.check.circumstances import Kind
from execmem.check.comparing import Asked, compare
from execmem.check.draft import Draft
from execmem.check.drafted import Here
from execmem.check.outcome import Verdict
from execmem.check.running import Wanted
from execmem.cli import main
from execmem.schema import complaints
from loader.elf import parse
from tests.support import psabi, scalar

ARCHS = [arch for arch in archs.archs() if arch.link.assembly is not None]
IDS = [arch.name for arch in ARCHS]
ALONE = Asked({})
EACH = 6  # drafts of an architecture that a test looks at

everywhere = pytest.mark.parametrize("arch", ARCHS, ids=IDS)


# What is made -----------------------------------------------------------------------------------


@everywhere
def test_a_seed_makes_the_same_bytes(arch: archs.Arch) -> None:
    """The same seed and number give the same text, another one another."""
    texts = [generating.draft(arch, 1, number).text() for number in range(EACH)]
    assert texts == [generating.draft(arch, 1, number).text() for number in range(EACH)]
    assert len({*texts, *(generating.draft(arch, 2, n).text() for n in range(EACH))}) == 2 * EACH


@everywhere
def test_the_text_becomes_what_was_drafted(arch: archs.Arch) -> None:
    """Every record of a draft stands in the object that its text becomes, in order."""
    for number in range(EACH):
        draft = generating.draft(arch, 1, number)
        view = parse(objects.write(reading.read("a.case", draft.text()), arch), "a.o")
        found = [
            (table.target.name, offset, view.symbol_name(symbol), scalar.signed(addend))
            for table in view.tables
            for offset, _, symbol, addend in table.records.tolist()
        ]
        shown = {n.name: n.where for n in draft.names if "section" in n.words}
        wanted = [
            (r.section, r.offset, shown.get(r.symbol, r.symbol), r.addend) for r in draft.records
        ]
        assert sorted(found) == sorted(wanted)
        assert sorted(set(draft.cases)) == list(range(generating.CASES))


@everywhere
def test_every_type_is_tried(arch: archs.Arch) -> None:
    """No relocation that is applied is left out of a few hundred drafts."""
    numbers = {row.name for row in arch.link.relocations.values() if not row.unsupported}
    tried: set[str] = set()
    for number in range(300):
        tried |= {record.type for record in generating.draft(arch, 1, number).records}
        if tried == numbers:
            break
    assert not numbers - tried


# What is right -----------------------------------------------------------------------------------


@everywhere
def test_drafts_are_linked_as_the_psabi_says(arch: archs.Arch) -> None:
    """What is linked has the scalar model's bytes; what is refused, some record of it does not fit."""
    for number in range(EACH):
        here = Here.link(generating.draft(arch, 5, number))
        assert not here.differences
        assert here.subject is not None
        (one,) = here.subject.objects
        view, linked = one.planned.view, one.linked
        if {row.number for row in _companions(arch)} & {
            n for table in view.tables for n in table.records["type"].tolist()
        }:
            continue  # which lift the reach of others; the model knows a record at a time
        if any(use.used for use in linked.plt.values()):
            continue  # where entries lie the model does not know; the guest goes through them
        world = psabi.World(view, one.addresses, here.subject.given)
        table = psabi.Table(0, {})
        if linked.stubs.got is not None:
            base = one.addresses[linked.stubs.got.section]
            table = psabi.slots_of(base, bytes(linked.stubs.got.image))
        psabi.check(world, linked.sections, table)
        alone = [case for case in here.refused if _single(here.draft, case)]
        for case in alone:
            assert not _fits(arch, here.draft, case)


def _companions(arch: archs.Arch) -> list[Reloc]:
    """Return the rows with which an object has no limits for others."""
    rows = arch.link.relocations
    return [rows[number] for number in rows.companions]


def _single(draft: Draft, case: int) -> bool:
    return sum(record.case == case for record in draft.records) == 1


def _fits(arch: archs.Arch, draft: Draft, case: int) -> bool:
    """Return whether the document lets the only record of a case hold its X."""
    (record,) = (record for record in draft.records if record.case == case)
    (number, *_) = (n for n, r in arch.link.relocations.items() if r.name == record.type)
    known = scalar.psabi(arch.machine)
    if number in known.got or scalar.is_pair(arch.machine, number):
        return False  # the table's place, and another record, decide
    symbol = draft.symbol(record.symbol)
    value = 0
    if symbol is not None:
        value = symbol.value or 0
        if number in known.sized:
            value = int(next(w for w in symbol.words if w.startswith("size="))[5:], 16)
        elif symbol.where not in ("undefined", "absolute"):
            value = draft.address(symbol.where, value)
    place = draft.address(record.section, record.offset)
    one = scalar.Record(0, place, value & scalar.MASK64, record.addend, number)
    if scalar.accumulates(arch.machine, number):
        return scalar.fits(arch.machine, number, scalar.total(arch.machine, [one]))
    return scalar.fits(arch.machine, number, scalar.value_of(arch.machine, one))


@everywhere
def test_what_is_executed_arrives(arch: archs.Arch) -> None:
    """Branches, detours through entries, and formed addresses lead where S + A says."""
    if arch.run is None:
        pytest.skip(f"{arch.name} has no level 'run'")
    found: set[int] = set()
    for number in range(60):
        draft = generating.draft(arch, 1, number, 12)
        if draft.runs:
            compared = compare(draft, ALONE)
            assert not compared.differences
            found |= {12 * number + case for case in compared.executed}
    assert len(found) > 10


def told(linker: linkers.Linker, seen: str) -> bool:
    """Return whether a linker is of the version that its differences were seen in."""
    return f" {seen.rpartition(' ')[2]}" in linker.version


@everywhere
def test_linkers_agree_or_it_is_known_why(arch: archs.Arch) -> None:
    """A hundred cases: GNU ld and lld make the same bytes, or a quirk says why not."""
    if not Asked.of(arch).linkers:
        pytest.skip(f"no linker for {arch.name} is installed")
    parts = [differing.run(job) for job in differing.jobs(arch.name, 96, 7)]
    done = differing.joined(arch.name, parts)
    here = linkers.linkers(arch)
    known = {name for name, seen in quirks.SEEN.items() if name in here and told(here[name], seen)}
    assert [one.case for one in done.found if one.key[2] in known] == []
    assert done.linked + done.refused == 96
    assert all(count > 48 or done.unasked(name) == 96 for name, count in done.same.items())


# Faults ---------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(request: pytest.FixtureRequest) -> Iterator[archs.Arch]:
    """Yield an architecture one of whose branches counts one step too far."""
    arch: archs.Arch = request.param
    rows: Rows = arch.link.relocations
    kept, cached = dict(rows), dict(vars(rows))
    try:
        number, row = _branch(arch)
        assert row.reach is not None
        step = max(row.reach.align, len(arch.loads.trap))
        part = attrs.evolve(row.parts[0], bias=row.parts[0].bias + step)
        vars(rows).clear()
        rows[number] = attrs.evolve(row, parts=(part, *row.parts[1:]))
        yield arch
    finally:
        vars(rows).clear()
        vars(rows).update(cached)
        rows.update(kept)


def _branch(arch: archs.Arch) -> tuple[int, Reloc]:
    """Return the relocation of an instruction that goes somewhere in one word."""
    probes: list[Probe] = [b.probe for b in arch.link.branches if b.probe is not None]
    numbers = [p.fills[0].relocation for p in probes if p.result is None and len(p.fills) == 1]
    rows = arch.link.relocations
    return next((n, rows[n]) for n in numbers if len(rows[n].parts) == 1)


RUNNABLE = [arch for arch in ARCHS if arch.run is not None]


@pytest.mark.parametrize("spoilt", RUNNABLE, ids=[a.name for a in RUNNABLE], indirect=True)
def test_a_planted_fault_is_found_and_shrunk(spoilt: archs.Arch) -> None:
    """A field that holds the wrong number is found by executing it, and its case is one relocation."""
    name = _branch(spoilt)[1].name
    executed = [n for n in range(200) if generating.draft(spoilt, 1, n).runs]
    found: list[differing.Found] = []
    for number in executed:
        job = differing.Job(arch=spoilt.name, seed=1, number=number, cases=24, linkers=())
        found = [one for one in differing.run(job).found if one.key[2] == name]
        if found:
            break
    assert found
    assert found[0].key[1] is Kind.EXECUTES
    case = reading.read("found.case", found[0].case)
    assert sum(d.word == "reloc" for d in case.placements[0].directives) == 1
    outcomes = list(running.run(case, Wanted(linkers=())))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.FAILED]


def test_the_case_of_a_planted_fault_passes_without_it() -> None:
    """The file asks for what is right, and not for what was found."""
    text = """execmem case 1
arch arm64
section .text ax 00000094000020d4
label run0 = .text+0 func
reloc .text+0 R_AARCH64_CALL26 t
at .text 0xffffa10040000000
symbol t = 0xffffa10040100000
symbol goal0 = 0xffffa10040100000
run run0 reaches goal0
linkers none
"""
    (outcome,) = running.run(reading.read("a.case", text), Wanted(linkers=()))
    assert outcome.verdict is Verdict.PASSED


@pytest.mark.parametrize("spoilt", ARCHS[:1], ids=IDS[:1], indirect=True)
def test_linkers_find_a_planted_fault_too(spoilt: archs.Arch) -> None:
    """Bytes that no linker makes are a difference that no quirk explains."""
    if not Asked.of(spoilt).linkers:
        pytest.skip("no linker is installed")
    name = _branch(spoilt)[1].name
    for number in range(20):
        job = differing.Job(arch=spoilt.name, seed=1, number=number, cases=generating.CASES)
        found = [one for one in differing.run(job).found if one.key[2] == name]
        if found:
            break
    assert found
    assert {one.key[1] for one in found} >= {Kind.BYTES}
    assert all(one.case.count("\nreloc ") == 1 for one in found)


DIFFERENCES = sorted((Path(__file__).parents[1] / "cases" / "differences").glob("*.case"))


@pytest.mark.parametrize("path", DIFFERENCES, ids=[path.stem for path in DIFFERENCES])
def test_faults_of_linkers_are_there_and_not_ours(path: Path) -> None:
    """Each case holds here and with the other linkers; the one that it names sees it differently."""
    name, text = path.name.partition("-")[0], path.read_text("utf-8")
    (outcome,) = running.run(reading.read(path.name, text))
    assert outcome.verdict is Verdict.PASSED, outcome.findings
    said = re.search(r"(?:GNU ld|lld) (\d+(?:\.\d+)?)", text)
    assert said is not None
    linker = linkers.linkers(archs.arch(outcome.arch)).get(name)
    if linker is None or f" {said[1]}" not in linker.version:
        pytest.skip(f"{name} {said[1]} for {outcome.arch} is not installed")
    wanted, count = re.subn(r"linkers except .*", f"linkers {name}", text)
    assert count == 1
    (outcome,) = running.run(reading.read(path.name, wanted))
    asked = [finding for finding in outcome.findings if finding.text.startswith(name)]
    asked += [finding for finding in outcome.findings if f": {name} " in finding.text]
    assert {finding.verdict for finding in asked} & {Verdict.FAILED, Verdict.NOTED}


# Shrinking ---------------------------------------------------------------------------------------


@hypothesis.given(st.integers(1, 60), st.data())
def test_the_smallest_selection_is_what_is_needed(count: int, data: st.DataObject) -> None:
    """Where some items are needed and the others are not, just those are left, in order."""
    needed = data.draw(st.sets(st.integers(0, count - 1)))
    asked = []

    def holds(chosen: list[int]) -> bool:
        asked.append(chosen)
        return needed <= set(chosen)

    found = shrinking.smallest(list(range(count)), holds)
    assert list(found) == sorted(needed) or (not needed and len(found) == 1)
    assert len(asked) <= 4 * count * count + 8


@hypothesis.given(st.sets(st.frozensets(st.integers(0, 11), max_size=4), min_size=1))
def test_nothing_can_be_left_out_of_the_smallest(ways: set[frozenset[int]]) -> None:
    """Whatever is asked, the answer holds, and without any one item it does not."""

    def holds(chosen: list[int]) -> bool:
        return any(way <= set(chosen) for way in ways) and bool(chosen)

    found = list(shrinking.smallest(list(range(12)), holds))
    assert holds(found)
    for item in found:
        rest = [other for other in found if other != item]
        assert not rest or not holds(rest) or len(found) == 1


@everywhere
@hypothesis.given(number=st.integers(0, 50), data=st.data())
@hypothesis.settings(max_examples=10, deadline=None)
def test_a_shrunk_draft_keeps_what_matters(
    arch: archs.Arch, number: int, data: st.DataObject
) -> None:
    """A place at its address, with what stands there, survives alone, and its text is a case."""
    draft = generating.draft(arch, 3, number, 12)
    hypothesis.assume(draft.records)
    record = data.draw(st.sampled_from(draft.records))
    place = draft.address(record.section, record.offset)

    def holds(smaller: Draft) -> bool:
        return any(
            r.type == record.type and smaller.address(r.section, r.offset) == place
            for r in smaller.records
        )

    small = shrinking.shrink(draft, holds)
    assert holds(small)
    assert len(small.records) == 1
    assert len(small.areas) <= 2
    assert small.text().count("reloc ") == 1
    view = parse(objects.write(reading.read("a.case", small.text()), arch), "a.o")
    assert sum(table.records.size for table in view.tables) == 1


# The command ---------------------------------------------------------------------------------------


def test_the_command_says_what_it_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The document is as documented, the same for any number of processes, and nothing differs."""
    words = ["check", "--random", "60", "--linker", "none", "--json"]
    documents = []
    for jobs in ("1", "2"):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--jobs", jobs, "--output", str(tmp_path)])
        assert not ended.value.code
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1]
    assert not list(complaints("check --random", documents[0]))
    assert {one["arch"] for one in documents[0]["random"]} == {a.name for a in archs.archs()}
    assert all(one["cases"] == 60 for one in documents[0]["random"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--random", "0"], "0 is not in the range"),
        (["--random", "5", "a.case"], "makes its own cases"),
        (["--random", "5", "--tap"], "makes its own cases"),
        (["--random", "5", "--linker", "mold"], "compared with ld, lld"),
        (["--output", "there"], "belong to --random"),
        (["--known", "a.case"], "belong to --random"),
    ],
)
def test_wrong_words_are_told(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What means nothing is an error of usage, in one line."""
    with pytest.raises(SystemExit) as ended:
        main(["check", *words])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_linkers_are_told_to_go_on() -> None:
    """Every linker that random cases are compared with has its options."""
    assert set(batches.GOING_ON) == set(batches.TELLING) == set(batches.NAMES)
