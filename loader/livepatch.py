# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocations of a livepatch: written when the module that they are about is there.

The new functions of a livepatch use what the patched object does not export. No link could
resolve that, so such relocations stand in sections of their own, `.klp.rela.OBJECT.SECTION`
(SHF_RELA_LIVEPATCH), and name symbols `.klp.sym.OBJECT.NAME,POSITION` (SHN_LIVEPATCH) that are
looked up among all symbols of the object. POSITION counts those of one name, from 1; 0 says that
there is only one.

    .klp.rela.vmlinux.*   written with all other relocations, when the livepatch is loaded
    .klp.rela.MODULE.*    written once MODULE is COMING, which may be before or after

The latter go to memory that is finished: through text_poke where it is read-only, plainly where
it is writable. When MODULE goes the places hold again what they held before. (Kernels need that
on x86-64 only, where a place must be zero to be relocated; others leave the old values.) PLT
entries and GOT slots that were reserved for branches out of reach are dealt out anew each time.

What is to be in memory is computed first, for all livepatches of a module; then every place is
compared with what must stand there; then all is written. So it is all or nothing.

Sources: kernel/livepatch/core.c (klp_resolve_symbols, klp_write_section_relocs,
klp_module_coming), arch/x86/kernel/module.c (clear_relocate_add),
Documentation/livepatch/module-elf-format.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator import Execmem, PokeError, Site
from allocator.types import Prot, align_down
from archs import Checks
from archs.layouts import Layouts
from loader.elfview import SHN_LIVEPATCH, SHN_UNDEF, VMLINUX, ElfView
from loader.errors import BadModule, LivepatchError, RelocationError
from loader.link import link_late
from loader.loaded import LoadedModule, Written
from loader.symbols import SymbolTable

# Lengths as in klp_resolve_symbols(): MODULE_NAME_LEN and KSYM_NAME_LEN without the NUL.
_SYMBOL = re.compile(r"\.klp\.sym\.([^.]{1,55})\.([^,]{1,511}),([0-9]+)")


@attrs.frozen
class Wanted:
    """What a livepatch's symbol stands for."""

    object: str
    name: str
    position: int


def wanted(view: ElfView, name: str) -> Wanted:
    """Return what a symbol's name says; BadModule where it says nothing."""
    found = _SYMBOL.match(name)
    if found is None:
        raise BadModule(
            view.name, f"symbol {name}", "not of the form .klp.sym.OBJECT.NAME,POSITION"
        )
    return Wanted(found[1], found[2], int(found[3]))


def check(view: ElfView) -> None:
    """Refuse a livepatch whose relocations no kernel would write; BadModule."""
    rows = view.arch.link.relocations
    # Records without a word, and those that find another by its label, name no symbol.
    free = [n for n, row in rows.items() if row.op.high_half or not rows.widths[n]]
    for table in (*view.tables, *view.late):
        if not table.object:
            continue
        where = f"section {table.section.index} ({table.section.name})"
        records = table.records
        used = np.unique(records["symbol"][~np.isin(records["type"], free)])
        for index in used.tolist():
            name = view.symbol_name(index)
            if view.symbols["shndx"][index] != SHN_LIVEPATCH:
                raise BadModule(view.name, where, f"symbol {name!r} is no livepatch symbol")
            if wanted(view, name).object == VMLINUX != table.object:
                reason = f"{name}: symbols of {VMLINUX} belong into .klp.rela.{VMLINUX} sections"
                raise BadModule(view.name, where, reason)
    if view.late and not view.modinfo.get("livepatch"):
        reason = f"no livepatch=Y: {view.late[0].section.name} would never be written"
        raise BadModule(view.name, ".modinfo", reason)


