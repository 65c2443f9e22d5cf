# SPDX-License-Identifier: GPL-2.0-or-later
"""Files in the language of LLVM's JITLink tests: what holds, what fails, what is not a module's.

The files here are our own. LLVM's run where EXECMEM_LLVM names a checkout, or a folder of them.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from execmem.check import jitlink, subject, toolchain
from execmem.check.jitlink.workshop import Stopped, Workshop, options
from execmem.check.outcome import Finding, Outcome, Verdict
from tests.support import tools

X86 = """\
# RUN: rm -rf %t && mkdir -p %t
# RUN: llvm-mc -triple=x86_64-linux -position-independent -filetype=obj -o %t/a.o %s
# RUN: llvm-jitlink -noexec -slab-allocate 64Kb -slab-address 0x7f0000 \\
# RUN:     -slab-page-size 4096 -abs near=0x10000 -abs far=0x7fff00000000 \\
# RUN:     -check %s %t/a.o
"""
MAIN = ".text\n.globl main\nmain: ret\n"


def run(path: Path, text: str) -> list[Outcome]:
    """Write a test and return what became of it; skip where LLVM is not installed."""
    tools.llvm("llvm-mc")
    path.write_text(text, "utf-8")
    return list(jitlink.run_jitlink(path))


def one(path: Path, text: str) -> Outcome:
    """Return the only outcome of a test."""
    (outcome,) = run(path, text)
    return outcome


def on(outcome: Outcome, line: int) -> Finding:
    """Return the finding of a line."""
    (found,) = [finding for finding in outcome.findings if finding.line == line]
    return found


def counts(outcome: Outcome) -> dict[Verdict, int]:
    """Return how many findings there are of each kind."""
    return dict(Counter(finding.verdict for finding in outcome.findings))


SOURCE_X86 = (
    X86
    + MAIN
    + """\
.globl call_near, load_slot, store, word
.size call_near, 5; .size load_slot, 7; .size store, 10
call_near: call near
load_slot: leaq far@GOTPCREL(%rip), %rax
store: movl $7, word(%rip)
# jitlink-check: decode_operand(call_near, 0) = near - next_pc(call_near)
# jitlink-check: decode_operand(load_slot, 4) = \\
# jitlink-check:     got_addr(a.o, far) - next_pc(load_slot)
# jitlink-check: *{8}(got_addr(a.o, far)) = far
# jitlink-check: decode_operand(store, 3) = word - next_pc(store)
# jitlink-check: decode_operand(store, 5) = 7
# jitlink-check: *{8}word = section_addr(a.o, .text)
.data
word: .quad main
"""
)
SOURCE_ARM64 = (
    """\
# RUN: llvm-mc -triple=aarch64-linux-gnu -filetype=obj -o %t.o %s
# RUN: llvm-jitlink -noexec -abs far=0xcafef008 -check=%s %t.o
"""
    + MAIN
    + """\
.globl call, page, low, slot, word
.size call, 4; .size page, 4; .size low, 4
call: bl far
page: adrp x0, word
low: ldr x1, [x0, :lo12:word]
slot: adrp x0, :got:far
# jitlink-check: decode_operand(call, 0)[25:0] = (stub_addr(a.s.tmp.o, far) - call)[27:2]
# jitlink-check: decode_operand(page, 1)[20:0] = ((word & 0xfffffffffffff000) - (page & 0xfffffffffffff000))[32:12]
# jitlink-check: decode_operand(low, 2) = word[11:3]
# jitlink-check: *{8}(got_addr(a.s.tmp.o, far)) = far
# jitlink-check: *{8}word = far + 8
.data
.p2align 3
word: .quad far + 8
"""
)
SOURCE_RISCV64 = (
    """\
# RUN: llvm-mc -triple=riscv64 -mattr=+c -filetype=obj -o %t.o %s
# RUN: llvm-jitlink -noexec -slab-allocate 1Mb -slab-address 0x10000 -abs far=0xfff000000 \\
# RUN:   -check=%s %t.o
"""
    + MAIN
    + """\
