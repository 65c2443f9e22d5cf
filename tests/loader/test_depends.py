# SPDX-License-Identifier: GPL-2.0-or-later
"""Module trees: `modules.dep` as depmod writes it, and what may be wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from loader.depends import find, open_tree
from loader.errors import BadModule, MissingDependency
from loader.files import read_module

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


def test_a_root_without_modules_is_refused(tmp_path: Path) -> None:
    """A folder that holds no tree is named."""
    with pytest.raises(BadModule, match="holds no lib/modules/VERSION"):
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
