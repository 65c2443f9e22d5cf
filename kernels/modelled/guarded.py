# SPDX-License-Identifier: GPL-2.0-or-later
"""kmalloc objects with guard pages: in the direct map, whose pages behind them are not mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from allocator import AllocationError, KernelMemory
from allocator.types import Interval, Prot, align_up
from kernels.findings import FindingKind
from kernels.guarding import WORD, Pool, PoolState, Wrong
from kernels.modelled.kasan import ALLOCATORS, Origin


class GuardedObjects:
    """Objects at the ends of pages.

    Parameters
    ----------
    memory
        Where pages come from.
    origin
        Returns who is allocating or freeing.
    wrong
        Told of what is wrong with a free, and of its address; it may stop the guest.

    Raises
    ------
    AllocationError
        There is no memory for them.
    """

    def __init__(
        self,
        memory: KernelMemory,
        origin: Callable[[], Origin],
        wrong: Callable[[Wrong, int], object],
    ) -> None:
        self._memory, self._origin, self._wrong = memory, origin, wrong
        page = memory.page_size
        order = (align_up(Pool.size_of(page), page) // page - 1).bit_length()
        if order > memory.paging.large_order:
            raise AllocationError("guarded objects", page << order, (), "more than a large page")
        self._start = memory.alloc_pages(order)
        self.pool = Pool(self, self._start, page)
        for slot in self.pool.slots:
            memory.page_table.protect(slot.end, slot.guard, Prot.NONE)
        memory.flush_tlb(Interval(self._start, self.pool.end))

    def end(self) -> None:
        """Let all of it be memory as any other; it stays where it is, as objects may be in it."""
        size = self.pool.end - self._start
        self._memory.page_table.protect(self._start, size, Prot.RW)
        self._memory.flush_tlb(Interval(self._start, self.pool.end))

    # What a heap asks -------------------------------------------------------------------------------

    def __contains__(self, address: int) -> bool:
        return address in self.pool

    def alloc(self, size: int, *, zero: bool) -> int | None:
        """Return the address of an object; None where no slot is large enough or free."""
        made = self._origin()
        whose = made.module if made.function.startswith(tuple(ALLOCATORS)) else ""
        align = WORD if made.function else 1
        return self.pool.alloc(size, whose, lambda: (made.place,), align=align, zero=zero)

    def free(self, address: int) -> bool:
        """Free the object at an address; what is wrong with that is told, if a guest did it."""
        made = self._origin()
        held = self.pool.at(address)
        if not made.function and (held is None or held.freed is not None):
            return False
        wrong = self.pool.free(address, lambda: (made.place,))
        if wrong is not None:
            self._wrong(wrong, address)
        return wrong is None or wrong.kind is FindingKind.OVERWRITTEN

    def size(self, address: int) -> int:
        """Return the bytes of an object; 0 where none begins at an address. A freed one is told of."""
        held = self.pool.at(address)
        if held is not None and held.freed is not None and self._origin().function:
            told = held.told()
            self._wrong(Wrong(FindingKind.DOUBLE_FREE, f"already freed: {told}", told), address)
        return self.pool.size(address)

    def live(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of those that are not freed."""
        for held in self.pool.live():
            yield held.address, held.size

    def state(self) -> PoolState:
        """Return what is held, for `set_state`."""
        return self.pool.state()

    def set_state(self, state: PoolState) -> None:
        """Hold what was held then."""
        self.pool.set_state(state)

    # What the pool asks -----------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Return bytes."""
        at = address - self._memory.direct_map.start
        return bytes(self._memory.physical.view[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        """Store bytes."""
        at = address - self._memory.direct_map.start
        self._memory.physical.view[at : at + len(data)] = data

    def close(self, address: int, size: int) -> None:
        """Let nobody touch them."""
        self._memory.page_table.protect(address, size, Prot.NONE)
        self._memory.flush_tlb(Interval(address, address + size))

    def open(self, address: int, size: int) -> None:
        """Let them be touched again; nobody has looked them up while they were closed."""
        self._memory.page_table.protect(address, size, Prot.RW)
