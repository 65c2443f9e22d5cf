# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUs that load, poke, seal and unload at once: whose memory is it, and who may still reach it.

A page has an entry in the page table, and CPUs hold old ones: a TLB may keep, used or not, every
entry that the page has had since this CPU last dropped it. What is done to a page are steps: the
entry, stores through it, and a flush, which is one step for each CPU that is interrupted, or, where an
instruction reaches all (arm64), one that asks (TLBI) and one that waits for it (DSB). Behind them all
stands a CPU that does nothing but what must not be possible, at any moment: execute or write
through an entry that it may hold.

Pages of an address space of its own are looked up by the CPU alone that has it loaded.

Not modelled: what a CPU had fetched before its entry was dropped (arm64: until its ISB), leaf sizes
(a page is a page), and bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import attrs

from machine.racing.search import Touched
from machine.racing.state import Bad, put_in

NOBODY = ""  # who owns a frame that has been given back


# What CPUs do --------------------------------------------------------------------------------------


@attrs.frozen
class Enter:
    """Write a page's entry: a frame and rights, or nothing (None)."""

    page: int
    frame: int | None
    rights: str = ""


@attrs.frozen
class Drop:
    """Drop what one CPU's TLB holds of pages."""

    pages: tuple[int, ...]
    cpu: int


@attrs.frozen
class Ask:
    """Ask all TLBs to drop what they hold of pages (TLBI), without waiting."""

    pages: tuple[int, ...]


@attrs.frozen
class Await:
    """Wait until all TLBs have dropped what they were asked to (DSB)."""

    pages: tuple[int, ...]


@attrs.frozen
class Store:
    """Store through a page into memory that is taken for somebody's."""

    page: int
    owner: str


@attrs.frozen
class Own:
    """Hand a frame to somebody, or back (NOBODY)."""

    frame: int
    owner: str


@attrs.frozen
class Unless:
    """Go on behind `skip` more steps where a frame is not somebody's any more."""

    frame: int
    owner: str
    skip: int


@attrs.frozen
class Hold:
    """Take a lock."""

    lock: int


@attrs.frozen
class Release:
    """Give a lock back."""

    lock: int


@attrs.frozen
class Seal:
    """From now on nobody may write to a page."""

    page: int


Step: TypeAlias = Enter | Drop | Ask | Await | Store | Own | Unless | Hold | Release | Seal


# What there is -------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """What a page table or a TLB says: a frame, what may be done, and whose the frame was."""

    frame: int
    rights: str
    owner: str


class Held(NamedTuple):
    """An old entry that a TLB may hold, and whether it has been asked to drop it."""

    entry: Entry
    asked: bool


class Page(NamedTuple):
    """A page: its entry, and by CPU what its TLB may hold besides."""

    now: Entry | None
    held: tuple[frozenset[Held], ...]


class Pages(NamedTuple):
    """Everything that steps change."""

    at: tuple[int, ...]
    pages: tuple[Page, ...]
    owners: tuple[str, ...]
    locks: tuple[int, ...]
    sealed: frozenset[int]
    bads: tuple[Bad | None, ...]


