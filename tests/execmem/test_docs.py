# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents say is run: code blocks as doctests, commands against their output."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import execmem
from execmem.cli import COMMANDS, main
from execmem.figure import address_spaces
from execmem.reference import PAGES
from execmem.tables import document
from loader.finalize import mechanisms
from machine.booted.machine import BootedMachine
from machine.face import Machine
from machine.machine import ModelledMachine
from machine.module import Module

HERE = Path(__file__).parents[2]
# What methods give that is Python's, or that nobody holds but these packages.
INSIDE = {"AbstractContextManager", "Any", "Iterator", "Mapping", "None", "Sequence"} | {
    "AnyModule", "AnyProbe", "Executing", "Landing", "LiveText", "Callbacks", "Layouts", "Record",
    "BootedGround", "BootedLanding", "BootedSanitizer", "ModelledGround", "ModelledLanding",
    "ModelledSanitizer",
}  # fmt: skip
DOCUMENTS = sorted([HERE / "README.md", HERE / "CONTRIBUTING.md", *HERE.glob("docs/**/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    text = page.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda d: d.name)
def test_python_sessions(page):
    """Python sessions give what they show; blocks of one document build on each other."""
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(page, "python")):
        if ">>>" not in block:
            continue
        test = doctest.DocTestParser().get_doctest(block, names, f"{page.name}[{number}]", None, 0)
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(test, clear_globs=False)
        names.update(test.globs)
        assert runner.failures == 0


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda d: d.name)
def test_commands_show_their_output(page, capsys):
    """A block that starts with `$ execmem` shows what the command prints, to the letter."""
    for block in blocks(page, ""):
        command, _, shown = block.partition("\n")
        if not command.startswith("$ execmem "):
            continue
        with pytest.raises(SystemExit):
            main(command.split()[2:])
        printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert shown.splitlines() == printed


def test_every_command_is_in_the_readme():
    """The README names every command."""
    readme = (HERE / "README.md").read_text("utf-8")
    for name in COMMANDS:
        assert f"execmem {name}" in readme


def test_links_lead_somewhere():
    """Relative links of the documents name files that exist."""
    for page in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_figure_is_what_the_records_say():
    """The committed picture is the one that the architectures' records give today."""
    assert (HERE / "docs" / "address-spaces.svg").read_text("utf-8") == address_spaces()


def test_relocation_tables_are_what_the_rows_say():
    """The committed document is the one that the rows give today."""
    assert (HERE / "docs" / "relocations.md").read_text("utf-8") == document()


@pytest.mark.parametrize("name", PAGES)
def test_reference_is_what_the_code_says(name):
    """The committed page is the one that the commands and the records give today."""
    assert (HERE / "docs" / "reference" / name).read_text("utf-8") == PAGES[name]()


def test_site_builds_without_a_warning(tmp_path):
    """The documentation is a site; every page is in its menu and every link leads somewhere."""
    pytest.importorskip("material", reason="mkdocs-material builds the site")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings writes the Python reference")
    # Quietly, --strict would count no warning.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not re.search("^WARNING", done.stderr, re.MULTILINE), done.stderr
    for name in documented():
        page = "api" if name.startswith("execmem.") else "objects"
        assert f'id="{name}"' in (tmp_path / "reference" / f"{page}.html").read_text("utf-8")
    # Prompts and output are marked, so that what is copied is what one types.
    assert '<span class="gp">$ </span>' in (tmp_path / "index.html").read_text("utf-8")
    assert '<span class="gp">&gt;&gt;&gt; </span>' in (tmp_path / "tutorial.html").read_text(
        "utf-8"
    )
    shown = re.search(
        r'<iframe src="([a-z.]*)[?]embed#', (tmp_path / "index.html").read_text("utf-8")
    )
    assert shown is not None
    assert '<script id="data" type="application/gzip">' in (tmp_path / shown[1]).read_text("utf-8")
    assert "data-md-copying" in (tmp_path / "stylesheets" / "extra.css").read_text("utf-8")


def documented() -> list[str]:
    """Return the names that the pages on Python describe."""
    pages = [HERE / "docs" / "reference" / f"{name}.md" for name in ("api", "objects")]
    return [
        n
        for page in pages
        for n in re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.MULTILINE)
    ]


def test_every_public_name_is_described():
    """What a script imports, and the classes of what machines and modules give, are on a page."""
    found = documented()
    assert {f"execmem.{name}" for name in execmem.__all__} <= set(found)
    assert len(found) == len(set(found))
    known = {name.rpartition(".")[2] for name in found}
    for name in found:
        module, _, member = name.rpartition(".")
        assert getattr(import_module(module), member).__doc__, name
    for kind in (Machine, ModelledMachine, BootedMachine, Module):
        for member, value in inspect.getmembers(kind):
            if member.startswith("_"):
                continue
            function = value.fget if isinstance(value, property) else getattr(value, "func", value)
            told = getattr(function, "__annotations__", {}).get("return", "")
            for part in re.findall(r"\b[A-Z]\w+", str(told)):
                assert part in known | INSIDE, f"{kind.__name__}.{member} gives {part}"


def test_whatever_installs_leaves_the_project_editable():
    """Each pip command of the Makefile and of CI that installs the project does so editably."""
    for file in ("Makefile", ".ci/run"):
        found = re.findall(
            r"^.*pip install.*'\.\[.*$", (HERE / file).read_text("utf-8"), re.MULTILINE
        )
        assert found
        assert all("--editable" in line for line in found), file


def test_every_mechanism_is_explained():
    """The page on finalising has one row for each mechanism, and no others."""
    page = (HERE / "docs" / "finalise.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(mechanisms())


def test_public_names():
    """`__all__` is what can be imported, each name documented."""
    assert sorted(execmem.__all__) == list(execmem.__all__)
    for name in execmem.__all__:
        assert getattr(execmem, name).__doc__
    assert set(execmem.__all__) <= set(dir(execmem))
    with pytest.raises(AttributeError):
        _ = execmem.nonesuch
