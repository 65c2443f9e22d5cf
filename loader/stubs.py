# SPDX-License-Identifier: GPL-2.0-or-later
"""PLT entries, GOT slots and veneers: emitted only where needed, never more than counted.

The kernel's rules on arm64 (module-plts.c, module_emit_plt_entry): branches of one
relocation section are visited in sorted order, so a duplicate can only equal the entry
emitted last; an entry is written before the duplicate check, so one stale copy may stand
behind the last used one. On riscv64 (module-sections.c) any earlier entry is found again,
and an entry loads its target from a slot. Init text has entries of its own, because it is
freed, wherever the module has a section for them.

All of it happens before the engine runs: a redirected record simply gets another S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import ADDRESS_MASK
from archs import Arch, Dialect, Erratum, Plt
from archs.engine import Failure, Problem, Records, compute, having, numbers_in, out_of_reach
from archs.op import Got
from loader.layout import (
    Layout,
    after_branches,
    is_init,
    slot_candidates,
)
from loader.work import Work


@attrs.define
class PltUse:
    """Entries of one section: reserved, used, and the section's bytes."""

    section: int
    reserved: int
    used: int = 0
    image: bytearray = attrs.field(factory=bytearray)


@attrs.define
class Stubs:
    """What redirection made of a module.

    Parameters
    ----------
    plt
        Use of the PLT of core (False) and init (True) text.
    got
        Use of the global offset table, or None.
    targets
        Use of the slots that PLT entries load from, or None.
    patches
        Instructions that an erratum replaced: offset in the image buffer -> bytes.
    veneers
        How many of the PLT entries are veneers of an erratum.
    failures
        Records for which there is no slot.
    """

    plt: dict[bool, PltUse] = attrs.field(factory=dict)
    got: PltUse | None = None
    targets: PltUse | None = None
    patches: dict[int, bytes] = attrs.field(factory=dict)
    veneers: int = 0
    failures: list[Failure] = attrs.field(factory=list)

    def contents(self) -> Iterable[PltUse]:
        """Return every section that has bytes now."""
        return [use for use in (*self.plt.values(), self.got, self.targets) if use is not None]


def reserved(layout: Layout, addresses: Mapping[int, int]) -> Stubs:
    """Return what a module has room for, nothing of it used."""
    stubs = Stubs()
    if layout.got is not None and layout.got.section in addresses:
        stubs.got = PltUse(layout.got.section, layout.got.slots)
    for init, plan in layout.plt.items():
        if plan.section not in addresses:
            continue
        stubs.plt[init] = PltUse(plan.section, plan.slots)
        if plan.got_section is not None and stubs.targets is None:
            slots = sum(p.slots for p in layout.plt.values())
            stubs.targets = PltUse(plan.got_section, slots)
    return stubs


def redirect(
    layout: Layout,
    addresses: Mapping[int, int],
    work: Work,
    image: NDArray[np.uint8],
    errata: Iterable[str] = (),
    stubs: Stubs | None = None,
) -> Stubs:
    """Point records at GOT slots, and branches that do not reach at PLT entries.

    Parameters
    ----------
    addresses
        Section index -> address.
    work
        Of the whole module; `target` of redirected records is changed.
    image
        The buffer before relocation: an erratum's instructions are read from it.
    errata
        Numbers of CPU errata to work around.
    stubs
        What is used already, which is gone on with; None: nothing.
    """
    view, stubs = work.view, stubs or reserved(layout, addresses)
    _point_at_got(addresses, work, stubs)
    active = [view.arch.errata[number] for number in errata if number in view.arch.errata]
    if view.arch.plt is None or not (layout.plt or active):
        return stubs
    emitters = _emitters(view.arch.plt, view.dialect, layout, addresses, stubs, active)
    if not active and not _any_beyond(work):
        return stubs
    for start, number in zip(work.starts[:-1].tolist(), work.tables, strict=True):
        table = view.tables[number]
        if not table.target.executable:
            continue
        emitter = emitters.get(is_init(table.target.name), emitters.get(False))
        if emitter is not None:
            index = start + slot_candidates(view, table)
            _redirect_branches(
                work.records, index[_beyond(view.arch, work.records, index)], emitter
            )
        for erratum in active:
            index = start + after_branches(view, table)
            _avoid(erratum, work.records, index, emitter, image, stubs)
    return stubs


