# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest time of a booted machine: a function of what the guest does, so that two runs are equal.

It passes when the guest looks at a clock, by a little that differs from look to look as on
hardware (code that gathers entropy insists on that), and when it waits. While it only
computes, time stands still.
"""

from __future__ import annotations

import attrs

NSEC_PER_SEC = 10**9
_LOOK = 256  # nanoseconds that a look takes at least, and at most twice that
_FACTOR, _STEP, _MASK = 1_103_515_245, 12_345, (1 << 31) - 1


@attrs.define
class Clock:
    """Nanoseconds since power on."""

    now: int = NSEC_PER_SEC
    seed: int = 1

    def look(self) -> int:
        """Return what a guest sees that looks."""
        self.seed = (self.seed * _FACTOR + _STEP) & _MASK
        self.now += _LOOK + (self.seed >> 16 & _LOOK - 1)
        return self.now

    def ticks(self, frequency: int) -> int:
        """Return what a counter of so many hertz shows to a guest that looks."""
        return self.look() * frequency // NSEC_PER_SEC

    def advance(self, moment: int) -> None:
        """Let time pass until a moment."""
        self.now = max(self.now, moment)


def nanoseconds(ticks: int, frequency: int) -> int:
    """Return when a counter of so many hertz reaches a value."""
    return -(-ticks * NSEC_PER_SEC // frequency)
