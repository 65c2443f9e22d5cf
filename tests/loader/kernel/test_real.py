# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels' images beside what those kernels said of themselves when they ran.

Needs EXECMEM_KERNELS and EXECMEM_ORACLE: images, and recorded `/proc/kallsyms`.
"""

from __future__ import annotations

import lzma
from functools import lru_cache
from pathlib import Path

import pytest

import archs
from loader.elf import parse
from loader.files import read_module
from loader.kernel.config import parse_config
from loader.kernel.image import KernelImage
from tests.conftest import folders, of_arch


@lru_cache(maxsize=2)
def image_in(folder: Path) -> KernelImage:
    """Return the kernel in a folder."""
    (path,) = (folder / "boot").glob("vmlinu*")
    return KernelImage.parse(path.read_bytes(), path.name)


@pytest.fixture
def images(some_kernels: dict[str, Path]) -> dict[str, Path]:
    """Return release -> folder of those that have an image."""
    found = {r: folder for r, folder in some_kernels.items() if list(folder.glob("boot/vmlinu*"))}
    if not found:
        pytest.skip("no folder has an image")
    return found


def recorded(folder: Path) -> list[tuple[int, str, str]]:
    """Return the kernel's own lines of a recorded /proc/kallsyms."""
    path = folder / "boot" / "base" / "kallsyms.end.xz"
    if not path.is_file():
        return []
    lines = (line.split() for line in lzma.decompress(path.read_bytes()).decode().splitlines())
    return [(int(w[0], 16), w[1], w[2]) for w in lines if len(w) == 3]


def test_symbols_equal_those_of_the_running_kernel(
    arch: archs.Arch, images: dict[str, Path], other_recordings: dict[str, Path]
) -> None:
    """Every symbol's address, type and name, and their order, are what /proc/kallsyms printed."""
    compared = 0
    for release, folder in images.items():
        lines = recorded(other_recordings.get(release, folder))
        if not lines and release == "6.12":  # the recordings without a release are of this one
            lines = recorded(of_arch(folders("EXECMEM_ORACLE", "recordings"), arch))
        if not lines:
            continue
        kernel = image_in(folder)
        symbols = kernel.symbols
        ours = zip(symbols.addresses.tolist(), map(chr, symbols.types), symbols.names, strict=True)
        assert list(ours) == lines, release
        compared += 1
    if not compared:
        pytest.skip("no recording has kallsyms")


def test_exports_are_what_modules_were_built_against(images: dict[str, Path]) -> None:
    """Checksums equal those that the kernel's own modules carry, and addresses the symbols'."""
    for release, folder in images.items():
        kernel, checked = image_in(folder), 0
        assert len(kernel.exports) > 10_000, release
        places: dict[str, set[int]] = {}  # a static symbol may have an exported one's name
        for name, at in zip(kernel.symbols.names, kernel.symbols.addresses.tolist(), strict=True):
            places.setdefault(name, set()).add(at)
        for export in kernel.exports.values():
            assert export.address in places.get(export.name, {export.address}), export
        for path in sorted(folder.glob("lib/modules/*/kernel/**/*.ko*")):
            view = parse(read_module(path), path.name)
            section = view.section("__versions")
            raw = b"" if section is None else bytes(view.contents(section))
            for at in range(0, len(raw) - 63, 64):
                name = raw[at + 8 : at + 64].split(b"\0")[0].decode()
                if name in kernel.exports:
                    crc = int.from_bytes(raw[at : at + 8], "little")
                    assert kernel.exports[name].crc == crc, f"{release} {path.name} {name}"
                    checked += 1
        assert checked or not kernel.config or release.startswith("7"), release


def test_what_a_real_image_says(images: dict[str, Path]) -> None:
    """Release, types and configuration of each image agree with its files' names and contents."""
    for folder in images.values():
        kernel = image_in(folder)
        (config,) = folder.glob("boot/config-*")
        assert kernel.release == config.name.removeprefix("config-")
        assert kernel.btf is not None
        assert kernel.btf.find("task_struct") is not None
        found = parse_config(config.read_text())
        assert found["CONFIG_KALLSYMS"] == "y"
        assert f"CONFIG_VERSION_TEXT {found['CONFIG_CC_VERSION_TEXT']}"[20:] in kernel.banner
        if found.get("CONFIG_KALLSYMS_ALL") == "y":
            assert kernel.build_id
            assert kernel.percpu is not None
