# SPDX-License-Identifier: GPL-2.0-or-later
"""What was decided while a module was loaded."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from allocator import Allocation
from allocator.markup import table
from allocator.types import MemType, size_text
from emulator.faults import Fault
from kernels.log import LogLine
from loader.gate import Notice
from loader.loaded import LoadedSection


@attrs.frozen
class ModuleReport:
    """Everything that was decided while a module was loaded.

    Parameters
    ----------
    regions
        Memory type -> allocation, init types included, as they were before init ran.
    relocations
        Type name -> count, most frequent first.
    plt_slots, plt_reserved
        PLT entries used and reserved, core and init together.
    unknown
        Kernel symbols that nobody implements.
    init_result
        What init returned; None where the module has none or it was not run to its end.
    init_fault
        Where init stopped because this kernel does not have what it called.
    log
        What the kernel log got while the module was loaded.
    taints
        How the module taints the kernel: letters, as /sys/module/NAME/taint has them.
    notices
        What is assumed about the module.
    """

    name: str
    arch: str
    design: str
    regions: Mapping[MemType, Allocation]
    sections: Mapping[int, LoadedSection]
    relocations: Mapping[str, int]
    plt_slots: int
    plt_reserved: int
    unknown: tuple[str, ...]
    init_result: int | None
    init_fault: Fault | None
    log: tuple[LogLine, ...]
    taints: str = ""
    notices: tuple[Notice, ...] = ()

    def _repr_html_(self) -> str:
        rows = [
            (kind.name, f"{r.address:#x}", size_text(r.size), str(kind.final_prot))
            for kind, r in self.regions.items()
        ]
        caption = f"{self.name} ({self.arch}, {self.design}): {sum(self.relocations.values())}"
        caption += f" relocations, {self.plt_slots} of {self.plt_reserved} PLT entries"
        return table(("region", "address", "size", "protection"), rows, caption)
