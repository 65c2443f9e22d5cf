# SPDX-License-Identifier: GPL-2.0-or-later
"""A 16550A UART, as far as a polled console goes: what is written is printed at once.

Registers: Texas Instruments, TL16C550C data sheet, table 3. It raises no interrupt.
"""

from __future__ import annotations

import attrs

from emulator.hardware.part import Device

_DATA, _INTERRUPTS, _IDENTITY, _LINE, _MODEM, _LINE_STATUS, _MODEM_STATUS, _SCRATCH = range(8)
_DIVISOR = 0x80  # LCR: the first two registers are the divisor
_FIFO, _NO_INTERRUPT, _FIFO_WORKS = 0x01, 0x01, 0xC0
_EMPTY = 0x60  # LSR: THRE, TEMT
_LOOP, _CONNECTED = 0x10, 0xB0  # MCR; MSR: CTS, DSR, DCD
_OUTPUTS = ((0x02, 0x10), (0x01, 0x20), (0x04, 0x40), (0x08, 0x80))  # of MCR, looped into MSR


@attrs.define
class Ns16550(Device):
    """A UART."""

    interrupts: int = 0
    fifo: int = 0
    line: int = 0
    modem: int = 0
    scratch: int = 0
    divisor: int = 1

    def read(self, offset: int, _size: int, /) -> int:
        """Return a register: nothing was received, everything was sent."""
        if offset <= _INTERRUPTS and self.line & _DIVISOR:
            return self.divisor >> 8 * offset & 0xFF
        if offset == _IDENTITY:
            return _NO_INTERRUPT | (_FIFO_WORKS if self.fifo & _FIFO else 0)
        if offset == _MODEM_STATUS:
            if not self.modem & _LOOP:
                return _CONNECTED
            return sum(seen for output, seen in _OUTPUTS if self.modem & output)
        return {
            _INTERRUPTS: self.interrupts,
            _LINE: self.line,
            _MODEM: self.modem,
            _LINE_STATUS: _EMPTY,
            _SCRATCH: self.scratch,
        }.get(offset, 0)

    def write(self, offset: int, _size: int, value: int, /) -> None:
        """Set a register, or print a character."""
        value &= 0xFF
        if offset <= _INTERRUPTS and self.line & _DIVISOR:
            shift = 8 * offset
            self.divisor = self.divisor & ~(0xFF << shift) | value << shift
        elif offset == _DATA:
            if not self.modem & _LOOP:
                self.wires.print(bytes((value,)))
        elif offset == _INTERRUPTS:
            self.interrupts = value & 0x0F
        elif offset == _IDENTITY:
            self.fifo = value
        elif offset == _LINE:
            self.line = value
        elif offset == _MODEM:
            self.modem = value & 0x1F
        elif offset == _SCRATCH:
            self.scratch = value
