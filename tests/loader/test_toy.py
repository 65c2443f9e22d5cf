# SPDX-License-Identifier: GPL-2.0-or-later
"""The toy architecture links, loads and is told about, by its record alone.

What bytes are right says a model of its own below: one relocation at a time, whole numbers, from
the rules in the toy's docstring and the psABI of MIPS for halves of addresses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import attrs
import pytest

import archs
from allocator import DESIGNS, Execmem, KernelMemory, PhysicalMemory
from allocator.types import MIB, MemType
from archs.arch import LevelMissing
from execmem.check.elfwriter import (
    FUNC,
    LOCAL,
    NOBITS,
    OBJECT,
    A,
    Form,
    Rela,
    Sec,
    Sym,
    W,
    X,
    write,
)
from loader.elf import parse
from loader.errors import BadModule, LoadError, RelocationError
from loader.layout import plan, with_stub_sections
from loader.link import extents, link, link_view
from loader.listing import Listing
from loader.module import Loader
from loader.motion import Motion
from loader.symbols import SymbolTable
from tests.archs.toy import LINKS_ONLY, MACHINE, MODULES, TOY
from tests.support.kernel import FakeKernel, FakePercpu

FORM = Form(bits=32, order="big", rel=True)
WORD, JUMP, HIGH, LOW, BRANCH, RELATIVE, SHORT, TLS = range(1, 9)
REGION = 0x1000_0000


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry know the toy."""
    monkeypatch.setattr(archs, "ALL", (*archs.ALL, TOY))


def made(sections: list[Sec], symbols: list[Sym]) -> bytes:
    """Return an object for the toy."""
    return write(MACHINE, sections, symbols, FORM)


def words(*values: int) -> bytes:
    """Return big-endian words."""
    return b"".join((value & 0xFFFF_FFFF).to_bytes(4, "big") for value in values)


# The model -------------------------------------------------------------------------------------


@attrs.frozen
class Wanted:
    """One relocation of a test: type, symbol, addend, and what else the word holds."""

    type: int
    symbol: str
    addend: int
    rest: int


def held(one: Wanted) -> int:
    """Return the word with the addend in its field, as an assembler leaves it."""
    field = {
        WORD: one.addend,
        RELATIVE: one.addend,
        JUMP: one.addend >> 2 & 0x3FF_FFFF,
        BRANCH: one.addend >> 2 & 0xFFFF,
        HIGH: one.addend + 0x8000 >> 16 & 0xFFFF,
        LOW: one.addend & 0xFFFF,
    }[one.type]
    return (field | one.rest) & 0xFFFF_FFFF


