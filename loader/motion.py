# SPDX-License-Identifier: GPL-2.0-or-later
"""What changes when a module moves: which relocations still reach, and which need an entry.

Every X is a sum of addresses, so moving text by t and data by d turns it into
X + a*t + b*d with a and b among small whole numbers that depend on where place and target
lie, not on how far anything moves (Page() included, as long as everything moves by whole
pages). So a module is linked once, and every other placement is answered from X, a and b:
what a reader's slider needs. How often X counts what is in its operation (`Op.weight`); where
that rounds to more than a page (the region of a jump), X is computed anew. The rules of PLT
entries are the loader's (`loader.stubs`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from functools import partial

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import ADDRESS_MASK, PAGE_SIZE
from archs import Plt
from archs.dialect import RELA
from archs.op import Letters
from archs.reloc import Reloc
from loader.elfview import RelocationTable
from loader.layout import PltPlan, is_init, slot_candidates
from loader.listing import Listing
from loader.loaded import LoadedModule

U64 = NDArray[np.uint64]
RecordNumbers = NDArray[np.intp]


class Group(enum.IntEnum):
    """What moves together."""

    FIXED = 0
    TEXT = 1
    DATA = 2


@attrs.frozen(eq=False)
class PltEntries:
    """The PLT of core or of init text, as branches see it.

    Parameters
    ----------
    section
        Index of its section.
    address, reserved
        Where it lies, and how many entries it has.
    visits
        Branches in the order in which the loader looks at them.
    slots
        Address of the first slot that entries load their targets from; None: they jump themselves.
    slots_group
        What the slots move with.
    """

    section: int
    address: int
    reserved: int
    visits: RecordNumbers
    slots: int | None = None
    slots_group: int = 0


@attrs.frozen(eq=False)
class Outcome:
    """How a module fares at a placement.

    Parameters
    ----------
    failed
        Relocations out of reach, ascending.
    via
        Branch -> the number of its PLT entry.
    used
        Entries used, for core (False) and init (True) text.
    """

    failed: RecordNumbers
    via: Mapping[int, int]
    used: Mapping[bool, int]


@attrs.frozen(eq=False, kw_only=True)
class Motion:
    """The relocations of a loaded module as functions of how far text and data move.

    A relocation's id is its place among all relocations of the module, table by table.

    Parameters
    ----------
    rows
        The architecture's table.
    plt
        Its PLT, or None.
    section, offset, type, symbol, addend
        By id, as the tables have them.
    target
        S+A at the loaded place, by id.
    moves
        By id: whether place and target lie in fixed, text or data memory.
    x
        X at the loaded place, by id.
    a, b
        By id: how often X counts the move of text, and of data.
    checked
        Ids whose X has to lie within a reach.
    entries
        PLT of core (False) and init (True) text, where the module has one.
    """

    rows: Mapping[int, Reloc]
    plt: Plt | None
    section: NDArray[np.uint16]
    offset: NDArray[np.uint64]
    type: NDArray[np.uint32]
    symbol: NDArray[np.uint32]
    addend: NDArray[np.int64]
    place: U64
    target: U64
    moves: tuple[NDArray[np.int8], NDArray[np.int8]]
    x: U64
    a: NDArray[np.int8]
    b: NDArray[np.int8]
    checked: RecordNumbers
    entries: Mapping[bool, PltEntries]

    @classmethod
    def of(cls, module: LoadedModule) -> Motion:
        """Return the motion of a module in memory."""
        return _build(module)

    def at(self, *, text: int, data: int) -> Outcome:
        """Return the outcome with text and data moved by so many bytes.

        Parameters
        ----------
        text, data
            Multiples of 4 KiB, positive or negative.

        Raises
        ------
        ValueError
            A move is no multiple of a page.
        """
        if text % PAGE_SIZE or data % PAGE_SIZE:
            raise ValueError("a module moves by whole pages")
        ids = self.checked
        x = self.x[ids] + _times(self.a[ids], text) + _times(self.b[ids], data)
        bad = np.zeros(self.x.size, np.bool_)
        for number in np.unique(self.type[ids]).tolist():
            op, reach = self.rows[number].op, self.rows[number].reach
            assert reach is not None
            mine = self.type[ids] == number
            if op.granule > PAGE_SIZE:
                x[mine] = op.compute(partial(_total, self._letters(text, data), ids[mine]))
            value = x[mine].view(np.int64)
            bad[ids[mine]] = (value < reach.lo) | (value >= reach.hi)
        via: dict[int, int] = {}
        used: dict[bool, int] = {}
        for init, entries in self.entries.items():
            before = sum(used.values())  # slots are the whole module's
            used[init] = self._take_entries(entries, (text, data), bad, via, before)
        return Outcome(np.flatnonzero(bad), via, used)

    def _letters(self, text: int, data: int) -> dict[str, U64]:
        """Return S, A and P after moves of text and data."""

        def moved(at: U64, group: NDArray[np.int8]) -> U64:
            for which, move in ((Group.TEXT, text), (Group.DATA, data)):
                at = at + _times((group == which).astype(np.int8), move)
            return at

        addend = self.addend.view(np.uint64)
        return {
            "S": moved(self.target - addend, self.moves[1]),
            "A": addend,
            "P": moved(self.place, self.moves[0]),
        }

    def _take_entries(
        self,
        entries: PltEntries,
        moves: tuple[int, int],
        bad: NDArray[np.bool_],
        via: dict[int, int],
        before: int,
    ) -> int:
        """Give branches out of reach an entry each, as the loader does; return how many it took."""
        assert self.plt is not None
        text = moves[0]
        shift = {Group.TEXT: text, Group.DATA: moves[1]}
        known: dict[int, int] = {}
        used, last = 0, None
        for one in entries.visits[bad[entries.visits]].tolist():
            target = int(self.target[one])
            number = known.get(target)
            if number is None or (self.plt.sorts and target != last):
                at = entries.address + used * self.plt.size + text
                if entries.slots is None:
                    to = target + shift.get(Group(int(self.moves[1][one])), 0)
                else:
                    to = entries.slots + 8 * (before + used)
                    to += shift.get(Group(entries.slots_group), 0)
                if used == entries.reserved or not self.plt.leads(
                    at & ADDRESS_MASK, to & ADDRESS_MASK
                ):
                    continue
                number = known[target] = used
                used += 1
            last = target
            row = self.rows[int(self.type[one])]
            entry, place = entries.address + number * self.plt.size, int(self.place[one])
            # Branches and entries are text, both.
            x = row.op.evaluate({"S": entry + text, "A": 0, "P": place + text})
            assert row.reach is not None
            assert x is not None
            if row.reach.lo <= x < row.reach.hi:
                bad[one], via[one] = False, number
        return used


def _times(count: NDArray[np.int8], move: int) -> U64:
    """Return count * move, modulo 2^64."""
    return count.astype(np.int64).view(np.uint64) * np.uint64(move & ADDRESS_MASK)


def _build(module: LoadedModule) -> Motion:
    listing = Listing.of(module)
    view, rows = listing.view, listing.view.arch.link.relocations
    tables = listing.tables
    starts = [0]
    for table in tables:
        starts.append(starts[-1] + table.records.size)
    records = np.concatenate([np.empty(0, RELA), *(table.records for table in tables)])
    sizes = np.diff(starts)
    section = np.repeat([t.target.index for t in tables], sizes).astype(np.uint16)
    kind, symbol = records["type"].copy(), records["symbol"].copy()
    offset, addend = records["offset"].copy(), records["addend"].copy()
    bases = np.zeros(len(view.sections), np.uint64)
    bases[list(listing.addresses)] = list(listing.addresses.values())
    groups = _groups(module)
    place, place_group = bases[section] + offset, groups[section]
    value = module.linked.symbols[symbol]
    shndx = view.symbols["shndx"][symbol].astype(np.intp)
    inside = shndx < groups.size
    target_group = np.where(inside, groups[np.where(inside, shndx, 0)], Group.FIXED).astype(np.int8)
    target = value + addend
    x = np.zeros(target.size, np.uint64)
    coefficients = np.zeros((2, x.size), np.int8)
    checked = np.zeros(x.size, np.bool_)
    accumulating = np.zeros(x.size, np.bool_)
    size = view.symbols["size"][symbol]
    # What accumulates is added up later.
    letters = {"S": value, "A": addend, "P": place, "Z": size, "V": np.zeros_like(x)}
    got = view.section(view.arch.got_section) if view.arch.got_section else None
    got_group = Group.FIXED if got is None else Group(int(groups[got.index]))
    for number in np.unique(kind).tolist():
        row, mine = rows[number], np.flatnonzero(kind == number)
        accumulating[mine] = row.accumulates
        if not row.op.terms:
            continue
        checked[mine] = row.reach is not None
        if row.got is None:
            x[mine] = row.op.compute(partial(_total, letters, mine))
        else:
            x[mine] = _through_got(listing, tables, starts, mine)
        symbols, slots = (1, 0) if row.got is None else row.got.weights
        for which in (Group.TEXT, Group.DATA):
            moved = symbols * (target_group[mine] == which) + slots * (got_group is which)
            coefficients[which - 1, mine] = row.op.weight("S") * moved + row.op.weight("P") * (
                place_group[mine] == which
            )
    _sum_up(
        rows,
        kind,
        np.repeat(np.arange(len(tables)), sizes),
        offset,
        accumulating,
        x,
        coefficients,
        checked,
    )
    return Motion(
        rows=rows,
        plt=view.arch.plt,
        section=section,
        offset=offset,
        type=kind,
        symbol=symbol,
        addend=addend.view(np.int64),
        place=place,
        target=target,
        moves=(place_group, target_group),
        x=x,
        a=coefficients[0],
        b=coefficients[1],
        checked=np.flatnonzero(checked),
        entries=_entries(module, tables, starts),
    )


def _groups(module: LoadedModule) -> NDArray[np.int8]:
    """Return, by section index, what the section moves with."""
    found = np.zeros(len(module.view.sections), np.int8)
    for index, section in module.sections.items():
        if section.type is not None:
            found[index] = Group.TEXT if section.type.is_text else Group.DATA
    return found


def _total(letters: Mapping[str, U64], ids: RecordNumbers, names: Letters) -> U64:
    """Return the sum of some letters; ValueError where nothing says how one moves."""
    x = np.zeros(ids.size, np.uint64)
    for name in names:
        if name not in letters:
            raise ValueError(f"nothing says how {name} moves")
        x += letters[name][ids]
    return x


def _through_got(
    listing: Listing, tables: Sequence[RelocationTable], starts: Sequence[int], ids: RecordNumbers
) -> U64:
    """Return X of rows that go through the global offset table, whose slots the listing finds."""
    found = np.zeros(ids.size, np.uint64)
    for number, table in enumerate(tables):
        (mine,) = ((ids >= starts[number]) & (ids < starts[number + 1])).nonzero()
        told = listing.of_table(table).records(ids[mine] - starts[number])
        found[mine] = [(relocation.x or 0) & ADDRESS_MASK for relocation in told]
    return found


def _sum_up(
    rows: Mapping[int, Reloc],
    kind: NDArray[np.uint32],
    table: RecordNumbers,
    offset: NDArray[np.uint64],
    accumulating: NDArray[np.bool_],
    x: U64,
    coefficients: NDArray[np.int8],
    checked: NDArray[np.bool_],
) -> None:
    """Give the last of the records that add up at one place the sum; only that is stored."""
    ids = np.flatnonzero(accumulating)
    if not ids.size:
        return
    ids = ids[np.lexsort((ids, offset[ids], table[ids]))]
    new = (offset[ids][1:] != offset[ids][:-1]) | (table[ids][1:] != table[ids][:-1])
    first = np.flatnonzero(np.append(True, new))
    last = np.append(first[1:], ids.size) - 1
    # What was there before a SET does not count.
    for at in ids[[rows[n].op.anew for n in kind[ids].tolist()]].tolist():
        where = int(np.flatnonzero(ids == at)[0])
        begin = int(first[np.searchsorted(first, where, side="right") - 1])
        x[ids[begin:where]] = 0
        coefficients[:, ids[begin:where]] = 0
    stored = ids[last]
    x[stored] = np.add.reduceat(x[ids], first)
    coefficients[:, stored] = np.add.reduceat(coefficients[:, ids], first, axis=1)
    keep = checked[stored]
    checked[ids] = False
    checked[stored] = keep


def _entries(
    module: LoadedModule, tables: Sequence[RelocationTable], starts: Sequence[int]
) -> dict[bool, PltEntries]:
    """Return what branches see of each PLT: the loader's order of looking at them."""
    visits: dict[bool, list[RecordNumbers]] = {}
    plans = {init: p for init, p in module.layout.plt.items() if p.section in module.sections}
    for table, start in zip(tables, starts[:-1], strict=True):
        init = is_init(table.target.name)
        which = init if init in plans else False
        if table.target.executable and which in plans:
            visits.setdefault(which, []).append(start + slot_candidates(module.view, table))
    groups = _groups(module)

    def slots(plan: PltPlan) -> tuple[int | None, int]:
        index = plan.got_section
        if index is None or index not in module.sections:
            return None, 0
        return module.sections[index].address, int(groups[index])

    return {
        init: PltEntries(
            plan.section,
            module.sections[plan.section].address,
            plan.slots,
            np.concatenate([np.empty(0, np.intp), *visits.get(init, [])]),
            *slots(plan),
        )
        for init, plan in plans.items()
    }
