# SPDX-License-Identifier: GPL-2.0-or-later
"""What a real kernel does when it patches its own text, written down and made into a race.

A booted kernel turns a static key (`static_key_enable`, `static_key_disable`), and the functions
are listened to by which it stores, cleans caches, synchronises CPUs, stops them, and lets the trap
handler know. Of the many sites of a key some are taken. It has one CPU here, which is enough: what
it does does not depend on what others do, and the others are the model's.

How a store reaches its place (alias, TLB) is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import attrs

from archs import Arch
from emulator.disassembly import Disassembler
from emulator.faults import BadCall
from kernels.tracing import PatchRefused
from machine.booted.machine import BootedMachine
from machine.racing.model import Race
from machine.racing.scenarios import Scenario
from machine.racing.state import Arm, Done, Go, Maintain, Op, Place, Put, Stop, Sync, bsearch
from machine.typedcalls import Call

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


@attrs.define
class Watched:
    """What a kernel did, in order: names of `STORES` and so on, with what they were about."""

    machine: BootedMachine
    done: list[tuple[str, int, bytes]] = attrs.field(factory=list)
    before: dict[int, bytes] = attrs.field(factory=dict)

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


def turn(machine: BootedMachine, key: str, *, on: bool = True) -> Watched:
    """Turn a static key of a kernel, and return what the kernel did.

    Raises
    ------
    BadCall
        The kernel has no such key, or stored nothing that was seen.
    """
    watched = Watched(machine)
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
        machine.call(machine.function(ENABLE if on else DISABLE), _address(machine, key))
    if not any(what == "store" for what, _, _ in watched.done):
        known_stores = ", ".join(STORES)
        raise BadCall(key, f"nothing was stored by {known_stores}: the key stood so, or is none")
    return watched


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
    granule, watched = arch.text_poke.granule, turn(machine, key, on=on)
    places = _places(machine, arch, watched, granule, sites)
    cells = {
        place.address + index * granule: cell
        for place in places
        for index, cell in enumerate(place.cells)
    }
    maintenance = arch.live_patch.maintenance
    program = _program(watched, places, cells, granule, executors, maintenance)
    race = Race(
        places=tuple(places),
        programs=(tuple(program),),
        live=arch.live_patch,
        granule=granule,
        frames=(0,) * len(cells),
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

    for what, at, code in watched.done:
        within = [cells[one] for one in range(at, at + len(code), granule) if one in cells]
        if what == "store":
            for index, one in enumerate(range(at, at + len(code), granule)):
                if one in cells:
                    data = code[index * granule : (index + 1) * granule]
                    program.append(Put(None, cells[one], data))
            stored |= set(within)
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
        else:
            program.append(Arm(()))
    if any(isinstance(op, Stop) for op in program):
        program.append(Go())
    program.append(Done(tuple(range(len(places)))))
    return program
