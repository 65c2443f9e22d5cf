# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and folders of cases -> outcomes, a file at a time, in one process or in several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from allocator.errors import ExecmemError
from execmem.check import jitlink, running
from execmem.check.case import BadCase, Form
from execmem.check.outcome import Finding, Outcome, Verdict
from execmem.check.packing import pack
from execmem.check.reading import PACKED, PLAIN, is_case, is_case_name, read
from execmem.check.running import Wanted


@attrs.frozen
class Job:
    """A file to run, and what of it."""

    path: Path
    wanted: Wanted = attrs.field(factory=Wanted)


def find(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files of cases: those given, and in folders all that hold a directive, sorted.

    OSError where a path is not there.
    """
    for path in paths:
        if not path.is_dir():
            path.stat()
            yield path
            continue
        yield from (file for file in sorted(path.rglob("*")) if is_one(file))


def is_one(path: Path) -> bool:
    """Return whether a file is a case, or a test of LLVM's; False where it cannot be read."""
    if not (is_case_name(path) or path.suffix in jitlink.SUFFIXES):
        return False
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return False
    return is_case(path, text) or jitlink.is_jitlink(text)


def archs_in(path: Path) -> Sequence[str]:
    """Return the names of the architectures that a file is for; one empty name: only it knows."""
    try:
        text = path.read_text("utf-8")
        if is_case(path, text):
            return [arch.name for arch in running.archs_of(read(str(path), text))]
    except (OSError, UnicodeDecodeError, BadCase):
        pass  # which running it will say
    return [""]


def run_file(job: Job) -> Sequence[Outcome]:
    """Return what became of a file; what makes it no case is a failure like others."""
    path = str(job.path)
    try:
        text = job.path.read_text("utf-8")
        if not is_case(job.path, text) and jitlink.is_jitlink(text):
            found: list[Outcome] = []
            for name in job.wanted.archs or (None,):
                found += jitlink.run_jitlink(job.path, arch=name)
            return found
        return tuple(running.run(read(path, text), job.wanted))
    except UnicodeDecodeError:
        return (_failed(path, 0, "is no text"),)
    except OSError as error:
        return (_failed(path, 0, error.strerror or "cannot be read"),)
    except BadCase as error:
        return (_failed(path, error.line, error.reason),)
    except ExecmemError as error:
        return (_failed(path, 0, str(error).partition("\n")[0]),)


def pack_file(path: Path, wanted: Wanted) -> Path:
    """Write a case with its objects beside it, as `NAME.case`, and return where.

    What is packed already is assembled anew from the source that stands in it.

    Raises
    ------
    BadCase
        It is no case, or written out.
    NoTool
        Nothing here assembles it for one of its architectures.
    """
    case = read(str(path), path.read_text("utf-8", errors="replace"))
    if case.form is Form.TEXT:
        raise BadCase(str(path), 0, "needs no toolchain as it is")
    if case.form is Form.PACKED:
        lines = case.source.splitlines()[1:]  # but for the first line, which says that it is packed
        lines = lines[1:] if case.suffix != PLAIN else lines
        while lines and not lines[-1]:
            lines.pop()
        case = read(str(path.with_suffix(case.suffix)), "\n".join(lines) + "\n")
    names = [a for a in running.archs_of(case) if wanted.takes(a)]
    made = {arch.name: running.image(case, arch) for arch in names}
    out = path.with_suffix(PACKED)
    out.write_text(pack(case, made), "utf-8")
    return out


def _failed(path: str, line: int, reason: str) -> Outcome:
    finding = Finding(verdict=Verdict.FAILED, line=line, text=reason)
    return Outcome(path=path, arch="", findings=(finding,))
