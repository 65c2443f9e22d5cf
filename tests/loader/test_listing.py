# SPDX-License-Identifier: GPL-2.0-or-later
"""The story of each relocation agrees with the psABI's model, the bytes, and plain loops."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import islice

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import archs
from archs.op import Got, Op, signed
from archs.reloc import Reloc, data
from execmem.check import elfwriter as elf
from execmem.check.elfwriter import LOCAL, A, Rela, Sec, Sym, write
from loader.elf import parse
from loader.elfview import ElfView
from loader.layout import plan
from loader.link import link_view
from loader.listing import Listing, decode, insert
from machine.face import Machine
from samples import modules
from tests.archs.facts import facts, needs
from tests.support import scalar
from tests.support.addresses import place, resolve
from tests.support.modules import module

U64 = st.integers(0, (1 << 64) - 1)


def listed(image: bytes, symbols: dict[str, int] | None = None) -> Listing:
    """Return the listing of an image linked at a usual place."""
    view = parse(image)
    layout = plan(view)
    addresses = place(layout, facts(view.arch).link.base)
    found = resolve(view, facts(view.arch).link.kernel) if symbols is None else symbols
    return Listing(view, link_view(view, layout, addresses, found), addresses)


def samples(arch: archs.Arch) -> list[Listing]:
    """Return the listings of all sample modules."""
    needs(arch, "load")  # sample modules are there for it
    return [listed(modules.path(arch.name, name).read_bytes()) for name in modules.names()]


def records_of(listing: Listing, table: object) -> list[scalar.Record]:
    """Return a table's records for the scalar model, at offsets in their section."""
    start = listing.addresses[table.target.index]
    return [
        scalar.Record(
            offset=int(r["offset"]),
            place=start + int(r["offset"]),
            value=int(listing.linked.symbols[r["symbol"]]),
            addend=signed(int(r["addend"])),
            type=int(r["type"]),
        )
        for r in table.records
    ]


def test_numbers_are_those_of_the_scalar_model(arch):
    """Place, S, A and X of every sample relocation are what the psABI's model computes."""
    machine, seen = arch.machine, 0
    for listing in samples(arch):
        told = iter(listing.select())
        for table in listing.tables:
            sums: dict[int, int] = {}
            records = records_of(listing, table)
            for record, one in zip(records, told, strict=False):
                assert (one.section, one.offset) == (table.target, record.offset)
                assert (one.place, one.value, one.addend) == (
                    record.place, record.value, record.addend,
                )  # fmt: skip
                if record.type in facts(machine).link.nothing:
                    assert one.x is None
                elif scalar.accumulates(machine, record.type):
                    sign = 1 if record.type in facts(arch).link.added else -1
                    here = sums.get(record.offset, 0)
                    assert one.letters["V"] == scalar.signed(here)
                    sums[record.offset] = here + sign * (record.value + record.addend)
                    assert one.x == scalar.signed(sums[record.offset])
                elif scalar.is_pair(machine, record.type):
                    high = next(r for r in records if r.place == record.value and r.type == 23)
                    assert one.x == scalar.value_of(machine, high)
                else:
                    assert one.x == scalar.value_of(machine, record)
                seen += 1
        assert next(told, None) is None
    assert seen > 100


def test_bytes_before_and_after_are_those_of_the_scalar_model(arch):
    """Before is what the file holds, after what the psABI's model makes of it."""
    for listing in samples(arch):
        told = iter(listing.select())
        for table in listing.tables:
            before = bytes(listing.view.contents(table.target))
            after = bytearray(before)
            records = records_of(listing, table)
            scalar.apply(arch.machine, after, records)
            for record, one in zip(records, told, strict=False):
                nothing = record.type in facts(arch).link.nothing
                size = 0 if nothing else facts(arch).link.rules[record.type].size
                span = slice(record.offset, record.offset + size)
                assert one.before == before[span]
                assert one.after == bytes(after[span])
                assert one.via is None


def test_the_containing_function_is_the_one_around_the_place(arch):
    """Every place in a function is named after it, with the distance from its start."""
    named = 0
    for listing in samples(arch):
        symbols = listing.view.symbols
        for one in listing.select():
            around = [
                n
                for n, s in enumerate(symbols.tolist())
                if s[1] & 0xF == elf.FUNC
                and s[3] == one.section.index
                and s[4] <= one.offset < s[4] + s[5]
            ]
            if not around:
                assert (one.containing, one.function) == ("", None)
                continue
            names = {
                f"{listing.view.symbol_name(n)}+{one.offset - int(symbols['value'][n]):#x}"
                for n in around
            }
            assert one.containing in names
            assert one.offset in one.function
            named += 1
    assert named > 20


