# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts from types that are given, and from a table: what they say, and what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from archs.layouts import As, Member, NotKnown, Table, Unknown
from execmem.check.elfwriter import Sec, write
from loader.btf import BadBtf, Btf
from loader.btf_records import Kind
from loader.elf import parse
from loader.elfview import ElfView
from loader.files import read_module
from loader.kernel.find import find_kernel
from loader.layouts import BtfLayouts, layouts_of, types_of
from tests.support.btf import types_of_module
from tests.support.btfwriter import INT_SIGNED, Writer

RELEASE = "6.9.1-mine"


@pytest.fixture
def given() -> BtfLayouts:
    """Return the layouts of a kernel with a structure of members of every kind."""
    w = Writer()
    char = w.add(Kind.INT, "char", 1, INT_SIGNED | 8)
    number = w.add(Kind.INT, "int", 4, INT_SIGNED | 32)
    long = w.add(Kind.INT, "unsigned long", 8, 64)
    proto = w.add(Kind.FUNC_PROTO, "", 0)
    callback = w.add(Kind.PTR, "", proto)
    const = w.add(Kind.CONST, "", char)
    string = w.add(Kind.PTR, "", const)
    void = w.add(Kind.PTR, "", 0)
    chars = w.add(Kind.ARRAY, "", 0, char, number, 16)
    longs = w.add(Kind.ARRAY, "", 0, long, number, 3)

    def composed(kind: int, name: str, size: int, *members: tuple, flag: int = 0) -> int:
        words = [word for title, at, type_ in members for word in (w.string(title), type_, at)]
        return w.add(kind, name, size, *words, vlen=len(members), flag=flag)

    inner = composed(Kind.STRUCT, "inner", 16, ("a", 0, number), ("b", 64, long))
    either = composed(Kind.UNION, "", 16, ("both", 0, inner), ("one", 0, long))
    composed(
        Kind.STRUCT,
        "outer",
        112,
        *(("number", 0, number), ("flags", 32 | 3 << 24, number), ("call", 64, callback)),
        *(("title", 128, string), ("data", 192, void), ("", 256, either), ("name", 384, chars)),
        *(("longs", 512, longs), ("tail", 704, inner)),
        flag=1,
    )
    named = composed(Kind.STRUCT, "", 8, ("x", 0, long))
    w.add(Kind.TYPEDEF, "named_t", named)
    w.add(Kind.FWD, "elsewhere", 0)
    return BtfLayouts(RELEASE, Btf.parse(w.blob()))


WANTED = {
    "number": Member(0, 4, As.SIGNED),
    "call": Member(8, 8, As.FUNCTION),
    "title": Member(16, 8, As.STRING),
    "data": Member(24, 8, As.POINTER),
    "both": Member(32, 16, As.STRUCTURE, "inner"),
    "both.b": Member(40, 8, As.UNSIGNED),
    "one": Member(32, 8, As.UNSIGNED),
    "name": Member(48, 16, As.CHARACTERS),
    "longs": Member(64, 24, As.OTHER),
    "longs[2]": Member(80, 8, As.UNSIGNED),
    "tail.a": Member(88, 4, As.SIGNED),
}


@pytest.mark.parametrize("path", WANTED)
def test_members_by_their_paths(given: BtfLayouts, path: str) -> None:
    """Members of unnamed ones belong to what holds them; dots and subscripts lead further."""
    assert given.member("outer", path) == WANTED[path]
    assert given.offset_of("outer", path) == WANTED[path].offset


def test_sizes(given: BtfLayouts) -> None:
    """A structure has a tag, or a name given with typedef."""
    assert (given.size_of("outer"), given.size_of("inner")) == (112, 16)
    assert (given.size_of("named_t"), given.offset_of("named_t", "x")) == (8, 0)


@pytest.mark.parametrize(
    ("structure", "path", "what"),
    [
        ("nowhere", "a", "nowhere of 6.9.1-mine is not known"),
        ("elsewhere", "a", "elsewhere of 6.9.1-mine is not known"),
        ("int", "a", "int of 6.9.1-mine is not known"),
        ("outer", "gone", "outer.gone of 6.9.1-mine is not known"),
        ("outer", "tail.c", "outer.tail.c of 6.9.1-mine is not known"),
        ("outer", "number.a", "outer.number.a of 6.9.1-mine is not known"),
        ("outer", "flags", "outer.flags of 6.9.1-mine is a bit field"),
    ],
)
def test_what_types_lack_is_refused(
    given: BtfLayouts, structure: str, path: str, what: str
) -> None:
    """By its name, the kernel's, and what would help: twice, since answers are kept."""
    for _ in range(2):
        with pytest.raises(NotKnown, match=f"^{re.escape(what)}; its types have none$"):
            given.offset_of(structure, path)
        assert not given.has(structure, path)


