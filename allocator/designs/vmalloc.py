# SPDX-License-Identifier: GPL-2.0-or-later
"""`module_alloc` as it was: the allocator that the thread set out to replace.

Every allocation is a vmalloc area of its own, in the lowest gap of its range that fits:
text, data and rodata lie mixed, page beside page; before Linux 6.4 one area had them all.
It needs no text_poke, so it is the design that every architecture can run.

`vmalloc_else` is the `#else` of the patch that the thread quotes: without modules in the
configuration, EXEC_MEM_START was VMALLOC_START. Such text is mapped, finished and freed
like any other, and no PC-relative branch between it and the kernel can be encoded: the
module range is not a property of modules but of the instruction set.
"""

from __future__ import annotations

from collections.abc import Sequence

from allocator.designs.areas import Areas
from allocator.designs.base import Allocation, Context, Design, Request, Store
from allocator.types import Consumer, ExecmemRange, MemType


class Vmalloc(Design):
    """Page-granular areas with guard pages, first fit from the lowest address."""

    name = "vmalloc"
    mixes = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.areas = Areas(context.memory)

    def store(self, what: Request | Allocation) -> Store:  # noqa: ARG002 -- the protocol's
        """Return the only store."""
        return self.areas

    def stores(self) -> tuple[Store, ...]:
        """Return the only store."""
        return (self.areas,)

    def alloc_area(self, requests: Sequence[Request]) -> list[Allocation]:
        """Take one area for memory of several types (module_alloc before Linux 6.4)."""
        return self.areas.alloc_area(requests, self.places(requests[0]))


class VmallocElse(Vmalloc):
    """Text in the vmalloc range, out of the reach of what it calls: broken, to be shown so."""

    name = "vmalloc_else"

    def where(self, mem_type: MemType, consumer: Consumer) -> ExecmemRange:
        """Return the vmalloc range for text, the legal ranges for anything else."""
        if mem_type.is_text:
            return ExecmemRange(range=self.memory.address_map.vmalloc)
        return super().where(mem_type, consumer)