def test_a_branch_through_the_plt_names_its_entry(arch):
    """A call out of reach shows the entry that it goes to, and the entry leads to S+A."""
    if arch.plt is None:
        pytest.skip(f"{arch.name} has no PLT")
    reach = next(b.reach for b in arch.link.branches if b.what == "call")
    tables = [".got", arch.plt.got_section] if arch.plt.got_section else []
    missing = [] if facts(arch).link.placeholders else [Sec(".plt", b"\0", A | elf.X)]
    missing += [Sec(name, b"\0", A) for name in tables]
    image = module(arch.machine, undefined=("_printk", "kfree"), extra=missing)
    near = facts(arch).link.base
    listing = listed(image, {"_printk": near + 2 * reach.hi, "kfree": near})
    (reached,) = listing.select(symbol="kfree")
    assert reached.via is None
    (call,) = listing.select(symbol="_printk")
    assert call.x not in call.row.reach
    plt = listing.view.section(arch.plt.section).index
    assert call.via is not None
    assert (call.via.section, call.via.address) == (arch.plt.section, listing.addresses[plt])
    assert str(call.via) == f"{arch.plt.section}+0x0"
    leads = call.target
    if arch.plt.got_section:
        table = listing.view.section(arch.plt.got_section).index
        assert bytes(listing.linked.sections[table])[:8] == leads.to_bytes(8, "little")
        leads = listing.addresses[table]
    entry = bytes(listing.linked.sections[plt])[: arch.plt.size]
    assert entry == arch.plt.encode(call.via.address, leads)


def test_every_row_that_goes_through_the_got_tells_what_was_linked(arch):
    """With the numbers told, a GOT row gives the linked bytes; its slot holds S or S+A."""
    needs(arch, "load")
    rows = [
        row
        for row in arch.link.relocations.values()
        if row.got is not None and row.parts and not row.unsupported
    ]
    if arch.got_section is None:
        pytest.skip(f"{arch.name} has no global offset table")
    assert rows
    for row in rows:
        relas = [Rela(0, row.number, "far")]
        sections = [
            Sec(".text", bytes(16), A | elf.X, align=16, relas=relas),
            Sec(arch.got_section, b"\0", A),
        ]
        listing = listed(
            write(arch.machine, sections, [Sym("far")]), {"far": facts(arch).link.kernel}
        )
        (one,) = listing.select()
        assert one.x is not None, row.name
        assert insert(row, one.before, one.x) == one.after, row.name
        if row.got in (Got.BASE, Got.RELATIVE):
            assert one.via is None
        else:
            assert one.via.section == arch.got_section
            index = listing.view.section(arch.got_section).index
            word = bytes(listing.linked.sections[index])[one.via.offset :][:8]
            assert int.from_bytes(word, "little") == one.target


OTHER, ADDEND = 0x1234, 8
GOT_FORMULAS = {  # slot of S, slot of S+A, start of the table, S -> what stands for S+A
    Got.SLOT: lambda g, _ga, _got, _s: g + ADDEND,
    Got.SLOT_SUM: lambda _g, ga, _got, _s: ga,
    Got.OFFSET: lambda g, _ga, got, _s: g - got + ADDEND,
    Got.OFFSET_SUM: lambda _g, ga, got, _s: ga - got,
    Got.PAGE_OFFSET_SUM: lambda _g, ga, got, _s: ga - got // 4096 * 4096,
    Got.BASE: lambda _g, _ga, got, _s: got + ADDEND,
    Got.RELATIVE: lambda _g, _ga, got, s: s - got + ADDEND,
}


@pytest.mark.parametrize("kind", Got)
@pytest.mark.parametrize("op", [Op.ABS, Op.PC])
def test_a_row_that_goes_through_the_got_names_its_slot(arch, kind, op):
    """X counts from the slot that holds the symbol's value, and the slot is named."""
    needs(arch, "load")
    if arch.got_section is None:
        pytest.skip(f"{arch.name} has no global offset table")
    row = Reloc(1, "R_TEST", op, data(8), got=kind)
    rela = Rela(0, 0, "here", ADDEND)
    sections = [
        Sec(".data", bytes(16), A | elf.W, align=8, relas=[rela]),
        Sec(arch.got_section, bytes(24), A | elf.W, align=8),
    ]
    clean = listed(write(arch.machine, sections, [Sym("here", ".data", bind=LOCAL)]))
    place = clean.addresses[1]
    got_index = clean.view.section(arch.got_section).index
    got = clean.addresses[got_index]
    words = np.array([OTHER, place, place + ADDEND], "<u8")
    linked = attrs.evolve(
        clean.linked,
        sections={**clean.linked.sections, got_index: memoryview(words.tobytes())},
    )
    table = clean.view.tables[0]
    records = table.records.copy()
    records["type"] = 1
    view = attrs.evolve(
        clean.view,
        arch=attrs.evolve(arch, link=attrs.evolve(arch.link, relocations={1: row})),
        tables=(table._replace(records=records),),
    )
    (one,) = Listing(view, linked, clean.addresses).select()
    expected = GOT_FORMULAS[kind](got + 8, got + 16, got, place)
    assert one.x == signed(expected - (place if op is Op.PC else 0))
    if kind in (Got.BASE, Got.RELATIVE):
        assert one.via is None
    else:
        assert str(one.via) == f".got+{16 if kind.name.endswith('SUM') else 8:#x}"
    without = attrs.evolve(linked, sections=clean.linked.sections)
    (lost,) = Listing(view, without, clean.addresses).select()
    assert (lost.x is None) is (one.via is not None)


