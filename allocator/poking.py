# SPDX-License-Identifier: GPL-2.0-or-later
"""text_poke: memory that is not writable is written through a short-lived alias.

The frames are mapped read-write at an address of their own, the bytes stored there, the alias
unmapped and flushed, and at the end all CPUs are synchronised; no leaf is split. Steps can be
left out, to see what each is for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np

from allocator.errors import AccessError, MappingError, PokeError
from allocator.events import Events
from allocator.pagetable import Frames, PageTable, Span
from allocator.physical import PhysicalMemory
from allocator.types import (
    READABLE,
    WRITABLE,
    Interval,
    PokeStep,
    Prot,
    Site,
    TextPoke,
    align_down,
    align_up,
)

FEW = 4  # pages

# Called with an address space (None: the kernel's), an address in it and bytes.
AliasStore: TypeAlias = Callable[[PageTable | None, int, bytes], None]


class Poked(Protocol):
    """What poking needs of kernel memory."""

    physical: PhysicalMemory
    page_size: int
    page_table: PageTable
    poking_mm: PageTable
    events: Events

    def read(self, address: int, size: int) -> bytes:
        """Return bytes that are mapped readable."""

    def write(self, address: int, data: bytes) -> None:
        """Store bytes where they are mapped writable."""

    def put_back(self, va: int, data: bytes) -> None:
        """Store bytes whatever the mapping allows."""

    def flush_tlb(self, *intervals: Interval, all_cpus: bool = True) -> None:
        """Drop the translations of `intervals`."""

    def sync_icaches(self, intervals: Collection[Interval]) -> None:
        """Make instruction fetches see what was written."""


def poke_many(
    memory: Poked,
    sites: Iterable[Site],
    text_poke: TextPoke,
    *,
    omit: Collection[PokeStep] = (),
    store: AliasStore | None = None,
) -> None:
    """Write memory that is not writable, through a short-lived alias; split no leaf.

    Sites are written in the order of their addresses, in as many steps as the alias's
    pages ask for, and all CPUs are synchronised once, after the last.

    Parameters
    ----------
    sites
        Where to write what; bytes that must stand there before are compared first.
    text_poke
        Where the alias lies, how many pages one step maps, and the granule.
    omit
        Steps to leave out.
    store
        Called with an address space (None: the kernel's), an address in it and bytes, to
        store them there; by default they are stored as the page table leads.

    Raises
    ------
    PokeError
        Not whole granules, not mapped, mapped writable, not the expected bytes, or two
        sites overlap: nothing was written. Or the bytes read back differ.
    """
    batch = ordered(memory, sites, text_poke)
    flush = PokeStep.FLUSH not in omit
    # A site of few pages by itself is one step either way, and page by page it takes less time.
    few = len(batch) == 1 and len(batch[0].new) <= FEW * memory.page_size
    gathers = text_poke.gathers and not few
    if gathers:
        _poke_gathered(memory, batch, text_poke, flush=flush)
    before: list[tuple[int, bytes]] = []
    for va, data, _ in () if gathers else batch:
        if len(batch) > 1:
            before.append((va, memory.read(va, len(data))))
        try:
            if PokeStep.ALIAS not in omit:
                _poke(memory, va, data, text_poke, flush=flush, store=store)
            elif store is None:
                memory.write(va, data)
            else:
                store(None, va, data)
        except MappingError:
            for address, old in before:
                memory.put_back(address, old)
            raise
        found = memory.read(va, len(data))
        if found != data:
            raise PokeError(va, len(data), f"the bytes read back differ: {found.hex()}")
    if not batch:
        return
    memory.events.pokes += len(batch)
    memory.events.poked_bytes += sum(len(site.new) for site in batch)
    if PokeStep.SYNC not in omit:
        memory.sync_icaches([Interval(s.address, s.address + len(s.new)) for s in batch])


def ordered(memory: Poked, sites: Iterable[Site], text_poke: TextPoke) -> list[Site]:
    """Return the sites in the order of their addresses, without empty ones.

    PokeError when `poke_many` would refuse one.
    """
    batch = [site for site in sites if _require_pokable(memory, site, text_poke)]
    batch.sort(key=lambda site: site.address)
    for one, following in pairwise(batch):
        if one.address + len(one.new) > following.address:
            reason = f"overlaps the site at {one.address:#x} in one batch"
            raise PokeError(following.address, len(following.new), reason)
    if text_poke.gathers:
        return batch  # the window is refused where it is mapped
    table = memory.poking_mm if text_poke.private else memory.page_table
    window = range(text_poke.alias.start, text_poke.alias.end, memory.page_size)
    if batch and any(map(table.translate, window)):
        site, reason = batch[0], f"the alias window {text_poke.alias} is mapped already"
        raise PokeError(site.address, len(site.new), reason)
    return batch


def _require_pokable(memory: Poked, site: Site, text_poke: TextPoke) -> bool:
    """Return whether there is something to write; refuse what cannot be poked."""
    va, data, expected = site
    size = len(data)
    if (va | size) % text_poke.granule:
        reason = f"not in granules of {text_poke.granule} bytes ({text_poke.name})"
        raise PokeError(va, size, reason)
    page_table = memory.page_table
    leaf = page_table.translate(va)
    spans: Iterable[Span] = ()
    if leaf is None or leaf.prot is not Prot.RX or va % leaf.leaf + size > leaf.leaf:
        spans = page_table.spans(va, size)
    for span in spans:
        if span.pa is None:
            raise PokeError(va, size, f"{span.va:#x} is not mapped")
        if span.prot in WRITABLE:
            raise PokeError(va, size, f"{span.va:#x} is writable: write it plainly")
        if span.prot not in READABLE:
            raise PokeError(va, size, f"{span.va:#x} is mapped {span.prot}")
    if data and expected is not None:
        found = memory.read(va, size)
        if found != expected:
            raise PokeError(va, size, f"found {found.hex()}, expected {expected.hex()}")
    return bool(data)


def _poke(
    memory: Poked,
    va: int,
    data: bytes,
    text_poke: TextPoke,
    *,
    flush: bool,
    store: AliasStore | None,
) -> None:
    """Store `data` step by step: map the frames at the alias, store, unmap, flush."""
    mm = memory.poking_mm if text_poke.private else None
    table = memory.page_table if mm is None else mm
    page_size = memory.page_size
    size, first = len(data), align_down(va, page_size)
    found = map(memory.page_table.translate, range(first, va + size, page_size))
    frames = [page.address for page in found if page is not None]
    # Only what takes several steps can fail with some bytes written.
    before = memory.read(va, size) if len(frames) > text_poke.pages else b""
    done = 0
    for index in range(0, len(frames), text_poke.pages):
        step = frames[index : index + text_poke.pages]
        alias = text_poke.window
        pages = range(alias, alias + len(step) * page_size, page_size)
        offset = (va + done) % page_size
        count = min(size - done, len(step) * page_size - offset)
        mapped, dropped = 0, Interval(pages.start, pages.stop)
        try:
            for page, frame in zip(pages, step, strict=True):
                table.set_pte(page, frame, Prot.RW)
                mapped += 1
            if flush and text_poke.flush_first:
                memory.flush_tlb(dropped, all_cpus=False)
            if store is None:
                _store(memory, mm, alias + offset, data[done : done + count])
            else:
                store(mm, alias + offset, data[done : done + count])
        except MappingError:
            memory.put_back(va, before[:done])
            raise
        finally:
            for page in pages[:mapped]:
                table.clear_pte(page)
            if flush:
                memory.flush_tlb(dropped, all_cpus=text_poke.broadcast)
        done += count


def _poke_gathered(memory: Poked, batch: list[Site], text_poke: TextPoke, *, flush: bool) -> None:
    """Store the whole batch: map every site side by side, store, unmap, flush once.

    PokeError where the batch is larger than the window, MappingError where that is mapped;
    nothing was written.
    """
    page, table = memory.page_size, memory.poking_mm
    places: list[tuple[int, bytes]] = []
    frames: list[Frames] = []
    at, last = text_poke.window, -1
    for va, data, _ in batch:
        first, end = align_down(va, page), align_up(va + len(data), page)
        if first == last:  # begins on the page where the site before ended
            places.append((at - page + va - first, data))
            first += page
        else:
            places.append((at + va - first, data))
        if first < end:
            frames.append(memory.page_table.frames(first, end - first))
            at += end - first
        last = end - page
    size = at - text_poke.window
    if size > text_poke.alias.size:
        raise PokeError(batch[0].address, size, f"more than the window {text_poke.alias}")
    if not frames:
        return
    table.map(text_poke.window, np.concatenate(frames), Prot.RW, size=size)
    try:
        for address, data in places:
            for span in table.spans(address, len(data)):
                offset = span.va - address
                memory.physical.write(span.pa or 0, data[offset : offset + span.size])
    finally:
        table.unmap(text_poke.window, size)
        if flush:
            memory.flush_tlb(text_poke.used(size), all_cpus=text_poke.broadcast)
    for va, data, _ in batch:
        if memory.read(va, len(data)) != data:
            raise PokeError(va, len(data), "the bytes read back differ")


def _store(memory: Poked, mm: PageTable | None, address: int, data: bytes) -> None:
    """Store `data` as the address space leads, where it lets."""
    if mm is None:
        memory.write(address, data)
        return
    done = 0
    while done < len(data):
        at = address + done
        count = memory.page_size - at % memory.page_size
        found = mm.translate(at)
        if found is None or found.prot not in WRITABLE:
            raise AccessError("write", at, len(data) - done, "not mapped writable")
        memory.physical.write(found.address, data[done : done + count])
        done += count
