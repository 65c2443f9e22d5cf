# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF: every kind, split blobs, damaged ones; and what compilers and bpftool say of the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import archs
from loader.btf import BadBtf, Btf
from loader.btf_records import Constant, Kind, Member, Parameter, Place, Variable
from loader.elf import parse
from loader.files import read_module
from loader.kernel.image import KernelImage
from tests.support.btfwriter import Writer, ask_everything, blob
from tests.support.tools import cross


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_kind_is_read(order: str) -> None:
    """Fields and entries of all kinds come out as they were written, in both byte orders."""
    b = Btf.parse(blob(order).blob())
    assert (len(b), b.numbers) == (25, range(1, 25))
    kinds = [1, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 13, 12, 14, 15, 16, 17, 18, 19]
    assert [b.type(n).kind for n in range(1, 22)] == kinds
    number = b.type(1)
    assert (number.name, number.size, number.bits, number.signed) == ("int", 4, 32, True)
    assert b.type(2).character
    assert (b.type(4).target, b.type(4).index, b.type(4).count) == (2, 1, 16)
    assert b.type(5).members == (
        Member("name", 4, 0),
        Member("next", 3, 128),
        Member("flags", 1, 192, 3),
        Member("wide", 1, 224),
    )
    assert b.type(6).members == (Member("low", 1, 0), Member("high", 1, 0))
    assert b.type(7).values == (Constant("MINUS", -1), Constant("ONE", 1))
    assert (b.type(8).flag, b.type(9).flag) == (False, True)
    assert b.type(14).parameters == (Parameter("first", 12), Parameter("rest", 13))
    assert b.type(14).variadic
    assert (b.type(15).linkage, b.type(15).target, b.type(16).linkage) == (1, 14, 1)
    assert b.type(17).variables == (Variable(16, 0, 4),)
    assert b.type(19).component == -1
    assert b.type(21).values == (Constant("BIG", 0x7FFF_FFFF_FFFF_FFFF),)
    assert b.type(0).kind is Kind.VOID


def test_types_become_c() -> None:
    """Declarations, prototypes and definitions read as C spells them."""
    b = Btf.parse(blob().blob())
    assert b.c_type(15) == "int work(const volatile number first, struct node *restrict rest, ...)"
    assert b.c_type(4, "text") == "char text[16]"
    assert b.c_type(16) == "number counter"
    assert b.c_type(8) == "struct later"
    assert b.c_type(9) == "union other"
    assert b.definition(10) == "typedef int number;"
    assert b.definition(7) == "enum sign {\n\tMINUS = -1,\n\tONE = 1,\n};"
    assert b.definition(5) == (
        "struct node {\n\tchar name[16];\n\tstruct node *next;\n\tint flags: 3;\n\tint wide;\n};"
    )
    assert b.definition(23) == (
        "struct outer {\n\tint a;\n\tstruct {\n\t\tint inner;\n\t};\n\tunion both pairs[4];\n};"
    )


def test_members_are_found_by_path() -> None:
    """A path goes through unnamed members, arrays and members of members."""
    b = Btf.parse(blob().blob())
    assert b.place(5, "next") == Place(128, 3)
    assert b.place(5, "flags") == Place(192, 1, 3)
    assert b.place(23, "inner") == Place(32, 1)
    assert b.place(23, "pairs[2].high") == Place(64 + 2 * 32, 1)
    for missing in ("none", "a.b", "pairs[x]", "a[1]", ""):
        assert b.place(23, missing) is None
    assert b.size_of(24) == 16
    assert b.size_of(11) == 4
    assert (b.size_of(3), b.size_of(3, pointer=4)) == (8, 4)


def test_names_find_types() -> None:
    """A name finds types by kind; the end of another string does not, unless a record says so."""
    w = blob()
    number = w.add(8, "", 1)
    offset = w.strings.find(b"counter\0") + len("count")
    w.types = w.types[:-12] + offset.to_bytes(4, "little") + w.types[-8:]
    b = Btf.parse(w.blob())
    assert b.find("er") == b.type(number)
    assert b.type(number).name == "er"
    assert b.find("wide", Kind.ENUM64).number == 21
    assert b.find("wide", Kind.STRUCT) is None
    assert b.find("kfunc") is None
    assert b.find("kfunc", Kind.DECL_TAG).number == 19
    assert (b.find(""), b.find("nowhere"), b.find("a\0b")) == (None, None, None)
    assert b.named(Kind.STRUCT) == {"node": 5, "outer": 23}
    assert b.prototype("work").number == 14
    assert b.prototype("node") is None


