# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of source of places in modules, for faults and reports.

Kernels name places, `function+0xoff/0xsize [module]`, and not addresses. A name that several functions
of a module have is none that says where, unless their sizes differ; then no line is told. Frames of
a backtrace are where calls return to, so the line of the byte before is told, which is the call's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import attrs

from loader.debugfile import NoDebug
from loader.elfview import STT_FUNC, ElfView
from loader.lines import Lines, told

_PLACE = re.compile(
    r"(?P<name>\S+)\+0x(?P<offset>[0-9a-f]+)(?:/0x(?P<size>[0-9a-f]+))? \[(?P<module>[^\]\s]+)[^\]]*\]"
)


@attrs.frozen(eq=False)
class Placed:
    """A module's file, and where its sections lie, by index."""

    view: ElfView
    addresses: Mapping[int, int]


class Sources:
    """Tells lines of source; what a module's DWARF says is read when it is first asked for.

    Parameters
    ----------
    find
        Returns a module by its name; None: there is none.
    """

    def __init__(self, find: Callable[[str], Placed | None]) -> None:
        self._find = find
        self._known: dict[str, tuple[Mapping[int, int], Lines | None]] = {}

    def told(self, where: str, frames: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the lines of a place and of a backtrace, empty for one that has none; or nothing."""
        return self.of(where, frames, self._find)

    def of(
        self, where: str, frames: Sequence[str], find: Callable[[str], Placed | None]
    ) -> tuple[str, ...]:
        """Return what `told` does, of modules that are found otherwise."""
        # Some kernels begin a backtrace with the place itself.
        behind = (self._told(frame, int(frame != where), find) for frame in frames)
        found = [self._told(where, 0, find), *behind]
        return tuple(found) if any(found) else ()

    def at(self, name: str, placed: Placed, address: int) -> str:
        """Return the line of an address in a module; empty where it has none."""
        lines = self._lines(name, placed)
        try:
            return "" if lines is None else told(lines.at(address))
        except NoDebug:
            return ""

    def _told(self, place: str, back: int, find: Callable[[str], Placed | None]) -> str:
        match = _PLACE.fullmatch(place)
        placed = None if match is None else find(match["module"])
        if match is None or placed is None or self._lines(match["module"], placed) is None:
            return ""
        size = None if match["size"] is None else int(match["size"], 16)
        starts = _starts(placed, match["name"], size)
        if len(starts) != 1:
            return ""
        address = starts.pop() + max(int(match["offset"], 16) - back, 0)
        return self.at(match["module"], placed, address)

    def _lines(self, name: str, placed: Placed) -> Lines | None:
        """Return a module's lines; None where it has none."""
        known = self._known.get(name)
        if known is None or known[0] != placed.addresses:
            try:
                lines = Lines.of_module(placed.view, placed.addresses)
            except NoDebug:
                lines = None
            known = self._known[name] = dict(placed.addresses), lines
        return known[1]


def _starts(placed: Placed, name: str, size: int | None) -> set[int]:
    """Return where functions of a name are; of several, those of a size."""
    table, view = placed.view.symbols, placed.view
    found: dict[int, int] = {}
    for index in (table["info"] & 0xF == STT_FUNC).nonzero()[0].tolist():
        section = placed.addresses.get(int(table["shndx"][index]))
        if section is not None and view.symbol_name(index) == name:
            found[section + int(table["value"][index])] = int(table["size"][index])
    exact = {start for start, each in found.items() if each == size}
    return exact if len(found) > 1 and exact else set(found)
