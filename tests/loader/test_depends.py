# SPDX-License-Identifier: GPL-2.0-or-later
"""Module trees: `modules.dep` as depmod writes it, and what may be wrong with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from loader.depends import find, open_tree, tree_around
from loader.errors import BadModule, MissingDependency, NoModule
from loader.files import read_module
from samples.modules import path, root

DEP = """\
kernel/lib/a.ko.xz:
kernel/lib/b-b.ko: kernel/lib/a.ko.xz
# a comment

kernel/lib/c.ko: kernel/lib/b-b.ko kernel/lib/a.ko.xz
"""


def tree(root: Path, version: str = "6.12.0", dep: str = DEP) -> Path:
    """Write a module tree; return its version folder."""
    folder = root / "lib" / "modules" / version
    (folder / "kernel/lib").mkdir(parents=True)
    (folder / "modules.dep").write_text(dep)
    for name in ("a.ko.xz", "b-b.ko"):
        (folder / "kernel/lib" / name).write_bytes(b"")
    return folder


def test_dependencies_come_in_the_order_to_load(tmp_path: Path) -> None:
    """The index lists the closest dependency first; loading starts with the deepest."""
    folder = tree(tmp_path)
    found = open_tree(tmp_path)
    assert found.folder == folder
    assert found.to_load("c") == ("a", "b_b", "c")
    assert found.to_load("a") == ("a",)
    assert found.path("a") == folder / "kernel/lib/a.ko.xz"
    assert found.path("nothing") is None
    assert found.to_load("nothing") == ("nothing",)


def test_dashes_and_underscores_are_one(tmp_path: Path) -> None:
    """A module is found however its name is spelt, as modprobe does it."""
    tree(tmp_path)
    found = open_tree(tmp_path)
    assert found.path("b-b") == found.path("b_b")
    assert found.to_load("b-b") == ("a", "b_b")


def test_the_version_folder_itself_may_be_given(tmp_path: Path) -> None:
    """Both the root that modprobe -d takes and the folder with modules.dep will do."""
    folder = tree(tmp_path)
    assert open_tree(folder) == open_tree(str(tmp_path))


def test_several_versions_are_not_chosen_between(tmp_path: Path) -> None:
    """With several versions under a root the error names them and how to name one."""
    tree(tmp_path, "6.12.1")
    first = tree(tmp_path, "6.12.0")
    with pytest.raises(BadModule) as caught:
        open_tree(tmp_path)
    assert "several versions (6.12.0, 6.12.1)" in str(caught.value)
    assert str(first) in str(caught.value)
    assert open_tree(first).folder == first


def test_several_trees_are_not_chosen_between(tmp_path: Path) -> None:
    """With a tree per architecture in a folder the error names them: names are the same in each."""
    for name in ("arm64", "riscv64"):
        kernel = tree(tmp_path / name, "6.12.0") / "kernel"
        kernel.mkdir(exist_ok=True)
        (kernel / "a.ko").write_bytes(b"")
    with pytest.raises(BadModule, match=r"several trees \(arm64, riscv64\); name one: .*/arm64"):
        open_tree(tmp_path)
    assert open_tree(tmp_path / "riscv64").folder.is_relative_to(tmp_path / "riscv64")


def test_a_root_without_modules_is_refused(tmp_path: Path) -> None:
    """A folder that holds no tree is named."""
    with pytest.raises(BadModule, match="holds no lib/modules/VERSION, and no modules"):
        open_tree(tmp_path)


def test_a_bad_line_is_named_by_its_number(tmp_path: Path) -> None:
    """A line without a colon is refused with its number."""
    tree(tmp_path, dep="kernel/a.ko:\nkernel/b.ko kernel/a.ko\n")
    with pytest.raises(BadModule, match=r"line 2: is not 'FILE: NEEDED\.\.\.'"):
        open_tree(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Undecodable bytes give the family's error."""
    (tree(tmp_path) / "modules.dep").write_bytes(b"\xff\xfe: x")
    with pytest.raises(BadModule, match=r"modules\.dep: file: "):
        open_tree(tmp_path)


