# SPDX-License-Identifier: GPL-2.0-or-later
"""Load real Linux kernel modules into an emulated x86-64, arm64, riscv64 or mips64el kernel.

One import name for everything that a script needs:

>>> from execmem import archs
>>> [arch.name for arch in archs()]
['x86_64', 'arm64', 'riscv64', 'mips64el']

Names are imported when they are first used, so that `import execmem` starts at once.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allocator import Execmem as Execmem
    from allocator import MemType as MemType
    from allocator.errors import ExecmemError as ExecmemError
    from archs import arch as arch
    from archs import archs as archs
    from emulator.faults import Fault as Fault
    from execmem.fuzzing.api import fuzz as fuzz
    from execmem.worker.copies import isolated as isolated
    from loader.errors import LoadError as LoadError
    from loader.lines import Lines as Lines
    from loader.link import link as link
    from machine.arguments import Out as Out
    from machine.face import Machine as Machine
    from machine.module import Module as Module

    __version__: str

_HOME = {
    "Execmem": "allocator",
    "ExecmemError": "allocator.errors",
    "Fault": "emulator.faults",
    "Lines": "loader.lines",
    "LoadError": "loader.errors",
    "Machine": "machine.face",
    "MemType": "allocator",
    "Module": "machine.module",
    "Out": "machine.arguments",
    "arch": "archs",
    "archs": "archs",
    "fuzz": "execmem.fuzzing.api",
    "isolated": "execmem.worker.copies",
    "link": "loader.link",
}

__all__ = [
    "Execmem",
    "ExecmemError",
    "Fault",
    "Lines",
    "LoadError",
    "Machine",
    "MemType",
    "Module",
    "Out",
    "arch",
    "archs",
    "fuzz",
    "isolated",
    "link",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'execmem' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def _version() -> str:
    """Return the version that setup.cfg states, by way of the installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("execmem")
    except PackageNotFoundError:  # run from its sources
        from configparser import ConfigParser

        stated = ConfigParser()
        stated.read(Path(__file__).parent.parent / "setup.cfg", "utf-8")
        return stated.get("metadata", "version", fallback="unknown")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _check_neighbours() -> None:
    """Refuse to run beside another distribution's `loader` (the folder names are common)."""
    here = Path(__file__).parent.parent
    for name in ("allocator", "archs", "loader", "machine", "samples"):
        spec = find_spec(name)
        found = Path(spec.origin).parent.parent if spec and spec.origin else None
        if found != here:
            raise ImportError(
                f"package {name!r} comes from {found}, not from {here}: something else of that "
                "name is in the way; install execmem in a virtual environment of its own"
            )


_check_neighbours()
