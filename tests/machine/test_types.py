# SPDX-License-Identifier: GPL-2.0-or-later
"""Values by type in memory, beside what ctypes reads from the same bytes."""

from __future__ import annotations

import ctypes
from typing import Any

import attrs
import hypothesis
import hypothesis.strategies as st
import pytest

import archs
from archs import Arch
from emulator.faults import BadCall
from loader.btf import Btf
from loader.btf_records import Kind
from machine.types import EnumValue, GuestType, Pointer, Types, View
from tests.support.btfwriter import INT_SIGNED, Writer

BASE = 0x1000


class Fake:
    """A little memory, and an allocator that never frees."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.held = bytearray(0x4000)
        self.free_from = 0x2000

    def read(self, address: int, size: int) -> bytes:
        """Return bytes."""
        if not BASE <= address <= address + size <= BASE + len(self.held):
            raise BadCall("read", f"nothing at {address:#x}")
        return bytes(self.held[address - BASE : address - BASE + size])

    def write(self, address: int, data: bytes) -> None:
        """Store bytes."""
        self.held[address - BASE : address - BASE + len(data)] = data

    def alloc(self, contents: bytes | int) -> int:
        """Return new memory."""
        data = bytes(contents)
        address, self.free_from = self.free_from, self.free_from + len(data) + 16 & ~15
        self.write(address, data)
        return address


def btf() -> Btf:
    """Return types as a compiler would describe them.

    enum color { RED, GREEN = 7, BLUE = -1 };
    struct node { struct node *next; int number; unsigned a: 3; int b: 5; _Bool on;
                  enum color color; char name[8]; union { u64 whole; int half[2]; };
                  struct { short x, y; } at; };
    """
    w = Writer()
    integer = w.add(Kind.INT, "int", 4, INT_SIGNED | 32)
    unsigned = w.add(Kind.INT, "unsigned int", 4, 32)
    short = w.add(Kind.INT, "short", 2, INT_SIGNED | 16)
    char = w.add(Kind.INT, "char", 1, INT_SIGNED | 8)
    truth = w.add(Kind.INT, "_Bool", 1, 4 << 24 | 8)
    wide = w.add(Kind.INT, "unsigned long long", 8, 64)
    u64 = w.add(Kind.TYPEDEF, "u64", wide)
    constants = [("RED", 0), ("GREEN", 7), ("BLUE", -1)]
    words = [word for name, value in constants for word in (w.string(name), value)]
    color = w.add(Kind.ENUM, "color", 4, *words, vlen=3, flag=1)
    name = w.add(Kind.ARRAY, "", 0, char, unsigned, 8)
    halves = w.add(Kind.ARRAY, "", 0, integer, unsigned, 2)
    union = w.add(Kind.UNION, "", 8, w.string("whole"), u64, 0, w.string("half"), halves, 0, vlen=2)
    place = w.add(Kind.STRUCT, "", 4, w.string("x"), short, 0, w.string("y"), short, 16, vlen=2)
    node = w.next + 1
    pointer = w.add(Kind.PTR, "", node)
    members = [
        ("next", pointer, 0),
        ("number", integer, 64),
        ("a", unsigned, 3 << 24 | 96),
        ("b", integer, 5 << 24 | 99),
        ("on", truth, 104),
        ("color", color, 128),
        ("name", name, 160),
        ("", union, 256),
        ("at", place, 320),
    ]
    words = [word for text, kind, at in members for word in (w.string(text), kind, at)]
    assert w.add(Kind.STRUCT, "node", 48, *words, vlen=len(members), flag=1) == node
    return Btf.parse(w.blob())


class Union(ctypes.Union):
    """The unnamed union."""

    _fields_ = (("whole", ctypes.c_uint64), ("half", ctypes.c_int * 2))


class Place(ctypes.Structure):
    """The structure of two shorts."""

    _fields_ = (("x", ctypes.c_short), ("y", ctypes.c_short))


class Node(ctypes.Structure):
    """The same for ctypes, which lays structures out as the platform's compiler does."""

    _anonymous_ = ("u",)
    _fields_ = (
        ("next", ctypes.c_uint64),
        ("number", ctypes.c_int),
        ("a", ctypes.c_uint8, 3),
        ("b", ctypes.c_int8, 5),
        ("on", ctypes.c_bool),
        ("color", ctypes.c_int),
        ("name", ctypes.c_char * 8),
        ("u", Union),
        ("at", Place),
    )


