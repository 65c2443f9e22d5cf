# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem trace` and `execmem probe`: what they print, and what they refuse."""

from __future__ import annotations

import json

import pytest

from execmem.cli import main
from samples import modules


@pytest.fixture
def run(capsys):
    """Run the command line; return exit code, stdout and stderr."""

    def call(*words):
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            code = error.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def sample(arch, name="patchable", rest=""):
    """Return the path of a sample module, with what follows the colon."""
    return f"{modules.path(arch.name, name)}{rest}"


def test_trace_as_json(run, arch):
    """Calls come in order of entry with depth, arguments, caller, result and instructions."""
    code, out, _ = run(
        "trace", sample(arch, rest=":patchable_d*"), "--json", "--", "patchable_digits", "321"
    )
    assert code == 0
    document = json.loads(out)
    assert (document["module"], document["arch"]) == ("patchable", arch.name)
    assert (document["result"], document["sites"], document["restored"]) == ("0x6", 3, True)
    calls = document["calls"]
    assert [(c["depth"], c["function"]) for c in calls] == [
        (0, "patchable_digits"),
        *[(1, "patchable_divide")] * 3,
    ]
    assert [c["arguments"][:2] for c in calls[1:]] == [
        ["0x141", "0xa"],
        ["0x20", "0xa"],
        ["0x3", "0xa"],
    ]
    assert [c["result"] for c in calls] == ["0x6", "0x20", "0x3", "0x0"]
    assert all(c["caller"].startswith("patchable_digits+") for c in calls[1:])
    assert calls[0]["instructions"] > sum(c["instructions"] for c in calls[1:]) > 0


def test_trace_as_a_tree(run, arch):
    """People see an indented tree, arguments on request, and how many calls were left out."""
    code, out, _ = run("trace", sample(arch), "--limit", 3, "--args", "--", "patchable_fib", "4")
    assert code == 0
    lines = out.splitlines()
    assert ["patchable_fib(0x4, " in lines[2], "    patchable_fib(0x2, " in lines[4]] == [True] * 2
    assert "and 6 calls more (--limit)" in lines
    assert lines[-1] == "patchable_fib = 0x3 (3)"
    assert "call sites patched and restored" in lines[-2]


def test_trace_of_several_modules(run, arch, tmp_path):
    """--also takes further patterns; a module without call sites is refused in one line."""
    code, _, err = run("trace", sample(arch, "mathuser"), "--", "mathuser_lcm", "4", "6")
    assert code == 1
    assert err.count("\n") == 1
    assert "built without call sites" in err
    code, _, err = run("trace", sample(arch), "--also", "nonesuch:*", "--", "patchable_fib", "4")
    assert (code, "no such module is loaded" in err) == (1, True)


def test_a_fault_ends_a_trace_with_its_tree(run, arch):
    """Calls that did not return are shown as such, then the reason, with exit code 1."""
    words = "--", "patchable_fib", "25"
    code, out, err = run("trace", sample(arch), "--no-init", "--instructions", 400, *words)
    assert code == 1
    assert "did not return" in out
    assert "instruction limit" in err
    code, out, err = run(
        "trace", sample(arch), "--no-init", "--instructions", 400, "--json", *words
    )
    assert code == 1
    assert "instruction limit" in json.loads(out)["fault"]
    assert json.loads(out)["calls"][0]["result"] is None


def test_probe_as_json(run, arch):
    """Each hit has the registers asked for, at the address and instruction probed."""
    first = arch.runs.calling.arguments[0]
    code, out, _ = run(
        *("probe", sample(arch, rest=":patchable_divide"), "--registers", first, "--json"),
        *("--", "patchable_digits", "321"),
    )
    assert code == 0
    document = json.loads(out)
    assert document["hits"] == [{first: "0x141"}, {first: "0x20"}, {first: "0x3"}]
    assert document["where"] == "patchable_divide+0x0 [patchable]"
    assert (document["result"], document["restored"]) == ("0x6", True)
    assert document["instruction"]


def test_probe_for_people(run, arch):
    """All registers in columns of a page, the first hits only, and the result."""
    code, out, _ = run(
        *("probe", sample(arch, rest=":patchable_fib"), "--hits", 2, "--", "patchable_fib", 3)
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[0].endswith("reached 5 times")
    assert lines[-2:] == ["and 3 hits more (--hits)", "patchable_fib = 0x2 (2)"]
    assert sum(line.startswith("hit ") for line in lines) == 2
    assert all(len(line) <= 80 for line in lines[1:])
    for name in arch.patching.kprobes.registers:
        assert any(f" {name} " in f" {line}" for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["probe", "{}", "--", "patchable_fib", "1"], 2, "expected MODULE:FUNCTION"),
        (["probe", "{}:patchable_fob", "--", "patchable_fib", "1"], 1, "did you mean"),
        (["probe", "{}:patchable_fib", "--registers", "xyz", "--", "f"], 2, "architecture has"),
        (["probe", "{}:patchable_key", "--", "patchable_fib", "1"], 1, "no function"),
        (["trace", "{}:nonesuch*", "--", "patchable_fib", "1"], 1, "no function matches"),
        (["trace", "{}", "--no-text-poke", "--", "patchable_fib", "1"], 1, "no text_poke"),
        (["trace", "{}", "--", "nonesuch"], 1, "no such symbol"),
        (["trace", "{}"], 2, "Missing argument"),
    ],
)
def test_refusals(run, arch, words, code, reason):
    """What cannot be done is one line on stderr, with exit code 1, or 2 for usage."""
    got, out, err = run(*(word.format(sample(arch)) for word in words))
    assert (got, out) == (code, "")
    assert reason in err
    assert "Traceback" not in err


def test_loads_and_stores_of_a_call(run, arch):
    """Those of the call, on its stack; nothing of the tracer's; bounded, and what was cut is said."""
    words = ["trace", modules.path(arch.name, "patchable"), "--memory"]
    code, out, _ = run(*words, "--json", "--", "patchable_digits", "321")
    assert code == 0
    document = json.loads(out)
    assert document["accesses"]
    assert {each["named"] for each in document["accesses"]} == {"stack"}
    assert all("[patchable]" in each["where"] for each in document["accesses"])
    count = len(document["accesses"])
    code, out, _ = run(*words, "--limit", "2", "--", "patchable_digits", "321")
    assert code == 0
    assert f"and {count - 2} accesses more (--limit)" in out
