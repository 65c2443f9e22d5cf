# SPDX-License-Identifier: GPL-2.0-or-later
"""What a design of executable memory is, and what designs have in common.

`Execmem` owns the life cycle (pending, finished, sealed, freed) and the lookup by address;
it calls a design only in legal order. A design answers three questions, and little else:

    where    which address ranges serve a type and a consumer
    places   in which order, and from which end, to look there
    store    who maps, writes, finishes and frees the memory that was found

There are two kinds of store. `Areas` gives each allocation pages of its own, as vmalloc
does; `Pool` keeps memory of one kind that is mapped already and unused, the trees that Song
Liu proposed. A design is mostly a choice between them, per type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import attrs

from allocator.errors import AllocationError
from allocator.memory import KernelMemory
from allocator.types import (
    Address,
    Consumer,
    ExecmemRange,
    ExecmemType,
    Interval,
    MemType,
    TextPoke,
)

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Request:
    """One call of `Execmem.alloc`, with the ranges that its type and consumer may use.

    Parameters
    ----------
    size
        Bytes, positive.
    align
        A power of two; 1 when the caller does not care.
    where
        The address ranges and the page-granular alignment of the architecture's row.
    """

    type: MemType
    consumer: Consumer
    size: int
    align: int
    where: ExecmemRange

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """The ranges that are legal, the preferred one first."""
        fallback = self.where.fallback
        return (self.where.range,) if fallback is None else (self.where.range, fallback)


@attrs.frozen(kw_only=True)
class Place:
    """One stretch of address space to look in.

    Parameters
    ----------
    fallback
        Whether lying here means that the first choice had no room.
    highest
        Whether address space is taken from the upper end.
    areas_highest
        Whether areas are carved out of mapped memory from its upper end.
    """

    interval: Interval
    fallback: bool = False
    highest: bool = False
    areas_highest: bool = False


@attrs.frozen(kw_only=True)
class Allocation:
    """Executable memory that is ready for use.

    Parameters
    ----------
    size, reserved
        Bytes that were asked for, and bytes that are taken from `address` on.
    fallback
        Whether the design's first choice of range had no room for it.
    area
        The mapping that it shares with memory of other types, which lives until all of them
        are freed; None where it shares none.
    """

    address: int
    size: int
    type: MemType
    consumer: Consumer
    fallback: bool
    reserved: int
    area: Interval | None = None

    @classmethod
    def of(cls, request: Request, taken: Interval, *, fallback: bool) -> Allocation:
        """Return the answer to `request`."""
        return cls(
            address=taken.start,
            size=request.size,
            type=request.type,
            consumer=request.consumer,
            fallback=fallback,
            reserved=taken.size,
        )

    @property
    def interval(self) -> Interval:
        """The addresses that were asked for."""
        return Interval(self.address, self.address + self.size)

    @property
    def taken(self) -> Interval:
        """The addresses that are taken, padding included."""
        return Interval(self.address, self.address + self.reserved)


@attrs.frozen(kw_only=True)
class Context:
    """What a design works with: memory, and what the architecture can do.

    Parameters
    ----------
    trap
        The bytes of an instruction that traps, repeated over unused text.
    text_poke
        How finished text is written; None on an architecture that cannot.
    """

    memory: KernelMemory
    trap: bytes
    text_poke: TextPoke | None


class Store(ABC):
    """Where memory comes from and goes back to; every method leaves all as it was when it raises.

    The order of calls is that of `Design`.
    """

    memory: KernelMemory

    @abstractmethod
    def alloc(self, request: Request, places: Iterable[Place]) -> Allocation:
        """Take memory from the first place that has room; AllocationError when none has."""

    @abstractmethod
    def write(self, allocation: Allocation, offset: int, data: bytes) -> None:
        """Store `data` in an allocation that is not finished; the bounds were checked."""

    @abstractmethod
    def finish(self, allocation: Allocation) -> None:
        """Give it its final protection and make instruction fetch see it."""

    @abstractmethod
    def seal(self, allocation: Allocation) -> None:
        """Make RO_AFTER_INIT memory read-only."""

    @abstractmethod
    def free(self, allocation: Allocation) -> None:
        """Give the memory back, finished or not."""

    @abstractmethod
    def check(self, live: Iterable[Allocation]) -> None:
        """Assert the store's own invariants; `live` is all of its that was not freed."""

    def staged(self, allocation: Allocation) -> Address:
        """Return where the bytes of a pending allocation lie until it is finished."""
        return allocation.address

    def free_intervals(self) -> Iterable[Interval]:
        """Return mapped memory that no allocation uses."""
        return ()


