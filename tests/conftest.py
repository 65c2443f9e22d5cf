# SPDX-License-Identifier: GPL-2.0-or-later
"""What every test may ask for: each architecture, real modules, a real kernel's answers.

Tests need nothing but the repository. Folders make them stronger where they exist:
`EXECMEM_CORPUS` holds distribution modules, one folder per architecture, named as the
distribution names it; `EXECMEM_ORACLE`, a path list, what booted kernels made of modules in
memory (folders per architecture, or `RELEASE-ARCH` ones); `EXECMEM_KERNELS` kernel images,
configurations and modules, in `RELEASE-ARCH` folders. With `EXECMEM_LONG` booted kernels load all
of their modules, and not a sample.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

import archs
from archs.arch import LevelMissing
from emulator import interrupts

HERE = Path(__file__).parent


# Folder or file -> the level that all its tests need of the architecture that they are given.
NEEDED = {
    **dict.fromkeys(("emulator", "execmem", "fuzz", "kernels", "machine", "samples"), "run"),
    **dict.fromkeys(("archs/test_text.py", "archs/test_live_patch.py"), "patch"),
    **dict.fromkeys(("kernels/modelled/text", "machine/test_patching.py"), "patch"),
    **dict.fromkeys(("loader/test_livepatch.py", "execmem/test_tracing.py"), "patch"),
    "loader/finalize": "finalise",
    "archs/test_address_map.py": "load",
    "archs/test_decode.py": "run",
    **dict.fromkeys(("loader/test_got.py", "loader/test_depends.py"), "load"),
    **dict.fromkeys(("loader/test_work.py", "loader/test_motion.py"), "load"),
}


def pytest_make_parametrize_id(val: object) -> str | None:
    """Call an architecture by its name: all test processes must see the same names of tests."""
    return val.name if isinstance(val, archs.Arch) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Skip a test whose architecture lacks the level of its folder, or of its fixtures."""
    path = item.path.relative_to(HERE)
    level = next((NEEDED[str(p)] for p in (path, *path.parents) if str(p) in NEEDED), None)
    given = getattr(item, "callspec", None)
    arch = given.params.get("arch") if given is not None else None
    if level is not None and isinstance(arch, archs.Arch) and not getattr(arch, level):
        pytest.skip(f"{arch.name} has no level {level!r}")
    try:
        return (yield)
    except LevelMissing as missing:
        pytest.skip(f"{missing.arch} has no level {missing.level!r}")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Skip tests whose architecture lacks what they need.

    An architecture that has every level never raises this: nothing of it is skipped.
    """
    try:
        return (yield)
    except LevelMissing as missing:
        pytest.skip(f"{missing.arch} has no level {missing.level!r}")


@pytest.fixture(params=archs.ALL, ids=lambda arch: arch.name, scope="session")
def arch(request: pytest.FixtureRequest) -> archs.Arch:
    """Every architecture of the registry, one after the other."""
    return request.param


def folders(variable: str, what: str) -> list[Path]:
    """Return the folders that a variable lists, or skip."""
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} names no folder with {what}")
    return [Path(part) for part in value.split(os.pathsep) if part]


def of_arch(found: Iterable[Path], arch: archs.Arch) -> Path:
    """Return the folder of an architecture in the first of those found that has one, or skip."""
    for folder in found:
        for name in (arch.name, *arch.aliases):
            if (folder / name).is_dir():
                return folder / name
    pytest.skip(f"{os.pathsep.join(map(str, found))} has nothing for {arch.name}")


def _of_releases(given: Iterable[Path], arch: archs.Arch) -> dict[str, Path]:
    """Return the `RELEASE-ARCH` folders of an architecture, by release."""
    found: dict[str, Path] = {}
    for folder in given:
        for path in sorted(p for p in folder.iterdir() if p.is_dir()):
            release, dash, name = path.name.rpartition("-")
            if dash and name in (arch.name, *arch.aliases):
                found[release] = path
    if not found:
        pytest.skip(f"{os.pathsep.join(map(str, given))} has no release for {arch.name}")
    return found


@pytest.fixture
def corpus(arch: archs.Arch) -> Path:
    """Return the root (of lib/modules/VERSION) that holds distribution modules of `arch`."""
    return of_arch(folders("EXECMEM_CORPUS", "distribution modules"), arch)


@pytest.fixture
def oracle(arch: archs.Arch) -> Path:
    """Return the folder of what a real kernel of `arch` did with its modules."""
    return of_arch(folders("EXECMEM_ORACLE", "recordings of real kernels"), arch)


@pytest.fixture
def other_recordings(arch: archs.Arch) -> dict[str, Path]:
    """Return what real kernels of other releases did with their modules: release -> folder."""
    return _of_releases(folders("EXECMEM_ORACLE", "recordings of real kernels"), arch)


@pytest.fixture
def kernels(arch: archs.Arch) -> dict[str, Path]:
    """Return release -> folder with its image, configuration and modules (`boot`, `lib`)."""
    return _of_releases(folders("EXECMEM_KERNELS", "kernels"), arch)


@pytest.fixture
def some_kernels(kernels: dict[str, Path]) -> dict[str, Path]:
    """Return the first and the last of them; with EXECMEM_LONG all."""
    releases = list(kernels)
    if os.environ.get("EXECMEM_LONG"):
        return kernels
    return {release: kernels[release] for release in (*releases[:1], *releases[-1:])}


# The commands that tests start need not compile all sources, each anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
interrupts.listen()  # now, and not when a test is the first to make a CPU


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let booted kernels be kept where the test processes of this run find them, and no others."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["XDG_CACHE_HOME"] = str(shared / "cache")