def test_asking_for_a_module_by_name(tmp_path: Path) -> None:
    """A name needs a tree that lists it and a file that is there; else the error says which."""
    folder = tree(tmp_path)
    found = open_tree(tmp_path)
    assert find(found, "b-b") == folder / "kernel/lib/b-b.ko"
    for given, name in ((None, "a"), (found, "zzz"), (found, "c")):  # c is listed, not there
        with pytest.raises(MissingDependency) as caught:
            find(given, name)
        assert caught.value.missing == (name,)
        assert "\n" not in str(caught.value)


def test_a_distributions_tree_is_whole(corpus: Path) -> None:
    """Every file of a distribution's index is found, and each comes after what it needs."""
    found = open_tree(corpus)
    assert len(found.files) > 20
    for name in found.files:
        order = found.to_load(name)
        assert order[-1] == name
        for at, needed in enumerate(order):
            assert set(found.to_load(needed)) <= set(order[: at + 1])
    first = next(n for n in found.files if found.path(n).is_file())
    assert read_module(find(found, first)).startswith(b"\x7fELF")


def test_modules_without_an_index_say_what_they_need(tmp_path, arch):
    """Where nobody ran depmod, the modules' own lines give what `modules.dep` would say."""
    whole = open_tree(root(arch.name))
    folder = tmp_path / "lib" / "modules" / "6.12.0"
    shutil.copytree(whole.folder / "kernel", folder / "kernel")
    for given in (tmp_path, folder, folder / "kernel"):
        found = open_tree(given)
        assert not found.indexed
        assert whole.indexed
        assert set(found.files) == set(whole.files)
        for name in whole.files:
            assert found.to_load(name) == whole.to_load(name)
            assert set(found.needs[name]) == set(whole.needs[name])
    inside = tree_around(folder / "kernel" / "mathuser.ko")
    assert inside is not None
    assert inside.folder == folder
    assert find(inside, "mathlib") == folder / "kernel" / "mathlib.ko"
    (folder.parent / "6.13.0").mkdir()  # without modules it is no version to choose from
    assert open_tree(tmp_path).folder == folder
    shutil.copytree(folder, folder.parent / "6.14.0")
    with pytest.raises(BadModule, match=r"several versions \(6.12.0, 6.14.0\)"):
        open_tree(tmp_path)


def test_modules_beside_a_file_are_its_tree_where_they_are_all_it_needs(tmp_path, arch):
    """A file in no tree finds what it depends on beside itself, or nothing at all."""
    for name in ("mathuser", "hello"):
        shutil.copy(path(arch.name, name), tmp_path)
    assert tree_around(tmp_path / "mathuser.ko") is None
    assert tree_around(tmp_path / "hello.ko") is None
    shutil.copy(path(arch.name, "mathlib"), tmp_path)
    found = tree_around(tmp_path / "mathuser.ko")
    assert found is not None
    assert found.to_load("mathuser") == ("mathlib", "mathuser")


def test_circles_and_damage_do_not_keep_a_tree_from_being_read(tmp_path):
    """Modules that need each other, themselves, or are no modules: each is listed once."""
    for name, depends in (("a", "b"), ("b", "a,c"), ("c", "c"), ("d", "gone,e")):
        (tmp_path / f"{name}.ko").write_bytes(f"\0depends={depends}\0".encode())
    (tmp_path / "e.ko.xz").write_bytes(b"\xfd7zXZ\x00damaged")
    found = open_tree(tmp_path)
    assert {name: found.needs[name] for name in "abcde"} == {
        "a": ("c", "b"),
        "b": ("a", "c"),
        "c": (),
        "d": ("gone", "e"),
        "e": (),
    }
    assert "f" not in found.needs


def test_near_names_are_asked_for(tmp_path):
    """A name that nearly is a module's is answered with the question whether that was meant."""
    tree(tmp_path)
    with pytest.raises(
        NoModule, match=r"^no module b_d in .*lib/modules/.* \(did you mean b_b\?\)$"
    ):
        find(open_tree(tmp_path), "b_d")
