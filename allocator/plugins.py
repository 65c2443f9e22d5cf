# SPDX-License-Identifier: GPL-2.0-or-later
"""What other installed packages bring: designs, kernel symbols, lessons, by entry point.

A package names what it brings in its metadata; nothing of it is imported before somebody
asks for it, and whatever goes wrong then is an `ExecmemError` that names the package.

    execmem.designs     a class derived from `allocator.Design`
    execmem.symbols     a module whose import declares kernel symbols
    execmem.demos       a function that returns a `samples.story.Story`
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from allocator.errors import ExecmemError, printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DESIGNS, SYMBOLS, DEMOS = "execmem.designs", "execmem.symbols", "execmem.demos"


@cache
def installed(group: str) -> Mapping[str, EntryPoint]:
    """Return what installed packages bring, by name."""
    if not _bring_something():
        return MappingProxyType({})
    from importlib.metadata import entry_points

    return MappingProxyType({point.name: point for point in entry_points(group=group)})


@cache
def _bring_something() -> bool:
    """Return whether a package may bring anything: `importlib.metadata` takes a tenth of a start."""
    if any(hasattr(f, "find_distributions") and f is not PathFinder for f in sys.meta_path):
        return True
    return any(text is None or b"[execmem." in text for text in _stated())


def _stated() -> Iterator[bytes | None]:
    """Yield the lists of entry points that installers left on the path; None for what may be one."""
    for folder in map(Path, sys.path):
        if folder.is_file():
            yield None  # an archive
        with suppress(OSError):
            for found in folder.iterdir():
                if found.suffix == ".egg":
                    yield None
                elif found.suffix in (".dist-info", ".egg-info"):
                    with suppress(OSError):
                        yield (found / "entry_points.txt").read_bytes()


def origin(point: EntryPoint) -> str:
    """Return the package that brings it, with its version."""
    return "?" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def bring(point: EntryPoint) -> Any:
    """Import what an entry point names; ExecmemError where that goes wrong."""
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        where = f"{point.group} {point.name!r} of {origin(point)}"
        raise ExecmemError(printable(f"{where}: {said(error)}")) from error


def said(error: BaseException) -> str:
    """Return what an exception of somebody else's code says, and where it was raised."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({_file(error.filename)}:{error.lineno})"
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({_file(frame.filename)}:{frame.lineno})" for frame in last)
    text = str(error)
    return f"{type(error).__name__}{': ' * bool(text)}{text}{place}"


def _file(name: str | None) -> str:
    return (name or "?").rpartition("/")[2]
