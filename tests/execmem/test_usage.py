# SPDX-License-Identifier: GPL-2.0-or-later
"""Usage: words that are wrong whatever they are about end with exit code 2 and a hint."""

from __future__ import annotations

import pytest

from emulator.faults import BadCall
from execmem.cli import main
from machine.face import Machine
from samples.modules import path, root
from tests.archs.facts import needs

HELLO = path("x86_64", "hello")
PATCHABLE = path("x86_64", "patchable")


@pytest.fixture
def run(capsys):
    """Run the command line; return exit code, stdout and stderr."""

    def call(*words):
        with pytest.raises(SystemExit) as done:
            main(list(map(str, words)))
        return (done.value.code or 0, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["load", HELLO, "--design", "stratta"], "did you mean strata"),
        (["load", "--all", "--root", root("x86_64"), "--design", "nonesuch"], "nonesuch"),
        (["compare", "--design", "nonesuch"], "nonesuch"),
        (["compare", "--workload", "nonesuch"], "nonesuch"),
        (["sweep", HELLO, "--design", "nonesuch"], "nonesuch"),
        (["explain", HELLO, "--html", "x.html", "--also", "nonesuch"], "nonesuch"),
        (["load", HELLO, "--arch", "vax"], "vax"),
        (["reach", "--arch", "vax"], "vax"),
        (["compare", "--arch", "vax"], "vax"),
        (["race", "--arch", "vax"], "vax"),
        (["race", "unsort"], "unsorted"),
        (["race", "--old", "xyz"], "xyz"),
        (["race", "--old", "90", "--new", "cc"], "one --arch"),
        (["race", "--force"], "--old and --new"),
        (["race", "--key", "a"], "--kernel"),
        (["race", "unsorted", "--kernel", "vmlinuz"], "--kernel"),
        (["race", "--graph", "--json"], "one --arch"),
        (["race", "--graph", "--arch", "arm64"], "--json"),
        (["diff", "--oracle", ".", "--arch", "vax"], "vax"),
        (["load", HELLO, "--erratum", "1"], "no erratum '1'"),
        (["load", HELLO, "--unknown", "maybe"], "fault"),
        (["load", HELLO, "--checks", "some"], "hardware"),
        (["load", HELLO, "--kaslr", "-1"], "-1"),
        (["run", HELLO, "hello_greet", "--returns", "struct nonesuch"], "nonesuch"),
        (["probe", PATCHABLE, "--", "patchable_fib", "1"], "expected MODULE:FUNCTION"),
        (["diff", "--oracle", ".", "--without", "magic"], "magic"),
        (["demo", "nonesuch"], "nonesuch"),
        (["nonesuch"], "nonesuch"),
        (["load", HELLO, "--jsn"], "--json"),
    ],
)
def test_names_that_nobody_has_are_usage(run, words, said):
    """An unknown design, architecture, policy, format ... is exit code 2 wherever it is named."""
    code, out, err = run(*words)
    assert (code, out) == (2, ""), err
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", HELLO, "--scheduler", "nonesuch"], "expected HOST:PORT"),
        (["sweep", HELLO, "--scheduler", "tcp://10.0.0.1"], "expected HOST:PORT"),
        (["sweep", HELLO, "--scheduler", ""], "expected HOST:PORT"),
        (["fuzz", HELLO, "hello", "--scheduler", "nonesuch"], "expected HOST:PORT"),
        (["sweep", HELLO, "--no-sandbox", "--require-sandbox"], "contradicts --no-sandbox"),
        (["fuzz", HELLO, "hello", "--require-sandbox", "--no-sandbox"], "contradicts --no-sandbox"),
        (["run", HELLO, "--stub", "=1"], "--stub '=1': expected NAME"),
        (["load", HELLO, "--stub", ""], "--stub '': expected NAME"),
    ],
)
def test_values_of_no_use_are_usage(run, words, said):
    """What cannot mean anything is refused before anything is done for it."""
    code, out, err = run(*words)
    assert (code, out) == (2, ""), err
    assert said in err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["load", HELLO, "--svg", "out.pdf"], "--svg writes SVG: name the file *.svg"),
        (["load", HELLO, "--svg", "out.PNG"], "or use --png"),
        (["load", HELLO, "--png", "out.svg"], "or use --svg"),
        (["load", HELLO, "--png", "out.jpeg"], "--png writes PNG"),
        (["load", HELLO, "--svg", "out.svg.gz"], "--svg writes SVG"),
        (["compare", "--svg", "out.html"], "--svg writes SVG"),
        (["compare", "--film", "9"], "--film is told in JSON"),
        (["compare", "--closely", "9", "--json"], "--closely needs --film"),
        (["compare", "--record", "out.svg"], "--record writes JSONL"),
        (["explain", HELLO, "--html", "out.pdf"], "--html writes HTML"),
        (["sweep", HELLO, "--output", "out.csv"], "--output writes JSONL"),
        (["run", HELLO, "--record", "out.png"], "--record writes JSONL"),
    ],
)
def test_a_name_that_says_another_format_is_usage(run, tmp_path, monkeypatch, words, hint):
    """Nothing is written under a name that would lie about it; the hint says what to do."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert hint in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.svg", "OUT.SVG", "out", "out.v2", ".svg", "a.b.svg"])
def test_names_that_say_the_format_or_nothing_are_fine(run, tmp_path, name):
    """A suffix is not asked for, and those that say nothing are left alone."""
    assert run("load", HELLO, "--svg", tmp_path / name)[0] == 0
    assert (tmp_path / name).read_text("utf-8").startswith("<svg")


# Python ---------------------------------------------------------------------------------------


def test_a_name_is_no_address(arch):
    """Where an address is meant, a name is refused with where names are taken."""
    needs(arch, "patch")
    machine = Machine(arch, root=root(arch.name))
    module = machine.load("checksums")
    for call in (
        lambda: machine.call("checksums_crc32"),
        lambda: machine.read("checksums_crc32", 4),
        lambda: machine.write("checksums_crc32", b""),
        lambda: machine.free("checksums_crc32"),
        lambda: machine.start("checksums_crc32", cpu=0),
    ):
        with pytest.raises(BadCall, match=r"is a name, not an address; hint: .*Module\.call"):
            call()
    for value in (None, 1.5, b"x"):
        with pytest.raises(BadCall, match="is no address"):
            machine.read(value, 4)
    for value in (-1, 1 << 64):
        with pytest.raises(BadCall, match="not in the address space"):
            machine.call(value)
    with pytest.raises(BadCall, match=r"no name of a function; hint: Machine\.call"):
        module.call(module.symbols["checksums_crc32"])
    for place in ("checksums_crc32", "checksums", "checksums:") if machine.arch.patch else ():
        with pytest.raises(BadCall, match="names no place; hint: expected MODULE:FUNCTION"):
            machine.probe(place)
    for refused in (lambda: machine.read(0, -1), lambda: machine.alloc(-1)):
        with pytest.raises(BadCall, match="-1 bytes"):
            refused()
    assert module.call("checksums_crc32", b"123456789", 9, 0, returns="u32") == 0xCBF43926


def test_more_arguments_than_a_function_takes_are_refused(arch):
    """Of a kernel function the prototype is known; beyond that the stack is the limit."""
    machine = Machine(arch, root=root(arch.name))
    strlen = machine.kernel.address("strlen")
    assert machine.call(strlen, "abc") == 3
    with pytest.raises(BadCall, match="strlen: takes 1 argument, not 2"):
        machine.call(strlen, "abc", 1)
    printk = machine.kernel.address("_printk")
    machine.call(printk, "%d %d %d\n", 1, 2, 3, 4, 5, 6, 7, 8, 9)
    module = machine.load("checksums")
    most = len(arch.runs.calling.arguments) + 64
    assert (
        module.call("checksums_crc32", b"123456789", 9, 0, *[0] * (most - 3), returns="u32")
        == 0xCBF43926
    )
    with pytest.raises(BadCall, match=f"{most + 1} arguments, more than {most}"):
        module.call("checksums_crc32", b"123456789", 9, 0, *[0] * (most - 2))


def test_a_stub_that_would_change_nothing_is_refused(arch):
    """What a loaded module exports, a variable, guest code: a stub comes too late, or never."""
    machine = Machine(arch, root=root(arch.name))
    machine.load("mathuser")
    with pytest.raises(BadCall, match=r"module mathlib exports it.*Machine\.replace"):
        machine.stub("mathlib_gcd", 1)
    machine.kernel.address("jiffies")
    for _ in range(2):
        with pytest.raises(BadCall, match=r"jiffies: .*variable"):
            machine.stub("jiffies", 1)
        machine = Machine(arch, root=root(arch.name))
    machine.load("failing", error=0)
    machine.stub("msleep", lambda _: None)
    machine.stub("nobody_asked_for_it", 3)
