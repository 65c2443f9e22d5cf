# SPDX-License-Identifier: GPL-2.0-or-later
"""The cases of tests/cases: every row of every architecture, at every end, executed, by linkers.

`rows` is written by `tests.support.rows` from the psABI's rules; `executed` and `refused` by hand,
packed by `execmem check --pack`; `published` holds what others say that relocations become. With
EXECMEM_LONG the linkers that are here are asked for all of them, else for a few.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

import attrs
import pytest

import archs
from execmem.check import ends, files, linkers, matrix, quirks, reading, reporting, running
from execmem.check.coverage import was_executed
from execmem.check.files import Job
from execmem.check.outcome import Outcome, Verdict
from execmem.check.quirks import QUIRKS, How
from execmem.check.running import Wanted
from execmem.check.subject import Subject
from execmem.cli import main
from tests.support import rows

CASES = Path(__file__).parents[1] / "cases"
ALONE = Wanted(linkers=())
SAMPLE = 8  # one of so many files is given to linkers

CALL = """execmem case 1
arch arm64
section .text ax 00000094 c0035fd6 00000094
label f = .text+0 func
label g = .text+8 func
reloc .text+0 R_AARCH64_CALL26 far+0
reloc .text+8 R_AARCH64_JUMP26 far+0
symbol far = f + 64
"""


def failures(found: Sequence[Outcome]) -> list[str]:
    """Return what does not hold, in lines."""
    return [
        reporting.located(outcome, finding)
        for outcome in found
        for finding in outcome.findings
        if finding.verdict is Verdict.FAILED
    ]


def run(text: str, wanted: Wanted = ALONE) -> list[Outcome]:
    """Return what becomes of a case."""
    return list(running.run(reading.read("c.case", text), wanted))


@cache
def by_arch() -> Mapping[str, Sequence[Path]]:
    """Return the files of each architecture."""
    found: dict[str, list[Path]] = {}
    for path in files.find([CASES]):
        for name in files.archs_in(path):
            found.setdefault(name, []).append(path)
    return found


def own(arch: archs.Arch) -> Sequence[Path]:
    """Return the files of an architecture, or skip it where it has none."""
    if arch.name not in by_arch():
        pytest.skip(f"there is no case for {arch.name}")
    return by_arch()[arch.name]


# What is there ------------------------------------------------------------------------------------


def test_rows_are_what_the_rules_say(arch: archs.Arch) -> None:
    """The files of rows are those that the generator writes, and no other."""
    wanted = rows.cases(arch)
    if not wanted:
        pytest.skip(f"{arch.name} has no rules")
    there = {path.name: path.read_text("utf-8") for path in (rows.FOLDER / arch.name).iterdir()}
    assert there == wanted


def test_every_file_is_a_case() -> None:
    """Nothing lies in the folder that is not run."""
    known = {path for some in by_arch().values() for path in some}
    assert {path for path in CASES.rglob("*") if path.is_file()} == known


def test_published_outcomes_name_their_source() -> None:
    """Every file of what others say tells who; there are as many links as there were."""
    links = 0
    for path in (CASES / "published").iterdir():
        case = reading.read(path.name, path.read_text("utf-8"))
        assert path.read_text("utf-8").splitlines()[1].startswith("# "), path.name
        links += len(case.placements)
    assert links == 142


# What holds ---------------------------------------------------------------------------------------


def test_every_case_holds_and_the_matrix_has_no_hole(arch: archs.Arch) -> None:
    """Every row is linked inside, at its ends and past them, refused off its grid, executed."""
    found = [
        outcome
        for path in own(arch)
        for outcome in files.run_file(Job(path, attrs.evolve(ALONE, archs=(arch.name,))))
    ]
    assert failures(found) == []
    verdicts = {outcome.verdict for outcome in found}
    assert verdicts == {Verdict.PASSED}
    table = matrix.matrix(arch, found)
    assert {row.reloc: row.holes for row in table if row.holes} == {}
    assert {row.reloc for row in table} == {r.name for r in arch.link.relocations.values()}


def test_the_command_shows_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    """`--matrix` exits 0 where there is no hole, and says what is not executed, and why."""
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "check",
                str(CASES),
                "--arch",
                "mips64el",
                "--linker",
                "none",
                "--jobs",
                "1",
                "--matrix",
            ]
        )
    out = capsys.readouterr().out
    assert not caught.value.code
    assert "mips64el: 108 relocations, 0 holes" in out
    assert "R_MIPS_PC21_S2 is not executed: BEQZC" in out


def known_linkers(arch: archs.Arch) -> Collection[str]:
    """Return the linkers that are here in the versions whose ways are known."""
    here = linkers.linkers(arch)
    return [n for n, one in here.items() if quirks.SEEN[n].split()[-1] in one.version]


def test_linkers_make_the_same_or_differ_as_is_known(arch: archs.Arch) -> None:
    """GNU ld, lld, mold and JITLink agree, refuse too, or differ for a reason that stands there."""
    paths = own(arch)
    names = known_linkers(arch)
    if not names:
        pytest.skip(f"no linker for {arch.name} is here in a version that is known")
    every = bool(os.environ.get("EXECMEM_LONG"))
    found = [
        outcome
        for path in (paths if every else paths[::SAMPLE])
        for outcome in files.run_file(Job(path, Wanted(archs=(arch.name,), linkers=names)))
    ]
    assert failures(found) == []
    agreed = {name for outcome in found for one in outcome.covers for name in one.linkers}
    assert {name for name in names if name in ("ld", "lld")} <= agreed
    if every:
        noted = [f.text for o in found for f in o.findings if f.verdict is Verdict.NOTED]
        mine = [q for q in QUIRKS if q.arch == arch.name and q.linker in names]
        unused = [q for q in mine if not any(f"{q.seen}: {q.reason}" in text for text in noted)]
        assert unused == []


# Whether the matrix is honest ---------------------------------------------------------------------


def covered(text: str, reloc: str) -> set[tuple[str, str, bool]]:
    """Return where, how and whether executed a case has a relocation."""
    return {
        (one.where, one.how, one.executed)
        for outcome in run(text)
        for one in outcome.covers
        if one.reloc == reloc
    }


def test_executed_is_what_ran_and_nothing_beside_it() -> None:
    """An instruction two words behind one that ran did not run; nor did any of a wrong result."""
    assert covered(CALL + "run f reaches far\n", "R_AARCH64_CALL26") == {("inside", "linked", True)}
    assert covered(CALL + "run f reaches far\n", "R_AARCH64_JUMP26") == {
        ("inside", "linked", False)
    }
    assert covered(CALL + "run f = 3\n", "R_AARCH64_CALL26") == {("inside", "linked", False)}


def test_a_place_inside_an_instruction_belongs_to_it() -> None:
    """On x86-64 a field begins behind the opcode: the instruction's own bytes count, none behind."""
    text = (
        "execmem case 1\narch x86_64\nsection .text ax e8 00000000 90 c3\n"
        "label f = .text+0 func\nreloc .text+1 R_X86_64_PLT32 far-4\nsymbol far = f + 64\n"
    )
    case = reading.read("c.case", text)
    planned = running.planned(case, archs.arch("x86_64"), case.placements[0])
    index = planned.view.section(".text").index
    subject = Subject.of(
        [planned], [{index: 0xFFFF_FFFF_C000_0000}], {"far": 0xFFFF_FFFF_C000_0040}
    )
    at = 0xFFFF_FFFF_C000_0000
    assert was_executed(at + 1, {at}, subject)
    assert not was_executed(at + 5, {at}, subject)
    assert not was_executed(at, {at + 5}, subject)


