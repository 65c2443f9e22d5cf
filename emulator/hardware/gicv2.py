# SPDX-License-Identifier: GPL-2.0-or-later
"""A GICv2 of one CPU, whose only sources are private: the timers'."""

from __future__ import annotations

import attrs

from emulator.hardware.part import Device

_ENABLE_SET, _ENABLE_CLEAR = 0x100, 0x180
_ACKNOWLEDGE = 0x0C
_SPURIOUS = 1023


@attrs.define
class Distributor(Device):
    """What is enabled."""

    enabled: int = 0  # one bit for each private interrupt

    def read(self, offset: int, _size: int, /) -> int:
        """Return a register."""
        return self.enabled if offset in (_ENABLE_SET, _ENABLE_CLEAR) else 0

    def write(self, offset: int, _size: int, value: int, /) -> None:
        """Set a register."""
        if offset == _ENABLE_SET:
            self.enabled |= value
        elif offset == _ENABLE_CLEAR:
            self.enabled &= ~value


@attrs.define
class CpuInterface(Device):
    """What is pending."""

    def read(self, offset: int, _size: int, /) -> int:
        """Return a register; reading IAR acknowledges."""
        if offset != _ACKNOWLEDGE:
            return 0
        return self.wires.pending.pop(0) if self.wires.pending else _SPURIOUS
