# SPDX-License-Identifier: GPL-2.0-or-later
"""ElfView -> Layout: which section lies in which memory type, at what offset.

The rules are the kernel's (kernel/module/main.c: rewrite_section_headers,
layout_sections; arch/arm64/kernel/module-plts.c: module_frob_arch_sections), as a table:
two sweeps, core then init; in each, four passes over the headers in index order, every
pass taking the sections not yet placed whose flags fit. The order is part of the
meaning. Before Linux 6.4 each sweep filled one area, in which every pass began a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import CORE_AND_INIT, KIB, PAGE_SIZE, MemType, align_up
from archs import Plt
from archs.engine import HARDLY, having
from archs.versions import Since
from loader.elfview import (
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
RO_AFTER_INIT_SECTIONS = Since(
    ((0, 0), (".data..ro_after_init", "__jump_table")),
    ((6, 15), (".data..ro_after_init", "__jump_table", ".static_call_sites")),
)
# Of any version; asked first, because few modules have such a section.
_EVER_AFTER_INIT = frozenset(name for _, names in RO_AFTER_INIT_SECTIONS.rows for name in names)
UNLOADED_SECTIONS = (".modinfo", "__versions", "__version_ext_crcs", "__version_ext_names")
PERCPU_SECTION = ".data..percpu"
MAX_TOTAL = 1 << 31  # bytes; a file of a few KiB may declare any amount of .bss
THIS_MODULE = ".gnu.linkonce.this_module"


@attrs.frozen
class Masks:
    """One pass of the layout: flags that a section needs and must not have, and where it goes."""

    required: int
    forbidden: int
    core: MemType
    init: MemType | None


PASSES = (
    Masks(SHF_ALLOC | SHF_EXECINSTR, 0, MemType.TEXT, MemType.INIT_TEXT),
    Masks(SHF_ALLOC, SHF_WRITE, MemType.RODATA, MemType.INIT_RODATA),
    # There is no ro_after_init memory in the init sweep: it falls to the data pass.
    Masks(SHF_ALLOC | SHF_RO_AFTER_INIT, 0, MemType.RO_AFTER_INIT, None),
    Masks(SHF_ALLOC | SHF_WRITE, 0, MemType.DATA, MemType.INIT_DATA),
)
REGION_FLAGS = SHF_ALLOC | SHF_EXECINSTR | SHF_WRITE | SHF_RO_AFTER_INIT
REGIONS = tuple(
    kind for init in (False, True) for p in PASSES if (kind := p.init if init else p.core)
)
# Before Linux 6.4 core and init were one allocation each (core_layout and init_layout of struct
# module); ac3b43283923 gave every memory type its own.
SZ_4K = 4 * KIB  # what ADRP counts in, whatever a page of the kernel has
TOGETHER = Since(((0, 0), True), ((6, 4), False))


def is_init(name: str) -> bool:
    """Return whether a section is freed after init: a prefix test, so `.init.plt` counts."""
    return name.startswith(".init")


@attrs.frozen
class PltPlan:
    """Entries reserved in one section, and where their targets stand if they load them.

    Used entries never exceed the reserved ones; there is room for one more, because the
    kernel writes a duplicate before it finds that it is one.
    """

    section: int
    slots: int
    got_section: int | None = None


class Placement(NamedTuple):
    """Where a section goes: memory type, offset in its region, size and alignment in bytes."""

    section: Section
    type: MemType
    offset: int
    size: int
    align: int


@attrs.frozen
class Area:
    """Memory of several types that is allocated as one.

    Parameters
    ----------
    starts
        Memory type -> offset of its region, in pages of its own; empty regions too.
    size, align
        Of the whole, in bytes.
    """

    starts: Mapping[MemType, int]
    size: int
    align: int


# As Placement(...) does, at half the cost: from one sequence of all fields.
_placement = partial(tuple.__new__, Placement)


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
    got
        Slots reserved in the global offset table, or None.
    resized
        Sizes of sections that the loader changed, by index.
    areas
        What is allocated together, core first; empty where each memory type is by itself.
    """

    placements: Mapping[int, Placement]
    sizes: Mapping[MemType, int]
    aligns: Mapping[MemType, int]
    percpu: Section | None
    plt: Mapping[bool, PltPlan]
    got: PltPlan | None
    resized: Mapping[int, int]
    areas: tuple[Area, ...] = ()

    def size_of(self, section: Section) -> int:
        """Return the bytes that a section has in memory."""
        return self.resized.get(section.index, section.size)

    def page_sizes(self) -> Mapping[MemType, int]:
        """Return bytes per memory type rounded up to pages of 4 KiB, as a kernel allocates them."""
        return {kind: align_up(size, PAGE_SIZE) for kind, size in self.sizes.items()}


