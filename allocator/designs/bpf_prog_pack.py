# SPDX-License-Identifier: GPL-2.0-or-later
"""The packs of BPF programs (kernel/bpf/core.c, 5.18), beside an otherwise unchanged kernel.

A program used to cost a page, a guard page and three protection changes. A pack is one
vmalloc area of 2 MiB, read-only and executable from birth and full of traps, in which
programs take chunks of 64 bytes; they are written by text_poke, and an empty pack is freed.
The kernel marks chunks in a bitmap and takes the first run that fits; the intervals here
answer that question alike, packs in address order. A program larger than a pack has pages
of its own; where there is no room for a whole pack, a smaller one is made (the kernel gives
up). The random hole that the JIT leaves before a program is the JIT's, not the pack's.

As merged, packs lie on 4 KiB pages; large ones were proposed and held back. Everybody else
(modules, kprobes, ftrace, thunks), and BPF where text cannot be poked, uses vmalloc.
"""

from __future__ import annotations

from allocator.designs.areas import Areas
from allocator.designs.base import Allocation, Context, Design, Request, Store
from allocator.designs.pool import Pool
from allocator.types import MIB, Consumer, Prot

CHUNK = 64  # BPF_PROG_CHUNK_SIZE
PACK = 2 * MIB  # BPF_PROG_PACK_SIZE of a node, however large a PMD entry's leaf is


class BpfProgPack(Design):
    """BPF text in shared packs, everything else in pages."""

    name = "bpf_prog_pack"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.areas = Areas(context.memory)
        self.packs = Pool(
            context.memory,
            CHUNK,
            Prot.RX,
            context.trap,
            poke=context.text_poke,
            large=False,
            guard=True,
        )

    def store(self, what: Request | Allocation) -> Store:
        """Return the packs for BPF text that fits one and can be poked."""
        packed = what.type.is_text and what.consumer is Consumer.BPF
        packed = packed and what.size <= PACK and self.context.text_poke is not None
        return self.packs if packed else self.areas

    def stores(self) -> tuple[Store, ...]:
        """Return the packs and the areas."""
        return self.packs, self.areas