# The global offset table -----------------------------------------------------------------------


def _point_at_got(addresses: Mapping[int, int], work: Work, stubs: Stubs) -> None:
    """Give records that go through the GOT the target that their row asks for."""
    records, rows = work.records, work.view.arch.link.relocations
    numbers = [number for number in work.whole.numbers if number in rows.through_got]
    if not numbers:
        return
    if stubs.got is None:
        for number in numbers:
            index = having(records.type, [number])
            nothing = np.zeros(index.size, np.uint64)
            stubs.failures.append(Failure(Problem.NO_GOT, rows[number], index, nothing))
        return
    base = addresses[stubs.got.section]
    dialect = work.view.dialect
    used = np.frombuffer(bytes(stubs.got.image), dialect.pointer).tolist()
    slots: dict[int, int] = {value: slot for slot, value in enumerate(used)}

    def slot_of(value: int) -> int:
        # A slot is found again by what it holds.
        return base + dialect.word * slots.setdefault(value, len(slots))

    for one in having(records.type, numbers).tolist():
        target, addend = int(records.target[one]), int(records.addend[one])
        got = rows[int(records.type[one])].got
        assert got is not None
        records.target[one] = _got_target(got, target, addend, base, slot_of) & ADDRESS_MASK
    stubs.got.used = len(slots)
    stubs.got.image[:] = b"".join(map(dialect.pack, slots))


def _got_target(
    got: Got, target: int, addend: int, base: int, slot_of: Callable[[int], int]
) -> int:
    """Return what stands for S+A."""
    symbol = got.symbol({"S": target - addend, "A": addend}, base, slot_of)
    assert symbol is not None
    return symbol + (addend if got.keeps_addend else 0)


# The PLT ---------------------------------------------------------------------------------------


@attrs.define
class _Emitter:
    """Where emission stands in one PLT."""

    template: Plt
    dialect: Dialect
    use: PltUse
    address: int
    masks: tuple[int, ...]
    targets: PltUse | None
    targets_address: int
    last: int | None = None
    known: dict[int, int] = attrs.field(factory=dict)

    def take(self) -> int | None:
        """Return the index of the next entry that may be used, or None where none is left."""
        index = self.use.used
        while any(self.at(index) & mask == mask for mask in self.masks):
            index += 1
        return index if index < self.use.reserved else None

    def at(self, index: int) -> int:
        """Return the address of an entry."""
        return self.address + index * self.template.size

    def put(self, index: int, code: bytes) -> None:
        """Write an entry."""
        start, size = index * self.template.size, self.template.size
        if len(self.use.image) < start + size:
            self.use.image += bytes(start + size - len(self.use.image))
        self.use.image[start : start + size] = code

    def branch_entry(self, target: int, *, repeated: bool) -> int | None:
        """Return the address of an entry for `target`; `repeated` visits of it follow.

        None where the reserved entries are used up.
        """
        if not self.template.sorts:
            return self._shared_entry(target)
        if target == self.last:
            repeated = True
        else:
            index = self.take()
            if index is None or not self.template.leads(self.at(index), target):
                return None
            self.put(index, self.template.encode(self.at(index), target))
            self.use.used, self.last = index + 1, target
        reached = self.at(self.use.used - 1)
        if repeated:
            # The duplicate was written before it was found to be one.
            stale = self.use.used
            while any(self.at(stale) & mask == mask for mask in self.masks):
                stale += 1
            if stale <= self.use.reserved:
                self.put(stale, self.template.encode(self.at(stale), target))
        return reached

    def _shared_entry(self, target: int) -> int | None:
        found = self.known.get(target)
        if found is not None:
            return found
        index = self.take()
        if index is None:
            return None
        leads_to = target
        if self.targets is not None:
            leads_to = self.targets_address + len(self.targets.image)
        if not self.template.leads(self.at(index), leads_to):
            return None
        if self.targets is not None:
            self.targets.image += self.dialect.pack(target)
            self.targets.used += 1
        self.put(index, self.template.encode(self.at(index), leads_to))
        self.use.used = index + 1
        self.known[target] = self.at(index)
        return self.known[target]


