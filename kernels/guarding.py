# SPDX-License-Identifier: GPL-2.0-or-later
"""Heap objects that end where a page ends, with pages behind them that nobody may touch.

What an object is put into is a slot: some pages and a guard. An access that goes one byte past the
object stops at its instruction, and costs nothing before; so does one to a freed object, whose pages
are closed until the slot is used again, which is as late as possible (a quarantine). Alignment may
leave bytes between object and guard: these and some before the object are red zones, looked at when
it is freed. As mm/kfence/ does, but for each object, and by closing memory and not changing page tables.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Protocol

import attrs

from kernels.findings import FindingKind, HeapObject, Site

RED_ZONE = 64  # bytes before an object that are looked at
RED = 0xBB  # what stands in a red zone (include/linux/poison.h, SLUB_RED_INACTIVE)
FRESH = 0x5A  # and in objects that nobody asked to be zeroed (POISON_INUSE)
WORD = 8  # what objects are aligned to at least (ARCH_SLAB_MINALIGN)
# How many slots of how many pages a pool has: most objects fit in a page. Each begins at a multiple
# of its size and has as many pages for a guard, as powers of two are aligned to themselves.
SHAPE = ((1, 48), (2, 6), (4, 3), (16, 1))


class Pages(Protocol):
    """The memory that slots are made of."""

    def read(self, address: int, size: int, /) -> bytes:
        """Return bytes, whether closed or not."""
        ...

    def write(self, address: int, data: bytes, /) -> None:
        """Store bytes, whether closed or not."""
        ...

    def close(self, address: int, size: int, /) -> None:
        """Let nobody touch them."""
        ...

    def open(self, address: int, size: int, /) -> None:
        """Let them be touched again."""
        ...


@attrs.frozen(eq=False)
class Held:
    """An object in a slot.

    Parameters
    ----------
    address, size
        Where it is, and the bytes that were asked for.
    whose
        The module that asked for it.
    allocated, freed
        Who did it; None: nobody did.
    """

    address: int
    size: int
    whose: str
    allocated: Site
    freed: Site | None = None

    def told(self) -> HeapObject:
        """Return it with names."""
        freed = () if self.freed is None else self.freed()
        return HeapObject(self.address, self.size, self.allocated(), freed)


@attrs.frozen(eq=False)
class Slot:
    """Pages for one object, and a guard behind them: [start, end) and [end, end + guard)."""

    start: int
    end: int
    guard: int


@attrs.frozen(eq=False)
class Wrong:
    """What is wrong with an access or a free.

    Parameters
    ----------
    kind, reason
        What, and in words.
    object
        The object that it is about; None: none is near.
    """

    kind: FindingKind
    reason: str
    object: HeapObject | None = None


@attrs.frozen(eq=False)
class PoolState:
    """What a pool holds, as plain data.

    Parameters
    ----------
    held
        The object of each slot that has one, freed ones included.
    free
        Slots without, by pages; the first is used next.
    resting
        Slots with a freed object, by pages, the longest freed first.
    unguarded
        Objects that found no slot.
    """

    held: dict[Slot, Held]
    free: dict[int, tuple[Slot, ...]]
    resting: dict[int, tuple[Slot, ...]]
    unguarded: int


class Pool:
    """Slots for objects.

    Parameters
    ----------
    pages
        The memory.
    start, page
        Where it begins, at a multiple of the largest slot, and the bytes of a page.
    shape
        Pairs: pages of a slot, and how many there are of it.
    """

    def __init__(
        self,
        pages: Pages,
        start: int,
        page: int,
        shape: tuple[tuple[int, int], ...] = SHAPE,
    ) -> None:
        self._pages, self.page = pages, page
        self.slots: list[Slot] = []
        self._free: dict[int, deque[Slot]] = {}
        self._resting: dict[int, deque[Slot]] = {}
        self._held: dict[Slot, Held] = {}
        self.unguarded = 0
        at = start
        for count, _ in sorted(shape):
            self._free[count * page], self._resting[count * page] = deque(), deque()
        for count, number in sorted(shape, reverse=True):
            size = count * page
            for _ in range(number):
                slot = Slot(at, at + size, size)
                self.slots.append(slot)
                self._free[size].append(slot)
                at += 2 * size
        self.start, self.end = start, at
        self._starts = [slot.start for slot in self.slots]

    @staticmethod
    def size_of(page: int, shape: tuple[tuple[int, int], ...] = SHAPE) -> int:
        """Return the bytes that a pool takes."""
        return sum(2 * count * number for count, number in shape) * page

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def live(self, whose: str | None = None) -> list[Held]:
        """Return the objects that are not freed, of one module or of all."""
        return [
            held
            for held in self._held.values()
            if held.freed is None and (whose is None or held.whose == whose)
        ]

    # Allocating and freeing -----------------------------------------------------------------------

    def alloc(
        self, size: int, whose: str, site: Site, *, align: int = WORD, zero: bool = False
    ) -> int | None:
        """Return the address of an object; None where no slot is large enough or free.

        `align` is what the allocator promises; 1 lets each object end at its guard, and still be
        aligned as any C type of its size needs.
        """
        slot = self._take(size)
        if slot is None:
            self.unguarded += 1
            return None
        address = (slot.end - size) & -align
        before = min(RED_ZONE, address - slot.start)
        contents = bytes(size) if zero else bytes((FRESH,)) * size
        behind = slot.end - address - size
        red = bytes((RED,))
        self._pages.write(address - before, red * before + contents + red * behind)
        self._held[slot] = Held(address, size, whose, site)
        return address

    def _take(self, size: int) -> Slot | None:
        for room, free in self._free.items():
            if size <= room:
                if free:
                    return free.popleft()
                if self._resting[room]:
                    slot = self._resting[room].popleft()
                    self._pages.open(slot.start, room)
                    return slot
        return None

    def free(self, address: int, site: Site) -> Wrong | None:
        """Free the object at an address that lies in the pool; what is wrong with that, if anything."""
        slot = self._slot(address)
        held = None if slot is None else self._held.get(slot)
        if slot is None or held is None:
            return Wrong(FindingKind.BAD_FREE, "free of memory that no object lies in")
        if held.freed is not None:
            return Wrong(FindingKind.DOUBLE_FREE, f"already freed: {held.told()}", held.told())
        if address != held.address:
            how = f"free of {address - held.address} bytes into"
            return Wrong(FindingKind.BAD_FREE, f"{how} {held.told()}", held.told())
        wrong = self.overwritten(held)
        self._held[slot] = attrs.evolve(held, freed=site)
        room = slot.end - slot.start
        self._resting[room].append(slot)
        self._pages.close(slot.start, room)
        return wrong

    def size(self, address: int) -> int:
        """Return the bytes of a live object; 0 where none begins at an address."""
        found = self.at(address)
        return found.size if found is not None and found.freed is None else 0

    def at(self, address: int) -> Held | None:
        """Return the object that begins at an address, freed or not."""
        slot = self._slot(address)
        held = None if slot is None else self._held.get(slot)
        return held if held is not None and held.address == address else None

    # What is wrong --------------------------------------------------------------------------------

    def overwritten(self, held: Held) -> Wrong | None:
        """Return what is wrong with the red zones of an object, if anything."""
        slot = self._slot(held.address)
        assert slot is not None
        before = min(RED_ZONE, held.address - slot.start)
        end = held.address + held.size
        for start, size in ((held.address - before, before), (end, slot.end - end)):
            found = self._pages.read(start, size) if size else b""
            left = found.lstrip(bytes((RED,)))
            if left:
                at = start + size - len(left)
                told = held.told()
                return Wrong(FindingKind.OVERWRITTEN, f"written {_away(at, held)} {told}", told)
        return None

    def blame(self, address: int, size: int, *, write: bool) -> Wrong | None:
        """Return what is wrong with an access that may not be; None where it is none of ours.

        `size` is 0 where that is not known.
        """
        if address not in self:
            return None
        what = ("write" if write else "read") + (f" of {size} bytes" if size else "")
        slot = self._slot(address)
        held = None if slot is None else self._held.get(slot)
        if held is None:
            return Wrong(FindingKind.OUT_OF_BOUNDS, f"{what}, where no object lies")
        told = held.told()
        if held.freed is not None:
            return Wrong(FindingKind.USE_AFTER_FREE, f"{what}, {_away(address, held)} {told}", told)
        return Wrong(FindingKind.OUT_OF_BOUNDS, f"{what}, {_away(address, held)} {told}", told)

    def _slot(self, address: int) -> Slot | None:
        if address not in self:
            return None
        return self.slots[bisect_right(self._starts, address) - 1]

    # Going back -------------------------------------------------------------------------------------

    def state(self) -> PoolState:
        """Return what it holds, for `set_state`."""
        free = {room: tuple(slots) for room, slots in self._free.items()}
        resting = {room: tuple(slots) for room, slots in self._resting.items()}
        return PoolState(dict(self._held), free, resting, self.unguarded)

    def set_state(self, state: PoolState) -> None:
        """Hold what it held then; only what differs is opened and closed."""
        for room, slots in state.resting.items():
            now = self._resting[room]
            if tuple(now) != slots:
                was = set(now)
                for slot in was.difference(slots):
                    self._pages.open(slot.start, room)
                for slot in set(slots) - was:
                    self._pages.close(slot.start, room)
                self._resting[room] = deque(slots)
            if len(self._free[room]) != len(state.free[room]):
                self._free[room] = deque(state.free[room])
        self._held = dict(state.held)
        self.unguarded = state.unguarded


def _away(address: int, held: Held) -> str:
    """Return how far an address is from an object, in words."""
    if address < held.address:
        return f"{held.address - address} bytes before"
    if address < held.address + held.size:
        return f"{address - held.address} bytes into"
    return f"{address - held.address - held.size} bytes behind"
