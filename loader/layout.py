# SPDX-License-Identifier: GPL-2.0-or-later
"""ElfView -> Layout: which section lies in which memory type, at what offset.

The rules are the kernel's (kernel/module/main.c: rewrite_section_headers,
layout_sections; arch/arm64/kernel/module-plts.c: module_frob_arch_sections), as a table:
two sweeps, core then init; in each, four passes over the headers in index order, every
pass taking the sections not yet placed whose flags fit. The order is part of the
meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np

from allocator.types import PAGE_SIZE, MemType, align_up
from archs import Arch
from loader.elf import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_NOBITS,
    ElfView,
    RelocationTable,
    Section,
)
from loader.errors import BadModule

SHF_RO_AFTER_INIT = 0x0020_0000  # the kernel's own flag, never in a file
# Linux 6.12; later kernels add .static_call_sites, whose sites change while loading.
RO_AFTER_INIT_SECTIONS = (".data..ro_after_init", "__jump_table")
UNLOADED_SECTIONS = (".modinfo", "__versions", "__version_ext_crcs", "__version_ext_names")
PERCPU_SECTION = ".data..percpu"
MAX_TOTAL = 1 << 31  # bytes; a file of a few KiB may declare any amount of .bss
THIS_MODULE = ".gnu.linkonce.this_module"


@attrs.frozen
class Pass:
    """One pass of the layout: flags that a section needs and must not have, and where it goes."""

    required: int
    forbidden: int
    core: MemType
    init: MemType | None


PASSES = (
    Pass(SHF_ALLOC | SHF_EXECINSTR, 0, MemType.TEXT, MemType.INIT_TEXT),
    Pass(SHF_ALLOC, SHF_WRITE, MemType.RODATA, MemType.INIT_RODATA),
    # There is no ro_after_init memory in the init sweep: it falls to the data pass.
    Pass(SHF_ALLOC | SHF_RO_AFTER_INIT, 0, MemType.RO_AFTER_INIT, None),
    Pass(SHF_ALLOC | SHF_WRITE, 0, MemType.DATA, MemType.INIT_DATA),
)


def is_init(name: str) -> bool:
    """Return whether a section is freed after init: a prefix test, so `.init.plt` counts."""
    return name.startswith(".init")


@attrs.frozen
class PltPlan:
    """PLT entries reserved for one of the two texts; used ones never exceed them."""

    section: int
    slots: int


@attrs.frozen
class Placement:
    """Where a section goes: memory type, offset in its region, size and alignment in bytes."""

    section: Section
    type: MemType
    offset: int
    size: int
    align: int


@attrs.frozen
class Layout:
    """The plan of a module before any memory is allocated.

    Parameters
    ----------
    placements
        By section index, allocated sections only (zero-size ones too).
    sizes
        Bytes per memory type, without page rounding; types without bytes are left out.
    aligns
        Alignment that the region of each memory type needs.
    percpu
        The per-cpu section, which is allocated apart, or None.
    plt
        Entries reserved for core (False) and init (True) text.
    resized
        Sizes of sections that the loader changed, by index.
    """

    placements: Mapping[int, Placement]
    sizes: Mapping[MemType, int]
    aligns: Mapping[MemType, int]
    percpu: Section | None
    plt: Mapping[bool, PltPlan]
    resized: Mapping[int, int]

    def size_of(self, section: Section) -> int:
        """Return the bytes that a section has in memory."""
        return self.resized.get(section.index, section.size)

    def page_sizes(self) -> Mapping[MemType, int]:
        """Return bytes per memory type rounded up to pages, as the kernel allocates them."""
        return {kind: align_up(size, PAGE_SIZE) for kind, size in self.sizes.items()}


def plan(view: ElfView) -> Layout:
    """Return the layout of a module.

    Raises
    ------
    BadModule
        When a section is writable and executable at once (CONFIG_STRICT_MODULE_RWX), or
        when all together are larger than any range for modules.
    """
    plt, resized, forced = _frob(view)
    sections: list[tuple[Section, int, int]] = []
    for section in view.sections[1:]:
        flags = section.flags | forced.get(section.index, (0, 0))[0]
        align = forced.get(section.index, (0, section.align))[1]
        if section.name in UNLOADED_SECTIONS or section.name == PERCPU_SECTION:
            flags &= ~SHF_ALLOC
        if section.name in RO_AFTER_INIT_SECTIONS:
            flags |= SHF_RO_AFTER_INIT
        if flags & SHF_ALLOC:
            if flags & SHF_WRITE and flags & SHF_EXECINSTR:
                where = f"section {section.index} ({section.name})"
                raise BadModule(view.name, where, "is writable and executable")
            sections.append((section, flags, align))
    placements, sizes, aligns = _sweep(sections, resized)
    total = sum(sizes.values())
    if total >= MAX_TOTAL:
        reason = f"need {total:#x} bytes; no range for modules has {MAX_TOTAL:#x}"
        raise BadModule(view.name, "sections", reason)
    percpu = view.section(PERCPU_SECTION)
    return Layout(
        placements,
        sizes,
        aligns,
        percpu if percpu is not None and percpu.size else None,
        plt,
        resized,
    )


def _sweep(
    sections: list[tuple[Section, int, int]], resized: Mapping[int, int]
) -> tuple[dict[int, Placement], dict[MemType, int], dict[MemType, int]]:
    placements: dict[int, Placement] = {}
    sizes: dict[MemType, int] = {}
    aligns: dict[MemType, int] = {}
    for init in (False, True):
        for step in PASSES:
            kind = step.init if init else step.core
            for section, flags, align in sections:
                if (
                    kind is None
                    or section.index in placements
                    or is_init(section.name) is not init
                    or flags & step.required != step.required
                    or flags & step.forbidden
                ):
                    continue
                size = resized.get(section.index, section.size)
                offset = align_up(sizes.get(kind, 0), align)
                placements[section.index] = Placement(section, kind, offset, size, align)
                sizes[kind] = offset + size
                aligns[kind] = max(aligns.get(kind, 1), align)
    return placements, sizes, aligns


def _frob(
    view: ElfView,
) -> tuple[dict[bool, PltPlan], dict[int, int], dict[int, tuple[int, int]]]:
    """Size the PLT sections: count, reserve; emission later proves that it was enough."""
    template = view.arch.plt
    plt: dict[bool, PltPlan] = {}
    resized: dict[int, int] = {}
    forced: dict[int, tuple[int, int]] = {}
    if template is None:
        return plt, resized, forced
    for init, name in ((False, template.section), (True, template.init_section)):
        section = view.section(name)
        if section is None:
            continue
        slots = sum(
            _count_slots(view.arch, view, table)
            for table in view.tables
            if table.target.executable and is_init(table.target.name) is init
        )
        plt[init] = PltPlan(section.index, slots)
        # One more than counted: the kernel reserves it, and writes a duplicate there.
        resized[section.index] = (slots + 1) * template.size
        forced[section.index] = (SHF_ALLOC | SHF_EXECINSTR, template.align)
    for name, size in template.placeholders.items():
        section = view.section(name)
        if section is not None:
            resized[section.index] = size
            forced[section.index] = (SHF_ALLOC | SHF_EXECINSTR, 4)
    return plt, resized, forced


def branches_that_may_need_slots(
    arch: Arch, view: ElfView, table: RelocationTable
) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return indices of branches to other sections, sorted as the kernel sorts them.

    The order is type, symbol, addend (cmp_rela), so that duplicates are adjacent. Where
    every record of the table is such a branch, the kernel's partition stops one short and
    the last record stays where it is, unsorted: it can cost a slot of its own.
    """
    if arch.plt is None:
        return np.empty(0, np.intp)
    records = table.records
    branch = np.isin(records["type"], arch.plt.branches)
    outside = view.symbols["shndx"][records["symbol"]] != table.target.index
    index = np.flatnonzero(branch & outside)
    count = index.size - 1 if 0 < index.size == records.size else index.size
    chosen = records[index[:count]]
    addend = chosen["addend"].copy().view(np.int64)
    order = np.lexsort((addend, chosen["symbol"], chosen["type"]))
    return np.concatenate((index[:count][order], index[count:]))


def _count_slots(arch: Arch, view: ElfView, table: RelocationTable) -> int:
    """Return the entries that one table can need: duplicates count once if the addend is 0."""
    records = table.records[branches_that_may_need_slots(arch, view, table)]
    if not records.size:
        return 0
    same = (records["type"][1:] == records["type"][:-1]) & (
        records["symbol"][1:] == records["symbol"][:-1]
    )
    duplicate = same & (records["addend"][1:] == 0) & (records["addend"][:-1] == 0)
    return int(records.size - duplicate.sum())


def file_bytes(view: ElfView, section: Section) -> memoryview:
    """Return what a section holds before relocation; PLT sections and NOBITS hold nothing."""
    plt = view.arch.plt
    if section.type == SHT_NOBITS or (
        plt is not None and section.name in (plt.section, plt.init_section, *plt.placeholders)
    ):
        return memoryview(b"")
    return view.contents(section)
