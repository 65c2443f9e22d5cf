# SPDX-License-Identifier: GPL-2.0-or-later
"""What `--kernel auto` stands for: the kernel that a module was built for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from execmem import notices
from loader.archives import is_archive
from loader.depends import find_any, open_tree
from loader.elf import parse
from loader.errors import BadKernel
from loader.files import SUFFIXES, is_file, read_module
from loader.kernel.find import find_kernel
from loader.kernel.own import AUTO, folders_of, own_kernel


def own_kernel_of(module: str, options: Mapping[str, Any]) -> str | None:
    """Return --kernel; for `auto` the kernel of a module of the command line.

    Raises
    ------
    BadKernel
        It is not at hand; with where it was looked for.
    """
    kernel: str | None = options["kernel"]
    if kernel != AUTO:
        return kernel
    root = options.get("root")
    if "/" in module or module.endswith(SUFFIXES) or is_file(module):
        path = Path(module)
    elif root:
        path = find_any(open_tree(root), module)
    else:
        reason = f"{module or 'no module'}: name a module's file, or the --root that it is in"
        raise BadKernel(AUTO, "module", reason)
    return kernel_of(path, [Path(root)] if root else [])


def kernel_of(path: Path, roots: list[Path]) -> str:
    """Return the kernel that a module's file was built for, or that a package of it holds."""
    if is_archive(path):
        with suppress(BadKernel):
            find_kernel(path)
            return str(path)
        raise BadKernel(AUTO, "file", f"{path} holds modules and no kernel: name that")
    magic = parse(read_module(path), path.name).modinfo.get("vermagic", "").strip()
    own = own_kernel(magic, [*folders_of(path), *(place for r in roots for place in folders_of(r))])
    if own.path is None:
        release = magic.partition(" ")[0] or "unknown"
        reason = f"no kernel of {path.name} (Linux {release}) in {', '.join(own.looked)}"
        raise BadKernel(AUTO, "file", reason)
    notices.assume(f"{path.name}: its kernel is {own.path}")
    return str(own.path)
