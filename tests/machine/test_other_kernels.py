# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of other kernel releases: they load, and nothing of them is taken for something else."""

from __future__ import annotations

from allocator.types import MemType, Prot
from loader.elf import parse
from loader.recording import BASE, image_of, runs
from machine.face import Machine


def test_modules_of_other_releases_load(arch, kernels):
    """Modules of every release load, and every site of the tracer has a form that is known."""
    for release, folder in kernels.items():
        files = sorted(folder.glob("lib/modules/*/kernel/**/*.ko*"))
        for file in files[::6]:
            machine = Machine(arch, unknown="zero")
            loaded = machine.load(file, init=False).loaded
            assert not loaded.notes, (release, file.name)
            assert loaded.this is not None
            for entry, name in (("init", "init_module"), ("exit", "cleanup_module")):
                assert machine.kernel.modules.entry(loaded, entry) == loaded.symbols.get(name, 0)


def test_core_and_init_are_an_area_each_before_types(arch, other_recordings):
    """Under vmalloc a module of 6.1 lies in its areas as in the real kernel; init goes as a whole."""
    seen = 0
    for release, folder in other_recordings.items():
        found = [one for run in runs(folder) if run.name == BASE for one in run.recordings]
        for recording in found[::3]:
            image = image_of(recording, (folder,))
            if image is None or parse(image).modinfo.get("depends"):
                continue
            machine = Machine(arch, unknown="zero", design="vmalloc")
            module = machine.load(image, init=False)
            loaded = module.loaded
            areas = {region.area for region in module.regions.values()}
            if release not in ("5.10", "6.1"):
                assert areas == {None}
                continue
            text = recording.regions[MemType.TEXT][0]
            inits = {p[0] for kind, p in recording.regions.items() if kind.is_init}
            for index, section in loaded.sections.items():
                theirs = recording.addresses.get(index)
                if theirs is None:
                    continue
                init = section.type.is_init
                base = min(inits) if init else text
                area = next(r.area for k, r in module.regions.items() if k.is_init == init)
                assert section.address - area.start == theirs - base, (recording.name, section.name)
            machine.execmem.check()
            areas = {region.area: kind.is_init for kind, region in module.regions.items()}
            assert sorted(areas.values()) == [False, True][: len(areas)]
            assert all(machine.memory.translate(area.end) is None for area in areas)
            machine.loader.settle(loaded)
            machine.execmem.check()
            there = {init: machine.memory.translate(area.start) for area, init in areas.items()}
            assert [init for init, mapped in there.items() if mapped is None] == [True][
                : len(areas) - 1
            ]
            sealed = module.regions.get(MemType.RO_AFTER_INIT)
            if sealed is not None:
                assert machine.memory.translate(sealed.address).prot is Prot.R
                assert sealed.area.holds(sealed.taken)
            seen += 1
    assert seen > 5 or not {"5.10", "6.1"} & set(other_recordings)
