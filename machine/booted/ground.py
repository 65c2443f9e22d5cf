# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a booted machine, for those who watch it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from emulator.blocks import Blocks
from emulator.faults import BadCall
from emulator.watching import Range
from kernels.booted.kernel import BootedKernel
from loader.elfview import ElfView
from loader.loaded import LoadedSection
from machine.booted.functions import Functions
from machine.booted.module import BootedModule


class BootedGround:
    """Memory that the kernel and its modules touch.

    Parameters
    ----------
    functions
        The kernel's functions.
    kernel
        The kernel.
    loaded
        The modules, by name.
    """

    order = "little"

    def __init__(
        self, kernel: BootedKernel, functions: Functions, loaded: Mapping[str, BootedModule]
    ) -> None:
        self._board, self.arch = kernel.board, kernel.arch
        self._functions, self._loaded = functions, loaded

    def frame(self, address: int) -> int | None:
        """Return the physical address of a virtual one; None where there is no memory."""
        physical = self._board.translate(address)
        ram = self._board.ram
        if physical is None or not ram.start <= physical < ram.start + ram.size:
            return None
        return physical

    def read(self, physical: int, size: int) -> bytes:
        """Return bytes of physical memory."""
        return self._board.ram.read(physical, size)

    def function(self) -> str:
        """Return nothing: all accesses are guest code's."""
        return ""

    def note_blocks(self, without: range) -> Sequence[Blocks]:
        """Note what is executed from now on; BadCall in the middle of code."""
        try:
            return (self._board.note_blocks(without),)
        except RuntimeError as error:
            raise BadCall("coverage", str(error), "begin before the call") from None

    def text(self) -> range:
        """Return the addresses of the kernel's own code."""
        return self._functions.text

    def modules(self) -> Mapping[str, tuple[ElfView, Mapping[int, LoadedSection]]]:
        """Return file and sections of the modules that are loaded, by name."""
        return {name: (each.view, each.sections) for name, each in self._loaded.items()}

    def attach(self, watched: Range) -> Callable[[], None]:
        """Let a range be told of accesses; BadCall in the middle of code that would not tell."""
        watching = self._board.watching
        if not watching.ready:
            raise BadCall("watch", "code that is under way would not tell", "begin before the call")
        watching.add(watched)
        return lambda: watching.remove(watched)