def test_a_sum_counts_where_it_is_complete() -> None:
    """Of two records at one place the first is nothing that a field must hold."""
    text = (
        "execmem case 1\narch riscv64\nsection .data aw 00\nreloc .data+0 R_RISCV_ADD8 a+0\n"
        "reloc .data+0 R_RISCV_SUB8 b+0\nsymbol a = 0x1000\nsymbol b = 0xf01\n"
        'expect bytes(.data, 1) = "ff"\n'
    )
    assert covered(text, "R_RISCV_ADD8") == {("inside", "linked", False)}
    assert covered(text, "R_RISCV_SUB8") == {("the upper end", "linked", False)}


def test_a_failed_case_covers_nothing() -> None:
    """What does not hold fills no cell."""
    arm64 = archs.arch("arm64")
    for wanted, inside in (("10 00 00 94", True), ("11 00 00 94", False)):
        table = matrix.matrix(arm64, run(CALL + f'expect bytes(f, 4) = "{wanted}"\n'))
        row = next(row for row in table if row.reloc == "R_AARCH64_CALL26")
        assert row.cells["inside"] is inside


def test_the_kernels_checks_say_nothing_of_the_field() -> None:
    """Where a case asks for the kernel's checks, its ends are not the hardware's."""
    assert covered(CALL + "checks kernel\n", "R_AARCH64_CALL26") == set()


