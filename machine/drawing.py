# SPDX-License-Identifier: GPL-2.0-or-later
"""Where modules lie, to scale: the bars that notebooks and figures draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from allocator import Allocation, KernelMemory
from allocator.markup import Bar, bars
from allocator.types import ExecmemType, MemType, size_text
from archs import Arch
from machine.report import ModuleReport


class Land(Protocol):
    """What modules lie in: a machine."""

    arch: Arch
    memory: KernelMemory
    design: str


class Drawn(Protocol):
    """A module, as far as it is drawn."""

    report: ModuleReport

    @property
    def name(self) -> str:
        """The module's name."""
        ...

    @property
    def regions(self) -> Mapping[MemType, Allocation]:
        """Memory type -> allocation, of those that are still there."""
        ...


def address_map(machine: Land, modules: Iterable[Drawn]) -> list[Bar]:
    """Return the kernel image, the windows, and every region of the modules."""
    here = machine.memory.address_map
    text = here.range_of(ExecmemType.MODULE_TEXT)
    found = [("fallback", text.fallback, "fallback window")] if text.fallback else []
    found += [("window", text.range, "module window"), ("kernel", here.image, "kernel image")]
    drawn = [
        Bar(label, i.start, i.end, colour, f"{i.start:#x}, {size_text(i.size)}")
        for colour, i, label in found
        if i is not None
    ]
    for module in modules:
        for kind, region in module.report.regions.items():
            gone = "" if module.regions.get(kind) == region else ", freed"
            translation = machine.memory.translate(region.address)
            leaf = f", {size_text(translation.leaf)} leaf" if translation and not gone else ""
            note = f"{region.address:#x}, {size_text(region.size)}{leaf}{gone}"
            end = region.address + region.size
            drawn.append(
                Bar(f"{module.name} {kind.name.lower()}", region.address, end, _colour(kind), note)
            )
    return drawn


def svg(machine: Land, modules: Iterable[Drawn]) -> str:
    """Return the address map as a picture that stands alone."""
    found = list(modules)
    names = ", ".join(module.name for module in found)
    title = f"{names} on {machine.arch.title}, design {machine.design}"
    call = machine.arch.link.call
    caption = "Kernel addresses, to scale."
    if call is not None:
        caption += f" A {call.mnemonic} reaches {call.text()}."
    return bars(title, address_map(machine, found), caption)


def _colour(kind: MemType) -> str:
    return "init" if kind.is_init else kind.name.lower()
