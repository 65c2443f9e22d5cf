# SPDX-License-Identifier: GPL-2.0-or-later
"""A module of a booted kernel: where the kernel put it, and functions to call."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import attrs
import numpy as np

from allocator.types import MemType
from archs import Arch
from archs.layouts import Layouts, NotKnown
from emulator.budget import DEFAULT
from emulator.faults import BadCall, Fault
from kernels.booted.modules import Inserted, Region
from kernels.booted.reports import Report
from kernels.log import LogLine
from kernels.registry import Record
from kernels.tracing import LIMIT, AnyProbe, CallTrace, Hit, OnCall
from loader.btf import Btf
from loader.elfview import SHF_WRITE, STT_FUNC, STT_OBJECT, ElfView, Section
from loader.layouts import types_over
from loader.loaded import LoadedSection, State
from machine.arguments import Argument
from machine.booted.holding import Holding
from machine.sources import Placed
from machine.typed import Calling, TypedFunctions

_PERCPU = ".data..percpu"
# What is no part of a module's regions (kernel/module/main.c, rewrite_section_headers()).
_APART = (_PERCPU, ".modinfo", "__versions", "__version_ext_crcs", "__version_ext_names")
_PAGE, _AFTER_INIT = 4096, ".data..ro_after_init"


class Watching(Protocol):
    """What watches functions of a machine."""

    def probe(
        self, place: int | str, handler: Callable[[Hit], object] | None, limit: int = ...
    ) -> AnyProbe:
        """Put a probe at an instruction."""
        ...

    def trace(
        self,
        *patterns: str,
        limit: int = ...,
        on_entry: OnCall | None = ...,
        on_exit: OnCall | None = ...,
    ) -> CallTrace:
        """Trace functions."""
        ...


class Keeper(Calling, Protocol):
    """The machine that a module is loaded in, as far as modules ask it for something."""

    @property
    def btf(self) -> Mapping[str, Btf]:
        """The types that are known: of the kernel, and of modules by their names."""
        ...

    @property
    def layouts(self) -> Layouts:
        """The layouts of its kernel's structures."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Return guest memory."""
        ...

    def taints_of(self, module: str) -> str:
        """Return what /sys says of how a module taints the kernel."""
        ...

    @property
    def interposing(self) -> Watching:
        """What watches and changes functions."""
        ...

    def unload(self, module: BootedModule, *, force: bool = False) -> None:
        """Take a module out."""
        ...


@attrs.frozen(kw_only=True)
class LoadReport:
    """What the kernel did when it loaded a module.

    Parameters
    ----------
    name, arch, kernel
        The module, its architecture, and the release of the kernel.
    regions
        Memory type -> what it took, init types included, before its init ran.
    sections
        Section index -> where the kernel placed it.
    relocations
        Type name -> count, most frequent first.
    init_result
        What its init returned.
    log
        What the kernel logged meanwhile.
    reports
        What the kernel found wrong meanwhile.
    registered
        What it registered, where that was noted (`BootedMachine.note_registrations`).
    """

    name: str
    arch: str
    kernel: str
    regions: Mapping[MemType, Region]
    sections: Mapping[int, LoadedSection]
    relocations: Mapping[str, int]
    init_result: int
    log: tuple[LogLine, ...]
    reports: tuple[Report, ...] = ()
    registered: tuple[Record, ...] | None = None


