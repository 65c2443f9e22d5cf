# SPDX-License-Identifier: GPL-2.0-or-later
"""Where X of a relocation may lie: inside its reach, at both ends, past them, off its grid.

Not every row has all of them. An X that is a page moves by pages; where every address fits there
is no end; the offset of a slot is never negative, and no object has the slots that a field of
32 bits could count.
"""

from __future__ import annotations

from collections.abc import Mapping

from archs import Arch
from archs.op import Got, Op
from archs.reloc import Reach, Reloc

ENDS = ("inside", "the lower end", "the upper end", "below it", "above it", "off its grid")
INSIDE, LOWER, UPPER, BELOW, ABOVE, OFF = ENDS
NO_LIMIT = "no limit"
MOST_SLOTS = 1 << 14  # of a global offset table that a case may make
_SLOT = 8  # bytes
_EVERY = 1 << 63
# X of these is the distance of a slot from the table's start (or its page), and nothing is added.
_OFFSETS = (Got.OFFSET_SUM, Got.PAGE_OFFSET_SUM)


def takes_plt(arch: Arch, row: Reloc) -> bool:
    """Return whether the module loader gives a row a PLT entry where it does not reach."""
    return arch.plt is not None and row.number in arch.plt.branches


def step_of(row: Reloc) -> int:
    """Return what X moves by: the grid of its field, or of what it is computed from."""
    step = row.reach.align if row.reach is not None else 1
    step = max(step, min((term.granule for term in row.op.terms), default=1))
    return max(step, _SLOT) if row.got in _OFFSETS else step


def has_ends(row: Reloc) -> bool:
    """Return whether there are addresses that do not reach, whatever the grid."""
    return row.reach is not None and (row.reach.lo, row.reach.hi) != (-_EVERY, _EVERY)


def ends_of(row: Reloc) -> Mapping[str, int]:
    """Return the X of everything that a row has; nothing where every X fits."""
    reach = row.reach
    if reach is None:
        return {}
    step = step_of(row)
    found = {INSIDE: 16 * step if 16 * step in reach else reach.lo + step}
    if has_ends(row):
        last = (reach.hi - 1) // step * step
        found |= {LOWER: reach.lo, UPPER: last, BELOW: reach.lo - step, ABOVE: last + step}
        if row.got in _OFFSETS:
            del found[BELOW]
            if reach.lo < 0:
                del found[LOWER]
            if last > MOST_SLOTS * _SLOT:
                del found[UPPER], found[ABOVE]
    if reach.align > 1 and row.got is not Got.OFFSET_SUM:
        found[OFF] = found[INSIDE] + reach.align // 2
    return found


def where(row: Reloc, x: int | None, reach: Reach | None) -> str:
    """Return which of ENDS an X is, in a reach; NO_LIMIT where every X fits."""
    if reach is None or row.op is Op.NONE:
        return NO_LIMIT
    if x is None:
        return INSIDE
    if x < reach.lo:
        return BELOW
    if x >= reach.hi:
        return ABOVE
    if x % reach.align:
        return OFF
    found = ends_of(row)
    for end in (LOWER, UPPER):
        if found.get(end) == x:
            return end
    return INSIDE
