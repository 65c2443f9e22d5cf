# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a kernel's files lie: beside each other, in trees, in packages."""

from __future__ import annotations

import gzip
import lzma
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from loader.errors import BadKernel, BadModule
from loader.kernel.find import find_kernel
from tests.archs.facts import facts
from tests.loader.kernel.test_image import body_of
from tests.support import packages
from tests.support.imagewriter import flat, symbols

RELEASE = "6.9.1-test"
CONFIG = "CONFIG_HZ=250\nCONFIG_PAGE_SHIFT=14\n"
PLACES = {
    "boot": (f"boot/vmlinuz-{RELEASE}", f"boot/config-{RELEASE}"),
    "packed": (f"boot/vmlinuz-{RELEASE}.xz", f"boot/config-{RELEASE}"),
    "usr": (f"usr/lib/modules/{RELEASE}/vmlinuz", f"usr/lib/modules/{RELEASE}/config"),
    "unsigned": (f"lib/modules/{RELEASE}/vmlinuz.unsigned", f"lib/modules/{RELEASE}/config"),
}


@pytest.fixture(scope="module")
def image() -> bytes:
    """Return an arm64 image with pages of 16 KiB."""
    raw = bytearray(
        flat(183, body_of(183, symbols(facts("arm64").load.image_base), "6.12", b"", 64), 1 << 20)
    )
    raw[24] = 2 << 1
    return bytes(raw)


def stored(place: str, image: bytes) -> Mapping[str, bytes]:
    """Return path -> contents, the kernel among others."""
    where, config = PLACES[place]
    data = lzma.compress(image) if where.endswith(".xz") else image
    return {where: data, config: CONFIG.encode(), f"boot/System.map-{RELEASE}": b"", "etc/x": b"y"}


def tree(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Return a folder with files in it."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_a_kernel_is_found_in_a_tree(place: str, image: bytes, tmp_path: Path) -> None:
    """From the tree, the folder it lies in, or its file: image and configuration are found."""
    root = tree(tmp_path / "root", stored(place, image))
    where, config = (root / name for name in PLACES[place])
    for given in (root, where.parent, where):
        files = find_kernel(given)
        assert files.sources == {"image": str(where), "config": str(config)}
        kernel = files.read()
        assert (kernel.release, kernel.page_size) == (RELEASE, 16384)
        assert kernel.config == {"CONFIG_HZ": "250", "CONFIG_PAGE_SHIFT": "14"}
    config.unlink()
    assert "config" not in find_kernel(root).sources


@pytest.mark.parametrize("kind", ["deb", "rpm", "tar.gz"])
@pytest.mark.parametrize("place", PLACES)
def test_a_kernel_is_found_in_a_package(
    place: str, kind: str, image: bytes, tmp_path: Path
) -> None:
    """Packages and tarballs are read without unpacking them."""
    path = tmp_path / f"kernel.{kind}"
    files = list(stored(place, image).items())
    make = {
        "deb": packages.deb,
        "rpm": packages.rpm,
        "tar.gz": partial(packages.tarball, packing=".gz"),
    }
    path.write_bytes(make[kind](files))
    found = find_kernel(path)
    assert found.sources == {
        "image": f"{path}:{PLACES[place][0]}",
        "config": f"{path}:{PLACES[place][1]}",
    }
    assert found.read().release == RELEASE


def test_several_kernels_are_named(image: bytes, tmp_path: Path) -> None:
    """Where there are several, none is chosen; a version's own folder says which is meant."""
    both = {f"lib/modules/6.{n}/vmlinuz": image for n in (1, 2)}
    root = tree(tmp_path, both)
    with pytest.raises(BadKernel, match=re.escape("holds several (6.1, 6.2); name one's file")):
        find_kernel(root)
    assert find_kernel(root / "lib/modules/6.1").sources["image"].endswith("6.1/vmlinuz")


def test_what_is_no_kernel_is_refused(tmp_path: Path) -> None:
    """Nothing, a folder without one, a FIFO, a damaged package: one line each."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bad.deb").write_bytes(b"!<arch>\nnonsense")
    for name, reason in (
        ("nothing", "file: No such file or directory"),
        ("", "holds no image"),
        ("pipe", "file: is a pipe: write"),
        ("bad.deb", "archive: damaged"),
    ):
        with pytest.raises((BadKernel, BadModule), match=reason):
            find_kernel(tmp_path / name)


def test_the_running_kernel_is_found_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`running` looks where distributions put a kernel, and says where it looked."""
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:2], "0.0-none", *real[3:])))
    with pytest.raises(BadKernel, match=r"Linux 0\.0-none: none that can be read in /boot/vmlinuz"):
        find_kernel("running")


def test_a_packed_configuration_is_read(image: bytes, tmp_path: Path) -> None:
    """A configuration that is packed as /proc/config.gz is, is unpacked."""
    (tmp_path / "vmlinuz-x").write_bytes(image)
    (tmp_path / "config-x").write_bytes(gzip.compress(CONFIG.encode()))
    assert find_kernel(tmp_path / "vmlinuz-x").read().config["CONFIG_HZ"] == "250"