def plan(
    view: ElfView,
    *,
    errata: Iterable[str] = (),
    together: bool | None = None,
    page: int = PAGE_SIZE,
) -> Layout:
    """Return the layout of a module.

    Parameters
    ----------
    errata
        Numbers of CPU errata that the loader works around.
    together
        Whether core is one area and init another; None: as in the module's version of Linux.
    page
        Bytes of a page, where each region of an area begins.

    Raises
    ------
    BadModule
        When a section is writable and executable at once (CONFIG_STRICT_MODULE_RWX), or
        when all together are larger than any range for modules.
    """
    frob = _Frob(view, errata)
    plt, resized, forced = frob.plt, frob.resized, frob.forced
    sections: list[tuple[Section, int, int]] = []
    percpu = view.find(PERCPU_SECTION)
    for section in view.sections[1:]:
        flags, align = section.flags, section.align
        if section.index in forced:
            more, align = forced[section.index]
            # What becomes code has the kernel's flags, whatever the file says.
            flags = (flags & ~SHF_WRITE if more & SHF_EXECINSTR else flags) | more
        if not flags & SHF_ALLOC or section.name in UNLOADED_SECTIONS or section is percpu:
            continue
        if section.name in _EVER_AFTER_INIT and section.name in RO_AFTER_INIT_SECTIONS.at(
            view.version
        ):
            flags |= SHF_RO_AFTER_INIT
        if flags & SHF_WRITE and flags & SHF_EXECINSTR:
            where = f"section {section.index} ({section.name})"
            raise BadModule(view.name, where, "is writable and executable")
        sections.append((section, flags, align))
    if together is None:
        together = TOGETHER.at(view.version)
    placements, sizes, aligns, areas = _sweep(sections, resized, page if together else None)
    total = sum(sizes.values())
    if total >= MAX_TOTAL:
        reason = f"need {total:#x} bytes; no range for modules has {MAX_TOTAL:#x}"
        raise BadModule(view.name, "sections", reason)
    return Layout(
        placements,
        sizes,
        aligns,
        percpu if percpu is not None and percpu.size else None,
        plt,
        frob.got,
        resized,
        areas,
    )


def _sweep(
    sections: list[tuple[Section, int, int]], resized: Mapping[int, int], page: int | None
) -> tuple[dict[int, Placement], dict[MemType, int], dict[MemType, int], tuple[Area, ...]]:
    placed: list[list[Placement]] = [[] for _ in REGIONS]
    ends, most = [0] * len(REGIONS), [1] * len(REGIONS)
    for section, flags, align in sections:
        number = _region(flags & REGION_FLAGS, is_init(section.name))
        if number is None:
            continue
        width = resized.get(section.index, section.size)
        offset = (ends[number] + align - 1) & -align
        ends[number] = offset + width
        most[number] = max(most[number], align)
        placed[number].append(_placement((section, REGIONS[number], offset, width, align)))
    areas = () if page is None else tuple(_stacked(placed, ends, most, page))
    placements = {one.section.index: one for inside in placed for one in inside}
    taken = [number for number, inside in enumerate(placed) if inside]
    return (
        placements,
        {REGIONS[number]: ends[number] for number in taken},
        {REGIONS[number]: most[number] for number in taken},
        areas,
    )


def _stacked(
    placed: list[list[Placement]], ends: list[int], most: list[int], page: int
) -> Iterator[Area]:
    """Yield areas of regions one behind the other; what is aligned is the offset in the area."""
    for kinds in CORE_AND_INIT:
        starts: dict[MemType, int] = {}
        at = 0
        for kind in kinds:
            number = REGIONS.index(kind)
            start = starts[kind] = at
            for index, one in enumerate(placed[number]):
                offset = align_up(at, one.align) - start
                placed[number][index] = one._replace(offset=offset)
                at = start + offset + one.size
            ends[number] = at - start
            at = align_up(at, page)
        if at:
            align = max(most[REGIONS.index(kind)] for kind in kinds)
            yield Area(starts, at, align)


