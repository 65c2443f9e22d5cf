# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON: one rule for numbers, one envelope, and every key as documented, for every command."""

from __future__ import annotations

import json
import math
from importlib.metadata import version

import pytest

import samples
from allocator.errors import ExecmemError
from allocator.types import Hex
from execmem.cli import COMMANDS, main
from execmem.documents import EXACT, envelope, line, text
from execmem.schema import DOCUMENTS, complaints
from samples.modules import path, root
from tests.archs.facts import facts, needs
from tests.loader.kernel.test_image import image_of
from tests.support.btfwriter import blob
from tests.support.imagewriter import symbols

TOP = (1 << 64) - 1


def documents(capsys, *words):
    """Run the command line; return the documents that it writes."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert not done.value.code, err
    if words[0] == "sweep":
        return [json.loads(each) for each in out.splitlines()]
    return [json.loads(out)]


def numbers(value, where=""):
    """Yield every number of a document with its place."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, f"{where}.{key}")
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each, f"{where}[]")
    elif type(value) in (int, float):
        yield where, value


def check(name, document):
    """Check a document against its keys, the envelope, and what a double can hold."""
    assert list(complaints(name, document)) == []
    assert document["execmem"] == version("execmem")
    assert document["notices"] == []
    for where, number in numbers(document):
        assert float(number) == number, where
        assert abs(number) < EXACT, where


def test_every_command_is_in_the_schema():
    """No command has --json without its keys being written down."""
    assert {name.split(",")[0].split(" ")[0] for name in DOCUMENTS} == set(COMMANDS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("load", ["load", "mathuser", "--init"]),
        ("load", ["load", "sealed"]),
        ("load --all", ["load", "--all"]),
        ("run", ["run", "mathuser"]),
        ("run", ["run", "mathuser", "mathuser_lcm", "21", "6", "--kasan"]),
        ("run", ["run", "logbook", "logbook_render", "out:8", "8"]),
        ("trace", ["trace", "patchable", "--limit", "2", "--", "patchable_fib", "4"]),
        ("probe", ["probe", "patchable:patchable_divide", "--", "patchable_digits", "321"]),
        ("relocs", ["relocs", "mathuser"]),
        ("relocs", ["relocs", "tables"]),
    ],
)
def test_documents_about_modules(capsys, arch, name, words):
    """Each command that loads writes what is documented, with hex addresses, on every architecture."""
    if name in ("trace", "probe"):
        needs(arch, "patch")
    if "--kasan" in words and arch.runs.emulation.delay_slots is not None:
        pytest.skip(f"accesses in delay slots of {arch.name} cannot be checked")
    for found in documents(
        capsys, *words[:1], "--root", root(arch.name), "--arch", arch.name, "--json", *words[1:]
    ):
        check(name, found)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reach", ["reach"]),
        ("archs", ["archs"]),
        ("race", ["race", "no-sync"]),
        ("race", ["race", "--arch", "arm64", "--visits", "1"]),
        ("race --graph", ["race", "--graph", "--arch", "riscv64"]),
        ("race --graph", ["race", "--graph", "--arch", "mips64el"]),
        ("compare", ["compare", "--workload", "churn", "--arch", "arm64", "--design", "default"]),
        (
            "compare",
            [
                "compare",
                "--workload",
                "no-modules",
                "--arch",
                "riscv64",
                "--film",
                "3",
                "--closely",
                "9",
            ],
        ),
        (
            "compare",
            ["compare", "--workload", "bpf-50-pages", "--arch", "riscv64", "--over-time", "2"],
        ),
        ("compare --list", ["compare", "--list"]),
        ("demo", ["demo"]),
    ],
)
def test_documents_without_a_module(capsys, name, words):
    """The other commands write what is documented, too."""
    for found in documents(capsys, *words, "--json"):
        check(name, found)


def test_documents_of_explain(capsys, arch, tmp_path):
    """`explain` tells what its page shows."""
    page = tmp_path / "page.html"
    (found,) = documents(capsys, "explain", path(arch.name, "hello"), "--html", page, "--json")
    check("explain", found)
    (found,) = documents(capsys, "explain", path(arch.name, "hello"), "--json")
    check("explain, without --html", found)


def test_documents_of_kernel(capsys, arch, tmp_path):
    """A kernel's facts are as documented, those that were asked for and those that are not there."""
    image = tmp_path / "vmlinuz"
    image.write_bytes(image_of(arch, symbols(facts(arch).load.image_base), "6.12", blob().blob()))
    asked = ("--type", "node", "--type", "none", "--symbol", "_text", "--symbol", "none")
    (found,) = documents(capsys, "kernel", image, *asked, "--config", "SMP", "--json")
    check("kernel", found)
    assert found["arch"] == arch.name
    assert found["release"] == "6.9.1-test"
    assert found["places"]["_text"]["address"] == f"{facts(arch).load.image_base:#x}"
    assert found["definitions"]["node"].startswith("struct node {")
    assert found["definitions"]["none"] is found["options"]["SMP"] is None


