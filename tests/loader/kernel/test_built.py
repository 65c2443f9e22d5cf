# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders in which kernels were built: image, configuration, symbols and modules of one build."""

from __future__ import annotations

from pathlib import Path

import pytest

from loader.depends import open_tree, tree_around
from loader.kernel.find import built_in, find_kernel, read_kernel
from loader.kernel.symbols import Encoding
from tests.loader.kernel.test_elfsymbols import BASE, NAMES, vmlinux
from tests.support.imagewriter import bzimage, kallsyms, symbols

BANNER = b"Linux version 6.9.1-own (me@here) (gcc) #1\n\0"


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """Return such a folder: its image lacks variables, which its ELF file has."""
    text = [each for each in symbols(BASE) if each.type in "tT"]
    body = kallsyms(text, BASE, BASE, "6.12") + BANNER
    whole = vmlinux(body, NAMES)
    stripped = bytearray(whole)
    stripped[40:48] = bytes(8)
    boot = tmp_path / "arch" / "x86" / "boot"
    (tmp_path / "lib" / "deep").mkdir(parents=True)
    boot.mkdir(parents=True)
    (tmp_path / "vmlinux").write_bytes(whole)
    (tmp_path / ".config").write_text('CONFIG_LOCALVERSION="-own"\n')
    (boot / "bzImage").write_bytes(bzimage(bytes(stripped)))
    (tmp_path / "modules.order").write_text("lib/one.o\nlib/deep/two.ko\nlib/gone.o\n")
    for name in ("lib/one.ko", "lib/deep/two.ko", "lib/stale.ko"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_an_image_takes_what_it_lacks_from_its_elf_file(build: Path) -> None:
    """An image takes what it lacks from the ELF file that it was made of, and its configuration."""
    image = build / "arch" / "x86" / "boot" / "bzImage"
    assert built_in(image) == build
    for path in (image, build / "vmlinux", build):
        found = read_kernel(path)
        assert found.release == "6.9.1-own"
        assert found.config == {"CONFIG_LOCALVERSION": "-own"}
        assert found.symbols["counter"] == BASE + 0x80
        assert found.symbols.encoding is Encoding.ELF


def test_another_builds_elf_file_is_not_taken(build: Path) -> None:
    """The ELF file of another build is not taken: its symbols lie elsewhere."""
    whole = (build / "vmlinux").read_bytes().replace(b"(gcc) #1", b"(gcc) #2")
    (build / "vmlinux").write_bytes(whole)
    found = read_kernel(build / "arch" / "x86" / "boot" / "bzImage")
    assert "counter" not in found.symbols


def test_an_image_elsewhere_is_alone(build: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An image that was copied away is alone."""
    away = tmp_path_factory.mktemp("away") / "bzImage"
    away.write_bytes((build / "arch" / "x86" / "boot" / "bzImage").read_bytes())
    files = find_kernel(away)
    assert files.config is files.vmlinux is None
    assert "counter" not in files.read().symbols


def test_modules_are_those_that_were_built(build: Path) -> None:
    """Modules are those that `modules.order` lists, for the folder and for a file in it."""
    for tree in (open_tree(build), tree_around(build / "lib" / "one.ko")):
        assert tree is not None
        assert set(tree.files) == {"one", "two"}
        assert tree.path("two") == build / "lib" / "deep" / "two.ko"
