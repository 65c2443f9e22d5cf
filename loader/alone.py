# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules in memory without a kernel and without a CPU: all that can be had below the level run.

What no module exports gets an address of its own in the kernel image's range, so that distances
are as they would be; nothing stands there, and nothing can be called.
"""

from __future__ import annotations

from itertools import count

from allocator import Execmem, KernelMemory, PhysicalMemory
from allocator.designs import DesignLike
from allocator.types import GIB, Address, Interval, align_up
from archs import Arch, Checks
from loader.module import Loader
from loader.symbols import SymbolTable

SPACING = 64  # bytes between the addresses of two names
_AREA = 1 << 20  # bytes of per-cpu memory in the image, behind the names


class StandIns:
    """Addresses for names of a kernel that is not there (`loader.symbols.KernelSymbols`)."""

    def __init__(self, image: Interval) -> None:
        self._free = count(image.start, SPACING)
        self._addresses: dict[str, int] = {}

    def knows(self, name: str) -> bool:  # noqa: ARG002 # of nothing is known what it does
        """Return that nothing is implemented."""
        return False

    def address(self, name: str, *, called: bool = True) -> int:  # noqa: ARG002 # alike here
        """Return the address of a name, the next free one where it is new."""
        if name not in self._addresses:
            self._addresses[name] = next(self._free)
        return self._addresses[name]


def loader_for(
    arch: Arch,
    *,
    design: DesignLike = "default",
    checks: Checks = Checks.HARDWARE,
    errata: tuple[str, ...] = (),
    stub_sections: bool = False,
    kaslr: int | None = None,
    memory: int = GIB,
) -> Loader:
    """Return what loads modules of an architecture that has the level load.

    Raises
    ------
    LevelMissing
        It has not.
    """
    address_map = arch.loads.address_map(kaslr)
    execmem = Execmem(
        KernelMemory(PhysicalMemory(memory), address_map),
        trap=arch.loads.trap,
        text_poke=arch.text_poke,
        design=design,
    )
    free = address_map.image.end - _AREA

    def reserve(size: int, align: int) -> int:
        nonlocal free
        start = align_up(free, align)
        free = start + size
        return Address(start)

    return Loader(
        arch,
        execmem,
        SymbolTable(StandIns(address_map.image)),
        reserve,
        lambda _start: None,
        lambda _start, _contents: None,
        checks=checks,
        errata=errata,
        stub_sections=stub_sections,
    )
