# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading ELF: what a good file says, and one line for everything that is wrong with a bad one."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from functools import cache

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from allocator.errors import ExecmemError
from execmem.check import elfwriter as elf
from execmem.check.elfwriter import A, Rela, Sec, Sym, W, X, write
from loader.elf import MAX_ALIGN, parse
from loader.errors import BadModule
from loader.layout import plan
from loader.link import link_view
from tests.archs.facts import facts, needs
from tests.support.modules import module, versions

Damage = Callable[[bytes], bytes]


def good(machine: int = elf.X86_64) -> bytes:
    """Return a module with every table that a check looks at."""
    return module(machine, exported=("mini_export",), weak=("maybe",), percpu=64)


def test_a_good_module_is_read(arch: archs.Arch) -> None:
    """Sections, symbols, relocations and strings come out as they were written."""
    image = module(arch.machine, depends="a,b-c", weak=("maybe",), extra=(versions("_printk"),))
    view = parse(image, "mini.ko")
    assert view.arch is arch
    assert [s.index for s in view.sections] == list(range(len(view.sections)))
    text = view.section(".text")
    assert (text.allocated, text.executable, text.align) == (True, True, 16)
    assert view.section(".nothing") is None
    assert bytes(view.contents(view.section(".init.data"))) == b"init data"
    assert bytes(view.contents(view.section(".bss"))) == b""
    assert set(view.undefined) == {"_printk", "maybe"}
    assert view.weak_undefined == {"maybe"}
    assert {"init_module", "cleanup_module", "__this_module"} == set(view.global_symbols)
    assert view.modinfo["name"] == "mini"
    assert view.modinfo["depends"] == "a,b-c"
    assert view.versions == {"_printk"}
    table = next(t for t in view.tables if t.target is text)
    assert [view.symbol_name(int(r["symbol"])) for r in table.records] == ["_printk"] * (
        1 + len(facts(arch).link.more_of_call)
    )


def test_of_a_repeated_tag_the_first_counts() -> None:
    """`.modinfo` may repeat a tag (alias=, parm=); lookups give the first."""
    image = write(62, [Sec(".modinfo", b"alias=one\0alias=two\0\0odd\0", A)])
    assert dict(parse(image).modinfo) == {"alias": "one", "odd": ""}
    assert dict(parse(write(62, [Sec(".text", b"", A | X)])).modinfo) == {}


def test_a_section_symbol_is_called_after_its_section() -> None:
    """Messages name `.rodata`, not an empty string."""
    symbols = [Sym("", ".rodata", type=elf.SECTION, bind=elf.LOCAL), Sym("x", elf.ABS, 7)]
    view = parse(write(62, [Sec(".rodata", bytes(8), A)], symbols))
    assert [view.symbol_name(i) for i in (1, 2)] == [".rodata", "x"]


def test_of_sections_of_one_name_the_first_is_found() -> None:
    """Section names may repeat; a lookup gives the lowest index, as the kernel's find_sec."""
    view = parse(write(62, [Sec(".x", b"1", A), Sec(".x", b"2", A)]))
    assert view.section(".x").index == 1


def test_addresses_in_the_file_are_ignored() -> None:
    """Leftover sh_addr values of a relocatable object change nothing."""
    one = parse(write(62, [Sec(".data", b"12345678", A | W, addr=0x1234)]))
    assert plan(one).placements[1].offset == 0


def test_names_that_are_no_utf8_are_kept_readable() -> None:
    """A name with bytes that are no text is escaped, not refused."""
    image = write(62, [Sec(".data", b"", A)], [Sym("funny", ".data")])
    view = parse(image.replace(b"funny", b"fu\xff\xfey"))
    assert view.symbol_name(1) == "fu\\xff\\xfey"


def _cut(size: int) -> Damage:
    return lambda image: image[:size]


def _unterminated(name: str) -> Damage:
    """Return a damage that takes the last NUL away from a string table."""

    def damage(image: bytes) -> bytes:
        size = len(parse(image).contents(parse(image).section(name)))
        return elf.section(image, name, size=size - 1)

    return damage


def _two_tables(image: bytes) -> bytes:
    return elf.section(image, ".strtab", type=elf.SYMTAB)


GLOBAL = parse(good()).first_global  # local symbols are looked at when they are used

