# SPDX-License-Identifier: GPL-2.0-or-later
"""What ACPI's fixed hardware must have: events, control, the timer, the reset register.

ACPI specification 6.5, 4.8.3.
"""

from __future__ import annotations

import attrs

from emulator.hardware.part import Device

TIMER_FREQUENCY = 3_579_545  # hertz
_CONTROL, _TIMER = 4, 8
_ACPI_MODE, _SLEEP = 0x01, 0x2000
_RESET = 0x04


@attrs.define
class AcpiPm(Device):
    """Nothing ever happens here but time."""

    enabled: int = 0

    def read(self, offset: int, _size: int, /) -> int:
        """Return a register; the timer's has 24 bits."""
        if offset == _TIMER:
            return self.wires.clock.ticks(TIMER_FREQUENCY) & 0xFF_FFFF
        if offset == _CONTROL:
            return _ACPI_MODE
        return self.enabled if offset == 2 else 0

    def write(self, offset: int, _size: int, value: int, /) -> None:
        """Enable events, or sleep: any sleep is the end."""
        if offset == 2:
            self.enabled = value & 0xFFFF
        elif offset == _CONTROL and value & _SLEEP:
            self.wires.off()


@attrs.define
class Reset(Device):
    """The register that starts a PC anew: here it is the end."""

    def write(self, _offset: int, _size: int, value: int, /) -> None:
        """End."""
        if value & _RESET:
            self.wires.off()
