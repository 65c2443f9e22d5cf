# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUs that patch text and CPUs that execute it, step by step, as little promised as can be.

What a CPU may see of memory that others write is a *view*: what stands there now, and all that
has stood there since this CPU was last synchronised. Fetches take any of it, granule by granule,
in any mixture, and may see the old again after the new; a TLB may hold any translation that there
has been since it was last flushed. That is weaker than every CPU that is built, and as weak as
what the architectures write down:

* x86-64: a store of one byte is whole; bytes that were fetched before stay until the CPU executes
  a serialising instruction. (Intel SDM volume 3, "Handling Self- and Cross-Modifying Code".)
* arm64: an instruction is one granule; two of them may replace one another under a CPU that executes them
  if both are of the class that B2.2.5 of the Arm ARM names, and anything may happen if not. A
  store is in a data cache until it is cleaned, fetches may come from an instruction cache
  until that is invalidated, each of which is done only when a DSB has waited for it, and what
  a CPU has fetched stays until its own ISB.
* riscv64: fetches see stores after `fence.i` of the same hart, and nothing is promised before
  (Zifencei); the store has to be ordered before the interrupt by a fence of the hart that stored;
  an instruction of four bytes may come in two parcels.

Which granule that is (`TextPoke.granule`), which bytes may replace which
(`LivePatch.concurrent`) and what has to be done behind a store (`LivePatch.maintenance`) stand in
the architecture's record. What is old goes through the steps of maintenance one by one: it takes part
only in the step that is its next, so a step that comes too early is lost on it.

A CPU that takes a trap has its interrupts off until the handler returns, so whoever waits for it
to synchronise waits for the handler, too. `stop_machine` waits until a CPU stands between two
instructions. Data is sequentially consistent: what orders the handler's table and the breakpoint
(smp_wmb, smp_rmb) is taken to work. Not modelled: caches by lines (views are by granule),
prefetch beyond what is executed, NMIs, two granules that some CPUs do fetch as one, and
which CPU a DSB waits for, where several write one granule at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import attrs

from archs import LivePatch
from machine.racing.search import Touched
from machine.racing.state import (
    Arm,
    Bad,
    Executor,
    FlushAlias,
    FlushText,
    Go,
    Lock,
    LookInside,
    Lookup,
    Maintain,
    MapAlias,
    Op,
    Place,
    Protect,
    Put,
    State,
    Stop,
    Sync,
    Unlock,
    anywhere,
    put_in,
)

NOWHERE = Touched(0, 0)


