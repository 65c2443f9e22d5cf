# SPDX-License-Identifier: GPL-2.0-or-later
"""Song Liu's three trees: free areas of mapped memory, one tree per kind, 2 MiB at a time.

Text lives in chunks that are read-only and executable from birth and full of trap
instructions; rodata in chunks that are read-only from birth; data in writable ones. Many
areas share a chunk, so one large leaf serves many modules and its direct-map alias is
split once, not once per page. Init types share the tree of their kind, and the holes they
leave are taken by whatever comes next.

    tree           chunk    granule  written by            unused memory holds
    text           R-X 2M   64 B     text_poke             the trap pattern
    rodata         R-- 2M   64 B     text_poke             zero
    data           RW- 2M   64 B     plain stores          anything; zeroed when taken
    ro_after_init  RW- 4K   4 KiB    plain stores          anything; zeroed when taken

RO_AFTER_INIT is sealed at another time than anything else, one module after the other. It
stays apart from rodata, in whole pages under small leaves, so that sealing one allocation
neither splits a large leaf nor touches a neighbour.

Without text_poke, text and rodata are page granular, and a slice is taken out of its large
leaf to be written: not executable, then writable; at the end read-only (and executable)
again, and the leaf collapses when the whole of it agrees (the upstream cache since 6.15).

The trees are shared by all consumers; a search is confined to the range of its own class,
so a tree may hold chunks of several ranges. Alignments of a page and above in the range's
row are those of page-granular vmalloc; here the granule and the request's alignment rule.
"""

from __future__ import annotations

from allocator.designs.base import Allocation, Context, Design, Request, Store
from allocator.designs.pool import Pool
from allocator.types import MemType, Prot

# Cache-line sized areas: neighbours share no line, and the largest section alignment that
# modules commonly use is honoured for free.
GRANULE = 64


class PerType(Design):
    """Free areas per type, refilled in 2 MiB chunks, several areas in one chunk."""

    name = "per_type"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        memory, poke = context.memory, context.text_poke
        page = memory.page_size
        written = GRANULE if poke else page
        runs = poke is not None or memory.page_table.live_splits
        self.text = Pool(memory, written, Prot.RX, context.trap, poke=poke, runs=runs)
        self.rodata = Pool(memory, written, Prot.R, b"\0", poke=poke, runs=runs)
        self.data = Pool(memory, GRANULE, Prot.RW, b"\0", runs=True)
        self.ro_after_init = Pool(memory, page, Prot.RW, b"\0", large=False)

    def store(self, what: Request | Allocation) -> Store:
        """Return the tree of the type; all consumers share it."""
        if what.type is MemType.RO_AFTER_INIT:
            return self.ro_after_init
        return {Prot.RX: self.text, Prot.R: self.rodata, Prot.RW: self.data}[what.type.final_prot]

    def stores(self) -> tuple[Store, ...]:
        """Return the four trees."""
        return self.text, self.rodata, self.data, self.ro_after_init
