# SPDX-License-Identifier: GPL-2.0-or-later
"""What a patch really does, written down while it is made: the program of the CPU that patches.

Nothing is told twice: `machine.patch_many` runs, and page tables, frames, TLB flushes,
synchronisation, the trap handler's table and the places where it looks where CPUs stand are
watched. So a change of the protocol is a change of what is searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from allocator import PageTable, Site
from allocator.pagetable import Frames
from allocator.types import Interval, align_down
from machine.machine import ModelledMachine
from machine.patching import Phase, Way
from machine.racing.state import (
    Arm,
    Done,
    FlushAlias,
    FlushText,
    Go,
    LookInside,
    Maintain,
    MapAlias,
    Op,
    Place,
    Protect,
    Put,
    Stop,
    Sync,
)


@attrs.define
class Recorder:
    """Writes down what happens to some sites of a machine's text.

    Parameters
    ----------
    machine
        Where it happens.
    places
        The sites, whose granules are numbered from 0.
    executors
        How many CPUs there are beside the one that patches.
    mine
        Those of the sites that are patched, by number; None: all.
    text
        A page of text whose rights count; None: they do not.
    alias_pages
        Numbers of the alias's pages, by address space and address; those of several recorders
        may be one.
    """

    machine: ModelledMachine
    places: Sequence[Place]
    executors: int
    mine: Sequence[int] | None = None
    text: int | None = None
    ops: list[Op] = attrs.field(factory=list)
    alias_pages: dict[tuple[int, int], int] = attrs.field(factory=dict)
    _mapped: dict[int, int] = attrs.field(factory=dict)  # page of the alias -> frame
    _cells: dict[int, int] = attrs.field(factory=dict)  # physical address -> granule
    _armed: tuple[int, ...] = ()
    _rights: str = ""
    _synced: set[int] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        for place in self.places:
            for index, cell in enumerate(place.cells):
                self._cells[self._physical(place.address + index * self.granule)] = cell

    @property
    def granule(self) -> int:
        """Bytes that are stored as a whole."""
        poke = self.machine.arch.text_poke
        return poke.granule if poke is not None else 1

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame of each granule, in order."""
        page = self.machine.memory.page_size
        return tuple(align_down(address, page) for address in self._cells)

    @property
    def program(self) -> tuple[Op, ...]:
        """What was done."""
        self._settle()
        return tuple(self.ops)

    def _physical(self, address: int) -> int:
        found = self.machine.memory.translate(address)
        assert found is not None
        return found.address

    # Watching ------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Write down what happens inside."""
        memory, caller = self.machine.memory, self.machine.caller
        kept = caller.threads
        caller.threads = _Watched(kept, self._looked)
        watched: list[tuple[Any, str, Callable[..., None]]] = [
            (memory.physical, "write", self._wrote),
            *(
                (table, name, after)
                for table in (memory.page_table, memory.poking_mm)
                for name, after in (
                    ("set_pte", lambda va, pa, _prot, t=table: self._map(t, va, pa)),
                    ("clear_pte", lambda va, t=table: self._map(t, va, None)),
                )
            ),
            (memory.poking_mm, "map", self._map_all),
            (memory.poking_mm, "unmap", self._unmap_all),
        ]
        undo = [memory.on_tlb_flush(self._flushed), memory.on_icache_sync(self._sync)]
        self._rights = self.allowed()
        for subject, name, before in watched:
            setattr(subject, name, _told(getattr(subject, name), before))
        try:
            yield
            self._settle()
        finally:
            for subject, name, _ in watched:
                delattr(subject, name)  # the class's own is seen again
            for unsubscribe in undo:
                unsubscribe()
            caller.threads = kept

    def at_phase(self, phase: Phase) -> None:
        """Write down a phase of a patch."""
        everybody = range(self.executors)
        if phase is Phase.STOPPED:
            self._settle()
            self.ops += [Stop(executor) for executor in everybody]
        elif phase is Phase.DONE:
            self._settle()
            if any(isinstance(op, Stop) for op in self.ops):
                self.ops.append(Go())
            mine = range(len(self.places)) if self.mine is None else self.mine
            self.ops.append(Done(tuple(mine)))

    def _settle(self) -> None:
        """Write down what is noticed late: rights, the handler's table, synchronisation."""
        if self._synced:
            cells = tuple(sorted(self._synced))
            self._synced.clear()
            live = self.machine.arch.live_patch
            self.ops += [Maintain(name, cells) for name in (live.maintenance if live else ())]
            self.ops += [Sync(executor, cells) for executor in range(self.executors)]
        armed = tuple(at for at in self.machine.breakpoints if self._is_place(at))
        if armed != self._armed:
            self._armed = armed
            self.ops.append(Arm(armed))
        rights = self.allowed()
        if rights != self._rights:
            self._rights = rights
            self.ops.append(Protect(rights))

    def _is_place(self, address: int) -> bool:
        return any(address == place.address for place in self.places)

    def allowed(self) -> str:
        """Return what the page of text allows by its page table; empty: it does not count."""
        if self.text is None:
            return ""
        found = self.machine.memory.translate(self.text)
        return "---" if found is None else str(found.prot)

    def _looked(self) -> None:
        self._settle()
        if not self.ops or not isinstance(self.ops[-1], LookInside):
            self.ops.append(LookInside())

    def _map(self, table: PageTable, address: int, frame: int | None) -> None:
        self._settle()
        key = (int(table is self.machine.memory.poking_mm), address)
        page = self.alias_pages.setdefault(key, len(self.alias_pages))
        self.ops.append(MapAlias(page, frame))
        if frame is None:
            self._mapped.pop(page, None)
        else:
            self._mapped[page] = frame

    def _map_all(self, va: int, frames: Frames | int, _prot: object, *, size: int) -> None:
        """Write down that a window is mapped, as far as sites are in it."""
        page = self.machine.memory.page_size
        for index, at in enumerate(range(va, va + size, page)):
            frame = frames + index * page if isinstance(frames, int) else int(frames[index])
            if any(align_down(address, page) == frame for address in self._cells):
                self._map(self.machine.memory.poking_mm, at, frame)

    def _unmap_all(self, va: int, size: int) -> None:
        """Write down that a window is unmapped, as far as sites were in it."""
        table, page = self.machine.memory.poking_mm, self.machine.memory.page_size
        for at in range(va, va + size, page):
            if self.alias_pages.get((1, at)) in self._mapped:
                self._map(table, at, None)

    def _wrote(self, address: int, data: bytes) -> None:
        self._settle()
        for at in range(0, len(data), self.granule):
            cell = self._cells.get(address + at)
            frame = align_down(address + at, self.machine.memory.page_size)
            page = next((page for page, held in self._mapped.items() if held == frame), None)
            if cell is not None:
                self.ops.append(Put(page, cell, bytes(data[at : at + self.granule])))

    def _flushed(self, start: int, end: int, all_cpus: bool) -> None:
        self._settle()
        pages = tuple(
            page for (_, address), page in self.alias_pages.items() if start <= address < end
        )
        if pages:
            self.ops.append(FlushAlias(pages, all_cpus))
        if self.text is not None and start <= self.text < end:
            self.ops.append(FlushText(all_cpus))

    def _sync(self, start: int, end: int) -> None:
        if not self._synced:
            self._settle()
        within = Interval(start, end)
        for place in self.places:
            for index, cell in enumerate(place.cells):
                if place.address + index * self.granule in within:
                    self._synced.add(cell)


class _Watched(dict[int, Any]):
    """The threads of a machine; who looks through them is told of."""

    def __init__(self, threads: dict[int, Any], looked: Callable[[], None]) -> None:
        super().__init__(threads)
        self._looked = looked

    def items(self) -> Any:
        """Return as a dict does."""
        self._looked()
        return super().items()


def _told(function: Callable[..., Any], before: Callable[..., None]) -> Callable[..., Any]:
    def call(*args: Any, **more: Any) -> Any:
        before(*args, **more)
        return function(*args, **more)

    return call


def record_patch(
    recorder: Recorder, *, way: Way | None = None, force: bool = False
) -> tuple[Op, ...]:
    """Patch a recorder's sites, and return what was done; LivePatchError, PokeError."""
    mine = range(len(recorder.places)) if recorder.mine is None else recorder.mine
    places = [recorder.places[number] for number in mine]
    sites = [Site(place.address, place.new, place.old) for place in places]
    with recorder.watching():
        recorder.machine.patch_many(sites, way=way, force=force, on_phase=recorder.at_phase)
    return recorder.program
