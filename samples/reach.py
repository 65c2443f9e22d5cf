# SPDX-License-Identifier: GPL-2.0-or-later
"""Reach: the same call, linked at the last address that it reaches, and one step further.

A call of the sample module is linked with the pure linker: first to a target at the very
end of the call's reach, then one instruction granule beyond. What happens there is what
makes the architectures different.
"""

from __future__ import annotations

import attrs
import numpy as np

from allocator.types import ADDRESS_MASK, ExecmemType
from archs import Arch, Reloc, archs
from loader.elf import parse
from loader.elfview import ElfView
from loader.errors import RelocationError
from loader.layout import plan
from loader.link import link_view
from loader.linked import Linked
from samples.modules import path
from samples.story import Grid, Story

MODULE = "mathuser"


@attrs.frozen
class LoneCall:
    """One call to an undefined symbol that nothing else in the module refers to."""

    row: Reloc
    symbol: str
    place: int
    addend: int


def main() -> Story:
    """Link one call at its limit and one step past it, on every architecture."""
    story = Story("reach", "How far a direct call gets, and what happens one step further")
    rows = []
    for arch in archs():
        if arch.link.call is None:
            rows.append((arch.title, "any: through registers", "", ""))
            continue
        facts = visit(arch)
        story.facts[arch.name] = facts
        rows.append((arch.title, facts["reach"], facts["fits"], facts["beyond"]))
    story.parts = [
        Grid(("arch", "reach of a call", "last that fits", "one step further"), tuple(rows)),
    ]
    return story


def visit(arch: Arch) -> dict[str, str]:
    """Return what the linker did at the limit of a call, and past it."""
    view = parse(path(arch.name, MODULE).read_bytes(), MODULE)
    layout = plan(view)
    start = arch.loads.address_map().range_of(ExecmemType.MODULE_TEXT).range.start
    spread = {kind: start + (n << 20) for n, kind in enumerate(layout.sizes)}
    addresses = {i: spread.get(p.type, start) + p.offset for i, p in layout.placements.items()}
    call = _single_call(view, addresses)
    reach = call.row.reach
    assert reach is not None
    last = reach.hi - reach.align

    def linked(x: int) -> Linked:
        """Link with the called symbol placed so that the call's X is `x`."""
        near = dict.fromkeys(view.undefined, start)
        near[call.symbol] = (call.place + x - call.addend) & ADDRESS_MASK
        return link_view(view, layout, addresses, near)

    linked(last)
    try:
        entries = sum(use.used for use in linked(last + reach.align).plt.values())
        beyond = f"{entries} PLT entry of {arch.plt.size if arch.plt else 0} bytes"
    except RelocationError as error:
        beyond = f"refused: {error.failures[0].reason}"
    return {"reach": str(reach), "fits": f"{last:+#x}", "beyond": beyond, "symbol": call.symbol}


def _single_call(view: ElfView, addresses: dict[int, int]) -> LoneCall:
    """Return the call whose symbol no other relocation of the module names."""
    used = np.concatenate([table.records["symbol"] for table in view.tables])
    once = {int(s) for s, n in zip(*np.unique(used, return_counts=True), strict=True) if n == 1}
    for table in view.tables:
        if not table.target.executable:
            continue
        for record in table.records:
            index, row = int(record["symbol"]), view.arch.link.relocations[int(record["type"])]
            name = view.symbol_name(index)
            if index in once and name in view.undefined and row.reach is not None:
                place = addresses[table.target.index] + int(record["offset"])
                addend = int(record["addend"].astype(np.int64))
                return LoneCall(row, name, place, addend)
    raise AssertionError(f"{MODULE} has no call that stands alone")