@attrs.define(kw_only=True)
class Race:
    """Some CPUs patch and some execute: a `System` for the search.

    Parameters
    ----------
    places
        The sites. Executors arrive at any of them, in any order.
    programs
        By patching CPU, what it does.
    executors, visits
        CPUs that execute, and how often each arrives at a site.
    live
        What may replace what, and the breakpoint.
    granule
        Bytes that are fetched and stored as a whole.
    frames
        By granule: the frame that it lies in.
    alias_pages
        Pages of the alias; each has an entry in the page table.
    shared
        Whether every CPU that pokes has the alias in its address space, and may look it up
        at any time; else only who has just mapped it.
    rights
        What the text's page allows at first: letters of "RWX".
    lookup
        How the trap handler finds a site in its table.
    masked
        Whether interrupts are off in the trap handler.
    """

    places: tuple[Place, ...]
    programs: tuple[tuple[Op, ...], ...]
    live: LivePatch
    granule: int
    frames: tuple[int, ...]
    alias_pages: int = 0
    shared: bool = False
    executors: int = 1
    visits: int = 2
    rights: str = "RX"
    lookup: Lookup = anywhere
    masked: bool = True
    _suffixes: list[list[Touched]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        for program in self.programs:
            suffix = [NOWHERE]
            for op in reversed(program):
                found = self._touched_by(op)
                suffix.append(
                    Touched(suffix[-1].reads | found.reads, suffix[-1].writes | found.writes)
                )
            self._suffixes.append(suffix[::-1])

    @property
    def actors(self) -> int:
        """Patching CPUs first, then executing ones."""
        return len(self.programs) + self.executors

    def start(self) -> State:
        """Return the state before the first step."""
        old = {}
        for place in self.places:
            for index, cell in enumerate(place.cells):
                at = index * self.granule
                old[cell] = place.old[at : at + self.granule]
        nobody = (frozenset[tuple[bytes, int]](),) * self.executors
        return State(
            (0,) * len(self.programs),
            tuple((old[cell], nobody) for cell in range(len(self.frames))),
            ((None, (frozenset[int](),) * len(self.programs)),) * self.alias_pages,
            (self.rights, (frozenset[str](),) * self.actors),
            (),
            (False,) * len(self.places),
            -1,
            (Executor(self.visits),) * self.executors,
            (None,) * self.actors,
        )

    def verdict(self, state: State) -> list[Bad]:
        """Return what is wrong with a state."""
        bads = [bad for bad in state.bads if bad is not None]
        if all(at == len(program) for at, program in zip(state.at, self.programs, strict=True)):
            for place, done in zip(self.places, state.done, strict=True):
                found = b"".join(state.cells[cell][0] for cell in place.cells)
                if done and found not in (place.new, *place.others):
                    bads.append(Bad("lost", f"{place.address:#x} holds {found.hex()}"))
        return bads

    # Steps -----------------------------------------------------------------------------------

    def moves(self, state: State, actor: int) -> list[tuple[str, State]]:
        """Return what the next step of a CPU may come to."""
        if state.bads[actor] is not None:
            return []
        if actor < len(self.programs):
            program, at = self.programs[actor], state.at[actor]
            if at >= len(program):
                return []
            return list(self._patcher(state, actor, program[at]))
        return list(self._executor(state, actor - len(self.programs)))

    def _patcher(self, state: State, actor: int, op: Op) -> Iterator[tuple[str, State]]:
        """Yield what an operation comes to; nothing where it has to wait."""
        went = tuple(at + (number == actor) for number, at in enumerate(state.at))
        then = state._replace(at=went)
        if isinstance(op, Put):
            yield from self._put(then, actor, op)
        elif isinstance(op, Sync | Stop):
            executor = state.executors[op.executor]
            if executor.offset == -1 and (self.masked or isinstance(op, Stop)):
                return
            if isinstance(op, Stop):
                stopped = executor._replace(stopped=True)
                yield (
                    f"stops CPU {self._cpu(op.executor)}",
                    then._replace(executors=put_in(state.executors, op.executor, stopped)),
                )
                return
            cells = list(state.cells)
            for cell in op.cells:
                now, stale = cells[cell]
                kept = frozenset((data, left) for data, left in stale[op.executor] if left)
                cells[cell] = now, put_in(stale, op.executor, kept)
            yield f"synchronises CPU {self._cpu(op.executor)}", then._replace(cells=tuple(cells))
        elif isinstance(op, Maintain):
            steps = self.live.maintenance[::-1]
            cells = list(state.cells)
            for cell in op.cells:
                now, stale = cells[cell]
                cells[cell] = (
                    now,
                    tuple(
                        frozenset(
                            (data, left - (left > 0 and steps[left - 1] == op.name))
                            for data, left in held
                        )
                        for held in stale
                    ),
                )
            yield f"executes {op.name}", then._replace(cells=tuple(cells))
        elif isinstance(op, MapAlias):
            frame, led = state.aliases[op.page]
            if frame is not None:
                led = tuple(
                    held | {frame} if self.shared or number == actor else held
                    for number, held in enumerate(led)
                )
            text = "unmaps the alias" if op.frame is None else f"maps the alias to {op.frame:#x}"
            yield text, then._replace(aliases=put_in(state.aliases, op.page, (op.frame, led)))
        elif isinstance(op, FlushAlias):
            aliases = list(state.aliases)
            for page in op.pages:
                frame, led = aliases[page]
                led = tuple(
                    frozenset() if op.broadcast or number == actor else held
                    for number, held in enumerate(led)
                )
                aliases[page] = frame, led
            whose = "all TLBs" if op.broadcast else "its TLB"
            yield f"flushes the alias from {whose}", then._replace(aliases=tuple(aliases))
        elif isinstance(op, Protect):
            before, held = state.rights
            rights = op.rights, tuple(stale | {before} for stale in held)
            yield f"makes the text {op.rights}", then._replace(rights=rights)
        elif isinstance(op, FlushText):
            allowed, rights_held = state.rights
            emptied = tuple(
                frozenset() if op.broadcast or number == actor else stale_rights
                for number, stale_rights in enumerate(rights_held)
            )
            whose = "all TLBs" if op.broadcast else "its TLB"
            yield f"flushes the text from {whose}", then._replace(rights=(allowed, emptied))
        elif isinstance(op, Arm):
            table = ", ".join(f"{site:#x}" for site in op.sites)
            text = f"tells the trap handler of {table}" if op.sites else "forgets the sites"
            yield text, then._replace(armed=op.sites)
        elif isinstance(op, Go):
            going = tuple(e._replace(stopped=False) for e in state.executors)
            yield "lets the others go", then._replace(executors=going)
        elif isinstance(op, LookInside):
            if any(executor.offset > 0 for executor in state.executors):
                over = put_in(state.at, actor, len(self.programs[actor]))
                gone = tuple(e._replace(stopped=False) for e in state.executors)
                yield "gives up: a CPU stands inside", state._replace(at=over, executors=gone)
            else:
                yield "sees that nobody stands inside", then
        elif isinstance(op, Lock):
            if state.owner == -1:
                yield "takes text_mutex", then._replace(owner=actor)
        elif isinstance(op, Unlock):
            yield "gives text_mutex back", then._replace(owner=-1)
        else:
            done = tuple(one or number in op.places for number, one in enumerate(state.done))
            yield "is done", then._replace(done=done)

    def _put(self, then: State, actor: int, op: Put) -> Iterator[tuple[str, State]]:
        now, stale = then.cells[op.cell]
        # What is written over has every step before it, even where some CPU holds it already.
        new = {(now, len(self.live.maintenance))}
        held = tuple(
            frozenset(
                each
                for each in {*(one for one in old if one[0] != now), *new}
                if each[0] != op.data
            )
            for old in stale
        )
        right = then._replace(cells=put_in(then.cells, op.cell, (op.data, held)))
        text = f"writes {op.data.hex()} at {self._where(op.cell)}"
        if op.page is None:
            yield text, right
            return
        frame, others = then.aliases[op.page]
        for leads in sorted({frame, *others[actor]} - {None}, key=lambda one: one or 0):
            if leads == self.frames[op.cell]:
                yield text, right
            else:
                wrong = Bad("alias", f"{op.data.hex()} is written into the frame {leads:#x}")
                yield (
                    f"writes {op.data.hex()} through the alias, which leads to {leads:#x}",
                    then._replace(bads=put_in(then.bads, actor, wrong)),
                )

    def _executor(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        """Yield what a CPU may do: arrive at any site, go on behind an instruction, handle a trap."""
        executor = state.executors[number]
        if executor.stopped:
            return
        if executor.offset == -1:
            yield from self._handle(state, number, executor)
        elif executor.site >= 0:
            yield from self._execute(state, number, executor, executor.site, executor.offset)
        elif executor.visits:
            arrived = executor._replace(visits=executor.visits - 1)
            for site in range(len(self.places)):
                yield from self._execute(state, number, arrived, site, 0)

    def _handle(self, state: State, number: int, executor: Executor) -> Iterator[tuple[str, State]]:
        address = self.places[executor.site].address
        if not self.lookup(state.armed, address):
            table = ", ".join(f"{site:#x}" for site in state.armed) or "nothing"
            bad = Bad("stray", f"breakpoint at {address:#x}; the handler looks in {table}")
            yield "its handler does not find the site", self._halted(state, number, executor, bad)
            return
        yield (
            "its handler does the new instruction's work",
            self._left(state, number, executor, executor.site, "emulated"),
        )

    def _execute(
        self, state: State, number: int, executor: Executor, site: int, offset: int
    ) -> Iterator[tuple[str, State]]:
        """Yield every instruction that may be fetched at a place."""
        place = self.places[site]
        at = place.address + offset
        now, held = state.rights
        mine = {now, *held[len(self.programs) + number]}
        if not any("X" in rights for rights in mine):
            yield (
                f"may not execute {at:#x}",
                self._left(state, number, executor, site, "refused"),
            )
            return
        for rights in sorted({now}.union(*held)):
            if "W" in rights:
                bad = Bad("window", f"{at:#x} is executed where a CPU has it {rights}")
                yield (
                    f"executes {at:#x}, which can be written to",
                    self._halted(state, number, executor, bad),
                )
                return
        for code, whose, mixed in self._fetched(state, number, place, offset):
            text = f"executes {code.hex()} at {at:#x}"
            if whose == "breakpoint":
                trapped = executor._replace(site=site, offset=-1)
                yield (
                    f"meets the breakpoint at {at:#x}",
                    state._replace(executors=put_in(state.executors, number, trapped)),
                )
            elif whose == "torn":
                bad = Bad("torn", f"{code.hex()} at {at:#x}")
                yield f"{text}, which nobody wrote", self._halted(state, number, executor, bad)
            elif whose == "old" and state.done[site]:
                bad = Bad("stale", f"{code.hex()} at {at:#x}")
                yield f"{text}, the old instruction", self._halted(state, number, executor, bad)
            elif mixed:
                bad = Bad("unpredictable", f"{mixed} at {at:#x}: {self.live.rule}")
                yield f"{text}, or anything else", self._halted(state, number, executor, bad)
            else:
                behind = offset + len(code)
                doing = executor.doing if offset and executor.doing != "same" else whose
                if whose not in ("same", doing):
                    bad = Bad("torn", f"{code.hex()} at {at:#x}, behind the {doing} code")
                    yield (
                        f"{text}, the {whose} instruction behind one of the {doing} ones",
                        self._halted(state, number, executor, bad),
                    )
                elif behind < place.size(doing):
                    moved = executor._replace(site=site, offset=behind, doing=doing)
                    yield (
                        f"{text}, one of the {doing} instructions",
                        state._replace(executors=put_in(state.executors, number, moved)),
                    )
                else:
                    yield (
                        f"{text}, the {whose} instruction",
                        self._left(state, number, executor, site, doing),
                    )

    def _fetched(
        self, state: State, number: int, place: Place, offset: int
    ) -> Iterator[tuple[bytes, str, str]]:
        """Yield what may be fetched: bytes, whose they are, and what of them may not be mixed."""
        known = place.instructions(offset)
        mark = self.live.breakpoint
        if mark is not None and not offset:
            known.append((mark, "breakpoint"))
        first = offset // self.granule
        views = []
        for cell in place.cells[first:]:
            now, stale = state.cells[cell]
            views.append(sorted({now, *(data for data, _ in stale[number])}))
        seen = set()
        for bytes_seen in product(*views):
            code = b"".join(bytes_seen)
            size, whose = self._decoded(code, known)
            used = views[: -(-size // self.granule)]
            mixed = next((why for view in used if (why := self._mixed(view))), "")
            found = code[:size], whose, mixed
            if found not in seen:
                seen.add(found)
                yield found

    @staticmethod
    def _decoded(code: bytes, known: Sequence[tuple[bytes, str]]) -> tuple[int, str]:
        """Return how many bytes are executed, and whose instruction that is.

        Where the old and the new one are the same bytes, it is the "same".
        """
        met = [(len(one), whose) for one, whose in known if code.startswith(one)]
        if len({size for size, _ in met}) == 1 and {"old", "new"} <= {whose for _, whose in met}:
            return met[0][0], "same"
        if met:
            return met[-1]
        return max(len(instruction) for instruction, _ in known[:2]), "torn"

    def _mixed(self, view: Sequence[bytes]) -> str:
        """Return two contents of a granule of which one may not replace the other."""
        for one in view:
            for other in view:
                if one != other and not self.live.concurrent(one, other):
                    return f"{one.hex()} or {other.hex()}"
        return ""

    def _halted(self, state: State, number: int, executor: Executor, bad: Bad) -> State:
        """Return the state after a CPU has gone wrong; it answers, but executes no more."""
        over = Executor(0, log=executor.log)
        return state._replace(
            executors=put_in(state.executors, number, over),
            bads=put_in(state.bads, self._cpu(number), bad),
        )

    def _left(self, state: State, number: int, executor: Executor, site: int, what: str) -> State:
        gone = Executor(executor.visits, log=(*executor.log, (site, what)))
        return state._replace(executors=put_in(state.executors, number, gone))

    def _cpu(self, executor: int) -> int:
        return len(self.programs) + executor

    def _where(self, cell: int) -> str:
        for place in self.places:
            if cell in place.cells:
                return f"{place.address + place.cells.index(cell) * self.granule:#x}"
        return f"granule {cell}"

    # What steps touch: bits for cells, pages of the alias, CPUs, and five single things ---------

    def _bit(self, what: str, index: int = 0) -> int:
        first = {
            "rights": 0,
            "armed": 1,
            "owner": 2,
            "cpu": 3,
            "alias": 3 + self.executors,
            "done": 3 + self.executors + self.alias_pages,
            "cell": 3 + self.executors + self.alias_pages + len(self.places),
        }
        return 1 << first[what] + index

    def _bits(self, what: str, indices: Sequence[int]) -> int:
        return sum(self._bit(what, index) for index in set(indices))

    def _touched_by(self, op: Op) -> Touched:
        """Return what an operation reads and writes."""
        if isinstance(op, Put):
            read = 0 if op.page is None else self._bit("alias", op.page)
            return Touched(read, self._bit("cell", op.cell))
        if isinstance(op, Sync):
            return Touched(self._bits("cell", op.cells), self._bit("cpu", op.executor))
        if isinstance(op, Maintain):
            return Touched(0, self._bits("cell", op.cells))
        if isinstance(op, Stop):
            return Touched(0, self._bit("cpu", op.executor))
        if isinstance(op, MapAlias):
            return Touched(0, self._bit("alias", op.page))
        if isinstance(op, FlushAlias):
            return Touched(0, self._bits("alias", op.pages))
        if isinstance(op, Protect | FlushText):
            return Touched(0, self._bit("rights"))
        if isinstance(op, Arm):
            return Touched(0, self._bit("armed"))
        if isinstance(op, Go | LookInside):
            return Touched(0, self._bits("cpu", range(self.executors)))
        if isinstance(op, Lock | Unlock):
            return Touched(0, self._bit("owner"))
        return Touched(0, self._bits("done", op.places))

    def touched(self, state: State, actor: int) -> Touched:
        """Return what the next step of a CPU reads and writes."""
        if actor < len(self.programs):
            program, at = self.programs[actor], state.at[actor]
            return NOWHERE if at >= len(program) else self._touched_by(program[at])
        executor = state.executors[actor - len(self.programs)]
        mine = self._bit("cpu", actor - len(self.programs))
        if executor.offset == -1:
            return Touched(self._bit("armed"), mine)
        if executor.site < 0 and not executor.visits:
            return NOWHERE
        sites = range(len(self.places)) if executor.site < 0 else (executor.site,)
        cells = [cell for site in sites for cell in self.places[site].cells]
        read = self._bits("cell", cells) | self._bits("done", sites) | self._bit("rights")
        return Touched(read, mine)

    def future(self, state: State, actor: int) -> Touched:
        """Return all that a CPU may yet read and write."""
        if actor < len(self.programs):
            return self._suffixes[actor][state.at[actor]]
        if not self._goes_on(state.executors[actor - len(self.programs)]):
            return NOWHERE
        read = self._bits("cell", range(len(self.frames))) | self._bit("rights")
        read |= self._bits("done", range(len(self.places))) | self._bit("armed")
        return Touched(read, self._bit("cpu", actor - len(self.programs)))

    @staticmethod
    def _goes_on(executor: Executor) -> bool:
        return bool(executor.visits) or executor.site >= 0
