# SPDX-License-Identifier: GPL-2.0-or-later
"""What is searched: our own protocols as they are recorded, and the same with a mistake planted.

Nothing here knows an architecture: instructions come from its record (NOPs, jumps, call sites),
and so does which mistakes there are to be made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import attrs

from allocator.errors import ExecmemError
from allocator.types import MemType
from archs import Arch
from emulator.disassembly import Disassembler
from machine.machine import ModelledMachine
from machine.patching import Way
from machine.racing.model import Race
from machine.racing.recording import Recorder, record_patch
from machine.racing.state import (
    Arm,
    FlushAlias,
    Go,
    Lock,
    LookInside,
    Maintain,
    MapAlias,
    Op,
    Place,
    Put,
    Stop,
    Sync,
    Unlock,
    bsearch,
)

PAGES = 4
ALIAS = (MapAlias, FlushAlias)
# How far jumps of a site lead, the farthest that an instruction reaches.
DISTANCES = (0x123_4568, 0x1_2344, 0x5C)


@attrs.frozen
class Kind:
    """One replacement: what stands at a site, and what is to stand there."""

    title: str
    old: Callable[[int], bytes | None]
    new: Callable[[int], bytes | None]
    size: int


@attrs.frozen(kw_only=True)
class Scenario:
    """Something to search.

    Parameters
    ----------
    name
        Of a planted mistake; empty: our own protocol, which must show nothing.
    title
        What is patched, in words.
    expected
        The kinds of outcomes (`machine.racing.model.KINDS`) of which a plant must show one.
    """

    arch: Arch
    title: str
    race: Race
    name: str = ""
    expected: tuple[str, ...] = ()


# What stands at sites ------------------------------------------------------------------------------


def kinds(arch: Arch) -> list[Kind]:
    """Return every replacement that the kernel makes: static branches and traced functions."""
    found: list[Kind] = []
    patching = arch.patch.text if arch.patch is not None else None
    if patching is None:
        return found
    labels, ftrace = patching.jump_labels, patching.ftrace
    nops = dict(labels.nops)
    for size, nop in nops.items():
        jump = partial(_sized, labels.jump, size)
        here, there = _jumping(jump, 1), _jumping(jump, -1)
        found += [
            Kind(f"NOP of {size} by a jump", _always(nop), here, size),
            Kind(f"jump of {size} by a NOP", here, _always(nop), size),
            Kind(f"jump of {size} by another", here, there, size),
        ]
    idle = next((nop * (ftrace.size // n) for n, nop in nops.items() if not ftrace.size % n), None)
    here, there = _jumping(ftrace.call, 1), _jumping(ftrace.call, -1)
    if idle is not None:
        found += [
            Kind(f"NOP of {ftrace.size} by a call", _always(idle), here, ftrace.size),
            Kind(f"call of {ftrace.size} by a NOP", here, _always(idle), ftrace.size),
        ]
    found.append(Kind(f"call of {ftrace.size} by another", here, there, ftrace.size))
    return found


def _sized(
    jump: Callable[[int, int, int], bytes | None], size: int, at: int, to: int
) -> bytes | None:
    return jump(at, to, size)


def _always(code: bytes) -> Callable[[int], bytes | None]:
    return lambda _at: code


def _jumping(
    encode: Callable[[int, int], bytes | None], sign: int
) -> Callable[[int], bytes | None]:
    """Return what encodes a jump as far as it gets, so that the bytes of two differ."""

    def jump(at: int) -> bytes | None:
        for distance in DISTANCES:
            found = encode(at, at + sign * distance)
            if found is not None:
                return found
        return None

    return jump


# Recording -----------------------------------------------------------------------------------------


class Ground:
    """A machine of an architecture, with pages of text to be patched again and again."""

    def __init__(self, arch: Arch) -> None:
        if arch.text_poke is None or arch.live_patch is None:
            raise ExecmemError(f"{arch.name} has no text_poke: its text stays as it is")
        self.arch = arch
        self.granule = arch.text_poke.granule
        self.machine = machine = ModelledMachine(arch)
        self.page = page = machine.memory.page_size
        pending = machine.execmem.alloc(MemType.TEXT, PAGES * page, align=page)
        pending.write(0, bytes(PAGES * page))
        self.start = pending.finish().address


def place_sites(ground: Ground, sites: Sequence[tuple[int, bytes, bytes]]) -> list[Place]:
    """Put old bytes into text, and return the sites (offset in it, old, new) as places."""
    disassembler = Disassembler(ground.arch)
    places, cell = [], 0
    for offset, old, new in sites:
        at = ground.start + offset
        ground.machine.execmem.poke(at, old)
        cells = tuple(range(cell, cell + len(old) // ground.granule))
        cell += len(cells)
        sizes = [tuple(size for _, size, _ in disassembler.all(code, at)) for code in (old, new)]
        if sum(sizes[0]) != len(old):
            sizes[0] = (len(old),)
        places.append(Place(at, cells, old, new, sizes[0], _executed(sizes[1], new)))
    return places


def _executed(sizes: tuple[int, ...], new: bytes) -> tuple[int, ...]:
    """Return the sizes of the new instructions: one where it leaves and is filled up."""
    return sizes if sum(sizes) == len(new) else (sizes[:1] or (len(new),))


def race_of(recorder: Recorder, programs: Sequence[Sequence[Op]], **more: object) -> Race:
    """Return the race of recorded programs and CPUs that execute the recorder's sites."""
    arch = recorder.machine.arch
    assert arch.live_patch is not None
    return Race(
        places=tuple(recorder.places),
        programs=tuple(map(tuple, programs)),
        live=arch.live_patch,
        granule=recorder.granule,
        frames=recorder.frames,
        alias_pages=len(recorder.alias_pages),
        shared=any(not private for private, _ in recorder.alias_pages),
        **{"executors": recorder.executors, **more},  # type: ignore[arg-type]
    )