def test_symbols_of_a_kernel_are_found_by_pattern_and_by_address(capsys, arch, tmp_path):
    """A pattern stands for every symbol that is like it, an address for the one that it is in."""
    image, base = tmp_path / "vmlinuz", facts(arch).load.image_base
    named = symbols(base)
    image.write_bytes(image_of(arch, named, "6.12", blob().blob()))

    def found(*asked: str) -> dict:
        words = [word for each in asked for word in ("--symbol", each)]
        return documents(capsys, "kernel", image, *words, "--json")[0]["places"]

    names = {each.name for each in named}
    assert found("f1?").keys() == {name for name in names if name[:2] == "f1" and len(name) == 3}
    assert len(names) > len(found("*")) == 1000
    assert found("no*sense")["no*sense"]["address"] is None
    (where,) = found(f"{base + 1:#x}").items()
    assert where[0] in names
    assert where[1]["address"] == f"{base:#x}"


def test_documents_of_a_sweep(capsys, tmp_path, arch):
    """Each line is a document of its own, printed or in the file; the last is the summary."""
    files = [path(arch.name, name) for name in ("hello", "failing", "mathuser")]
    output = tmp_path / "rows"
    printed = documents(
        capsys, "sweep", *files, "--init", "--json", "--jobs", 1, "--output", output
    )
    for *rows, last in (printed, [json.loads(each) for each in output.read_text().splitlines()]):
        for row in rows:
            check("sweep", row)
        check("sweep, last line", last)


def test_documents_of_crypto(capsys, arch, corpus):
    """What an algorithm computes is bytes; the rest is as documented."""
    (found,) = documents(
        capsys, "crypto", "md4", "str:abc", "--root", corpus, "--arch", arch.name, "--json"
    )
    check("crypto", found)


def test_registrations_are_as_documented(capsys, arch, corpus):
    """What a real module registers has hex addresses, and hex where a member has 64 bits."""
    (found,) = documents(
        capsys, "run", "loop", "--root", corpus, "--arch", arch.name, "--json", "--unknown", "zero"
    )
    check("run", found)
    assert found["registered"]


def test_documents_of_diff(capsys, arch, oracle, corpus):
    """Boots, ranges that differ and placement are as documented."""
    words = ("diff", "loop", "--oracle", oracle.parent, "--run", "base", "--arch", arch.name)
    more = ("--root", corpus, "--placement", "--without", "ftrace", "--json", "--jobs", "1")
    with pytest.raises(SystemExit):
        main([str(word) for word in (*words, *more)])
    check("diff", json.loads(capsys.readouterr().out))


# The rule itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0, "0x0"),
        (10, "0xa"),
        (TOP, "0x" + 16 * "f"),
        (-22, "-0x16"),
        (-(1 << 63), "-0x8" + 15 * "0"),
    ],
)
def test_hex_numbers_are_strings_however_small(value, wanted):
    """Lower case, no leading zeros, a sign before the prefix; and back by int(text, 0)."""
    assert envelope({"at": Hex(value)})["at"] == wanted
    assert int(wanted, 0) == value


def test_numbers_that_readers_would_round_are_refused():
    """A number that a double cannot hold never leaves, whatever it is in."""
    for value in (EXACT, -EXACT, TOP, math.inf, math.nan):
        with pytest.raises(ExecmemError, match=r"runs\[\]\.size is "):
            envelope({"runs": [{"size": value}]})
    for value in (EXACT - 1, 1 - EXACT, 0.5, True, None):
        assert envelope({"size": value})["size"] == value
    with pytest.raises(TypeError):
        envelope({"data": b""})


def test_a_document_keeps_the_version_that_made_it():
    """A row that is read again and written again is the same row."""
    row = json.loads(line({"file": "a"}))
    assert json.loads(line(row | {"execmem": "0.0.1"}))["execmem"] == "0.0.1"
    assert list(row) == ["execmem", "notices", "file"]
    assert json.loads(text(row)) == row


def test_complaints_name_the_key():
    """The schema finds what is missing, undocumented, of another kind, or null."""
    lesson = samples.listing()["demos"][0]
    good = {"execmem": "1", "notices": [], "chapters": [], "demos": [lesson]}
    bare = {key: value for key, value in lesson.items() if key != "title"}
    assert list(complaints("demo", good)) == []
    for demos, said in (
        ([bare], "demo.demos[].title is missing"),
        ([lesson | {"more": 1}], "demo.demos[].more is not documented"),
        ([lesson | {"name": 1}], "demo.demos[].name is 1, not text"),
        ([lesson | {"name": None}], "demo.demos[].name is null"),
        ({}, "demo.demos is {}, not object"),
    ):
        assert list(complaints("demo", good | {"demos": demos})) == [said]
