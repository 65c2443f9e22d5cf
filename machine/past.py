# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest under control can be gone back to: marks on its way.

A mark is all of the guest at one place. From the last one before the place that is wanted, the
guest runs anew. Marks count as long as the run that they were taken in goes on, and nothing was
done since that a second time would not undo (`Governor.happened`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from emulator.governor import Governor
from emulator.stops import Rewound, Seat

_APART = 10_000_000  # instructions between marks that nobody asked for
_MOST = 10  # at a time


@attrs.frozen
class _Mark:
    """All of the guest at one place.

    Parameters
    ----------
    count, run, serial
        The governor's, then.
    state
        The guest.
    """

    count: int
    run: int
    serial: int
    state: Any = attrs.field(repr=False)


class Past:
    """The marks of one control.

    Parameters
    ----------
    governor
        Whose place counts.
    take
        Returns all of the guest.
    restore
        Makes it that again.
    anew
        Whether a call from outside can be made anew by who made it (`Rewound`).
    name
        Returns what lies at an address.
    """

    def __init__(
        self,
        governor: Governor,
        take: Callable[[Any], Any],
        restore: Callable[[Any, Any], object],
        *,
        anew: bool,
        name: Callable[[int], str | None],
    ) -> None:
        self._governor, self._take, self._restore = governor, take, restore
        self._can_begin_anew, self._name = anew, name
        self._marks: list[_Mark] = []
        self._start = 0  # the serial when the call began

    def begin(self) -> None:
        """Let a call from outside begin."""
        self._marks.clear()
        self._start = self._governor.serial

    def pass_by(self, seat: Seat, /) -> None:
        """Take a mark where none was taken for long."""
        marks = self._valid()
        if marks and self._governor.count - marks[-1].count >= _APART:
            self.keep(seat)

    def settle(self, seat: Seat, /) -> None:
        """Take a mark where nothing is known that can be gone back to."""
        if not self._valid():
            self.keep(seat)

    def keep(self, seat: Seat, /) -> None:
        """Take a mark here, unless there is one."""
        governor, marks = self._governor, self._valid()
        if any(mark.count == governor.count for mark in marks):
            return
        made = _Mark(governor.count, governor.run, governor.serial, self._take(seat))
        marks = sorted([*marks, made], key=lambda mark: mark.count)
        if len(marks) > _MOST:
            marks.remove(min(marks[1:-1], key=partial(self._worth, marks)))
        self._marks = marks

    def _worth(self, marks: list[_Mark], mark: _Mark) -> float:
        """Return what a mark saves, beside how far away it is."""
        at = marks.index(mark)
        saved = marks[at + 1].count - marks[at - 1].count
        return saved / (1 + abs(self._governor.count - mark.count))

    def _valid(self) -> list[_Mark]:
        governor = self._governor
        return [
            mark
            for mark in self._marks
            if (mark.run, mark.serial) == (governor.run, governor.serial)
        ]

    def _begins_anew(self) -> bool:
        return self._can_begin_anew and self._governor.serial == self._start

    def reach(self) -> tuple[int, str]:
        """Return how far the guest can be gone back with, and why no further."""
        governor = self._governor
        if governor.serial == self._start:
            reason = "the call begins here"
        else:
            what, address = governor.happening
            if address is not None:
                what = f"{self._name(address) or hex(address)} is Python"
            reason = f"{what}, and what it did is not undone"
        if self._begins_anew():
            return 0, reason
        return min((mark.count for mark in self._valid()), default=governor.count), reason

    def before(self, count: int) -> int:
        """Return the place of the last mark up to a count, or of the call's beginning."""
        counts = [mark.count for mark in self._valid() if mark.count <= count]
        return max(counts, default=0)

    def back(self, seat: Any, count: int) -> None:
        """Go back to there; or raise `Rewound`, for whoever began the call to do it."""
        governor = self._governor
        marks = [mark for mark in self._valid() if mark.count <= count]
        if not marks:
            raise Rewound
        self._restore(seat, marks[-1].state)
        seat.take(marks[-1].count - governor.count)
