# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts from types that are given, and from a table: what they say, and what they refuse."""

from __future__ import annotations

import json
import re

import pytest

from archs.layouts import As, Member, NotKnown, Table, Unknown
from loader.btf import Btf
from loader.btf_records import Kind
from loader.layouts import BtfLayouts
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