def test_ends_that_there_are(arch: archs.Arch) -> None:
    """Ends lie in the reach, and what is past them does not; a page's X moves by pages."""
    for row in arch.link.relocations.values():
        found = ends.ends_of(row)
        for end, x in found.items():
            assert row.reach is not None
            assert (x in row.reach) == (end in ends.ENDS[:3]), (row.name, end)
            assert ends.where(row, x, row.reach) == end, (row.name, end)
        assert bool(found) == (row.reach is not None)
    pages = {n: r for n, r in arch.link.relocations.items() if r.op.name == "PAGE" and r.reach}
    for row in pages.values():
        assert all(x % 4096 == 0 for x in ends.ends_of(row).values())


def test_limits_of_what_no_symbol_decides_are_refused() -> None:
    """`place limits` says by name which relocations a moved symbol does not move."""
    text = "execmem case 1\narch arm64\nsection .text ax 03000058\n"
    text += "reloc .text+0 R_AARCH64_GOT_LD_PREL19 far+0\nsymbol far = 16\n"
    with pytest.raises(reading.BadCase, match="a symbol alone does not decide"):
        run(text + "place limits R_AARCH64_GOT_LD_PREL19\n")


# Objects that are written out -----------------------------------------------------------------------


def test_bytes_and_records_repeat() -> None:
    """`*N` repeats bytes, `times N` records: each a word further, with eight more to its addend."""
    text = (
        "execmem case 1\narch x86_64\nsection .data aw 00*24\nlabel f = .data+0\n"
        "reloc .data+0 R_X86_64_64 far+1 times 3\nsymbol far = 0x1000\n"
        "expect *{8}f = 0x1001\nexpect *{8}(f + 8) = 0x1009\nexpect *{8}(f + 16) = 0x1011\n"
    )
    assert failures(run(text)) == []
    with pytest.raises(reading.BadCase, match="times 1 to"):
        run(text.replace("times 3", "times 0"))
    with pytest.raises(reading.BadCase, match="over 64 MiB"):
        run(text.replace("00*24", "00*0x10000000"))


def test_a_placement_may_write_its_own_object() -> None:
    """What stands behind a `place` is that link's alone."""
    text = (
        "execmem case 1\narch x86_64\nsymbol far = 0x1000\n"
        "place one\nsection .data aw 00*8\nreloc .data+0 R_X86_64_64 far+1\n"
        "expect *{8}(.data) = 0x1001\n"
        "place two\nsection .data aw 00*4\nreloc .data+0 R_X86_64_32 far+2\n"
        "expect *{4}(.data) = 0x1002\n"
    )
    found = run(text)
    assert failures(found) == []
    assert [one.reloc for o in found for one in o.covers] == ["R_X86_64_64", "R_X86_64_32"]


# Where linkers differ -------------------------------------------------------------------------------


def test_each_quirk_is_about_rows_that_there_are() -> None:
    """Every name stands for one relocation of its architecture, with an end that it has."""
    assert len({(q.linker, q.arch, q.relocs, q.how) for q in QUIRKS}) == len(QUIRKS)
    for quirk in QUIRKS:
        names = {row.name for row in archs.arch(quirk.arch).link.relocations.values()}
        for reloc in quirk.relocs:
            assert [name for name in names if name.endswith(f"_{reloc}")], (quirk, reloc)
        assert quirk.where <= {*ends.ENDS, "negative"}
        assert quirk.linker in linkers.NAMES
    for name in quirks.NOT_EXECUTED:
        assert any(r.name == name for a in archs.ALL for r in a.link.relocations.values())


def told(monkeypatch: pytest.MonkeyPatch, text: str, said: linkers.Said) -> tuple[str, Verdict]:
    """Return what is told of a linker that says so, and how bad it is."""
    one = linkers.Linker("lld", "lld", "LLD 22")
    monkeypatch.setattr(linkers, "linkers", lambda _arch: {"lld": one})
    monkeypatch.setattr(linkers, "link", lambda *_: said)
    (outcome,) = run(text + "linkers all\n", Wanted())
    (finding,) = (f for f in outcome.findings if "lld" in f.text and "linkers" not in f.text)
    return finding.text, finding.verdict


