# SPDX-License-Identifier: GPL-2.0-or-later
"""A live machine's use of executable memory, recorded as a workload.

What a machine really did, module by module and slot by slot, can so be run again under
every other design: by `execmem compare`, or by `allocator.workloads.run`. Two parties tell:
Execmem, of every allocation, seal and free; and the loader, when a module came, settled or
went. The steps that the loader took for a module then become one operation, which knows
what no allocation does: how many calls leave the module, and where to. A load that is
refused leaves no operation, since it leaves nothing in memory either.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from allocator import Allocation
from allocator.workloads import (
    Alloc,
    Free,
    Load,
    Operation,
    Quiet,
    Seal,
    Settle,
    Unload,
    Workload,
    write_trace,
)
from execmem.comparing.compare import measured
from loader.loaded import LoadedModule, State
from machine.machine import ModelledMachine


class Recorder:
    """Records what a machine does to executable memory from now on.

    Parameters
    ----------
    machine
        A fresh one: what it allocated before is not in the record.
    """

    def __init__(self, machine: ModelledMachine) -> None:
        self._machine = machine
        self._operations: list[Operation] = []
        self._keys: dict[int, str] = {}  # by address, of what is allocated now
        self._modules: dict[str, set[str]] = {}  # the keys of each module's regions
        self._allocations = 0
        machine.execmem.observer = self
        machine.loader.on_change = self.changed

    def workload(self, name: str) -> Workload:
        """Return what was recorded so far."""
        return Workload(
            name=name,
            arch=self._machine.arch.name,
            operations=tuple(self._operations),
            memory=self._machine.memory.physical.size,
        )

    def save(self, path: str | Path) -> None:
        """Write a trace of what was recorded; ExecmemError when that fails."""
        write_trace(path, self.workload(Path(path).stem))

    def allocated(self, allocation: Allocation, *, align: int) -> None:
        """Hear of an allocation; what is abandoned later is freed under its key."""
        key = f"{allocation.consumer.value}-{self._allocations}"
        self._allocations += 1
        self._keys[allocation.address] = key
        self._operations.append(
            Alloc(
                key=key,
                size=allocation.size,
                consumer=allocation.consumer,
                type=allocation.type,
                align=align,
            )
        )

    def sealed(self, allocation: Allocation) -> None:
        """Hear of a seal."""
        self._operations.append(Seal(self._keys[allocation.address]))

    def freed(self, allocation: Allocation) -> None:
        """Hear of a free."""
        self._operations.append(Free(self._keys.pop(allocation.address)))

    def quieted(self) -> None:
        """Hear that what was put off is done."""
        self._operations.append(Quiet())

    def changed(self, module: LoadedModule) -> None:
        """Hear of a module that came, settled or went: its own steps become one operation."""
        if module.state is State.COMING:
            regions = module.regions.values()
            self._modules[module.name] = {self._keys[region.address] for region in regions}
        self._forget(self._modules[module.name])
        if module.state is State.COMING:
            numbers = measured(module.view, module.layout)
            numbers = attrs.evolve(numbers, name=module.name)
            self._operations.append(Load(numbers, settled=False))
        elif module.state is State.LIVE:
            last = self._operations[-1]
            if isinstance(last, Load) and last.module.name == module.name:
                self._operations[-1] = attrs.evolve(last, settled=True)
            else:
                self._operations.append(Settle(module.name))
        else:
            del self._modules[module.name]
            self._operations.append(Unload(module.name))

    def _forget(self, keys: set[str]) -> None:
        """Drop the latest operations as far as they are those of these allocations."""
        while self._operations:
            last = self._operations[-1]
            if not isinstance(last, Alloc | Seal | Free) or last.key not in keys:
                return
            self._operations.pop()