class BootedModule:
    """A module that a booted kernel has loaded; made by `Machine.load`."""

    def __init__(
        self, machine: Keeper, view: ElfView, name: str, inserted: Inserted, report: LoadReport
    ) -> None:
        self._machine = machine
        self.view = view
        self.name = name
        self.inserted = inserted
        self.report = report
        self.state = State.LIVE

    @property
    def taints(self) -> str:
        """How the module taints the kernel: letters, as /sys/module/NAME/taint has them."""
        try:
            return self.holding.taints
        except NotKnown:  # its kernel has no types
            return self._machine.taints_of(self.name)

    @property
    def holding(self) -> Holding:
        """What the kernel's own `struct module` says of it; BadCall where it is not loaded."""
        if self.state is not State.LIVE:
            raise BadCall(self.name, f"module {self.name} is {self.state.value}")
        return Holding(self.inserted.module, self._machine.layouts, self._machine.read)

    @property
    def depends(self) -> tuple[str, ...]:
        """The modules that it uses, as the kernel has noted them; without types as its file says."""
        try:
            return self.holding.depends
        except NotKnown:
            return tuple(sorted(filter(None, self.view.modinfo.get("depends", "").split(","))))

    @property
    def users(self) -> tuple[str, ...]:
        """The modules that use it, as the kernel has noted them."""
        return self.holding.users

    @property
    def held_by(self) -> str:
        """Why it cannot be taken out now, as far as that is known; empty for nothing known."""
        if self.state is not State.LIVE:
            return ""
        try:
            users, references = self.users, self.holding.references
        except NotKnown:
            return ""
        if users:
            return f"in use by {', '.join(users)}"
        return f"in use: {references} reference{'s' * (references != 1)}" if references else ""

    @property
    def registered(self) -> tuple[Record, ...]:
        """What its load registered, by the kernel's own lists.

        BadCall where nobody noted it: `BootedMachine.note_registrations` before the load does.
        """
        if self.report.registered is None:
            hint = "Machine.note_registrations() before the load"
            raise BadCall(self.name, "what it registered was not noted", hint)
        return self.report.registered

    def types_over(self, kernel: Btf | None, release: str) -> Btf | None:
        """Return its types, which go on from those of its kernel; None: there are none."""
        return types_over(self.view, kernel, release)

    @property
    def placed(self) -> Placed | None:
        """Its file and where its sections lie; None where the file is not known."""
        addresses = {index: section.address for index, section in self.sections.items()}
        return Placed(self.view, addresses)

    @property
    def sections(self) -> Mapping[int, LoadedSection]:
        """Section index -> name, memory type, address, size."""
        return self.report.sections

    @property
    def regions(self) -> Mapping[MemType, Region]:
        """Memory type -> address and size, of those that are still there."""
        if self.state is not State.LIVE:
            return {}
        return {kind: at for kind, at in self.report.regions.items() if not kind.is_init}

    @cached_property
    def symbols(self) -> Mapping[str, int]:
        """Functions, objects and global symbols by name -> address; globals win over locals."""
        table = self.view.symbols
        info, shndx = table["info"], table["shndx"]
        kind, bind = info & 0xF, info >> 4
        wanted = ((kind == STT_FUNC) | (kind == STT_OBJECT) | (bind != 0)) & (shndx != 0)
        found: dict[str, int] = {}
        for index in np.flatnonzero(wanted).tolist():
            section = self.sections.get(int(shndx[index]))
            name = self.view.symbol_name(index)
            if section is not None and (name not in found or bind[index]):
                found[name] = section.address + int(table["value"][index])
        return found

    @cached_property
    def spans(self) -> list[tuple[int, int, str]]:
        """Address, size and name of every function, in ascending order."""
        table = self.view.symbols
        chosen = np.flatnonzero(table["info"] & 0xF == STT_FUNC)
        found = []
        for index in chosen.tolist():
            section = self.sections.get(int(table["shndx"][index]))
            if section is not None:
                at = section.address + int(table["value"][index])
                found.append((at, int(table["size"][index]), self.view.symbol_name(index)))
        return sorted(found)

    @property
    def entries(self) -> Mapping[str, int]:
        """Functions by name -> address, those of init that are gone, too."""
        return {name: at for at, _, name in self.spans}

    @cached_property
    def functions(self) -> TypedFunctions:
        """Its functions by name, with their prototypes where it has types."""
        machine = self._machine

        def there() -> Mapping[str, int]:
            regions = [at for kind, at in self.regions.items() if kind.is_text]
            return {
                name: at
                for at, _, name in self.spans
                if any(r.address <= at < r.address + r.size for r in regions)
            }

        return TypedFunctions(machine, there, lambda: machine.btf.get(self.name))

    def symbol_at(self, address: int) -> str | None:
        """Return `name+0xoff/0xsize [module]` of the function around an address, or None."""
        for at, size, name in self.spans:
            if at <= address < at + max(size, 1):
                return f"{name}+{address - at:#x}/{size:#x} [{self.name}]"
        return None

    def address_of(self, name: str) -> int:
        """Return the address of a function or variable that is still in memory.

        Raises
        ------
        BadCall
            Naming what is like it.
        """
        if self.state is not State.LIVE:
            raise BadCall(name, f"module {self.name} is {self.state.value}")
        if not isinstance(name, str):
            hint = "Machine.call takes an address"
            raise BadCall("call", f"{name!r} is no name of a function", hint)
        address = self.symbols.get(name)
        if address is None:
            close = difflib.get_close_matches(name, self.symbols, 3)
            hint = f"did you mean {', '.join(close)}?" if close else ""
            raise BadCall(name, f"module {self.name} has no such symbol", hint)
        for section in self.sections.values():
            inside = section.address <= address <= section.address + section.size
            if inside and section.type is not None and section.type.is_init:
                raise BadCall(name, "lies in init memory, which was freed after init")
        return address

    def call(
        self,
        name: str,
        *args: Argument,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
        returns: str = "u64",
    ) -> int:
        """Call a function of the module and return its result.

        Parameters
        ----------
        name
            A function's symbol, local ones too.
        args
            Ints; bytes or str (copied into guest memory, str NUL-terminated, for the time
            of the call); `Out(n)` for a zeroed buffer that can be read afterwards.
        instructions, seconds
            What it may take, with all that happens meanwhile; None: anything. By default the
            machine's limits.
        returns
            C type of the result: the register is converted to it ("int": signed 32 bits).

        Raises
        ------
        BadCall
            Unknown function, or arguments that cannot be passed.
        Fault
            It did not come back.
        """
        address = self.address_of(name)
        if name not in self.entries:
            raise BadCall(name, "is not a function: it lies in data")
        return self._machine.call(
            address, *args, instructions=instructions, seconds=seconds, returns=returns
        )

    def trace(self, glob: str = "*", **options: Any) -> CallTrace:
        """Trace this module's functions whose name matches; see `BootedMachine.trace`."""
        return self._machine.interposing.trace(f"{self.name}:{glob}", **options)

    def probe(
        self, place: str, handler: Callable[[Hit], object] | None = None, *, limit: int = LIMIT
    ) -> AnyProbe:
        """Probe this module at `FUNCTION[+OFFSET]`; see `BootedMachine.probe`."""
        return self._machine.interposing.probe(f"{self.name}:{place}", handler, limit)

    def unload(self, *, force: bool = False) -> None:
        """Let the kernel take the module out (delete_module)."""
        self._machine.unload(self, force=force)

    def __repr__(self) -> str:
        where = ", ".join(
            f"{kind.name} [{at.address:#x}, {at.address + at.size:#x})"
            for kind, at in self.regions.items()
        )
        return f"<Module {self.name} ({self.report.arch}, {self.state.value}): {where}>"


