# SPDX-License-Identifier: GPL-2.0-or-later
"""The global offset table: who gets a slot, what it holds, and that code reaches it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from archs.op import Got
from execmem.check.elfwriter import (
    AARCH64,
    LOCAL,
    NOBITS,
    A,
    Rela,
    Sec,
    Sym,
    W,
    X,
    write,
)
from loader.elf import parse
from loader.errors import RelocationError
from loader.layout import plan, with_stub_sections
from loader.link import link, link_view
from loader.linked import Linked
from tests.archs.facts import Through, cases, facts
from tests.archs.test_registry import disassembler
from tests.support.addresses import place
from tests.support.psabi import Table, World, check, slots_of
from tests.support.scalar import MASK64

BASE = 0xFFFF_FFFF_C020_0000
SYMBOLS = {"near": BASE + 0x4_0000, "far": BASE + 0x2345_6780, "twin": BASE + 0x2345_6780}
GOT_ROWS = [
    pytest.param(arch, row, id=row.name)
    for arch in archs.ALL
    for row in arch.link.relocations.values()
    if row.got is not None
]


def one_section(
    machine: int, size: int, relas: list[Rela], *, got: Sec | None = None, code: bytes = b""
) -> bytes:
    """Return an object with these records, and perhaps a `.got` of its own."""
    data = code.ljust(size, b"\0")
    sections = [Sec(".text", data, A | X, align=16, relas=relas)]
    sections += [got] if got is not None else []
    return write(machine, sections, [Sym("here", ".text", 0, bind=LOCAL), *map(Sym, SYMBOLS)])


def through_relas(arch: archs.Arch, through: Through) -> list[Rela]:
    """Return the relocations of code that loads the slot of `far`."""
    low = facts(arch).link.paired
    return [Rela(o, n, "here" if n in low else "far", a) for o, n, a in through.records]


def linked_with_stubs(image: bytes) -> tuple[World, Linked, Table]:
    """Return the object linked with a GOT at made-up addresses."""
    view = with_stub_sections(parse(image, "got.ko"))
    layout = plan(view)
    addresses = place(layout, BASE)
    (index,) = (section.index for section in view.sections if section.name == ".got")
    addresses[index] += 0x7C0  # not where a page starts
    linked = link_view(view, layout, addresses, SYMBOLS)
    table = slots_of(addresses[index], bytes(linked.sections[index]))
    return World(view, addresses, SYMBOLS), linked, table


@pytest.mark.parametrize(("arch", "row"), GOT_ROWS)
def test_each_row_gives_what_the_psabi_says(arch: archs.Arch, row: archs.Reloc) -> None:
    """With several symbols and addends every record of a type follows its formula."""
    pairs = [("far", 0), ("near", 0), ("far", 0), ("here", 8), ("twin", 0), ("far", 16)]
    relas = [Rela(16 * n, row.number, s, a) for n, (s, a) in enumerate(pairs)]
    world, linked, table = linked_with_stubs(one_section(arch.machine, 96, relas))
    assert check(world, linked.sections, table) == len(pairs)
    assert linked.stubs.got is not None
    # Slots are found again by what they hold: S alone, or S+A.
    holds = {"far": SYMBOLS["far"], "near": SYMBOLS["near"], "twin": SYMBOLS["twin"]}
    holds["here"] = world.addresses[1]
    whole = row.got in (Got.SLOT_SUM, Got.OFFSET_SUM, Got.PAGE_OFFSET_SUM)
    wanted = (
        {holds[s] + (a if whole else 0) for s, a in pairs}
        if row.got not in (Got.BASE, Got.RELATIVE)
        else set()
    )
    assert set(table.slots) == wanted
    assert linked.stubs.got.used == len(wanted) <= linked.stubs.got.reserved


@pytest.mark.parametrize(("arch", "row"), GOT_ROWS)
def test_without_a_got_the_row_is_refused(arch: archs.Arch, row: archs.Reloc) -> None:
    """An object without `.got` cannot have such a record, and the message says what is missing."""
    image = one_section(arch.machine, 16, [Rela(0, row.number, "far")])
    wanted = (
        f".text+0x0: {row.name} against 'far' needs a slot of the global offset table, "
        "and the module has no .got section"
    )
    with pytest.raises(RelocationError, match=re.escape(wanted)):
        link(image, {1: BASE}, SYMBOLS)
    view = with_stub_sections(parse(image))
    assert set(link(image, place(plan(view), BASE), SYMBOLS, stubs=True)) >= {1}


def test_a_got_of_the_objects_own_is_used(arch: archs.Arch) -> None:
    """A `.got` that the file has is made as large as it must be, whatever stood in it."""
    if arch.got_section is None:
        pytest.skip(f"{arch.name} has no global offset table")
    through = facts(arch).link.got_loads[0]
    relas, code = through_relas(arch, through), bytes.fromhex(through.code)
    for own in (
        Sec(".got", b"\xff", A),
        Sec(".got", b"\0" * 64, A | W, align=8),
        Sec(".got", b"", A | W, NOBITS),
    ):
        image = one_section(arch.machine, 16, relas, got=own, code=code)
        view = parse(image)
        layout = plan(view)
        assert layout.got is not None
        assert (layout.got.section, layout.got.slots) == (view.section(".got").index, 1)
        addresses = place(layout, BASE)
        assert addresses[layout.got.section] % 8 == 0
        table = link(image, addresses, SYMBOLS)[layout.got.section]
        assert table[:8] == SYMBOLS["far"].to_bytes(8, "little")
        assert not any(table[8:])


@pytest.mark.parametrize(("arch", "through"), cases("link", "got_loads"))
def test_code_that_goes_through_the_slot_reaches_the_symbol(
    arch: archs.Arch, through: Through
) -> None:
    """A disassembler finds the slot's address in the code, and the slot holds the symbol's."""
    if arch.got_section is None:
        pytest.skip(f"{arch.name} has no global offset table")
    relas, code = through_relas(arch, through), bytes.fromhex(through.code)
    world, linked, table = linked_with_stubs(one_section(arch.machine, 16, relas, code=code))
    text = bytes(linked.sections[1][: len(code)])
    slot = through.slot(list(disassembler(arch).disasm(text, world.addresses[1])))
    assert table.slots == {SYMBOLS["far"]: slot & MASK64}


def test_a_symbol_and_a_sum_need_a_slot_each() -> None:
    """Two types may ask for S and for S+A with the same symbol and addend: that is two slots."""
    relas = [Rela(0, 315, "far", 8), Rela(8, 312, "far", 8), Rela(12, 311, "far", 8)]
    world, linked, table = linked_with_stubs(one_section(AARCH64, 16, relas))
    assert check(world, linked.sections, table) == 3
    assert set(table.slots) == {SYMBOLS["far"], SYMBOLS["far"] + 8}
    assert linked.stubs.got is not None
    assert linked.stubs.got.used == linked.stubs.got.reserved == 2


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_there_are_always_slots_enough(arch: archs.Arch, data: st.DataObject) -> None:
    """Whatever rows, symbols and addends: formulas hold, and no slot is missing or shared wrongly."""
    rows = [row for row in arch.link.relocations.values() if row.got is not None]
    if not rows:
        pytest.skip(f"{arch.name} has no global offset table")
    drawn = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(rows),
                st.sampled_from(["here", *SYMBOLS]),
                st.sampled_from((0, 0, 8, -16)),
            ),
            max_size=16,
        )
    )
    relas = [Rela(16 * n, row.number, s, a) for n, (row, s, a) in enumerate(drawn)]
    world, linked, table = linked_with_stubs(one_section(arch.machine, 16 * len(drawn) + 16, relas))
    assert check(world, linked.sections, table) == len(drawn)
    got = linked.stubs.got
    assert got is not None
    assert got.used == len(table.slots) <= got.reserved
    assert len(set(table.slots.values())) == got.used
