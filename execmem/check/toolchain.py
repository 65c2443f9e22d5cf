# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources -> objects, by whatever assembles them here: the GNU tools, or clang."""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import attrs

from allocator.errors import ExecmemError
from archs import Arch
from execmem.check.case import BadCase, Case, Form
from execmem.check.shared import spell

NEWEST_LLVM = 40
TIMEOUT = 60  # seconds that a compiler or linker may take
_C_FLAGS: tuple[str, ...] = (
    "-O2",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-common",
)
_C_FLAGS += ("-fno-asynchronous-unwind-tables", "-fomit-frame-pointer")
_SUFFIXES = {Form.C: ".c", Form.PREPROCESSED: ".S"}


@attrs.define(auto_exc=True, str=False)
class NoTool(ExecmemError):
    """A program is not installed.

    Parameters
    ----------
    what
        What cannot be done.
    programs
        Any of these would do.
    """

    what: str
    programs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.what} needs {' or '.join(self.programs)}"


@attrs.frozen
class Made:
    """An object, and the first line of what made it says of itself."""

    image: bytes
    tool: str


def gnu(arch: Arch, name: str) -> str | None:
    """Return the path of a GNU program for an architecture; None where there is none."""
    assembly = arch.link.assembly
    if assembly is None:
        return None
    found = shutil.which(f"{assembly.triple}-{name}")
    if found is None and platform.machine() in assembly.hosts:
        found = shutil.which(name)
    return found


@cache
def llvm(name: str) -> str | None:
    """Return the path of the newest version of an LLVM program; None where there is none."""
    for version in range(NEWEST_LLVM, 10, -1):
        found = shutil.which(f"{name}-{version}")
        if found is not None:
            return found
    return shutil.which(name)


@cache
def version_of(program: str) -> str:
    """Return the first line with a number of what a program says of its version."""
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=TIMEOUT
    )
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    numbered = [line for line in lines if re.search(r"\d+\.\d", line)]
    return next(iter([*numbered, *lines]), Path(program).name)


def make(case: Case, arch: Arch) -> Made:
    """Return the object that a case's source becomes for an architecture.

    Raises
    ------
    NoTool
        Nothing here assembles it.
    BadCase
        The assembler refuses it, by its first line.
    """
    assembly = arch.link.assembly
    if assembly is None:
        raise BadCase(case.path, 0, f"nobody has said how assembly of {arch.name} is assembled")
    flags = [
        word
        for directive in case.flags
        if directive.is_for(arch.name)
        for word in _words(case, directive.line, directive.rest)
    ]
    failures = []
    wanted = []
    for program, first in _programs(arch, case.form):
        wanted.append(f"{assembly.triple}-{program}" if program in ("as", "gcc") else program)
        path = gnu(arch, program) if program in ("as", "gcc") else llvm(program)
        if path is None:
            continue
        try:
            return _run(case, arch, [path, *first, *flags])
        except BadCase as error:
            failures.append(error)
    if failures:
        raise failures[0]
    raise NoTool(f"{case.path} for {arch.name}", tuple(wanted))


def _words(case: Case, line: int, text: str) -> Sequence[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadCase(case.path, line, f"flags: {error}") from None


def _programs(arch: Arch, form: Form) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield programs that could do it, with what they must be told."""
    assembly = arch.link.assembly
    assert assembly is not None
    clang = (f"--target={assembly.triple}", "-c")
    if form is Form.C:
        yield "gcc", ("-c", *_C_FLAGS, *assembly.flags)
        yield "clang", (*clang, *_C_FLAGS, *assembly.flags, "-Wno-unused-command-line-argument")
    elif form is Form.PREPROCESSED:
        yield "gcc", ("-c",)
        yield "clang", clang
    else:
        yield "as", ()
        yield "clang", clang


def _run(case: Case, arch: Arch, command: Sequence[str]) -> Made:
    text = spell(case, arch) if case.form is Form.SHARED else case.source
    with tempfile.TemporaryDirectory(prefix="execmem-check-") as folder:
        source = Path(folder) / f"case{_SUFFIXES.get(case.form, '.s')}"
        source.write_text(text + ("" if text.endswith("\n") else "\n"), "utf-8")
        out = Path(folder) / "case.o"
        try:
            done = subprocess.run(
                [*command, str(source), "-o", str(out)],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise BadCase(case.path, 0, f"{command[0]} takes over {TIMEOUT} s") from None
        if done.returncode or not out.is_file():
            raise _refused(case, str(source), command[0], done.stderr)
        return Made(out.read_bytes(), version_of(command[0]))


def _refused(case: Case, source: str, program: str, said: str) -> BadCase:
    """Return the first complaint of an assembler, with the line that it is about."""
    for line in said.splitlines():
        found = re.match(
            rf"{re.escape(source)}:(\d+)(?::\d+)?:\s*(?:fatal )?(?:[Ee]rror:\s*)?(.*)", line
        )
        if found and "Assembler messages" not in line:
            return BadCase(case.path, int(found[1]), f"{Path(program).name}: {found[2]}")
    first = next((line for line in said.splitlines() if line.strip()), "no object, and no reason")
    return BadCase(case.path, 0, f"{Path(program).name}: {first.replace(source, case.path)}")