.globl call, high, low, jump, word
.size call, 8; .size high, 4; .size low, 4; .size jump, 2
call: call far@plt
high: lui a0, %hi(word)
low: addi a0, a0, %lo(word)
back: c.nop
jump: c.j back
# jitlink-check: decode_operand(call, 1) = (stub_addr(a.s.tmp.o, far) - call + 0x800)[31:12]
# jitlink-check: *{8}(got_addr(a.s.tmp.o, far)) = far
# jitlink-check: decode_operand(high, 1) = (word + 0x800)[31:12]
# jitlink-check: decode_operand(low, 2)[11:0] = word[11:0]
# jitlink-check: decode_operand(jump, 0) = jump - (jump + 2)
# jitlink-check: next_pc(jump) = jump + 2
.data
word: .quad 0
"""
)
SOURCE_MIPS64EL = """\
# RUN: llvm-mc -triple=mips64el-linux-gnuabi64 -mcpu=mips64r2 -defsym N=8 -filetype=obj -o %t.o %s
# RUN: llvm-jitlink -noexec -slab-allocate=1Mb -slab-address=0x10000000 --abs=far=0x10200000 \\
# RUN:   -check=%s %t.o
.set noreorder
.text
.globl main, high, low, jump, word
main: jr $31
nop
.size high, 4; .size low, 4; .size jump, 4
high: lui $4, %hi(word + N)
low: addiu $4, $4, %lo(word + N)
jump: j far
nop
# jitlink-check: decode_operand(high, 1) = (word + 0x8008)[31:16]
# jitlink-check: decode_operand(low, 2)[15:0] = (word + 8)[15:0]
# jitlink-check: decode_operand(jump, 0) = far[27:0]
# jitlink-check: *{8}word = main
.data
.p2align 3
word: .8byte main
"""
SOURCES = {
    "x86_64": SOURCE_X86,
    "arm64": SOURCE_ARM64,
    "riscv64": SOURCE_RISCV64,
    "mips64el": SOURCE_MIPS64EL,
}


@pytest.mark.parametrize("name", SOURCES)
def test_holds(name: str, tmp_path: Path) -> None:
    """Our link holds what a file expects, on every architecture; all but nothing passes."""
    outcome = one(tmp_path / "a.s", SOURCES[name])
    assert (outcome.arch, outcome.verdict) == (name, Verdict.PASSED)
    assert counts(outcome) == {Verdict.PASSED: len(outcome.findings)}
    assert len(outcome.findings) > 4


@pytest.mark.parametrize("name", SOURCES)
def test_jitlink_agrees(name: str, tmp_path: Path) -> None:
    """LLVM's own link holds the same checks, so that they mean what LLVM means."""
    linker, assembler = tools.llvm("llvm-jitlink"), tools.llvm("llvm-mc")
    source, built = tmp_path / "a.s", tmp_path / "a.s.tmp.o"
    source.write_text(SOURCES[name].replace("a.o, ", "a.s.tmp.o, "), "utf-8")
    lines = " ".join(
        line.partition("RUN:")[2].strip().rstrip("\\")
        for line in SOURCES[name].splitlines()
        if "RUN:" in line
    )
    assemble, link = lines[lines.index("llvm-mc") :].split("llvm-jitlink")
    told = {"%t/a.o": str(built), "%t.o": str(built), "%s": str(source)}
    for mark, path in told.items():
        assemble, link = assemble.replace(mark, path), link.replace(mark, path)
    tools.run(assembler, *assemble.split()[1:])
    done = subprocess.run([linker, *link.split()], capture_output=True, text=True, check=False)
    if "unsupported" in done.stderr.lower() and "mips" in name:
        pytest.skip("this llvm-jitlink does not link for Mips yet")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SOURCES)
