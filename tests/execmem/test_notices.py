# SPDX-License-Identifier: GPL-2.0-or-later
"""Notices: once on stderr, all in documents, by every command that loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import archs
from execmem.cli import main
from tests.support.checked import made, tree_magic, version_table

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line; return exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def foreign(arch: archs.Arch, tmp_path: Path) -> Path:
    """Return a module of another kernel, which is loaded alone."""
    path = tmp_path / "one.ko"
    path.write_bytes(made(arch.machine, magic=tree_magic(arch.machine, versions=False)))
    return path


TEXTS = tuple(
    f"one: built for Linux 6.5.0-other; {done} as 6.5 does; what it calls is of"
    for done in ("linked and finalised", "linked")  # where nothing is finalised
)


@pytest.mark.parametrize(
    "words",
    [
        ("load", "{}"),
        ("run", "{}"),
        ("run", "{}", "init_module"),
        ("relocs", "{}"),
        ("explain", "{}", "--html", "{}.html"),
        ("explain", "{}", "--html", "{}.html", "--also", "vmalloc"),
        ("sweep", "{}", "--init"),
    ],
)
def test_commands_tell_of_notices(run: Run, foreign: Path, words: tuple[str, ...]) -> None:
    """A line on stderr, once; with --json in the document too, and stdout is only that."""
    filled = [word.format(foreign) for word in words]
    code, out, err = run(*filled)
    assert code == 0
    assert err.count("execmem: notice: ") == 1
    assert err.count("built for Linux 6.5.0-other") == 1
    assert "built for" not in out
    code, out, err = run(*filled, "--json")
    assert code == 0
    assert err.count("execmem: notice: ") == 1
    if words[0] == "sweep":
        row, summary = map(json.loads, out.splitlines())
        assert [note.startswith(TEXTS) for note in row["notices"]] == [True]
        assert [note.endswith(" (1)") for note in summary["notices"]] == [True]
        return
    notices = json.loads(out)["notices"]
    assert [note.startswith(TEXTS) for note in notices] == [True]


def test_one_line_for_a_kernel(run: Run, arch: archs.Arch, tmp_path: Path) -> None:
    """What is said of one module is not said again of another; documents have each."""
    magic = tree_magic(arch.machine, versions=False)
    paths = []
    for name in ("one", "two"):
        paths.append(tmp_path / f"{name}.ko")
        paths[-1].write_bytes(made(arch.machine, name, magic=magic))
    code, out, err = run("load", *paths, "--json")
    assert code == 0
    assert err.count("execmem: notice: ") == 1
    document = json.loads(out)
    assert len(document["notices"]) == 2
    assert [len(module["notices"]) for module in document["modules"]] == [1, 1]
    assert [module["taints"] for module in document["modules"]] == ["", ""]


def test_the_kernels_words_are_not_the_modules(run: Run, arch: archs.Arch, tmp_path: Path) -> None:
    """`run` shows what the kernel says of a module on stderr, what the module says on stdout."""
    path = tmp_path / "one.ko"
    path.write_bytes(made(arch.machine, tags=(), extra=[version_table({"module_layout": 1})]))
    code, out, err = run("run", path)
    assert (code, out) == (0, "one: init returned 0\n")
    assert err == "one: loading out-of-tree module taints kernel.\n"


def test_refused_unless_forced(run: Run, arch: archs.Arch, tmp_path: Path) -> None:
    """With a tree of another kernel a module is refused in one line, and loaded by force."""
    folder = tmp_path / "lib" / "modules" / "6.5.0-other"
    folder.mkdir(parents=True)
    magic = tree_magic(arch.machine, versions=False)
    (folder / "lib.ko").write_bytes(made(arch.machine, "lib", magic=magic))
    (folder / "modules.dep").write_text("lib.ko:\n")
    path = tmp_path / "one.ko"
    path.write_bytes(made(arch.machine, magic=tree_magic(arch.machine, "6.6.0", versions=False)))
    code, out, err = run("run", path, "--root", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("execmem: one.ko: vermagic: the module is for '6.6.0 SMP")
    assert err.endswith("hint: --force (ENOEXEC)\n")
    code, out, err = run("run", path, "--root", tmp_path, "--force", "--json")
    assert code == 0
    assert json.loads(out)["taints"] == "FE"
    code, _, err = run("run", folder / "lib.ko", "--root", tmp_path)
    assert code == 0
    assert err.count("notice: ") == 1
