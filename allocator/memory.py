# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel virtual memory: the one door through which everything reads, writes and maps.

Below it are frames and the page table; above it the loader, the designs and the machine.
It does what the kernel's memory management does around a page table, in the kernel's order:
it hands out address space, backs it with frames, changes protections together with their
direct-map alias, and flushes TLBs. Finished text is written as `allocator.poking` says.

The page table itself never flushes. A protection that was changed without a flush stays in
a CPU's TLB, and text that was poked without an instruction-cache sync keeps running stale;
a CPU model subscribes to both events and is exactly as wrong as hardware would be.
Subscribers are told after the change and must not raise.

`read`, `write` and `fill` obey the mapping: nothing is readable or writable that the guest's
own load or store could not reach.

Long because address space, frames, protections, aliases and flushes change together, in one order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import TypeVar

import attrs
import numpy as np

from allocator import poking
from allocator.errors import AccessError, AllocationError, ExecmemError, LifecycleError
from allocator.events import Events, Flush, Step
from allocator.intervals import IntervalSet
from allocator.pagetable import Frames, PageTable, Span, Translation
from allocator.physical import PhysicalMemory, cuts_of, repeat
from allocator.poking import AliasStore
from allocator.types import (
    LARGE_PAGE_SIZE,
    MIB,
    READABLE,
    WRITABLE,
    AddressMap,
    Interval,
    PokeStep,
    Prot,
    Site,
    TextPoke,
    align_down,
    align_up,
)

AMPLE = 64  # of free memory, what is taken ahead is at most one in so many parts
RIGHTS = Prot.RX | Prot.W
FILLED = 2 * MIB  # bytes that are filled between two words to whoever may refuse

TlbCallback = Callable[[int, int, bool], None]
IcacheCallback = Callable[[int, int], None]
_Callback = TypeVar("_Callback")


@attrs.frozen
class _Area:
    """One vmalloc area: the address space it holds (guard included) and its mapped bytes."""

    reserved: Interval
    size: int


