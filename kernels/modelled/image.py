# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the kernel image that exist: code, stubs and variables.

The image lies where the architecture's kernel lies, so that reach is what it would be.
"""

from __future__ import annotations

from allocator import AllocationError, KernelMemory, Prot
from allocator.types import MIB, Interval, align_up
from archs import Arch

SLOT = 64  # bytes of a stub: room to tell which unknown variable a field belongs to
PART = 2 * MIB
CODE, STUBS, VARIABLES, NEEDED = (n * PART for n in range(4))
RETURN_SLOT = 4 * SLOT  # not at the start of a page: Unicorn would look at the page before


class ImageParts:
    """Where the kernel image lies, and what is in it.

    Parameters
    ----------
    arch, memory
        What it is made for, and in.

    `interval` is all of it, `stubs` (execute-only) and `variables` are parts.
    """

    def __init__(self, arch: Arch, memory: KernelMemory) -> None:
        self._memory = memory
        self.interval = memory.address_map.image
        if self.interval.size < NEEDED:
            raise ValueError(f"a kernel image needs {NEEDED:#x} bytes for stubs and variables")
        start = self.interval.start
        self.stubs = Interval(start + STUBS, start + VARIABLES)
        self.variables = Interval(start + VARIABLES, start + NEEDED)
        for offset, prot in ((CODE, Prot.RX), (STUBS, Prot.X), (VARIABLES, Prot.RW)):
            frames = memory.physical.alloc_run((PART // memory.page_size - 1).bit_length())
            if frames is None:
                reason = "no contiguous physical memory"
                raise AllocationError("the kernel image", PART, (), reason)
            fill = arch.loads.trap if prot & Prot.X else b"\0"
            memory.physical.fill(frames, PART, fill)
            memory.page_table.map_contiguous(start + offset, frames, prot, size=PART)
            if prot & Prot.X:
                # As mark_rodata_ro(): no writable alias of kernel text in the direct map.
                alias = memory.direct_map.start + frames
                memory.page_table.change(alias, PART, off=Prot.W)
        self._code_end = start + RETURN_SLOT + SLOT

    def code(self, code: bytes) -> int:
        """Return the address of guest code, put behind what there is."""
        address = self._code_end
        self.write(address, code)
        self._code_end += align_up(max(len(code), 1), SLOT)
        return address

    def write(self, address: int, code: bytes) -> None:
        """Store text, whatever its protection."""
        found = self._memory.translate(address)
        assert found is not None
        self._memory.physical.write(found.address, code)
