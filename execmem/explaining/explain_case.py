# SPDX-License-Identifier: GPL-2.0-or-later
"""The explorable page of a relocation case: each link that it asks for, where it puts everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from allocator.errors import ExecmemError
from allocator.types import GIB, Interval, MemType
from archs import Arch
from execmem.check import running
from execmem.check.case import BadCase
from execmem.check.placing import places
from execmem.check.reading import read
from execmem.check.running import Wanted
from execmem.check.subject import Object, Subject
from execmem.explaining.explain import View, bands
from loader.errors import LoadError
from loader.loaded import LoadedModule, LoadedSection, State


@attrs.frozen
class Region:
    """Memory that sections of one type take, from the first to the last."""

    address: int
    size: int


def views(path: Path, wanted: Wanted) -> Iterator[View]:
    """Yield what the page shows of each link of a case that is not refused.

    Raises
    ------
    BadCase
        It is no case, or none of its links can be made.
    NoTool
        Nothing here assembles it.
    """
    case = read(str(path), path.read_text("utf-8", errors="replace"))
    found, refused = 0, ""
    for arch in running.archs_of(case):
        if not wanted.takes(arch) or arch.load is None:
            continue
        for placement in case.placements:
            if not placement.is_for(arch.name):
                continue
            planned = running.planned(case, arch, placement)
            for where in places(case, placement, planned, seed=wanted.seed):
                try:
                    subject = Subject.of([planned], [where.addresses], where.values)
                except (LoadError, ExecmemError) as error:
                    refused = str(error).partition("\n")[0]
                    continue
                found += 1
                yield _view(path.stem, arch, subject.objects[0], where.title)
    if not found:
        raise BadCase(str(path), 0, refused or "is for no architecture that is asked for")


def _view(name: str, arch: Arch, one: Object, title: str) -> View:
    view, layout = one.planned.view, one.planned.layout
    kinds: Mapping[int, MemType] = {index: at.type for index, at in layout.placements.items()}
    sections = {
        index: LoadedSection(
            name=view.sections[index].name,
            type=kinds.get(index),
            address=address,
            size=layout.size_of(view.sections[index]),
        )
        for index, address in one.addresses.items()
    }
    loaded = LoadedModule(
        name=name,
        view=view,
        layout=layout,
        linked=one.linked,
        relocated=one.linked,
        regions={},
        sections=sections,
        unknown=(),
        exports=(),
        percpu=None,
        state=State.LIVE,
    )
    spans: dict[MemType, Interval] = {}
    for section in sections.values():
        if section.type is not None and section.size:
            end = section.address + section.size
            old = spans.get(section.type, Interval(section.address, end))
            spans[section.type] = Interval(min(old.start, section.address), max(old.end, end))
    space = arch.loads.address_map()
    return View(
        loaded=loaded,
        design=title or "as the case says",
        kaslr=None,
        bands=bands(space, Interval(space.direct_map, space.direct_map + GIB)),
        regions={kind: Region(span.start, span.size) for kind, span in spans.items()},
        freed=frozenset(),
    )