class KernelMemory:
    """The kernel's address space over physical memory.

    Parameters
    ----------
    physical
        The frames, whose size is that of pages (`paging`). All of them are mapped read-write at
        `address_map.direct_map`.
    address_map
        Where the kernel image, the direct map and the vmalloc range lie.
    events
        Where everything is counted; a new record by default.

    `page_size` and `large_size` are the bytes of a page and of a large leaf; `flushes` counts each
    kind of flush.
    """

    def __init__(
        self,
        physical: PhysicalMemory,
        address_map: AddressMap,
        *,
        events: Events | None = None,
    ) -> None:
        self.physical = physical
        self.paging = physical.paging
        self.page_size, self.large_size = self.paging.page, self.paging.large
        self.address_map = address_map
        self.events = Events() if events is None else events
        self.flushes: Counter[Flush] = Counter()
        self._step = Step.OTHER
        start = address_map.direct_map
        self.direct_map = Interval(start, start + physical.size)
        self.page_table = PageTable(
            paging=self.paging,
            events=self.events,
            direct_map=self.direct_map,
            live_splits=address_map.live_splits,
        )
        self.page_table.map_contiguous(start, 0, Prot.RW, size=physical.size)
        # The lower half of the address space that x86-64 pokes in; empty between two pokes.
        self.poking_mm = PageTable(paging=self.paging, events=self.events)
        # The number of the CPU that does what the kernel does (smp_processor_id).
        self.this_cpu = 0
        if not address_map.space.holds(self.direct_map):
            reason = f"the kernel's part of the address space is {address_map.space}"
            raise AllocationError("the direct map", physical.size, (self.direct_map,), reason)
        self.free_space = IntervalSet([address_map.space])
        image = address_map.image
        page = self.page_size
        image = Interval(align_down(image.start, page), align_up(image.end, page))
        for taken in (self.direct_map, image):
            self.free_space.remove(taken)
        # Told of each piece of new memory that was filled; it may refuse, which is undone.
        self.on_fill: Callable[[int], object] = lambda _size: None
        self._areas: dict[int, _Area] = {}
        self._pages: dict[int, int] = {}
        self._ahead: list[int] = []  # runs of a large leaf that are not mapped, without W
        self._tlb_callbacks: list[TlbCallback] = []
        self._icache_callbacks: list[IcacheCallback] = []

    # Access ------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at `address`.

        AccessError at the first byte that is not mapped readable.
        """
        found = self.page_table.translate(address)
        if (
            found is not None
            and found.prot in READABLE
            and address % found.leaf + size <= found.leaf
        ):
            return self.physical.read(found.address, size)
        spans = self._require("read", address, size, READABLE)
        return b"".join(self.physical.read(span.pa or 0, span.size) for span in spans)

    def write(self, address: int, data: bytes) -> None:
        """Store `data` at `address`.

        AccessError at the first byte that is not mapped writable; then nothing was stored.
        """
        found = self.page_table.translate(address)
        size = len(data)
        if (
            found is not None
            and found.prot in WRITABLE
            and address % found.leaf + size <= found.leaf
        ):
            self.physical.write(found.address, data)
            return
        for span in self._require("write", address, size, WRITABLE):
            offset = span.va - address
            self.physical.write(span.pa or 0, data[offset : offset + span.size])

    def fill(self, address: int, size: int, pattern: bytes) -> None:
        """Store `pattern` repeatedly, aligned to its own length; AccessError as `write`."""
        self.write(address, repeat(pattern, size, address))

    def translate(self, address: int) -> Translation | None:
        """Return what `address` reaches, or None where nothing is mapped."""
        return self.page_table.translate(address)

    # What CPUs must hear -------------------------------------------------------------------

    def on_tlb_flush(self, callback: TlbCallback) -> Callable[[], None]:
        """Call `callback(start, end, all_cpus)` at each flush; return what unsubscribes it."""
        self._tlb_callbacks.append(callback)
        return lambda: _discard(self._tlb_callbacks, callback)

    def on_icache_sync(self, callback: IcacheCallback) -> Callable[[], None]:
        """Call `callback(start, end)` at each sync; return what unsubscribes it."""
        self._icache_callbacks.append(callback)
        return lambda: _discard(self._icache_callbacks, callback)

    @contextmanager
    def during(self, step: Step) -> Iterator[None]:
        """Put the flushes inside down to this step; the innermost one counts."""
        outer, self._step = self._step, step
        try:
            yield
        finally:
            self._step = outer

    def flush_tlb(self, *intervals: Interval, all_cpus: bool = True) -> None:
        """Drop the translations of `intervals` in one flush, on all CPUs or on this one."""
        if all_cpus:
            self.events.tlb_flushes_all += 1
        else:
            self.events.tlb_flushes_local += 1
        pages = sum(interval.size for interval in intervals) // self.page_size
        self.events.tlb_flushed_pages += pages
        self.flushes[Flush(self._step, all_cpus, pages)] += 1
        for interval in intervals:
            for callback in tuple(self._tlb_callbacks):
                callback(interval.start, interval.end, all_cpus)

    def sync_icache(self, start: int, end: int) -> None:
        """Make instruction fetches of all CPUs from [start, end) see what was written there."""
        self.sync_icaches((Interval(start, end),))

    def sync_icaches(self, intervals: Collection[Interval]) -> None:
        """As `sync_icache`, of several ranges at once."""
        self.events.icache_syncs += 1
        for interval in intervals:
            self.events.icache_synced_bytes += interval.size
            for callback in tuple(self._icache_callbacks):
                callback(interval.start, interval.end)

    # Address space and what backs it ---------------------------------------------------------

    def reserve(
        self,
        size: int,
        within: Interval,
        *,
        alignment: int | None = None,
        highest: bool = False,
    ) -> Interval | None:
        """Take address space, the lowest that fits by default; None when nothing does.

        It is aligned to a page, or to `alignment`.
        """
        alignment = alignment or self.page_size
        start = self.free_space.find(size, alignment=alignment, within=within, highest=highest)
        if start is None:
            return None
        reserved = Interval(start, start + size)
        self.free_space.remove(reserved)
        return reserved

    def release(self, reserved: Interval) -> None:
        """Give address space back."""
        self.free_space.add(reserved)

    def populate(
        self,
        va: int,
        size: int,
        prot: Prot,
        *,
        large: bool = False,
        runs: bool = False,
        paged: bool = False,
        ahead: int = 0,
        pattern: bytes = b"\0",
    ) -> bool:
        """Back [va, va + size) with new frames filled with `pattern`.

        A mapping born without W takes W from its direct-map alias too, as set_memory_ro
        would; the alias goes first, so that no frame is ever writable and executable.

        Parameters
        ----------
        large
            Use a large leaf wherever the address allows and a run of its size is free.
        runs
            Where it gets none, use runs of pages: for what changes as a whole only, or where leaves
            may be split in use.
        paged
            Map all of it by pages all the same: `PageTable.heal` can make leaves of them later.
        ahead
            Runs whose aliases lose W in the same flush, where that is needed at all and memory
            is ample; the next mappings without W take them, and flush nothing.

        Returns
        -------
        Whether all of it got large leaves or runs of 2 MiB, or what can become such.

        Raises
        ------
        AllocationError
            Not enough frames; MappingError: a part is mapped already. Nothing changed.
        """
        pieces: list[tuple[int, int, Frames | int, int]] = []
        mapped, whole, page = 0, self.large_size, self.page_size
        row = self.paging.run if large and runs else 0
        prepared: list[int] = []
        extra: list[int] = []
        aliases: list[Interval] = []  # that lost W
        try:
            at, end = va, va + size
            while at < end:
                stop = min(end, align_down(at, whole) + whole)
                run = None
                if large and stop - at == whole:
                    if prot not in WRITABLE and self._ahead:
                        run = self._ahead.pop()
                        prepared.append(run)
                    else:
                        run = self.physical.alloc_run(self.paging.large_order)
                if run is None:
                    stop = stop if large else end
                    for start, length in _rows(at, stop, row):
                        first = None
                        if length == row and not start % row:
                            first = self.physical.alloc_run(self.paging.order(row))
                        if first is None:
                            frames = self.physical.alloc_frames(length // page)
                        else:
                            frames = np.arange(first, first + row, page, dtype=np.uint64)
                        pieces.append((start, length, frames, page if first is None else row))
                else:
                    pieces.append((at, whole, run, whole))
                at = stop
            if prot not in WRITABLE:
                new: list[Frames | int] = [
                    held for _, _, held, _ in pieces if not _is_in(held, prepared)
                ]
                if new and self.physical.free_bytes > AMPLE * whole * ahead:
                    more = (self.physical.alloc_run(self.paging.large_order) for _ in range(ahead))
                    extra += [run for run in more if run is not None]
                new += extra
                for alias in [run for held in new for run in self._alias_runs(held)]:
                    self.page_table.change(alias.start, alias.size, off=Prot.W)
                    aliases.append(alias)
                if aliases:
                    self.flush_tlb(*aliases)
            for start, length, held, leaf in pieces:
                self._fill_frames(held, pattern)
                to = held if isinstance(held, int) or leaf == page else int(held[0])
                size_of_leaf = page if paged else leaf
                self.page_table.map(start, to, prot, size=length, leaf=size_of_leaf)
                mapped += 1
        except ExecmemError:
            for start, length, _, _ in pieces[:mapped]:
                self.page_table.unmap(start, length)
            # What the direct map gave up it takes back; that splits nothing, so nothing can refuse.
            for alias in aliases:
                self.page_table.protect(alias.start, alias.size, Prot.RW)
            taken = [held for _, _, held, _ in pieces if not _is_in(held, prepared)] + extra
            for held in taken:
                self._free_held(held)
            if aliases:
                self.flush_tlb(*aliases)
            self._ahead += reversed(prepared)
            raise
        self._ahead += extra
        if pattern != b"\0":
            self.events.filled_bytes += size
        return all(leaf >= LARGE_PAGE_SIZE for _, _, _, leaf in pieces)

    def depopulate(self, va: int, size: int) -> None:
        """Unmap [va, va + size) and free its frames.

        Frames whose direct-map alias lost a right go the way of VM_FLUSH_RESET_PERMS
        (vm_reset_perms in mm/vmalloc.c): alias invalid, one flush for mapping and alias,
        alias back to read-write. MappingError where a page is not mapped; nothing changed.
        """
        self.depopulate_all((Interval(va, va + size),))

    def depopulate_all(
        self, gone: Sequence[Interval], *, ahead: bool = False, forget: Sequence[Interval] = ()
    ) -> None:
        """As `depopulate`, of several ranges in one flush.

        Parameters
        ----------
        ahead
            Whether the runs that were taken from the direct map ahead go, too.
        forget
            What else TLBs may lead from to these frames: an alias that was flushed on one CPU.
        """
        frames = [self.page_table.frames(one.start, one.size, operation="unmap") for one in gone]
        runs = self._ahead if ahead else []
        taken: list[Frames | int] = [*frames, *runs]
        aliases = [run for held in taken for run in self._alias_runs(held)]
        before = [span for alias in aliases for span in self._spans_of(alias)]
        mapped: list[Span] = []
        reset = not all(span.prot is Prot.RW for span in before)
        if reset:
            self._change([(alias, Prot.NONE, RIGHTS) for alias in aliases])
        try:
            for one in gone:
                spans = list(self._spans_of(one))
                self.page_table.unmap(one.start, one.size)
                mapped += spans
            self.flush_tlb(*gone, *(aliases if reset else ()), *forget)
            if reset:
                self._change([(alias, Prot.RW, Prot.NONE) for alias in aliases])
        except ExecmemError:
            for span in mapped:
                self.page_table.map_contiguous(span.va, span.pa or 0, span.prot, size=span.size)
            if reset:
                self._restore(before)
            raise
        for held in frames:
            self.physical.free_frames(held)
        for run in runs:
            self.physical.free(run, self.paging.large_order)
        if ahead:
            self._ahead = []

    def vmalloc(
        self,
        size: int,
        *,
        prot: Prot = Prot.RW,
        within: Interval | None = None,
        guard: bool = True,
        large: bool = False,
    ) -> int:
        """Allocate zeroed virtual memory, lowest fit, and return its address.

        Parameters
        ----------
        size
            Bytes; rounded up to a page.
        within
            Where to look; the vmalloc range by default. A range as long as the request
            asks for a fixed address.
        guard
            Leave one unmapped page behind it.
        large
            Use large leaves where possible.

        Raises
        ------
        AllocationError
            No address space or no frames.
        """
        within = within or self.address_map.vmalloc
        mapped = align_up(size, self.page_size)
        if size <= 0:
            raise AllocationError("vmalloc memory", size, (within,), "the size must be positive")
        alignment = self.large_size if large and mapped >= self.large_size else self.page_size
        reserved = self.reserve(mapped + guard * self.page_size, within, alignment=alignment)
        if reserved is None:
            largest = self.free_space.largest(within)
            reason = f"the largest free run has {largest:#x} bytes"
            raise AllocationError("vmalloc memory", size, (within,), reason)
        try:
            self.populate(reserved.start, mapped, prot, large=large)
        except ExecmemError:
            self.release(reserved)
            raise
        self.events.guard_pages += guard
        self._areas[reserved.start] = _Area(reserved, mapped)
        return reserved.start

    @property
    def areas(self) -> frozenset[int]:
        """Where memory is that `vmalloc` returned."""
        return frozenset(self._areas)

    def vfree(self, va: int) -> None:
        """Free what `vmalloc` returned; LifecycleError for any other address."""
        area = self._areas.get(va)
        if area is None:
            raise LifecycleError("vfree", va, "not the address of a vmalloc area")
        self.depopulate(va, area.size)
        del self._areas[va]
        self.release(area.reserved)

    def alloc_pages(self, order: int = 0) -> int:
        """Return the direct-map address of 2**order zeroed contiguous pages.

        AllocationError when no such run is free.
        """
        pa = self.physical.alloc_run(order)
        if pa is None:
            free = self.physical.free_bytes
            raise AllocationError(
                "contiguous pages",
                self.page_size << order,
                (),
                f"{free:#x} bytes are free, in pieces",
            )
        self.physical.zero(pa, self.page_size << order)
        va = self.direct_map.start + pa
        self._pages[va] = order
        return va

    def free_pages(self, va: int) -> None:
        """Free what `alloc_pages` returned; LifecycleError for any other address."""
        order = self._pages.pop(va, None)
        if order is None:
            raise LifecycleError("free_pages", va, "not the address of allocated pages")
        self.physical.free(va - self.direct_map.start, order)

    # Protections -----------------------------------------------------------------------------

    def set_memory_ro(self, va: int, size: int) -> None:
        """Take W from [va, va + size) and from its direct-map alias, then flush."""
        self._set_memory(va, size, off=Prot.W)

    def set_memory_rw(self, va: int, size: int) -> None:
        """Give W to [va, va + size) and to its direct-map alias, then flush."""
        self._set_memory(va, size, on=Prot.RW)

    def set_memory_x(self, va: int, size: int) -> None:
        """Give X to [va, va + size), then flush. The alias never executes."""
        self._set_memory(va, size, on=Prot.X)

    def set_memory_nx(self, va: int, size: int) -> None:
        """Take X from [va, va + size), then flush."""
        self._set_memory(va, size, off=Prot.X)

    def set_memory_rox(self, va: int, size: int) -> None:
        """Take W, give X, flush, then make leaves large again where all pages agree."""
        self._set_memory(va, size, on=Prot.X, off=Prot.W)
        self.collapse(va, size)

    def collapse(self, va: int, size: int) -> None:
        """Try to heal every large leaf and run that the range touches; flush what became large.

        Not what became a run: where that may be, entries for its pages may be held beside it.
        """
        healed = [one for one in self.page_table.heal(va, size) if one.size == self.large_size]
        if healed:
            self.flush_tlb(*healed)

    def remap(self, va: int, size: int, prot: Prot) -> None:
        """Give [va, va + size) another protection but not its direct-map alias, then flush.

        For a caller that took W from the alias and gives it back itself, so that no leaf of
        the direct map is split in between.
        """
        self.page_table.protect(va, size, prot)
        self.flush_tlb(Interval(va, va + size))

    def writable_aliases(self, va: int, size: int) -> list[Interval]:
        """Return where the direct map still lets [va, va + size) be written, if at `va`."""
        found = self.page_table.translate(va)
        alias = None if found is None else self.translate(self.direct_map.start + found.address)
        if alias is None or alias.prot not in WRITABLE:
            return []
        return self._alias_runs(self.page_table.frames(va, size))

    def update(
        self,
        changes: Sequence[tuple[Interval, Prot]],
        *,
        aliases: Sequence[Interval] = (),
        whole: Iterable[Interval] = (),
    ) -> None:
        """Change protections in many places with one flush; MappingError: nothing changed.

        Until the flush a CPU may use a right that a page just lost, and another one a right that it
        just got, as under set_memory_rox(); behind it none does.

        Parameters
        ----------
        changes
            Ranges, and the protection that each gets; their aliases keep theirs.
        aliases
            Ranges of the direct map that lose W, before anything else happens.
        whole
            Where pages become large leaves and runs again as far as they agree.
        """
        self._change(
            [
                *((alias, Prot.NONE, Prot.W) for alias in aliases),
                *((interval, prot, RIGHTS & ~prot) for interval, prot in changes),
            ]
        )
        made = IntervalSet()
        for one in whole:
            for healed in self.page_table.heal(one.start, one.size):
                if healed.size == self.large_size:  # a run needs no flush, as in `collapse`
                    made.add(healed)

        def dropped(one: Interval) -> bool:
            held = made.holding(one.start)
            return held is not None and held.holds(one)

        self.flush_tlb(*(one for one, _ in changes if not dropped(one)), *made, *aliases)

    def set_direct_map_invalid(self, va: int, size: int) -> None:
        """Take every right from the direct-map alias of [va, va + size); no flush."""
        self._protect_alias(va, size, Prot.NONE)

    def set_direct_map_default(self, va: int, size: int) -> None:
        """Make the direct-map alias of [va, va + size) read-write again; no flush."""
        self._protect_alias(va, size, Prot.RW)

    # text_poke -------------------------------------------------------------------------------

    def poke(
        self,
        va: int,
        data: bytes,
        text_poke: TextPoke,
        *,
        expected: bytes | None = None,
        omit: Collection[PokeStep] = (),
        store: AliasStore | None = None,
    ) -> None:
        """Write memory that is not writable, through a short-lived alias; `poke_many` of one."""
        self.poke_many((Site(va, data, expected),), text_poke, omit=omit, store=store)

    def poke_many(
        self,
        sites: Iterable[Site],
        text_poke: TextPoke,
        *,
        omit: Collection[PokeStep] = (),
        store: AliasStore | None = None,
    ) -> None:
        """Write memory that is not writable, as `allocator.poking.poke_many`."""
        poking.poke_many(self, sites, text_poke, omit=omit, store=store)

    def check_poke(self, sites: Iterable[Site], text_poke: TextPoke) -> None:
        """Refuse what `poke_many` would refuse; PokeError. Nothing is written in any case."""
        poking.ordered(self, sites, text_poke)

    def wx_aliases(self) -> list[int]:
        """Return the frames that are writable at one address and executable at another."""
        frames = set(self.page_table.wx_aliases())
        poked = self.poking_mm.frames_with(Prot.W)
        if len(poked):
            executable = self.page_table.frames_with(Prot.X)
            frames.update(np.intersect1d(poked, executable, assume_unique=True).tolist())
        return sorted(frames)

    def put_back(self, va: int, data: bytes) -> None:
        """Store bytes that were at `va` before, whatever the mapping allows: to undo a step."""
        for span in self.page_table.spans(va, len(data)):
            offset = span.va - va
            self.physical.write(span.pa or 0, data[offset : offset + span.size])

    def check(self) -> None:
        """Assert every invariant of frames, page table, address space and direct map together."""
        self.physical.check()
        self.page_table.check()
        self.free_space.check()
        used = self.physical.used()
        mapped = self.page_table.frames_with(Prot.NONE, exclude=self.direct_map)
        numbers = (mapped // np.uint64(self.page_size)).astype(np.int64)
        assert used[numbers[numbers < len(used)]].all(), "a free frame is mapped"
        for span in self._spans_of(self.direct_map):
            assert span.pa == span.va - self.direct_map.start, f"direct map broken at {span.va:#x}"
            if span.prot is not Prot.RW:
                first = span.pa // self.page_size
                frames = used[first : first + span.size // self.page_size]
                assert frames.all(), f"a free frame near {span.va:#x} is {span.prot}"
        assert not self.wx_aliases(), "a frame is writable and executable"
        for free in self.free_space:
            for leaf in self.page_table.leaves(free):
                raise AssertionError(f"{leaf.va:#x} is mapped in free address space")
        for va, area in self._areas.items():
            assert all(span.pa is not None for span in self.page_table.spans(va, area.size))

    # Internals -------------------------------------------------------------------------------

    def _require(
        self, access: str, address: int, size: int, allowed: tuple[Prot, ...]
    ) -> list[Span]:
        if size < 0 or address < 0 or address + size > 1 << 64:
            raise AccessError(access, address, size, "not a range of 64-bit addresses")
        spans = []
        for span in self.page_table.spans(address, size):
            if span.pa is None or span.prot not in allowed:
                reason = "not mapped" if span.pa is None else f"mapped {span.prot}"
                raise AccessError(access, span.va, address + size - span.va, reason)
            spans.append(span)
        return spans

    def _spans_of(self, interval: Interval) -> Iterator[Span]:
        return self.page_table.spans(interval.start, interval.size)

    def _alias_runs(self, held: Frames | int) -> list[Interval]:
        """Return where the direct map shows these frames (or this run for a large leaf)."""
        base, page = self.direct_map.start, self.page_size
        if isinstance(held, int):
            return [Interval(base + held, base + held + self.large_size)]
        if len(held) == 1:
            start = base + int(held[0])
            return [Interval(start, start + page)]
        frames = np.sort(held)
        cuts = cuts_of(frames, page)
        return [
            Interval(base + int(frames[first]), base + int(frames[last - 1]) + page)
            for first, last in pairwise(cuts)
        ]

    def _fill_frames(self, held: Frames | int, pattern: bytes) -> None:
        for alias in self._alias_runs(held):
            start = alias.start - self.direct_map.start
            for done in range(0, alias.size, FILLED):
                size = min(FILLED, alias.size - done)
                self.physical.fill(start + done, size, pattern)
                self.on_fill(size)

    def _free_held(self, held: Frames | int) -> None:
        if isinstance(held, int):
            self.physical.free(held, self.paging.large_order)
        else:
            self.physical.free_frames(held)

    def _set_memory(
        self, va: int, size: int, *, on: Prot = Prot.NONE, off: Prot = Prot.NONE
    ) -> None:
        changes = [(Interval(va, va + size), on, off)]
        aliases: list[Interval] = []
        if on in WRITABLE or off in WRITABLE:
            aliases = self._alias_runs(self.page_table.frames(va, size, operation="protect"))
            changes += [(alias, on & Prot.RW, off & Prot.W) for alias in aliases]
        # W goes from the alias before X comes here: no frame has both for a moment.
        self._change(changes[::-1] if off in WRITABLE else changes)
        self.flush_tlb(Interval(va, va + size), *aliases)

    def _protect_alias(self, va: int, size: int, prot: Prot) -> None:
        aliases = self._alias_runs(self.page_table.frames(va, size))
        self._change([(alias, prot, RIGHTS & ~prot) for alias in aliases])

    def _change(self, changes: Sequence[tuple[Interval, Prot, Prot]]) -> None:
        """Add and drop rights in every range, or, where one range refuses, in none."""
        before: list[Span] = []
        last = len(changes) - 1  # which leaves all as it was when it refuses
        try:
            for index, (interval, on, off) in enumerate(changes):
                spans = list(self._spans_of(interval)) if index < last else ()
                self.page_table.change(interval.start, interval.size, on=on, off=off)
                before += spans
        except ExecmemError:
            self._restore(before)
            raise

    def _restore(self, spans: list[Span]) -> None:
        """Give spans the protection that they had, the last one first."""
        for span in reversed(spans):
            self.page_table.protect(span.va, span.size, span.prot)


def _rows(start: int, end: int, row: int) -> Iterator[tuple[int, int]]:
    """Yield (first address, bytes) of what is before, in and behind the rows of a range."""
    low, high = (align_up(start, row), align_down(end, row)) if row else (end, end)
    if low >= high:
        yield start, end - start
        return
    if start < low:
        yield start, low - start
    for at in range(low, high, row):
        yield at, row
    if high < end:
        yield high, end - high


def _is_in(held: Frames | int, runs: Collection[int]) -> bool:
    return isinstance(held, int) and held in runs


def _discard(callbacks: list[_Callback], callback: _Callback) -> None:
    with suppress(ValueError):
        callbacks.remove(callback)
