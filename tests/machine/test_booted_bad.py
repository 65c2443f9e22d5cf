# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that do not come up: one line each with what they said last, and nothing is kept."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from allocator.errors import ExecmemError
from execmem.cli import main
from kernels.booted import cache
from kernels.booted.opening import open_kernel
from kernels.errors import BootFailed
from loader.errors import BadKernel
from loader.kernel.find import find_kernel
from loader.kernel.image import KernelImage
from machine.booted.machine import BootedMachine
from tests.support import booted

# The one that boots fastest: what is asked here has nothing to do with architectures.
KERNELS = sorted(booted.one_of_each(), key=lambda each: each[2].name)[:1]


@pytest.fixture(scope="module", params=KERNELS, ids=[name for name, _, _ in KERNELS])
def image(request: pytest.FixtureRequest) -> KernelImage:
    """Return a kernel that has been read."""
    return find_kernel(request.param[1]).read()


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let kernels be kept in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "execmem"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"memory": 1 << 20}, "1 MiB of memory are too little: it takes"),
        ({"memory": 16 << 20}, "16 MiB of memory are too little: it takes"),
        ({"memory": 4097}, "memory=4097: a multiple of 0x10000 bytes"),
        ({"memory": -4096}, "memory=-4096: a multiple of"),
        ({"memory": 1 << 50}, "at most 64 GiB"),
        ({"command_line": "x" * 3000}, "a command line of 3000 bytes: at most"),
        ({"command_line": "a\0b"}, "not printable ASCII"),
        ({"command_line": "a\nb"}, "not printable ASCII"),
        ({"command_line": "f\u00fcr"}, "not printable ASCII"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_nobody_can_boot_with_is_refused(
    image: KernelImage, own: Path, given: dict[str, Any], text: str
) -> None:
    """Before anything runs."""
    with pytest.raises(BootFailed, match=text) as caught:
        BootedMachine(kernel=image, **given)
    assert "\n" not in str(caught.value)
    assert not own.exists()


def test_a_panic_is_told_with_what_the_kernel_said(image: KernelImage, own: Path) -> None:
    """In one line, without the prefixes of messages; nothing is kept of it."""
    with pytest.raises(BootFailed) as caught:
        BootedMachine(kernel=image, command_line="rdinit=/nowhere")
    text = str(caught.value)
    assert "\n" not in text
    assert "; it last said: Kernel panic - not syncing: VFS: Unable to mount root fs" in text
    assert not own.exists()
    assert list(cache.entries()) == []


def test_a_boot_that_takes_too_long_ends(image: KernelImage, own: Path) -> None:
    """Like any other that fails."""
    with pytest.raises(BootFailed, match="its time was over"):
        open_kernel(image, seconds=0.7)
    assert not own.exists()


def test_another_architecture_is_refused(image: KernelImage) -> None:
    """By name."""
    other = "riscv64" if image.arch.name != "riscv64" else "arm64"
    with pytest.raises(BadKernel, match=f"is for {image.arch.name}, not for {other}"):
        BootedMachine(other, kernel=image)


def damaged(data: bytes, chosen: random.Random) -> bytes:
    """Return an image of which something is missing, or something else."""
    found = bytearray(data)
    how = chosen.randrange(4)
    at = chosen.randrange(len(found))
    if how == 0:
        del found[at:]
    elif how == 1:
        for _ in range(chosen.choice((1, 5, 50))):
            found[chosen.randrange(4096)] = chosen.randrange(256)
    elif how == 2:
        size = chosen.choice((64, 4096, 1 << 20))
        found[at : at + size] = bytes(len(found[at : at + size]))
    else:
        del found[at : at + chosen.choice((8, 4096))]
    return bytes(found)


def test_damaged_images_are_refused_or_fail(
    image: KernelImage, own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong with a file is a line."""
    chosen = random.Random(int(os.environ.get("EXECMEM_SEED", "5")))
    path = tmp_path / "vmlinuz"
    for _ in range(200 if os.environ.get("EXECMEM_LONG") else 4):
        path.write_bytes(damaged(image.data, chosen))
        try:
            open_kernel(path, keep=False, seconds=0.5)
        except ExecmemError as error:
            refused = str(error)
        else:
            refused = ""
        assert "\n" not in refused
    path.write_bytes(image.data[: len(image.data) // 3])
    with pytest.raises(SystemExit) as ended:
        main(["run", "x", "--kernel", str(path)])
    assert ended.value.code == 1
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert not own.exists()
