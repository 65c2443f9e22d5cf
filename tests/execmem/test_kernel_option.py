# SPDX-License-Identifier: GPL-2.0-or-later
"""--kernel and --modelled, of every command that reads or loads modules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import archs
from execmem.cli import COMMANDS, cli, main
from loader.build import models
from tests.support.checked import Offer, debian, made, version_table
from tests.support.kernels import kernel_file
from tests.support.modules import module as mini_module

Run = Callable[..., tuple[int, str, str]]
OFFERS = (Offer("module_layout", crc=0x1234), Offer("_printk", crc=5))


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
def files(arch: archs.Arch, tmp_path: Path) -> dict[str, Path]:
    """Return a kernel and a module that is for it."""
    magic = "6.9.1-mine " + debian(arch.machine).partition(" ")[2]
    versions = version_table({"module_layout": 0x1234, "_printk": 5})
    kernel, module = tmp_path / "vmlinuz-6.9.1-mine", tmp_path / "one.ko"
    kernel.write_bytes(kernel_file(arch, magic, OFFERS))
    module.write_bytes(made(arch.machine, magic=magic, uses=["_printk"], extra=[versions]))
    return {"kernel": kernel, "module": module}


RUNNING: dict[str, tuple[str, ...]] = {
    "load": ("load", "{module}"),
    "run": ("run", "{module}"),
    "explain": ("explain", "{module}", "--no-init", "--html", "{module}.html"),
    "trace": ("trace", "{module}", "--", "init_module"),
    "probe": ("probe", "{module}:init_module", "--", "init_module"),
    "gdb": ("gdb", "{module}", "--batch", "/dev/null"),
    "coverage": ("coverage", "{module}"),
    "crypto": ("crypto", "nothing", "str:abc", "--module", "{module}"),
    "sweep": ("sweep", "{module}"),
    "fuzz": ("fuzz", "{module}", "init_module", "--input", "a=int", "--executions", "20"),
}


def needs_gdb(command: str) -> None:
    """Skip a command that starts what is not there."""
    if command == "gdb" and shutil.which("gdb-multiarch") is None:
        pytest.skip("gdb-multiarch is not installed")


def test_who_takes_a_kernel() -> None:
    """Whoever loads modules does; whoever runs them can be told that it is modelled."""
    context = cli.make_context("execmem", [], resilient_parsing=True)
    given = {}
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        given[name] = {option for param in command.params for option in param.opts}
    assert {n for n, options in given.items() if "--modelled" in options} == set(RUNNING)
    assert {n for n, options in given.items() if "--kernel" in options} == {
        *RUNNING,
        "relocs",
        "disasm",
        "export",
        "diff",
        "functions",
        "types",
        "compare",  # which measures it
        "serve",  # which shows it
        "race",  # whose patching it searches
        "kunit",  # which the modelled kernel has none of
    }


@pytest.mark.parametrize("command", RUNNING)
def test_what_runs_code_says_that_it_cannot_boot(
    run: Run, files: dict[str, Path], command: str, arch: archs.Arch
) -> None:
    """Refused in one line, which names what can be had."""
    needs_gdb(command)
    words = [word.format(**files) for word in RUNNING[command] if word != "--no-init"]
    code, out, err = run(words[0], "--kernel", files["kernel"], *words[1:])
    assert (code, out) == (1, "")
    (line,) = [line for line in err.splitlines() if "notice" not in line]
    if arch.boot is None:
        assert f"{arch.name} has no level 'boot'" in line
    else:
        assert "vmlinuz-6.9.1-mine: does not boot: none of" in line


@pytest.mark.parametrize("command", [*RUNNING, "relocs"])
def test_its_facts_apply(run: Run, files: dict[str, Path], command: str) -> None:
    """With --modelled; a command that runs nothing needs no word more."""
    needs_gdb(command)
    words = RUNNING.get(command, ("relocs", "{module}"))
    first, *rest = [word.format(**files) for word in words]
    more = ["--modelled"] if command in RUNNING else []
    code, out, err = run(first, "--kernel", files["kernel"], *more, "--json", *rest)
    if command == "crypto":  # it has no algorithm, but it was loaded
        assert (code, "cannot boot" in err) == (1, False)
        return
    if command in ("trace", "probe") and code:  # what else may be the matter with a bare function
        assert "cannot boot" not in err
        return
    assert code == 0, err
    document = json.loads(out.splitlines()[0] if command == "sweep" else out)
    said = str(document)
    assert "its exports and ranges are that kernel's" in said + err
    if command != "explain":
        part = document["modules"][0] if command == "load" else document
        assert part["models"].endswith(", with the facts of Linux 6.9.1-mine")


def test_reports_say_what_is_modelled(run: Run, files: dict[str, Path]) -> None:
    """In a line for people, in keys for programs, and by `--version` for all architectures."""
    code, out, _err = run("load", files["module"], "--kernel", files["kernel"], "--modelled")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("a module of ")]
    assert line.startswith("a module of Linux 6.9.1-mine; models Linux 6.12.107, Debian ")
    _, out, _ = run("load", files["module"], "--kernel", files["kernel"], "--modelled", "--json")
    build = json.loads(out)["modules"][0]["build"]
    assert (build["release"], build["version"]) == ("6.9.1-mine", [6, 9])
    assert build["sources"]["release"] == "image"
    _, out, _ = run("load", files["module"], "--json")
    assert json.loads(out)["modules"][0]["build"]["sources"]["release"] == "version magic"
    _, out, _ = run("--version")
    assert f"models {'; '.join(models())}" in out.splitlines()
    assert "Linux 6.12.107, Debian amd64" in models()


NEEDS = "miscdevice of 6.9.1-mine is not known"


def test_what_needs_its_kernel(run: Run, arch: archs.Arch, tmp_path: Path) -> None:
    """A module that is run alone stops in one line, with status 1, and its row and JSON say it."""
    path = tmp_path / "needs.ko"
    path.write_bytes(
        mini_module(
            arch.machine,
            "needs",
            undefined=("misc_register",),
            runs=True,
            vermagic="6.9.1-mine SMP",
        )
    )
    code, out, err = run("run", path)
    assert (code, out) == (1, "")
    notice, line = err.splitlines()
    assert notice.endswith("; what needs its structures stops: give its kernel with --kernel")
    assert line.startswith(f"execmem: unknown kernel structure: {NEEDS} at ")
    assert line.endswith("; hint: give the kernel with --kernel")
    code, out, err = run("run", path, "--json")
    assert code == 1
    assert NEEDS in out + err
    code, out, _err = run("sweep", path, "--init", "--json")
    row, summary = map(json.loads, out.splitlines())
    assert row["outcome"] == "fault"
    assert NEEDS in row["error"]
    assert [note.count("what needs its structures stops") for note in row["notices"]] == [1]
    assert summary["summary"]["outcomes"]["fault"] == 1
    code, out, _err = run("load", path, "--json")
    assert code == 0
    assert "what needs its structures stops" in json.loads(out)["notices"][0]


def test_a_kernel_that_is_none(run: Run, files: dict[str, Path]) -> None:
    """A file that is no kernel is refused by name, before any module is looked at."""
    for command in ("load", "sweep", "relocs"):
        code, _out, err = run(
            command,
            files["module"],
            "--kernel",
            files["module"],
            *["--modelled"] * (command != "relocs"),
        )
        assert code == 1
        assert "one.ko" in err
        assert err.count("\n") == 1
