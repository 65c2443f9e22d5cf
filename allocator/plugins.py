# SPDX-License-Identifier: GPL-2.0-or-later
"""What other installed packages bring: designs, kernel symbols, lessons, by entry point.

A package names what it brings in its metadata; nothing of it is imported before somebody
asks for it, and whatever goes wrong then is an `ExecmemError` that names the package.

    execmem.designs     a class derived from `allocator.Design`
    execmem.symbols     a module whose import declares kernel symbols
    execmem.demos       a function that returns a `samples.story.Story`
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from allocator.errors import ExecmemError, printable

DESIGNS, SYMBOLS, DEMOS = "execmem.designs", "execmem.symbols", "execmem.demos"


@cache
def installed(group: str) -> Mapping[str, EntryPoint]:
    """Return what installed packages bring, by name."""
    return MappingProxyType({point.name: point for point in entry_points(group=group)})


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
