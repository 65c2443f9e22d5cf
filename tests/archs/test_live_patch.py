# SPDX-License-Identifier: GPL-2.0-or-later
"""What each architecture allows of live patching, against disassembly and the manuals' lists."""

from __future__ import annotations

import re

import capstone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archs import ALL
from tests.archs.facts import facts

LIVE = [arch for arch in ALL if arch.live_patch is not None]
PLACE = 0xFFFF_8000_1000_0000


@pytest.mark.parametrize("arch", LIVE, ids=lambda arch: arch.name)
@given(step=st.integers(-(1 << 33), 1 << 33))
def test_a_jump_leads_where_it_should_or_is_refused(arch, step):
    """Capstone reads the target back; beyond the reach of the instruction there is none."""
    target = PLACE + step * arch.text_poke.granule
    jump = arch.live_patch.jump(PLACE, target)
    lengths = [branch.reach for branch in arch.link.branches if branch.what == "jump"]
    reach = max(lengths, key=lambda one: one.hi)
    inside = reach.lo <= target - PLACE < reach.hi
    assert (jump is not None) is inside
    if jump is None:
        return
    mode = sum(getattr(capstone, name) for name in arch.runs.emulation.capstone_mode)
    engine = capstone.Cs(getattr(capstone, arch.runs.emulation.capstone_prefix), mode)
    ((_, size, mnemonic, operands),) = engine.disasm_lite(jump, PLACE)
    assert (size, mnemonic) in ((5, "jmp"), (4, "b"), (4, "j"))
    (number,) = re.findall(r"-?0x[0-9a-f]+|-?\d+", operands)
    # Of RISC-V capstone prints the displacement, of the others the target.
    assert int(number, 0) in (target, target - PLACE)


@pytest.mark.parametrize("arch", LIVE, ids=lambda arch: arch.name)
def test_what_may_be_written_under_a_running_cpu(arch):
    """Exactly the instructions of the list may replace one another; never two at once."""
    live = arch.live_patch
    if facts(arch).patch.allowed is None:
        assert not live.concurrent(bytes(5), b"\x90" * 5)
        assert live.concurrent(b"\x90", b"\xcc") is (arch.text_poke.granule == 1)
        return
    allowed = [bytes.fromhex(word) for word in facts(arch).patch.allowed[1].split()]
    others = [bytes.fromhex(word) for word in facts(arch).patch.others[1].split()]
    assert len(allowed) == len(facts(arch).patch.allowed[0].split())
    for old in allowed + others:
        for new in allowed + others:
            assert live.concurrent(old, new) is (old in allowed and new in allowed)
    assert not live.concurrent(allowed[0] * 2, allowed[1] * 2)


@pytest.mark.parametrize("arch", LIVE, ids=lambda arch: arch.name)
def test_the_window_lies_apart(arch):
    """The alias's addresses belong to no range that anything is allocated from."""
    alias, where = arch.text_poke.alias, arch.loads.address_map()
    ranges = [r.range for r in where.ranges.values()]
    ranges += [r.fallback for r in where.ranges.values() if r.fallback is not None]
    assert not any(alias.overlaps(r) for r in [*ranges, where.vmalloc, where.image])
    assert arch.text_poke.private is (alias.end <= 1 << 63)
    assert arch.text_poke.sync