@pytest.mark.parametrize("order", ["<", ">"])
def test_split_goes_on_where_the_base_ends(order: str) -> None:
    """Numbers and strings of a split blob follow the base's, and lead into it."""
    whole = blob(order)
    base = Btf.parse(whole.blob())
    w = Writer(order, first=len(base), strings_from=len(whole.strings))
    pointer = w.add(2, "", 5)
    shared = whole.strings.find(b"node\0")
    number = w.add(8, "mine", pointer)
    w.types += b"".join(
        x.to_bytes(4, "little" if order == "<" else "big") for x in (shared, 8 << 24, 1)
    )
    module = Btf.parse(w.blob(), base=base)
    assert (len(module), module.numbers) == (28, range(25, 28))
    assert module.c_type(number) == "mine"
    assert module.c_type(pointer) == "struct node *"
    assert [t.number for t in module.all("node")] == [27, 5]
    assert module.find("work") == base.find("work")
    with pytest.raises(BadBtf, match="strings: do not begin with the empty one"):
        Btf.parse(w.blob())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"magic": 0x1234}, "header: begins with 34 12, not with 0xeb9f"),
        ({"version": 2}, "header: version 2, flags 0x0: not known"),
        ({"flags": 1}, "header: version 1, flags 0x1: not known"),
        ({"header": 20}, "header: size or place of the types is no multiple of 4"),
        ({"types_size": 6}, "header: size or place of the types is no multiple of 4"),
        ({"types_size": 1 << 30}, "types: truncated: they end at 0x40000018"),
        ({"strings_size": 1 << 30}, "strings: truncated"),
        ({"strings_size": 3}, "strings: the last one does not end"),
        ({"types_size": 8}, "type 1: is cut off"),
        ({"types_size": 12}, "type 1: is cut off"),
    ],
)
def test_damaged_headers_are_refused(changed: dict[str, int], message: str) -> None:
    """A header that does not fit the data is refused with the place."""
    with pytest.raises(BadBtf, match=re.escape(message)):
        Btf.parse(blob().blob(**changed))


def test_contradicting_records_are_refused_when_they_are_read() -> None:
    """Circles, strings and types that do not exist, endless arrays end in one line."""
    w = Writer()
    w.add(8, "again", 1)  # 1: typedef of itself
    w.add(2, "", 99)  # 2
    w.add(3, "", 0, 3, 1, 7)  # 3: an array of itself
    w.add(4, "loop", 8, 0, 4, 0, vlen=1)  # 4: contains itself, unnamed
    w.add(2, "", 5)  # 5: a pointer to itself
    w.add(10, "", 6)  # 6: const of itself
    w.add(20, "", 0)
    with pytest.raises(BadBtf, match="type 7: kind 20 is none of 1 to 19"):
        Btf.parse(w.blob())
    w.types = (
        w.types[:-12] + (1 << 20).to_bytes(4, "little") + (8 << 24).to_bytes(4, "little") + bytes(4)
    )
    b = Btf.parse(w.blob())
    for call in (
        lambda: b.resolved(1),
        lambda: b.size_of(3),
        lambda: b.type(99),
        lambda: b.c_type(2),
        lambda: b.place(4, "x"),
        lambda: b.c_type(5),
        lambda: b.c_type(6),
        lambda: b.type(7),
    ):
        with pytest.raises(BadBtf):
            call()


@given(st.data())
def test_damage_never_escapes(data: st.DataObject) -> None:
    """Whatever bytes change, every question is answered or refused as BadBtf."""
    raw = bytearray(blob().blob())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    ask_everything(
        bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    )


# Compilers and bpftool --------------------------------------------------------------------------

SOURCE = r"""
#include <stddef.h>
typedef unsigned long size;
enum colour { RED = -3, GREEN = 7 };
union value { int number; char bytes[12]; struct { short low; long high; }; };
struct node;
typedef int (*handler)(struct node *, const char *, ...);
struct node {
    char name[13]; struct node *next; unsigned flags : 3, more : 7; _Bool on;
    union value values[3]; handler call; volatile int count; size left;
    struct { char tag; double weight; } inner; enum colour colour;
};
struct node first;
int work(struct node *node, const union value *value, enum colour c, ...) { return c; }
#define AT(what) offsetof(struct node, what), sizeof(((struct node *)0)->what)
__attribute__((used, section("offsets"))) static const unsigned long at[] = {
    AT(name), AT(next), AT(on), AT(values), AT(call), AT(count), AT(left), AT(inner), AT(colour)
};
"""
NAMES = ("name", "next", "on", "values", "call", "count", "left", "inner", "colour")


