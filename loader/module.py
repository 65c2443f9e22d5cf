# SPDX-License-Identifier: GPL-2.0-or-later
"""A module's life: formed, coming, live, going, gone.

The order is the kernel's load_module (kernel/module/main.c): check, lay out, resolve,
allocate, relocate, write, protect; then init runs (elsewhere: the loader has no CPU),
ro_after_init is sealed and init memory freed. Whatever fails leaves memory, allocator
and symbol tables as they were: nothing is published before nothing more can fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress

import attrs

from allocator import Allocation, AllocationError, Execmem, ExecmemError, Pending
from allocator.types import MemType
from archs import Arch, Checks
from archs.passes.static_calls import KEY, TRAMPOLINE
from loader.admission import Admission
from loader.btf import BadBtf
from loader.elf import check_local_names, parse
from loader.elfview import ElfView
from loader.errors import LoadError, ModuleInUse, ModuleStateError, OutOfMemory
from loader.files import module_name
from loader.finalize import Environment, finalise
from loader.gate import Gate, Notice, taints_text
from loader.layout import PERCPU_SECTION, Layout, plan, with_stub_sections
from loader.layouts import BtfLayouts, types_of
from loader.link import link_view
from loader.linked import Linked
from loader.livepatch import Livepatches, check, resolve_at_load
from loader.loaded import LoadedModule, LoadedSection, State
from loader.symbols import SymbolTable, exports_of
from loader.this_module import this_module


@attrs.define
class Loader:
    """Turns images into modules in executable memory.

    Parameters
    ----------
    arch
        Modules of other architectures are refused.
    execmem
        Where regions come from.
    symbols
        Exports of loaded modules and the kernel's symbols.
    percpu_alloc, percpu_free
        Reserve per-cpu memory: bytes and alignment -> symbol base; and give it back.
    percpu_write
        Stores a per-cpu section's initial contents in every CPU's copy.
    checks
        How strict relocation is.
    errata
        Numbers of CPU errata to work around.
    stub_sections
        Add PLT and GOT sections to modules that were built without.
    environment
        What modules are finalised for; None: they run as they were relocated.
    observe
        Called with the name of each phase of a load when it is over: "allocate",
        "relocate", "finalise", "write", "finish", "init", "seal", "free init".
    on_change
        Told of a module after it became COMING, LIVE or UNLOADED.
    postponed
        Regions without a module that could not be freed yet.
    gate
        What the kernel lets in.
    """

    arch: Arch
    execmem: Execmem
    symbols: SymbolTable
    percpu_alloc: Callable[[int, int], int]
    percpu_free: Callable[[int], None]
    percpu_write: Callable[[int, bytes], None]
    checks: Checks = Checks.HARDWARE
    errata: tuple[str, ...] = ()
    stub_sections: bool = False
    environment: Environment | None = None
    observe: Callable[[str], None] = lambda _phase: None
    modules: dict[str, LoadedModule] = attrs.field(factory=dict)
    postponed: list[Allocation] = attrs.field(factory=list)
    on_change: Callable[[LoadedModule], None] = lambda _module: None
    gate: Gate = attrs.field(default=attrs.Factory(lambda self: Gate(self.arch), takes_self=True))

    def form(self, image: bytes, name: str) -> LoadedModule:
        """Bring a module to the state COMING: in memory, protected, not yet initialised.

        Parameters
        ----------
        image
            The ELF file.
        name
            The file's name, for messages, and the module's where `.modinfo` has none.

        Raises
        ------
        LoadError
            Nothing was changed.
        """
        self.reclaim()
        try:
            return self._admitted(image, name)
        except LoadError as error:
            self.gate.report(error)
            raise

    def _admitted(self, image: bytes, name: str) -> LoadedModule:
        """Check a module as load_module() does, and form it."""
        view = parse(image, name, arch=self.arch)
        build = self.gate.build_of(view)
        view = self.gate.taken(view, build)
        check_local_names(view)
        title = view.modinfo.get("name") or module_name(name)
        if self.stub_sections:
            view = with_stub_sections(view)
        admission = Admission(self.gate, view, title, build)
        try:
            admission.structure()
            module = self._formed(view, title, admission)
        except BaseException:
            admission.undo()
            raise
        admission.settle()
        return module

    def _formed(self, view: ElfView, title: str, admission: Admission) -> LoadedModule:
        name = view.name
        if title in self.modules:
            raise ModuleStateError(name, "load it twice", self.modules[title].state.value)
        layouts = self.gate.layouts_of(admission.build)
        this = this_module(view, layouts)
        layout = plan(
            view,
            errata=self.errata,
            together=None if self.execmem.mixes else False,
            page=self.execmem.memory.page_size,
        )
        needed = [n.replace("-", "_") for n in view.modinfo.get("depends", "").split(",") if n]
        missing = [n for n in needed if n not in self.modules]
        check(view)
        admission.taint()
        hidden = admission.imports(self.symbols.exports, self._taints_of)
        addresses, providers, unknown = self.symbols.resolve(view, missing, hidden, layouts)
        more, missed = resolve_at_load(view, title, self.symbols, self.modules, layouts)
        try:
            module = self._place(view, layout, title, {**addresses, **more}, (*unknown, *missed))
            module.this, module.build, module.layouts = this, admission.build, layouts
        except AllocationError as error:
            raise OutOfMemory(name, error) from error
        module.taints = taints_text(admission.taints)
        admission.notices += [Notice("ftrace", note, title) for note in module.notes]
        admission.notices += self._types(view, title)
        module.notices = tuple(admission.notices)
        # What the module's depends= names is held, used or not, as modprobe would keep it.
        module.providers = providers | frozenset(needed)
        for provider in module.providers:
            self.modules[provider].users.add(title)
        self.modules[title] = module
        try:
            self.on_change(module)
        except BaseException:
            self.discard(module)
            raise
        return module

    def _types(self, view: ElfView, title: str) -> list[Notice]:
        """Let a module's own types count with those of its kernel, where that is given."""
        kernel, layouts = self.gate.kernel, self.gate.layouts
        if kernel is None or not isinstance(layouts, BtfLayouts):
            return []
        try:
            types = types_of(view, kernel)
        except BadBtf as error:
            return [Notice("types", f"its own types are not used: {error}", title)]
        if types is not None:
            layouts.add(title, types)
        return []

    def _taints_of(self, title: str) -> str:
        return self.modules[title].taints

    def _place(
        self,
        view: ElfView,
        layout: Layout,
        title: str,
        addresses: Mapping[str, int],
        unknown: tuple[str, ...],
    ) -> LoadedModule:
        """Allocate, relocate, publish, write and protect; an error undoes every step."""
        with ExitStack() as undo:
            pending = self._allocate(layout, undo)
            self.observe("allocate")
            percpu = self._percpu(layout, undo)
            places = _places(layout, pending)
            linked = link_view(
                view,
                layout,
                places,
                addresses,
                checks=self.checks,
                percpu=percpu,
                errata=self.errata,
            )
            self.observe("relocate")
            relocated = linked
            notes: tuple[str, ...] = ()
            if self.environment is not None:
                relocated = linked.copy()
                environment = self._environment_of(view, self.environment)
                notes = finalise(view, layout, places, linked, environment).notes
                self.observe("finalise")
            exports = exports_of(view, places, linked.sections, title)
            self.symbols.publish(title, exports)
            undo.callback(self.symbols.withdraw, title)
            self.execmem.write_many(
                (region, 0, _contents(layout, linked, kind)) for kind, region in pending.items()
            )
            if layout.percpu is not None and percpu is not None:
                self.percpu_write(percpu, bytes(view.contents(layout.percpu)))
            self.observe("write")
            undo.callback(self.execmem.give_back, pending.values())
            finished = self.execmem.finish_many(pending.values())
            regions = dict(zip(pending, finished, strict=True))
            self.observe("finish")
            module = LoadedModule(
                name=title,
                view=view,
                layout=layout,
                linked=linked,
                relocated=relocated,
                regions=regions,
                sections=dict(_sections(layout, places, percpu)),
                unknown=unknown,
                exports=exports,
                percpu=percpu,
                notes=notes,
            )
            self._livepatches.coming(module)
            undo.pop_all()
        return module

    def _environment_of(self, view: ElfView, environment: Environment) -> Environment:
        """Return an environment with what keys of loaded modules say, of static calls that one imports.

        The key may not be exported: then the module that exports the trampoline has it.
        """
        calls: dict[str, int] = {}
        keys: dict[str, int] = {}
        for symbol in view.undefined:
            name = symbol.removeprefix(KEY).removeprefix(TRAMPOLINE)
            if name == symbol or KEY + name in environment.symbols:
                continue
            places = (module.symbols.get(KEY + name) for module in self.modules.values())
            key = next((place for place in places if place is not None), None)
            if key is not None:
                keys[KEY + name] = key
                word = self.execmem.memory.read(key, view.dialect.word)
                calls[name] = int.from_bytes(word, view.dialect.order)
        if not calls:
            return environment
        return attrs.evolve(
            environment,
            static_calls={**environment.static_calls, **calls},
            symbols={**environment.symbols, **keys},
        )

    @property
    def _livepatches(self) -> Livepatches:
        return Livepatches(self.execmem, self.modules, self.checks, self.errata)

    def _allocate(self, layout: Layout, undo: ExitStack) -> dict[MemType, Pending]:
        pending: dict[MemType, Pending] = {}
        for area in layout.areas:
            sizes = {kind: size for kind in area.starts if (size := layout.sizes.get(kind))}
            regions = self.execmem.alloc_area(sizes, align=area.align)
            pending |= {kind: undo.enter_context(region) for kind, region in regions.items()}
        for kind in MemType:
            size = layout.sizes.get(kind, 0)
            if not size or layout.areas:
                continue
            region = self.execmem.alloc(kind, size, align=layout.aligns[kind])
            pending[kind] = undo.enter_context(region)
        return {kind: pending[kind] for kind in MemType if kind in pending}

    def _percpu(self, layout: Layout, undo: ExitStack) -> int | None:
        if layout.percpu is None:
            return None
        base = self.percpu_alloc(layout.percpu.size, layout.percpu.align)
        undo.callback(self.percpu_free, base)
        return base

    def settle(self, module: LoadedModule) -> None:
        """Make a module LIVE after its init succeeded: seal ro_after_init, free init memory."""
        self._expect(module, "settle", State.COMING)
        self.observe("init")
        sealed = module.regions.get(MemType.RO_AFTER_INIT)
        if sealed is not None:
            self.execmem.seal(sealed)
            self.observe("seal")
        module.state = State.LIVE
        self._release([kind for kind in module.regions if kind.is_init], module)
        self.observe("free init")
        self.on_change(module)

    def begin_unload(self, module: LoadedModule) -> None:
        """Make a module GOING; refuse while others use it (kernel: try_stop_module)."""
        self._expect(module, "unload", State.LIVE)
        if module.users:
            raise ModuleInUse(module.name, tuple(sorted(module.users)))
        module.state = State.GOING

    def discard(self, module: LoadedModule) -> None:
        """Take a module out of memory: after its exit, or after its init failed."""
        self._expect(module, "discard", State.COMING, State.GOING)
        self._livepatches.going(module)
        self.symbols.withdraw(module.name)
        if isinstance(self.gate.layouts, BtfLayouts):
            self.gate.layouts.remove(module.name)
        for provider in module.providers:
            self.modules[provider].users.discard(module.name)
        del self.modules[module.name]
        # DATA goes last: it holds struct module.
        self._release(sorted(module.regions, key=lambda kind: kind is MemType.DATA), module)
        if module.percpu is not None:
            self.percpu_free(module.percpu)
        module.state = State.UNLOADED
        self.on_change(module)

    def _release(self, kinds: Iterable[MemType], module: LoadedModule) -> None:
        """Free regions of a module that is not to keep them.

        Nothing may stop here, half way: what is refused now is freed later (`reclaim`).
        """
        self.postponed += [module.regions.pop(kind) for kind in kinds]
        with suppress(ExecmemError):
            self.execmem.free_many(one.address for one in self.postponed)
        self.postponed = [one for one in self.postponed if self.execmem.find(one.address) == one]
        self.reclaim()

    def reclaim(self) -> None:
        """Free what could not be freed when its module let go of it; what still cannot stays."""
        for region in list(self.postponed):
            with suppress(ExecmemError):
                self.execmem.free(region.address)
                self.postponed.remove(region)

    def _expect(self, module: LoadedModule, operation: str, *states: State) -> None:
        if module.state not in states:
            raise ModuleStateError(module.name, operation, module.state.value)


