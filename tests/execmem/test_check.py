# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocation cases as files: reading, placing, linking, executing, asking linkers, reporting."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree as ET

import hypothesis
import hypothesis.strategies as st
import pytest

import archs
from execmem.check import ends, files, linkers, placing, reading, reporting, running, toolchain
from execmem.check.case import BadCase, Form
from execmem.check.outcome import Finding, Outcome, Verdict, worst
from execmem.check.running import Wanted
from execmem.check.values import value
from execmem.cli import main
from tests.support.tools import assemble

HERE = Path(__file__).parents[2]
ALONE = Wanted(linkers=())

# A call with its encodings in the Arm ARM's words: imm26 of BL, in units of four bytes.
CALL = """execmem case 1
arch arm64
section .text ax 00000094
label f = .text+0 func size=4
reloc .text+0 R_AARCH64_CALL26 far
"""


def outcomes(text: str, name: str = "c.case", wanted: Wanted = ALONE) -> list[Outcome]:
    """Return what becomes of a case, without linkers."""
    return list(running.run(reading.read(name, text), wanted))


def texts(found: list[Outcome]) -> list[str]:
    """Return what fails, in lines."""
    return [f.text for o in found for f in o.findings if f.verdict is Verdict.FAILED]


# The how-to -----------------------------------------------------------------------------------


def documented() -> list[str]:
    """Return the cases of the how-to."""
    text = (HERE / "docs" / "howto" / "check.md").read_text("utf-8")
    return re.findall(r"^```asm\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(5))
def test_cases_of_the_how_to_hold(number: int, tmp_path: Path) -> None:
    """What a reader copies passes, with every linker that is here."""
    case = tmp_path / "case.s"
    case.write_text(documented()[number])
    found = files.run_file(files.Job(case))
    if worst(found) is Verdict.SKIPPED:
        pytest.skip(found[0].findings[0].text)
    assert not texts(list(found))
    assert any(outcome.verdict is Verdict.PASSED for outcome in found)


def test_the_how_to_names_every_directive() -> None:
    """No directive is missing from the page, and it names no other."""
    text = (HERE / "docs" / "howto" / "check.md").read_text("utf-8")
    table = text[text.index("## Directives") : text.index("Every refusal")]
    named = set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))
    assert named | set(reading._TEXT_WORDS) == set(reading.WORDS)


# Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "only"),
    [
        ("# execmem: run f = 7", ()),
        ("// execmem[arm64]: run f = 7", ("arm64",)),
        ("/* execmem[aarch64, amd64]: run f = 7 */", ("arm64", "x86_64")),
        ("   ;; execmem: run f = 7", ()),
        ("@ execmem: run f = 7", ()),
    ],
)
def test_directives_stand_in_comments_of_any_assembler(line: str, only: tuple[str, ...]) -> None:
    """Whatever begins a comment, the directive is the same."""
    case = reading.read("c.s", f"nop\n{line}\n")
    (found,) = case.placements[0].directives
    assert (found.line, found.word, found.rest) == (2, "run", "f = 7")
    assert found.only == frozenset(only)