def test_every_check_can_fail(name: str, tmp_path: Path) -> None:
    """A wrong number in any check fails, in one line with formula and both values."""
    lines = SOURCES[name].splitlines()
    ends = [
        number
        for number, line in enumerate(lines)
        if "jitlink-check:" in line and not line.endswith("\\")
    ]
    wrong = [f"{line} + 1" if number in ends else line for number, line in enumerate(lines)]
    outcome = one(tmp_path / "a.s", "\n".join(wrong) + "\n")
    assert counts(outcome) == {Verdict.PASSED: 1, Verdict.FAILED: len(ends)}
    for finding in outcome.findings:
        if finding.verdict is Verdict.FAILED:
            assert " is not 0x" in finding.text
            assert " + 1: 0x" in finding.text
            assert "\n" not in finding.text


REFUSED = (
    """\
# RUN: llvm-mc -triple=x86_64-linux -filetype=obj -o %t.o %s
# RUN: not llvm-jitlink -noexec -abs X={value} %t.o 2>&1 | FileCheck -check-prefix=BAD %s
# BAD: relocation target "X" at address {{{{.*}}}} is out of range of Pointer16 fixup
"""
    + MAIN
    + ".data\n.short X\n"
)


def test_refused(tmp_path: Path) -> None:
    """Where JITLink has to refuse, ours has to refuse the same relocation."""
    good = one(tmp_path / "a.s", REFUSED.format(value="0x12345"))
    assert good.verdict is Verdict.PASSED
    assert "R_X86_64_16 against 'X' out of range: +0x12345" in good.findings[0].text
    bad = one(tmp_path / "a.s", REFUSED.format(value="0x1234"))
    assert bad.verdict is Verdict.FAILED
    assert bad.findings[0].line == 3
    assert "the link is not refused" in bad.findings[0].text


RELAXED = (
    """\
# RUN: llvm-mc -triple=riscv64 -mattr=+relax -filetype=obj -o %t.o %s
# RUN: llvm-jitlink -noexec -slab-allocate 1Mb -slab-address 0x1000 -check=%s %t.o
"""
    + MAIN
    + """\
call: call main
behind: ret
# jitlink-check: behind - call = 4
# jitlink-check: *{8}word = main
.data
word: .quad main
"""
)


def test_relaxation(tmp_path: Path) -> None:
    """Relaxation is named, check by check; a fault elsewhere is none of it."""
    outcome = one(tmp_path / "a.s", RELAXED)
    assert on(outcome, 8).verdict is Verdict.FOREIGN
    assert "R_RISCV_RELAX lets JITLink shorten the call of main" in on(outcome, 8).text
    assert on(outcome, 9).verdict is Verdict.PASSED
    # Out of a jump's reach nothing is shortened, and the difference is a fault.
    far = RELAXED.replace("behind: ret", ".skip 0x200000").replace(
        "call: call main", "behind: nop\n.skip 0x200000\ncall: call main"
    )
    assert on(one(tmp_path / "a.s", far), 10).verdict is Verdict.FAILED
    plain = RELAXED.replace(" -mattr=+relax", "")
    assert on(one(tmp_path / "a.s", plain), 8).verdict is Verdict.FAILED
    wrong = RELAXED.replace("= main\n", "= main + 4\n")
    assert on(one(tmp_path / "a.s", wrong), 9).verdict is Verdict.FAILED


def test_optimised_slots(tmp_path: Path) -> None:
    """A slot that JITLink does without is named where its symbol is near, and nowhere else."""
    source = (
        X86
        + MAIN
        + """\
# jitlink-check: *{1}near_call = 0x67
near_call: call *near@GOTPCREL(%rip)
# jitlink-check: *{1}far_call = 0x67
far_call: call *far@GOTPCREL(%rip)
"""
    )
    outcome = one(tmp_path / "a.s", source)
    assert on(outcome, 9).verdict is Verdict.FOREIGN
    assert "R_X86_64_GOTPCRELX against near into direct access" in on(outcome, 9).text
    assert on(outcome, 11).verdict is Verdict.FAILED


