# SPDX-License-Identifier: GPL-2.0-or-later
"""GNU binutils as oracles: found by the names that distributions give them, or skipped."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.archs.facts import facts


def tool(name: str) -> str:
    """Return the path of a program, or skip the test naming what is missing."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def cross(machine: int, name: str) -> str:
    """Return a binutils program for e_machine `machine`, or skip."""
    triple, host = facts(machine).link.triple
    if platform.machine() == host and shutil.which(name):
        return tool(name)
    return tool(f"{triple}-{name}")


def llvm(name: str) -> str:
    """Return the newest version of an LLVM program that is installed, or skip."""
    found = [
        path
        for version in ("", *range(16, 40))
        if (path := shutil.which(f"{name}-{version}".rstrip("-"))) is not None
    ]
    if not found:
        pytest.skip(f"{name} is not installed")
    return found[-1]


def run(*command: str | Path) -> str:
    """Run a command that must succeed and return what it prints."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"
    return done.stdout


def code(machine: int, source: str, folder: Path) -> bytes:
    """Return the code that the GNU assembler makes of `source`, which needs no relocation."""
    out = folder / "code.bin"
    assemble(machine, source, folder)
    run(cross(machine, "objcopy"), "-O", "binary", "-j", ".text", folder / "source.o", out)
    return out.read_bytes()


def assemble(machine: int, source: str, folder: Path) -> bytes:
    """Return the object file that the GNU assembler makes of `source`."""
    text, out = folder / "source.s", folder / "source.o"
    text.write_text(source, "ascii")
    run(cross(machine, "as"), text, "-o", out)
    return out.read_bytes()