def _places(layout: Layout, pending: Mapping[MemType, Pending]) -> dict[int, int]:
    """Return the address of every section.

    A type whose sections are all empty gets no memory; symbols may still point at them,
    so they share the address of the module's first region, or are where they would begin in
    an area.
    """
    first = next((region.address for region in pending.values()), 0)
    bases = {kind: region.address for kind, region in pending.items()}
    for area in layout.areas:
        held = next(kind for kind in area.starts if kind in pending)
        start = bases[held] - area.starts[held]
        bases |= {kind: start + offset for kind, offset in area.starts.items()}
    return {
        index: bases[p.type] + p.offset if p.type in bases else first
        for index, p in layout.placements.items()
    }


def _contents(layout: Layout, linked: Linked, kind: MemType) -> bytes:
    """Return a region's bytes: its sections with zeros between them."""
    image = bytearray(layout.sizes[kind])
    for index, placement in layout.placements.items():
        if placement.type is kind:
            image[placement.offset : placement.offset + placement.size] = linked.sections[index]
    return bytes(image)


def _sections(
    layout: Layout, places: Mapping[int, int], percpu: int | None
) -> Iterator[tuple[int, LoadedSection]]:
    for index, p in layout.placements.items():
        yield index, LoadedSection(p.section.name, p.type, places[index], p.size)
    if layout.percpu is not None and percpu is not None:
        section = layout.percpu
        yield section.index, LoadedSection(PERCPU_SECTION, None, percpu, section.size)
