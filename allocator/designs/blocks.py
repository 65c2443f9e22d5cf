# SPDX-License-Identifier: GPL-2.0-or-later
"""Thomas Gleixner's fixed blocks: each range cut once, by kind of memory.

    two_block    | text 1/2          | everything else 1/2      |
    three_block  | text 1/2          | data 1/4   | rodata 1/4  |

The shares are those of all modules of a distribution (Debian 6.12: text is 49 to 60 per
cent of what stays, data 14 to 18, rodata with ro_after_init 23 to 37), rounded to what is
easily said. A boundary lies on that of a large leaf (2 MiB), where the range is long enough.

Text, and in three_block data, are taken from chunks with large leaves. What holds memory
that is read-only at different times stays in pages: all of the second block of two,
because data and rodata mix there; the rodata block of three, because ro_after_init is
sealed later than its neighbours. The price of fixed blocks is that one of them is full
while the others are empty, and the error says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

from allocator.designs.areas import Areas
from allocator.designs.base import Allocation, Context, Design, Request, Store
from allocator.designs.per_type import GRANULE
from allocator.designs.pool import Pool
from allocator.errors import AllocationError
from allocator.types import (
    Consumer,
    ExecmemRange,
    Interval,
    MemType,
    Prot,
    align_down,
)


class _Blocks(Design):
    """Blocks of fixed shares, lowest first."""

    shares: ClassVar[Mapping[str, Fraction]]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        poke = context.text_poke
        written = GRANULE if poke else context.memory.page_size
        self.blocks: dict[str, Store] = {
            "text": Pool(context.memory, written, Prot.RX, context.trap, poke=poke),
        }

    def block(self, mem_type: MemType) -> str:
        """Return the name of the block that holds a type."""
        if mem_type.is_text:
            return "text"
        rodata = mem_type.final_prot is Prot.R and "rodata" in self.shares
        return "rodata" if rodata else "data"

    def where(self, mem_type: MemType, consumer: Consumer) -> ExecmemRange:
        """Return the block of the type in each of its legal ranges."""
        legal = super().where(mem_type, consumer)
        name = self.block(mem_type)
        return ExecmemRange(
            range=self._cut(legal.range, name),
            fallback=None if legal.fallback is None else self._cut(legal.fallback, name),
            alignment=legal.alignment,
        )

    def store(self, what: Request | Allocation) -> Store:
        """Return the store of the type's block."""
        return self.blocks[self.block(what.type)]

    def stores(self) -> tuple[Store, ...]:
        """Return the stores of the blocks."""
        return tuple(self.blocks.values())

    def alloc(self, request: Request) -> Allocation:
        """Take memory from the type's block; AllocationError names the block that is full."""
        try:
            return super().alloc(request)
        except AllocationError as error:
            if error.ranges:  # address space, not frames
                name = self.block(request.type)
                error.reason = f"the {name} block is full: {error.reason}"
            raise

    def _cut(self, whole: Interval, name: str) -> Interval:
        done = Fraction(0)
        for block, share in self.shares.items():
            if block == name:
                return Interval(self._at(whole, done), self._at(whole, done + share))
            done += share
        raise KeyError(name)

    def _at(self, whole: Interval, share: Fraction) -> int:
        if share in (0, 1):
            return whole.end if share else whole.start
        cut = whole.start + int(whole.size * share)
        large = self.memory.large_size
        return align_down(cut, large if whole.size >= 16 * large else self.memory.page_size)


class TwoBlock(_Blocks):
    """Text in large leaves, everything else in pages, half a range each."""

    name = "two_block"
    shares: ClassVar[Mapping[str, Fraction]] = {"text": Fraction(1, 2), "data": Fraction(1, 2)}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.blocks["data"] = Areas(context.memory)


class ThreeBlock(_Blocks):
    """Text and data in large leaves, rodata in pages; a half and two quarters."""

    name = "three_block"
    shares: ClassVar[Mapping[str, Fraction]] = {
        "text": Fraction(1, 2),
        "data": Fraction(1, 4),
        "rodata": Fraction(1, 4),
    }

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.blocks["data"] = Pool(context.memory, GRANULE, Prot.RW, b"\0")
        self.blocks["rodata"] = Areas(context.memory)
