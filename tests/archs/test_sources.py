# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules about the sources themselves: licences, lengths, where architectures may be named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("allocator", "archs", "loader", "emulator", "kernels", "machine", "samples", "execmem")
SPDX = "SPDX-License-Identifier: GPL-2.0-or-later"

LONG = 600  # lines
WHY = "Long because "  # how the sentence begins that says why a file is longer

ASKS_FOR_A_NAME = re.compile(
    r"arch\.name\s*(==|!=|in\b|not in\b)|==\s*\w*\.?arch\.name|match \w*arch\.name"
)


def sources(*folders: str) -> list[Path]:
    """Return the Python and assembly and C sources under `folders`."""
    found = [p for f in folders for p in (ROOT / f).rglob("*") if p.is_file()]
    return sorted(p for p in found if p.suffix in {".py", ".S", ".c", ".h"})


def test_every_source_says_its_licence() -> None:
    """The first three lines of each source hold the SPDX line."""
    files = sources(*PACKAGES, "tests", "benchmarks", "docs")
    assert len(files) > 20
    silent = [
        str(path.relative_to(ROOT))
        for path in files
        if SPDX not in "\n".join(path.read_text("utf-8").splitlines()[:3])
    ]
    assert silent == []


def unexplained(text: str) -> bool:
    """Return whether a source is long, and its docstring does not say why."""
    if len(text.splitlines()) <= LONG:
        return False
    return WHY not in (ast.get_docstring(ast.parse(text)) or "").replace("\n", " ")


def test_a_long_file_says_why() -> None:
    """No Python file has more than 600 lines unless its docstring has the sentence why."""
    files = [p for p in sources(*PACKAGES, "tests", "benchmarks") if p.suffix == ".py"]
    assert len(files) > 300
    long = [path for path in files if unexplained(path.read_text("utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in long] == []


@pytest.mark.parametrize(
    ("head", "lines", "found"),
    [
        ('"""What."""', 600, False),
        ('"""What."""', 601, True),
        ('"""What.\n\nLong because it\nis.\n"""', 601, False),
        ("# Long because it is, says no docstring.", 601, True),
    ],
)
def test_the_search_would_find_a_long_file(head: str, lines: int, found: bool) -> None:
    """Only what stands in the docstring counts, and 600 lines are not yet too many."""
    text = head + "\n" * (lines - head.count("\n"))
    assert len(text.splitlines()) == lines
    assert unexplained(text) is found


def test_only_archs_asks_for_a_name() -> None:
    """No package but archs compares an architecture's name: it asks for the capability."""
    for package in PACKAGES:
        for path in sources(package):
            if package != "archs":
                assert not ASKS_FOR_A_NAME.search(path.read_text("utf-8")), path


@pytest.mark.parametrize(
    "text", ['if arch.name == "x"', 'if "x" == self.arch.name', "arch.name in (1,)"]
)
def test_the_search_would_find_such_a_question(text: str) -> None:
    """The pattern matches the ways to ask for a name that a person would write."""
    assert ASKS_FOR_A_NAME.search(text)
