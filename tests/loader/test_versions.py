# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tree of modules says about its kernel: version magic, CRCs, exports."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import archs
from allocator.errors import ExecmemError
from execmem.check.elfwriter import A, Sec
from loader.depends import open_tree
from loader.elf import parse
from loader.errors import BadModule
from loader.versions import SymversExport, facts_of, read_symvers
from tests.support.checked import extended, made, tree_magic, version_table

LINE = "0x{:08x}\t{}\t{}\t{}\t{}\n"


def tree(folder: Path, release: str, **modules: bytes) -> Path:
    """Write a tree and return its `lib/modules/VERSION`."""
    found = folder / "lib" / "modules" / release
    found.mkdir(parents=True)
    for name, image in modules.items():
        (found / f"{name}.ko").write_bytes(image)
    (found / "modules.dep").write_text("".join(f"{name}.ko:\n" for name in modules), "utf-8")
    return found


def test_symvers_lines() -> None:
    """A line is CRC, name, owner, kind and a namespace; owners are spelt as modules are."""
    text = (
        LINE.format(0x12, "a", "vmlinux", "EXPORT_SYMBOL", "")
        + LINE.format(0xFFFF_FFFF, "b", "drivers/net/some-thing", "EXPORT_SYMBOL_GPL", "SPACE")
        + "0x00000001\tc\tvmlinux\tEXPORT_SYMBOL\n"
        + LINE.format(9, "a", "x", "EXPORT_SYMBOL_GPL", "")
    )
    assert read_symvers(text.encode(), "symvers") == {
        "a": SymversExport(0x12, "vmlinux", gpl=False),
        "b": SymversExport(0xFFFF_FFFF, "some_thing", gpl=True, namespace="SPACE"),
        "c": SymversExport(1, "vmlinux", gpl=False),
    }


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "0x1\ta\tvmlinux",
        "1\ta\tvmlinux\tEXPORT_SYMBOL\t",
        "0xg\ta\tvmlinux\tEXPORT_SYMBOL\t",
        "0x1\t\tvmlinux\tEXPORT_SYMBOL\t",
        "0x1\ta\tvmlinux\tSOMETHING\t",
        "0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\tmore",
    ],
)
def test_damaged_symvers(line: str) -> None:
    """A line that is none is refused, with its number."""
    good = LINE.format(1, "a", "vmlinux", "EXPORT_SYMBOL", "")
    with pytest.raises(BadModule, match="symvers: line 2: "):
        read_symvers(f"{good}{line}\n".encode(), "symvers")


@given(st.binary(max_size=300))
def test_any_symvers(data: bytes) -> None:
    """Whatever a symvers holds, it is read or refused."""
    try:
        read_symvers(data, "symvers")
    except ExecmemError as error:
        assert str(error)  # noqa: PT017 -- reading it is right as well


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("Module.symvers", bytes),
        ("build/Module.symvers", bytes),
        ("symvers.gz", gzip.compress),
        ("symvers.xz", lzma.compress),
        ("symvers", bytes),
    ],
)
def test_symvers_of_a_tree(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    """Distributions put it beside the modules, packed or not, or where the build was."""
    arch = archs.arch("x86_64")
    folder = tree(tmp_path, "6.5.0-other")
    (folder / name).parent.mkdir(exist_ok=True)
    text = LINE.format(7, "f", "vmlinux", "EXPORT_SYMBOL_GPL", "")
    (folder / name).write_bytes(pack(text.encode()))
    facts = facts_of(open_tree(tmp_path), arch)
    assert facts.crcs == {"f": 7}
    assert facts.exports == {"f": SymversExport(7, "vmlinux", gpl=True)}
    (folder / name).write_bytes(b"\xfd7zXZ\x00 and no more")
    with pytest.raises(BadModule):
        facts_of(open_tree(tmp_path), arch)


def test_what_a_trees_modules_say(arch: archs.Arch, tmp_path: Path) -> None:
    """Version magic, CRCs and the size of struct module are those of the tree's modules."""
    machine, magic = arch.machine, tree_magic(arch.machine)
    images = {
        name: made(machine, name, magic=magic, extra=[version_table({"module_layout": 5, name: 6})])
        for name in ("a", "b")
    }
    tree(tmp_path, "6.5.0-other", **images)
    facts = facts_of(open_tree(tmp_path), arch)
    assert (facts.release, facts.vermagic) == ("6.5.0-other", magic)
    assert facts.module_size == arch.loads.layouts.size_of("module")
    assert facts.crcs == {"module_layout": 5, "a": 6, "b": 6}
    assert facts.exports is None


def test_a_stranger_in_a_tree(arch: archs.Arch, tmp_path: Path) -> None:
    """The many decide what the tree's kernel is; of as many, the folder's name."""
    machine, magic = arch.machine, tree_magic(arch.machine)
    own, other = made(machine, magic=magic), made(machine, magic=tree_magic(machine, "5.1.0"))
    tree(tmp_path / "many", "5.1.0", a=own, b=other, c=own)
    assert facts_of(open_tree(tmp_path / "many"), arch).vermagic == magic
    tree(tmp_path / "even", "6.5.0-other", a=other, b=own)
    assert facts_of(open_tree(tmp_path / "even"), arch).vermagic == magic


def test_a_tree_that_says_nothing(arch: archs.Arch, tmp_path: Path) -> None:
    """Modules that cannot be read, or are another architecture's, say nothing."""
    other = next(a for a in archs.ALL if a is not arch)
    tree(tmp_path, "6.5.0-other", a=b"no module", b=made(other.machine))
    facts = facts_of(open_tree(tmp_path), arch)
    assert (facts.vermagic, facts.module_size, facts.crcs) == (None, None, {})
    assert facts.release == "6.5.0-other"


def test_versions_of_a_module(arch: archs.Arch) -> None:
    """Both forms give names and CRCs; of a repeated name the first counts, as in the kernel."""
    crcs = {"module_layout": 0x1234, "f": 0xFFFF_FFFF}
    plain = made(arch.machine, extra=[version_table(crcs)])
    assert parse(plain).crcs == crcs
    newer = made(arch.machine, extra=[*extended(crcs), version_table({"f": 1})])
    assert parse(newer).crcs == crcs
    again = Sec("__versions", version_table({"f": 1}).data + version_table({"f": 2}).data, A)
    assert parse(made(arch.machine, extra=[again])).crcs == {"f": 1}
    assert parse(made(arch.machine)).crcs == {}


@given(table=st.binary(max_size=200), crcs=st.binary(max_size=40), names=st.binary(max_size=60))
def test_any_versions(table: bytes, crcs: bytes, names: bytes) -> None:
    """Whatever stands in the tables, it is read, and as often as they have entries at most."""
    plain = parse(made(62, extra=[Sec("__versions", table, A)])).crcs
    assert len(plain) <= len(table) // 64
    sections = [Sec("__version_ext_crcs", crcs, A), Sec("__version_ext_names", names, A)]
    assert len(parse(made(62, extra=sections)).crcs) <= len(crcs) // 4


def test_real_trees(arch: archs.Arch, corpus: Path) -> None:
    """A distribution's modules agree about what they were built against."""
    tree_of = open_tree(corpus)
    facts = facts_of(tree_of, arch)
    assert facts.vermagic == arch.loads.vermagic
    assert facts.module_size == arch.loads.layouts.size_of("module")
    assert "module_layout" in facts.crcs
