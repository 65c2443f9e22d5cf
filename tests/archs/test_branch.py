# SPDX-License-Identifier: GPL-2.0-or-later
"""How far branches get: displacements, and regions."""

from __future__ import annotations

import attrs
import pytest

import archs
from allocator.types import Interval
from archs.levels.link import Branch, Region
from archs.reloc import Reach

MIPS_JAL = Branch(
    mnemonic="jal",
    reach=Reach(0, 1 << 28, 4),
    what="call",
    region=Region(size=1 << 28, behind=4),
)


@pytest.mark.parametrize(
    ("place", "start"),
    [
        (0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_C000_0000),
        (0xFFFF_FFFF_CFFF_FFF8, 0xFFFF_FFFF_C000_0000),
        (0xFFFF_FFFF_CFFF_FFFC, 0xFFFF_FFFF_D000_0000),  # its delay slot is in the next
    ],
)
def test_a_region_jump_stays_where_its_delay_slot_is(place: int, start: int) -> None:
    """J and JAL replace 28 bits of the delay slot's address (MIPS64, volume II: JAL)."""
    assert MIPS_JAL.span(place) == Interval(start, start + 0x1000_0000)
    assert MIPS_JAL.text() == "its region of 256 MiB"


def test_a_displacement_counts_from_the_instruction() -> None:
    """BL reaches 128 MiB backwards, and one instruction less forwards."""
    call = archs.arch("arm64").link.call
    assert call is not None
    assert call.mnemonic == "bl"
    place = 0xFFFF_8000_8000_0000
    assert call.span(place) == Interval(0xFFFF_8000_7800_0000, 0xFFFF_8000_8800_0000)
    assert call.text() == "+-128 MiB"


def test_calls_that_all_go_through_registers() -> None:
    """An architecture need not have an instruction that calls by displacement."""
    assert attrs.evolve(archs.arch("arm64").link, branches=()).call is None
