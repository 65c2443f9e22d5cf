# SPDX-License-Identifier: GPL-2.0-or-later
"""The architectures, as records. Adding one: a file beside this one and a line below."""

from __future__ import annotations

from archs.arch import Arch
from archs.arm64 import ARM64
from archs.dialect import Dialect, Order
from archs.levels.link import Branch
from archs.levels.load import Erratum, Plt
from archs.levels.patch import Emulator, LivePatch
from archs.levels.run import Anchor, CallingConvention, Emulation
from archs.mips64el import MIPS64EL
from archs.op import Op
from archs.reloc import Checks, Part, Reach, Reloc, Slice
from archs.riscv64 import RISCV64
from archs.text import Guest
from archs.x86_64 import X86_64

ALL: tuple[Arch, ...] = (X86_64, ARM64, RISCV64, MIPS64EL)

__all__ = [
    "ALL",
    "Anchor",
    "Arch",
    "Branch",
    "CallingConvention",
    "Checks",
    "Dialect",
    "Emulation",
    "Emulator",
    "Erratum",
    "Guest",
    "LivePatch",
    "Op",
    "Order",
    "Part",
    "Plt",
    "Reach",
    "Reloc",
    "Slice",
    "arch",
    "archs",
    "by_machine",
    "machines",
]


def archs() -> tuple[Arch, ...]:
    """Return every architecture, in the order of the registry."""
    return ALL


def arch(name: str) -> Arch:
    """Return the architecture called `name` (or one of its aliases, any case).

    Raises
    ------
    ValueError
        Naming the ones there are.

    >>> arch("aarch64").name
    'arm64'
    """
    for candidate in ALL:
        if name.lower() in (candidate.name, *candidate.aliases):
            return candidate
    raise ValueError(f"unknown architecture {name!r}: known are {', '.join(a.name for a in ALL)}")


def by_machine(machine: int, bits: int = 64, order: Order = "little") -> Arch | None:
    """Return the architecture whose modules carry `machine` in e_machine, in files of that kind.

    >>> by_machine(183).name, by_machine(183, order="big")
    ('arm64', None)
    """
    for known in ALL:
        dialect = known.link.dialect
        if known.machine == machine and dialect.bits == bits and dialect.order == order:
            return known
    return None


def machines() -> str:
    """Return what tells files of the known architectures apart, for messages."""
    return ", ".join(f"{a.name} ({a.link.dialect}, machine {a.machine})" for a in ALL)
