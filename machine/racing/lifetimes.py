# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads, unloads, pokes and seals on two CPUs at once, as races: recorded, and with mistakes planted.

What a design does in each call is written down while it does it: what page tables say of a few pages
(by their own addresses, by the direct map, and where they are written through), stores, flushes, and
who has the frames. Each call is done under one lock, which is how an allocator is used by a kernel;
a poke looks first whether its target is still there. Steps of two CPUs then come in every order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import attrs

from allocator import Allocation
from allocator.types import MemType, Prot
from archs import Arch
from machine.machine import ModelledMachine
from machine.racing.pages import (
    NOBODY,
    Ask,
    Await,
    Drop,
    Enter,
    Hold,
    Lives,
    Own,
    Release,
    Seal,
    Step,
    Store,
    Unless,
)

ALIASES = 2  # pages of a window that are looked at
LOCKS = ("execmem", "text_mutex")
CPUS = 3  # two that do something, and one that looks
POOL = "the pool"


@attrs.frozen(kw_only=True)
class Lifetime:
    """Two CPUs that change memory: as `machine.racing.scenarios.Scenario`."""

    arch: Arch
    title: str
    race: Lives
    name: str = ""
    expected: tuple[str, ...] = ()


@attrs.define
class _Recorder:
    """Writes down what calls do to pages that are looked at.

    Parameters
    ----------
    pages
        Those pages: address space, address.
    frames
        What they are about.
    direct
        Which of the pages are the direct map's.
    """

    machine: ModelledMachine
    pages: list[tuple[bool, int]] = attrs.field(factory=list)  # in poking_mm?, address
    frames: list[int] = attrs.field(factory=list)
    direct: set[int] = attrs.field(factory=set)
    owners: dict[int, str] = attrs.field(factory=dict)  # by frame
    first_owners: dict[int, str] = attrs.field(factory=dict)
    first: list[tuple[int, str] | None] = attrs.field(factory=list)
    says: list[tuple[int, str] | None] = attrs.field(factory=list)
    cpu: int = -1
    steps: list[Step] = attrs.field(factory=list)

    # What is looked at -----------------------------------------------------------------------

    def look(self, address: int) -> int:
        """Look at a page of memory; return its frame."""
        memory = self.machine.memory
        found = memory.translate(address)
        assert found is not None
        frame = found.address - found.address % memory.page_size
        if frame not in self.frames:
            self.frames.append(frame)
            self.direct.add(len(self.pages))
            self.pages.append((False, memory.direct_map.start + frame))
        if (False, address) not in self.pages:
            self.pages.append((False, address))
        return frame

    def look_at_windows(self) -> None:
        """Look at the first pages through which memory is written that is not writable."""
        memory, poke = self.machine.memory, self.machine.arch.text_poke
        for window in filter(None, (self.machine.execmem.design.window, poke)):
            for number in range(min(ALIASES, window.pages)):
                page = window.private, window.window + number * memory.page_size
                if page not in self.pages:
                    self.pages.append(page)

    def _entry(self, number: int) -> tuple[int, str] | None:
        private, address = self.pages[number]
        memory = self.machine.memory
        found = (memory.poking_mm if private else memory.page_table).translate(address)
        if found is None or found.prot is Prot.NONE:
            return None
        frame = found.address - found.address % memory.page_size
        return (self.frames.index(frame), str(found.prot)) if frame in self.frames else None

    # What is done ----------------------------------------------------------------------------

    @contextmanager
    def call(self, cpu: int, lock: int = 0) -> Iterator[list[Step]]:
        """Write down what a call does on a CPU, under a lock."""
        memory = self.machine.memory
        if self.cpu < 0:
            self._begin()
        self.cpu, self.steps = cpu, []
        undo = memory.on_tlb_flush(self._flushed)
        write = memory.physical.write

        def told(address: int, data: bytes) -> None:
            self._wrote(address)
            write(address, data)

        setattr(memory.physical, "write", told)  # noqa: B010 -- mypy lets no method be set
        done: list[Step] = [Hold(lock)]
        try:
            yield done
            self.settle()
        finally:
            delattr(memory.physical, "write")  # the class's own is seen again
            undo()
        done += [*self.steps, Release(lock)]

    def _used(self, frame: int) -> bool:
        physical = self.machine.memory.physical
        return bool(physical.used()[frame // self.machine.memory.page_size])

    def _begin(self) -> None:
        for frame in self.frames:
            held = self.owners.get(frame, POOL)
            self.owners[frame] = held if self._used(frame) else NOBODY
        self.first_owners = dict(self.owners)
        self.first = [self._entry(number) for number in range(len(self.pages))]
        self.says = list(self.first)

    def settle(self) -> None:
        """Write down what page tables say otherwise than before, and who has frames."""
        for frame in self.frames:
            if self.owners.get(frame) == NOBODY and self._used(frame):
                self.own(frame, POOL)
        for number in range(len(self.says)):
            entry = self._entry(number)
            if entry != self.says[number]:
                self.says[number] = entry
                frame_number, rights = entry or (None, "")
                self.steps.append(Enter(number, frame_number, rights))
        for frame in self.frames:
            if not self._used(frame):
                self.own(frame, NOBODY)

    def own(self, frame: int, owner: str) -> None:
        """Write down that a frame has changed hands."""
        if self.owners.get(frame) != owner:
            self.owners[frame] = owner
            self.steps.append(Own(self.frames.index(frame), owner))

    def take_back(self, frame: int) -> None:
        """Write down that nobody has a frame but the allocator, if it still has."""
        self.settle()
        if self._used(frame):
            self.own(frame, POOL)

    def _wrote(self, address: int) -> None:
        self.settle()
        frame = address - address % self.machine.memory.page_size
        if frame not in self.frames:
            return
        for page, entry in reversed(list(enumerate(self.says))):
            if entry is None or self.frames[entry[0]] != frame or "W" not in entry[1]:
                continue
            store = Store(page, self.owners.get(frame, NOBODY))
            if not self.steps or self.steps[-1] != store:
                self.steps.append(store)
            return

    def _flushed(self, start: int, end: int, all_cpus: bool) -> None:
        self.settle()
        pages = tuple(n for n, (_, address) in enumerate(self.pages) if start <= address < end)
        if not pages:
            return
        if not all_cpus:
            self.steps.append(Drop(pages, self.cpu))
        elif self.machine.arch.loads.tlb.interrupts:
            self.steps.append(Drop(pages, self.cpu))
            self.steps += [Drop(pages, cpu) for cpu in range(CPUS) if cpu != self.cpu]
        else:
            self.steps += [Ask(pages), Await(pages)]


class Story:
    """Calls of two CPUs on one machine, recorded one after the other."""

    def __init__(self, arch: Arch, design: str, seen: _Recorder | None = None) -> None:
        assert arch.text_poke is not None
        self.granule = arch.text_poke.granule
        self.machine = ModelledMachine(arch, design=design)
        self.recorder = _Recorder(self.machine)
        if seen is not None:
            self.recorder.pages, self.recorder.frames = seen.pages, seen.frames
            self.recorder.direct = seen.direct
        self.recorder.look_at_windows()
        self.calls: list[tuple[int, list[Step]]] = []
        self._live: dict[str, Allocation] = {}

    def before(self, name: str, kind: MemType = MemType.TEXT) -> None:
        """Load a page before anything is recorded."""
        page = self.machine.memory.page_size
        pending = self.machine.execmem.alloc(kind, page, align=page)
        pending.write(0, bytes(page))
        self._live[name] = pending.finish()
        self.recorder.owners[self.recorder.look(pending.address)] = name

    def load(self, cpu: int, name: str) -> None:
        """Allocate a page of text, write, and finish it: three calls."""
        page = self.machine.memory.page_size
        with self.recorder.call(cpu) as allocated:
            pending = self.machine.execmem.alloc(MemType.TEXT, page, align=page)
            frame = self.recorder.look(pending.address)
            self.recorder.settle()
            self.recorder.own(frame, name)
        with self.recorder.call(cpu) as written:
            pending.write(0, bytes(page))
        with self.recorder.call(cpu) as finished:
            self._live[name] = pending.finish()
        self.calls += [(cpu, done) for done in (allocated, written, finished)]

    def poke(self, cpu: int, name: str, *, lock: int = 0, looks: bool = True) -> None:
        """Write into a page of text, if it is still there."""
        at = self._live[name].address
        with self.recorder.call(cpu, lock) as done:
            self.machine.execmem.poke(at, bytes(self.granule))
        if looks:
            frame = self.recorder.frames.index(self.recorder.look(at))
            done.insert(1, Unless(frame, name, len(done) - 2))
        self.calls.append((cpu, done))

    def seal(self, cpu: int, name: str) -> None:
        """Seal a page of ro_after_init."""
        target = self._live[name]
        with self.recorder.call(cpu) as done:
            self.machine.execmem.seal(target)
        done.insert(-1, Seal(self.recorder.pages.index((False, target.address))))
        self.calls.append((cpu, done))

    def unload(self, cpu: int, name: str) -> None:
        """Free a page."""
        at = self._live.pop(name).address
        frame = self.recorder.look(at)
        with self.recorder.call(cpu) as done:
            self.machine.execmem.free(at)
            self.recorder.take_back(frame)
        self.calls.append((cpu, done))

    def race(self) -> Lives:
        """Return the calls of both CPUs as a race."""
        recorder = self.recorder
        programs = tuple(
            tuple(step for cpu, done in self.calls if cpu == number for step in done)
            for number in range(CPUS - 1)
        )
        return Lives(
            programs=programs,
            pages=tuple(address for _, address in recorder.pages),
            entries=tuple(recorder.first),
            frames=tuple(recorder.frames),
            owners=tuple(recorder.first_owners[frame] for frame in recorder.frames),
            locks=LOCKS,
            private=frozenset(n for n, (private, _) in enumerate(recorder.pages) if private),
            direct=frozenset(recorder.direct),
        )


Telling: TypeAlias = Callable[[Story], None]
# Makes another list of calls of the recorded one.
Change: TypeAlias = Callable[[list[list[Step]]], list[list[Step]]]


def recorded(arch: Arch, design: str, tell: Telling, change: Change | None = None) -> Lives:
    """Return what two CPUs do as a race.

    What pages a story is about is known when it has been told once; then it is told again.
    """
    once = Story(arch, design)
    tell(once)
    story = Story(arch, design, once.recorder)
    tell(story)
    assert story.recorder.frames == once.recorder.frames, "a story is the same again"
    if change is not None:
        changed = change([done for _, done in story.calls])
        numbers = [cpu for cpu, _ in story.calls]
        story.calls = list(zip(numbers, changed, strict=True))
    return story.race()


# Our own -------------------------------------------------------------------------------------------


def _two_loads(story: Story) -> None:
    story.before("K")
    story.load(0, "A")
    story.load(1, "B")


def _load_unload(story: Story) -> None:
    story.before("K")
    story.before("B")
    story.load(0, "A")
    story.unload(1, "B")


def _poke_unload(story: Story, **how: Any) -> None:
    story.before("K")
    story.before("B")
    story.poke(0, "B", **how)
    story.unload(1, "B")
    story.load(1, "C")


def _poke_last(story: Story) -> None:
    """Poke the last text, and unload it, so that its room is given back."""
    story.before("A")
    story.poke(0, "A")
    story.unload(1, "A")


def _seal_poke(story: Story) -> None:
    story.before("K")
    story.before("S", MemType.RO_AFTER_INIT)
    story.seal(1, "S")
    story.poke(0, "K")


def _seal_unload(story: Story) -> None:
    """Unload the last text, whose room is given back, and load again."""
    story.before("A")
    story.before("S", MemType.RO_AFTER_INIT)
    story.unload(0, "A")
    story.load(0, "C")
    story.seal(1, "S")


def _loads_in_turn(story: Story) -> None:
    story.before("K")
    story.load(0, "A")
    story.load(0, "B")


STORIES: dict[str, Telling] = {
    "two loads": _two_loads,
    "a load and an unload": _load_unload,
    "a poke, and its target unloaded and loaded anew": _poke_unload,
    "a poke, and the last text unloaded": _poke_last,
    "a seal and a poke": _seal_poke,
    "a seal, the last text unloaded, and a load": _seal_unload,
}


def lifetimes(arch: Arch, design: str) -> Iterator[Lifetime]:
    """Yield what two CPUs do to memory at once, by a design."""
    for title, tell in STORIES.items():
        race = recorded(arch, design, tell)
        yield Lifetime(arch=arch, title=title, race=race)


# Planted mistakes ----------------------------------------------------------------------------------


def mistakes(arch: Arch, design: str) -> Iterator[Lifetime]:
    """Yield the same with one mistake each."""

    def plant(
        name: str, title: str, tell: Telling, change: Change | None, *expected: str
    ) -> Lifetime:
        race = recorded(arch, design, tell, change)
        return Lifetime(arch=arch, title=title, race=race, name=name, expected=expected)

    yield plant("no-lock", "two loads, without a lock", _two_loads, _unlocked, "foreign", "fault")
    yield plant(
        "window-unflushed",
        "two loads of one CPU, the window never flushed",
        _loads_in_turn,
        partial(_each, step=lambda step: not isinstance(step, Drop | Ask | Await)),
        "foreign",
    )
    yield plant(
        "unchecked",
        "a poke that does not look whether its target is there",
        partial(_poke_unload, looks=False),
        None,
        "foreign",
    )
    yield plant(
        "other-lock",
        "a poke under text_mutex, an unload under another lock",
        partial(_poke_unload, lock=1),
        None,
        "foreign",
    )
    yield plant(
        "free-early",
        "text given back before TLBs are flushed",
        _seal_unload,
        lambda calls: [_early(calls[0]), *calls[1:]],
        "freed",
    )
    poke = arch.text_poke
    assert poke is not None
    if not poke.private and not poke.broadcast:
        yield plant(
            "alias-kept",
            "text poked and given back, text_poke's alias flushed by the CPU alone that poked",
            _poke_last,
            lambda calls: [calls[0], _keeping(calls[1], _stored_through(calls[0]))],
            "freed",
        )
    reached = "local" if arch.loads.tlb.interrupts else "no-dsb"
    how = "this CPU's TLB alone flushed" if reached == "local" else "without the DSB of the flush"
    yield plant(
        f"free-{reached}",
        f"text given back, {how}",
        _seal_unload,
        lambda calls: [_half_flushed(calls[0], 0), *calls[1:]],
        "freed",
    )
    yield plant(
        "seal-unflushed",
        "a seal without a flush",
        _seal_poke,
        lambda calls: [_unflushed(calls[0]), *calls[1:]],
        "sealed",
    )
    yield plant(
        f"seal-{reached}",
        f"a seal, {how}",
        _seal_poke,
        lambda calls: [_half_flushed(calls[0], 1), *calls[1:]],
        "sealed",
    )


def _each(calls: list[list[Step]], *, step: Callable[[Step], bool]) -> list[list[Step]]:
    return [[one for one in call if step(one)] for call in calls]


def _unlocked(calls: list[list[Step]]) -> list[list[Step]]:
    return _each(calls, step=lambda one: not isinstance(one, Hold | Release))


def _unflushed(call: list[Step]) -> list[Step]:
    return [one for one in call if not isinstance(one, Drop | Ask | Await)]


def _stored_through(call: list[Step]) -> set[int]:
    return {one.page for one in call if isinstance(one, Store)}


def _keeping(call: list[Step], pages: set[int]) -> list[Step]:
    """Leave pages out of what is dropped."""
    return [
        attrs.evolve(one, pages=tuple(page for page in one.pages if page not in pages))
        if isinstance(one, Drop | Ask | Await)
        else one
        for one in call
    ]


def _half_flushed(call: list[Step], cpu: int) -> list[Step]:
    """Leave out what reaches other CPUs' TLBs: their interrupts, or the wait for the rest."""
    return [
        one
        for one in call
        if not isinstance(one, Await) and not (isinstance(one, Drop) and one.cpu != cpu)
    ]


def _early(call: list[Step]) -> list[Step]:
    """Give frames back before the first flush."""
    gifts = [one for one in call if one in {Own(n, NOBODY) for n in range(len(call))}]
    first = next(at for at, one in enumerate(call) if isinstance(one, Drop | Ask))
    rest = [one for one in call[first:] if one not in gifts]
    return [*call[:first], *gifts, *rest]
