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
from machine.memorytrace import refused, sections_of


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
        self._kernel, self._board, self.arch = kernel, kernel.board, kernel.arch
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

    def each_access(
        self, callback: Callable[[int, int, int, bytes | None], object]
    ) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """Return what begins, what pauses and what ends telling of every access."""
        guest = self._kernel.guest

        def told(pc: int, physical: int, size: int, data: bytes | None) -> None:
            if not guest.apart:  # what the machine calls for its own needs is nobody's
                callback(pc, physical, size, data)

        try:
            return self._board.watching.each(told, self.order)
        except RuntimeError as error:
            raise refused(error) from None

    def linear(self) -> int:
        """Return the address of physical 0 in the kernel's map of all memory.

        That is where its allocator gives memory of less than a page.
        """
        guest = self._kernel.guest
        with self._kernel.watched():
            address = guest.alloc(64)
            physical = self._board.translate(address)
            guest.free(address)
        assert physical is not None
        return address - physical

    def stack(self) -> int:
        """Return the stack pointer."""
        return self._board.sp

    def sections(self) -> Mapping[int, tuple[int, str]]:
        """Return address -> size and `module:section` of what is loaded."""
        return sections_of(self._loaded)

    def attach(self, watched: Range) -> Callable[[], None]:
        """Let a range be told of accesses; BadCall in the middle of code that would not tell."""
        watching = self._board.watching
        if not watching.ready:
            raise BadCall("watch", "code that is under way would not tell", "begin before the call")
        watching.add(watched)
        return lambda: watching.remove(watched)
