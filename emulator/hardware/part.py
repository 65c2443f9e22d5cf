# SPDX-License-Identifier: GPL-2.0-or-later
"""What a piece of hardware is to the computer that it is part of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from emulator.clock import Clock


@attrs.define
class Wires:
    """What connects the parts of a computer.

    Parameters
    ----------
    clock
        Its time.
    console
        What was printed.
    kept
        Bytes of it that nobody took back since it was read; who reads it sets that.
    pending
        Numbers of the interrupts that were raised and nobody has acknowledged.
    on_console
        Called with what is printed.
    on_off
        Called where the guest switches the computer off, or starts it again.
    """

    clock: Clock = attrs.field(factory=Clock)
    console: bytearray = attrs.field(factory=bytearray)
    kept: int = 0
    pending: list[int] = attrs.field(factory=list)
    on_console: Callable[[bytes], object] | None = None
    on_off: Callable[[], object] | None = None

    def print(self, data: bytes) -> None:
        """Let the guest print something."""
        self.console += data
        if self.on_console is not None:
            self.on_console(data)

    def off(self) -> None:
        """Let the guest switch the computer off."""
        if self.on_off is not None:
            self.on_off()


@attrs.define
class Device:
    """Something that answers at addresses; what its fields hold is plain data, to be saved.

    Parameters
    ----------
    wires
        What connects it to the rest.
    """

    wires: Wires = attrs.field(repr=False)

    def read(self, _offset: int, _size: int, /) -> int:
        """Return what a load of some bytes at an offset finds."""
        return 0

    def write(self, _offset: int, _size: int, _value: int, /) -> None:
        """Take what a store of some bytes at an offset brings."""

    def state(self) -> dict[str, Any]:
        """Return what it remembers."""
        return {
            field.name: getattr(self, field.name)
            for field in attrs.fields(type(self))
            if field.name != "wires"
        }

    def set_state(self, values: Mapping[str, Any]) -> None:
        """Remember that instead."""
        for name, value in values.items():
            setattr(self, name, value)
