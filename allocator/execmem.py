# SPDX-License-Identifier: GPL-2.0-or-later
"""Execmem: memory for code and what belongs to it, for every consumer, in one place.

The interface is the one that the thread arrived at, alloc, write, finish: where text can be
poked, `alloc` reserves text that is executable already and `write` pokes it; elsewhere
`write` stores into writable memory and `finish` changes its protection. The caller does not
see the difference. After `finish`, writing is refused and `poke` is the only way in.

    alloc ──> Pending ──write*──> finish ──> Allocation ──seal?──> free
                  └──────────────> abandon

Execmem keeps this order and finds allocations by address; a design (`allocator.designs`)
places and maps them. No module loader is needed: kprobes, ftrace, BPF and thunks come here
directly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol, Self

import attrs
from sortedcontainers import SortedDict

from allocator.designs import DEFAULT, DesignLike, choose
from allocator.designs.base import Allocation, Context, Design, Request
from allocator.errors import AccessError, AllocationError, ExecmemError, LifecycleError, PokeError
from allocator.events import Events, Step
from allocator.memory import KernelMemory
from allocator.poking import AliasStore
from allocator.types import (
    Consumer,
    ExecmemType,
    MemType,
    PokeStep,
    Prot,
    Site,
    TextPoke,
)


class Pending:
    """Memory that has an address but is not final; it ends by `finish` or by `abandon`.

    As a context manager it abandons what was not finished, by exception or not.
    """

    def __init__(self, execmem: Execmem, allocation: Allocation) -> None:
        self._execmem = execmem
        self._allocation = allocation
        self.settled = ""

    @property
    def address(self) -> int:
        """First address."""
        return self._allocation.address

    @property
    def size(self) -> int:
        """Bytes that were asked for."""
        return self._allocation.size

    @property
    def type(self) -> MemType:
        """Memory type."""
        return self._allocation.type

    @property
    def consumer(self) -> Consumer:
        """Who asked."""
        return self._allocation.consumer

    @property
    def fallback(self) -> bool:
        """Whether it lies in the fallback range."""
        return self._allocation.fallback

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`.

        AccessError outside the allocation; LifecycleError after `finish` or `abandon`.
        """
        self.require_inside(offset, len(data))
        if data:
            with self._execmem.memory.during(Step.WRITE):
                self._execmem.design.write(self._allocation, offset, data)
            self._execmem.memory.events.copied_bytes += len(data)

    def finish(self) -> Allocation:
        """Make it final and return it; LifecycleError when it is settled already."""
        self.require_pending("finish")
        with self._execmem.memory.during(Step.FINISH):
            self._execmem.design.finish(self._allocation)
        self.settled = "finished"
        self._execmem._finished(self._allocation)  # noqa: SLF001 -- the other half of one class
        return self._allocation

    def abandon(self) -> None:
        """Give the memory back unused; LifecycleError when it is settled already."""
        self.require_pending("abandon")
        with self._execmem.memory.during(Step.FREE):
            self._execmem.design.abandon(self._allocation)
        self.settled = "abandoned"
        self._execmem._abandoned(self._allocation)  # noqa: SLF001 -- the other half of one class

    @property
    def allocation(self) -> Allocation:
        """What is asked of a design; not to be kept before it is finished."""
        return self._allocation

    def require_inside(self, offset: int, size: int) -> None:
        """Refuse to write where `write` would."""
        self.require_pending("write")
        if offset < 0 or offset + size > self.size:
            reason = f"outside the allocation of {self.size:#x} bytes at {self.address:#x}"
            raise AccessError("write", self.address + offset, size, reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self.settled:
            self.abandon()

    def require_pending(self, operation: str) -> None:
        """Refuse what only pending memory can do; LifecycleError."""
        if self.settled:
            raise LifecycleError(operation, self.address, f"the allocation is {self.settled}")


@attrs.frozen(kw_only=True)
class Report:
    """How executable memory stands at one moment.

    Parameters
    ----------
    allocations, bytes
        Live finished allocations and the bytes they asked for, by type.
    leaves
        Leaves that hold memory of a type, by leaf size; a run is one.
    large_share, run_share
        Share of a type's bytes that lies under large leaves (2 MiB and more), and under runs of
        pages, 0..1.
    padding_bytes
        Bytes that live allocations hold beyond what they asked for.
    free_mapped_bytes
        Mapped memory that no allocation uses.
    fallbacks
        Live allocations for which the design's first choice of range had no room.
    largest_free, free
        Address space left in the range of module text: largest run, and all of it.
    direct_map_leaves
        Leaves of the direct map by size.
    events
        All counters.
    """

    allocations: Mapping[MemType, int]
    bytes: Mapping[MemType, int]
    leaves: Mapping[MemType, Mapping[int, int]]
    large_share: Mapping[MemType, float]
    run_share: Mapping[MemType, float]
    padding_bytes: int
    free_mapped_bytes: int
    fallbacks: int
    largest_free: int
    free: int
    direct_map_leaves: Mapping[int, int]
    events: Events

    @property
    def largest_free_share(self) -> float:
        """The largest free run as a share of all free address space of the range."""
        return self.largest_free / self.free if self.free else 0.0


class Observer(Protocol):
    """Who wants to hear what becomes of memory; told after it happened, must not raise."""

    def allocated(self, allocation: Allocation, *, align: int) -> None:
        """Hear of memory that is pending now; `align` is what was asked for."""
        ...

    def sealed(self, allocation: Allocation) -> None:
        """Hear of RO_AFTER_INIT memory that is read-only now."""
        ...

    def freed(self, allocation: Allocation) -> None:
        """Hear of memory that was freed or abandoned."""
        ...

    def quieted(self) -> None:
        """Hear that what was put off is done (`Execmem.quiet`), if there was something."""
        ...


class Execmem:
    """Allocate, write, finish, poke, seal and free executable memory.

    Parameters
    ----------
    memory
        Kernel memory; its address map gives the range of each class.
    trap
        Bytes of an instruction that traps; 1, 2 or 4, repeated aligned.
    text_poke
        How finished text can be written, or None.
    design
        A name in `DESIGNS` or `COUNTEREXAMPLES` or one that an installed package brings, a
        file (`./mine.py`), or a class derived from `Design`.
    """

    def __init__(
        self,
        memory: KernelMemory,
        *,
        trap: bytes,
        text_poke: TextPoke | None,
        design: DesignLike = DEFAULT,
    ) -> None:
        chosen = choose(design)
        if len(trap) not in (1, 2, 4):
            raise ExecmemError(f"a trap pattern has 1, 2 or 4 bytes, not {len(trap)}")
        self.memory = memory
        self.text_poke = text_poke = text_poke and text_poke.on(memory.page_size)
        context = Context(memory=memory, trap=trap, text_poke=text_poke)
        self.design: Design = chosen.make(context)
        self._live = SortedDict()  # address -> Allocation
        self._pending: dict[int, Allocation] = {}
        self._sealed: set[int] = set()
        self.observer: Observer | None = None

    def alloc(
        self,
        mem_type: MemType,
        size: int,
        *,
        consumer: Consumer = Consumer.MODULE,
        align: int | None = None,
    ) -> Pending:
        """Reserve memory of a type in the range of its class.

        Data types read as zero; text reads as the trap pattern, or as zero under a design
        that writes text before it is executable.

        Parameters
        ----------
        size
            Bytes, positive.
        align
            A power of two; the design's granularity applies in any case.

        Raises
        ------
        AllocationError
            No room; names the ranges and the largest free run.
        """
        request = self._request(mem_type, size, consumer, align or 1)
        try:
            with self.memory.during(Step.ALLOC):
                allocation = self.design.alloc(request)
        except AllocationError as error:
            error.design = error.design or self.design.name
            raise
        return self._taken(allocation, request)

    @property
    def mixes(self) -> bool:
        """Whether memory of several types can be had as one (`alloc_area`)."""
        return self.design.mixes

    def alloc_area(
        self,
        sizes: Mapping[MemType, int],
        *,
        consumer: Consumer = Consumer.MODULE,
        align: int = 1,
    ) -> dict[MemType, Pending]:
        """Reserve memory of several types in one mapping, as modules had before Linux 6.4.

        Each type has whole pages, one behind the other in the given order, in the range of
        the text among them, and is finished and sealed by itself; the mapping goes when all
        are freed.

        Parameters
        ----------
        sizes
            Bytes of each type, positive.
        align
            Of the whole.

        Raises
        ------
        AllocationError
            No room, or the design keeps types apart (`mixes`).
        """
        kinds = sorted(sizes, key=lambda kind: not kind.is_text)
        where = self.design.where(kinds[0], consumer)
        requests = [
            attrs.evolve(self._request(kind, size, consumer, align), where=where)
            for kind, size in sizes.items()
        ]
        if not self.design.mixes:
            reason, size = "types are kept apart", sum(sizes.values())
            legal = requests[0].intervals
            raise AllocationError("an area", size, legal, reason, design=self.design.name)
        try:
            with self.memory.during(Step.ALLOC):
                found = self.design.alloc_area(requests)
        except AllocationError as error:
            error.design = error.design or self.design.name
            raise
        return {
            one.type: self._taken(one, request)
            for one, request in zip(found, requests, strict=True)
        }

    def _request(self, mem_type: MemType, size: int, consumer: Consumer, align: int) -> Request:
        """Return a request that a design may be asked; AllocationError where it makes no sense."""
        where = self.design.where(mem_type, consumer)
        request = Request(type=mem_type, consumer=consumer, size=size, align=align, where=where)
        if size <= 0 or align < 0 or align & (align - 1):
            what = f"{mem_type.name} for {consumer.value}"
            reason = f"size {size} and alignment {align} are not a positive size and a power of two"
            raise AllocationError(what, size, request.intervals, reason)
        return request

    def _taken(self, allocation: Allocation, request: Request) -> Pending:
        """Return an allocation as pending, counted and told."""
        self.memory.events.padding_bytes += allocation.reserved - request.size
        self.memory.events.fallbacks += allocation.fallback
        self._pending[allocation.address] = allocation
        if self.observer is not None:
            self.observer.allocated(allocation, align=request.align)
        return Pending(self, allocation)

    def seal(self, allocation: Allocation) -> None:
        """Make a live RO_AFTER_INIT allocation read-only; LifecycleError otherwise or twice."""
        address = allocation.address
        if self._live.get(address) != allocation:
            raise LifecycleError("seal", address, "not a live allocation")
        if allocation.type is not MemType.RO_AFTER_INIT:
            raise LifecycleError("seal", address, f"{allocation.type.name} is not sealed")
        if address in self._sealed:
            raise LifecycleError("seal", address, "sealed already")
        with self.memory.during(Step.SEAL):
            self.design.seal(allocation)
        self._sealed.add(address)
        if self.observer is not None:
            self.observer.sealed(allocation)

    def free(self, address: int) -> None:
        """Free the allocation that starts at `address`; LifecycleError when there is none."""
        allocation = self._require_live(address)
        with self.memory.during(Step.FREE):
            self.design.free(allocation)
        self._freed(allocation)

    def _require_live(self, address: int) -> Allocation:
        allocation: Allocation | None = self._live.get(address)
        if allocation is None:
            if address in self._pending:
                reason = "the allocation is pending: abandon it"
            elif (inside := self.find(address)) is not None:
                reason = f"inside the allocation at {inside.address:#x}"
            else:
                reason = "no allocation"
            raise LifecycleError("free", address, reason)
        return allocation

    def _freed(self, allocation: Allocation) -> None:
        del self._live[allocation.address]
        self._sealed.discard(allocation.address)
        if self.observer is not None:
            self.observer.freed(allocation)

    def write_many(self, writes: Iterable[tuple[Pending, int, bytes]]) -> None:
        """Store as `Pending.write`, in several pending allocations; what is refused ends it."""
        asked = []
        for pending, offset, data in writes:
            pending.require_inside(offset, len(data))
            if data:
                asked.append((pending.allocation, offset, data))
        with self.memory.during(Step.WRITE):
            self.design.write_many(asked)
        self.memory.events.copied_bytes += sum(len(data) for _, _, data in asked)

    def finish_many(self, pending: Iterable[Pending]) -> list[Allocation]:
        """Finish as `Pending.finish`, several allocations; what is refused ends it.

        Those before it are finished then, or none is: `Pending.settled` says it.
        """
        waiting = {}
        for one in pending:
            one.require_pending("finish")
            waiting[one.address] = one

        def done(allocation: Allocation) -> None:
            waiting[allocation.address].settled = "finished"
            self._finished(allocation)

        found = [one.allocation for one in waiting.values()]
        with self.memory.during(Step.FINISH):
            self.design.finish_many(found, done)
        return found

    def give_back(self, pending: Iterable[Pending]) -> None:
        """Free what `finish_many` finished before it was refused."""
        self.free_many(one.address for one in pending if one.settled == "finished")

    def free_many(self, addresses: Iterable[int]) -> None:
        """Free as `free`, several allocations; what is refused ends it.

        Those before it are freed then, or none is. LifecycleError where one is none, or is named
        twice: nothing was freed.
        """
        chosen: dict[int, Allocation] = {}
        for address in addresses:
            if address in chosen:
                raise LifecycleError("free", address, "named twice")
            chosen[address] = self._require_live(address)
        with self.memory.during(Step.FREE):
            self.design.free_many(list(chosen.values()), self._freed)

    def quiet(self) -> None:
        """Do what was put off until nobody asks for memory: leaves heal.

        A kernel does it from a work item, some time after the last module of a burst.
        """
        flushes = self.memory.events.tlb_flushes
        with self.memory.during(Step.QUIET):
            self.design.quiet()
        if self.observer is not None and flushes != self.memory.events.tlb_flushes:
            self.observer.quieted()

    def find(self, address: int) -> Allocation | None:
        """Return the finished allocation that contains `address`, or None."""
        index = self._live.bisect_right(address) - 1
        if index < 0:
            return None
        allocation: Allocation = self._live.peekitem(index)[1]
        return allocation if address in allocation.interval else None

    def poke(
        self,
        address: int,
        data: bytes,
        expected: bytes | None = None,
        *,
        omit: Collection[PokeStep] = (),
        store: AliasStore | None = None,
    ) -> None:
        """Write into one finished allocation through the text_poke alias.

        Parameters
        ----------
        expected
            The bytes that must stand there before.
        omit, store
            See `allocator.poking.poke_many`.

        Raises
        ------
        PokeError
            No text_poke, not inside one finished allocation, or refused by `KernelMemory`.
        """
        self.poke_many((Site(address, data, expected),), omit=omit, store=store)

    def poke_many(
        self,
        sites: Iterable[Site | tuple[int, bytes, bytes | None]],
        *,
        omit: Collection[PokeStep] = (),
        store: AliasStore | None = None,
        through_window: bool = False,
    ) -> None:
        """Write (address, new, old) into finished allocations; synchronise all CPUs once.

        As text_poke_queue() and text_poke_finish(): every site is looked at before the first
        is written, then they are written in the order of their addresses. PokeError as `poke`.

        Parameters
        ----------
        omit, store
            See `allocator.poking.poke_many`.
        through_window
            Use the design's own window where it has one, instead of text_poke's alias; `omit` and
            `store` are for the alias only.
        """
        batch = [Site(*site) for site in sites]
        if (text_poke := self._require_pokable(batch)) is not None:
            if through_window:
                text_poke = self.design.window or text_poke
            with self.memory.during(Step.POKE):
                self.memory.poke_many(batch, text_poke, omit=omit, store=store)

    def check_poke(self, sites: Iterable[Site]) -> None:
        """Refuse what `poke_many` would refuse; PokeError. Nothing is written in any case."""
        batch = list(sites)
        if (text_poke := self._require_pokable(batch)) is not None:
            self.memory.check_poke(batch, text_poke)

    def _require_pokable(self, batch: Iterable[Site]) -> TextPoke | None:
        for address, data, _ in batch:
            size = len(data)
            if self.text_poke is None:
                raise PokeError(address, size, "this architecture has no text_poke")
            allocation = self.find(address)
            if allocation is None:
                raise PokeError(address, size, "not in a finished allocation")
            if address + size > allocation.interval.end:
                reason = f"reaches beyond the allocation {allocation.interval}"
                raise PokeError(address, size, reason)
        return self.text_poke

    def allocations(self) -> list[Allocation]:
        """Return the finished allocations, lowest address first."""
        return list(self._live.values())

    def report(self) -> Report:
        """Measure how memory stands now."""
        counts: dict[MemType, int] = {}
        sizes: dict[MemType, int] = {}
        large: dict[MemType, int] = {}
        runs: dict[MemType, int] = {}
        leaves: dict[MemType, set[tuple[int, int]]] = {}
        for allocation in self._live.values():
            kind, interval = allocation.type, allocation.interval
            counts[kind] = counts.get(kind, 0) + 1
            sizes[kind] = sizes.get(kind, 0) + allocation.size
            for leaf in self.memory.page_table.leaves(interval):
                leaves.setdefault(kind, set()).add((leaf.va, leaf.size))
                if leaf.size > self.memory.page_size:
                    end = min(leaf.va + leaf.size, interval.end)
                    found = large if leaf.size >= self.memory.large_size else runs
                    found[kind] = found.get(kind, 0) + end - max(leaf.va, interval.start)
        text = self.memory.address_map.range_of(ExecmemType.MODULE_TEXT).range
        space = self.memory.free_space
        return Report(
            allocations=counts,
            bytes=sizes,
            leaves={
                kind: {
                    size: sum(leaf == size for _, leaf in held)
                    for size in self.memory.paging.leaves
                    if size <= self.memory.large_size
                }
                for kind, held in leaves.items()
            },
            large_share={kind: large.get(kind, 0) / size for kind, size in sizes.items()},
            run_share={kind: runs.get(kind, 0) / size for kind, size in sizes.items()},
            padding_bytes=sum(a.reserved - a.size for a in self._live.values()),
            free_mapped_bytes=sum(area.size for area in self.design.free_intervals()),
            fallbacks=sum(a.fallback for a in self._live.values()),
            largest_free=space.largest(text),
            free=sum(part.size for part in space.clipped(text)),
            direct_map_leaves=self.memory.page_table.leaf_counts(self.memory.direct_map),
            events=self.memory.events.copy(),
        )

    def check(self) -> None:
        """Assert every invariant of allocations, design, address space and page table."""
        self.memory.check()
        everything = [*self._live.values(), *self._pending.values()]
        end = 0
        for allocation in sorted(everything, key=lambda item: item.address):
            taken = allocation.taken
            assert taken.start >= end, f"{taken} overlaps what ends at {end:#x}"
            end = taken.end
            where = self.design.where(allocation.type, allocation.consumer)
            legal = where.range.holds(taken) or (where.fallback and where.fallback.holds(taken))
            assert legal, f"{taken} is not in {where.range} or {where.fallback}"
            prot = self._final_prot(allocation)
            for span in self.memory.page_table.spans(taken.start, taken.size):
                assert span.pa is not None, f"{span.va:#x} is not mapped"
                if allocation.address in self._live:
                    assert span.prot is prot, f"{span.va:#x} is {span.prot}, not {prot}"
        assert self._sealed <= set(self._live)
        self.design.check(everything)

    def _final_prot(self, allocation: Allocation) -> Prot:
        unsealed = (
            allocation.type is MemType.RO_AFTER_INIT and allocation.address not in self._sealed
        )
        return Prot.RW if unsealed else allocation.type.final_prot

    def _finished(self, allocation: Allocation) -> None:
        del self._pending[allocation.address]
        self._live[allocation.address] = allocation

    def _abandoned(self, allocation: Allocation) -> None:
        del self._pending[allocation.address]
        if self.observer is not None:
            self.observer.freed(allocation)
