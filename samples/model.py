# SPDX-License-Identifier: GPL-2.0-or-later
"""model: why x86-64 modules live in the top 2 GiB, their data included.

The kernel's code model promises the compiler that every address fits 32 bits, sign-extended.
So two limits meet: PC32 must span the distance, and 32S must hold the address itself. Moving
only data out of the top 2 GiB breaks the second before the first.
"""

from __future__ import annotations

from allocator.types import GIB, Hex
from loader.errors import RelocationError
from loader.link import link_view
from loader.loaded import LoadedModule
from loader.motion import Motion
from machine.machine import ModelledMachine
from samples.modules import root
from samples.story import Grid, Lines, Story, Text

TOP = (1 << 64) - 2 * GIB


def main() -> Story:
    """Move data of a module below the top 2 GiB; text stays where it is."""
    machine = ModelledMachine("x86_64", root=root("x86_64"))
    module = machine.load("tables", init=False).loaded
    motion = Motion.of(module)
    data = min(s.address for s in module.sections.values() if s.type and not s.type.is_text)
    rows = []
    for name, address in (
        ("where it was loaded", data & -0x1000),
        ("lowest page of the top 2 GiB", TOP),
        ("one page lower", TOP - 0x1000),
        ("4 GiB below the top", (1 << 64) - 4 * GIB),
    ):
        failed = motion.at(text=0, data=address - (data & -0x1000)).failed.tolist()
        types = sorted({motion.rows[int(motion.type[one])].name for one in failed})
        rows.append((name, f"{address:#x}", str(len(failed)), ", ".join(types) or "loads"))
    story = Story("model", "x86-64: the kernel code model, and 32S")
    story.facts = {"rows": [list(r) for r in rows], "data": Hex(data)}
    story.parts = [
        Text(
            "Data and rodata of tables.ko move down; its text stays. R_X86_64_32S stores an "
            "absolute address in 32 bits, sign-extended: it must lie in the top 2 GiB."
        ),
        Grid(("data at", "address", "refused", "by type"), tuple(rows), "refused"),
        Lines(tuple(_refusal(module, TOP - 0x1000 - (data & -0x1000)))),
        Text(
            "So text and data may lie apart, but both inside: the kernel's window for modules "
            "ends where the address space does."
        ),
    ]
    return story


def _refusal(module: LoadedModule, move: int) -> list[str]:
    """Return the first failure as the linker words it."""
    pairs = zip(module.view.undefined_indices.tolist(), module.view.undefined_names, strict=True)
    symbols = {name: int(module.linked.symbols[index]) for index, name in pairs}
    places = {
        index: section.address + (0 if section.type.is_text else move)
        for index, section in module.sections.items()
        if section.type is not None
    }
    try:
        link_view(module.view, module.layout, places, symbols, percpu=module.percpu)
    except RelocationError as error:
        return str(error).splitlines()[:1]
    return []
