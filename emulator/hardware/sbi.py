# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware of a RISC-V computer: the Supervisor Binary Interface, as far as Linux needs it.

Source: RISC-V SBI specification 2.0. There is one hart, so what concerns others alone (RFENCE,
HSM) is not supported, and neither is any extension that is not named here; it may interrupt itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from emulator.clock import nanoseconds
from emulator.hardware.part import Wires
from emulator.ram import Ram

_MASK = (1 << 64) - 1
_SUCCESS, _FAILED, _NOT_SUPPORTED, _INVALID_PARAM = 0, -1, -2, -3

_BASE, _TIME, _DEBUG_CONSOLE, _RESET = 0x10, 0x5449_4D45, 0x4442_434E, 0x5352_5354
_INTERRUPT = 0x73_5049
_PROBED = (_BASE, _TIME, _INTERRUPT, _DEBUG_CONSOLE, _RESET)
# Base: version of the specification, of the implementation; of the CPU: vendor and so on.
_SPEC_VERSION, _IMPL_ID, _IMPL_VERSION, _PROBE, _VENDOR, _ARCHITECTURE, _IMPLEMENTATION = range(7)
_VERSION_2_0 = 2 << 24
_NOBODY = 0xFFFF  # an implementation without a registered number
_SET_TIMER = _SEND = 0
_WRITE, _READ, _WRITE_BYTE = 0, 1, 2
_SYSTEM_RESET = 0
_RESET_TYPES, _RESET_REASONS = range(3), range(2)
_VENDORS_OWN = 0xF000_0000  # types and reasons from here on belong to implementations

# The legacy extensions, which are their own numbers and return no second value.
_LEGACY = range(0x10)
_LEGACY_SET_TIMER, _LEGACY_PUT, _LEGACY_GET, _LEGACY_SHUTDOWN = 0, 1, 2, 8
_LONGEST_WRITE = 1 << 20  # bytes of one call; the rest is for the next


@attrs.define
class Sbi:
    """Firmware.

    Parameters
    ----------
    wires
        The console, and the clock.
    ram
        Memory, where a guest keeps what it prints.
    frequency
        Hertz of the counter `time`.
    timer
        Guest time at which the timer's interrupt is to be raised; None: never.
    """

    wires: Wires
    ram: Ram
    frequency: int
    timer: int | None = None
    sent: bool = False  # whether the hart has interrupted itself, and was not told yet

    def call(self, extension: int, function: int, arguments: Sequence[int]) -> tuple[int, ...]:
        """Return what a call gives: an error and a value, or the one value of a legacy call.

        Parameters
        ----------
        extension, function
            What `a7` and `a6` hold.
        arguments
            What `a0` and the next hold, three at least.
        """
        if extension in _LEGACY:
            return (self._legacy(extension, arguments) & _MASK,)
        error, value = self._extension(extension, function, arguments)
        return error & _MASK, value & _MASK

    def _extension(self, extension: int, function: int, given: Sequence[int]) -> tuple[int, int]:
        if extension == _BASE:
            return self._base(function, given[0])
        if extension == _TIME and function == _SET_TIMER:
            self._set_timer(given[0])
            return _SUCCESS, 0
        if extension == _INTERRUPT and function == _SEND:
            return self._send(*given[:2])
        if extension == _DEBUG_CONSOLE:
            return self._debug_console(function, given)
        if extension == _RESET and function == _SYSTEM_RESET:
            kind, reason = (value & 0xFFFF_FFFF for value in given[:2])
            if kind not in _RESET_TYPES and kind < _VENDORS_OWN:
                return _INVALID_PARAM, 0
            if kind not in _RESET_TYPES:
                return _NOT_SUPPORTED, 0
            if reason not in _RESET_REASONS and reason < _VENDORS_OWN:
                return _INVALID_PARAM, 0
            self.wires.off()
            return _FAILED, 0  # it never gets there
        return _NOT_SUPPORTED, 0

    def _base(self, function: int, given: int) -> tuple[int, int]:
        answers = {
            _SPEC_VERSION: _VERSION_2_0,
            _IMPL_ID: _NOBODY,
            _IMPL_VERSION: 0,
            _PROBE: int(given in _PROBED or given in _SERVED),
            _VENDOR: 0,
            _ARCHITECTURE: 0,
            _IMPLEMENTATION: 0,
        }
        if function not in answers:
            return _NOT_SUPPORTED, 0
        return _SUCCESS, answers[function]

    def _send(self, harts: int, first: int) -> tuple[int, int]:
        """Interrupt the harts of a set of bits, the lowest being of `first`; of all, if that is -1."""
        if first == _MASK:
            self.sent = True
        elif first or harts >> 1:  # somebody who is not there
            return _INVALID_PARAM, 0
        else:
            self.sent = self.sent or bool(harts & 1)
        return _SUCCESS, 0

    def _debug_console(self, function: int, given: Sequence[int]) -> tuple[int, int]:
        if function == _WRITE_BYTE:
            self.wires.print(bytes((given[0] & 0xFF,)))
            return _SUCCESS, 0
        if function not in (_WRITE, _READ):
            return _NOT_SUPPORTED, 0
        size, low, high = given[:3]
        taken = min(size, _LONGEST_WRITE)
        if high:
            return _INVALID_PARAM, 0
        try:
            data = self.ram.read(low, taken)
        except IndexError:
            return _INVALID_PARAM, 0
        if function == _READ:  # nobody types
            return _SUCCESS, 0
        self.wires.print(data)
        return _SUCCESS, taken

    def _legacy(self, number: int, given: Sequence[int]) -> int:
        if number == _LEGACY_SET_TIMER:
            self._set_timer(given[0])
        elif number == _LEGACY_PUT:
            self.wires.print(bytes((given[0] & 0xFF,)))
        elif number == _LEGACY_GET:
            return _FAILED  # nobody types
        elif number == _LEGACY_SHUTDOWN:
            self.wires.off()
        else:
            return _NOT_SUPPORTED
        return _SUCCESS

    def _set_timer(self, ticks: int) -> None:
        """Set when the timer fires, for ever away being never; until then it does not."""
        self.wires.pending.clear()
        self.timer = None if ticks == _MASK else nanoseconds(ticks, self.frequency)


_SERVED = (_LEGACY_SET_TIMER, _LEGACY_PUT, _LEGACY_GET, _LEGACY_SHUTDOWN)
