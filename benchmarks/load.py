# SPDX-License-Identifier: GPL-2.0-or-later
"""What loading costs beside reading the file's structure, and beside copying what is loaded.

Each module is loaded, with parse, layout, memory, symbols, link, finalisation and
protections, into a machine that has its dependencies, and unloaded again; beside it stand
parsing alone, and one copy of its sections, which is the floor. CPU time, in turns, medians
over the rounds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from archs import archs
from loader.elf import parse
from loader.files import ModuleFile
from machine.machine import ModelledMachine
from samples.modules import root

ROUNDS = 7
CORPUS = ("crc16", "mbcache", "jbd2", "btrfs", "xfs")
SAMPLES = ("mathlib", "sorting", "tables")


def milliseconds(function: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time_ns()
    function()
    return (time.process_time_ns() - start) / 1e6


def main() -> None:
    """Print one line per module and architecture."""
    corpus = os.environ.get("EXECMEM_CORPUS")
    print(
        f"{'module':8} {'arch':8} {'relocs':>7} {'load ms':>8} {'parse ms':>8} {'copy ms':>8}",
        end="",
    )
    print(f" {'x parse':>7} {'x copy':>7}")
    for arch in archs():
        folder = {"x86_64": "amd64"}.get(arch.name, arch.name)  # as Debian names it
        tree = Path(corpus, folder) if corpus else root(arch.name)
        machine = ModelledMachine(arch, root=tree)
        for name in CORPUS if corpus else SAMPLES:
            measure(machine, name)


def measure(machine: ModelledMachine, name: str) -> None:
    """Print one line."""
    assert machine.tree is not None
    for needed in machine.tree.to_load(name)[:-1]:
        if needed not in machine.modules:
            machine.load(needed, init=False)
    path = machine.tree.path(name)
    if path is None:
        raise SystemExit(f"{machine.arch.name}: no module {name!r}")
    file = ModuleFile(path.name, ModuleFile.read(path).image())
    times: dict[str, list[float]] = {"load": [], "parse": [], "copy": []}
    for _ in range(ROUNDS):
        start = time.process_time_ns()
        module = machine.load(file, init=False)
        times["load"].append((time.process_time_ns() - start) / 1e6)
        times["parse"].append(milliseconds(partial(parse, file.data, name)))
        times["copy"].append(milliseconds(module.loaded.linked.image.copy))
        count = sum(module.report.relocations.values())
        module.unload()
    load, least, copy = (statistics.median(found) for found in times.values())
    print(f"{name:8} {machine.arch.name:8} {count:7} {load:8.2f} {least:8.2f} {copy:8.3f}", end="")
    print(f" {load / least:7.1f} {load / copy:7.0f}")


if __name__ == "__main__":
    main()
