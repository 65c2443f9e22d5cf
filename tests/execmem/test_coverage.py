# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem coverage`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json

import pytest

from execmem.cli import main
from samples.modules import path


@pytest.fixture
def run(capsys):
    """Run the command line; return exit code, stdout and stderr."""

    def call(*words):
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        return (done.value.code or 0, *capsys.readouterr())

    return call


def test_a_call_for_people(run, arch):
    """A function that calls another: how often each is begun is known (fib(5) makes 15 calls)."""
    words = ["coverage", path(arch.name, "patchable"), "patchable_fib", "5", "--no-init"]
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    rows = {line.split()[-1]: line.split() for line in out.splitlines()[2:-1]}
    assert rows["patchable_fib"][0] == "15"
    assert "patchable_digits" not in rows
    assert out.splitlines()[-1] == "patchable_fib = 0x5 (5)"
    code, out, _ = run(*words, "--json")
    document = json.loads(out)
    assert code == 0
    (module,) = document["modules"]
    assert [each["name"] for each in module["functions"]] == ["patchable_fib"]
    (part,) = module["functions"]
    assert part["executed"] == sum(block["size"] for block in module["blocks"])
    assert part["executed"] <= part["size"]
    assert sum(edge["count"] for edge in document["edges"]) > 15


def test_files(run, arch, tmp_path):
    """A file of blocks is written; one of lines is refused where nothing says lines."""
    words = ["coverage", path(arch.name, "patchable"), "patchable_fib", "5"]
    code, out, _ = run(*words, "--drcov", tmp_path / "a.drcov")
    assert code == 0
    count = int(out.split("a.drcov: ")[1].split()[0])
    assert f"BB Table: {count} bbs".encode() in (tmp_path / "a.drcov").read_bytes()
    code, _, err = run(*words, "--lcov", tmp_path / "a.info")
    assert code == 1
    assert "no debugging information" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a.info").exists()


def test_the_layout_of_an_export(run, arch, tmp_path):
    """Blocks of a module at other addresses follow the file that was exported: the same offsets."""
    module, elf = path(arch.name, "patchable"), tmp_path / "a.elf"
    assert run("export", module, "--elf", elf)[0] == 0
    words = ["coverage", module, "patchable_fib", "5", "--drcov"]
    assert run(*words, tmp_path / "here.drcov")[0] == 0
    assert run(*words, tmp_path / "there.drcov", "--kaslr", "5", "--like", elf)[0] == 0
    assert (tmp_path / "here.drcov").read_bytes() == (tmp_path / "there.drcov").read_bytes()


def test_a_fault_counts_until_it(run, arch):
    """A division by zero, or whatever stops the guest: what came before is shown, and why."""
    code, out, err = run("coverage", path(arch.name, "patchable"), "patchable_digits", "0x10", "7")
    assert code == 0, err
    words = ["coverage", path(arch.name, "checksums"), "checksums_crc16", "0x10", "4", "0"]
    code, out, err = run(*words)
    assert code == 1
    assert "checksums_crc16" in out
    assert "0x10" in err


def test_refusals(run, arch):
    """What does not go together is said."""
    module = path(arch.name, "patchable")
    code, _, err = run("coverage", module, "--with-kernel")
    assert code == 2
    assert "goes with --kernel" in err
    code, _, err = run("coverage", module, "nothing")
    assert code == 1
    assert "no such symbol" in err