def test_faults_are_not_excused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where our own link is wrong, what JITLink would have changed there is no excuse."""
    slots = X86 + MAIN + "# jitlink-check: *{1}call = 0x67\ncall: call *near@GOTPCREL(%rip)\n"
    assert on(one(tmp_path / "a.s", slots), 9).verdict is Verdict.FOREIGN
    assert on(one(tmp_path / "a.s", RELAXED), 8).verdict is Verdict.FOREIGN
    monkeypatch.setattr(subject.Object, "slots", lambda _one: {})
    monkeypatch.setattr(subject.Subject, "target", lambda _one, address: address)
    assert on(one(tmp_path / "a.s", slots), 9).verdict is Verdict.FAILED
    assert on(one(tmp_path / "a.s", RELAXED), 8).verdict is Verdict.FAILED


def test_no_plt(tmp_path: Path) -> None:
    """Where modules have no PLT, what needs one is named, and the rest is held all the same."""
    source = (
        X86
        + MAIN
        + """\
# jitlink-check: decode_operand(call, 0) = stub_addr(a.o, far) - next_pc(call)
# jitlink-check: *{8}(got_addr(a.o, far)) = far
call: call far@plt
# jitlink-check: *{1}call = 0xe8
# jitlink-check: *{1}call = 0xe9
"""
    )
    outcome = one(tmp_path / "a.s", source)
    for line in (9, 10):
        assert on(outcome, line).verdict is Verdict.FOREIGN
        assert "have no PLT, and far is out of the call's reach" in on(outcome, line).text
    assert on(outcome, 12).verdict is Verdict.PASSED
    assert on(outcome, 13).verdict is Verdict.FAILED
    # A word that does not reach is no call: it is ours to link, and it does not fit.
    word = one(tmp_path / "a.s", X86 + MAIN + ".data\n.long far - .\n# jitlink-check: 1 = 1\n")
    assert word.verdict is Verdict.FAILED


def test_stub_that_is_not_needed(tmp_path: Path) -> None:
    """A branch that reaches has no PLT entry in a module; one that does not has to have one."""
    near = SOURCE_ARM64.replace(
        "-abs far=0xcafef008", "-slab-allocate 1Mb -slab-address 0x100000 -abs far=0x10000"
    )
    outcome = one(tmp_path / "a.s", near)
    assert on(outcome, 12).verdict is Verdict.FOREIGN
    assert "far is within reach, and the branch leads there itself" in on(outcome, 12).text
    other = SOURCE_ARM64.replace("stub_addr(a.s.tmp.o, far)", "stub_addr(a.s.tmp.o, word)")
    assert on(one(tmp_path / "a.s", other), 12).verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("triple", "body", "reason"),
    [
        ("x86_64-linux", ".comm c,4,4\n.data\n.quad c\n", "COMMON symbols"),
        (
            "x86_64-linux",
            '.section .tdata,"awT"\nt: .quad 0\n.text\nmovq %fs:t@TPOFF, %rax\n',
            "thread-local",
        ),
        ("x86_64-linux", '.section .wx,"awx"\n.quad 1\n', "writable and executable"),
        ("x86_64-linux", '.section my,"aw"\n.quad __start_my\n', "linkers make up"),
        ("x86_64-linux", "call printf\n", "looked up in the process"),
        ("x86_64-linux-gnux32", "nop\n", "32-bit addresses"),
        ("aarch64_be-linux", "nop\n", "aarch64_be"),
        ("riscv32", "nop\n", "riscv32"),
        ("mips64-linux-gnuabi64", "nop\n", "mips64"),
        ("x86_64-apple-macosx10.9", "nop\n", "Mach-O"),
        ("x86_64-windows-msvc", "nop\n", "COFF"),
        ("powerpc64le-linux", "nop\n", "powerpc64le"),
    ],
)
def test_not_a_module(triple: str, body: str, reason: str, tmp_path: Path) -> None:
    """What no module loader does is told by name."""
    source = f"# RUN: llvm-mc -triple={triple} -filetype=obj -o %t.o %s\n"
    source += f"# RUN: llvm-jitlink -noexec %t.o\n{MAIN if 'ret' not in body else ''}{body}"
    outcome = one(tmp_path / "a.s", source)
    assert outcome.verdict in (Verdict.FOREIGN, Verdict.PASSED)
    assert any(f.verdict is Verdict.FOREIGN and reason in f.text for f in outcome.findings)


@pytest.mark.parametrize(
    ("option", "verdict", "reason"),
    [
        ("-debug-only=jitlink", Verdict.FOREIGN, "debug output of JITLink"),
        ("-show-addrs", Verdict.FOREIGN, "addresses that JITLink prints"),
        ("-perf-support", Verdict.FOREIGN, "perf"),
        ("-orc-runtime=x", Verdict.FOREIGN, "ORC runtime"),
        ("-lfoo", Verdict.FOREIGN, "looks libraries up"),
        ("-shiny-new", Verdict.SKIPPED, "-shiny-new"),
        ("-abs X", Verdict.SKIPPED, "no number"),
        ("-slab-address", Verdict.SKIPPED, "no such file"),
        ("-check=%s", Verdict.FAILED, "no check called jitlink-check"),
    ],
)
def test_options(option: str, verdict: Verdict, reason: str, tmp_path: Path) -> None:
    """An option that is not a link's, or not known, is told by name and never passed over."""
    source = "# RUN: llvm-mc -triple=x86_64-linux -filetype=obj -o %t.o %s\n"
    source += f"# RUN: llvm-jitlink -noexec {option} %t.o\n{MAIN}"
    outcome = one(tmp_path / "a.s", source)
    if option == "-slab-address":  # takes the object for its value
        assert outcome.verdict is Verdict.SKIPPED
        return
    assert any(f.verdict is verdict and reason in f.text for f in outcome.findings)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("rm -rf /tmp/elsewhere", "outside of the test's own folder"),
        ("rm -rf %T", "the test's own folder"),
        ("cp %s /tmp/elsewhere", "outside of the test's own folder"),
        ("mkdir -p %T/../elsewhere", "outside of the test's own folder"),
        ("cd /", "outside of the test's own folder"),
        ("python3 -c pass", "python3 is not carried out"),
        ("sh -c true", "sh is not carried out"),
        ("rm --no-preserve-root x", "is not understood"),
        ("cp %T/nothing %T/other", "No such file"),
        ("llvm-mc -triple=x86_64 -filetype=obj %s", "one file and -o only"),
    ],
)
def test_commands_are_refused(line: str, reason: str, tmp_path: Path) -> None:
    """Commands that are not known, or reach outside, are not carried out, and said so."""
    tools.llvm("llvm-mc")
    outcome = run(tmp_path / "a.s", f"# RUN: {line}\n# RUN: llvm-jitlink -noexec %t.o\n")[0]
    assert outcome.verdict is Verdict.SKIPPED
    assert any(reason in finding.text for finding in outcome.findings)


