# SPDX-License-Identifier: GPL-2.0-or-later
"""The sizes of every module of Debian on every architecture: real numbers, no code.

One row per module of Debian trixie's kernel 6.12.107 (4,229 on x86-64, 4,350 on arm64,
3,103 on riscv64), and of bookworm's 6.1.170 (3,043 on mips64el, which has no later one): bytes
per memory type, the largest section alignment, PLT entries that the kernel reserves in the
worst case, call sites by where they lead (on mips64el only the direct ones, as most go through
registers), dependencies. On arm64 text includes the reserved PLT entries, as in a loaded module.
The copy of the symbol table that CONFIG_KALLSYMS keeps is left out: on riscv64 it would drown
everything else.

A row knows one alignment for all of a module's sections; every region asks for it.
"""

from __future__ import annotations

import csv
import io
import lzma
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from allocator.errors import ExecmemError
from allocator.types import MemType
from allocator.workloads.operations import Module, Region

_PREFIX, _SUFFIX = "debian_", ".csv.xz"


@lru_cache(maxsize=4)
def debian(arch: str) -> Mapping[str, Module]:
    """Return Debian's modules of an architecture by name, alphabetically.

    ExecmemError where there is no table for it.
    """
    folder = files(__package__)
    source = folder / f"{_PREFIX}{arch}{_SUFFIX}"
    if not source.is_file():
        names = (item.name for item in folder.iterdir() if item.name.endswith(_SUFFIX))
        have = ", ".join(sorted(n.removeprefix(_PREFIX).removesuffix(_SUFFIX) for n in names))
        raise ExecmemError(f"no table of modules for {arch!r}; there are {have}")
    text = lzma.decompress(source.read_bytes()).decode()
    rows = csv.DictReader(io.StringIO(text))
    return MappingProxyType({row["module"]: _module(row) for row in rows})


def _module(row: Mapping[str, str]) -> Module:
    align = int(row["max_align"])
    sizes = [(kind, int(row[kind.name.lower()])) for kind in MemType]
    return Module(
        name=row["module"],
        regions=tuple(Region(kind, size, align) for kind, size in sizes if size),
        plt_slots=(int(row["plt_core_slots"]), int(row["plt_init_slots"])),
        calls=(
            int(row["calls_kernel"]),
            int(row["calls_modules"]),
            int(row["calls_same_section"]) + int(row["calls_cross_section"]),
        ),
        depends=tuple(row["depends"].replace(";", " ").split()),
    )


def load_order(modules: Mapping[str, Module], names: Iterable[str]) -> Iterator[Module]:
    """Yield the modules and what they depend on, each once and after its dependencies.

    The order is that of modprobe for one name after the other. ExecmemError for a name
    that `modules` does not have; a circle of dependencies is cut where it closes.
    """
    begun: set[str] = set()
    for name in names:
        # Depth first without recursion: a folder of modules may nest as deep as it likes.
        stack: list[tuple[str, bool]] = [(name, False)]
        while stack:
            current, ready = stack.pop()
            if ready:
                yield modules[current]
            elif current not in begun:
                begun.add(current)
                if current not in modules:
                    raise ExecmemError(f"no module {current!r} among {len(modules)}")
                stack.append((current, True))
                stack.extend((needed, False) for needed in reversed(modules[current].depends))