@cache
def _region(flags: int, init: bool) -> int | None:
    """Return the number of the first pass that takes a section, among all of both sweeps."""
    for step in PASSES:
        kind = step.init if init else step.core
        if kind and flags & step.required == step.required and not flags & step.forbidden:
            return REGIONS.index(kind)
    return None


class _Frob:
    """What the architecture changes before layout: PLT and GOT sections are sized, code aligned.

    Count, reserve; emission later proves that it was enough (module_frob_arch_sections).
    """

    def __init__(self, view: ElfView, errata: Iterable[str]) -> None:
        self._view = view
        self._errata = [view.arch.errata[number] for number in errata if number in view.arch.errata]
        self.plt: dict[bool, PltPlan] = {}
        self.got: PltPlan | None = None
        self.resized: dict[int, int] = {}
        self.forced: dict[int, tuple[int, int]] = {}
        template = view.arch.plt
        if template is not None:
            self._reserve_plt(template)
            for name, sizes in template.placeholders.items():
                section = view.section(name)
                if section is not None:
                    size = sizes.at(view.version)
                    self._resize(section, size, SHF_ALLOC | SHF_EXECINSTR, 4)
        got = view.section(view.arch.got_section) if view.arch.got_section else None
        if got is not None:
            slots = _count_got(view)
            self.got = PltPlan(got.index, slots)
            self._resize(got, (slots + 1) * view.dialect.word, SHF_ALLOC, 64)

    def _resize(self, section: Section, size: int, flags: int, align: int) -> None:
        self.resized[section.index] = size
        self.forced[section.index] = (flags, align)

    def _reserve_plt(self, template: Plt) -> None:
        names = {False: template.section, True: template.init_section}
        found = {init: self._view.section(name) for init, name in names.items()}
        table = self._view.section(template.got_section) if template.got_section else None
        if found[False] is None or (template.got_section is not None and table is None):
            return
        total = 0
        for init, section in found.items():
            if section is None:
                continue
            # Without entries of its own, init text uses those of the core.
            texts = (init,) if found[True] is not None else (False, True)
            slots = sum(
                self._count(table)
                for table in (*self._view.tables, *self._view.late)
                if table.target.executable and is_init(table.target.name) in texts
            )
            total += slots + 1
            self.plt[init] = PltPlan(section.index, slots, table.index if table else None)
            size = (slots + 1) * template.size
            self._resize(section, size, SHF_ALLOC | SHF_EXECINSTR, template.align)
        if table is not None:
            self._resize(table, total * self._view.dialect.word, SHF_ALLOC, template.align)

    def _count(self, table: RelocationTable) -> int:
        """Return the entries that one table can need."""
        slots = _count_branches(self._view, table)
        for erratum in self._errata:
            records = table.records[np.isin(table.records["type"], erratum.rows)]
            align = erratum.safe_align(records["offset"].copy())
            fixable = align <= SZ_4K
            slots += int((~fixable).sum())
            if fixable.any():
                flags, before = self.forced.get(table.target.index, (0, table.target.align))
                most = max(before, int(align[fixable].max()))
                self.forced[table.target.index] = (flags, most)
            # Slack, to skip slots that would be at a forbidden place themselves.
            assert self._view.arch.plt is not None
            slots += -(-slots // (SZ_4K // self._view.arch.plt.size))
        return slots


def slot_candidates(view: ElfView, table: RelocationTable) -> NDArray[np.intp]:
    """Return indices of the branches that may need an entry, in the order they are visited.

    Where the loader sorts (arm64), branches within the section do not count and the order
    is type, symbol, addend (cmp_rela), so that duplicates are adjacent. Where every record
    of the table is such a branch, the kernel's partition stops one short and the last
    record stays where it is, unsorted: it can cost an entry of its own.
    """
    index = _branches(view, table)
    template = view.arch.plt
    if template is None or not template.sorts:
        return index
    records = table.records
    count = index.size - 1 if 0 < index.size == records.size else index.size
    chosen = records[index[:count]]
    addend = chosen["addend"].copy().view(np.int64)
    order = np.lexsort((addend, chosen["symbol"], chosen["type"]))
    return np.concatenate((index[:count][order], index[count:]))


def after_branches(view: ElfView, table: RelocationTable) -> NDArray[np.intp]:
    """Return indices of all other records in the order that the kernel's partition leaves.

    Branches move to the front: the first record that is none changes places with the last
    that is one, and so on.
    """
    order = np.arange(table.records.size)
    branches = _branches(view, table)
    first = branches.size
    late = branches[branches >= first][::-1]
    is_branch = np.zeros(order.size, np.bool_)
    is_branch[branches] = True
    early = np.flatnonzero(~is_branch[:first])
    order[early], order[late] = late, early
    return order[first:]


def _branches(view: ElfView, table: RelocationTable) -> NDArray[np.intp]:
    template = view.arch.plt
    if template is None:
        return np.empty(0, np.intp)
    index = having(table.records["type"].copy(), template.branches)
    if template.sorts and index.size:
        symbols = table.records["symbol"][index].astype(np.intp)
        index = index[view.symbols["shndx"][symbols] != table.target.index]
    return index


def _count_branches(view: ElfView, table: RelocationTable) -> int:
    """Return the entries that the branches of a table can need.

    Where the loader sorts, duplicates count once only if their addend is 0.
    """
    template = view.arch.plt
    assert template is not None
    records = table.records
    if template.sorts and records.size <= HARDLY:
        count = _count_few(view, table, template)
        if count < records.size:
            return count
    index = _branches(view, table)
    if not index.size:
        return 0
    if not template.sorts:
        return int(np.unique(records[index][["type", "symbol", "addend"]]).size)
    if index.size < records.size:
        plain = index[records["addend"][index] == 0]
        kinds, symbols = records["type"][plain], records["symbol"][plain].astype(np.intp)
        different = 0
        for number in template.branches:
            named = np.zeros(view.symbols.size, np.bool_)
            named[symbols[kinds == number]] = True
            different += int(np.count_nonzero(named))
        return int(index.size - plain.size) + different
    # The last record stays unsorted behind the others.
    visited = records[slot_candidates(view, table)][["type", "symbol", "addend"]]
    before, last = visited[:-1], visited[-1].tolist()
    rest = before[before["addend"] == 0]
    count = int(np.unique(rest[["type", "symbol"]]).size + before.size - rest.size)
    duplicate = before.size and last[2] == 0 and before[-1].tolist() == last
    return count + (not duplicate)


def _count_few(view: ElfView, table: RelocationTable, template: Plt) -> int:
    """Return the same for few records, which Python counts faster than numpy.

    The number of records where each needs an entry, which may be one too many.
    """
    branches = [one for one in table.records.tolist() if one[1] in template.branches]
    where = view.symbols["shndx"][[one[2] for one in branches]].tolist() if branches else []
    here = table.target.index
    outside = [one for one, section in zip(branches, where, strict=True) if section != here]
    if len(outside) == table.records.size:
        return len(outside)
    plain = [(kind, symbol) for _, kind, symbol, addend in outside if not addend]
    return len(outside) - len(plain) + len(set(plain))


def _count_got(view: ElfView) -> int:
    """Return the slots that can be needed: one for each symbol S, and for each sum S+A."""
    total = 0
    rows = view.arch.link.relocations.items()
    for holds, key in ((("S",), ["symbol"]), (("S", "A"), ["symbol", "addend"])):
        numbers = [n for n, row in rows if row.got is not None and row.got.holds == holds]
        tables = (*view.tables, *view.late)
        keys = [t.records[np.isin(t.records["type"], numbers)][key] for t in tables]
        total += int(np.unique(np.concatenate(keys)).size) if keys else 0
    return total


def with_stub_sections(view: ElfView) -> ElfView:
    """Return the view with the PLT and GOT sections that its architecture knows, where missing.

    A kernel's build adds them to its modules by a linker script; here they are added to
    any object, behind its own sections.
    """
    template = view.arch.plt
    wanted = [view.arch.got_section] if view.arch.got_section else []
    if template is not None:
        wanted += [template.section, template.init_section]
        wanted += [template.got_section] if template.got_section else []
    missing = [name for name in wanted if view.section(name) is None]
    first = len(view.sections)
    extra = tuple(
        Section(first + n, name, SHT_NOBITS, SHF_ALLOC, 0, 0, 1, 0, 0)
        for n, name in enumerate(missing)
    )
    return attrs.evolve(view, sections=(*view.sections, *extra))


def empty_sections(view: ElfView) -> frozenset[str | None]:
    """Return the names of sections that hold nothing before relocation, whatever the file has."""
    plt, got = view.arch.plt, view.arch.got_section
    if plt is None:
        return frozenset((got,))
    return frozenset((got, plt.section, plt.init_section, plt.got_section, *plt.placeholders))