class Design(ABC):
    """A way to place and map executable memory.

    Every method leaves all as it was when it raises. `Execmem` calls `alloc` first, then
    `write` any number of times, then `finish` or `abandon` once; after `finish`, `seal` at
    most once (RO_AFTER_INIT only) and `free` once.
    """

    name: str  # of the class
    mixes: bool = False  # whether memory of several types can share a mapping (`alloc_area`)
    window: TextPoke | None = None  # how it writes what is final, if not as text_poke does
    aside: float = 0.0  # seconds that went into watching it, which its own time leaves out

    def __init__(self, context: Context) -> None:
        self.context = context
        self.memory = context.memory

    @abstractmethod
    def store(self, what: Request | Allocation) -> Store:
        """Return who keeps such memory; the same one for a request and for its allocation."""

    @abstractmethod
    def stores(self) -> tuple[Store, ...]:
        """Return every store once."""

    def where(self, mem_type: MemType, consumer: Consumer) -> ExecmemRange:
        """Return the legal ranges; by default those of the architecture's range class."""
        return self.memory.address_map.range_of(ExecmemType.of(mem_type, consumer))

    def places(self, request: Request) -> Iterable[Place]:
        """Return where to look, in order; by default the range, then the fallback range."""
        return [
            Place(interval=interval, fallback=bool(index))
            for index, interval in enumerate(request.intervals)
        ]

    def alloc(self, request: Request) -> Allocation:
        """Take memory for `request`; AllocationError when there is none."""
        return self.store(request).alloc(request, self.places(request))

    def alloc_area(self, requests: Sequence[Request]) -> list[Allocation]:
        """Take one mapping for memory of several types, one behind the other in whole pages.

        Only asked of a design that `mixes`.
        """
        raise NotImplementedError(f"{self.name} gives each type memory of its own: {requests}")

    def write(self, allocation: Allocation, offset: int, data: bytes) -> None:
        """Store `data` in an allocation that is not finished; the bounds were checked."""
        self.store(allocation).write(allocation, offset, data)

    def finish(self, allocation: Allocation) -> None:
        """Give it its final protection and make instruction fetch see it."""
        self.store(allocation).finish(allocation)

    def seal(self, allocation: Allocation) -> None:
        """Make RO_AFTER_INIT memory read-only."""
        self.store(allocation).seal(allocation)

    def abandon(self, allocation: Allocation) -> None:
        """Give back an allocation that was not finished."""
        self.store(allocation).free(allocation)

    def free(self, allocation: Allocation) -> None:
        """Give the memory back."""
        self.store(allocation).free(allocation)

    # Several at a time: what a module's loader has to do for all its memory. A design that gains
    # nothing by it leaves them as they are.

    def write_many(self, writes: Sequence[tuple[Allocation, int, bytes]]) -> None:
        """Store as `write`, in several allocations."""
        for allocation, offset, data in writes:
            self.write(allocation, offset, data)

    def finish_many(
        self, allocations: Sequence[Allocation], done: Callable[[Allocation], object]
    ) -> None:
        """Finish allocations; `done` is told of each that is. What is refused ends it."""
        for allocation in allocations:
            self.finish(allocation)
            done(allocation)

    def free_many(
        self, allocations: Sequence[Allocation], done: Callable[[Allocation], object]
    ) -> None:
        """Free allocations; `done` is told of each that is. What is refused ends it."""
        for allocation in allocations:
            self.free(allocation)
            done(allocation)

    def quiet(self) -> None:  # noqa: B027 -- most put nothing off
        """Do what was put off until nobody asks for memory, as a kernel's work item does."""

    def staged(self, allocation: Allocation) -> Address:
        """Return where the bytes of a pending allocation lie until it is finished."""
        return self.store(allocation).staged(allocation)

    def check(self, live: Iterable[Allocation]) -> None:
        """Assert the invariants of every store; `live` is all that was not freed."""
        held: dict[int, list[Allocation]] = {}
        for allocation in live:
            held.setdefault(id(self.store(allocation)), []).append(allocation)
        for store in self.stores():
            store.check(held.get(id(store), ()))

    def free_intervals(self) -> Iterator[Interval]:
        """Yield mapped memory that no allocation uses."""
        for store in self.stores():
            yield from store.free_intervals()


def allocate(
    request: Request,
    memory: KernelMemory,
    places: Iterable[Place],
    take: Callable[[Place], T | None],
) -> tuple[T, bool]:
    """Return the first answer of `take(place)` and whether the place is a fallback.

    AllocationError, naming the ranges and the largest free run, when no place gives one.
    """
    for place in places:
        taken = take(place)
        if taken is not None:
            return taken, place.fallback
    largest = max(memory.free_space.largest(interval) for interval in request.intervals)
    raise AllocationError(
        f"{request.type.name} for {request.consumer.value}",
        request.size,
        request.intervals,
        f"the largest free run of address space has {largest:#x} bytes",
        hint="free memory of this range or choose a design that packs closer",
    )
