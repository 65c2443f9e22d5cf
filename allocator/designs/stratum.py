# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools that flush as seldom as can be: what strata keeps its memory in.

A flush is needed where a TLB may still hold what a page table does not say any more. So both
kinds of pools here avoid to take a right away from what a CPU may have looked up:

`Stratum`  is final from birth and written through a window. The window is a mapping in an address
           space of its own, which only the CPU that writes has loaded, and only while it writes:
           one mapping and one flush of one CPU for all that is written at a time, none of others.
           Its chunks take W from the direct map several at a time.

`Ledger`   is written in place, by whoever owns the memory (ro_after_init) or for want of
           text_poke. Its free memory is mapped as pages that are writable and not executable, so
           taking an area out changes nothing. Closing one takes W from its pages, and from the
           chunk's alias when it is the first, with one flush; when nothing in the chunk is open
           or free any more, the same flush makes it one large leaf. What is not full heals when
           nobody asks for memory (`quiet`).

    free, ready   RW-, pages, clean: taken without a flush
    open          RW-, pages: pending, or not sealed yet
    closed        R-- or R-X, for good
    free, closed  the same: behind a heal, or freed; opened along with the next flush that closes
                  something in the chunk, unless that is one leaf, or when what is ready is too
                  little, all of a chunk with one flush

Text that is freed is not left executable: it is opened at once. What is only readable stays as it
is until then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack

import attrs

from allocator.designs.base import Allocation, Place, Request, allocate
from allocator.designs.pool import Pool
from allocator.errors import ExecmemError
from allocator.intervals import IntervalSet
from allocator.memory import KernelMemory
from allocator.physical import repeat
from allocator.types import Interval, Prot, Site, TextPoke, align_up


@attrs.define(eq=False)
class Stratum(Pool):
    """Chunks that are read-only from birth, several of them taken from the direct map at once."""

    ahead: int = attrs.field(default=1, kw_only=True)

    def back(self, mapped: Interval) -> bool:
        """Map new chunks, and take the alias of the next."""
        return self.memory.populate(
            mapped.start,
            mapped.size,
            self.prot,
            large=self.large,
            runs=self.runs,
            pattern=self.pattern,
            ahead=self.ahead,
        )


@attrs.define
class Closing:
    """What goes along when slices are closed.

    Aliases lose W, what was free and closed is opened, and chunks become large leaves or runs.
    """

    aliases: list[Interval] = attrs.field(factory=list)
    opened: list[Interval] = attrs.field(factory=list)
    whole: list[Interval] = attrs.field(factory=list)


