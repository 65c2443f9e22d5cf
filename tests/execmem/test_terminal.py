# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing from a file reaches a terminal but as text: every command, every kind of name."""

from __future__ import annotations

import ast
import os
import pty
import subprocess
import sys
import tty
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from allocator.errors import ExecmemError, printable
from archs import ALL
from execmem.cli import COMMANDS, main
from execmem.terminal import Terminal
from samples.modules import path
from tests.support import packages

HERE = Path(__file__).parents[2]
# Eight bytes each, in the place of a module's name wherever that stands in its file.
NAMES = {
    "sets the title and forges a line": b"\x1b]0;\x07\r\na",
    "turns text around, C1 control, no UTF-8": "\u202e\x9b".encode() + b"2J\xff",
    "markup and emoji": b"[red]:b:",
}
TOKEN, SECTION = b"mathuser", b".rodata"


def hostile(arch, folder, name):
    """Write a module whose symbols, sections, messages and file are called so; return its path."""
    image = path(arch.name, "mathuser").read_bytes()
    image = image.replace(TOKEN, name).replace(SECTION + b"\0", name[: len(SECTION)] + b"\0")
    title = os.fsdecode(name.replace(b"/", b"_") + b".ko")
    file = folder / title
    file.write_bytes(image)
    (folder / "mathlib.ko").write_bytes(path(arch.name, "mathlib").read_bytes())
    (folder / "modules.dep").write_bytes(b"mathlib.ko:\n")
    return file


def case_of(file, folder, function):
    """Return a relocation case that says a name."""
    case = folder / f"{file.stem}.case"
    case.write_text(f"execmem case 1\narch {function}\nsection .text ax 00\n", errors="replace")
    return case


def commands(file, folder, name):
    """Return command lines that show as much of a module as they can."""
    function = os.fsdecode(name + b"_lcm")
    archive = folder / "a.tar"
    archive.write_bytes(packages.tarball([(os.fsdecode(file.name), file.read_bytes())]))
    page, picture = folder / "page.html", folder / "map.svg"
    return {
        "load": ["load", file, "--unknown", "zero", "--init", "--svg", picture],
        "run": ["run", file, function, "21", "6"],
        "crypto": ["crypto", function, "str:a", "--module", file],
        "trace": ["trace", file, "--", function, "21", "6"],
        "probe": ["probe", f"{file}:{function}", "--", function, "21", "6"],
        "gdb": ["gdb", file, function, "21", "6", "--batch", "/dev/null"],
        "relocs": ["relocs", file],
        "coverage": ["coverage", file, function, "21", "6", "--drcov", folder / "out.drcov"],
        "reach": ["reach", "--arch", function],
        "archs": ["archs", function],
        "kernel": ["kernel", file],
        "explain": ["explain", file, "--html", page],
        "serve": ["serve", "--address", function],
        "diff": ["diff", function, "--oracle", folder],
        "compare": ["compare", "--workload", function],
        "fuzz": ["fuzz", file, function, "--input", "a=int", "--executions", "20"],
        "sweep": ["sweep", file, archive, "--init", "--jobs", "1"],
        "race": ["race", function],
        "demo": ["demo", function],
        "course": ["course", "check", file],
        "disasm": ["disasm", file, function],
        "export": ["export", file, "--elf", folder / "out.elf", "--bin", folder / "out.bin"],
        "functions": ["functions", file],
        "types": ["types", file, function],
        "kunit": ["kunit", file, "--kernel", file],
        "check": ["check", case_of(file, folder, function), "--linker", "none", "--jobs", "1"],
    }


def more(file, name):
    """Return command lines that are refused, each for another reason."""
    word = os.fsdecode(name)
    return (
        ["load", f"{file}.missing"],
        ["load", word],
        ["load", file, "--root", word],
        ["load", file, "--design", word],
        ["load", file, "--param", f"{word}=1"],
        ["load", file, "--stub", f"a={word}"],
        ["load", file, f"--{word}"],
        ["load", file, "--checks", word],
        ["run", file, f"{word}_lc", "1"],
        ["run", file, f"{word}_lcm", word],
        ["relocs", file, "--section", word],
        ["relocs", file, "--type", word],
        ["sweep", f"{file}.missing"],
        [word],
    )


@pytest.fixture
def run(capsys):
    """Run the command line; return all that it wrote."""

    def call(words):
        with pytest.raises(SystemExit):
            main(list(map(str, words)))
        captured = capsys.readouterr()
        return captured.out + captured.err

    return call