def offsets(ground: Ground, size: int) -> list[int]:
    """Return where in two pages a site may begin: as a whole, and at every cut by a page's end."""
    return [0, *(ground.page - before for before in range(ground.granule, size, ground.granule))]


# Our own -------------------------------------------------------------------------------------------


def ours(ground: Ground, *, executors: int = 1, visits: int = 2) -> Iterator[Scenario]:
    """Yield our own protocols: every kind at every cut of a page, batches, pokers in turn."""
    arch, page = ground.arch, ground.page
    for kind in kinds(arch):
        for offset in offsets(ground, kind.size):
            where = f", {page - offset} before a page's end" if offset else ""
            found = _recorded(ground, [(kind, offset)], executors)
            if found is not None:
                recorder, program = found
                race = race_of(recorder, [program], visits=visits)
                yield Scenario(arch=arch, title=f"{kind.title}{where}", race=race)
    for first, second in pairwise(kinds(arch)):
        found = _recorded(ground, [(second, page + 0x40), (first, 0x80)], executors)
        if found is not None:
            recorder, program = found
            race = race_of(recorder, [program], visits=visits)
            yield Scenario(arch=arch, title=f"{first.title}; {second.title}", race=race)
    yield pokers(ground, executors=executors)


def _recorded(
    ground: Ground,
    batch: Iterable[tuple[Kind, int]],
    executors: int,
    *,
    way: Way | None = None,
    force: bool = False,
) -> tuple[Recorder, tuple[Op, ...]] | None:
    """Return what patching kinds at offsets does; None where there is no such instruction."""
    places = _places(ground, batch)
    if places is None:
        return None
    recorder = Recorder(ground.machine, places, executors)
    return recorder, record_patch(recorder, way=way, force=force)


def _places(ground: Ground, batch: Iterable[tuple[Kind, int]]) -> list[Place] | None:
    start = ground.start
    sites = []
    for kind, offset in batch:
        old, new = kind.old(start + offset), kind.new(start + offset)
        if old is None or new is None:
            return None
        sites.append((offset, old, new))
    return place_sites(ground, sites)


def way_of(program: Iterable[Op]) -> Way:
    """Return how a program patches."""
    done = {type(op) for op in program}
    if Stop in done:
        return Way.STOP_MACHINE
    return Way.BREAKPOINT if Arm in done else Way.NOSYNC


def pokers(ground: Ground, *, executors: int = 1, mutex: bool = True) -> Scenario:
    """Return two CPUs that patch a site each: one after the other by text_mutex, or at once."""
    arch, machine = ground.arch, ground.machine
    kind = _widest(arch)
    places = _places(ground, [(kind, 0), (kind, ground.page)])
    assert places is not None
    alias_pages: dict[tuple[int, int], int] = {}
    programs = []
    for mine in range(len(places)):
        recorder = Recorder(machine, places, executors, mine=(mine,), alias_pages=alias_pages)
        program = record_patch(recorder)
        programs.append((Lock(), *program, Unlock()) if mutex else program)
    return Scenario(
        arch=arch,
        title=f"two CPUs patch at once: {kind.title}",
        race=race_of(recorder, programs, visits=1),
    )


