# SPDX-License-Identifier: GPL-2.0-or-later
"""The event record."""

from __future__ import annotations

from allocator.events import Events


def test_a_difference_is_what_happened_in_between():
    """Snapshots do not move with the record, and subtract counter by counter."""
    events = Events(pokes=2, tlb_flushes_local=1)
    before = events.copy()
    events.pokes += 3
    events.tlb_flushes_all += 4
    cost = events - before
    assert {k: v for k, v in cost.as_dict().items() if v} == {"pokes": 3, "tlb_flushes_all": 4}
    assert (cost.tlb_flushes, events.tlb_flushes, before.pokes) == (4, 5, 2)
