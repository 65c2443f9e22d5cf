# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings made now: a booted kernel loads modules, and its memory is read at two points.

The kernel's own loader does everything. It is stopped twice in each load: at the entry of
`sort_extable()`, when all relocations are applied and nothing else was done, and at that of
`do_init_module()`, when everything is done but init (both are there from 5.10 to 7.2). What is
read there is what recordings on disk hold: section headers as the kernel has rewritten them, its
values of the module's symbols, bytes; and what static keys and calls that are not the module's
own say in that moment.

A module may end its init badly, even the kernel: then the machine goes back to what it was
before, and on with the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import attrs
import numpy as np

from allocator.types import MemType
from archs.dialect import HEADER
from archs.environment import Boot
from archs.passes.static_calls import KEY, TRAMPOLINE
from emulator.faults import Fault
from execmem.diffing.flipped import TABLE
from kernels.booted.modules import Loading
from loader.depends import find, modules_for
from loader.elf import parse
from loader.elfview import SHF_ALLOC, ElfView
from loader.errors import KernelRefused, LoadError
from loader.files import SUFFIXES, ModuleFile, is_file, module_name
from loader.layout import PERCPU_SECTION
from loader.recording import (
    Contents,
    LiveModule,
    RecordedBoot,
    RecordedSection,
    Recording,
    Refusal,
)
from loader.static_calls import places
from machine.booted.account import account
from machine.booted.machine import BootedMachine
from machine.booted.words import soft

RUN = "booted"
_SYMBOL, _VALUE = 24, slice(8, 16)  # bytes of Elf64_Sym; st_value in it
_FLAGS = 3  # of a branch, in the low bits of its key's address
_ENABLED, _POINTER = 4, 8  # bytes: struct static_key.enabled, struct static_call_key.func
_REST = 0.06  # seconds of guest time after which a worker has freed init memory