@attrs.define(kw_only=True)
class Lives:
    """CPUs that change who owns memory, and one that looks for what it should not reach.

    Parameters
    ----------
    programs
        By CPU, what it does.
    pages
        The address of each page.
    entries
        What they say at first.
    frames, owners
        Physical addresses of the frames, and whose they are at first.
    locks
        Their names.
    private
        Pages of an address space of its own.
    direct
        Pages of the direct map, by the frame that each maps: other addresses of the same memory.
    """

    programs: tuple[tuple[Step, ...], ...]
    pages: tuple[int, ...]
    entries: tuple[tuple[int, str] | None, ...]
    frames: tuple[int, ...]
    owners: tuple[str, ...]
    locks: tuple[str, ...]
    private: frozenset[int] = frozenset()
    direct: frozenset[int] = frozenset()
    visits: int = 1
    _suffixes: list[list[Touched]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        for program in self.programs:
            suffix = [Touched(0, 0)]
            for step in reversed(program):
                reads, writes = self._touched_by(step)
                suffix.append(Touched(suffix[-1].reads | reads, suffix[-1].writes | writes))
            self._suffixes.append(suffix[::-1])

    @property
    def actors(self) -> int:
        """CPUs that do something, and the one that looks."""
        return len(self.programs) + 1

    def start(self) -> Pages:
        """Return the state before the first step."""
        nothing = (frozenset[Held](),) * self.actors
        entries = [
            None if entry is None else Entry(*entry, self.owners[entry[0]])
            for entry in self.entries
        ]
        return Pages(
            (0,) * len(self.programs),
            tuple(Page(entry, nothing) for entry in entries),
            self.owners,
            (-1,) * len(self.locks),
            frozenset(),
            (None,) * self.actors,
        )

    def verdict(self, state: Pages) -> list[Bad]:
        """Return what is wrong with a state."""
        bads = [bad for bad in state.bads if bad is not None]
        ended = zip(state.at, self.programs, strict=True)
        waits = not bads and any(at < len(program) for at, program in ended)
        if waits and not any(self.moves(state, actor) for actor in range(self.actors)):
            bads.append(Bad("stuck", "CPUs wait for one another's locks"))
        return bads

    # Steps -----------------------------------------------------------------------------------

    def moves(self, state: Pages, actor: int) -> list[tuple[str, Pages]]:
        """Return what the next step of a CPU may come to; the last one only goes wrong."""
        if state.bads[actor] is not None:
            return []
        if actor == len(self.programs):
            bads = dict.fromkeys(self._reached(state, actor))
            return [(text, self._halted(state, actor, bad)) for text, bad in bads]
        program, at = self.programs[actor], state.at[actor]
        return [] if at >= len(program) else list(self._step(state, actor, program[at]))

    def _step(self, state: Pages, actor: int, step: Step) -> Iterator[tuple[str, Pages]]:
        then = state._replace(at=put_in(state.at, actor, state.at[actor] + 1))
        if isinstance(step, Enter):
            yield self._entered(then, actor, step)
        elif isinstance(step, Store):
            yield from self._stored(then, actor, step)
        elif isinstance(step, Drop):
            whose = "its" if step.cpu == actor else f"CPU {step.cpu}'s"
            yield (
                f"drops {self._named(step.pages)} from {whose} TLB",
                self._dropped(then, step.pages, lambda cpu, _held: cpu == step.cpu),
            )
        elif isinstance(step, Ask):
            pages = list(then.pages)
            for number in step.pages:
                now, held = pages[number]
                asked = (frozenset(Held(one.entry, True) for one in each) for each in held)
                pages[number] = Page(now, tuple(asked))
            text = f"asks all TLBs to drop {self._named(step.pages)}"
            yield text, then._replace(pages=tuple(pages))
        elif isinstance(step, Await):
            yield (
                "waits until they have",
                self._dropped(then, step.pages, lambda _cpu, held: held.asked),
            )
        elif isinstance(step, Own):
            to = f"hands it to {step.owner}" if step.owner else "gives it back"
            owners = put_in(then.owners, step.frame, step.owner)
            yield f"{to}: the frame {self.frames[step.frame]:#x}", then._replace(owners=owners)
        elif isinstance(step, Unless):
            if state.owners[step.frame] == step.owner:
                yield f"sees that it is still {step.owner}", then
            else:
                far = state.at[actor] + 1 + step.skip
                gone = state._replace(at=put_in(state.at, actor, far))
                yield f"sees that it is {step.owner} no more", gone
        elif isinstance(step, Hold):
            if state.locks[step.lock] == -1:
                locks = put_in(state.locks, step.lock, actor)
                yield f"takes the lock of {self.locks[step.lock]}", then._replace(locks=locks)
        elif isinstance(step, Release):
            locks = put_in(state.locks, step.lock, -1)
            yield "gives the lock back", then._replace(locks=locks)
        else:
            text = f"has sealed {self.pages[step.page]:#x}"
            yield text, then._replace(sealed=then.sealed | {step.page})

    def _entered(self, then: Pages, actor: int, step: Enter) -> tuple[str, Pages]:
        now, held = then.pages[step.page]
        entry, said = None, "unmaps"
        if step.frame is not None:
            entry = Entry(step.frame, step.rights, then.owners[step.frame])
            said = f"maps {self.frames[step.frame]:#x} {step.rights} at"
            if now is not None and now.frame == step.frame:
                said = f"makes {step.rights}"
        if now is not None:
            alone = step.page in self.private
            held = tuple(
                frozenset({*each, Held(now, False)} - {Held(now, True)})
                if cpu == actor or not alone
                else each
                for cpu, each in enumerate(held)
            )
        pages = put_in(then.pages, step.page, Page(entry, held))
        return f"{said} {self.pages[step.page]:#x}", then._replace(pages=pages)

    def _stored(self, then: Pages, actor: int, step: Store) -> Iterator[tuple[str, Pages]]:
        """Yield where a store may go, as this CPU's TLB leads."""
        now, held = then.pages[step.page]
        at = f"{self.pages[step.page]:#x}"
        met = {one.entry for one in held[actor]}
        for entry in [now, *sorted(met - {now})]:
            if entry is None or "W" not in entry.rights:
                bad = Bad("fault", f"{at} may not be written to")
                yield f"stores at {at}, which faults", self._halted(then, actor, bad)
                continue
            owner = then.owners[entry.frame]
            if owner == step.owner:
                yield f"stores at {at}", then
            else:
                whose = owner or "nobody"
                into = f"the frame {self.frames[entry.frame]:#x}, which is {whose}'s"
                bad = Bad("foreign", f"what is for {step.owner} goes into {into}")
                yield f"stores at {at}, into {into}", self._halted(then, actor, bad)

    def _dropped(
        self, then: Pages, numbers: Iterable[int], goes: Callable[[int, Held], bool]
    ) -> Pages:
        pages = list(then.pages)
        for number in numbers:
            now, held = pages[number]
            kept = (
                frozenset(one for one in each if not goes(cpu, one))
                for cpu, each in enumerate(held)
            )
            pages[number] = Page(now, tuple(kept))
        return then._replace(pages=tuple(pages))

    def _reached(self, state: Pages, me: int) -> Iterator[tuple[str, Bad]]:
        """Yield what a CPU could do now by an entry that it may hold, and must not."""
        for number, (now, held) in enumerate(state.pages):
            if number in self.private:
                continue
            at = f"{self.pages[number]:#x}"
            met = {one.entry for one in held[me]}
            for entry in sorted(met if now is None else {now, *met}):
                does = "executes" if "X" in entry.rights else "writes to"
                if not set("WX") & set(entry.rights):
                    continue
                if number not in self.direct and state.owners[entry.frame] == NOBODY:
                    frame = f"the frame {self.frames[entry.frame]:#x} has been given back"
                    yield f"{does} {at}, by its TLB", Bad("freed", f"{does} {at}: {frame}")
                if number in state.sealed and "W" in entry.rights:
                    yield f"writes to {at}, by its TLB", Bad("sealed", f"{at} is written to")
                if "X" in entry.rights and (where := self._writable(state, number, entry.frame)):
                    bad = Bad("window", f"{at} is executed where a CPU may write to {where}")
                    yield f"executes {at}, which can be written to", bad

    def _writable(self, state: Pages, number: int, frame: int) -> str:
        """Return where any CPU may write to a page that is executed, by itself or the direct map."""
        for other, (now, held) in enumerate(state.pages):
            if other != number and other not in self.direct:
                continue
            entries = {one.entry for each in held for one in each} | {now}
            for entry in entries:
                if entry is not None and entry.frame == frame and "W" in entry.rights:
                    return f"{self.pages[other]:#x}"
        return ""

    def _halted(self, state: Pages, actor: int, bad: Bad) -> Pages:
        return state._replace(bads=put_in(state.bads, actor, bad))

    def _named(self, pages: Iterable[int]) -> str:
        return ", ".join(f"{self.pages[page]:#x}" for page in pages)

    # What steps touch: bits for pages, frames, locks, and who has gone wrong ----------------------

    def _bit(self, what: str, index: int) -> int:
        first = {"page": 0, "frame": len(self.pages), "lock": len(self.pages) + len(self.frames)}
        return 1 << first[what] + index

    def _touched_by(self, step: Step) -> Touched:
        """Return what a step reads and writes."""
        if isinstance(step, Enter):
            read = 0 if step.frame is None else self._bit("frame", step.frame)
            return Touched(read, self._bit("page", step.page))
        if isinstance(step, Seal):
            return Touched(0, self._bit("page", step.page))
        if isinstance(step, Drop | Ask | Await):
            return Touched(0, sum(self._bit("page", page) for page in set(step.pages)))
        if isinstance(step, Store):
            return Touched(self._bit("page", step.page) | self._frames, 0)
        if isinstance(step, Own):
            return Touched(0, self._bit("frame", step.frame))
        if isinstance(step, Unless):
            return Touched(self._bit("frame", step.frame), 0)
        return Touched(0, self._bit("lock", step.lock))

    @property
    def _frames(self) -> int:
        return sum(self._bit("frame", index) for index in range(len(self.frames)))

    def touched(self, state: Pages, actor: int) -> Touched:
        """Return what the next step of a CPU reads and writes."""
        if actor == len(self.programs):
            return self.future(state, actor)
        program, at = self.programs[actor], state.at[actor]
        return Touched(0, 0) if at >= len(program) else self._touched_by(program[at])

    def future(self, state: Pages, actor: int) -> Touched:
        """Return all that a CPU may yet read and write."""
        if actor < len(self.programs):
            program, at = self.programs[actor], min(state.at[actor], len(self.programs[actor]))
            return self._suffixes[actor][at] if at <= len(program) else Touched(0, 0)
        pages = sum(self._bit("page", index) for index in range(len(self.pages)))
        return Touched(pages | self._frames, 0)
