# SPDX-License-Identifier: GPL-2.0-or-later
"""A relocation that no architecture here has: a jump inside a region, by its row alone."""

from __future__ import annotations

import random

import attrs
import numpy as np
import pytest

import archs
from archs.op import Op, Term
from archs.reloc import Part, Reach, Reloc, Rows, Slice
from execmem.check.elfwriter import LOCAL, A, Rela, Sec, Sym, W, X, write
from loader.elf import parse
from loader.elfview import ElfView
from loader.errors import RelocationError
from loader.layout import plan
from loader.link import extents, link_view
from loader.listing import Listing
from loader.motion import Group, Motion

REGION = 1 << 28
JUMP = Op("REGION", (Term(1, ("S", "A")), Term(-1, ("P",), granule=REGION, bias=4)))
ROW = Reloc(1, "R_TOY_J26", JUMP, (Part(4, (Slice(2, 26, 0),)),), Reach(0, REGION, 4))
TEXT = 0x5_0FF0_0000


def view(arch: archs.Arch) -> ElfView:
    """Return an object with two jumps: to its own text, and to a symbol elsewhere."""
    code = (0x0800_0000).to_bytes(4, "little") * 64
    relas = [Rela(0x10, 1, "here", 8), Rela(0x20, 1, "there")]
    sections = [Sec(".text", code, A | X, align=4, relas=relas), Sec(".data", bytes(16), A | W)]
    symbols = [Sym("here", ".text", 0x40, bind=LOCAL), Sym("there")]
    found = parse(write(arch.machine, sections, symbols))
    link = attrs.evolve(arch.link, relocations=Rows({1: ROW}), clean_target=False)
    toy = attrs.evolve(arch, link=link, load=attrs.evolve(arch.loads, plt=None))
    return attrs.evolve(found, arch=toy)


def jumps_to(code: memoryview, offset: int, place: int) -> int:
    """Return where the processor goes from a jump."""
    word = int.from_bytes(code[offset : offset + 4], "little")
    assert word >> 26 == 2
    return (place + 4) // REGION * REGION + (word % (1 << 26)) * 4


def test_a_region_jump_links_and_is_told(arch: archs.Arch) -> None:
    """Bytes, extents and the story of each record follow from the row."""
    found = view(arch)
    there = TEXT // REGION * REGION + 0x1234_5678 // 4 * 4 % REGION
    places = {1: TEXT, found.find(".data").index: 0x1000}
    linked = link_view(found, plan(found), places, {"there": there})
    code = linked.sections[1]
    assert jumps_to(code, 0x10, TEXT + 0x10) == TEXT + 0x48
    assert jumps_to(code, 0x20, TEXT + 0x20) == there
    first, last = Listing(found, linked, places).select()
    assert (first.x, last.x) == ((TEXT + 0x48) % REGION, there % REGION)
    assert first.formula == "S+A-((P+0x4)&-0x10000000)"
    assert eval(last.computation) == last.x
    (extent,) = extents(found.arch, linked.records)
    assert (extent.lo, extent.hi) == (first.x, last.x) or (extent.hi, extent.lo) == (
        first.x,
        last.x,
    )
    assert extent.share == pytest.approx(extent.hi / REGION, rel=1e-6)


def test_a_jump_out_of_its_region_is_refused(arch: archs.Arch) -> None:
    """A target in another region is an error with the offset in the jump's own, and the reach."""
    found = view(arch)
    beyond = (TEXT // REGION + 1) * REGION
    places = {1: TEXT, found.find(".data").index: 0x1000}
    with pytest.raises(RelocationError) as refusal:
        link_view(found, plan(found), places, {"there": beyond})
    (failure,) = refusal.value.failures
    assert (failure.offset, failure.value, failure.reach) == (0x20, REGION, ROW.reach)


def test_a_region_jump_that_moves_fares_as_it_is_linked(arch: archs.Arch) -> None:
    """A move across a region's border is answered as a link there answers, not by a sum."""
    found = view(arch)
    text, there = TEXT, TEXT // REGION * REGION + 0x100
    place = np.array([text + 0x10, text + 0x20], np.uint64)
    target = np.array([text + 0x48, there], np.uint64)
    motion = Motion(
        rows=found.arch.link.relocations,
        plt=None,
        section=np.ones(2, np.uint16),
        offset=np.array([0x10, 0x20], np.uint64),
        type=np.ones(2, np.uint32),
        symbol=np.zeros(2, np.uint32),
        addend=np.array([8, 0], np.int64),
        place=place,
        target=target,
        moves=(np.array([Group.TEXT] * 2, np.int8), np.array([Group.TEXT, Group.FIXED], np.int8)),
        x=target - (place + np.uint64(4) & np.uint64(-REGION % (1 << 64))),
        a=np.array([0, -1], np.int8),
        b=np.zeros(2, np.int8),
        checked=np.arange(2),
        entries={},
    )
    chance, ends = random.Random(3), set()
    around = REGION - text % REGION
    border = [around - 0x1000, around, around + REGION - 0x1000, -text % -REGION]
    for move in [0, *border, *(0x1000 * chance.randrange(-200_000, 200_000) for _ in range(40))]:
        at = text + move
        places = {1: at, found.find(".data").index: 0x1000}
        failed: list[int] = []
        try:
            link_view(found, plan(found), places, {"there": there})
        except RelocationError as error:
            failed = [failure.offset for failure in error.failures]
        outcome = motion.at(text=move, data=0)
        assert [int(motion.offset[one]) for one in outcome.failed] == failed, hex(move)
        ends.add(len(failed))
    assert ends >= {0, 1}