@pytest.mark.parametrize("column", ["section", "kind", "symbol"])
@pytest.mark.parametrize("pattern", ["*", ".text", ".[di]*", "*32*", "*_[abp]*", "init_module", ""])
def test_filters_select_what_a_loop_selects(arch, column, pattern):
    """A shell pattern keeps exactly the relocations whose field it matches, in file order."""
    field = {"kind": "type"}.get(column, column)
    for listing in samples(arch)[:4]:
        everything = list(listing.select())
        prefix = facts(arch).link.prefix

        def keep(one: object, prefix: str = prefix) -> bool:
            value = one.section.name if field == "section" else getattr(one, field)
            if field != "type":
                return fnmatchcase(value, pattern)
            wanted = pattern.upper()
            return fnmatchcase(value, wanted) or fnmatchcase(value.removeprefix(prefix), wanted)

        wanted = [one.place for one in everything if keep(one)]
        found = listing.select(**{column: pattern})
        assert [one.place for one in found] == wanted
        assert len(found) == len(wanted)
        assert sum(found.counts.values()) == len(wanted)


def test_filters_add_up(arch):
    """Several filters keep what passes each of them."""
    for listing in samples(arch):
        names = {one.symbol for one in listing.select(section=".text")}
        for symbol in names:
            both = listing.select(section=".text", symbol=symbol)
            assert {(o.section.name, o.symbol) for o in both} == {(".text", symbol)}
        assert listing.select().counts == listing.linked.counts


def test_a_record_is_made_when_it_is_asked_for(arch, monkeypatch):
    """Taking the first relocations of a module resolves no other symbol's name."""
    needs(arch, "load")  # sample modules are there for it
    listing = listed(modules.path(arch.name, "logbook").read_bytes())
    asked = []
    name = ElfView.symbol_name
    monkeypatch.setattr(ElfView, "symbol_name", lambda view, i: asked.append(i) or name(view, i))
    assert len(listing.select()) > 20
    assert not asked
    assert len(list(islice(listing.select(), 3))) == 3
    assert len(asked) <= 6  # a symbol and a function each


def refused(arch: archs.Arch, number: int) -> object:
    """Return the one relocation of a module, its type replaced after linking."""
    data = Sec(".data", bytes(16), A | elf.W, align=8, relas=[Rela(0, 0, "here")])
    image = write(arch.machine, [data], [Sym("here", ".data", bind=LOCAL)])
    clean = listed(image)
    records = clean.view.tables[0].records.copy()
    records["type"] = number
    table = clean.view.tables[0]._replace(records=records)
    damaged = Listing(attrs.evolve(clean.view, tables=(table,)), clean.linked, clean.addresses)
    (one,) = damaged.select()
    return one


def test_unsupported_types_stand_in_the_listing_with_their_reason(arch):
    """A type that the loader refuses is told by name and reason, without a value."""
    rows = [row for row in arch.link.relocations.values() if row.unsupported]
    assert rows
    for row in rows:
        one = refused(arch, row.number)
        assert (one.type, one.reason, one.x, one.via) == (row.name, row.unsupported, None, None)
        assert one.after == one.before
    unknown = refused(arch, max(arch.link.relocations) + 1)
    assert unknown.type == f"type {max(arch.link.relocations) + 1}"
    assert unknown.reason == "unknown relocation type"
    assert (unknown.x, unknown.computation, unknown.formula) == (None, "", "")


