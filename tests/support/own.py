# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of one's own for tests: folders in which kernels were built, under EXECMEM_OWN_KERNELS."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

import archs
from loader.kernel.config import parse_config
from machine.booted.kunit import ENABLE, RUN_ALL
from machine.booted.machine import BootedMachine
from tests.support.booted import alone

SOURCES = Path(__file__).parents[1] / "data" / "own"
WHY = "EXECMEM_OWN_KERNELS names no folder with trees that kernels were built in"
# `uname -m` and the compilers' prefix of each architecture, as the kernel's Makefile takes them.
_BUILD = {
    "x86_64": ("x86", ""),
    "arm64": ("arm64", "aarch64-linux-gnu-"),
    "riscv64": ("riscv", "riscv64-linux-gnu-"),
}


def trees() -> list[Path]:
    """Return the folders in which kernels were built."""
    folders = filter(None, os.environ.get("EXECMEM_OWN_KERNELS", "").split(os.pathsep))
    found = (path for each in folders for path in sorted(Path(each).iterdir()))
    return [path for path in found if (path / "vmlinux").is_file() and (path / ".config").is_file()]


def config(tree: Path) -> dict[str, str]:
    """Return how a kernel was configured: options without CONFIG_."""
    found = parse_config((tree / ".config").read_text("utf-8"))
    return {name.removeprefix("CONFIG_"): value for name, value in found.items()}


def has(tree: Path, *options: str) -> None:
    """Skip where a kernel was built without an option."""
    settings = config(tree)
    lacking = [name for name in options if settings.get(name, "n") == "n"]
    if lacking:
        pytest.skip(f"{tree.name} was built without {', '.join(lacking)}")


def arch_of(tree: Path) -> archs.Arch:
    """Return the architecture that a kernel was configured for."""
    settings = config(tree)
    option = {"x86_64": "X86_64", "arm64": "ARM64", "riscv64": "RISCV"}
    return next(a for a in archs.archs() if settings.get(option.get(a.name, "")) == "y")


@cache
def machine(tree: Path) -> BootedMachine:
    """Return a machine that has booted a kernel without the tests built into it."""
    with alone(Path(os.environ["XDG_CACHE_HOME"])):
        return BootedMachine(kernel=tree, root=tree, command_line=ENABLE, without=(RUN_ALL,))


@cache
def modules(tree: Path) -> Path:
    """Return the folder with the test modules, built for a kernel with its own makefiles."""
    arch, prefix = _BUILD[arch_of(tree).name]
    if shutil.which("make") is None or shutil.which(f"{prefix}gcc") is None:
        pytest.skip(f"no make or {prefix}gcc")
    folder = Path(mkdtemp(prefix="execmem-own-"))
    for source in SOURCES.iterdir():
        shutil.copy(source, folder)
    words = ["make", "-C", str(tree), f"M={folder}", f"ARCH={arch}", f"CROSS_COMPILE={prefix}"]
    done = subprocess.run([*words, "modules"], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    return folder
