# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers by which tables of modules name features of the CPU, which move between versions.

Only some versions' headers were read. Of a version between two of them a number is taken where both
have the same, of one outside where all have: what did not move. Any other number means something
that nobody knows there, and whatever a module says of it is left as compiled, and counted.

Rows are of 5.10.223, 6.1.176 (arm64: 6.1.170), 6.12.107, 7.2.13 and 7.3-rc7. A stable update may move
numbers, too, where it brings a feature that sorts before others; that is not told apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.environment import Environment
from archs.versions import MODELLED, Version

Names = Mapping[str, int]


@attrs.frozen
class Held:
    """Numbers in one environment: what is there, and which mean something; None: all do."""

    there: frozenset[int]
    known: frozenset[int] | None = None

    def chosen(self, named: NDArray[np.integer]) -> NDArray[np.intp]:
        """Return which of some numbers are there."""
        return np.flatnonzero(np.isin(named, sorted(self.there)))

    def strange(self, named: NDArray[np.integer]) -> int:
        """Return how many of some numbers mean nothing that is known."""
        if self.known is None:
            return 0
        return int((~np.isin(named, sorted(self.known))).sum())


@attrs.frozen
class Numbers:
    """One architecture's numbers.

    Parameters
    ----------
    usual
        Those of the version that is modelled, by name.
    others
        Version -> name -> number, where it is another one; None: it means something else there,
        or nothing.
    """

    usual: Names
    others: Mapping[Version, Mapping[str, int | None]]

    def of(self, version: Version) -> Names:
        """Return the numbers of a version, as far as they are known."""
        versions = sorted({MODELLED, *self.others})
        if version in versions:
            return {n: at for n, at in self._row(version).items() if at is not None}
        below = [each for each in versions if each < version]
        above = [each for each in versions if each > version]
        around = [below[-1], above[0]] if below and above else versions
        first, *rest = (self._row(each) for each in around)
        same = {
            name: at
            for name, at in first.items()
            if at is not None and all(row.get(name) == at for row in rest)
        }
        # A number that one of them has for something else is none of these.
        moved = {at for row in (first, *rest) for n, at in row.items() if n not in same}
        return {name: at for name, at in same.items() if at not in moved}

    def _row(self, version: Version) -> Mapping[str, int | None]:
        return {**self.usual, **self.others.get(version, {})}

    def held(self, environment: Environment) -> Held:
        """Return what a boot has, in the numbers of its version."""
        if environment.capabilities is not None:
            return Held(environment.capabilities)
        known = self.of(environment.version)
        there = frozenset(known[name] for name in environment.features if name in known)
        return Held(there, frozenset(known.values()))


def left_text(count: int, version: Version) -> str:
    """Return what to say of alternatives whose features have numbers that nobody knows."""
    number = ".".join(map(str, version))
    return (
        f"alternatives: {count} name features by numbers that are not known of Linux {number}: "
        "left as compiled"
    )
