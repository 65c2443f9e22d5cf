# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded boot's loads again, in a kernel that is booted: each in its turn.

Where a module's file is not at hand, the kernel's own allocator is asked for the memory that it
had; where not even a recording is, its place is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from allocator.types import PAGE_SIZE, MemType, align_up
from execmem.diffing.live import LiveBoot, Recorder
from execmem.diffing.placement import BootLoad, _RegionSizes
from loader.files import SUFFIXES, ModuleFile, module_name
from loader.layout import TOGETHER
from loader.recording import RecordedBoot, Recording, image_of
from machine.booted.machine import BootedMachine

TEXT, DATA = 0, 4  # enum execmem_type (include/linux/execmem.h)
VM_ALLOC = 2  # include/linux/vmalloc.h
REST = 0.06  # seconds after which freed init memory is back


@attrs.frozen
class Replayed:
    """What became of one load.

    Parameters
    ----------
    recorded
        What the recorded kernel made of it; None: nobody knows.
    made
        What the booted kernel made of it; None: its file is not at hand, or what it needs.
    errno
        What loading returned, positive.
    regions
        Memory type -> address and size that it had here.
    """

    name: str
    recorded: Recording | None
    made: Recording | None
    errno: int
    regions: Mapping[MemType, tuple[int, int]]


def loads_of(run: RecordedBoot, trees: tuple[Path, ...]) -> list[BootLoad]:
    """Return a boot's loads in their order."""
    files: dict[str, list[Path]] = {}
    for path in (path for tree in trees for path in sorted(tree.rglob("*.ko*"))):
        if path.name.endswith(SUFFIXES):
            files.setdefault(module_name(path), []).append(path)
    return _RegionSizes(trees, files).of(run)


class Replay:
    """A recorded boot's loads, one after the other.

    Parameters
    ----------
    machine
        As it was after its boot, without a tree: what the recorded kernel asked for, nobody gave.
    run
        The boot.
    trees
        Where files of modules are looked for.
    """

    def __init__(self, machine: BootedMachine, run: RecordedBoot, trees: tuple[Path, ...]) -> None:
        self.machine = machine
        self._run = run
        self._trees = trees
        self._recorder = Recorder(machine)
        self._loads = loads_of(run, trees)

    @property
    def boot(self) -> LiveBoot:
        """What was made until now."""
        return self._recorder.boot

    def loads(self, most: int | None = None) -> Iterator[Replayed]:
        """Let the kernel load each, or the first; yield what becomes of it."""
        following = [load.address for load in self._loads[1:]]
        for load, after in zip(self._loads[:most], [*following, 0], strict=False):
            yield self._load(load, after)
            self.machine.sleep(REST)

    def _load(self, load: BootLoad, after: int) -> Replayed:
        machine, run, recorded = self.machine, self._run, load.recording
        if recorded is None:
            _take(machine, run, load, after)
            return Replayed(load.name, None, None, 0, {})
        image = image_of(recorded, self._trees)
        if image is not None:
            before = len(self.boot.refusals)
            self._recorder.load(ModuleFile(f"{load.name}.ko", image))
            refused = self.boot.refusals[before:]
            made = next((r for r in self.boot.recordings if r.name == load.name), None)
            if made is not None:
                errno = refused[0].errno if refused else 0
                if errno and not load.failed:  # what its CPU lacks, that of the recording had
                    _stand_in(machine, run, load, recorded)
                return Replayed(load.name, recorded, made, errno, made.regions)
        # Neither is what needs a module whose file is not at hand.
        return Replayed(load.name, recorded, None, 0, _stand_in(machine, run, load, recorded))


def _stand_in(
    machine: BootedMachine, run: RecordedBoot, load: BootLoad, recorded: Recording
) -> dict[MemType, tuple[int, int]]:
    """Ask the kernel for the memory that a module had; init memory is given back."""
    call, find = machine.call, machine.kernel.find
    found: dict[MemType, tuple[int, int]] = {}
    freed: list[int] = []
    if TOGETHER.at(run.boot.version):
        alloc, free = find(("module_alloc",)), find(("module_memfree",))
        for init in (False, True):
            kinds = [kind for kind in recorded.regions if kind.is_init == init]
            total = sum(recorded.regions[kind][1] for kind in kinds)
            start = at = call(alloc, total) if total else 0
            for kind in kinds:
                found[kind] = (at, recorded.regions[kind][1])
                at += recorded.regions[kind][1]
            if total and (init or load.failed):
                freed.append(start)
    else:
        alloc, free = find(("execmem_alloc",)), find(("execmem_free",))
        for kind in MemType:
            if kind in recorded.regions:
                size = recorded.regions[kind][1]
                at = call(alloc, TEXT if kind.is_text else DATA, size)
                found[kind] = (at, size)
                if kind.is_init or load.failed:
                    freed.append(at)
    for at in freed:
        call(free, at)
    call(find(("vm_unmap_aliases",)))  # of a module's own memory it is freed at once
    return found


def _take(machine: BootedMachine, run: RecordedBoot, load: BootLoad, after: int) -> None:
    """Take the place of a module of which only address and size are known.

    Its regions follow one another, each with a guard page, up to the next module's text; before
    Linux 6.4 they are one area.
    """
    gap = (after - load.address - load.size) // PAGE_SIZE
    guards = gap if 1 <= gap <= len(MemType) else 3
    guards = 1 if TOGETHER.at(run.boot.version) else guards
    size = align_up(load.size, PAGE_SIZE) + (guards - 1) * PAGE_SIZE
    _reserve(machine, load.address, size)


def _reserve(machine: BootedMachine, address: int, size: int) -> None:
    """Let the kernel give nobody else some address space, and the page behind it."""
    take = machine.kernel.find(("__get_vm_area_caller",))
    machine.call(take, size, VM_ALLOC, address, address + size + PAGE_SIZE, 0)