def one_site(ground: Ground, *, executors: int = 1) -> Scenario | None:
    """Return two CPUs that patch one site, each to something else, at once.

    None where both write one granule only: the last one wins. The alias is left out; both map
    the same page to it.
    """
    machine, size = ground.machine, _widest(ground.arch).size
    news = [
        code
        for kind in kinds(ground.arch)
        if kind.size == size and (code := kind.new(ground.start)) is not None
    ]
    first, old = news[0], _widest(ground.arch).old(ground.start)
    cuts = range(0, size, ground.granule)

    def apart(code: bytes) -> int:
        step = ground.granule
        return sum(code[at : at + step] != first[at : at + step] for at in cuts)

    second = max((code for code in news if code != old), key=apart)
    if apart(second) < 2:
        return None
    alias_pages: dict[tuple[int, int], int] = {}
    programs = []
    for new in (first, second):
        assert old is not None
        places = place_sites(ground, [(0, old, new)])
        recorder = Recorder(machine, places, executors, alias_pages=alias_pages)
        programs.append([_plainly(op) for op in _without(record_patch(recorder), *ALIAS)])
    recorder.places = [attrs.evolve(places[0], new=first, others=(second,))]
    return Scenario(
        arch=ground.arch,
        title="two CPUs patch one site at once, without text_mutex",
        race=race_of(recorder, programs, visits=1),
        name="one-site",
        expected=("lost",),
    )


def _widest(arch: Arch) -> Kind:
    """Return the first kind of the most bytes, which has the most that can go wrong."""
    return max(kinds(arch), key=lambda kind: kind.size)


def given(
    ground: Ground,
    old: bytes,
    new: bytes,
    *,
    offset: int = 0,
    force: bool = False,
    executors: int = 1,
    visits: int = 2,
) -> Scenario:
    """Return the replacement of given bytes at an offset in a page.

    Parameters
    ----------
    force
        Store granule by granule, and synchronise only then, if that is safe or not.

    Raises
    ------
    LivePatchError, PokeError
        The kernel's way is not safe for them, or they cannot be poked there.
    """
    if not old or len(old) != len(new) or offset + len(old) > PAGES * ground.page:
        raise ExecmemError(
            f"{len(old)} bytes by {len(new)} at {offset:#x}: as many new bytes as old ones are "
            f"needed, at least one, within {PAGES} pages"
        )
    places = place_sites(ground, [(offset, old, new)])
    recorder = Recorder(ground.machine, places, executors)
    program = record_patch(recorder, way=Way.NOSYNC if force else None, force=force)
    title = f"{old.hex()} by {new.hex()}{', granule by granule' if force else ''}"
    race = race_of(recorder, [program], visits=visits)
    return Scenario(arch=ground.arch, title=title, race=race)


# Planted mistakes ----------------------------------------------------------------------------------


def plants(ground: Ground, *, executors: int = 1, visits: int = 1) -> Iterator[Scenario]:
    """Yield our protocols with one mistake each, as far as the architecture lets make it."""
    arch, page = ground.arch, ground.page
    kind = _widest(arch)
    one = _recorded(ground, [(kind, 0)], executors)
    two = _recorded(ground, [(kind, 0x40), (kind, page + 0x40)], executors)
    assert one is not None
    assert two is not None
    recorder, program = one

    def plant(
        name: str,
        title: str,
        program: Iterable[Op],
        *expected: str,
        recorder: Recorder = recorder,
        **more: object,
    ) -> Scenario:
        race = race_of(recorder, [tuple(program)], visits=visits, **more)
        return Scenario(arch=arch, title=title, race=race, name=name, expected=expected)

    yield from _unsynchronised(ground, executors, plant)
    yield plant(
        "no-flush",
        "two sites, the alias never flushed",
        _without(two[1], FlushAlias),
        "alias",
        recorder=two[0],
    )
    yield attrs.evolve(
        pokers(ground, executors=executors, mutex=False),
        name="no-mutex",
        title="two CPUs patch at once, without text_mutex",
        expected=("alias",),
    )
    if (both := one_site(ground, executors=executors)) is not None:
        yield both
    if arch.text_poke is not None and arch.text_poke.flush_first:
        turns = pokers(ground, executors=executors)
        late = [_without_first_flush(turn) for turn in turns.race.programs]
        yield attrs.evolve(
            turns,
            name="no-first-flush",
            title="two CPUs patch in turn, the alias flushed only behind",
            race=attrs.evolve(turns.race, programs=tuple(late)),
            expected=("alias",),
        )
    if any(isinstance(op, Stop) for op in program):
        yield plant(
            "no-stop",
            f"{kind.title}, the other CPUs not stopped",
            _without(program, Stop, Go),
            "torn",
            "unpredictable",
        )
        if len(recorder.places[0].old_sizes) > 1:
            looks = [op for op in program if isinstance(op, LookInside)]
            yield plant(
                "look-first",
                f"{kind.title}, looked where CPUs stand before they were stopped",
                [*looks, *_without(program, LookInside)],
                "torn",
            )
    if any(isinstance(op, Arm) for op in program):
        bare = _recorded(ground, [(kind, 0)], executors, way=Way.NOSYNC, force=True)
        assert bare is not None
        yield plant(
            "no-breakpoint", f"{kind.title}, byte by byte", bare[1], "torn", recorder=bare[0]
        )
        yield from _plants_by_breakpoint(kind, plant, program, two)


