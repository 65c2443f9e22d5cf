# SPDX-License-Identifier: GPL-2.0-or-later
"""A module in a booted kernel: each goes into the machine as it was after its boot."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from allocator.errors import ExecmemError
from execmem.sweep.tasks import Task, contents
from loader.elf import arch_of
from loader.errors import BadKernel
from loader.files import ModuleFile, module_name
from machine.booted.machine import BootedMachine
from machine.booted.snapshots import Snapshot


@lru_cache(maxsize=1)
def _machine(kernel: str, cpu: str) -> tuple[BootedMachine, Snapshot]:
    """Return this process' machine, and what it was at first."""
    machine = BootedMachine(kernel=kernel, cpu=cpu)
    machine.note_registrations()
    return machine, machine.snapshot()


def load(task: Task, kernel: str, cpu: str, seconds: float, row: dict[str, Any]) -> None:
    """Let the kernel load a task's module after what it needs, and fill in the row.

    Parameters
    ----------
    task
        The module.
    kernel, cpu
        The kernel's path, and the CPU that it is booted on.
    seconds
        Time of the host that each may take.
    row
        What is known of it so far.

    Raises
    ------
    ExecmemError
        It is refused, its init returned an error, or the kernel found something wrong.
    """
    machine, first = _machine(kernel, cpu)
    if task.module is not None:
        file = contents(task.module)
        image = ModuleFile(file.name, file.image())
        arch = arch_of(image.data, image.name)
        row["arch"] = arch.name
    if task.problem or task.module is None:
        raise ExecmemError(task.problem)
    row["models"] = machine.models
    if arch is not machine.arch:
        raise BadKernel(image.name, "architecture", f"is for {arch.name}, not {machine.arch.name}")
    machine.seconds = seconds
    before = len(machine.log)
    try:
        if isinstance(task.module, Path):
            module = machine.load(task.module)  # its tree says what it needs
        else:
            for needed in task.needed:
                dependency = contents(needed)
                if module_name(dependency.name) not in machine.modules:
                    machine.load(dependency)
            module = machine.load(image)
        report = module.report
        row["module"] = module.name
        row["relocations"] = sum(report.relocations.values())
        row["relocation_types"] = dict(sorted(report.relocations.items()))
        row["sizes"] = _sizes(report.regions)
        row["registered"] = [{"kind": r.kind, "name": r.name} for r in report.registered or ()]
        row["outcome"] = "init-ok"
    finally:
        row["log"] = [line.text for line in machine.log[before:]]
        machine.restore(first)


def _sizes(regions: Mapping[Any, Any]) -> dict[str, int]:
    return {kind.name: region.size for kind, region in regions.items()}