@pytest.mark.parametrize(
    ("name", "text", "line", "reason"),
    [
        ("c.txt", "", 0, "is no case by its name"),
        ("c.s", "nop\n", 0, "has no directive"),
        ("c.s", "# execmem: expct 1 = 1\n", 1, "no directive 'expct'"),
        ("c.s", "# execmem: arch vax\n", 1, "unknown architecture 'vax'"),
        ("c.s", "# execmem: run\n", 1, "run: nothing follows"),
        ("c.s", "# execmem: place a\n# execmem: place a\n", 2, "a second 'a'"),
        ("c.case", "arch arm64\n", 1, "the first line is not 'execmem case 1'"),
        ("c.case", "execmem case 1\narch arm64\n", 0, "has no object"),
        ("c.case", "execmem case 1\nobject arm64 as\nAAAA\n", 2, "the object has no end"),
        ("c.case", "execmem case 1\nobject arm64 as\nAAAA\nend\n", 2, "the object is damaged"),
        ("c.case", "execmem case 1\nobject arm64 as\n!\nend\n", 2, "the object is damaged"),
    ],
)
def test_what_is_no_case_is_named_with_its_line(
    name: str, text: str, line: int, reason: str
) -> None:
    """The file and the line come first, then the reason."""
    with pytest.raises(BadCase) as caught:
        reading.read(name, text)
    assert caught.value.line == line
    assert reason in caught.value.reason
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("section .data aw zz", "'zz' is neither bytes nor a flag"),
        ("section .data aw size=1G", "size is over 64 MiB"),
        ("label g = .nowhere+0", "no section at '.nowhere+0'"),
        ("label g =", "NAME = SECTION+OFFSET"),
        ("label f = .text+0", "a second f"),
        ("reloc .text+0 R_X86_64_64 far", "arm64 has no relocation R_X86_64_64"),
        ("reloc .text+0", "SECTION+OFFSET TYPE SYMBOL"),
        ("at .data 0", "no section .data"),
        ("at .text nowhere", "there is no nowhere"),
        ("symbol f = 4", "the case itself defines f"),
        ("symbol far", "NAME = VALUE"),
        ("symbol far = 4 *", "is no number, name or sum"),
        ("checks lax", "hardware or kernel"),
        ("stubs some", "none"),
        ("refuse R_NOTHING", "no relocation R_NOTHING"),
        ("refuse R_AARCH64_CALL26 at nowhere", "there is no nowhere"),
        ("expect f =", "expect"),
        ("run nowhere", "there is no symbol nowhere"),
        ("linkers gold", "no linker 'gold'"),
        ("place limits R_AARCH64_ABS64", "no R_AARCH64_ABS64 is against an undefined symbol"),
        ("place limits", "name one relocation"),
        ("place random many", "how many"),
        ("place design vast", "vast"),
    ],
)
def test_directives_that_mean_nothing_are_named(line: str, reason: str) -> None:
    """Nothing that somebody wrote is passed over."""
    text = CALL + (line if "far" in line else f"symbol far = .text + 8\n{line}")
    with pytest.raises(BadCase) as caught:
        outcomes(text + "\n")
    assert reason in str(caught.value)
    assert caught.value.line


def test_a_symbol_without_a_value_is_named() -> None:
    """A case must say where everything is."""
    with pytest.raises(BadCase, match="needs a value for far"):
        outcomes(CALL)


@hypothesis.given(st.text(max_size=300))
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_text_is_a_case_or_is_refused(text: str) -> None:
    """No text ends in anything but a case or a reason."""
    for name, body in (("c.s", text), ("c.case", f"execmem case 1\n{text}")):
        try:
            reading.read(name, body)
        except BadCase:
            continue


WORDS = st.sampled_from(
    [
        "section",
        ".text",
        "ax",
        "00000094",
        "label",
        "f",
        "=",
        ".text+0",
        "reloc",
        "0x8",
        "far",
        "+4",
        "R_AARCH64_CALL26",
        "symbol",
        "returns",
        "at",
        "expect",
        "run",
        "refuse",
        "place",
        "limits",
        "size=4",
        "align=3",
        "-1",
        "\n",
        "local",
        "283",
        "random",
        "2",
        "stubs",
        "none",
    ]
)


@hypothesis.given(st.lists(WORDS, max_size=30))
@hypothesis.settings(max_examples=150, deadline=None)
def test_directives_in_any_order_end_in_outcomes_or_reasons(words: list[str]) -> None:
    """However words are put together, a case runs or says why not."""
    with contextlib.suppress(BadCase):
        outcomes(CALL + " ".join(words) + "\n")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0x10", 16),
        ("128M - 4", (1 << 27) - 4),
        ("a + b - 2K", 0x3000 - 2048),
        ("-1", (1 << 64) - 1),
        ("1_000", 1000),
    ],
)
def test_sums(text: str, number: int) -> None:
    """Numbers, sizes and names add up modulo 2^64."""
    assert value(text, {"a": 0x1000, "b": 0x2000}.__getitem__) == number


# Linking --------------------------------------------------------------------------------------


def test_expectations_hold_and_fail_by_one_line() -> None:
    """What holds is counted, what does not is told with the place and both values."""
    case = CALL + 'symbol far = f + 64\nexpect bytes(f, 4) = "10 00 00 94"\n'
    assert not texts(outcomes(case))
    (line,) = texts(outcomes(case.replace("10 00 00 94", "11 00 00 94")))
    assert "\n" not in line
    assert "10 00 00 94" in line
    assert "11 00 00 94" in line


