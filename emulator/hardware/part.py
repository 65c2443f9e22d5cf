# SPDX-License-Identifier: GPL-2.0-or-later
"""What a piece of hardware is to the computer that it is part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs

from emulator.clock import Clock


class Device(Protocol):
    """Something that answers at addresses; its state is plain data, so that it can be saved."""

    def read(self, offset: int, size: int) -> int:
        """Return what a load of `size` bytes finds."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Take what a store of `size` bytes brings."""
        ...


@attrs.define
class Wires:
    """What connects the parts of a computer.

    Parameters
    ----------
    clock
        Its time.
    console
        What was printed.
    pending
        Numbers of the interrupts that were raised and nobody has acknowledged.
    on_console
        Called with what is printed.
    """

    clock: Clock = attrs.field(factory=Clock)
    console: bytearray = attrs.field(factory=bytearray)
    pending: list[int] = attrs.field(factory=list)
    on_console: Callable[[bytes], object] | None = None

    def print(self, data: bytes) -> None:
        """Let the guest print something."""
        self.console += data
        if self.on_console is not None:
            self.on_console(data)