def test_files_are_parted(tmp_path: Path) -> None:
    """`split-file` parts a file, and several objects see each other's symbols."""
    outcome = one(
        tmp_path / "a.s",
        "# RUN: split-file %s %t\n"
        "# RUN: llvm-mc -triple=x86_64-linux -filetype=obj -o %t/a.o %t/a.s\n"
        "# RUN: llvm-mc -triple=x86_64-linux -filetype=obj -o %t/b.o %t/b.s\n"
        "# RUN: llvm-jitlink -noexec -alias other=there -check=%s %t/a.o %t/b.o\n"
        "#--- a.s\n" + MAIN + ".data\n.globl here\nhere: .quad there\n"
        "# jitlink-check: *{8}here = there\n# jitlink-check: *{8}there = there\n"
        "# jitlink-check: section_addr(b.o, .data) = there\n"
        "#--- b.s\n.data\n.globl there\nthere: .quad other\n",
    )
    assert counts(outcome) == {Verdict.PASSED: 4}, outcome.findings


def test_weak_symbols(tmp_path: Path) -> None:
    """A weak symbol that two objects define is each module's own."""
    body = ".data\n.weak w\nw: .quad 1\n"
    outcome = one(
        tmp_path / "a.s",
        "# RUN: split-file %s %t\n"
        "# RUN: llvm-mc -triple=x86_64-linux -filetype=obj -o %t/a.o %t/a.s\n"
        "# RUN: llvm-mc -triple=x86_64-linux -filetype=obj -o %t/b.o %t/b.s\n"
        "# RUN: llvm-jitlink -noexec -check=%s %t/a.o %t/b.o\n"
        "# jitlink-check: *{8}first = *{8}second\n"
        "#--- a.s\n" + MAIN + body + ".globl first\nfirst: .quad w\n"
        "#--- b.s\n" + body + ".globl second\nsecond: .quad w\n",
    )
    assert on(outcome, 5).verdict is Verdict.FOREIGN
    assert "w is weak in several objects" in on(outcome, 5).text