def harmless(text):
    """Return whether text is nothing but lines of what can be read."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_every_command_shows_names_as_text(run, arch, tmp_path, name):
    """Whatever a module's parts are called, commands write lines of printable text."""
    file = hostile(arch, tmp_path, name)
    lines = commands(file, tmp_path, name)
    assert lines.keys() == COMMANDS.keys()
    for words in (*lines.values(), *more(file, name)):
        text = run(words)
        assert text
        assert harmless(text), words
    for written in ("page.html", "map.svg"):
        assert harmless((tmp_path / written).read_text("utf-8")) or "map" not in written


def test_what_looks_like_markup_is_shown(run, arch, tmp_path):
    """A name is shown letter by letter, brackets and colons included."""
    name = NAMES["markup and emoji"]
    file, shown = hostile(arch, tmp_path, name), name.decode()
    for words in (["load", file], ["relocs", file], ["sweep", file, "--jobs", "1"]):
        assert shown in run(words)


@pytest.mark.parametrize("name", [b"\x1b[2J\x07\xc2\x9b", b"\x1b]0;\x07\xc2\x85"])
def test_a_terminal_is_told_nothing(tmp_path, name):
    """On a terminal, where styles and bars are drawn, what names contain is escaped as well."""
    file = hostile(ALL[0], tmp_path, name.ljust(8, b"a"))
    for words in (["load", file, "--unknown", "zero"], ["sweep", file, "--jobs", "1"]):
        main_end, other = pty.openpty()
        tty.setraw(other)
        process = subprocess.Popen(
            [sys.executable, "-m", "execmem", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=other,
            stderr=other,
            cwd=HERE,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(other)
        out = b""
        try:
            while chunk := os.read(main_end, 65536):
                out += chunk
        except OSError:  # the other end is closed
            pass
        os.close(main_end)
        assert process.wait() == 0
        assert b"\\x" in out
        for sequence in (b"\x1b[2J", b"\x1b]", b"\x07", b"\xc2\x9b", b"\xc2\x85"):
            assert sequence not in out


@given(st.text())
def test_whatever_is_printed_is_text(text):
    """Strings, tables, texts and columns of a bar: one string is never more than a line."""
    import io

    for force in (False, True):
        out = io.StringIO()
        terminal = Terminal(file=out, force_terminal=force, color_system=None, width=200)
        table = Table(text, title=text, box=None)
        table.add_row(text)
        terminal.print(text)
        terminal.print(table)
        terminal.print(Text(text))
        assert harmless(out.getvalue())
    out = io.StringIO()
    Terminal(file=out, width=10_000).print(text, soft_wrap=True)
    assert out.getvalue().rstrip(" ") == f"{printable(text)}\n".rstrip(" ")


@given(st.text())
def test_errors_are_text(text):
    """An error's text is printable whoever made it."""
    assert str(ExecmemError(text)).isprintable()


def test_every_error_escapes():
    """Each class of the family escapes what it says: its own lines are the only ones."""
    import machine.machine  # noqa: F401 -- has them all

    def classes(root):
        for each in root.__subclasses__():
            yield each
            yield from classes(each)

    hostile_text = "a\x1b[2J\nb\u202e"
    for error in {each for each in classes(ExecmemError) if "__attrs_attrs__" in vars(each)}:
        if error.__module__.startswith("tests"):
            continue
        values = {
            field.name: hostile_text
            for field in error.__attrs_attrs__
            if field.type in ("str", str)
        }
        made = error.__new__(error)
        for field in error.__attrs_attrs__:
            object.__setattr__(made, field.name, values.get(field.name, 0))
        try:
            told = str(made)
        except (TypeError, AttributeError):  # a field of another type
            continue
        assert told.isprintable(), error


def test_nothing_else_writes_to_the_terminal():
    """Commands write through `execmem.streams` and `execmem.terminal`, and nothing besides."""
    allowed = {"streams.py", "terminal.py", "report.py"}
    for file in (HERE / "execmem").rglob("*.py"):
        if file.name in allowed or file.parent.name == "worker":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("print", "Console", "Progress", "track", "click.echo"), file
            assert called not in ("click.secho", "sys.stdout.write", "sys.stderr.write"), file
            if called == "TextColumn" and len(node.args) == 1:
                words = {keyword.arg for keyword in node.keywords}
                assert isinstance(node.args[0], ast.Constant), file
                assert "{" not in node.args[0].value or "markup" in words, file


def test_a_string_that_is_written_is_one_line():
    """No literal text that is written holds a newline: it would be shown escaped."""
    for file in [*(HERE / "execmem").rglob("*.py"), *(HERE / "samples").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("say", "out.print")):
                continue
            texts = [
                part.value
                for arg in node.args
                for part in ast.walk(arg)
                if isinstance(part, ast.Constant)
                and isinstance(part.value, str)
                and isinstance(arg, ast.Constant | ast.JoinedStr)
            ]
            assert not any("\n" in text for text in texts), (file, node.lineno)