def test_refusals_are_named_one_to_one() -> None:
    """A refusal that nobody expects fails, and so does one that does not come."""
    far = CALL + "stubs none\nsymbol far = f + 128M\n"
    (line,) = texts(outcomes(far))
    assert "R_AARCH64_CALL26" in line
    assert "+0x8000000 is not in [-0x8000000, 0x8000000)" in line
    assert not texts(outcomes(far + "refuse R_AARCH64_CALL26 at f out of range\n"))
    assert texts(outcomes(far + "refuse R_AARCH64_CALL26 at f no multiple\n"))
    assert texts(outcomes(far + "refuse R_AARCH64_CALL26 at f\nrefuse R_AARCH64_CALL26 at f\n"))
    (line,) = texts(outcomes(CALL + "symbol far = f + 8\nrefuse R_AARCH64_CALL26 at f\n"))
    assert "nothing is refused" in line


def test_limits_are_six_links() -> None:
    """Inside, both ends, one past each, off its grid: each as it must be."""
    found = outcomes(CALL + "stubs none\nplace limits R_AARCH64_CALL26\n")
    assert [o.placement.rsplit(", ", 1)[1] for o in found] == list(ends.ENDS)
    assert not texts(found)
    assert [o.covers[0].where for o in found] == list(ends.ENDS)
    assert [o.covers[0].how for o in found] == ["linked"] * 3 + ["refused"] * 3
    found = outcomes(CALL + "place limits R_AARCH64_CALL26\n")
    assert [o.covers[0].how for o in found] == ["linked"] * 3 + ["plt"] * 2 + ["refused"]


def test_random_places_follow_the_seed() -> None:
    """The same seed gives the same places, another others; all are in the ranges."""
    case = reading.read("c.case", CALL + "place random 5\n")
    planned = running.planned(case, archs.arch("arm64"), case.placements[0])

    def places(seed: int) -> list[object]:
        return [
            (p.addresses, p.values)
            for p in placing.places(case, case.placements[0], planned, seed=seed)
        ]

    assert places(1) == places(1)
    assert places(1) != places(2)
    assert len({str(p) for p in places(1)}) == 5


@pytest.mark.parametrize("title", ["design vmalloc", "design default", "kaslr 2"])
def test_designs_and_boots_place(title: str) -> None:
    """Where designs put the code it links, and kernel symbols are named from its image."""
    found = outcomes(CALL + f"place {title}\nsymbol far = kernel + 4K\nexpect target(f) = far\n")
    assert found
    for outcome in found:
        assert {f.verdict for f in outcome.findings} <= {Verdict.PASSED, Verdict.FAILED}


# Executing ------------------------------------------------------------------------------------


RUN = "\n".join((CALL.replace("00000094", "00000014").replace("CALL26", "JUMP26"), ""))


def test_code_is_executed() -> None:
    """A function returns what it is told to, arrives somewhere, or says why it stops."""
    assert not texts(outcomes(RUN + "symbol far = f + 4K returns 9\nrun f = 9\n"))
    (line,) = texts(outcomes(RUN + "symbol far = f + 4K returns 9\nrun f = 8\n"))
    assert line == "run f = 8: it returns 0x9, not 0x8"
    assert not texts(outcomes(RUN + "symbol far = f + 4K\nrun f reaches far\n"))
    (line,) = texts(outcomes(RUN + "symbol far = f + 4K\nrun f\n"))
    assert "it arrives at far" in line
    loops = CALL.replace("00000094", "00000014").replace("CALL26", "JUMP26")
    (line,) = texts(outcomes(loops.replace(" far", " f") + "run f\n"))
    assert "it stops" in line