def resolve_at_load(
    view: ElfView,
    title: str,
    symbols: SymbolTable,
    modules: Mapping[str, LoadedModule],
    layouts: Layouts | None = None,
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return addresses of the symbols that are needed at once, and names nobody implements.

    LivepatchError where a module, or the symbol in it, is not there.
    """
    found: dict[str, int] = {}
    unknown: list[str] = []
    for full in view.livepatch_symbols(view.tables):
        want = wanted(view, full)
        if want.object != VMLINUX:
            found[full] = _find(title, title, full, want, modules)
            continue
        if want.position > 1:
            reason = f"{VMLINUX} has one symbol of that name at most"
            raise LivepatchError(title, title, full, reason)
        if not symbols.kernel.knows(want.name):
            if symbols.refuse_unknown:
                raise LivepatchError(title, title, full, "the kernel does not know it")
            unknown.append(want.name)
        found[full] = symbols.address(want.name, layouts, called=full in view.called)
    return found, tuple(unknown)


def _find(
    module: str, patch: str, full: str, want: Wanted, modules: Mapping[str, LoadedModule]
) -> int:
    """Return the address of a symbol of a module (klp_find_object_symbol)."""
    target = modules.get(want.object)
    if target is None:
        reason = f"module {want.object} is not loaded"
        raise LivepatchError(module, patch, full, reason)
    places = _places(target, want.name)
    if want.position == 0 and len(places) > 1:
        reason = f"{want.object} has {len(places)} symbols {want.name!r}: give the position, from 1"
        raise LivepatchError(module, patch, full, reason)
    if len(places) < max(want.position, 1):
        have = f"{len(places)} symbols" if places else "no symbol"
        raise LivepatchError(module, patch, full, f"{want.object} has {have} {want.name!r}")
    return places[max(want.position, 1) - 1]


def _places(target: LoadedModule, name: str) -> list[int]:
    """Return the addresses of a module's symbols of one name, in the order of its table."""
    view, text = target.view, name.encode()
    strings = bytes(view.contents(view.symbol_names))
    # The end of one name may serve as another.
    ends = [m.start() for m in re.finditer(b"(?=" + re.escape(text) + b"\0)", strings)]
    there = [
        index
        for index, section in target.sections.items()
        if section.type is None or section.type in target.regions
    ]
    shndx = view.symbols["shndx"]
    mine = np.isin(view.symbols["name"], ends) & (shndx != SHN_UNDEF) & np.isin(shndx, there)
    return [int(value) for value in target.linked.symbols[mine]]


@attrs.define
class Livepatches:
    """Keeps the late relocations of loaded livepatches in step with the modules that are there.

    Parameters
    ----------
    execmem
        Where modules lie.
    modules
        Those that are loaded, by name.
    checks, errata
        As for `Loader`.
    """

    execmem: Execmem
    modules: Mapping[str, LoadedModule]
    checks: Checks
    errata: tuple[str, ...]

    def coming(self, module: LoadedModule) -> None:
        """Write what waits for `module`, and what it brings for modules that are there.

        Raises
        ------
        LivepatchError
            A symbol is missing, a place does not reach, or memory holds something else or
            cannot be poked; nothing was written.
        """
        there = {**self.modules, module.name: module}
        states: list[tuple[LoadedModule, Written]] = []
        for patch in there.values():
            objects = {table.object for table in patch.view.late} & set(there)
            if not objects or (patch is not module and module.name not in objects):
                continue
            values = {} if patch.livepatch is None else dict(patch.livepatch.values)
            for name in sorted(objects - set(values)):
                tables = [table for table in patch.view.late if table.object == name]
                values[name] = {
                    full: _find(module.name, patch.name, full, wanted(patch.view, full), there)
                    for full in patch.view.livepatch_symbols(tables)
                }
            try:
                states.append((patch, self._written(patch, values)))
            except RelocationError as error:
                reason = str(error).replace("\n  ", "; ")
                raise LivepatchError(module.name, patch.name, "relocations", reason) from error
        self._write(module.name, states)

    def going(self, module: LoadedModule) -> None:
        """Clear what was written for `module`; what holds something else by now is left alone."""
        states: list[tuple[LoadedModule, Written]] = []
        for patch in self.modules.values():
            if patch is not module and patch.livepatch and module.name in patch.livepatch.values:
                values = dict(patch.livepatch.values)
                del values[module.name]
                states.append((patch, self._written(patch, values)))
        self._write(module.name, states, keep=True)

    def _written(self, patch: LoadedModule, values: Mapping[str, Mapping[str, int]]) -> Written:
        places = {index: s.address for index, s in patch.sections.items() if s.type is not None}
        symbols = {full: at for found in values.values() for full, at in found.items()}
        image = link_late(
            patch.view,
            patch.layout,
            places,
            patch.linked,
            symbols,
            objects=values,
            checks=self.checks,
            errata=self.errata,
        )
        return Written(values, image)

    def _write(
        self, module: str, states: Iterable[tuple[LoadedModule, Written]], *, keep: bool = False
    ) -> None:
        """Bring memory from what livepatches have written to what they shall have.

        `keep` passes over places that do not hold what was written, instead of refusing them.
        """
        states = list(states)
        poked: list[Site] = []
        plain: list[Site] = []
        for patch, new in states:
            for site in self._changes(patch, new):
                found = self.execmem.memory.read(site.address, len(site.new))
                if found != site.old:
                    if keep:
                        continue
                    reason = f"found {found.hex()}, expected {(site.old or b'').hex()}"
                    raise LivepatchError(module, patch.name, f"{site.address:#x}", reason)
                leaf = self.execmem.memory.translate(site.address)
                (plain if leaf is not None and leaf.prot & Prot.W else poked).append(site)
        try:
            self.execmem.poke_many(poked)
        except PokeError as error:
            # A module that goes is not held up.
            if not keep:
                names = ", ".join(patch.name for patch, _ in states)
                raise LivepatchError(module, names, f"{error.address:#x}", error.reason) from error
        for site in plain:
            self.execmem.memory.write(site.address, site.new)
        for patch, new in states:
            patch.livepatch = new if new.values else None

    def _changes(self, patch: LoadedModule, new: Written) -> Iterator[Site]:
        """Yield what has to change in the memory of a livepatch, in whole granules."""
        old = patch.livepatch or Written({}, patch.linked.image)
        touched = old.image != new.image
        _mark(touched, patch, old.values.keys() ^ new.values.keys())
        granule = self.execmem.text_poke.granule if self.execmem.text_poke else 1
        for index, at in patch.linked.offsets.items():
            section = patch.sections[index]
            if section.type not in patch.regions:
                continue  # init memory, which is free by now
            found = np.flatnonzero(touched[at : at + section.size])
            if not found.size:
                continue
            base = align_down(section.address, granule)
            lead = section.address - base
            units = np.unique((found + lead) // granule)
            for run in np.split(units, np.flatnonzero(np.diff(units) > 1) + 1):
                start, end = int(run[0]) * granule, (int(run[-1]) + 1) * granule
                mine = found[(found + lead >= start) & (found + lead < end)]
                # Granules may hold bytes that are none of ours.
                stands = self.execmem.memory.read(base + start, end - start)
                after, before = (np.frombuffer(stands, np.uint8).copy() for _ in range(2))
                after[mine + lead - start] = new.image[at + mine]
                before[mine + lead - start] = old.image[at + mine]
                yield Site(base + start, after.tobytes(), before.tobytes())


def _mark(touched: NDArray[np.bool_], patch: LoadedModule, objects: Iterable[str]) -> None:
    """Mark every byte of the words that the late relocations for `objects` store."""
    widths, chosen = patch.arch.link.relocations.widths, set(objects)
    for table in patch.view.late:
        at = patch.linked.offsets.get(table.target.index)
        if at is None or table.object not in chosen:
            continue
        places = at + table.records["offset"].astype(np.intp)
        each = widths[table.records["type"]].astype(np.intp)
        for width in np.unique(each).tolist():
            touched[places[each == width, None] + np.arange(width)] = True