REFUSALS: list[tuple[str, Damage, str, str]] = [
    ("empty", _cut(0), "ELF header", "not an ELF file"),
    ("text", lambda _: b"#!/bin/sh\n" * 20, "ELF header", "not an ELF file"),
    ("short header", _cut(63), "ELF header", "truncated: the file has 63 of 64 bytes"),
    (
        "32-bit",
        lambda i: elf.header(i, **{"class": 1}),
        "ELF header",
        "ELF32 little-endian X86_64 (machine 62): known are x86_64 (ELF64 little-endian",
    ),
    ("no class", lambda i: elf.header(i, **{"class": 9}), "ELF header", "not readable"),
    (
        "big endian",
        lambda i: elf.header(i, data=2, type=1 << 8, machine=183 << 8),
        "ELF header",
        "ELF64 big-endian AARCH64 (machine 183): known are",
    ),
    ("only byte order", lambda i: elf.header(i, data=2), "ELF header", "ET 256 is not"),
    ("no byte order", lambda i: elf.header(i, data=0), "ELF header", "class 2, byte order 0"),
    ("executable", lambda i: elf.header(i, type=2), "ELF header", "is not a relocatable object"),
    ("shared", lambda i: elf.header(i, type=3), "ELF header", "is not a relocatable object"),
    ("odd type", lambda i: elf.header(i, type=77), "ELF header", "is not a relocatable object"),
    (
        "machine",
        lambda i: elf.header(i, machine=40),
        "ELF header",
        "ELF64 little-endian ARM (machine 40): known are",
    ),
    ("entry size", lambda i: elf.header(i, shentsize=40), "section headers", "entry size 40"),
    ("table outside", lambda i: elf.header(i, shoff=1 << 40), "section headers", "truncated"),
    ("huge offset", lambda i: elf.header(i, shoff=(1 << 64) - 64), "", ""),
    ("cut table", lambda i: i[:-1], "section headers", "truncated"),
    ("no sections", lambda i: elf.header(i, shnum=0), "section headers", ""),
    ("shstrndx 0", lambda i: elf.header(i, shstrndx=0), "ELF header", "e_shstrndx 0"),
    ("shstrndx far", lambda i: elf.header(i, shstrndx=0xFFF), "ELF header", "e_shstrndx 4095"),
    ("shstrtab open", _unterminated(".shstrtab"), "section", "not NUL-terminated"),
    ("shstrtab far", lambda i: elf.section(i, ".shstrtab", offset=1 << 50), "section", "truncated"),
    ("name offset", lambda i: elf.section(i, 1, name=0xFFFFFF), "section 1", "name offset"),
    ("data outside", lambda i: elf.section(i, ".data", offset=1 << 30), ".data", "truncated"),
    ("data wraps", lambda i: elf.section(i, ".data", offset=(1 << 64) - 1), ".data", "truncated"),
    ("odd alignment", lambda i: elf.section(i, ".data", align=3), ".data", "no power of two"),
    (
        "huge alignment",
        lambda i: elf.section(i, ".data", align=2 * MAX_ALIGN),
        ".data",
        f"above {MAX_ALIGN:#x}",
    ),
    ("huge bss", lambda i: elf.section(i, ".bss", size=1 << 31), ".bss", "2 GiB or more"),
    ("stripped", lambda i: elf.section(i, ".symtab", type=1), "symbol table", "no symbol table"),
    ("two symtabs", _two_tables, "symbol table", "more than one"),
    ("symtab link", lambda i: elf.section(i, ".symtab", link=0), "symbol table", "string table 0"),
    ("link far", lambda i: elf.section(i, ".symtab", link=9999), "symbol table", "string table"),
    ("strtab open", _unterminated(".strtab"), "symbol table", "not NUL-terminated"),
    ("symtab size", lambda i: elf.section(i, ".symtab", size=25), "symbol table", "no multiple"),
    ("symtab empty", lambda i: elf.section(i, ".symtab", size=0), "symbol table", "no multiple"),
    (
        "symbol name",
        lambda i: elf.symbol(i, GLOBAL, name=0xFFFFFF),
        f"symbol {GLOBAL}",
        "outside the string",
    ),
    ("COMMON", lambda i: elf.symbol(i, GLOBAL, shndx=elf.COMMON), f"symbol {GLOBAL}", "COMMON"),
    (
        "symbol home",
        lambda i: elf.symbol(i, GLOBAL, shndx=500),
        f"symbol {GLOBAL}",
        "does not exist",
    ),
    (
        "reserved home",
        lambda i: elf.symbol(i, GLOBAL, shndx=0xFFFF),
        f"symbol {GLOBAL}",
        "does not exist",
    ),
    ("r_sym", lambda i: elf.relocation(i, ".rela.data", 1, symbol=999), "relocation 1", "names no"),
    ("sh_info 0", lambda i: elf.section(i, ".rela.data", info=0), ".rela.data", "section 0"),
    ("sh_info far", lambda i: elf.section(i, ".rela.data", info=999), ".rela.data", "section 999"),
    ("rela entry", lambda i: elf.section(i, ".rela.data", entsize=16), ".rela.data", "expected 24"),
    ("rela size", lambda i: elf.section(i, ".rela.data", size=23), ".rela.data", "no multiple"),
    ("REL", lambda i: elf.section(i, ".rela.data", type=elf.REL), ".rela.data", "x86_64 uses RELA"),
]