@pytest.fixture
def compiled(arch: archs.Arch, tmp_path: Path) -> tuple[Btf, bytes]:
    """Return what gcc writes of SOURCE as BTF, and the offsets and sizes that it computes."""
    gcc, objcopy = cross(arch.machine, "gcc"), cross(arch.machine, "objcopy")
    (tmp_path / "x.c").write_text(SOURCE)
    command = [gcc, "-gbtf", "-O1", "-c", "x.c", "-o", "x.o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "-gbtf" in done.stderr:
        pytest.skip(f"{gcc} does not write BTF")
    assert done.returncode == 0, done.stderr
    for name in (".BTF", "offsets"):
        subprocess.run(
            [objcopy, "-O", "binary", "--only-section", name]
            + (["--set-section-flags", ".BTF=alloc"] if name == ".BTF" else [])
            + ["x.o", name],
            cwd=tmp_path,
            check=True,
        )
    return Btf.parse((tmp_path / ".BTF").read_bytes()), (tmp_path / "offsets").read_bytes()


def test_layouts_equal_the_compilers(compiled: tuple[Btf, bytes]) -> None:
    """Offset and size of every member equal what the compiler's offsetof and sizeof give."""
    b, raw = compiled
    node = b.find("node", Kind.STRUCT)
    numbers = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    for index, name in enumerate(NAMES):
        found = b.place(node.number, name)
        assert [found.bytes, b.size_of(found.type)] == numbers[2 * index : 2 * index + 2], name
    assert b.place(node.number, "values[2].high").bytes == numbers[6] + 2 * 16 + 8


def test_c_text_compiles_to_the_same(
    compiled: tuple[Btf, bytes], arch: archs.Arch, tmp_path: Path
) -> None:
    """The definitions that are printed are C, and the compiler lays them out in the same way."""
    b, raw = compiled
    parts = [b.definition(b.find("colour").number), b.definition(b.find("value").number)]
    parts += ["struct node;", b.definition(b.find("size").number)]
    parts += [b.definition(b.find("handler").number), b.definition(b.find("node").number)]
    tail = SOURCE[SOURCE.index("struct node first") :]
    (tmp_path / "y.c").write_text("#include <stddef.h>\n" + "\n".join(parts) + "\n" + tail)
    subprocess.run(
        [cross(arch.machine, "gcc"), "-O1", "-c", "y.c", "-o", "y.o"], cwd=tmp_path, check=True
    )
    subprocess.run(
        [
            cross(arch.machine, "objcopy"),
            "-O",
            "binary",
            "--only-section",
            "offsets",
            "y.o",
            "y.bin",
        ],
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "y.bin").read_bytes() == raw


def _bpftool(*files: Path) -> list[dict[str, Any]]:
    program = shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin:/sbin")
    if program is None:
        pytest.skip("bpftool is not installed")
    *base, file = files
    command = [program, "-j", *(f"-B{path}" for path in base), "btf", "dump", "file", str(file)]
    done = subprocess.run(command, capture_output=True, check=True)
    types: list[dict[str, Any]] = json.loads(done.stdout)["types"]
    return types


def _as_bpftool(b: Btf, number: int) -> dict[str, Any]:
    """Return a type as bpftool's JSON has it."""
    t = b.type(number)
    shown: dict[str, Any] = {"id": number, "kind": t.kind.name, "name": t.name or "(anon)"}
    if t.kind is Kind.INT:
        how = [
            n for n, on in (("SIGNED", t.signed), ("CHAR", t.character), ("BOOL", t.boolean)) if on
        ]
        shown |= {"size": t.size, "bits_offset": t.bit_offset, "nr_bits": t.bits}
        shown |= {"encoding": " ".join(how) or "(none)"}
    elif t.kind is Kind.ARRAY:
        shown |= {"type_id": t.target, "index_type_id": t.index, "nr_elems": t.count}
    elif t.kind in (Kind.STRUCT, Kind.UNION):
        members = [
            {"name": m.name or "(anon)", "type_id": m.type, "bits_offset": m.offset}
            | ({"bitfield_size": m.bits} if t.flag and m.bits else {})
            for m in t.members
        ]
        shown |= {"size": t.size, "vlen": len(members), "members": members}
    elif t.kind in (Kind.ENUM, Kind.ENUM64):
        values = [{"name": v.name, "val": v.value} for v in t.values]
        encoding = "SIGNED" if t.flag else "UNSIGNED"
        shown |= {"size": t.size, "vlen": len(values), "encoding": encoding, "values": values}
    elif t.kind is Kind.FWD:
        shown["fwd_kind"] = "union" if t.flag else "struct"
    elif t.kind is Kind.FUNC:
        shown |= {"type_id": t.target, "linkage": ("static", "global", "extern")[t.linkage]}
    elif t.kind is Kind.FUNC_PROTO:
        params = [{"name": e.name or "(anon)", "type_id": e.type} for e in t.entries]
        shown |= {"ret_type_id": t.target, "vlen": len(params), "params": params}
    elif t.kind is Kind.VAR:
        shown |= {"type_id": t.target, "linkage": ("static", "global", "extern")[t.linkage]}
    elif t.kind is Kind.DATASEC:
        found = [{"type_id": v.type, "offset": v.offset, "size": v.size} for v in t.variables]
        shown |= {"size": t.size, "vlen": len(found), "vars": found}
    elif t.kind is Kind.FLOAT:
        shown["size"] = t.size
    elif t.kind is Kind.DECL_TAG:
        shown |= {"type_id": t.target, "component_idx": t.component}
    else:
        shown["type_id"] = t.target
    return shown


def _without_encoding(shown: dict[str, Any]) -> dict[str, Any]:
    """Drop what old versions of bpftool do not print, or print in another way."""
    combined = " " in shown.get("encoding", "") or shown.get("encoding") == "UNKN"
    kept = {k: v for k, v in shown.items() if k != "encoding" or not combined}
    if "values" in shown:
        kept.pop("encoding", None)
    if "vars" in shown:  # they say what the section is called, not its variables
        kept["vars"] = [{k: v for k, v in var.items() if k != "name"} for var in shown["vars"]]
    if "values" in shown:  # printed as signed or as unsigned
        size = 1 << 8 * max(shown["size"], 4)
        kept["values"] = [v | {"val": v["val"] % size} for v in shown["values"]]
    return kept


def _same(b: Btf, *files: Path, step: int = 1) -> None:
    """Compare every type, or every so manieth."""
    expected = _bpftool(*files)
    own = [t for t in expected if t["id"] in b.numbers]
    assert len(own) == len(b.numbers)
    for shown in own[::step]:
        mine = _without_encoding(_as_bpftool(b, shown["id"]))
        assert mine == _without_encoding(shown)


def test_every_type_equals_bpftools(compiled: tuple[Btf, bytes], tmp_path: Path) -> None:
    """What bpftool prints of a compiler's BTF is what is read here."""
    _same(compiled[0], tmp_path / ".BTF")


def test_the_written_blob_equals_bpftools(tmp_path: Path) -> None:
    """What bpftool prints of a blob with every kind is what is read here."""
    path = tmp_path / "blob"
    path.write_bytes(blob().blob())
    _same(Btf.parse(path.read_bytes()), path)


def modules_with_btf(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the split BTF of modules below a folder."""
    for path in sorted(root.rglob("*.ko*")):
        view = parse(read_module(path), path.name)
        section = view.section(".BTF")
        if section is not None:
            yield path.name, bytes(view.contents(section))


def test_kernels_equal_bpftools(some_kernels: dict[str, Path], tmp_path: Path) -> None:
    """Types of real kernels, and of modules that split theirs, equal bpftool's."""
    compared = 0
    for release, folder in some_kernels.items():
        for image in sorted((folder / "boot").glob("vmlinu*")):
            raw = KernelImage.parse(image.read_bytes(), image.name).btf_blob()
            assert raw is not None
            path = tmp_path / f"{release}.btf"
            path.write_bytes(raw)
            base = Btf.parse(raw, name=release)
            _same(base, path, step=5)
            for name, split in islice(modules_with_btf(folder), 4):
                module = tmp_path / name
                module.write_bytes(split)
                _same(Btf.parse(split, base=base, name=name), path, module)
            compared += 1
    if not compared:
        pytest.skip("no folder has an image")
