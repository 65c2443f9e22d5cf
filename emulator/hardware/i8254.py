# SPDX-License-Identifier: GPL-2.0-or-later
"""An 8254 interval timer (Intel 8254 data sheet), and the port of a PC that gates counter 2.

Counter 0 is the timer interrupt; the output of counter 2 shows at the gate's port, which is how
the frequency of another clock is measured. It counts whether the gate is open or not, and never
in BCD.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from emulator.clock import NSEC_PER_SEC, nanoseconds
from emulator.hardware.part import Device

FREQUENCY = 1_193_182  # hertz
_CONTROL, _GATE = 3, 0x21  # offsets from the first counter's port
_READ_BACK = 3
_LATCH, _LOW, _HIGH, _BOTH = range(4)
_SPEAKER = 2  # the counter that has the gate
_WRITABLE, _OUTPUT = 0x0F, 0x20  # bits of the gate's port
_NOTHING = 0xFF
_MOST = 0x10000
_RATE, _SQUARE = 2, 3  # modes that begin again by themselves


@attrs.frozen
class Counter:
    """One counter.

    Parameters
    ----------
    mode, access
        How it counts, and which bytes of it are read and written.
    reload
        What it counts down from; 0: nothing was written yet.
    since, end
        Guest time in nanoseconds at which it began, and comes to its end.
    low
        The low byte where the high one is still to come.
    latched
        What is to be read, where it was latched.
    high_next
        Whether the high byte is read next.
    """

    mode: int = 0
    access: int = _BOTH
    reload: int = 0
    since: int = 0
    end: int | None = None
    low: int | None = None
    latched: int | None = None
    high_next: bool = False

    def passed(self, now: int) -> int:
        """Return how many ticks it has counted."""
        return max(0, now - self.since) * FREQUENCY // NSEC_PER_SEC

    def value(self, now: int) -> int:
        """Return what it shows."""
        if not self.reload:
            return 0
        passed = self.passed(now)
        if self.mode == _SQUARE:
            return self.reload - 2 * passed % self.reload & _MOST - 1
        if self.mode == _RATE:
            return self.reload - passed % self.reload & _MOST - 1
        return self.reload - passed & _MOST - 1


def _counters(found: Iterable[Counter | Mapping[str, Any]]) -> tuple[Counter, ...]:
    """Return counters, or what is left of them in a file."""
    return tuple(each if isinstance(each, Counter) else Counter(**each) for each in found)


@attrs.define
class I8254(Device):
    """The three counters."""

    counters: tuple[Counter, ...] = attrs.field(default=(Counter(),) * 3, converter=_counters)
    gate: int = 0

    def read(self, offset: int, _size: int, /) -> int:
        """Return a byte of a counter, or the gate; time passes, because somebody looks."""
        now = self.wires.clock.look()
        if offset == _GATE:
            end = self.counters[_SPEAKER].end
            return self.gate | (_OUTPUT if end is not None and now >= end else 0)
        if offset >= _CONTROL:
            return _NOTHING
        counter = self.counters[offset]
        value = counter.value(now) if counter.latched is None else counter.latched
        if counter.access != _BOTH:
            self._set(offset, latched=None)
            return value >> 8 if counter.access == _HIGH else value & 0xFF
        if counter.high_next:
            self._set(offset, high_next=False, latched=None)
            return value >> 8
        self._set(offset, high_next=True)
        return value & 0xFF

    def write(self, offset: int, _size: int, value: int, /) -> None:
        """Take a command, the gate, or a byte of what a counter shall begin with."""
        value &= 0xFF
        if offset == _CONTROL:
            self._command(value)
        elif offset == _GATE:
            self.gate = value & _WRITABLE
        elif offset < _CONTROL:
            self._load(offset, value)

    def _load(self, offset: int, value: int) -> None:
        counter = self.counters[offset]
        if counter.access == _BOTH and counter.low is None:
            self._set(offset, low=value)
            return
        if counter.access == _BOTH:
            value = value << 8 | (counter.low or 0)
        elif counter.access == _HIGH:
            value <<= 8
        now = self.wires.clock.now
        self._begin(offset, now, reload=value or _MOST, low=None)

    def _command(self, value: int) -> None:
        number, access = value >> 6, value >> 4 & 3
        if number == _READ_BACK:
            for index in range(3):
                if value >> 1 + index & 1 and not value & 0x20:
                    self._latch(index)
        elif access == _LATCH:
            self._latch(number)
        else:
            mode = value >> 1 & 7
            mode = mode & 3 if mode > 5 else mode
            self.counters = _replaced(self.counters, number, Counter(mode=mode, access=access))

    def _latch(self, number: int) -> None:
        if self.counters[number].latched is None:
            now = self.wires.clock.look()
            self._set(number, latched=self.counters[number].value(now), high_next=False)

    def _begin(self, number: int, now: int, *, reload: int, **changes: Any) -> None:
        end = now + nanoseconds(reload, FREQUENCY)
        self._set(number, reload=reload, since=now, end=end, **changes)

    def _set(self, number: int, **changes: Any) -> None:
        changed = attrs.evolve(self.counters[number], **changes)
        self.counters = _replaced(self.counters, number, changed)

    # The interrupt of counter 0 -----------------------------------------------------------------

    def deadline(self) -> int | None:
        """Return the guest time of the next interrupt; None: none is to come."""
        return self.counters[0].end

    def take(self) -> None:
        """Let the interrupt come; those that were missed come no more."""
        counter = self.counters[0]
        if counter.mode not in (_RATE, _SQUARE):
            self._set(0, end=None)
        elif counter.reload:
            period = counter.reload * NSEC_PER_SEC
            over = (self.wires.clock.now - counter.since) * FREQUENCY // period
            since = counter.since + max(over, 1) * period // FREQUENCY
            self._begin(0, since, reload=counter.reload)


def _replaced(counters: tuple[Counter, ...], number: int, counter: Counter) -> tuple[Counter, ...]:
    return (*counters[:number], counter, *counters[number + 1 :])