@pytest.mark.parametrize(
    ("damage", "where", "reason"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_a_bad_file_is_refused_in_one_line(damage: Damage, where: str, reason: str) -> None:
    """The one line names the file, the place in it and what is wrong."""
    with pytest.raises(BadModule) as caught:
        plan(parse(damage(good()), "bad.ko"))
    text = str(caught.value)
    assert text.startswith("bad.ko: ")
    assert "\n" not in text
    assert caught.value.module == "bad.ko"
    assert where in caught.value.where
    assert reason in caught.value.reason
    assert caught.value.where
    assert caught.value.reason


def test_a_count_stands_for_further_offenders() -> None:
    """When several symbols are bad the first is named and the others are counted."""
    image = good()
    for number in (GLOBAL, GLOBAL + 1):
        image = elf.symbol(image, number, shndx=elf.COMMON)
    with pytest.raises(BadModule, match=rf"symbol {GLOBAL}: is COMMON.*\(and 1 more\)"):
        parse(image)


def test_another_architecture_is_refused_where_one_is_wanted() -> None:
    """A loader of one architecture refuses the others' modules by name."""
    with pytest.raises(BadModule, match="built for arm64, not for x86_64"):
        parse(good(elf.AARCH64), arch=archs.arch("x86_64"))


def test_rel_of_an_unloaded_section_is_ignored() -> None:
    """REL records of sections that are not loaded (debug data) are not read."""
    sections = [Sec(".debug", bytes(8), relas=[Rela(0, 1, "x")])]
    image = elf.section(write(62, sections, [Sym("x")]), ".rela.debug", type=elf.REL)
    (table,) = parse(image).tables
    assert table.records.size == 0


def survive(image: bytes) -> None:
    """Push an image through every phase; only the error family may come out."""
    try:
        view = parse(image, "fuzz.ko")
        layout = plan(view)
        start = 0xFFFF_FFFF_C000_0000 - sum(layout.sizes.values()) % 4096
        addresses = {
            i: start + (list(layout.sizes).index(p.type) << 21) + p.offset
            for i, p in layout.placements.items()
        }
        if sum(layout.sizes.values()) > 1 << 24:
            return  # a made-up size that memory would bear, but this test's time would not
        symbols = {name: start + 0x1000 * k for k, name in enumerate(view.undefined)}
        linked = link_view(view, layout, addresses, symbols, percpu=start)
        assert set(linked.sections) == set(addresses)
        _ = view.global_symbols, view.modinfo, view.versions, view.weak_undefined
    except ExecmemError as error:
        text = str(error)
    else:
        return
    assert text


SEED = functools.cache(good)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_random_damage_never_escapes_the_error_family(
    arch: archs.Arch, data: st.DataObject
) -> None:
    """Whatever bytes of a module change, a load succeeds or gives an ExecmemError."""
    image = bytearray(SEED(arch.machine))
    # Half of the changes hit headers and tables, which decide the most.
    headers = int.from_bytes(image[40:48], "little")
    places = st.one_of(st.integers(0, len(image) - 1), st.integers(headers, len(image) - 1))
    values = st.one_of(st.integers(0, 255), st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
    for at, value in data.draw(st.lists(st.tuples(places, values), min_size=1, max_size=12)):
        image[at] = value
    if data.draw(st.booleans()):
        image = image[: data.draw(st.integers(0, len(image)))]
    survive(bytes(image))


@cache
def sample(name: str) -> bytes:
    """Return the smallest sample module of an architecture."""
    samples = pytest.importorskip("samples.modules")
    return min((samples.path(name, n).read_bytes() for n in samples.names()), key=len)


def test_random_damage_to_a_compiled_module(arch: archs.Arch) -> None:
    """The same holds for a module that a compiler built: 80 damaged copies."""
    needs(arch, "load")
    original, chance = sample(arch.name), random.Random(arch.machine)
    headers = int.from_bytes(original[40:48], "little")
    survive(original)
    for _ in range(80):
        image = bytearray(original)
        for _ in range(chance.randint(1, 8)):
            low = chance.choice((0, headers))
            image[chance.randrange(low, len(image))] = chance.choice(
                (0, 0xFF, chance.randrange(256))
            )
        survive(bytes(image))


def test_views_cost_nothing() -> None:
    """Symbols and relocations are views of the file, not copies."""
    view = parse(good())
    assert np.shares_memory(view.symbols, np.frombuffer(view.data, np.uint8))
    for table in view.tables:
        assert np.shares_memory(table.records, np.frombuffer(view.data, np.uint8))


def test_symbols_that_are_absolute_have_no_section(arch: archs.Arch) -> None:
    """An absolute symbol is defined without a section and is no undefined name."""
    sections = [Sec(".data", bytes(8), A | W, relas=[Rela(0, facts(arch).link.abs64, "answer", 1)])]
    view = parse(write(arch.machine, sections, [Sym("answer", elf.ABS, 41)]))
    assert dict(view.undefined) == {}
    linked = link_view(view, plan(view), {1: 0xFFFF_0000_0000_0000}, {})
    assert bytes(linked.sections[1]) == (42).to_bytes(8, "little")


def test_a_record_that_is_asked_for_is_the_one_that_is_used(arch: archs.Arch) -> None:
    """Who gives a record of an architecture, changed as it may be, gets views of that record."""
    mine = attrs.evolve(arch, title="another")
    image = write(arch.machine, [Sec(".text", bytes(8), A | X)], [])
    assert parse(image, arch=mine).arch is mine
    assert parse(image).arch is arch
