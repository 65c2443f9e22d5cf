# SPDX-License-Identifier: GPL-2.0-or-later
"""What a debugger is shown of a machine whose kernel is modelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from allocator.types import ADDRESS_MASK, Interval
from archs.versions import MODELLED
from loader.loaded import LoadedModule
from machine.gdb.frames import outermost
from machine.gdb.subject import CALLER, Present, Subject
from machine.gdb.symbolfile import Area, symbol_file
from machine.machine import ModelledMachine


class ModelledSubject(Subject):
    """A machine whose kernel is modelled.

    Parameters
    ----------
    machine
        The machine.
    """

    machine: ModelledMachine

    def __init__(self, machine: ModelledMachine) -> None:
        super().__init__(machine)

    @property
    def title(self) -> str:
        """Name of the file of the kernel's symbols."""
        return "/modelled-kernel"

    def kernel_symbol(self, name: str) -> int | None:
        """Return the address of a symbol of the kernel; None where it has none such."""
        return self.machine.kernel.symbols.get(name)

    @property
    def cpus(self) -> int:
        """How many CPUs there are."""
        return len(self.machine.cpus)

    def modules(self) -> Iterator[Present]:
        """Yield the modules in memory."""
        for loaded in self.machine.loader.modules.values():
            version = MODELLED if loaded.build is None else loaded.build.version.value
            yield Present(loaded.name, loaded.view, _placed(loaded), loaded.state, version)

    def symbols(self) -> bytes:
        """Return the kernel's symbols that have an address by now: stubs of functions, variables."""
        kernel = self.machine.kernel
        image, stubs = self.machine.memory.address_map.image, kernel.stubs
        areas = (
            Area(".text", Interval(image.start, stubs.end), code=True),
            Area(".data", Interval(stubs.end, image.end), code=False),
        )
        names = dict(kernel.symbols)
        (at,) = self.outermost
        names[CALLER] = at
        addresses = np.fromiter((a & ADDRESS_MASK for a in names.values()), np.uint64, len(names))
        frames = outermost(self.arch.debugs, [(at, 2)])
        return symbol_file(
            self.arch,
            list(names),
            addresses,
            areas,
            flags=self.flags(),
            more={".debug_frame": frames},
        )

    @property
    def outermost(self) -> Sequence[int]:
        """Where calls from outside return to."""
        return ((self.machine.kernel.return_address & ADDRESS_MASK) - 1,)

    def of_cpu(self, cpu: int, name: str) -> int | None:
        """Return a register of a CPU that does not run now; None: it is not told."""
        found = self.machine.cpus[cpu]
        try:
            return found.read(name)
        except AttributeError:  # one that only an instruction names
            return None

    def without_tasks(self) -> str:
        """Return why tasks are not shown."""
        return "the modelled kernel is Python: its tasks have no stacks of their own to show"


def _placed(loaded: LoadedModule) -> dict[int, int]:
    """Return where the sections of a module are that are in memory."""
    return {
        index: section.address
        for index, section in loaded.sections.items()
        if section.type is None or not section.type.is_init or section.type in loaded.regions
    }
