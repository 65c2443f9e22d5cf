# SPDX-License-Identifier: GPL-2.0-or-later
"""A PL011, as far as an early console goes: what is written is printed at once."""

from __future__ import annotations

import attrs

from emulator.hardware.part import Device

_DATA, _FLAGS = 0x00, 0x18
_EMPTY = 0x90  # FR: TXFE, RXFE


@attrs.define
class Pl011(Device):
    """A UART."""

    def read(self, offset: int, _size: int, /) -> int:
        """Return a register: nothing ever waits."""
        return _EMPTY if offset == _FLAGS else 0

    def write(self, offset: int, _size: int, value: int, /) -> None:
        """Print a character."""
        if offset == _DATA:
            self.wires.print(bytes((value & 0xFF,)))
