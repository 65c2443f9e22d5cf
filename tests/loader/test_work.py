# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocations in pieces, and symbol values by either way, against loops over the file."""

from __future__ import annotations

import numpy as np
import pytest

import archs
from execmem.check import elfwriter as elf
from execmem.check.elfwriter import LOCAL, WEAK, A, Rela, Sec, Sym, W, X, write
from loader import link as link_module
from loader import work
from loader.elf import parse
from loader.errors import RelocationError
from loader.layout import plan
from loader.link import link, link_view
from samples.modules import names, path
from tests.archs.facts import facts
from tests.support.addresses import place, resolve
from tests.support.psabi import Table, World, check

HIGHEST = (1 << 64) - 1
NO_TABLE = Table(0, {})


def worlds(arch: archs.Arch) -> list[World]:
    """Return the sample modules, placed, with names to link against."""
    views = [parse(path(arch.name, name).read_bytes(), name) for name in names()]
    base = facts(arch).link.base
    return [
        World(view, place(plan(view), base), resolve(view, base + (1 << 20)), 0x4000)
        for view in views
    ]


@pytest.mark.parametrize(("alone", "piece"), [(1, 1), (1, 7), (5, 3), (9, 1 << 15), (1 << 15, 4)])
def test_pieces_of_any_size_give_the_models_bytes(
    arch: archs.Arch, monkeypatch: pytest.MonkeyPatch, alone: int, piece: int
) -> None:
    """However tables are cut or put together, each record is applied once and finds its partners."""
    monkeypatch.setattr(work, "ALONE", alone)
    monkeypatch.setattr(work, "PIECE", piece)
    monkeypatch.setattr(link_module, "_link_thoroughly", None)
    for world in worlds(arch):
        view, addresses = world.view, world.addresses
        linked = link_view(view, plan(view), addresses, world.symbols, percpu=world.percpu)
        assert check(world, linked.sections, NO_TABLE) == linked.records.type.size > 0


def test_what_a_cut_would_part_stays_together_or_is_linked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sums at one place, and LO12s that share a HI20, near or far, come out right in any pieces."""
    monkeypatch.setattr(work, "ALONE", 1)
    high, low, add, sub = 23, 24, 35, 39
    code = b"".join(word.to_bytes(4, "little") for word in (0x517, 0x50513, 0x50513, 0x50513))
    text = [Rela(0, high, "far"), *(Rela(at, low, "label") for at in (4, 8, 12))]
    sums = [Rela(at, kind, "far", at) for at in (0, 4, 8) for kind in (add, sub, add)]
    for relas in (sums, [*sums[1:], sums[0]]):
        sections = [
            Sec(".text", code, A | X, relas=text),
            Sec(".data", b"\xff" * 12, A | W, relas=relas),
        ]
        image = write(243, sections, [Sym("label", ".text", 0, bind=LOCAL), Sym("far")])
        (data,) = (one.index for one in parse(image).sections if one.name == ".data")
        for piece in (1, 2, 3, 5, 1 << 15):
            monkeypatch.setattr(work, "PIECE", piece)
            found = link(image, {1: 0x1000, data: 0x2000}, {"far": 0x12345})
            words = np.frombuffer(found[1], "<u4") >> 12
            assert words.tolist() == [0x11, 0x34550, 0x34550, 0x34550]
            totals = np.frombuffer(found[data], "<u4").tolist()
            assert totals == [0x12345, 0x12349, 0x1234D]


def test_what_links_plainly_links_the_same_with_everything_looked_at(
    arch: archs.Arch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that serves PLT entries, GOT slots and errors gives the model's bytes too."""
    monkeypatch.setattr(link_module, "_link_plainly", lambda *_: False)
    for world in worlds(arch):
        view, addresses = world.view, world.addresses
        linked = link_view(view, plan(view), addresses, world.symbols, percpu=world.percpu)
        assert check(world, linked.sections, NO_TABLE) == linked.records.type.size


@pytest.mark.parametrize("all_at_once", [False, True])
def test_values_of_symbols_are_those_of_a_loop(
    arch: archs.Arch, monkeypatch: pytest.MonkeyPatch, all_at_once: bool
) -> None:
    """Both ways to look up values know the same symbols, and mark the rest."""
    sections = [Sec(".data", bytes(16), A | W), Sec(".comment", b"text"), Sec(".rodata", b"", A)]
    symbols = [
        Sym("local", ".data", 8, bind=LOCAL),
        Sym("lost", ".comment", 4, bind=LOCAL),
        Sym("number", elf.ABS, 0x1234_5678_9ABC_DEF0, bind=LOCAL),
        Sym("given"),
        Sym("weak", bind=WEAK),
        Sym("missing"),
        Sym("global", ".rodata", 0),
        Sym("other", ".comment", 4),
        Sym("constant", elf.ABS, 7),
    ]
    view = parse(write(arch.machine, sections, symbols))
    addresses = {1: HIGHEST - 0xFFF, 3: 0x5000}
    values = work.SymbolValues.of_module(view, addresses, {"given": 0x1_0000_0000_0000_0123}, None)
    monkeypatch.setattr(work.SymbolValues, "_worth_all", all_at_once)
    found = dict.fromkeys(["lost", "missing", "other"], work.NO_VALUE) | {
        "": 0,
        "local": HIGHEST - 0xFF7,
        "number": 0x1234_5678_9ABC_DEF0,
        "given": 0x123,  # addresses wrap
        "weak": 0,
        "global": 0x5000,
        "constant": 7,
    }
    wanted = [found[view.symbol_name(index)] for index in range(view.symbols.size)]
    for order in (np.arange(view.symbols.size), np.arange(view.symbols.size)[::-1]):
        got = values.of(order.astype(np.uint32)).tolist()
        assert got == [wanted[index] for index in order.tolist()]
    every, known = values.all
    assert known.tolist() == [value != work.NO_VALUE for value in wanted]
    assert every[known].tolist() == [value for value in wanted if value != work.NO_VALUE]


def test_the_highest_address_is_a_value_like_any_other(arch: archs.Arch) -> None:
    """A symbol whose value is the mark for none links; one without a value is still refused."""
    relas = [Rela(0, facts(arch).link.abs64, "top"), Rela(8, facts(arch).link.abs64, "far", 1)]
    sections = [Sec(".data", bytes(16), A | W, relas=relas), Sec(".comment", b"text")]
    image = write(arch.machine, sections, [Sym("top", elf.ABS, HIGHEST), Sym("far")])
    assert link(image, {1: 0x1000}, {"far": HIGHEST}) == {1: b"\xff" * 8 + bytes(8)}
    image = write(arch.machine, sections, [Sym("top", elf.ABS, HIGHEST), Sym("far", ".comment")])
    with pytest.raises(RelocationError, match="lies in a section that is not loaded") as caught:
        link(image, {1: 0x1000}, {})
    assert [failure.symbol for failure in caught.value.failures] == ["far"]


def test_an_offset_that_wraps_is_outside(arch: archs.Arch) -> None:
    """A place before its section, as a sum that wraps would make it, is refused."""
    for offset in (HIGHEST, HIGHEST - 7, HIGHEST - 15, 9, 16, 1 << 40):
        relas = [Rela(offset, facts(arch).link.abs64, "x")]
        sections = [Sec(".rodata", bytes(64), A), Sec(".data", bytes(16), A | W, relas=relas)]
        image = write(arch.machine, sections, [Sym("x")])
        with pytest.raises(RelocationError, match="lies outside its section"):
            link(image, {1: 0x1000, 2: 0x2000}, {"x": 0})
