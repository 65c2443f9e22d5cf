# SPDX-License-Identifier: GPL-2.0-or-later
"""PLT entries: emitted only for branches that do not reach, and never more than counted.

The kernel's rules (arch/arm64/kernel/module-plts.c, module_emit_plt_entry): branches of
one relocation section are visited in sorted order, so a duplicate can only equal the
entry emitted last; an entry is written before the duplicate check, so one stale copy may
stand behind the last used slot. Init text has entries of its own, because it is freed.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.reloc import Records, compute, out_of_reach
from loader.elf import ElfView
from loader.layout import Layout, branches_that_may_need_slots, is_init
from loader.work import Work


@attrs.define
class PltUse:
    """Entries of one PLT section: reserved, used, and their bytes."""

    section: int
    reserved: int
    used: int = 0
    image: bytearray = attrs.field(factory=bytearray)


@attrs.define
class _Cursor:
    """Where emission stands in one PLT: its address and the target emitted last."""

    use: PltUse
    address: int
    last: int | None = None


def redirect(
    view: ElfView,
    layout: Layout,
    addresses: Mapping[int, int],
    work: Work,
) -> dict[bool, PltUse]:
    """Point branches that do not reach at PLT entries; return what each PLT holds.

    Parameters
    ----------
    addresses
        Section index -> address.
    work
        Of the whole module; `value` and `addend` of redirected branches are changed.
    """
    records = work.records
    template = view.arch.plt
    if template is None or not layout.plt:
        return {}
    cursors = {
        init: _Cursor(PltUse(p.section, p.slots, 0), addresses[p.section])
        for init, p in layout.plt.items()
        if p.section in addresses
    }
    if not _any_beyond(view, records):
        return {init: cursor.use for init, cursor in cursors.items()}
    for start, number in zip(work.starts.tolist(), work.tables, strict=True):
        table = view.tables[number]
        cursor = cursors.get(is_init(table.target.name))
        if cursor is None or not table.target.executable:
            continue
        index = start + branches_that_may_need_slots(view.arch, view, table)
        index = index[_beyond(view, records, index)]
        if not index.size:
            continue
        targets = records.value[index] + records.addend[index]
        fresh = np.append(int(targets[0]) != cursor.last, targets[1:] != targets[:-1])
        slots = cursor.use.used + np.cumsum(fresh) - 1
        room = slots < cursor.use.reserved
        # A stale copy that the table before left is overwritten.
        del cursor.use.image[cursor.use.used * template.size :]
        for target in targets[fresh & room].tolist():
            at = cursor.address + len(cursor.use.image)
            cursor.use.image += template.encode(at, target)
        cursor.use.used = min(int(slots[-1]) + 1, cursor.use.reserved)
        cursor.last = int(targets[-1])
        # Branches beyond the reserved slots keep their target and fail the range check.
        chosen = index[room]
        records.value[chosen] = np.uint64(cursor.address) + (slots[room] * template.size).astype(
            np.uint64
        )
        records.addend[chosen] = 0
        if not fresh[-1]:
            at = cursor.address + len(cursor.use.image)
            cursor.use.image += template.encode(at, cursor.last)
    return {init: cursor.use for init, cursor in cursors.items()}


def _any_beyond(view: ElfView, records: Records) -> bool:
    """Return whether any branch of the module does not reach; most modules have none."""
    assert view.arch.plt is not None
    for number in view.arch.plt.branches:
        row = view.arch.relocations[number]
        x = compute(row, records, np.flatnonzero(records.type == number)).view(np.int64)
        if x.size and row.reach and (x.min() < row.reach.lo or x.max() >= row.reach.hi):
            return True
    return False


def _beyond(view: ElfView, records: Records, index: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return which of the branches at `index` do not reach their targets directly."""
    beyond = np.zeros(index.size, np.bool_)
    for number in np.unique(records.type[index]):
        row = view.arch.relocations[int(number)]
        mine = records.type[index] == number
        beyond[mine] = out_of_reach(compute(row, records, index[mine]), row.reach)
    return beyond