@pytest.fixture
def memory() -> Fake:
    """Return memory of a little-endian machine."""
    return Fake(archs.arch("x86_64"))


@pytest.fixture
def types(memory: Fake) -> Types:
    """Return the types above."""
    found = btf()
    return Types(memory, lambda: {"vmlinux": found}, "none")


@hypothesis.given(data=st.binary(min_size=48, max_size=48))
@hypothesis.settings(deadline=None)
def test_members_are_what_the_compiler_takes_them_for(data: bytes) -> None:
    """Numbers, bit fields, truths, arrays, unions: as ctypes reads the same bytes."""
    memory = Fake(archs.arch("x86_64"))
    found = btf()
    view = Types(memory, lambda: {"vmlinux": found}, "none").view("node", 0x1100)
    memory.write(0x1100, data)
    node = Node.from_buffer_copy(data)
    assert ctypes.sizeof(Node) == view.type_.size
    for name in ("next", "number", "a", "b", "color", "whole"):
        assert view[name] == getattr(node, name), name
    assert view.on == (data[13] != 0)
    assert list(view.half) == list(node.half)
    assert (view.at.x, view.at.y) == (node.at.x, node.at.y)
    assert bytes(view.name) == data[20:28]


@hypothesis.given(
    number=st.integers(-(2**31), 2**31 - 1),
    a=st.integers(0, 7),
    b=st.integers(-16, 15),
    whole=st.integers(0, 2**64 - 1),
    before=st.binary(min_size=48, max_size=48),
)
@hypothesis.settings(deadline=None)
def test_what_is_set_is_read_back_and_nothing_else_changes(
    number: int, a: int, b: int, whole: int, before: bytes
) -> None:
    """Setting a member writes its bits, as ctypes would, and no others."""
    memory = Fake(archs.arch("x86_64"))
    found = btf()
    view = Types(memory, lambda: {"vmlinux": found}, "none").view("struct node", 0x1100)
    memory.write(0x1100, before)
    node = Node.from_buffer_copy(before)
    for name, value in {"number": number, "a": a, "b": b, "whole": whole}.items():
        view[name] = value
        setattr(node, name, value)
    assert memory.read(0x1100, 48) == bytes(node)


def test_a_list_is_walked_by_names(types: Types) -> None:
    """Pointers know what they point at; new values are zeroed, dicts and lists set parts."""
    last = types.new("struct node", {"number": 2, "name": "last", "color": "GREEN"})
    first = types.new("node", {"next": last, "at": {"x": 3, "y": -4}, "half": [5, -6]})
    assert first.next == last.address_
    assert first.next.number == 2
    assert first.next.name.string_ == "last"
    assert first.next[0].color == 7
    assert repr(first.next.color) == "<GREEN: 7>"
    assert (first.at.y, first.half[-1], first.number) == (-4, -6, 0)
    first.at = last.at
    assert first.at.x == 0
    assert str(last).startswith("(struct node) {\n\t.next = 0x0,\n\t.number = 2,\n")
    assert "GREEN" in str(last)
    assert "name" in dir(first)
    assert first != last
    assert first == types.view("node", first.address_)
    assert len({first, types.view("node", first.address_)}) == 1


