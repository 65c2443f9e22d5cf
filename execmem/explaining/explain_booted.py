# SPDX-License-Identifier: GPL-2.0-or-later
"""The explorable page of a module in a booted kernel: where that kernel put it.

The kernel's loader takes the module; where sections lie, and what undefined symbols are, is read
when it has relocated them. The link at those places is done again here, for what the page tells
of each relocation, and held to the kernel's bytes.
"""

from __future__ import annotations

import hashlib

from allocator.errors import ExecmemError
from allocator.types import Interval
from execmem import notices
from execmem.diffing.diff import link_there
from execmem.diffing.live import Recorder
from execmem.diffing.placement import ranges_of
from execmem.explaining.explain import View, bands
from loader.elf import parse
from loader.files import module_name
from loader.linked import Linked
from loader.loaded import LoadedModule, State
from loader.recording import Recording


def load(recorder: Recorder, name: str) -> View:
    """Let a booted kernel load a module, after those that it needs; return what the page shows.

    Parameters
    ----------
    name
        A name, or a path.

    Raises
    ------
    ExecmemError
        There is no such module, or the kernel refused it.
    """
    machine = recorder.machine
    files = list(recorder.files([name]))
    for file in files:
        recorder.load(file)
    title = module_name(name)
    boot = recorder.boot
    found = next((each for each in boot.recordings if each.name == title), None)
    module = machine.modules.get(title)
    if found is None or module is None:
        said = [each for each in boot.refusals if each.module == title]
        raise ExecmemError(f"{title}: {said[-1].said if said else 'it was not loaded'}")
    view = parse(files[-1].image(), files[-1].name)
    layout, linked = link_there(found, view, boot.environment)
    _hold(title, linked, found)
    loaded = LoadedModule(
        name=title,
        view=view,
        layout=layout,
        linked=linked,
        relocated=linked,
        regions={},
        sections=module.sections,
        unknown=(),
        exports=(),
        percpu=found.percpu,
        state=State.LIVE,
    )
    regions = module.report.regions
    start = machine.arch.loads.address_map().direct_map
    return View(
        loaded=loaded,
        design=machine.models,
        kaslr=None,
        bands=bands(ranges_of(machine.arch, boot), _ram(start, machine.kernel.board.ram.size)),
        regions=regions,
        freed=frozenset(kind for kind in regions if kind not in module.regions),
    )


def _ram(start: int, size: int) -> Interval:
    return Interval(start, start + size)


def _hold(title: str, linked: Linked, found: Recording) -> None:
    """Say where the link is not what the kernel made: then the page is wrong about that."""
    wrong = [
        section.name
        for section in found.compared
        if hashlib.sha256(linked.sections[section.index]).hexdigest() != section.relocated
    ]
    if wrong:
        hint = "execmem diff --kernel says where"
        notices.assume(f"{title}: {', '.join(wrong)}: not as the kernel has it; {hint}")
