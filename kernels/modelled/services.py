# SPDX-License-Identifier: GPL-2.0-or-later
"""What the modelled kernel offers to the parts of it that it does not call itself by name.

These protocols lie below everything else, so that what reads structures or patches text needs
no kernel to be written, read and typed.
"""

from __future__ import annotations

from typing import Protocol

from allocator import KernelMemory
from archs import Arch
from archs.layouts import Layouts
from emulator.cpu import Cpu
from kernels.modelled.heap import Heap
from kernels.modelled.whose import Whose


class Words(Protocol):
    """Guest memory as kernel functions reach it, paid for word by word."""

    @property
    def arch(self) -> Arch:
        """The architecture."""
        ...

    @property
    def layouts(self) -> Layouts:
        """Where members of the kernel's structures lie."""
        ...

    @property
    def memory(self) -> KernelMemory:
        """The memory."""
        ...

    def word(self, address: int, size: int = 8) -> int:
        """Return the little-endian word of `size` bytes at `address`."""
        ...

    def store(self, address: int, value: int, size: int = 8) -> None:
        """Store the low `size` bytes of `value` at `address`."""
        ...

    def string(self, address: int, limit: int = 1 << 20) -> bytes:
        """Return the NUL-terminated string at `address`, without the NUL, at most `limit` bytes."""
        ...


class Services(Words, Protocol):
    """CPUs, tasks, symbols and objects of the kernel, beside its memory."""

    @property
    def cpus(self) -> tuple[Cpu, ...]:
        """All CPUs."""
        ...

    @property
    def cpu(self) -> Cpu:
        """The one that the kernel runs on now."""
        ...

    @property
    def current(self) -> int:
        """Address of the task that runs on this CPU."""
        ...

    @property
    def whose(self) -> Whose:
        """By whose structures it has to go."""
        ...

    @property
    def boot_tasks(self) -> tuple[int, ...]:
        """Each CPU's own task."""
        ...

    @property
    def heap(self) -> Heap:
        """The allocator behind kmalloc."""
        ...

    def address(self, name: str, *, called: bool = True) -> int:
        """Return the address of a kernel symbol; an unknown one gets something that stands in."""
        ...