@attrs.define(eq=False)
class Ledger(Pool):
    """Chunks whose free memory is writable, closed slice by slice."""

    ready: IntervalSet = attrs.field(factory=IntervalSet, init=False)
    opened: IntervalSet = attrs.field(factory=IntervalSet, init=False)

    def alloc(self, request: Request, places: Iterable[Place]) -> Allocation:
        """Take an area out that is open already, or open what is free in a chunk."""
        size, align = align_up(request.size, self.granule), max(request.align, self.granule)

        def take(place: Place) -> Interval | None:
            return self.take(size, align, place)

        area, fallback = allocate(request, self.memory, places, take)
        self.opened.add(area)
        return Allocation.of(request, area, fallback=fallback)

    def take(self, size: int, align: int, place: Place) -> Interval | None:
        """Carve `size` bytes out of what is ready, of what is free, or of a new chunk."""
        highest, within = place.areas_highest, place.interval
        start = self.ready.find(size, alignment=align, within=within, highest=highest)
        if start is None:
            start = self.free_areas.find(size, alignment=align, within=within, highest=highest)
            if start is not None:
                self.reopen(Interval(start, start + size))
        if start is None:
            area = super().take(size, align, place)
            if area is not None:
                self.ready.remove(area)
            return area
        area = Interval(start, start + size)
        self.free_areas.remove(area)
        self.ready.remove(area)
        return area

    def back(self, mapped: Interval) -> bool:
        """Map new chunks by pages, ready to be taken."""
        whole = self.memory.populate(
            mapped.start,
            mapped.size,
            Prot.RW,
            large=self.large,
            runs=self.runs,
            paged=True,
            pattern=self.pattern,
        )
        self.ready.add(mapped)
        return whole

    def finish(self, allocation: Allocation) -> None:
        """Close it, but what is sealed later."""
        shut([(self, allocation.taken)])

    def seal(self, allocation: Allocation) -> None:
        """Close it."""
        shut([(self, allocation.taken)])

    def is_open(self, area: Interval) -> bool:
        """Return whether an area is pending, or not sealed yet."""
        held = self.opened.holding(area.start)
        return held is not None and held.holds(area)

    def touched(self, area: Interval) -> list[Interval]:
        """Return the chunks that an area lies in."""
        first = next(self.chunks.irange(None, area.start, reverse=True))
        starts = self.chunks.irange(first, area.end, (True, False))
        return [Interval(start, self.chunks[start][0]) for start in starts]

    def full(self, chunk: Interval) -> bool:
        """Return whether nothing in a chunk is open, or ready to be."""
        return not any(self.opened.clipped(chunk)) and not any(self.ready.clipped(chunk))

    def reopen(self, area: Interval) -> None:
        """Make all free memory of the chunks that `area` lies in ready, with one flush."""
        closed = [part for chunk in self.touched(area) for part in self.closed(chunk)]
        self.memory.update([(part, Prot.RW) for part in closed])
        self.opening(closed)

    def closed(self, chunk: Interval) -> list[Interval]:
        """Return the free parts of a chunk that are not ready."""
        return [
            part
            for free in self.free_areas.clipped(chunk)
            for part in _without(free, self.ready.clipped(free))
        ]

    def opening(self, parts: Iterable[Interval]) -> None:
        """Note that free memory is writable now, and clean it."""
        for part in parts:
            self.memory.fill(part.start, part.size, self.pattern)
            if self.prot is Prot.RX:
                self.memory.sync_icache(part.start, part.end)
            self.ready.add(part)

    def closing(self, areas: Iterable[Interval]) -> Closing:
        """Return what else happens when areas are closed.

        What was freed in their chunks is opened with the same flush; a chunk in which nothing
        is free or open becomes a large leaf, or runs.
        """
        found = Closing()
        large, page = self.memory.large_size, self.memory.page_size
        for chunk in dict.fromkeys(chunk for area in areas for chunk in self.touched(area)):
            found.aliases += self.memory.writable_aliases(chunk.start, chunk.size)
            closed = self.closed(chunk)
            leaf = self.memory.translate(chunk.start)
            if leaf is not None and leaf.leaf == page:
                found.opened += closed
            if (chunk.size == large or self.runs) and not closed and self.full(chunk):
                found.whole.append(chunk)
        return found

    def healing(self) -> list[Interval]:
        """Return the chunks in which leaves could be larger if what is ready were closed."""
        found = []
        for start, (end, _) in self.chunks.items():
            chunk = Interval(start, end)
            if not any(self.opened.clipped(chunk)) and self._heals(chunk):
                found.append(chunk)
        return found

    def _heals(self, chunk: Interval) -> bool:
        """Return whether frames of a chunk lie as a larger leaf wants them, which it has not."""
        table, large, page = self.memory.page_table, self.memory.large_size, self.memory.page_size
        row = self.memory.paging.run if self.runs else 0
        sizes = [large] * (chunk.size == large) + [row] * bool(row)
        for size in sizes:
            for at in range(align_up(chunk.start, size), chunk.end - size + 1, size):
                leaf = table.translate(at)
                if leaf is None or leaf.leaf >= size or leaf.address % size:
                    continue
                frames = table.frames(at, size)
                if int(frames[-1] - frames[0]) == size - page:
                    return True
        return False

    def check(self, live: Iterable[Allocation]) -> None:
        """Assert that free areas and allocations fill the chunks, and that what is ready is clean."""
        live = list(live)
        self.ready.check()
        self.opened.check()
        for area in self.ready:
            free = self.free_areas.holding(area.start)
            assert free is not None, f"{area} is ready and not free"
            assert free.holds(area), f"{area} is ready and not free"
        for area in self.opened:
            assert self.free_areas.holding(area.start) is None, f"{area} is open and free"
        super().check(live)

    def check_free(self, area: Interval) -> None:
        """Assert that a free area is ready and clean, or closed."""
        for part in self.ready.clipped(area):
            for span in self.memory.page_table.spans(part.start, part.size):
                assert span.prot is Prot.RW, f"ready {span.va:#x} is mapped {span.prot}"
            self.check_clean(part)
        for part in _without(area, self.ready.clipped(area)):
            for span in self.memory.page_table.spans(part.start, part.size):
                assert span.prot is self.prot, f"free {span.va:#x} is mapped {span.prot}"
            if self.prot is Prot.RX:
                self.check_clean(part)


def shut(closing: Sequence[tuple[Ledger, Interval]]) -> None:
    """Close areas of ledgers over one memory, with one flush; nothing where it is refused."""
    memory = closing[0][0].memory
    by_ledger: dict[int, tuple[Ledger, list[Interval]]] = {}
    for ledger, area in closing:
        by_ledger.setdefault(id(ledger), (ledger, []))[1].append(area)
        ledger.opened.remove(area)
    beside = [(ledger, ledger.closing(areas)) for ledger, areas in by_ledger.values()]
    changes = [(area, ledger.prot) for ledger, area in closing]
    changes += [(part, Prot.RW) for _, found in beside for part in found.opened]
    try:
        memory.update(
            changes,
            aliases=[alias for _, found in beside for alias in found.aliases],
            whole=[chunk for _, found in beside for chunk in found.whole],
        )
    except ExecmemError:
        for ledger, area in closing:
            ledger.opened.add(area)
        raise
    for ledger, found in beside:
        ledger.opening(found.opened)