def test_types_of_modules_go_on(given: BtfLayouts) -> None:
    """What the kernel has not is looked for in its modules; what it has is its own."""
    base = given._types[0]
    w = Writer(first=len(base), strings_from=len(base.strings))
    long = next(base.all("unsigned long")).number
    w.add(Kind.STRUCT, "of_module", 24, w.string("here"), long, 128, vlen=1)
    w.add(Kind.STRUCT, "inner", 99)
    both = BtfLayouts(RELEASE, base, Btf.parse(w.blob(), base=base))
    assert both.member("of_module", "here") == Member(16, 8, As.UNSIGNED)
    assert both.size_of("inner") == 16


def split(base: Btf, *structures: tuple[str, int, str]) -> Btf:
    """Return a module's types: structures of a size in bytes and one member."""
    w = Writer(first=len(base), strings_from=len(base.strings))
    long = next(base.all("unsigned long")).number
    for name, size, member in structures:
        w.add(Kind.STRUCT, name, size, w.string(member), long, 0, vlen=1)
    return Btf.parse(w.blob(), base=base)


def test_modules_bring_their_types_and_take_them_along(given: BtfLayouts) -> None:
    """What only modules have is known while one is there; the kernel's own counts first."""
    base = given._types[0]
    assert not given.has("driver")
    given.add("one", split(base, ("driver", 24, "probe"), ("inner", 99, "z")))
    assert given.size_of("driver") == 24
    assert given.offset_of("driver", "probe") == 0
    assert (given.size_of("inner"), given.has("inner", "z")) == (16, False)
    given.add("two", split(base, ("driver", 24, "probe")))
    assert given.size_of("driver") == 24
    given.remove("one")
    assert given.size_of("driver") == 24
    given.remove("two")
    given.remove("never")
    assert not given.has("driver")


def test_modules_that_differ_are_named(given: BtfLayouts) -> None:
    """A size or a member that two modules say differently is nobody's."""
    base = given._types[0]
    given.add("one", split(base, ("private", 24, "a")))
    assert given.size_of("private") == 24
    given.add("two", split(base, ("private", 24, "b")))
    assert given.size_of("private") == 24
    with pytest.raises(
        NotKnown, match=r"private\.a of 6\.9\.1-mine is not the same in one and two"
    ):
        given.offset_of("private", "a")
    given.add("three", split(base, ("private", 32, "a")))
    with pytest.raises(NotKnown, match=r"private of .* in one and three; load one of them"):
        given.size_of("private")


def test_types_of_another_base_do_not_fit(given: BtfLayouts) -> None:
    """Names from a base begin where one of its strings does."""
    base = given._types[0]
    assert base.fits
    w = Writer(first=len(base), strings_from=len(base.strings))
    outer = base.offsets_of("outer")[0]
    for number, fits in ((outer, True), (outer + 1, False)):
        words = Writer(first=len(base), strings_from=len(base.strings))
        words.add(Kind.STRUCT, "own", 8, number, next(base.all("unsigned long")).number, 0, vlen=1)
        assert Btf.parse(words.blob(), base=base).fits is fits
    assert Btf.parse(w.blob(), base=base).fits


def real(kernels: dict[str, Path], corpus: Path) -> Iterator[tuple[str, Path, ElfView]]:
    """Yield some modules of every release whose image is there."""
    for release, folder in kernels.items():
        files = sorted(folder.glob("lib/modules/*/kernel/**/*.ko*"))
        if release == "6.12":
            files = sorted(corpus.glob("lib/modules/*/kernel/**/*.ko*"))
        for file in files[::9]:
            view = parse(read_module(file), file.name)
            if view.section(".BTF") is not None:
                yield release, folder, view


