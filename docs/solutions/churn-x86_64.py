# task = "churn"
# arch = "x86_64"
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools of 2 MiB for text, rodata and data; ro_after_init in pages, as each is sealed alone."""

from allocator.designs import Design
from allocator.designs.pool import Pool
from allocator.types import MemType, Prot


class Mine(Design):
    """A pool for each protection."""

    name = "mine"

    def __init__(self, context):
        super().__init__(context)
        memory, poke = context.memory, context.text_poke
        fine = 64 if poke else memory.page_size
        self.pools = {
            Prot.RX: Pool(memory, fine, Prot.RX, context.trap, poke=poke),
            Prot.R: Pool(memory, fine, Prot.R, b"\0", poke=poke),
            Prot.RW: Pool(memory, 64, Prot.RW, b"\0"),
        }
        self.sealed = Pool(memory, memory.page_size, Prot.RW, b"\0", large=False)

    def store(self, what):
        if what.type is MemType.RO_AFTER_INIT:
            return self.sealed
        return self.pools[what.type.final_prot]

    def stores(self):
        return (*self.pools.values(), self.sealed)
