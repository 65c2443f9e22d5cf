# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows as such: the psABIs' numbers and bytes, slices that fit, reaches that read as they are."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from archs.levels.link import rows
from archs.op import Op
from archs.reloc import Checks, Part, Reach, Reloc, Slice
from tests.archs.facts import facts
from tests.support import scalar

SUPPORTED = [
    pytest.param(arch, row, id=f"{row.name}-{row.number}")
    for arch in archs.ALL
    for row in arch.link.relocations.values()
    if not row.unsupported and row.op is not Op.NONE
]


def test_model_and_tables_have_the_same_rows(arch: archs.Arch) -> None:
    """Every row that a table supports is in the model, and the other way round."""
    supported = {n for n, row in arch.link.relocations.items() if not row.unsupported}
    assert set(facts(arch).link.rules) | facts(arch).link.nothing == supported
    kinds = arch.link.relocations.items()
    assert {n for n, row in kinds if row.got is not None} == set(facts(arch).link.got)
    assert {n for n, row in kinds if row.op is Op.SIZE} == facts(arch).link.sized
    summed = {n for n, row in kinds if row.accumulates}
    assert summed == {n for n in supported if scalar.accumulates(arch.machine, n)}
    assert {n for n, row in kinds if row.high} == {
        n for n in supported if scalar.is_high(arch.machine, n)
    }


@pytest.mark.parametrize(("arch", "row"), SUPPORTED)
def test_a_row_touches_the_bytes_of_the_psabi(arch: archs.Arch, row: Reloc) -> None:
    """The bytes that a row writes are as many as the psABI's field has."""
    assert row.size == facts(arch).link.rules[row.number].size


@given(x=st.integers(-(1 << 40), 1 << 40), word=st.integers(0, 0xFFFF_FFFF))
@settings(max_examples=40, deadline=None)
def test_extract_undoes_insert(arch: archs.Arch, x: int, word: int) -> None:
    """Reading a part's slices gives back the bits of X (plus bias) that they hold, and no other."""
    for row in arch.link.relocations.values():
        for part in row.parts:
            held = sum(((1 << s.bits) - 1) << s.x for s in part.slices)
            placed = part.insert(word, x)
            stored = ~x if part.movz and x < 0 else x + part.bias
            assert part.extract(placed) == stored & held
            assert bool(placed & part.movz) == bool(part.movz and x >= 0)
            assert placed & ~part.mask == word & ~part.mask


def test_slices_of_a_part_never_overlap(arch: archs.Arch) -> None:
    """No bit of a word and no bit of X is claimed twice within a part, and all fit in it."""
    for row in arch.link.relocations.values():
        for part in row.parts:
            claimed = part.mask & ~part.zeros & ~part.movz
            assert claimed.bit_count() == sum(s.bits for s in part.slices), row.name
            bits = [s.x + k for s in part.slices for k in range(s.bits)]
            assert len(set(bits)) == len(bits), row.name
            assert part.mask < 1 << 8 * part.size, row.name


def test_reach_reads_as_the_interval_it_is() -> None:
    """A reach contains its lower end, not its upper, only multiples, and prints half-open."""
    reach = Reach(-0x100, 0x100, 4)
    assert -0x100 in reach
    assert 0xFC in reach
    assert 0x100 not in reach
    assert 2 not in reach
    assert str(reach) == "[-0x100, 0x100)"


def edge(text: str) -> int:
    """Return the number that an edge in units says."""
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    terms = re.findall(r"([+-])(\d+) (\w+)", text)
    assert text == "0" or "".join(f"{s}{n} {u}" for s, n, u in terms) == text
    return sum(int(s + n) * units[u] for s, n, u in terms)


def test_a_reach_in_units_says_the_same_numbers(arch: archs.Arch) -> None:
    """What people read (powers of two and what is left) adds up to the interval's ends."""
    reaches = {row.reach for row in arch.link.relocations.values()} - {None}
    for reach in reaches | {branch.reach for branch in arch.link.branches}:
        text = reach.text()
        symmetric = text.startswith("+-")
        low, high = ("-" + text[2:], "+" + text[2:]) if symmetric else text.split("..")
        if max(reach.hi, -reach.lo) < 1 << 40:  # size_text rounds what has no larger unit
            assert (edge(low), edge(high)) == (reach.lo, reach.hi), text


def test_a_number_may_stand_once() -> None:
    """A table with a number twice is refused when it is built."""
    row = Reloc(1, "R_ONE", Op.ABS, (Part(1, (Slice(0, 8, 0),)),))
    assert rows(row) == {1: row}
    with pytest.raises(ValueError, match="occurs twice"):
        rows(row, Reloc(1, "R_OTHER", Op.NONE))


@pytest.mark.parametrize("checks", Checks)
def test_types_of_one_form_are_stored_alike(arch: archs.Arch, checks: Checks) -> None:
    """Types have the same form exactly if their words, their reach and whose X they take are."""
    forms = arch.link.relocations.forms[checks]
    for one in arch.link.relocations.values():
        for other in arch.link.relocations.values():
            reaches = (
                (one.reach, other.reach)
                if checks is Checks.HARDWARE
                else (one.kernel_reach, other.kernel_reach)
            )
            alike = one.parts == other.parts and reaches[0] == reaches[1]
            alike &= (one.op is Op.PAIR) == (other.op is Op.PAIR)
            assert (forms[one.number] == forms[other.number]) == alike


@given(data=st.data())
def test_the_halves_of_a_part_are_the_part(data: st.DataObject, arch: archs.Arch) -> None:
    """A word stored by its halves is the word, with every bit outside the part as it was."""
    parts = [part for row in arch.link.relocations.values() for part in row.parts if part.halves]
    part = data.draw(st.sampled_from(parts))
    word = data.draw(st.integers(0, (1 << 32) - 1))
    x = data.draw(st.integers(-(1 << 63), (1 << 63) - 1))
    halves = {0: word & 0xFFFF, 2: word >> 16}
    for half in part.halves:
        at = half.offset - part.offset
        halves[at] = half.insert(halves[at], x)
    assert halves[0] | halves[2] << 16 == part.insert(word, x)
