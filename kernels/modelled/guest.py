# SPDX-License-Identifier: GPL-2.0-or-later
"""A CPU that stands at a breakpoint, given to what does an instruction's work instead of it."""

from __future__ import annotations

import attrs

from allocator.types import ADDRESS_MASK
from emulator.cpu import Cpu
from kernels.modelled.services import Words


@attrs.frozen
class Guest:
    """The registers of a CPU and the memory of its kernel; see `archs.Guest`."""

    cpu: Cpu
    kernel: Words

    def read(self, name: str) -> int:
        """Return a register."""
        return self.cpu.read(name) & ADDRESS_MASK

    def write(self, name: str, value: int) -> None:
        """Set a register."""
        self.cpu.write(name, value)

    def load(self, address: int, size: int = 8) -> int:
        """Return the unsigned word of `size` bytes at `address`."""
        return self.kernel.word(address, size)

    def store(self, address: int, value: int, size: int = 8) -> None:
        """Store the low `size` bytes of `value` at `address`."""
        self.kernel.store(address, value, size)
