# SPDX-License-Identifier: GPL-2.0-or-later
"""What a real kernel does when it patches its own text, written down and made into a race.

A booted kernel turns a static key (`static_key_enable`, `static_key_disable`), and the functions
are listened to by which it stores, cleans caches, synchronises CPUs, stops them, and lets the trap
handler know. Of the many sites of a key some are taken. It has one CPU here, which is enough: what
it does does not depend on what others do, and the others are the model's.

It is done twice. The first time tells which sites there are, and which pages were flushed; the second
time the sites are watched: a store to one of them comes through a page that leads to it, which is
one of those that are flushed. What that page leads to is looked up again at each step, so it is seen
when it is mapped and unmapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import attrs

from archs import Arch
from archs.levels.boot import FlushInstruction
from emulator.disassembly import Disassembler
from emulator.faults import BadCall
from kernels.tracing import PatchRefused
from machine.booted.flushing import Flushes
from machine.booted.machine import BootedMachine
from machine.racing.model import Race
from machine.racing.scenarios import Scenario
from machine.racing.state import (
    Arm,
    Done,
    FlushAlias,
    Go,
    Maintain,
    MapAlias,
    Op,
    Place,
    Put,
    Stop,
    Sync,
    bsearch,
)
from machine.typedcalls import Call
from machine.watching import Touch

ENABLE, DISABLE = "static_key_enable", "static_key_disable"
LONGEST = 16  # bytes of an instruction, and more


@attrs.frozen
class Store:
    """A kernel function that stores into text: which argument is what.

    `size` None: the argument `data` is an instruction of four bytes, not where bytes are.
    """

    address: int
    data: int
    size: int | None = None


# By name, whatever architecture and version has them.
STORES: Mapping[str, Store] = {
    "__text_poke": Store(1, 2, 3),
    "__aarch64_insn_write": Store(0, 1),
    "patch_insn_write": Store(0, 1, 2),
}
CLEANS = ("caches_clean_inval_pou",)  # from one address to another
SYNCS = (
    "text_poke_sync",
    "smp_text_poke_sync_each_cpu",
    "kick_all_cpus_sync",
    "flush_icache_all",
)
# A compiler puts text_poke_sync() into its callers: what is left is the call to each CPU.
CROSS_CALLS = {"on_each_cpu_cond_mask": 1}  # by the argument that says what each CPU calls
CROSS_CALLED = ("do_sync_core",)
BATCHES = ("text_poke_bp_batch", "smp_text_poke_batch_finish")  # know sites until they return
STOPS = ("stop_machine_cpuslocked",)
FLUSHES = {"flush_tlb_mm_range": 1}  # of an address space; by the argument that begins the range
UPPER = 1 << 63


@attrs.define
class Watched:
    """What a kernel did, in order: names of `STORES` and so on, with what they were about.

    Parameters
    ----------
    sites
        Places that are watched, as address and size.
    pages
        Pages through which they may be stored to; those that were are `aliases`.
    """

    machine: BootedMachine
    sites: Sequence[tuple[int, int]] = ()
    pages: Sequence[int] = ()
    done: list[tuple[str, int, bytes]] = attrs.field(factory=list)
    before: dict[int, bytes] = attrs.field(factory=dict)
    flushed: dict[int, None] = attrs.field(factory=dict)  # a set in order
    aliases: dict[int, int | None] = attrs.field(factory=dict)  # page -> frame
    _root: int = 0

    def store(self, how: Store, call: Call) -> None:
        """Note a store, and what stood there before the first one."""
        arguments = call.traced.arguments
        at, data = arguments[how.address], arguments[how.data]
        if how.size is None:
            code = (data & 0xFFFFFFFF).to_bytes(4, "little")
        else:
            code = self.machine.read(data, arguments[how.size])
        self.before.setdefault(at, self.machine.read(at, LONGEST))
        self.done.append(("store", at, code))

    def clean(self, call: Call) -> None:
        """Note that caches are cleaned of a range."""
        start, end = call.traced.arguments[:2]
        self.done.append(("clean", start, bytes(end - start)))

    def cross_call(self, argument: int, called: frozenset[int], call: Call) -> None:
        """Note a synchronisation where each CPU calls one of some functions."""
        if call.traced.arguments[argument] in called:
            self.done.append(("sync", 0, b""))

    def note(self, what: str, _call: Call) -> None:
        """Note that something was done."""
        self.done.append((what, 0, b""))

    # Where stores go, and what TLBs are told ---------------------------------------------------

    def flush(self, each: FlushInstruction, page: int | None) -> None:
        """Note an instruction that drops a page, or everything."""
        self._look()
        if page is not None:
            self.flushed.setdefault(page & -self.page)
        if page is not None or each.whole or each.process:
            what = "flush all CPUs" if each.everywhere else "flush"
            only = b"process" if each.process else b"" if page is None else b"page"
            self.done.append((what, 0 if page is None else page & -self.page, only))

    def flush_range(self, argument: int, call: Call) -> None:
        """Note a page of an address space that is flushed."""
        self.flushed.setdefault(call.traced.arguments[argument] & -self.page)

    def put(self, touch: Touch) -> None:
        """Note a store to a watched site, and the page through which it comes."""
        if touch.kind != "write":  # its time is not known
            return
        board = self.machine.kernel.board
        at = touch.address & -self.page
        frame = board.translate(at)
        for page in self.pages:
            if page != at and board.translate(page) == frame:
                self._root = board.tables().root
                self.aliases.setdefault(page, None)
        self._look()
        self.done.append(("put", touch.address, touch.new))

    @property
    def page(self) -> int:
        """Bytes of a page."""
        return 1 << self.machine.kernel.board.tables().granule

    def _look(self) -> None:
        """Note where aliases lead, where that is another frame than before."""
        board = self.machine.kernel.board
        tables = attrs.evolve(board.tables(), root=self._root) if self._root else board.tables()
        for page, before in self.aliases.items():
            entry = tables.entry(board.ram.words, page)
            frame = None
            if entry is not None:
                frame = (entry & tables.format.frame) << tables.format.shift & -self.page
            if frame != before:
                self.aliases[page] = frame
                self.done.append(("alias", page, b"" if frame is None else frame.to_bytes(8)))

    def end(self) -> None:
        """Note where aliases lead at the end."""
        self._look()


def turn(
    machine: BootedMachine,
    key: str,
    flushes: Flushes,
    *,
    on: bool = True,
    sites: Sequence[tuple[int, int]] = (),
    pages: Sequence[int] = (),
) -> Watched:
    """Turn a static key of a kernel, and return what the kernel did.

    Parameters
    ----------
    flushes
        Of that kernel.
    sites, pages
        See `Watched`.

    Raises
    ------
    BadCall
        The kernel has no such key, or stored nothing that was seen.
    """
    watched = Watched(machine, sites, pages)
    known = machine.functions
    with ExitStack() as listening:

        def listen(name: str, *told: object) -> None:
            if name in known:
                try:
                    listening.enter_context(machine.on(name, *told))  # type: ignore[arg-type]
                except PatchRefused as refused:
                    raise BadCall(name, f"its calls cannot be seen: {refused}") from refused

        for name, how in STORES.items():
            listen(name, partial(watched.store, how))
        for name in CLEANS:
            listen(name, watched.clean)
        for names, what in ((SYNCS, "sync"), (STOPS, "stop")):
            for name in names:
                listen(name, partial(watched.note, what))
        called = frozenset(machine.function(name) for name in CROSS_CALLED if name in known)
        for name, argument in CROSS_CALLS.items() if called else ():
            listen(name, partial(watched.cross_call, argument, called))
        for name in BATCHES:
            listen(name, partial(watched.note, "knows"), partial(watched.note, "forgets"))
        for name, argument in FLUSHES.items():
            listen(name, partial(watched.flush_range, argument))
        listening.enter_context(flushes.counting(watched.flush))
        for address, size in sites:
            listening.enter_context(machine.watch(address, size, "w", watched.put))
        _turn(machine, key, on)
        watched.end()
    if not any(what == "store" for what, _, _ in watched.done):
        known_stores = ", ".join(STORES)
        raise BadCall(key, f"nothing was stored by {known_stores}: the key stood so, or is none")
    return watched


def _turn(machine: BootedMachine, key: str, on: bool) -> None:
    machine.call(machine.function(ENABLE if on else DISABLE), _address(machine, key))


def _address(machine: BootedMachine, key: str) -> int:
    """Return where a variable is: by kallsyms, else as it is exported (without KALLSYMS_ALL)."""
    exports = machine.image.exports
    if key in machine.kernel.symbols or key not in exports or ENABLE not in exports:
        return machine.function(key)
    return exports[key].address + machine.function(ENABLE) - exports[ENABLE].address


def kernel_race(
    machine: BootedMachine,
    key: str,
    *,
    on: bool = True,
    sites: int = 2,
    executors: int = 1,
    visits: int = 1,
) -> Scenario:
    """Turn a static key of a kernel, and return that as a race at some of its sites.

    Raises
    ------
    BadCall
        As `turn`; or nobody knows how the architecture patches text that runs.
    """
    arch = machine.arch
    if arch.text_poke is None or arch.live_patch is None:
        raise BadCall(key, f"nobody knows how {arch.name} patches text that runs")
    try:
        flushes = Flushes(machine.kernel)
    except LookupError as error:
        raise BadCall(key, f"what it drops from TLBs cannot be seen: {error}") from error
    granule = arch.text_poke.granule
    first = turn(machine, key, flushes, on=on)
    places = _places(machine, arch, first, granule, sites)
    where = [(place.address, len(place.new)) for place in places]
    _turn(machine, key, not on)
    watched = turn(machine, key, flushes, on=on, sites=where, pages=tuple(first.flushed))
    seen = {at for what, at, _ in watched.done if what == "put"}
    for place in places:
        if not any(place.address <= at < place.address + len(place.new) for at in seen):
            raise BadCall(key, f"how it stores to {place.address:#x} is not seen")
    cells = {
        place.address + index * granule: cell
        for place in places
        for index, cell in enumerate(place.cells)
    }
    frames = {at: machine.kernel.board.translate(at) or 0 for at in cells}
    page = 1 << machine.kernel.board.tables().granule
    program = _program(watched, places, cells, granule, executors, arch.live_patch.maintenance)
    race = Race(
        places=tuple(places),
        programs=(tuple(program),),
        live=arch.live_patch,
        granule=granule,
        frames=tuple(frame & -page for frame in frames.values()),
        alias_pages=len(watched.aliases),
        shared=any(page >= UPPER for page in watched.aliases),
        executors=executors,
        visits=visits,
        lookup=bsearch,
    )
    return Scenario(
        arch=arch, title=f"{machine.kernel.release} turns {key} {'on' if on else 'off'}", race=race
    )


def _places(
    machine: BootedMachine, arch: Arch, watched: Watched, granule: int, sites: int
) -> list[Place]:
    """Return the first sites that were stored to; a store right behind the first byte is its tail."""
    sizes: dict[int, int] = {}
    for what, at, code in watched.done:
        if what == "store" and at not in sizes:
            if at - 1 in sizes and sizes[at - 1] == 1:
                sizes[at - 1] += len(code)
            else:
                sizes[at] = len(code)
    disassembler = Disassembler(arch)
    places: list[Place] = []
    cell = 0
    for at in sorted(sizes)[:sites]:
        size = sizes[at]
        old, new = watched.before[at][:size], machine.read(at, size)
        count = size // granule
        of_old, of_new = (
            tuple(length for _, length, _ in disassembler.all(code, at)) for code in (old, new)
        )
        places.append(Place(at, tuple(range(cell, cell + count)), old, new, of_old, of_new))
        cell += count
    return places


def _program(
    watched: Watched,
    places: Sequence[Place],
    cells: Mapping[int, int],
    granule: int,
    executors: int,
    maintenance: Sequence[str],
) -> list[Op]:
    """Return what was done at some sites, as operations."""
    order = [at for what, at, _ in watched.done if what == "store"]
    known = tuple(sorted((place.address for place in places), key=order.index))
    cleaning = any(what == "clean" for what, _, _ in watched.done)
    program: list[Op] = []
    stored: set[int] = set()

    def maintain(some: Sequence[int]) -> list[Op]:
        """Return what a function that cleans does, or one that synchronises where none cleans."""
        return [Maintain(name, tuple(some)) for name in maintenance] if some else []

    aliases = list(watched.aliases)
    leads: dict[int, int] = {}
    for what, at, code in watched.done:
        within = [cells[one] for one in range(at, at + len(code), granule) if one in cells]
        if what == "alias":
            number, leads_to = aliases.index(at), int.from_bytes(code) if code else None
            program.append(MapAlias(number, leads_to))
            leads = {frame: page for frame, page in leads.items() if page != number}
            if leads_to is not None:
                leads[leads_to] = number
        elif what == "put":
            within = []
            for one, data in _granules(watched.machine, at, code, granule):
                if one in cells:
                    frame = (watched.machine.kernel.board.translate(one) or 0) & -watched.page
                    program.append(Put(leads.get(frame), cells[one], data))
                    within.append(cells[one])
            stored |= set(within)
        elif what in ("flush", "flush all CPUs"):
            dropped = [
                number
                for number, page in enumerate(aliases)
                if page == at or (not at and (not code or page < UPPER))
            ]
            if dropped:
                program.append(FlushAlias(tuple(dropped), what != "flush"))
        elif what == "clean":
            program += maintain(within)
        elif what == "sync":
            reached = sorted(stored)
            program += [] if cleaning else maintain(reached)
            program += [Sync(number, tuple(reached)) for number in range(executors)]
        elif what == "stop":
            program += [Stop(number) for number in range(executors)]
        elif what == "knows":
            program.append(Arm(known))
        elif what == "forgets":
            program.append(Arm(()))
    program = _without_detours(program, len(aliases))
    if any(isinstance(op, Stop) for op in program):
        program.append(Go())
    program.append(Done(tuple(range(len(places)))))
    return program


def _without_detours(program: Sequence[Op], pages: int) -> list[Op]:
    """Leave out what comes back to where it was: aliases of other sites, mapped and dropped again.

    What the page tables say of the aliases, and what this CPU's TLB may hold besides, is followed; where
    both are as they have been since the last other step, what lies between has changed nothing.
    """
    kept: list[Op] = []
    leads: list[int | None] = [None] * pages
    held: list[frozenset[int]] = [frozenset()] * pages
    been: dict[tuple[object, ...], int] = {}
    for op in program:
        if isinstance(op, MapAlias):
            if (frame := leads[op.page]) is not None:
                held[op.page] |= {frame}
            leads[op.page] = op.frame
        elif isinstance(op, FlushAlias):
            for page in op.pages:
                held[page] = frozenset()
        else:
            been.clear()
            kept.append(op)
            been[*leads, *held] = len(kept)
            continue
        kept.append(op)
        now = (*leads, *held)
        if now in been:
            del kept[been[now] :]
            been = {one: at for one, at in been.items() if at <= len(kept)}
        else:
            been[now] = len(kept)
    return kept


def _granules(
    machine: BootedMachine, at: int, data: bytes, granule: int
) -> Iterator[tuple[int, bytes]]:
    """Yield what a store makes of each granule that it touches."""
    start, end = at - at % granule, -(-(at + len(data)) // granule) * granule
    whole = bytearray(machine.read(start, end - start))
    whole[at - start : at - start + len(data)] = data
    for offset in range(0, len(whole), granule):
        yield start + offset, bytes(whole[offset : offset + granule])