def test_structures_of_modules_are_as_bpftool_says(
    some_kernels: dict[str, Path], corpus: Path
) -> None:
    """Size and every member of each structure that only a module has."""
    images = {release: find_kernel(folder).read() for release, folder in some_kernels.items()}
    found = enumerate(real(some_kernels, corpus))
    seen = 0
    chosen = {(release, n % 3): (folder, v) for n, (release, folder, v) in found}
    for (release, _), (folder, view) in chosen.items():
        image = images[release]
        types = types_of(view, image)
        assert types is not None
        layouts = layouts_of(image)
        before = {name for name in types.named(Kind.STRUCT) if layouts.has(name)}
        layouts.add(view.name, types)
        theirs, own = types_of_module(folder, bytes(view.contents(view.section(".BTF"))))
        assert set(types.named(Kind.STRUCT, Kind.UNION)) <= own
        for name in sorted(set(types.named(Kind.STRUCT)) - before):
            wanted = theirs.structure(name)
            assert layouts.size_of(name) == wanted["size"], (view.name, name)
            for member in wanted["members"]:
                if member["name"] != "(anon)" and not member.get("bitfield_size"):
                    found = layouts.offset_of(name, member["name"])
                    assert 8 * found == member["bits_offset"], (view.name, name, member)
                    seen += 1
    assert seen > 100


def test_types_of_another_kernel_are_refused(some_kernels: dict[str, Path], corpus: Path) -> None:
    """By the release, and where that does not tell, by names that begin nowhere."""
    images = {release: find_kernel(folder).read() for release, folder in some_kernels.items()}
    others = 0
    for release, _, view in real(some_kernels, corpus):
        for other, image in images.items():
            if other == release:
                continue
            with pytest.raises(BadBtf, match=f"goes on from {re.escape(release)}.*given is"):
                types_of(view, image)
            blob = bytes(view.contents(view.section(".BTF")))
            assert not Btf.parse(blob, base=image.btf).fits, (view.name, other)
            others += 1
    assert others or len(images) < 2


def test_types_that_bring_their_base() -> None:
    """A module that was built apart from the tree counts on from its own part of the kernel's."""
    w = Writer()
    w.add(Kind.INT, "unsigned long", 8, 64)
    base = Btf.parse(w.blob())
    longer = Writer()
    for number in range(9):
        longer.add(Kind.INT, f"kernel{number}", 4, 32)
    own = Writer(first=len(base), strings_from=len(base.strings))
    own.add(Kind.STRUCT, "apart", 16, own.string("x"), 1, 64, vlen=1)
    sections = [Sec(".BTF", own.blob()), Sec(".BTF.base", w.blob())]

    class Given:
        btf, release = Btf.parse(longer.blob()), "6.9.1-mine"

    types = types_of(parse(write(62, sections)), Given())
    assert types.place(types.find("apart").number, "x").bytes == 8
    assert types.size_of(types.find("apart").number) == 16
    broken = [Sec(".BTF", own.blob()), Sec(".BTF.base", b"??")]
    with pytest.raises(BadBtf, match=r"BTF\.base: header"):
        types_of(parse(write(62, broken)), Given())
    assert types_of(parse(write(62, [])), Given()) is None


def test_a_table_is_read_when_it_is_asked(tmp_path) -> None:
    """Members of members stand with their own structure, or have dotted names."""
    path = tmp_path / "toy.json"
    table = Table(path)
    inner = [16, {"a": [0, 4, "i"], "b": [8, 8, "u"]}]
    outer = [48, {"tail": [24, 16, "struct inner"], "u.x": [8, 8, "fn"], "name": [40, 8, "char"]}]
    path.write_text(
        json.dumps({"release": RELEASE, "structures": {"inner": inner, "outer": outer}})
    )
    assert (table.release, table.series, table.size_of("outer")) == (RELEASE, "6.9", 48)
    assert table.member("outer", "tail") == Member(24, 16, As.STRUCTURE, "inner")
    assert table.member("outer", "tail.b") == Member(32, 8, As.UNSIGNED)
    assert table.member("outer", "u.x") == Member(8, 8, As.FUNCTION)
    assert not any(table.has("outer", path) for path in ("tail.c", "u", "name.a", "u.x.y"))
    path.unlink()
    assert table.offset_of("inner", "a") == 0


def test_nothing_is_known_without_types() -> None:
    """A kernel whose types nobody has says its name."""
    nothing = Unknown(RELEASE)
    assert not nothing.has("module")
    with pytest.raises(NotKnown, match=r"^module of 6\.9"):
        nothing.size_of("module")


def test_numbers_are_read_by_their_sign() -> None:
    """Out of the bytes of a structure, wherever those begin."""
    data = bytes(8) + b"\xff\xff\xff\xff"
    assert [Member(4, 4, kind).value(data, 4) for kind in (As.SIGNED, As.UNSIGNED)] == [
        -1,
        0xFFFF_FFFF,
    ]
