# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own kernel modules, prebuilt for every architecture, for demos, tests and docs.

Each shows one idea and has functions whose results can be worked out in Python. They lie
in the tree that an installed kernel has (`<arch>/lib/modules/VERSION` with `modules.dep`),
so that `root(arch)` serves wherever a module root is asked for. Sources stand in `src`,
the recipe in `build.py`, and `manifest.json` tells which compilers gave which bytes.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from allocator.errors import ExecmemError

RELEASE = "6.12.0-samples"


def _folder() -> Path:
    return Path(str(files(__name__)))


def root(arch: str) -> Path:
    """Return the module root of `arch`: the folder that holds lib/modules/VERSION.

    Raises
    ------
    ExecmemError
        There are no samples for an architecture of that name.
    """
    found = _folder() / arch
    if not (found / "lib" / "modules" / RELEASE / "modules.dep").is_file():
        have = ", ".join(sorted(path.parts[-4] for path in _folder().glob("*/lib/modules/*")))
        raise ExecmemError(f"no sample modules for {arch!r}; there are some for {have}")
    return found


def names() -> tuple[str, ...]:
    """Return the names of the sample modules, sorted; every architecture has them all."""
    return tuple(sorted({path.stem for path in _folder().glob(f"*/lib/modules/{RELEASE}/*/*.ko")}))


def path(arch: str, name: str) -> Path:
    """Return the file of the sample module `name` for `arch`.

    Raises
    ------
    ExecmemError
        There is no such architecture or module.
    """
    found = root(arch) / "lib" / "modules" / RELEASE / "kernel" / f"{name}.ko"
    if not found.is_file():
        raise ExecmemError(f"no sample module {name!r}; there are {', '.join(names())}")
    return found