@attrs.frozen(kw_only=True)
class LiveBoot(RecordedBoot):
    """A boot that took place here.

    Parameters
    ----------
    told
        What the kernel says of itself.
    release
        The kernel's.
    loaded
        Modules that stayed, in the order of loads.
    tried
        Names of all, in that order.
    key_places
        Where the keys of static calls are that modules define.
    """

    told: Boot = attrs.field(repr=False)
    release: str
    loaded: tuple[LiveModule, ...] = ()
    tried: tuple[str, ...] = ()
    key_places: Mapping[str, int] = attrs.field(factory=dict, repr=False)

    @property
    def kernel(self) -> str:
        """The release of the kernel that booted."""
        return self.release

    @property
    def boot(self) -> Boot:
        """What the boot said about itself."""
        return self.told

    @property
    def live(self) -> tuple[LiveModule, ...]:
        """The modules that are there after the last load, in the order of loads."""
        return self.loaded

    @property
    def order(self) -> tuple[str, ...]:
        """Names of modules in the order of loads, those that failed too."""
        return self.tried

    @cached_property
    def kernel_symbols(self) -> Mapping[str, int]:
        """The kernel's own symbols, and what modules use of others."""
        seen = {name: at for r in self.recordings for name, at in r.symbols.items()}
        return {**self.told.symbols, **seen}

    @property
    def _provided(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        return {}, self.key_places


@attrs.define
class _Seen:
    """A load under way: what was read when it was relocated."""

    view: ElfView
    sections: tuple[tuple[int, int, int, int, int], ...]  # number, address, size, flags, alignment
    symbols: Mapping[str, int]
    percpu: int | None
    relocated: bytes
    keys: Mapping[str, bool]
    calls: Mapping[str, int]


class Recorder:
    """Lets a booted kernel load modules, and notes what it makes of them.

    Parameters
    ----------
    machine
        The kernel; where its tree is None, modules are files.
    told
        What it says of itself, where that is known.
    """

    def __init__(self, machine: BootedMachine, told: Boot | None = None) -> None:
        self.machine = machine
        self.told = told if told is not None else account(machine)
        self._recordings: dict[str, Recording] = {}
        self._loaded: list[LiveModule] = []
        self._tried: dict[str, str] = {}  # name -> in whose init the kernel asked for it
        self._names: dict[int, str] = {}  # of loads under way
        self._begun: set[str] = set()  # modules that others are loaded for, softly
        self._refusals: list[Refusal] = []
        self._keys: dict[str, int] = {}
        self._seen: dict[int, _Seen] = {}
        self._file = ""
        modules = machine.kernel.modules
        modules.on_relocated, modules.before_init = self._relocated, self._finished

    @property
    def boot(self) -> LiveBoot:
        """What was recorded until now."""
        return LiveBoot(
            folder=Path(self.machine.kernel.release),
            arch_name=self.machine.arch.name,
            name=RUN,
            recordings=tuple(self._recordings.values()),
            told=self.told,
            release=self.machine.kernel.release,
            loaded=tuple(self._loaded),
            tried=tuple(self._tried),
            refusals=tuple(self._refusals),
            key_places=dict(self._keys),
        )

    # Loading ------------------------------------------------------------------------------------

    def files(self, wanted: Sequence[str]) -> Iterator[ModuleFile]:
        """Yield modules by path or name after those that they need, each once.

        Raises
        ------
        LoadError
            There is no such module.
        """
        given = set(self.machine.modules)
        for text in wanted:
            if "/" in text or text.endswith(SUFFIXES) or is_file(text):
                names = (*self._needs(module_name(text)), text)
            else:
                names = (*self._needs(text), module_name(text))
            for name in names:
                if module_name(name) in given:
                    continue
                given.add(module_name(name))
                is_path = name == text and name != module_name(name)
                yield ModuleFile.read(Path(name) if is_path else find(self.machine.tree, name))

    def _needs(self, name: str) -> tuple[str, ...]:
        tree = self.machine.tree
        return () if tree is None else tree.to_load(name)[:-1]

    def load(self, file: ModuleFile) -> None:
        """Let the kernel load one module; what it says against it is noted, too."""
        machine = self.machine
        title = module_name(file.name)
        if title in machine.modules or title in self._begun:  # another asked for it
            return
        self._begun.add(title)
        self._load_soft(file)
        self._begun.discard(title)
        before, said = machine.snapshot(), len(machine.log)
        self._file = file.name
        try:
            machine.insert(file)
        except KernelRefused as refused:
            at = "init" if refused.operation == "init" else "load"
            self._refuse(title, at, refused.errno, refused.name, said)
            if at == "load":  # memory that it had for a moment may be kept for others
                machine.restore(before)
        except Fault as fault:
            at = "init" if title in self._recordings else "load"
            self._refuse(title, at, 0, fault.kind.value, said, str(fault))
            machine.restore(before)
        except LoadError as error:
            self._refuse(title, "load", 0, "", said, str(error))
        machine.sleep(_REST)
        self._seen.clear()
        self._names.clear()
        known = {live.name for live in self._loaded}
        self._loaded += [
            _line(self._recordings[name], inside)
            for name, inside in self._tried.items()
            if name in machine.modules and name in self._recordings and name not in known
        ]

    def _load_soft(self, file: ModuleFile) -> None:
        """Load what a module asks for softly, as far as it is there."""
        tree = self.machine.tree
        if tree is None:
            return
        for wanted in soft(file):
            title = module_name(wanted)
            for found in [title] if title in tree.files else modules_for(tree, wanted):
                for name in tree.to_load(found):
                    self.load(ModuleFile.read(find(tree, name)))

    def _refuse(
        self, module: str, at: str, errno: int, name: str, said: int, what: str = ""
    ) -> None:
        lines = tuple(line.text for line in self.machine.log[said:])
        self._refusals.append(Refusal(module, at, errno, name, what or (lines or ("",))[-1], lines))
        if module in self._recordings:
            self._recordings[module] = attrs.evolve(self._recordings[module], errno=errno)

    # What is read -------------------------------------------------------------------------------

    def _relocated(self, load: Loading) -> None:
        """Read a module that is relocated."""
        machine = self.machine
        view = parse(load.image, self._file)
        headers = np.frombuffer(load.headers, HEADER)
        sections = tuple(
            (index, int(at["address"]), int(at["size"]), int(at["flags"]), int(at["align"]))
            for index, at in enumerate(headers)
            if at["address"]
            and int(at["flags"]) & SHF_ALLOC
            and view.sections[index].flags & SHF_ALLOC
        )
        table = headers[load.symbols]
        raw = machine.read(int(table["address"]), int(table["size"]))
        values = np.frombuffer(raw, np.dtype((np.void, _SYMBOL)))
        found = [int.from_bytes(bytes(one)[_VALUE], "little") for one in values]
        symbols = {name: found[index] for name, index in view.undefined.items() if found[index]}
        self._seen[id(load)] = _Seen(
            view,
            sections,
            symbols,
            _percpu(view, found),
            b"".join(machine.read(at, size) for _, at, size, _, _ in sections),
            self._static_keys(view, symbols),
            self._static_calls(symbols),
        )
        self._keys |= places(view, {index: at for index, at, *_ in sections})

    def _finished(self, load: Loading) -> None:
        """Read a module whose init is about to run, and keep the recording."""
        seen, machine = self._seen.pop(id(load)), self.machine
        final = b"".join(machine.read(at, size) for _, at, size, _, _ in seen.sections)
        name = seen.view.modinfo.get("name") or module_name(seen.view.name)
        self._names[id(load)] = name
        self._tried.setdefault(name, self._names.get(id(load.inside), ""))
        offset, sections = 0, []
        for index, at, size, flags, align in seen.sections:
            points = (bytes_[offset : offset + size] for bytes_ in (seen.relocated, final))
            hashes = [hashlib.sha256(part).hexdigest() for part in points]
            title = seen.view.sections[index].name
            sections.append(RecordedSection(index, title, at, size, flags, align, offset, *hashes))
            offset += size
        both = (np.frombuffer(data, np.uint8) for data in (seen.relocated, final))
        changes = np.bitwise_xor(*both).tobytes()
        regions = {kind: (at.address, at.size) for kind, at in load.regions.items()}
        self._recordings[name] = Recording(
            folder=Path(machine.kernel.release),
            arch_name=machine.arch.name,
            run=RUN,
            name=name,
            file=f"{name}.ko",
            sha256=hashlib.sha256(load.image).hexdigest(),
            cpu="",
            append=self.told.command_line,
            cpus=self.told.possible_cpus,
            errno=0,
            sections=tuple(sections),
            symbols=seen.symbols,
            regions=regions,
            percpu=seen.percpu,
            contents=Contents(load.image, seen.relocated, changes),
            static_keys=seen.keys,
            static_calls=seen.calls,
        )

    def _static_keys(self, view: ElfView, symbols: Mapping[str, int]) -> dict[str, bool]:
        """Return what the keys say that a module's branches go by and others own."""
        names = {index: name for name, index in view.undefined.items()}
        found: dict[str, bool] = {}
        for table in view.tables:
            if table.target.name != TABLE:
                continue
            pairs = np.unique(table.records[["symbol", "addend"]])
            for index, addend in pairs.tolist():
                name, offset = names.get(index), addend & ~_FLAGS
                if name is not None and name in symbols:
                    enabled = self.machine.read(symbols[name] + offset, _ENABLED)
                    key = f"{name}+{offset:#x}" if offset else name
                    found[key] = any(enabled)  # negative while somebody switches it on
        return found

    def _static_calls(self, symbols: Mapping[str, int]) -> dict[str, int]:
        """Return what the static calls go to that a module makes and others own."""
        found: dict[str, int] = {}
        for name in symbols:
            if not name.startswith((KEY, TRAMPOLINE)):
                continue
            bare = name[len(KEY) :]
            key = KEY + bare
            at = symbols.get(key) or self._keys.get(key) or self.told.symbols.get(key)
            if at:
                found[bare] = int.from_bytes(self.machine.read(at, _POINTER), "little")
        return found


def _percpu(view: ElfView, values: Sequence[int]) -> int | None:
    """Return where a module's per-cpu variables are, as the values of its symbols tell."""
    section = view.find(PERCPU_SECTION)
    if section is None:
        return None
    inside = np.flatnonzero(view.symbols["shndx"] == section.index).tolist()
    return values[inside[0]] - int(view.symbols["value"][inside[0]]) if inside else None


def _line(recording: Recording, inside: str) -> LiveModule:
    """Return what /proc/modules says of a module, and in whose init it came."""
    core = {kind: at for kind, at in recording.regions.items() if not kind.is_init}
    first = core.get(MemType.TEXT) or next(iter(core.values()), (0, 0))
    return LiveModule(recording.name, sum(size for _, size in core.values()), first[0], inside)


def record(
    recorder: Recorder,
    wanted: Iterable[str],
    progress: Callable[[int, int], None] | None = None,
) -> LiveBoot:
    """Let a kernel load modules, in order; return what it made of them.

    Parameters
    ----------
    wanted
        Names or paths.
    progress
        Called with the modules done and their number.

    Raises
    ------
    LoadError
        There is no such module.
    """
    files = list(recorder.files(list(wanted)))
    for done, file in enumerate(files):
        if progress is not None:
            progress(done, len(files))
        recorder.load(file)
    return recorder.boot
