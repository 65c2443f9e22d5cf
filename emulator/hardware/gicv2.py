# SPDX-License-Identifier: GPL-2.0-or-later
"""A GICv2 of one CPU, whose only sources are private: the timers', and what the CPU sends itself.

Source: Arm Generic Interrupt Controller Architecture Specification 2.0, 4.3 and 4.4.
"""

from __future__ import annotations

import attrs

from emulator.hardware.part import Device

_ENABLE_SET, _ENABLE_CLEAR = 0x100, 0x180
_SOFTWARE = 0xF00  # GICD_SGIR
_LISTED, _SELF = 0, 2  # whom it is sent to: CPUs of a list, or who sends it
_ACKNOWLEDGE = 0x0C
SOFTWARE = 16  # numbers below it are sent by CPUs
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
        elif offset == _SOFTWARE:
            to, listed, number = value >> 24 & 3, value >> 16 & 1, value & SOFTWARE - 1
            ours = to == _SELF or (to == _LISTED and listed)
            if ours and number not in self.wires.pending:
                self.wires.pending.append(number)


@attrs.define
class CpuInterface(Device):
    """What is pending."""

    def read(self, offset: int, _size: int, /) -> int:
        """Return a register; reading IAR acknowledges."""
        if offset != _ACKNOWLEDGE:
            return 0
        return self.wires.pending.pop(0) if self.wires.pending else _SPURIOUS
