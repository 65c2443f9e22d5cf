# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs, kernel symbols and lessons that live in another package: the how-tos, followed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import samples
from allocator.errors import ExecmemError
from allocator.plugins import DEMOS, SYMBOLS
from emulator.faults import Fault, FaultKind
from execmem.cli import main
from kernels.modelled import api, table
from machine.face import Machine

HOWTO = Path(__file__).parents[2] / "docs" / "howto"


def printed_file(page: str, name: str) -> str:
    """Return a file that a how-to prints."""
    text = (HOWTO / page).read_text("utf-8")
    found = re.search(
        rf'^```\w+ title="{re.escape(name)}"\n(.*?)^```', text, re.MULTILINE | re.DOTALL
    )
    assert found, f"{page} prints no {name}"
    return found[1]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return the interpreter of a virtual environment where the how-tos' package is installed."""
    pytest.importorskip("setuptools", reason="building a package needs setuptools")
    folder = tmp_path_factory.mktemp("plugin")
    package = folder / "execmem-mine" / "execmem_mine"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for page, name in (("design.md", "mine.py"), ("symbol.md", "symbols.py")):
        (package / name).write_text(printed_file(page, name))
    (package / "lesson.py").write_text(printed_file("lesson.md", "lesson.py"))
    (package.parent / "pyproject.toml").write_text(printed_file("plugin.md", "pyproject.toml"))
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    # What is installed here is installed there, editable installs included.
    ours = sysconfig.get_path("purelib")
    (site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    found = venv / "bin" / "python"
    pip = [found, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "--no-deps"]
    done = subprocess.run([*pip, package.parent], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package can be built and installed here: {done.stderr.strip()[-200:]}")
    return found


def run(python, *args, cwd):
    """Run `execmem` with the package installed and return its output."""
    command = [python, "-m", "execmem", *args]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_design_of_another_package(python, tmp_path):
    """An installed design is listed, compared and used by its name."""
    listed = json.loads(run(python, "compare", "--list", "--json", cwd=tmp_path))
    (mine,) = [one for one in listed["designs"] if one["name"] == "mine"]
    assert mine["origin"] == "execmem-mine 1.0"
    assert mine["summary"] == "Pages as under vmalloc, text top down."
    args = "compare --design mine --workload bpf-50-pages --arch riscv64 --check --json".split()
    (found,) = json.loads(run(python, *args, cwd=tmp_path))["runs"]
    assert (found["design"], found["failures"]) == ("mine", [])
    where = json.loads(run(python, *"load mathuser --design mine --json".split(), cwd=tmp_path))
    assert {module["design"] for module in where["modules"]} == {"mine"}


def test_symbols_of_another_package(python, tmp_path):
    """A machine has the symbols that an installed package declares."""
    code = (
        "from execmem import Machine\n"
        "for name in ('x86_64', 'arm64', 'riscv64'):\n"
        "    kernel = (machine := Machine(name)).kernel\n"
        "    data = machine.read(kernel.address('mine_magic'), 8)\n"
        "    print(machine.call(kernel.address('mine_sum'), 2, 3), data[0])\n"
    )
    command = [python, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "5 42\n" * 3, done.stderr


def test_a_lesson_of_another_package(python, tmp_path):
    """An installed lesson is listed with its package, and told."""
    listed = json.loads(run(python, "demo", "--json", cwd=tmp_path))["demos"]
    (pages,) = [one for one in listed if one["name"] == "pages"]
    told = "Show how many pages a module takes on each architecture. (execmem-mine 1.0)"
    assert pages["title"] == told
    facts = json.loads(run(python, "demo", "pages", "--json", cwd=tmp_path))["facts"]
    assert set(facts) == {"x86_64", "arm64", "riscv64"}
    assert "One module, counted in pages" in run(python, "demo", "pages", cwd=tmp_path)


@pytest.fixture
def bring(monkeypatch, tmp_path):
    """Return what installs an entry point of one group, for one test."""

    def install(group, name, source, attribute=""):
        module = f"brought_{re.sub('[^a-z0-9]', '_', tmp_path.name)}"
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(api, "_brought", set())
        point = EntryPoint(name, module + attribute, group)
        monkeypatch.setattr("samples.installed", lambda g: {name: point} if g == group else {})
        monkeypatch.setattr(api, "installed", lambda g: {name: point} if g == group else {})
        return point

    return install


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nonesuch_module", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def main(:", "SyntaxError"),
        ("def main(): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def main(): return 'text'", "returned str, no Story"),
        ("from samples.story import Story\ndef main(): return Story('a', 'b', ['c'])", "str"),
        (
            "from samples.story import Story\ndef main(): return Story('a', 'b', [], {'c': {1}})",
            "its facts are no JSON",
        ),
    ],
)
def test_a_lesson_that_fails_is_one_line(bring, capsys, source, reason):
    """Whatever a lesson of another package does wrong, one line names the lesson."""
    bring(DEMOS, "mine", source, ":main")
    with pytest.raises(SystemExit) as end:
        main(["demo", "mine"])
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (1, 1)
    assert error.startswith("execmem: execmem.demos 'mine' of ?: ")
    assert reason in error
    assert set(samples.titles()) == {*samples.DEMOS, "mine"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("@function('int printk(const char *s)')\ndef f(k, s): return 0", "declared twice"),
        ("@function('not C')\ndef f(k): return 0", "not C"),
    ],
)
def test_symbols_that_fail_name_the_package(bring, source, reason):
    """A package whose symbols cannot be declared is named, and has declared nothing."""
    before = dict(table.FUNCTIONS), dict(table.DATA)
    head = "from kernels.modelled.table import data, function\ndata('mine_first', 8)\n"
    bring(SYMBOLS, "mine", head + source)
    with pytest.raises(ExecmemError, match=f"execmem.symbols 'mine' of .*{reason}"):
        Machine("riscv64")
    assert (dict(table.FUNCTIONS), dict(table.DATA)) == before


def test_a_handler_that_raises_is_a_fault(arch, monkeypatch):
    """What the handler of another package's symbol raises stops the guest, and says where."""
    for fault in (KeyError("who"), NameError("what"), OSError(5, "Input/output error")):

        def handler(_k, fault=fault):
            raise fault

        broken = table.Function("int mine_broken(void)", handler)
        monkeypatch.setitem(table.FUNCTIONS, "mine_broken", broken)
        machine = Machine(arch)
        with pytest.raises(Fault) as error:
            machine.call(machine.kernel.address("mine_broken"))
        assert error.value.kind is FaultKind.PANIC
        assert type(fault).__name__ in str(error.value)
        assert "mine_broken() of " in str(error.value)
