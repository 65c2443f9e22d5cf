# SPDX-License-Identifier: GPL-2.0-or-later
"""Sample modules built for a booted kernel: with its layouts, names and checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loader.btf_records import Kind
from loader.elf import parse
from machine.booted.machine import BootedMachine
from samples.modules import RELEASE, root
from tests.support.debugged import built

_HEADER = """
#undef RELEASE
#define RELEASE "{release}"
#define VERMAGIC_TAIL "{tail}"
#define MODULE_SIZE {size}
#define MODULE_INIT {init}
#define MODULE_EXIT {exit}
#define ENTRY_ALIGN ".balign 4\\n"
#define ENTRY_FIELD(symbol) ".long " symbol " - .\\n"
{names}
"""
# What kernels have that lack a function: what calls of it are then.
_OTHERWISE = {
    "__kmalloc_noprof": "#define __kmalloc_noprof __kmalloc",
    "__mutex_init": "void mutex_init_generic(void *);\n"
    "#define __mutex_init(lock, name, key) mutex_init_generic(((void)(key), lock))",
}
_CALLED = {"__kmalloc_noprof": "__kmalloc", "__mutex_init": "mutex_init_generic"}


def built_for(machine: BootedMachine, name: str, folder: Path) -> bytes:
    """Return a sample module that a kernel loads, or skip where there is no compiler."""
    types, image = machine.btf["vmlinux"], machine.image
    outer: Any = types.find("module", Kind.STRUCT)
    members = {path: types.place(outer.number, path).bytes for path in ("init", "exit")}
    release, _, tail = image.vermagic.strip("\0").partition(" ")
    lacking = [text for name, text in _OTHERWISE.items() if name not in image.exports]
    names = "\n".join(lacking)
    header = _HEADER.format(release=release, tail=tail, size=outer.size, names=names, **members)
    plain = root(machine.arch.name) / "lib" / "modules" / RELEASE / "kernel" / f"{name}.ko"
    place = folder / "kernel.h"
    place.write_text(header + _versions(machine, plain))
    return built(machine.arch, name, folder, f'-DKERNEL_H="{place}"').read_bytes()


def _versions(machine: BootedMachine, path: Path) -> str:
    """Return assembly with the checksums of what a module needs (CONFIG_MODVERSIONS)."""
    rows = []
    exports = machine.image.exports
    for needed in ("module_layout", *parse(path.read_bytes(), arch=machine.arch).undefined):
        symbol = needed if needed in exports else _CALLED.get(needed, needed)
        export = exports.get(symbol)
        if export is not None and export.crc is not None:
            rows.append(f'.quad {export.crc:#x}\\n.asciz \\"{symbol}\\"\\n.balign 64\\n')
    if not rows:
        return ""
    text = "".join(f'    "{row}"\n' for row in rows)
    guard = "#ifdef DEPENDS\n"  # once, in the part that no source writes
    return (
        f'{guard}asm(".pushsection __versions, \\"a\\"\\n.balign 64\\n"\n{text}'
        '    ".popsection\\n");\n#endif\n'
    )