def test_a_difference_is_excused_where_it_is_known_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same quirk excuses neither another place, nor another end, nor another relocation."""
    g3 = (
        "execmem case 1\narch arm64\nsection .text ax 000080d2 {} 000080d2\nlabel f = .text+0\n"
        "reloc .text+4 {} far+0\nsymbol far = f + 4 {} 0x1000\n"
    )
    negative = g3.format("0000e0d2", "R_AARCH64_MOVW_PREL_G3", "-")
    theirs = bytes.fromhex("000080d2 e0fffff2 000080d2")
    text, verdict = told(monkeypatch, negative, linkers.Said({1: theirs}))
    assert verdict is Verdict.NOTED
    assert "as is known of lld 22: fills the field and leaves MOVZ or MOVN" in text
    beside = bytes.fromhex("010080d2 e0fffff2 000080d2")
    assert told(monkeypatch, negative, linkers.Said({1: beside}))[1] is Verdict.FAILED
    positive = g3.format("0000e0d2", "R_AARCH64_MOVW_PREL_G3", "+")
    assert told(monkeypatch, positive, linkers.Said({1: theirs}))[1] is Verdict.FAILED
    other = g3.format("0000c0d2", "R_AARCH64_MOVW_PREL_G2", "-")
    assert told(monkeypatch, other, linkers.Said({1: theirs}))[1] is Verdict.FAILED


@pytest.mark.parametrize(
    ("target", "said", "verdict"),
    [
        ("f + 2", linkers.Said({}), Verdict.NOTED),  # bits that it drops
        ("f + 4", linkers.Said(None, "relocation out of range"), Verdict.FAILED),
        ("f + 4", linkers.Said(None, "cannot open in.o"), Verdict.FAILED),
        ("f + 2", linkers.Said(None, "improper alignment for relocation"), Verdict.PASSED),
        ("f + 2", linkers.Said(None, "cannot open in.o"), Verdict.FAILED),
    ],
)
def test_refusals_of_linkers(
    monkeypatch: pytest.MonkeyPatch, target: str, said: linkers.Said, verdict: Verdict
) -> None:
    """A linker that refuses what is refused here agrees, if a relocation is what it refuses."""
    text = CALL.replace("symbol far = f + 64", f"symbol far = {target}").replace(
        "reloc .text+8 R_AARCH64_JUMP26 far+0\n", ""
    )
    if target == "f + 2":
        text += "refuse R_AARCH64_CALL26\n"
    assert told(monkeypatch, text, said)[1] is verdict


def test_linkers_are_not_asked_for_what_they_make_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A veneer, a table, a type of linkers: one line says why nobody is asked."""
    monkeypatch.setattr(linkers, "link", lambda *_: pytest.fail("is asked"))
    beyond = CALL.replace("f + 64", "f + 1G") + "linkers all\n"
    (outcome,) = run(beyond, Wanted())
    assert [f.text for f in outcome.findings if f.verdict is Verdict.NOTED] == [
        "no linker is asked: R_AARCH64_CALL26 does not reach, and each makes a veneer of its own"
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [("arm64", "R_AARCH64_ADR_GOT_PAGE"), ("x86_64", "R_X86_64_GOTPCREL64")],
)
@pytest.mark.parametrize("linker", ["ld", "lld"])
def test_a_linkers_table_is_put_where_ours_is(name: str, path: str, linker: str) -> None:
    """What goes through a slot is held against linkers, at whose slot's address it is the same."""
    arch = archs.arch(name)
    if linker not in known_linkers(arch):
        pytest.skip(f"{linker} is not here in a version that is known")
    wanted = Wanted(archs=(name,), linkers=(linker,))
    found = files.run_file(Job(rows.FOLDER / name / f"{path}.case", wanted))
    assert failures(found) == []
    noted = [f.text for f in found[0].findings if f.verdict is Verdict.NOTED]
    if (name, linker) == ("x86_64", "lld"):
        assert "unknown relocation (28)" in noted[0]
    else:
        assert found[0].covers[0].linkers == (linker,)


def test_what_only_one_linker_cannot_do_is_told_by_name() -> None:
    """It is said of mold and JITLink what they cannot be asked."""
    arm64 = archs.arch("arm64")
    case = reading.read("c.case", CALL)
    plan = running.planned(case, arm64, case.placements[0])
    index = plan.view.section(".text").index
    for name, at, reason in (
        ("mold", 0x1000, "as long as its sections lie apart"),
        ("jitlink", 0x100004, "on a grid below 16 bytes"),
    ):
        one = linkers.Linker(name, name, "1")
        with pytest.raises(ValueError, match=reason):
            linkers.link(one, plan, {index: at}, {"far": 0x2000})
        with pytest.raises(ValueError, match="where its table lies"):
            linkers.link(one, plan, {index: at}, {"far": 0x2000}, {1: 0x8000})
    with pytest.raises(ValueError, match="where linkers put none"):
        linkers.link(linkers.Linker("ld", "ld", "1"), plan, {index: 0}, {}, {1: 0x8004})


def test_every_how_is_known() -> None:
    """Each way to differ has a quirk that a linker shows."""
    assert {quirk.how for quirk in QUIRKS} == set(How)