def test_yaml(tmp_path: Path) -> None:
    """`yaml2obj` makes objects, too."""
    tools.llvm("yaml2obj")
    outcome = one(
        tmp_path / "a.yaml",
        "# RUN: yaml2obj -DNAME=main -o %t.o %s\n# RUN: llvm-jitlink -noexec -check=%s %t.o\n"
        "# jitlink-check: *{4}main = 0xd65f03c0\n"
        "--- !ELF\nFileHeader:\n  Class: ELFCLASS64\n  Data: ELFDATA2LSB\n  Type: ET_REL\n"
        "  Machine: EM_AARCH64\nSections:\n  - Name: .text\n    Type: SHT_PROGBITS\n"
        "    Flags: [ SHF_ALLOC, SHF_EXECINSTR ]\n    Content: C0035FD6\n"
        "Symbols:\n  - Name: [[NAME]]\n    Section: .text\n    Binding: STB_GLOBAL\n",
    )
    assert counts(outcome) == {Verdict.PASSED: 2}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("there", ["clang", "as"])
def test_other_assemblers(
    name: str, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without llvm-mc, clang or the GNU assembler make the same of it, or are not asked."""
    real = toolchain.llvm
    monkeypatch.setattr(toolchain, "llvm", lambda tool: real(tool) if tool == there else None)
    path = tmp_path / "a.s"
    path.write_text(SOURCES[name], "utf-8")
    (outcome,) = jitlink.run_jitlink(path)
    if outcome.verdict is Verdict.SKIPPED:
        (finding,) = outcome.findings
        assert "llvm-mc is not installed" in finding.text
        if "-mcpu" not in finding.text:
            pytest.skip(finding.text)
        return
    assert outcome.verdict is Verdict.PASSED, outcome.findings


def test_other_assemblers_may_not_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another assembler warns of it may have left out: it is not asked further."""
    tools.cross(62, "as")
    monkeypatch.setattr(toolchain, "llvm", lambda _tool: None)
    path = tmp_path / "a.s"
    path.write_text(SOURCE_X86 + '.warning "left out"\n', "utf-8")
    (outcome,) = jitlink.run_jitlink(path)
    assert outcome.verdict is Verdict.SKIPPED
    assert "left out" in outcome.findings[0].text


def test_older_options(tmp_path: Path) -> None:
    """An option that this llvm-mc knows by another name is given it by that."""
    for name in ("x86-relax-relocations", "relax-relocations"):
        source = SOURCE_X86.replace("-position-independent", f"-{name}=false")
        assert one(tmp_path / "a.s", source).verdict is Verdict.PASSED


def test_nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any assembler a test is skipped, and says what it needs."""
    monkeypatch.setattr(toolchain, "llvm", lambda _tool: None)
    monkeypatch.setattr(toolchain, "gnu", lambda _arch, _tool: None)
    path = tmp_path / "a.s"
    path.write_text(SOURCE_X86, "utf-8")
    (outcome,) = jitlink.run_jitlink(path)
    assert outcome.verdict is Verdict.SKIPPED
    assert "llvm-mc is not installed, nor clang" in outcome.findings[0].text


def test_what_does_not_assemble(tmp_path: Path) -> None:
    """What the assembler refuses is skipped, with its reason."""
    text = "# RUN: llvm-mc -triple=x86_64-linux -filetype=obj -o %t.o %s\n"
    outcome = one(tmp_path / "a.s", f"{text}# RUN: llvm-jitlink -noexec %t.o\n.nonsense\n")
    assert outcome.verdict is Verdict.SKIPPED
    assert "unknown directive" in outcome.findings[0].text


def test_which_files(tmp_path: Path) -> None:
    """A file is one of these if its RUN lines call llvm-jitlink; each call is an outcome."""
    assert jitlink.is_jitlink(SOURCE_X86)
    assert not jitlink.is_jitlink("# RUN: llvm-mc %s\n")
    assert not jitlink.is_jitlink("llvm-jitlink")
    text = SOURCE_X86 + SOURCE_ARM64.replace("%t.o", "%t.2.o").split(".text")[0]
    first, second = run(tmp_path / "a.s", text)
    assert (first.placement, second.arch) == ("line 3, at 0x7f0000", "arm64")
    (only,) = jitlink.run_jitlink(tmp_path / "a.s", arch="x86_64")
    assert only == first
    assert not jitlink.run_jitlink(tmp_path / "a.s", arch="mips64el")
    (missing,) = jitlink.run_jitlink(tmp_path / "nothing.s")
    assert missing.verdict is Verdict.FAILED


def test_options_are_read_as_llvm_does() -> None:
    """One dash or two, a value behind `=` or in the next word."""
    told = options(
        ("x", "--abs=a=1", "-abs", "b=2", "-noexec", "f.o", "-Lq", "-what"),
        frozenset(("abs", "L")),
        frozenset(("noexec",)),
    )
    assert told.every("abs") == ["a=1", "b=2"]
    assert (told.rest, told.last("L"), told.unknown) == (("f.o",), "q", ("-what",))
    with pytest.raises(Stopped):
        options(("x", "-abs"), frozenset(("abs",)), frozenset())


def test_a_folder_of_its_own(tmp_path: Path) -> None:
    """A link in the folder leads nowhere that may be written."""
    shop = Workshop(tmp_path / "a.s", tmp_path / "own")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "out").symlink_to(tmp_path)
    with pytest.raises(Stopped, match="outside"):
        shop.own("out/x")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for word in (str(tmp_path / "circle"), "x" * 5000, "a\0b"):
        with pytest.raises(Stopped):
            shop.made(word)


# Of LLVM 19's tests of ELF files for X86, AArch64 and RISC-V: outcomes by verdict.
LLVM_19 = {Verdict.PASSED: 53, Verdict.FOREIGN: 26}
FILES_19 = 47


def test_llvms_own() -> None:
    """LLVM's files run as they are: nothing fails, and what is left out has a reason."""
    if "EXECMEM_LLVM" not in os.environ:
        pytest.skip("EXECMEM_LLVM names no checkout of LLVM, nor a folder with its JITLink tests")
    for tool in ("llvm-mc", "yaml2obj"):
        tools.llvm(tool)
    root = Path(os.environ["EXECMEM_LLVM"])
    whole = root / "llvm/test/ExecutionEngine/JITLink"
    root = whole if whole.is_dir() else root
    files = [
        path
        for folder in ("x86-64", "AArch64", "RISCV", "Mips")
        for path in sorted((root / folder).glob("*"))
        if path.is_file()
        and not path.name.startswith(("MachO", "COFF"))
        and jitlink.is_jitlink(path.read_text("utf-8", "replace"))
    ]
    assert files, f"{root} has none"
    outcomes = [outcome for path in files for outcome in jitlink.run_jitlink(path)]
    failed = [
        f"{outcome.title}: {finding.text}"
        for outcome in outcomes
        for finding in outcome.findings
        if finding.verdict is Verdict.FAILED
    ]
    assert not failed, "\n".join(failed)
    found = Counter(outcome.verdict for outcome in outcomes)
    assert found[Verdict.PASSED] > len(files) // 2
    if len(files) == FILES_19:
        assert dict(found) == LLVM_19
