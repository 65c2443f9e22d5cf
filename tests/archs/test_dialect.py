# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of every dialect are read as pyelftools reads them, and come out in one form."""

from __future__ import annotations

import io
import itertools

import attrs
import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

import archs
from archs.dialect import NATIVE, RELA, SYMBOL, Dialect, Info
from archs.levels.link import Link, rows
from archs.op import Op
from archs.reloc import Part, Reloc, Slice, data
from execmem.check.elfwriter import ABS, LOCAL, A, Form, Rela, Sec, Sym, W, X, write
from loader.elf import parse
from loader.elfview import ElfView
from loader.errors import BadModule
from tests.archs.toy import TOY

PPC, MIPS = 20, 8  # pyelftools unpacks r_info by the machine
DIALECTS = [
    Dialect(bits=bits, order=order, addends_in_place=rel)
    for bits, order, rel in itertools.product((64, 32), ("little", "big"), (False, True))
] + [Dialect(order=order, info=Info.MIPS64) for order in ("little", "big")]
EACH = pytest.mark.parametrize(
    "dialect", DIALECTS, ids=lambda d: f"{d}{' REL' * d.addends_in_place} {d.info.name}"
)


def form(dialect: Dialect) -> Form:
    """Return the dialect as the writer knows it."""
    return Form(
        bits=dialect.bits,
        order=dialect.order,
        rel=dialect.addends_in_place,
        mips64=dialect.info is Info.MIPS64,
    )


def machine(dialect: Dialect) -> int:
    """Return an e_machine that the dialect may be of."""
    return MIPS if dialect.info is Info.MIPS64 else PPC


def plain(dialect: Dialect) -> archs.Arch:
    """Return an architecture that has one relocation, an address."""
    row = Reloc(1, "R_ADDRESS", Op.ABS, data(dialect.word, dialect.order))
    link = Link(relocations=rows(row), clean_target=False, dialect=dialect)
    return archs.Arch(name="plain", title="Plain", machine=machine(dialect), link=link)


def image(dialect: Dialect, kind: int = 1) -> bytes:
    """Return an object with two tables, several symbols, and addends of both signs."""
    addends = [0, 0] if dialect.addends_in_place else [-8, 0x7FFF_FFF0]
    held = b"".join(
        (value & (1 << dialect.bits) - 1).to_bytes(dialect.word, dialect.order)
        for value in (-8, 0x7FFF_FFF0)
    )
    relas = [
        Rela(n * dialect.word, kind, s, a) for n, s, a in zip((0, 1), "xy", addends, strict=True)
    ]
    sections = [
        Sec(".data", held, A | W, align=8, relas=relas),
        Sec(".text", bytes(16), A | X, align=16, relas=[Rela(8, kind, "local")]),
    ]
    symbols = [
        Sym("local", ".text", 4, 8, bind=LOCAL),
        Sym("x"),
        Sym("y", ABS, 0x1234_5678),
    ]
    return write(machine(dialect), sections, symbols, form(dialect))


def read(monkeypatch: pytest.MonkeyPatch, dialect: Dialect, kind: int = 1) -> ElfView:
    """Return the object as it is read where its dialect is known."""
    monkeypatch.setattr(archs, "ALL", (*archs.ALL, plain(dialect)))
    return parse(image(dialect, kind), "plain.o")


