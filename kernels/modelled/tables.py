# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the table of an architecture: where what the modelled kernel names lies in one kernel.

    python -m kernels.modelled.tables IMAGE [MODULE ...] > archs/structures/NAME.json

IMAGE is a kernel with BTF, or a vmlinux with DWARF, of which `pahole` makes BTF. Modules bring
the types that an image has not, of subsystems that are modules: each must be of that kernel.
A structure or member that neither has is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import kernels.modelled.api  # noqa: F401 -- importing it names what its files use
from allocator.errors import ExecmemError
from archs.layouts import As, Layouts, Member, NotKnown
from kernels.modelled.structs import USED
from loader.btf import Btf
from loader.elf import parse
from loader.files import decompress
from loader.kernel.image import KernelImage
from loader.layouts import BtfLayouts

_BANNER = re.compile(rb"Linux version (\S{1,64}) \(")


class NoTypes(ExecmemError):
    """A file has no types, or nothing says of which kernel."""


def table(layouts: Layouts) -> str:
    """Return the table of what is named, of one kernel: a structure in each line."""
    lines = []
    for name in sorted(USED):
        if layouts.has(name):
            members = {
                title: _row(layouts.member(name, title))
                for title in sorted(USED[name])
                if layouts.has(name, title)
            }
            lines.append(f" {json.dumps(name)}: {json.dumps([layouts.size_of(name), members])}")
    body = ",\n".join(lines)
    return f'{{"release": {json.dumps(layouts.release)}, "structures": {{\n{body}\n}}}}\n'


def _row(member: Member) -> tuple[int, int, str]:
    kind: str = member.kind
    if member.kind is As.STRUCTURE and member.tag in USED:
        kind += f" {member.tag}"
    return member.offset, member.size, kind


def read_layouts(image: Path, modules: Sequence[Path] = (), release: str = "") -> Layouts:
    """Return what a kernel and modules of it say.

    Raises
    ------
    NoTypes, BadBtf, BadKernel, BadModule
        Where they say nothing, or cannot be read.
    """
    raw = decompress(image.read_bytes(), image.name)
    if raw[:4] == b"\x7fELF" and b".BTF\0" not in raw:
        kernel, found = _encoded(image), _BANNER.search(raw)
        release = release or (found[1].decode() if found else "")
    else:
        read = KernelImage.parse(raw, image.name)
        if read.btf is None:
            raise NoTypes(f"{image}: no BTF: {read.unknown['types']} has some")
        kernel, release = read.btf, release or read.release
    if not release:
        raise NoTypes(f"{image}: nothing says which kernel it is: give --release")
    types = [kernel]
    for path in modules:
        view = parse(decompress(path.read_bytes(), path.name), path.name)
        section = view.section(".BTF")
        if section is not None:
            types.append(Btf.parse(bytes(view.contents(section)), base=kernel, name=path.name))
    return BtfLayouts(release, *types)


def _encoded(image: Path) -> Btf:
    """Return what pahole makes of DWARF."""
    with tempfile.NamedTemporaryFile(suffix=".btf") as file:
        command = ["pahole", f"--btf_encode_detached={file.name}", str(image)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise NoTypes(f"{image}: no BTF, and no pahole to make it of DWARF") from None
        raw = Path(file.name).read_bytes()
        if done.returncode or not raw:
            raise NoTypes(f"{image}: pahole: {done.stderr.strip() or 'no types'}")
        return Btf.parse(raw, name=image.name)


def main() -> int:
    """Print the table of the files on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("modules", type=Path, nargs="*", metavar="module")
    parser.add_argument("--release", default="", help="where the image does not say it")
    given = parser.parse_args()
    try:
        found = read_layouts(given.image, given.modules, given.release)
        sys.stdout.write(table(found))
    except (ExecmemError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    missing = [name for name in USED if not found.has(name)]
    missing += [f"{n}.{m}" for n in USED if found.has(n) for m in USED[n] if not found.has(n, m)]
    for name in sorted(missing):
        sys.stderr.write(f"{NotKnown(name, found.release, found.hint).what}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