def linked(one: Wanted, place: int, symbol: int) -> int:
    """Return the word after linking."""
    target = symbol + one.addend
    if one.type == WORD:
        return target % (1 << 32)
    if one.type == RELATIVE:
        return (target - place) % (1 << 32)
    if one.type == JUMP:
        assert target // REGION == (place + 4) // REGION
        return one.rest | target % REGION // 4
    if one.type == BRANCH:
        return one.rest | (target - place) // 4 % (1 << 16)
    low = (target % (1 << 16) ^ 0x8000) - 0x8000
    return one.rest | (low % (1 << 16) if one.type == LOW else (target - low) // 65536 % (1 << 16))


@pytest.mark.parametrize("count", [40, 9000])  # both ways of the engine
def test_links_as_the_model_does(count: int) -> None:
    """Every word is what the rules say, whatever addend stood in it."""
    chance = random.Random(count)
    text, data = 0xC010_0000, 0xC020_0040
    symbols = {"near": text + 0x40, "far": 0xCFFF_0000, "kernel": 0x8012_3454}
    todo: list[Wanted] = []
    while len(todo) < count:
        kind = chance.choice((WORD, JUMP, HIGH, BRANCH, RELATIVE))
        addend = chance.randrange(-0x4000, 0x4000) * 4
        if kind == JUMP:
            todo.append(Wanted(kind, chance.choice(("near", "far")), addend, 0x0C00_0000))
        elif kind == BRANCH:
            todo.append(Wanted(kind, "near", addend % 0x4000, 0x1000_0000))
        elif kind == HIGH:
            name, addend = chance.choice([*symbols]), chance.randrange(-(1 << 30), 1 << 30)
            # Several high halves may share the low one that follows.
            todo += [Wanted(HIGH, name, addend, 0x3C08_0000)] * chance.choice((1, 1, 2))
            todo.append(Wanted(LOW, name, addend, 0x2508_0000))
        else:
            todo.append(Wanted(kind, chance.choice([*symbols]), addend, 0))
    relas = [Rela(4 * n, one.type, one.symbol) for n, one in enumerate(todo)]
    where = {"near": text + 0x40}
    image = made(
        [
            Sec(".text", words(*map(held, todo)), A | X, align=4, relas=relas),
            Sec(".data", bytes(8), A | W, align=4, relas=[Rela(4, WORD, "near")]),
        ],
        [Sym("near", ".text", 0x40, type=FUNC, bind=LOCAL), Sym("far"), Sym("kernel")],
    )
    view = parse(image)
    assert view.arch is TOY
    places = {1: text, view.section(".data").index: data}
    found = link(image, places, {n: v for n, v in symbols.items() if n not in where})
    want = [linked(one, text + 4 * n, symbols[one.symbol]) for n, one in enumerate(todo)]
    assert found[1] == words(*want)
    assert found[view.section(".data").index] == words(0, symbols["near"])


def test_a_half_without_its_other_half_is_refused() -> None:
    """The low part of a high half's addend stands in the next low half of the same symbol."""
    relas = [Rela(0, HIGH, "a"), Rela(4, LOW, "b"), Rela(8, HIGH, "b")]
    image = made([Sec(".text", bytes(12), A | X, relas=relas)], [Sym("a"), Sym("b")])
    with pytest.raises(BadModule) as caught:
        parse(image, "half.ko")
    assert str(caught.value) == (
        "half.ko: section 2 (.rel.text) relocation 0: R_TOY_HI16 without a R_TOY_LO16 of the same "
        "symbol behind it, which has the low part of its addend (and 1 more)"
    )


def test_all_that_fails_is_said_at_once() -> None:
    """Reach, alignment, an unknown number and a refused type, each by name."""
    kinds = [BRANCH, SHORT, TLS, 77, JUMP]
    relas = [Rela(4 * n, kind, "odd" if kind == JUMP else "x") for n, kind in enumerate(kinds)]
    image = made([Sec(".text", bytes(20), A | X, relas=relas)], [Sym("x"), Sym("odd")])
    with pytest.raises(RelocationError) as caught:
        link(image, {1: 0xC000_0000}, {"x": 0x8000_0000, "odd": 0xC000_0002})
    said = {failure.offset: failure.text("") for failure in caught.value.failures}
    names = ("R_TOY_PC16", "R_TOY_16", "R_TOY_TLS", "type 77", "R_TOY_26")
    why = ("[-0x20000, 0x20000)", "[0x0, 0x10000)", "thread-local", "unknown", "multiple of 4")
    assert [*said] == [0, 4, 8, 12, 16]
    for text, name, reason in zip(said.values(), names, why, strict=True):
        assert name in text
        assert reason in text


# Loading ---------------------------------------------------------------------------------------


def module(*, kernel: str = "_printk") -> bytes:
    """Return a module that calls the kernel, and holds addresses in text and data."""
    code = [
        Wanted(JUMP, kernel, 0, 0x0C00_0000),
        Wanted(JUMP, "work", 4, 0x0C00_0000),
        Wanted(HIGH, "table", 0x9004, 0x3C08_0000),
        Wanted(LOW, "table", 0x9004, 0x8D08_0000),
        Wanted(JUMP, kernel, 0, 0x0C00_0000),
        Wanted(BRANCH, "work", -4, 0x1000_0000),
    ]
    relas = [Rela(4 * n, one.type, one.symbol) for n, one in enumerate(code)]
    tags = "license=GPL\0name=toys\0depends=\0vermagic=6.12.0-toy SMP mod_unload TOY\0"
    this = bytes(12) + b"toys".ljust(52, b"\0")
    fields = [Rela(4 * n, WORD, name) for n, name in enumerate(("work", "__str", "__ns"))]
    sections = [
        Sec(".text", words(*map(held, code)), A | X, align=4, relas=relas),
        Sec(".init.text", words(0x03E0_0008, 0), A | X, align=4),
        Sec(".data", words(0x20, 0), A | W, align=8, relas=[Rela(0, WORD, "table")]),
        Sec(".bss", b"", A | W, NOBITS, 8, size=0xA000),
        Sec(".modinfo", tags.encode(), A),
        Sec("__ksymtab", bytes(12), A, align=4, relas=fields),
        Sec("__ksymtab_strings", b"\0work\0", A),
        Sec("__versions", words(0x1234) + kernel.encode().ljust(60, b"\0"), A),
        Sec(
            ".gnu.linkonce.this_module",
            this,
            A | W,
            align=64,
            relas=[Rela(40, WORD, "init_module")],
        ),
    ]
    symbols = [
        Sym("work", ".text", 0, 24, FUNC),
        Sym("init_module", ".init.text", 0, 8, FUNC),
        Sym("table", ".bss", 0, 0xA000, OBJECT, LOCAL),
        Sym("__str", "__ksymtab_strings", 1, bind=LOCAL),
        Sym("__ns", "__ksymtab_strings", 0, bind=LOCAL),
        Sym("__this_module", ".gnu.linkonce.this_module", 0, 64, OBJECT),
        Sym(kernel),
    ]
    return made(sections, symbols)


@pytest.fixture(params=sorted(set(DESIGNS) - {"vmalloc_else"}))
def loader(request: pytest.FixtureRequest) -> Iterator[Loader]:
    """Give a loader of the toy's modules with each design that needs no text_poke."""
    there = TOY.loads.address_map()
    memory = KernelMemory(PhysicalMemory(64 * MIB), there)
    execmem = Execmem(memory, trap=TOY.loads.trap, text_poke=None, design=request.param)
    percpu = FakePercpu()
    table = SymbolTable(FakeKernel("_printk", base=there.image.start))
    found = Loader(TOY, execmem, table, percpu.alloc, percpu.free, percpu.write)
    found.stub_sections = True
    yield found
    execmem.check()


def jumps_to(loader: Loader, address: int) -> int:
    """Return where a jump leads, through the entry that it finds there, if it does."""
    memory = loader.execmem.memory

    def word(at: int) -> int:
        return int.from_bytes(memory.read(at, 4), "big")

    assert word(address) >> 26 == 3
    there = (address + 4) // REGION * REGION + word(address) % (1 << 26) * 4
    if word(there) >> 16 != 0x3C19:  # LUI t9
        return there
    assert [word(there + 4) >> 16, word(there + 8), word(there + 12)] == [0x8F39, 0x0320_0008, 0]
    low = (word(there + 4) % 65536 ^ 0x8000) - 0x8000
    return word((word(there) % 65536 * 65536 + low) % (1 << 32))


def test_a_module_is_loaded_by_every_design(loader: Loader) -> None:
    """Calls to a kernel in another region go through entries; addresses have four bytes."""
    loaded = loader.form(module(), "toys.ko")
    read, printk = loader.execmem.memory.read, loader.symbols.kernel.address("_printk")
    text = loaded.symbols["work"]
    assert text in MODULES
    assert [jumps_to(loader, text + at) for at in (0, 4, 16)] == [printk, text + 4, printk]
    assert {init: use.used for init, use in loaded.linked.stubs.plt.items()} == {False: 1, True: 0}
    table = next(s for s in loaded.sections.values() if s.name == ".bss").address
    high, low = (int.from_bytes(read(text + at, 4), "big") % 65536 for at in (8, 12))
    assert (high * 65536 + (low ^ 0x8000) - 0x8000) % (1 << 32) == table + 0x9004
    data = next(s for s in loaded.sections.values() if s.name == ".data").address
    assert read(data, 4) == words(table + 0x20)
    assert read(loaded.symbols["__this_module"] + 40, 4) == words(loaded.symbols["init_module"])
    assert dict(loaded.view.crcs) == {"_printk": 0x1234}
    assert loader.symbols.exports["work"].address == text
    loader.settle(loaded)
    assert MemType.INIT_TEXT not in loaded.regions
    loader.begin_unload(loaded)
    loader.discard(loaded)
    assert not loader.symbols.exports


def test_every_relocation_is_told(loader: Loader) -> None:
    """The listing says what went in and came out, byte order and entries included."""
    loaded = loader.form(module(), "toys.ko")
    first, second, high, low, _, branch, *_ = Listing.of(loaded).select(section=".text")
    printk, work = loader.symbols.kernel.address("_printk"), loaded.symbols["work"]
    assert (first.type, first.value, first.via.section) == ("R_TOY_26", printk, ".plt")
    assert (second.addend, second.via, second.x) == (4, None, (work + 4) % REGION)
    assert second.formula == "S+A-((P+0x4)&-0x10000000)"
    assert eval(second.computation) == second.x
    assert (high.addend, low.addend) == (0x9004, -0x6FFC)
    assert (high.before, branch.addend, branch.x) == (words(0x3C08_0001), -4, -24)
    found = {extent.row.name: extent for extent in extents(TOY, loaded.linked.records)}
    assert (found["R_TOY_PC16"].lo, found["R_TOY_PC16"].hi) == (-24, -24)
    assert found["R_TOY_26"].count == 3


def test_what_moves_is_answered_as_it_is_linked(loader: Loader) -> None:
    """Moved out of its region a module's own jumps go along, and those to the kernel do not."""
    loaded = loader.form(module(), "toys.ko")
    motion = Motion.of(loaded)
    assert motion.at(text=0, data=0).used == {False: 1, True: 0}
    back = 0x8400_0000 - MODULES.start
    assert motion.at(text=back, data=back).used == {False: 0, True: 0}
    assert not motion.at(text=back, data=back).failed.size


def test_a_jump_out_of_its_region_without_an_entry_is_an_error() -> None:
    """Without sections for entries, the error says where the region ends."""
    view = parse(module(), "toys.ko")
    layout = plan(view)
    places = {i: 0xC000_0000 + 0x10000 * i for i in layout.placements}
    with pytest.raises(RelocationError) as caught:
        link_view(view, layout, places, {"_printk": 0x8000_0000})
    first, second = (failure.text("toys.ko") for failure in caught.value.failures)
    assert "R_TOY_26 against '_printk' out of range" in first
    assert "is not in [0x0, 0x10000000)" in first
    assert "the module has no .plt section" in second


def test_slots_have_four_bytes() -> None:
    """A slot is as wide as an address: 4 reserved for one jump to the kernel, 4 to spare."""
    view = with_stub_sections(parse(module()))
    layout = plan(view)
    table = view.section(".got.plt")
    entries = layout.plt[False].slots + 1 + layout.plt[True].slots + 1
    assert layout.resized[table.index] == 4 * entries


# Levels ----------------------------------------------------------------------------------------


def test_what_needs_an_absent_level_says_so() -> None:
    """Running needs the level run, and loading the level load: each is named."""
    with pytest.raises(LevelMissing, match="toy has no level 'run'"):
        _ = TOY.runs
    with pytest.raises(LevelMissing, match="toy has no level 'load'"):
        _ = LINKS_ONLY.loads


def test_an_architecture_that_only_links_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the level load nothing stands between a jump and its target."""
    monkeypatch.setattr(archs, "ALL", (LINKS_ONLY,))
    image = made([Sec(".text", words(0x0C00_0000), A | X, relas=[Rela(0, JUMP, "x")])], [Sym("x")])
    assert link(image, {1: 0x8000_0000}, {"x": 0x8000_0010})[1] == words(0x0C00_0004)


def test_random_damage_never_escapes_the_error_family() -> None:
    """Whatever bytes of a file change, it is linked or refused."""
    original, chance, ends = module(), random.Random(1), set()
    for _ in range(400):
        image = bytearray(original)
        for _ in range(chance.randint(1, 6)):
            image[chance.randrange(len(image))] = chance.choice((0, 255, chance.randrange(256)))
        try:
            view = with_stub_sections(parse(bytes(image)))
            layout = plan(view)
            if sum(layout.sizes.values()) < 1 << 24:
                places = {i: 0xC000_0000 + 0x20000 * i for i in layout.placements}
                link_view(view, layout, places, dict.fromkeys(view.undefined, 0x8000_0000))
            ends.add(True)
        except LoadError:
            ends.add(False)
    assert ends == {True, False}