def test_an_architecture_that_cannot_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the level run a call is skipped by name."""
    import attrs

    from execmem.check import executing

    case = RUN + "symbol far = f + 4K returns 9\nrun f = 9\n"
    whole = executing.call

    def without(subject: object, *more: object) -> object:
        arch = attrs.evolve(subject.arch, run=None)  # type: ignore[attr-defined] # a Subject
        return whole(attrs.evolve(subject, arch=arch), *more)  # type: ignore[type-var, arg-type] # as above

    monkeypatch.setattr(running, "call", without)
    (outcome,) = outcomes(case)
    assert outcome.verdict is Verdict.SKIPPED
    assert "no level 'run'" in outcome.findings[-1].text


# Linkers --------------------------------------------------------------------------------------


def test_linkers_agree_and_differences_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """GNU ld and lld make the same of a call; a difference names the place and both."""
    here = linkers.linkers(archs.arch("arm64"))
    if not here:
        pytest.skip("no linker for arm64 is installed")
    here = {name: here[name] for name in here if name != "jitlink"}  # which makes a stub
    case = CALL + "symbol far = f + 64\nlinkers all\n"
    (outcome,) = outcomes(case, wanted=Wanted())
    assert outcome.verdict is Verdict.PASSED
    assert set(outcome.covers[0].linkers) == set(here)
    monkeypatch.setattr(linkers, "link", lambda *_: linkers.Said({1: bytes.fromhex("11000094")}))
    found = outcomes(case, wanted=Wanted())
    assert len(texts(found)) == len(here)
    assert ".text+0x0" in texts(found)[0]
    assert "11 00 00 94, here it is 10 00 00 94" in texts(found)[0]


def test_a_linker_that_stops_for_another_reason_does_not_agree() -> None:
    """Only a refused relocation is a refusal; a linker that dislikes the file has said nothing."""
    assert linkers.Said(None, "relocation R_X out of range").about_relocation
    assert not linkers.Said(None, "cannot open in.o").about_relocation


def test_named_linkers_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linker that a case names and that is missing is a reason to skip, told by name."""
    monkeypatch.setattr(linkers, "linkers", lambda _arch: {})
    (outcome,) = outcomes(CALL + "symbol far = f + 64\nlinkers ld\n", wanted=Wanted())
    assert outcome.verdict is Verdict.SKIPPED
    assert outcome.findings[0].text == "ld for arm64 is not installed"


# Packing, assembling ----------------------------------------------------------------------------


def test_packed_cases_need_no_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed, a case gives what it gave, byte for byte the same each time, without any tool."""
    source = tmp_path / "case.s"
    source.write_text(documented()[1])
    try:
        packed = files.pack_file(source, Wanted())
    except toolchain.NoTool as error:
        pytest.skip(str(error))
    first = packed.read_bytes()
    assert files.pack_file(source, Wanted()).read_bytes() == first
    before = running.run(reading.read("case.s", source.read_text()), ALONE)
    want = [f.text for o in before for f in o.findings]
    monkeypatch.setattr(shutil, "which", lambda *_a, **_k: None)
    case = reading.read("case.case", packed.read_text())
    assert case.form is Form.PACKED
    assert [f.text for o in running.run(case, ALONE) for f in o.findings] == want
    written_out = tmp_path / "written.case"
    written_out.write_text(CALL)
    with pytest.raises(BadCase, match="needs no toolchain"):
        files.pack_file(written_out, Wanted())


def test_a_packed_case_is_assembled_anew_from_itself(tmp_path: Path) -> None:
    """The source that stands in a packed case gives the same case again, C as well as assembly."""
    for name, text in (("a.s", documented()[1]), ("a.c", "// execmem: arch arm64\nint x;\n")):
        source = tmp_path / name
        source.write_text(text)
        try:
            packed = files.pack_file(source, Wanted())
        except toolchain.NoTool as error:
            pytest.skip(str(error))
        first = packed.read_bytes()
        assert files.pack_file(packed, Wanted()).read_bytes() == first


def test_the_packed_object_is_the_assemblers(tmp_path: Path, machine: int) -> None:
    """What a case holds is what the assembler writes."""
    arch = next(a for a in archs.ALL if a.machine == machine)
    source = f"# execmem: arch {arch.name}\n.globl f\nf: .long 0\n"
    expected = assemble(machine, source, tmp_path)
    made = toolchain.make(reading.read("c.s", source), arch)
    assert made.image == expected


@pytest.fixture(params=[a.machine for a in archs.ALL], ids=[a.name for a in archs.ALL])
def machine(request: pytest.FixtureRequest) -> int:
    """Return e_machine of each architecture."""
    return int(request.param)


def test_what_an_assembler_refuses_is_told_with_its_line(tmp_path: Path) -> None:
    """The line is the case's own, whoever complains."""
    if toolchain.gnu(archs.arch("x86_64"), "as") is None:
        pytest.skip("no assembler for x86_64 is installed")
    with pytest.raises(BadCase) as caught:
        toolchain.make(
            reading.read("c.s", "# execmem: arch x86_64\nnop\nnot\n"), archs.arch("x86_64")
        )
    assert caught.value.line == 3


