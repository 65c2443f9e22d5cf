# SPDX-License-Identifier: GPL-2.0-or-later
"""A CMOS clock (Motorola MC146818 data sheet), which shows guest time: it starts in 1970."""

from __future__ import annotations

import time

import attrs

from emulator.clock import NSEC_PER_SEC
from emulator.hardware.part import Device

_INDEX = 0
_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR = 0, 2, 4, 6, 7, 8, 9
_STATUS_A, _STATUS_B, _STATUS_D = 0x0A, 0x0B, 0x0D
_CENTURY = 0x32  # as the FADT says
_DIVIDER, _HOURS_24, _VALID = 0x26, 0x02, 0x80


@attrs.define
class Mc146818(Device):
    """A clock with an index and a data port."""

    index: int = 0

    def read(self, offset: int, _size: int, /) -> int:
        """Return a register of the clock, in BCD."""
        if offset == _INDEX:
            return 0xFF
        fixed = {_STATUS_A: _DIVIDER, _STATUS_B: _HOURS_24, _STATUS_D: _VALID}
        if self.index in fixed:
            return fixed[self.index]
        now = time.gmtime(self.wires.clock.now // NSEC_PER_SEC)
        value = {
            _SECONDS: now.tm_sec,
            _MINUTES: now.tm_min,
            _HOURS: now.tm_hour,
            _WEEKDAY: (now.tm_wday + 1) % 7 + 1,
            _DAY: now.tm_mday,
            _MONTH: now.tm_mon,
            _YEAR: now.tm_year % 100,
            _CENTURY: now.tm_year // 100,
        }.get(self.index, 0)
        return value // 10 << 4 | value % 10

    def write(self, offset: int, _size: int, value: int, /) -> None:
        """Choose a register; the clock is not to be set."""
        if offset == _INDEX:
            self.index = value & 0x7F