def _unsynchronised(
    ground: Ground, executors: int, plant: Callable[..., Scenario]
) -> Iterator[Scenario]:
    """Yield each way of patching without one of its synchronisations."""
    ways: set[Way] = set()
    for kind in sorted(kinds(ground.arch), key=lambda kind: -kind.size):
        found = _recorded(ground, [(kind, 0)], executors)
        if found is None:
            continue
        recorder, program = found
        way = way_of(program)
        if way in ways:
            continue
        ways.add(way)
        groups = _groups(program)
        for number, group in enumerate(groups):
            of = f" {number + 1} of {len(groups)}" if len(groups) > 1 else ""
            yield plant(
                f"no-sync-{number + 1}" if of else "no-sync",
                f"{kind.title} ({way.value}), without synchronisation{of}",
                [op for at, op in enumerate(program) if at not in group],
                *(("stale", "stray") if number == len(groups) - 1 else ("torn",)),
                recorder=recorder,
            )
        yield from _unmaintained(kind, way, plant, recorder, program)


def _unmaintained(
    kind: Kind,
    way: Way,
    plant: Callable[..., Scenario],
    recorder: Recorder,
    program: Sequence[Op],
) -> Iterator[Scenario]:
    """Yield a way of patching without one of the instructions that come behind its stores."""
    done = [(at, op.name) for at, op in enumerate(program) if isinstance(op, Maintain)]
    names = [name for _, name in done]
    for number, (at, name) in enumerate(done):
        many = names.count(name) > 1
        which = names[: number + 1].count(name)
        plant_name = f"no-{name.split()[0]}"
        yield plant(
            f"{plant_name}-{which}" if many else plant_name,
            f"{kind.title} ({way.value}), without {f'the {which}. ' * many}{name}",
            [op for index, op in enumerate(program) if index != at],
            "stale",
            recorder=recorder,
        )


def _plants_by_breakpoint(
    kind: Kind,
    plant: Callable[..., Scenario],
    program: Sequence[Op],
    two: tuple[Recorder, tuple[Op, ...]],
) -> Iterator[Scenario]:
    forgets = program.index(Arm(()))
    puts = [at for at, op in enumerate(program) if isinstance(op, Put)]
    yield plant(
        "early-forget",
        f"{kind.title}, the handler's table emptied before the last synchronisation",
        [*program[: puts[-1] + 1], program[forgets], *_but(program[puts[-1] + 1 :], Arm(()))],
        "stray",
    )
    knows = next(op for op in program if isinstance(op, Arm))
    yield plant(
        "late-handler",
        f"{kind.title}, the handler's table filled behind the breakpoint",
        [*_but(program[: puts[0] + 1], knows), knows, *program[puts[0] + 1 :]],
        "stray",
    )
    yield plant(
        "unmasked", f"{kind.title}, interrupts on in the handler", program, "stray", masked=False
    )
    table = next(op for op in two[1] if isinstance(op, Arm) and op.sites).sites
    backwards = Arm(tuple(sorted(table, reverse=True)))
    yield plant(
        "unsorted",
        "two sites, the table not sorted (6.16-rc1)",
        [backwards if isinstance(op, Arm) and op.sites else op for op in two[1]],
        "stray",
        recorder=two[0],
        lookup=bsearch,
    )


def _without(program: Iterable[Op], *kinds_of: type) -> list[Op]:
    return [op for op in program if not isinstance(op, kinds_of)]


def _without_first_flush(program: Sequence[Op]) -> tuple[Op, ...]:
    """Leave out flushes of the alias between its mapping and the first store."""
    return tuple(
        op
        for at, op in enumerate(program)
        if not (isinstance(op, FlushAlias) and isinstance(program[at - 1], MapAlias))
        or program[at - 1] == MapAlias(op.pages[0], None)
    )


def _plainly(op: Op) -> Op:
    return attrs.evolve(op, page=None) if isinstance(op, Put) else op


def _but(program: Iterable[Op], omitted: Op) -> list[Op]:
    return [op for op in program if op != omitted]


def _groups(program: Sequence[Op]) -> list[set[int]]:
    """Return the synchronisations: positions of those that follow one another."""
    found: list[set[int]] = []
    for at, op in enumerate(program):
        if isinstance(op, Sync):
            if not found or at - 1 not in found[-1]:
                found.append(set())
            found[-1].add(at)
    return found
