# SPDX-License-Identifier: GPL-2.0-or-later
"""What every test may ask for: each architecture, real modules, a real kernel's answers.

Tests need nothing but the repository. Two folders make them stronger where they exist:
`EXECMEM_CORPUS` holds distribution modules, `EXECMEM_ORACLE` what a booted kernel made of
them in memory. Both hold one folder per architecture, named as the distribution names it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import archs


@pytest.fixture(params=archs.ALL, ids=lambda arch: arch.name, scope="session")
def arch(request: pytest.FixtureRequest) -> archs.Arch:
    """Every architecture of the registry, one after the other."""
    return request.param


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} names no folder with {what}")
    return Path(value)


def _of_arch(folder: Path, arch: archs.Arch) -> Path:
    for name in (arch.name, *arch.aliases):
        if (folder / name).is_dir():
            return folder / name
    pytest.skip(f"{folder} has nothing for {arch.name}")


@pytest.fixture
def corpus(arch: archs.Arch) -> Path:
    """Return the root (of lib/modules/VERSION) that holds distribution modules of `arch`."""
    return _of_arch(_folder("EXECMEM_CORPUS", "distribution modules"), arch)


@pytest.fixture
def oracle(arch: archs.Arch) -> Path:
    """Return the folder of what a real kernel of `arch` did with its modules."""
    return _of_arch(_folder("EXECMEM_ORACLE", "recordings of real kernels"), arch)
