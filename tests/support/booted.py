# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted kernels for tests: each is booted once for all test processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import archs
from archs import Arch
from machine.booted.machine import BootedMachine
from machine.booted.snapshots import Snapshot


def releases() -> list[tuple[str, Path, Arch]]:
    """Return name, folder and architecture of every kernel at hand that can be booted."""
    found: list[tuple[str, Path, Arch]] = []
    for folder in filter(None, os.environ.get("EXECMEM_KERNELS", "").split(os.pathsep)):
        for path in sorted(p for p in Path(folder).iterdir() if p.is_dir()):
            _, dash, name = path.name.rpartition("-")
            found += [
                (path.name, path, arch)
                for arch in archs.archs()
                if dash and name in (arch.name, *arch.aliases) and arch.boot is not None
            ]
    return found


def some() -> list[tuple[str, Path, Arch]]:
    """Return a kernel for each architecture; with EXECMEM_LONG every one that is at hand."""
    return releases() if os.environ.get("EXECMEM_LONG") else one_of_each()


def tree(folder: Path) -> Path | None:
    """Return the root of a kernel's modules: its own folder, or the corpus where that has them."""
    if list(folder.rglob("*.ko*")):
        return folder
    releases = {path.name.partition("-")[2] for path in (folder / "boot").glob("vmlinu*")}
    for root in filter(None, os.environ.get("EXECMEM_CORPUS", "").split(os.pathsep)):
        for path in Path(root).glob("*/lib/modules/*"):
            if any(release.removesuffix(".xz") == path.name for release in releases):
                return path.parent.parent.parent
    return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let no other test process be here meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def machine(folder: Path, root: Path | None = None) -> BootedMachine:
    """Return the machine of a kernel's folder; one for all tests of a process."""
    cached = Path(os.environ["XDG_CACHE_HOME"])
    with alone(cached):
        return BootedMachine(kernel=folder, root=root)


def one_of_each() -> list[tuple[str, Path, Arch]]:
    """Return a kernel for each architecture: one that has modules, where there is one."""
    chosen: dict[str, tuple[str, Path, Arch]] = {}
    for name, path, arch in releases():
        if arch.name not in chosen or not (chosen[arch.name][1] / "lib").is_dir():
            chosen[arch.name] = name, path, arch
    return list(chosen.values())


@cache
def _first(folder: Path, root: Path | None) -> Snapshot:
    return machine(folder, root).snapshot()


@contextmanager
def fresh(folder: Path, root: Path | None = None) -> Iterator[BootedMachine]:
    """Give the machine of a kernel's folder as it was at first, which it is again afterwards.

    It is frozen once for all tests of a process, which takes longer than going back.
    """
    first = _first(folder, root)
    found = machine(folder, root)
    found.restore(first)
    try:
        yield found
    finally:
        found.interposing.stop()
        found.restore(first)
