# SPDX-License-Identifier: GPL-2.0-or-later
"""Static keys that modules flip in their init, found by running it.

A module that comes later has its branches on such keys rewritten before its own init. What the
keys say by then stands in no file; but the init can be run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from allocator.errors import ExecmemError
from loader.elf import parse
from loader.elfview import ElfView
from loader.files import ModuleFile
from loader.recording import RecordedBoot, Recording, image_of
from machine.machine import ModelledMachine

TABLE = "__jump_table"
ENABLED = 4  # bytes at the start of struct static_key: who enabled it


def flipped(run: RecordedBoot, trees: tuple[Path, ...] = ()) -> Mapping[str, bool]:
    """Return the keys of modules that other modules' branches go by: name -> on.

    Those of modules whose init cannot be run are left out.
    """
    homes = [
        (start, start + size, recording)
        for recording in run.recordings
        for start, size in recording.regions.values()
    ]
    wanted: dict[str, set[str]] = defaultdict(set)
    owners: dict[str, Recording] = {}
    for recording in run.recordings:
        image = image_of(recording, trees)
        if image is None or TABLE.encode() not in image:
            continue
        for name in _keys(parse(image, recording.name)):
            at = recording.symbols.get(name, 0)
            for start, end, owner in homes:
                if start <= at < end:
                    wanted[owner.name].add(name)
                    owners[owner.name] = owner
    found: dict[str, bool] = {}
    for title, names in sorted(wanted.items()):
        image = image_of(owners[title], trees)
        if image is not None:
            found |= _after_init(owners[title], image, names)
    return found


def _keys(view: ElfView) -> set[str]:
    """Return the undefined symbols that a module's branches go by."""
    names: set[str] = set()
    for table in view.tables:
        if table.target.name == TABLE:
            names.update(map(view.symbol_name, set(table.records["symbol"].tolist())))
    return names & set(view.undefined)


def _after_init(recording: Recording, image: bytes, names: set[str]) -> dict[str, bool]:
    """Run a module's init, and return which of its keys are on."""
    try:
        machine = ModelledMachine(recording.arch, unknown="zero", force=True)
        module = machine.load(ModuleFile(f"{recording.name}.ko", image))
        return {
            name: int.from_bytes(machine.read(module.symbols[name], ENABLED), "little") > 0
            for name in names
            if name in module.symbols
        }
    except ExecmemError:
        return {}