def heal(ledgers: Collection[Ledger]) -> None:
    """Close what is ready in chunks where nothing is open: large leaves again, with one flush."""
    changes: list[tuple[Interval, Prot]] = []
    aliases: list[Interval] = []
    chunks: list[tuple[Ledger, Interval]] = []
    memory: KernelMemory | None = None
    for ledger in ledgers:
        memory = ledger.memory
        for chunk in ledger.healing():
            chunks.append((ledger, chunk))
            changes += [(part, ledger.prot) for part in ledger.ready.clipped(chunk)]
            aliases += memory.writable_aliases(chunk.start, chunk.size)
    if memory is None or not chunks:
        return
    memory.update(changes, aliases=aliases, whole=[chunk for _, chunk in chunks])
    for ledger, chunk in chunks:
        for part in list(ledger.ready.clipped(chunk)):
            ledger.ready.remove(part)


def release(
    freed: Sequence[tuple[Pool, Allocation]],
    taking_ahead: Sequence[Pool],
    forget: Sequence[Interval] = (),
) -> None:
    """Free allocations of pools over one memory; nothing where a step of it is refused.

    That is one flush of this CPU for what is written through the window, and one of all CPUs
    where text was closed, and where chunks are given back.

    Parameters
    ----------
    taking_ahead
        All pools that take from the direct map ahead; the last chunk of theirs takes that along.
    forget
        Dropped from all TLBs along with a chunk that is given back.
    """
    memory = freed[0][0].memory
    gone = _given_back(freed)
    staying = [
        (pool, part)
        for pool, one in freed
        for part in _without(one.taken, [chunk for held, chunk in gone if held is pool])
    ]
    sites = [
        Site(part.start, repeat(pool.pattern, part.size, part.start))
        for pool, part in staying
        if pool.poke is not None
    ]
    before = [Site(site.address, memory.read(site.address, len(site.new))) for site in sites]
    closed = [
        part
        for pool, part in staying
        if isinstance(pool, Ledger) and pool.prot is Prot.RX and not pool.is_open(part)
    ]
    undo = ExitStack()
    with undo:
        undo.callback(_take_back, freed)
        if sites:
            memory.poke_many(sites, _window(staying))
            undo.callback(_put_back, memory, before)
        if closed:
            memory.update([(part, Prot.RW) for part in closed])
            undo.callback(memory.update, [(part, Prot.RX) for part in closed])
        if gone:
            left = sum(len(pool.chunks) for pool in taking_ahead)
            left -= sum(any(held is pool for pool in taking_ahead) for held, _ in gone)
            chunks = [chunk for _, chunk in gone]
            memory.depopulate_all(chunks, ahead=not left, forget=forget)
        undo.pop_all()
    for pool, part in staying:
        if isinstance(pool, Ledger) and (pool.is_open(part) or part in closed):
            memory.fill(part.start, part.size, pool.pattern)
            if pool.prot is Prot.RX:
                memory.sync_icache(part.start, part.end)
            pool.ready.add(part)
        if pool.prot is Prot.RX:
            memory.events.filled_bytes += part.size
    for pool, one in freed:
        if isinstance(pool, Ledger) and pool.is_open(one.taken):
            pool.opened.remove(one.taken)
    for pool, chunk in gone:
        pool.free_areas.remove(chunk)
        if isinstance(pool, Ledger):
            for part in list(pool.ready.clipped(chunk)):
                pool.ready.remove(part)
        _, reserved_end = pool.chunks.pop(chunk.start)
        memory.release(Interval(chunk.start, reserved_end))
        memory.events.chunks_returned += 1


def _given_back(freed: Iterable[tuple[Pool, Allocation]]) -> list[tuple[Pool, Interval]]:
    """Mark areas as free; return the chunks that are wholly free now."""
    found: dict[int, tuple[Pool, Interval]] = {}
    for pool, one in freed:
        merged = pool.free_areas.add(one.taken)
        for start in pool.surplus(merged):
            found[start] = (pool, Interval(start, pool.chunks[start][0]))
    return [found[start] for start in sorted(found)]


def _take_back(freed: Iterable[tuple[Pool, Allocation]]) -> None:
    for pool, one in freed:
        pool.free_areas.remove(one.taken)


def _put_back(memory: KernelMemory, sites: Iterable[Site]) -> None:
    for address, content, _ in sites:
        memory.put_back(address, content)


def _window(pools: Iterable[tuple[Pool, Interval]]) -> TextPoke:
    return next(pool.poke for pool, _ in pools if pool.poke is not None)


def _without(whole: Interval, parts: Iterable[Interval]) -> list[Interval]:
    """Return what is left of `whole` between parts of it."""
    left, at = [], whole.start
    for part in sorted(parts):
        if part.start > at and at < whole.end:
            left.append(Interval(at, min(part.start, whole.end)))
        at = max(at, part.end)
    if at < whole.end:
        left.append(Interval(at, whole.end))
    return left