@EACH
def test_a_file_is_read_as_pyelftools_reads_it(
    dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sections, symbols and relocations are the same, whoever reads them."""
    view, other = read(monkeypatch, dialect), ELFFile(io.BytesIO(image(dialect)))
    assert (other.elfclass, other.little_endian) == (dialect.bits, dialect.order == "little")
    for mine, theirs in zip(view.sections, other.iter_sections(), strict=True):
        assert (mine.name, mine.flags, mine.offset, mine.size, mine.link, mine.info) == (
            theirs.name,
            *(theirs[f"sh_{field}"] for field in ("flags", "offset", "size", "link", "info")),
        )
        assert mine.align == max(theirs["sh_addralign"], 1)
    table = other.get_section_by_name(".symtab")
    for index, symbol in enumerate(table.iter_symbols()):
        assert view.symbol_name(index) == symbol.name
        assert int(view.symbols["value"][index]) == symbol["st_value"]
        assert int(view.symbols["size"][index]) == symbol["st_size"]
        where = symbol["st_shndx"]
        known = {"SHN_UNDEF": 0, "SHN_ABS": 0xFFF1}
        assert int(view.symbols["shndx"][index]) == known.get(where, where)
    tables = [s for s in other.iter_sections() if isinstance(s, RelocationSection)]
    assert len(view.tables) == len(tables) == 2
    for mine, theirs in zip(view.tables, tables, strict=True):
        for one, known_one in zip(mine.records, theirs.iter_relocations(), strict=True):
            assert one["offset"] == known_one["r_offset"]
            assert one["symbol"] == known_one["r_info_sym"]
            assert one["type"] == known_one["r_info_type"] == 1
            if not dialect.addends_in_place:
                assert one["addend"].astype(np.int64) == known_one["r_addend"]
    addends = view.tables[0].records["addend"].astype(np.int64).tolist()
    assert addends == [-8, 0x7FFF_FFF0]
    assert view.symbols.dtype == SYMBOL
    assert view.joined().dtype == RELA


@EACH
def test_only_files_of_the_native_dialect_are_viewed(
    dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no change is not copied."""
    view = read(monkeypatch, dialect)
    file = np.frombuffer(view.data, np.uint8)
    symbols = (dialect.bits, dialect.order) == (64, "little")
    assert np.shares_memory(view.symbols, file) is symbols
    assert np.shares_memory(view.tables[0].records, file) is (dialect == NATIVE)


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d.info is Info.MIPS64], ids=str)
def test_three_types_in_a_record_are_one_number(
    dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A combination keeps its three types and its special symbol; in a plain record it is its type."""
    combined = 7 | 24 << 8 | 5 << 16
    view = read(monkeypatch, dialect, combined)
    assert view.tables[0].records["type"].tolist() == [combined] * 2
    shown = ELFFile(io.BytesIO(view.data)).get_section_by_name(".rela.data")
    (one, _) = shown.iter_relocations()
    assert (one["r_type"], one["r_type2"], one["r_type3"]) == (7, 24, 5)


def test_errors_name_the_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of ELF's may be several architectures': what is known of it is said."""
    big, little = Dialect(order="big", info=Info.MIPS64), Dialect(info=Info.MIPS64)
    monkeypatch.setattr(archs, "ALL", (*archs.ALL, plain(little)))
    assert parse(image(little)).arch.link.dialect == little
    known = (
        r"ELF64 big-endian MIPS \(machine 8\): known are .*plain \(ELF64 little-endian, machine 8\)"
    )
    with pytest.raises(BadModule, match=known):
        parse(image(big))
    monkeypatch.setattr(archs, "ALL", (plain(little), attrs.evolve(plain(big), name="other")))
    assert [parse(image(d)).arch.name for d in (little, big)] == ["plain", "other"]
    with pytest.raises(BadModule, match="built for other, not for plain"):
        parse(image(big), arch=plain(little))


def test_the_other_kind_of_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dialect has REL or RELA, and the other kind is refused by name."""
    rel = Dialect(bits=32, addends_in_place=True)
    monkeypatch.setattr(archs, "ALL", (plain(attrs.evolve(rel, addends_in_place=False)),))
    with pytest.raises(BadModule, match=r"\.rel\.data\): REL relocations; plain uses RELA"):
        parse(image(rel))


def test_halves_of_words_follow_the_byte_order() -> None:
    """A word at an odd place is stored by halves; of a big-endian word the high one comes first."""
    field = (Slice(2, 26, 0),)
    for order in ("little", "big"):
        part = Part(4, field, zeros=1 << 31, order=order)
        whole = bytearray(part.insert(0, 0x0765_4320).to_bytes(4, order))
        stored = bytearray(4)
        for half in part.halves:
            at = slice(half.offset, half.offset + 2)
            stored[at] = half.insert(0, 0x0765_4320).to_bytes(2, order)
        assert stored == whole


def test_pointers_are_those_of_the_dialect() -> None:
    """What stores an address where data holds one is told by the width of addresses."""
    assert TOY.link.pointers == (1,)
    assert archs.arch("arm64").link.pointers == (257,)


def test_a_combination_that_nobody_knows_is_spelled_out() -> None:
    """Each of the three types has its name, as `readelf -r` shows them, or its number."""
    link = attrs.evolve(TOY.link, dialect=Dialect(order="big", info=Info.MIPS64))
    assert link.type_name(3) == "R_TOY_HI16"
    assert link.type_name(77) == "type 77"
    assert link.type_name(3 << 16 | 77 << 8 | 2) == "type 0x34d02 (R_TOY_26 / type 77 / R_TOY_HI16)"
    assert (
        link.type_name(1 << 24 | 77)
        == "type 0x100004d (type 77 / R_TOY_NONE / R_TOY_NONE, special symbol 1)"
    )
    assert TOY.link.type_name(1 << 24) == "type 16777216"