def report_of(
    arch: Arch,
    release: str,
    name: str,
    view: ElfView,
    inserted: Inserted,
    log: tuple[LogLine, ...],
    reports: tuple[Report, ...] = (),
    registered: tuple[Record, ...] | None = None,
) -> LoadReport:
    """Return what a kernel did when it loaded a module."""
    counts: Counter[str] = Counter()
    for table in view.tables:
        numbers, times = np.unique(table.records["type"], return_counts=True)
        for number, count in zip(numbers.tolist(), times.tolist(), strict=True):
            counts[arch.link.type_name(number)] += count
    return LoadReport(
        name=name,
        arch=arch.name,
        kernel=release,
        regions=inserted.regions,
        sections=sections_of(view, inserted),
        relocations=dict(counts.most_common()),
        init_result=0,
        log=log,
        reports=reports,
        registered=registered,
    )


def placed_of(module: BootedModule | None) -> Placed | None:
    """Return a module's file and where its sections lie; None for none."""
    return None if module is None else module.placed


def where_loading(fault: Fault, view: ElfView, name: str, addresses: Mapping[int, int]) -> Fault:
    """Return a fault in a module that is being loaded: its symbols are not the kernel's yet.

    Parameters
    ----------
    view, name
        Its file, and what it is called.
    addresses
        Where its sections are, by index.
    """
    table, address = view.symbols, fault.pc
    if not fault.where.startswith("0x"):  # the kernel's own report knows it
        return fault
    for index in np.flatnonzero(table["info"] & 0xF == STT_FUNC).tolist():
        section = addresses.get(int(table["shndx"][index]))
        if section is None:
            continue
        start, size = section + int(table["value"][index]), int(table["size"][index])
        if start <= address < start + max(size, 1):
            title = view.symbol_name(index)
            where = f"{title}+{address - start:#x}/{size:#x} [{name}]"
            return attrs.evolve(fault, where=where)
    return fault


def sections_of(view: ElfView, inserted: Inserted) -> dict[int, LoadedSection]:
    """Return where the kernel placed a module's sections, and in which memory."""
    found = {}
    for section in view.sections:
        address = inserted.addresses.get(section.index)
        if address is None or not section.allocated:
            continue
        kind = next(
            (
                kind
                for kind, at in inserted.regions.items()
                if at.address <= address < at.address + max(at.size, 1)
            ),
            None,
        )
        if kind is None and section.name != _PERCPU:
            continue
        found[section.index] = LoadedSection(section.name, kind, address, section.size)
    return found


def with_regions(view: ElfView, inserted: Inserted) -> Inserted:
    """Return what became of a module with its regions, where the kernel has no types to say them.

    They are then the pages of its sections, by the memory that layout_sections() chooses.
    """
    if inserted.regions:
        return inserted
    ends: dict[MemType, tuple[int, int]] = {}
    for section in view.sections:
        address = inserted.addresses.get(section.index)
        if address is None or not section.allocated or section.name in _APART:
            continue
        kind = _kind_of(section)
        low, high = ends.get(kind, (address, address))
        ends[kind] = min(low, address), max(high, address + section.size)
    regions = {
        kind: Region(low & -_PAGE, (high + _PAGE - 1 & -_PAGE) - (low & -_PAGE))
        for kind, (low, high) in sorted(ends.items(), key=lambda item: item[0].value)
    }
    return attrs.evolve(inserted, regions=regions)


def _kind_of(section: Section) -> MemType:
    """Return the memory that a section goes to, as layout_sections() chooses it, by its flags."""
    init = section.name.startswith(".init")
    if section.name == _AFTER_INIT:
        return MemType.RO_AFTER_INIT
    if section.executable:
        return MemType.INIT_TEXT if init else MemType.TEXT
    if section.flags & SHF_WRITE:
        return MemType.INIT_DATA if init else MemType.DATA
    return MemType.INIT_RODATA if init else MemType.RODATA
