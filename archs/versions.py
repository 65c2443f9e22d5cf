# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between versions of Linux, as rows: since which version something is as it is.

What a module's own bytes tell is read from them. Rows are for the rest: how its kernel goes about
it.
"""

from __future__ import annotations

import re
from typing import Generic, TypeAlias, TypeVar

Version: TypeAlias = tuple[int, int]
Value = TypeVar("Value")

MODELLED: Version = (6, 12)  # whose ways are taken where no version is known
_VERSION = re.compile(r"(?:Linux version )?(\d{1,4})\.(\d{1,4})(?!\d)")


def version_of(text: str) -> Version | None:
    """Return the version that a release, a version magic or a banner begins with.

    >>> version_of("6.1.0-50-amd64 SMP preempt"), version_of("Linux version 7.2.13"), version_of("x")
    ((6, 1), (7, 2), None)
    """
    found = _VERSION.match(text)
    return None if found is None else (int(found[1]), int(found[2]))


class Since(Generic[Value]):
    """A value that changed with versions: (version, value) pairs, ascending.

    >>> Since(((0, 0), "NOPs"), ((6, 4), "INT3")).at((6, 3))
    'NOPs'
    """

    def __init__(self, *rows: tuple[Version, Value]) -> None:
        self.rows = rows

    def at(self, version: Version) -> Value:
        """Return what holds in a version: the last row that is not later."""
        return next(value for since, value in reversed(self.rows) if since <= version)