def _emitters(
    template: Plt,
    dialect: Dialect,
    layout: Layout,
    addresses: Mapping[int, int],
    stubs: Stubs,
    errata: list[Erratum],
) -> dict[bool, _Emitter]:
    emitters: dict[bool, _Emitter] = {}
    masks = tuple(erratum.mask for erratum in errata)
    for init, use in stubs.plt.items():
        there = layout.plt[init].got_section
        emitters[init] = _Emitter(
            template,
            dialect,
            use,
            addresses[use.section],
            masks,
            stubs.targets,
            addresses[there] if there is not None else 0,
        )
    return emitters


def _redirect_branches(records: Records, index: NDArray[np.intp], emitter: _Emitter) -> None:
    """Give branches, in the order they are visited, the addresses of entries."""
    if not index.size:
        return
    targets = records.target[index]
    starts = np.flatnonzero(np.append(True, targets[1:] != targets[:-1])).tolist()
    for start, end in zip(starts, [*starts[1:], index.size], strict=True):
        entry = emitter.branch_entry(int(targets[start]), repeated=end - start > 1)
        if entry is None:
            continue  # the branch keeps its target, and fails the range check
        records.target[index[start:end]] = entry


def _any_beyond(work: Work) -> bool:
    """Return whether any branch of the module does not reach; most modules have none."""
    arch = work.view.arch
    assert arch.plt is not None
    numbers = [number for number in arch.plt.branches if number in work.whole.numbers]
    return any(
        out_of_reach(
            compute(row, work.records, having(work.records.type, [row.number])), row.reach
        ).any()
        for row in map(arch.link.relocations.__getitem__, numbers)
    )


def _beyond(arch: Arch, records: Records, index: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return which of the branches at `index` do not reach their targets directly."""
    beyond = np.zeros(index.size, np.bool_)
    types = records.type[index]
    for number in numbers_in(types):
        row, mine = arch.link.relocations[number], having(types, [number])
        beyond[mine] = out_of_reach(compute(row, records, index[mine]), row.reach)
    return beyond


# Errata ----------------------------------------------------------------------------------------


def _avoid(
    erratum: Erratum,
    records: Records,
    index: NDArray[np.intp],
    emitter: _Emitter | None,
    image: NDArray[np.uint8],
    stubs: Stubs,
) -> None:
    """Replace instructions at forbidden places by near ones, or by a detour through a veneer."""
    mask = np.uint64(erratum.mask)
    index = index[np.isin(records.type[index], erratum.rows)]
    index = index[records.place[index] & mask == mask]
    for one in index.tolist():
        place, offset = int(records.place[one]), int(records.offset[one])
        target = int(records.target[one])
        word = int.from_bytes(image[offset : offset + 4].tobytes(), "little")
        code = erratum.near(word, place, target)
        if code is None:
            slot = None if emitter is None else emitter.take()
            if emitter is not None and slot is not None:
                code = erratum.detour(place, emitter.at(slot))
            if emitter is None or slot is None or code is None:
                nothing = np.zeros(1, np.uint64)
                failure = Failure(Problem.FULL, None, np.array([one]), nothing)
                stubs.failures.append(failure)
                continue
            at = emitter.at(slot)
            emitter.put(slot, erratum.veneer(word, at, place, target))
            emitter.use.used, emitter.last = slot + 1, None
            stubs.veneers += 1
        stubs.patches[offset] = code