def test_members_are_set_through_pointers(types: Types) -> None:
    """What is set through a pointer stands where it points, as in C."""
    first, second = types.new("struct node", {}), types.new("struct node", {})
    first.next = second.address_
    first.next.number = 7
    first.next["on"] = True
    assert (second.number, second.on, first.number) == (7, True, 0)
    first.next[0] = {"number": 9}
    assert second.number == 9
    with pytest.raises(BadCall, match="it is NULL"):
        second.next.number = 1
    with pytest.raises(BadCall, match="nothing"):
        first.next.nothing = 1


def test_names_of_types(types: Types) -> None:
    """Tags, typedefs, pointers and arrays, as C spells them."""
    assert types.find("u64").size == 8
    assert types.find("struct node *").size == 8
    assert types.find("struct node*").target == types.find("struct node")
    assert types.find("node[3]").size == 144
    assert types.find("int *[4]").name == "int *[4]"
    assert types.find("enum color").constants == {"RED": 0, "GREEN": 7, "BLUE": -1}
    assert types.find("void *").name == "void *"
    assert types.find("struct node").member("at.y").offset == 42
    assert str(types.find("struct node")).startswith("struct node {\n\tstruct node *next;")


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda t, _: t.find("struct nod"), "near: node"),
        (lambda t, _: t.find("1"), "is no name of a type"),
        (lambda t, _: t.find("node", "ext4"), "ext4 has no types that are known"),
        (lambda _, v: v.nothing, "no member 'nothing'"),
        (lambda _, v: v[0], "is no array"),
        (lambda _, v: v.name[8], "has 8 elements"),
        (lambda _, v: v.next.number, "it is NULL"),
        (lambda _, v: v.set_(a=8), "8 does not fit 3 bits"),
        (lambda _, v: v.set_(b=-17), "-17 does not fit 5 bits"),
        (lambda _, v: v.set_(number=1 << 32), "does not fit 4 bytes"),
        (lambda _, v: v.set_(color="PINK"), "no constant 'PINK'"),
        (lambda _, v: v.set_(name="too long"), "9 bytes do not fit"),
        (lambda _, v: v.set_(half=[1, 2, 3]), "3 elements do not fit"),
        (lambda _, v: v.set_(half=1), "takes a list, not int"),
        (lambda _, v: v.set_(at=1), "takes a dict of members"),
        (lambda _, v: v.set_(number=1.5), "cannot be set to float"),
        (lambda t, _: t.new("void *", {}).value_.number, "no size"),
    ],
)
def test_what_cannot_be_is_told(types: Types, do: Any, words: str) -> None:
    """Each by name, as a BadCall."""
    view = types.new("node", {})
    with pytest.raises(BadCall, match="(?s).*" + words):
        do(types, view)


def test_types_that_differ_are_told_apart(memory: Fake) -> None:
    """Two modules may call different things the same; equal ones are one."""

    def of(size: int) -> Btf:
        w = Writer()
        number = w.add(Kind.INT, "int", size, 8 * size)
        w.add(Kind.STRUCT, "s", size, w.string("m"), number, 0, vlen=1)
        return Btf.parse(w.blob())

    sources = {"a": of(4), "b": of(4)}
    types = Types(memory, lambda: sources, "none")
    assert types.find("s").size == 4
    sources["b"] = of(8)
    with pytest.raises(BadCall, match="2 types of this name differ"):
        types.find("struct s")
    assert types.find("struct s", "b").size == 8


def test_without_types_the_reason_is_told(memory: Fake) -> None:
    """What would make them known is the machine's to say."""
    with pytest.raises(BadCall, match="give the kernel"):
        Types(memory, dict, "give the kernel").find("u8")


def test_kinds_of_values(types: Types) -> None:
    """Pointers and constants are numbers; views have an index, so that calls take them."""
    view = types.new("node", {"color": 3})
    assert isinstance(view.next, Pointer)
    assert isinstance(view.color, EnumValue)
    assert view.color.name == ""
    assert view.on is False
    assert view.__index__() == view.address_
    assert isinstance(view, View)
    assert isinstance(view.type_, GuestType)
    assert attrs.asdict(view.type_["a"], recurse=False)["bits"] == 3