FORMULAS = {
    "S+A": lambda s, a, _p, _v: s + a,
    "S+A-P": lambda s, a, p, _v: s + a - p,
    "Page(S+A)-Page(P)": lambda s, a, p, _v: ((s + a) // 4096 - p // 4096) * 4096,
    "V+S+A": lambda s, a, _p, v: v + s + a,
    "V-S-A": lambda s, a, _p, v: v - s - a,
}


@given(st.sampled_from((Op.ABS, Op.PC, Op.PAGE, Op.ADD, Op.SUB)), U64, U64, U64, U64)
def test_an_operation_gives_what_its_formula_says(op, s, a, p, v):
    """Operations give what the arithmetic that their formula reads as gives, modulo 2^64."""
    found = op.evaluate({"S": s, "A": signed(a), "P": p, "V": v})
    assert found is not None
    assert -(1 << 63) <= found < 1 << 63
    assert (found - FORMULAS[op.formula](s, signed(a), p, v)) % (1 << 64) == 0


def test_the_printed_computation_is_the_result(arch):
    """The formula with its numbers, read as arithmetic, is X."""
    seen = 0
    for listing in samples(arch):
        for one in listing.select():
            if one.computation:
                result = eval(one.computation, {"Page": lambda x: x // 4096 * 4096})
                assert (result - one.x) % (1 << 64) == 0
                seen += 1
    assert seen > 50


def test_what_is_no_sum_has_no_result():
    """What is no sum of letters, or has a letter without a value, has no result."""
    assert Op.PAIR.evaluate({"S": 1, "X": 1, "P": 1}) is None
    assert Op.NONE.evaluate({"S": 1}) is None
    assert Op.PC.evaluate({"A": 1, "P": 1}) is None


@given(st.data())
def test_decoding_inverts_inserting(draws):
    """What a PC-relative field was filled with is read back from it, for every X in reach."""
    arch = draws.draw(st.sampled_from(archs.ALL))
    rows = [
        row
        for row in arch.link.relocations.values()
        if row.op is Op.PC
        and row.reach is not None
        and not row.high
        and not row.got
        # A signed MOVW holds the sign in its opcode; an upper half has not the lower bits.
        and not any(part.movz for part in row.parts)
        and row.number not in facts(arch).link.upper
    ]
    row = draws.draw(st.sampled_from(rows))
    reach = row.reach
    x = draws.draw(st.integers(reach.lo // reach.align, (reach.hi - 1) // reach.align))
    code = draws.draw(st.binary(min_size=row.size, max_size=row.size))
    assert decode(row, insert(row, code, x * reach.align)) == x * reach.align


def test_sections_that_are_not_loaded_are_left_out(arch):
    """A table that applies to a section outside the module is left out."""
    sections = [
        Sec(".data", bytes(8), A | elf.W, align=8, relas=[Rela(0, 0, "here")]),
        Sec(".debug", bytes(8), 0, relas=[Rela(0, 0, "here")]),
    ]
    listing = listed(write(arch.machine, sections, [Sym("here", ".data", bind=LOCAL)]))
    assert [one.section.name for one in listing.select()] == [".data"]
    assert np.sum([t.records.size for t in listing.view.tables]) == 2


def test_a_uleb128_number_keeps_its_length(arch):
    """A field without a fixed size is as long as its continuation bits say."""
    rows = {
        row.op: row for row in arch.link.relocations.values() if row.uleb and not row.unsupported
    }
    if not rows:
        pytest.skip(f"{arch.name} has no ULEB128 relocations")
    relas = [Rela(4, rows[Op.SET].number, "end"), Rela(4, rows[Op.SUB].number, "start")]
    field = bytes.fromhex("808000")
    sections = [Sec(".data", bytes(4) + field + bytes(793), A | elf.W, relas=relas)]
    names = [Sym("start", ".data", 0, bind=LOCAL), Sym("end", ".data", 800, bind=LOCAL)]
    first, last = listed(write(arch.machine, sections, names)).select()
    assert first.before == last.before == field
    assert (first.x, last.x) == (signed(first.value), 800)
    assert last.letters["V"] == signed(first.value)
    # 800 is 6 * 128 + 32, and the last byte is kept although it adds nothing.
    assert last.after == bytes((0x80 | 32, 0x80 | 6, 0))


def test_a_module_is_listed_as_relocated_not_as_finalised(arch):
    """What finalisation edits afterwards (tracer sites, thunks) does not show as a relocation."""
    needs(arch, "finalise")
    machine = Machine(arch, root=modules.root(arch.name))
    module = machine.load("patchable", init=False).loaded
    listing = Listing.of(module)
    symbols = {
        name: int(module.linked.symbols[index])
        for index, name in zip(
            module.view.undefined_indices.tolist(), module.view.undefined_names, strict=True
        )
    }
    pure = link_view(module.view, module.layout, listing.addresses, symbols)
    told = {(r.section.index, r.offset): r.after for r in listing.select()}
    assert told
    for (section, offset), after in told.items():
        assert bytes(pure.sections[section][offset : offset + len(after)]) == after
    assert any(
        bytes(pure.sections[s]) != bytes(module.linked.sections[s]) for s in pure.sections
    ), "the sample has nothing to finalise"
