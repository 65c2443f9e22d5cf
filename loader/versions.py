# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tree of modules says about the kernel that it is for: its vermagic, its exports' CRCs.

A kernel's own exports stand in its symvers (`Module.symvers`, or packed as `symvers.xz` and
the like); where there is none, the tree's modules say what they were built against. Few are
read: the CRC of `module_layout` is in each of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from allocator.errors import ExecmemError
from archs import Arch
from loader.depends import ModuleTree
from loader.elf import parse
from loader.elfview import ElfView
from loader.errors import BadModule
from loader.files import ModuleFile, is_file, module_name, read_module
from loader.layout import THIS_MODULE

SYMVERS = (
    "Module.symvers",
    "build/Module.symvers",
    *(f"symvers{suffix}" for suffix in (".zst", ".xz", ".gz", "")),
)
VMLINUX = "vmlinux"
MAX_SYMVERS = 1 << 26  # bytes; Debian's has 3 MiB
WITNESSES = 3  # modules that are read
CANDIDATES = 64  # of which these are the smallest
_CRC = re.compile(r"0x[0-9a-fA-F]{1,16}")


@attrs.frozen
class SymversExport:
    """A line of a symvers: what the kernel, or one of its modules, exports."""

    crc: int
    owner: str
    gpl: bool
    namespace: str = ""


def read_symvers(data: bytes, name: str) -> dict[str, SymversExport]:
    """Return the exports that a symvers lists: `CRC NAME OWNER EXPORT_TYPE [NAMESPACE]`, by tabs.

    Raises
    ------
    BadModule
        Naming the line that is none.
    """
    if len(data) > MAX_SYMVERS:
        raise BadModule(name, "symvers", f"larger than {MAX_SYMVERS:#x} bytes")
    found: dict[str, SymversExport] = {}
    for number, line in enumerate(data.decode("utf-8", "backslashreplace").split("\n"), 1):
        fields = line.rstrip("\r").split("\t")
        if fields == [""]:
            continue
        kind = fields[3] if len(fields) in (4, 5) else ""
        if not kind.startswith("EXPORT_") or not _CRC.fullmatch(fields[0]) or not fields[1]:
            reason = (
                "is not CRC, NAME, OWNER, EXPORT_SYMBOL[_GPL] and a namespace, with tabs between"
            )
            raise BadModule(name, f"line {number}", reason)
        export = SymversExport(
            int(fields[0], 16),
            module_name(fields[2]),
            kind.endswith("_GPL"),
            fields[4] if len(fields) == 5 else "",
        )
        found.setdefault(fields[1], export)
    return found


@attrs.frozen
class TreeFacts:
    """The kernel that a tree of modules is for, as far as the tree says it.

    Parameters
    ----------
    release
        The folder's name.
    vermagic
        What the tree's modules have; None where none of them could be read.
    module_size
        Bytes of their struct module, or None.
    crcs
        Names of exports -> CRC.
    exports
        What a symvers lists; None where there is none.
    origin
        What knows this, for messages.
    """

    release: str
    vermagic: str | None
    module_size: int | None
    crcs: Mapping[str, int] = attrs.field(repr=False)
    exports: Mapping[str, SymversExport] | None = attrs.field(repr=False)
    origin: str = "the tree of --root"


def facts_of(tree: ModuleTree, arch: Arch) -> TreeFacts:
    """Return what a tree says about its kernel.

    Raises
    ------
    BadModule
        For a symvers that is damaged.
    """
    release = tree.folder.name
    views = list(_witnesses(tree, arch))
    magics = Counter(magic for view in views if (magic := view.modinfo.get("vermagic")))
    # Of as many the kernel whose name the folder has.
    ranked = sorted(magics, key=lambda m: (-magics[m], m.split(" ")[0] != release))
    vermagic = ranked[0] if ranked else None
    views = [view for view in views if view.modinfo.get("vermagic") == vermagic]
    exports = _symvers(tree.folder)
    crcs: dict[str, int] = {}
    for view in reversed(views):
        crcs.update(view.crcs)
    if exports is not None:
        crcs.update((name, export.crc) for name, export in exports.items())
    sizes = [section.size for view in views if (section := view.section(THIS_MODULE))]
    return TreeFacts(release, vermagic, sizes[0] if sizes else None, crcs, exports)


def _witnesses(tree: ModuleTree, arch: Arch) -> Iterator[ElfView]:
    """Yield some modules of a tree: the smallest of some that stand far apart in its index."""
    files = list(tree.files.values())
    chosen = files[:: max(1, len(files) // CANDIDATES)]
    count = 0
    for path in sorted((tree.folder / file for file in chosen), key=_size):
        if count == WITNESSES:
            return
        try:
            yield parse(read_module(path), path.name, arch=arch)
        except ExecmemError:  # who loads it is told why
            continue
        count += 1


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return MAX_SYMVERS


def _symvers(folder: Path) -> dict[str, SymversExport] | None:
    for name in SYMVERS:
        path = folder / name
        if is_file(path):
            return read_symvers(ModuleFile.read(path).image(), str(path))
    return None
