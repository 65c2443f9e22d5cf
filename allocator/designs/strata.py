# SPDX-License-Identifier: GPL-2.0-or-later
"""Strata: the trees of the thread, laid down in order of reach. This project's own design.

Like `per_type` it keeps mapped memory by kind in chunks of 2 MiB, and it goes further where
that design, and what Linux built, stop:

    stratum        chunk    granule          written by             unused memory holds
    text           R-X 2M   64, 16, 8 B      a window               the trap pattern
    rodata         R-- 2M   64 B             a window               zero
    ro_after_init  R-- 2M   4 KiB            whoever owns it        zero while it is writable
    data           RW- 2M   64 B             plain stores           anything; zeroed when taken

**Large leaves for all.** Memory that is sealed after init lives in chunks of its own. What is
free there is writable pages until the chunk is full, or nobody asks for more; then the leaf
heals, so even ro_after_init ends under large leaves.

**A flush only where a right goes.** Text and rodata are written through a window of one CPU,
all of a load at once; ro_after_init is taken from memory that is writable already and closed
once. So a load flushes one CPU's TLB once and others' not at all, a seal all CPUs' once, and
what is freed waits in its large leaf (`stratum`).

**Near first.** Text takes the end of its range that is nearer to the kernel image, which it
calls, and packs towards it; there the short branches of arm64 reach without a PLT entry.

**Scarce room last.** A class keeps out of the range of a class with fewer choices as long
as it can: data and rodata out of the text window where a fallback range offers room that
ADRP reaches (arm64: all 91 MiB beside the image are left to text, data has the rest of the
2 GiB), kprobes and BPF out of the modules' window, module text out of a BPF window inside
its own (riscv64). Where text and data must share a window they start at opposite ends.

**Init from the other end.** Init areas are carved from the far end of what is mapped
already. Freeing them joins the free tail of a chunk: no hole is left between areas that
stay, no chunk is pinned, and the room serves probes, trampolines and programs.

**Small areas small.** Modules take cache lines; slots of kprobes 8 bytes, trampolines,
thunks and BPF programs 16, unless more alignment is asked for.

**The direct map is changed once.** A chunk takes W from its alias as one 2 MiB leaf before
anything in it is final, two chunks at a time, and gives it back when it is returned. There are no
guard pages, so chunks touch, and an empty one is returned at once.

Without text_poke, text and rodata are page granular and written in place, as ro_after_init is: a
load then flushes all CPUs once, and so does freeing text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from allocator.designs.base import Allocation, Context, Design, Place, Request
from allocator.designs.pool import Pool
from allocator.designs.stratum import Ledger, Stratum, heal, release, shut
from allocator.intervals import IntervalSet
from allocator.types import (
    GIB,
    Consumer,
    ExecmemType,
    Interval,
    MemType,
    PokeStep,
    Prot,
    TextPoke,
)

GRANULE = 64
FINE = {Consumer.KPROBES: 8, Consumer.FTRACE: 16, Consumer.BPF: 16, Consumer.THUNK: 16}


# In the lower half of every architecture's addresses, where the address space of its own has
# nothing else.
WINDOW, WINDOW_PAGES = 64 * GIB, 1 << 18


def window(poke: TextPoke) -> TextPoke:
    """Return how strata writes memory that is final from birth.

    In the granules of text_poke, but in an address space that no other CPU has loaded, and all
    sites of a batch at once.
    """
    return attrs.evolve(
        poke,
        name="window",
        window=WINDOW,
        windows={},
        pages=WINDOW_PAGES,
        private=True,
        broadcast=False,
        flush_first=False,  # nobody else maps anything there
        gathers=True,
    )


class Strata(Design):
    """Large leaves for every kind, text nearest to the kernel, scarce room last."""

    name = "strata"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        memory, poke = context.memory, context.text_poke
        page = memory.page_size
        written = GRANULE if poke else page
        fine = FINE if poke else {}
        self.window = None if poke is None else window(poke)
        kind = Ledger if poke is None else Stratum
        # What is written through the window and data keep their mapping as long as the chunk lives.
        live = memory.page_table.live_splits
        runs, by = poke is not None or live, self.window
        self.text = kind(memory, written, Prot.RX, context.trap, poke=by, fine=fine, runs=runs)
        self.rodata = kind(memory, written, Prot.R, b"\0", poke=by, runs=runs)
        self.data = Pool(memory, GRANULE, Prot.RW, b"\0", runs=True)
        self.ro_after_init = Ledger(memory, page, Prot.R, b"\0", runs=live)
        self._places: dict[tuple[MemType, ExecmemType], tuple[Place, ...]] = {}
        # text_poke's alias, where other CPUs may have looked it up and nobody tells them.
        local = poke is not None and not poke.private and not poke.broadcast
        self._forget = [poke.alias] if poke is not None and local else []

    def store(self, what: Request | Allocation) -> Pool:
        """Return the stratum of the type; all consumers share it."""
        if what.type is MemType.RO_AFTER_INIT:
            return self.ro_after_init
        return {Prot.RX: self.text, Prot.R: self.rodata, Prot.RW: self.data}[what.type.final_prot]

    def stores(self) -> tuple[Pool, ...]:
        """Return the four strata."""
        return self.text, self.rodata, self.data, self.ro_after_init

    # Several at a time ---------------------------------------------------------------------

    def write(self, allocation: Allocation, offset: int, data: bytes) -> None:
        """Store through the window, or in place."""
        self.write_many([(allocation, offset, data)])

    def write_many(self, writes: Sequence[tuple[Allocation, int, bytes]]) -> None:
        """Store in place, and through the window all that has to go there at once."""
        sites = []
        for allocation, offset, data in writes:
            pool = self.store(allocation)
            if pool.poke is None:
                pool.write(allocation, offset, data)
            else:
                sites.append(pool.site(allocation.address + offset, data, pool.poke))
        if sites and self.window is not None:
            # Nothing is fetched before `finish`, which makes fetches see it.
            self.memory.poke_many(sites, self.window, omit={PokeStep.SYNC})

    def finish(self, allocation: Allocation) -> None:
        """Make instruction fetch see text; close what is written in place."""
        self.finish_many([allocation], lambda _: None)

    def finish_many(
        self, allocations: Sequence[Allocation], done: Callable[[Allocation], object]
    ) -> None:
        """Finish all or none."""
        closing = []
        for allocation in allocations:
            pool = self.store(allocation)
            if isinstance(pool, Ledger) and pool is not self.ro_after_init:
                closing.append((pool, allocation.taken))
        texts = [allocation.interval for allocation in allocations if allocation.type.is_text]
        if texts:
            self.memory.sync_icaches(texts)
        if closing:
            shut(closing)
        for allocation in allocations:
            done(allocation)

    def abandon(self, allocation: Allocation) -> None:
        """Give back an allocation that was not finished."""
        self.free(allocation)

    def free(self, allocation: Allocation) -> None:
        """Give the memory back."""
        self.free_many([allocation], lambda _: None)

    def free_many(
        self, allocations: Sequence[Allocation], done: Callable[[Allocation], object]
    ) -> None:
        """Free all or none."""
        if allocations:
            ahead = [pool for pool in self.stores() if isinstance(pool, Stratum)]
            release([(self.store(one), one) for one in allocations], ahead, self._forget)
        for allocation in allocations:
            done(allocation)

    def quiet(self) -> None:
        """Let leaves heal where nothing is open."""
        heal([pool for pool in self.stores() if isinstance(pool, Ledger)])

    # Where to look -------------------------------------------------------------------------

    def places(self, request: Request) -> Iterable[Place]:
        """Return the parts of the ranges by scarcity, each from the end that suits the type."""
        key = request.type, ExecmemType.of(request.type, request.consumer)
        if key not in self._places:
            places = self._text_places if request.type.is_text else self._data_places
            self._places[key] = tuple(places(request))
        return self._places[key]

    def _text_places(self, request: Request) -> Iterator[Place]:
        """Yield each range without the narrower windows inside it, then as a whole."""
        windows = self._windows()
        for index, whole in enumerate(request.intervals):
            scarce = [held for held in windows if held != whole and whole.holds(held)]
            for keep_out in (scarce, ()):
                for part in self._parts(whole, keep_out):
                    yield self._place(part, request, fallback=bool(index), near=True)

    def _data_places(self, request: Request) -> Iterator[Place]:
        """Yield what no text window needs, nearest first, then the windows from afar."""
        windows, apart = self._windows(), False
        for whole in request.intervals:
            for part in self._parts(whole, windows):
                apart = True
                yield self._place(part, request, fallback=False, near=True)
        for whole in request.intervals:
            for part in self._parts(whole, ()):
                yield self._place(part, request, fallback=apart, near=False)

    def _windows(self) -> list[Interval]:
        """Return the first choice of every class of text."""
        classes = [kind for kind in ExecmemType if kind is not ExecmemType.MODULE_DATA]
        return [self.memory.address_map.range_of(kind).range for kind in classes]

    def _parts(self, whole: Interval, keep_out: Sequence[Interval]) -> list[Interval]:
        """Return `whole` without image and windows, nearest to the image first."""
        image = self.memory.address_map.image
        parts = IntervalSet([whole])
        for held in (image, *keep_out):
            for part in list(parts):
                if part.overlaps(held):
                    parts.remove(Interval(max(part.start, held.start), min(part.end, held.end)))
        return sorted(parts, key=lambda part: max(part.start - image.end, image.start - part.end))

    def _place(self, part: Interval, request: Request, *, fallback: bool, near: bool) -> Place:
        highest = (part.start < self.memory.address_map.image.start) is near
        return Place(
            interval=part,
            fallback=fallback,
            highest=highest,
            areas_highest=highest is not request.type.is_init,
        )
