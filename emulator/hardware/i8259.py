# SPDX-License-Identifier: GPL-2.0-or-later
"""An 8259 interrupt controller (Intel 8259A data sheet), edge triggered, fixed priorities."""

from __future__ import annotations

import attrs

from emulator.hardware.part import Device

_COMMAND = 0
_ICW1, _NEEDS_ICW4, _SINGLE = 0x10, 0x01, 0x02
_AUTOMATIC_END = 0x02  # ICW4
_OCW3, _READ, _IN_SERVICE = 0x08, 0x02, 0x01
_END, _SPECIFIC = 0x20, 0x40  # OCW2
_LEVELS = 0x07


@attrs.define
class I8259(Device):
    """A controller of eight lines."""

    mask: int = 0xFF
    requested: int = 0
    serving: int = 0
    base: int = 0  # vector of line 0
    automatic: bool = False  # an interrupt ends as it is acknowledged
    shows_serving: bool = False
    wanted: tuple[int, ...] = ()  # initialisation words that are still to come

    def read(self, offset: int, _size: int, /) -> int:
        """Return the mask, or what is requested or served."""
        if offset != _COMMAND:
            return self.mask
        return self.serving if self.shows_serving else self.requested

    def write(self, offset: int, _size: int, value: int, /) -> None:
        """Take a command, the mask, or a word of the initialisation."""
        value &= 0xFF
        if offset != _COMMAND:
            self._data(value)
        elif value & _ICW1:
            self.mask = self.requested = self.serving = 0
            self.automatic = self.shows_serving = False
            words = (2, 3, 4)
            left_out = {3: value & _SINGLE, 4: not value & _NEEDS_ICW4}
            self.wanted = tuple(word for word in words if not left_out.get(word))
        elif value & _OCW3:
            if value & _READ:
                self.shows_serving = bool(value & _IN_SERVICE)
        elif value & _END:
            line = value & _LEVELS if value & _SPECIFIC else _lowest(self.serving)
            if line is not None:
                self.serving &= ~(1 << line)

    def _data(self, value: int) -> None:
        if not self.wanted:
            self.mask = value
            return
        word, *left = self.wanted
        self.wanted = tuple(left)
        if word == 2:
            self.base = value & ~_LEVELS
        elif word == 4:
            self.automatic = bool(value & _AUTOMATIC_END)

    def ready(self, line: int) -> bool:
        """Return whether an interrupt at a line would reach the CPU."""
        if self.wanted or self.mask >> line & 1:
            return False
        serving = _lowest(self.serving)
        return serving is None or line < serving

    def acknowledge(self, line: int) -> int:
        """Return the vector of an interrupt at a line that the CPU takes."""
        self.requested &= ~(1 << line)
        if not self.automatic:
            self.serving |= 1 << line
        return self.base + line


def _lowest(bits: int) -> int | None:
    return (bits & -bits).bit_length() - 1 if bits else None
