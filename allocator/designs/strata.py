# SPDX-License-Identifier: GPL-2.0-or-later
"""Strata: the trees of the thread, laid down in order of reach. This project's own design.

Like `per_type` it keeps mapped memory by kind in chunks of 2 MiB, and it goes further where
that design, and what Linux built, stop:

    stratum        chunk    granule          written by             unused memory holds
    text           R-X 2M   64, 16, 8 B      text_poke              the trap pattern
    rodata         R-- 2M   64 B             text_poke              zero
    ro_after_init  R-- 2M   4 KiB            open slice until seal  zero
    data           RW- 2M   64 B             plain stores           anything; zeroed when taken

**Large leaves for all.** Memory that is sealed after init lives in read-only chunks of its
own. Its slice is open from birth to seal; then it is closed and the leaf heals, so even
ro_after_init ends under large leaves.

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

**The direct map is changed once.** A chunk takes W from its alias as one 2 MiB leaf when it
is made and gives it back when it is returned; slices are opened without touching the alias.
There are no guard pages, so chunks touch, and an empty one is returned at once.

Without text_poke, text and rodata are page granular and written through open slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from allocator.designs.base import Allocation, Context, Design, Place, Request, Store
from allocator.designs.pool import Pool
from allocator.intervals import IntervalSet
from allocator.types import Consumer, ExecmemType, Interval, MemType, Prot

GRANULE = 64
FINE = {Consumer.KPROBES: 8, Consumer.FTRACE: 16, Consumer.BPF: 16, Consumer.THUNK: 16}


class Strata(Design):
    """Large leaves for every kind, text nearest to the kernel, scarce room last."""

    name = "strata"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        memory, poke = context.memory, context.text_poke
        page = memory.page_size
        written = GRANULE if poke else page
        fine = FINE if poke else {}
        self.text = Pool(memory, written, Prot.RX, context.trap, poke=poke, fine=fine, lone=True)
        self.rodata = Pool(memory, written, Prot.R, b"\0", poke=poke, lone=True)
        self.data = Pool(memory, GRANULE, Prot.RW, b"\0")
        self.ro_after_init = Pool(memory, page, Prot.R, b"\0", lone=True)
        self._places: dict[tuple[MemType, ExecmemType], tuple[Place, ...]] = {}

    def store(self, what: Request | Allocation) -> Store:
        """Return the stratum of the type; all consumers share it."""
        if what.type is MemType.RO_AFTER_INIT:
            return self.ro_after_init
        return {Prot.RX: self.text, Prot.R: self.rodata, Prot.RW: self.data}[what.type.final_prot]

    def stores(self) -> tuple[Store, ...]:
        """Return the four strata."""
        return self.text, self.rodata, self.data, self.ro_after_init

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