def test_without_tools_a_source_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named."""
    monkeypatch.setattr(shutil, "which", lambda *_a, **_k: None)
    toolchain.llvm.cache_clear()
    (outcome,) = outcomes("# execmem: arch riscv64\nnop\n", "c.s")
    toolchain.llvm.cache_clear()
    assert outcome.verdict is Verdict.SKIPPED
    assert "riscv64-linux-gnu-as or clang" in outcome.findings[0].text


# Reports --------------------------------------------------------------------------------------


FOUND = [
    Outcome(
        path="a.case",
        arch="arm64",
        placement="near",
        findings=(
            Finding(verdict=Verdict.PASSED, line=3, text="run f = 7"),
            Finding(verdict=Verdict.FAILED, line=4, text="it returns <7> & #8"),
        ),
    ),
    Outcome(
        path="b.s",
        arch="riscv64",
        findings=(Finding(verdict=Verdict.SKIPPED, line=0, text="needs as"),),
    ),
    Outcome(
        path="c.s", arch="x86_64", findings=(Finding(verdict=Verdict.PASSED, line=1, text="x"),)
    ),
]


def test_tap() -> None:
    """The stream is TAP: a plan, numbered lines, SKIP, and what is wrong as comments."""
    lines = list(reporting.tap(FOUND))
    assert lines == [
        "TAP version 14",
        "not ok 1 - a.case [arm64] near",
        "# a.case:4: [arm64] (near) it returns <7> & #8",
        "ok 2 - b.s [riscv64] # SKIP needs as",
        "ok 3 - c.s [x86_64]",
        "1..3",
    ]


def test_junit_is_xml_that_says_the_same() -> None:
    """A reader of JUnit's XML finds the counts, the failure and its text."""
    root = ET.fromstring(reporting.junit(FOUND))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("3", "1", "1")
    failure = root.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "it returns <7> & #8"
    assert failure.text == "a.case:4: [arm64] (near) it returns <7> & #8"


def test_verdicts() -> None:
    """A failure is the worst; what is only skipped was not tried."""
    assert worst(FOUND) is Verdict.FAILED
    assert worst(FOUND[1:]) is Verdict.PASSED
    assert worst(FOUND[1:2]) is Verdict.SKIPPED


# The command and the plugin ---------------------------------------------------------------------


def status(*words: str) -> int:
    """Return the exit code of a command line."""
    with pytest.raises(SystemExit) as caught:
        main(["check", *words])
    return int(caught.value.code or 0)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Return a folder with a case that holds, one that does not, and what is none."""
    folder = tmp_path / "cases"
    folder.mkdir()
    (folder / "good.case").write_text(CALL + "symbol far = f + 64\nexpect target(f) = far\n")
    (folder / "bad.case").write_text(CALL + "symbol far = f + 64\nexpect target(f) = far + 4\n")
    (folder / "other.c").write_text("int other;\n")
    return folder


def test_the_command(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit codes, lines, JSON, TAP, JUnit."""
    good = [str(cases / "good.case"), "--linker", "none", "--jobs", "1"]
    assert status(*good) == 0
    assert capsys.readouterr().out == "1 file, 1 link: 1 ok\n"
    both = [str(cases), "--linker", "none", "--jobs", "2"]
    assert status(*both) == 1
    out = capsys.readouterr().out
    assert "bad.case:7: [arm64]" in out
    assert out.endswith("2 files, 2 links: 1 ok, 1 failed\n")
    assert status(*both, "--json", "--junit", str(tmp_path / "j.xml")) == 1
    document = json.loads(capsys.readouterr().out)
    assert [o["outcome"] for o in document["outcomes"]] == ["failed", "passed"]
    assert ET.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
    assert status(*both, "--tap") == 1
    assert capsys.readouterr().out.startswith("TAP version 14\nnot ok 1")
    assert status(*both, "--matrix") == 1
    assert "HOLE" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nowhere.s"],
        ["CASES", "--arch", "vax"],
        ["CASES", "--linker", "gold"],
        ["CASES", "--json", "--tap"],
        ["CASES/other.c", "--pack"],
    ],
)
def test_usage(words: list[str], cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that means nothing is told in a line, without a traceback."""
    given = [word.replace("CASES", str(cases)) for word in words]
    assert status(*given) in (1, 2)
    err = capsys.readouterr().err
    assert err
    assert "Traceback" not in err


def test_the_plugin(cases: Path) -> None:
    """Pytest collects cases when it is asked to: an item an architecture, failures in lines."""
    installed = any(e.value == "execmem.check.plugin" for e in entry_points(group="pytest11"))
    named = () if installed else ("-p", "execmem.check.plugin")
    command = [
        sys.executable,
        "-m",
        "pytest",
        *named,
        "-p",
        "no:cacheprovider",
    ]
    command += ["-q", str(cases), "--execmem", "--execmem-linker", "none", f"--rootdir={cases}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "bad.case:7: [arm64]" in done.stdout
    assert "Traceback" not in done.stdout
