# SPDX-License-Identifier: GPL-2.0-or-later
"""A jump from one function of the sample modules to another, for lessons that change it."""

from __future__ import annotations

from allocator.types import PAGE_SIZE, MemType
from archs import Arch
from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.modules import root

ARGUMENTS = 12, 18
FROM, TO = ("mathlib", "mathlib_gcd"), ("mathuser", "mathuser_lcm")
PAGES = 3


class Jump:
    """Text of its own with one jump in it, in a machine of two CPUs."""

    def __init__(self, arch: Arch) -> None:
        assert arch.live_patch is not None
        self.machine = machine = ModelledMachine(arch, root=root(arch.name), cpus=2)
        leads = [machine.load(module).symbols[function] for module, function in (FROM, TO)]
        pending = machine.execmem.alloc(MemType.TEXT, PAGES * PAGE_SIZE, align=PAGE_SIZE)
        self.start, step = pending.address, arch.loads.function_alignment
        # Where a half-written jump would lead to neither, if there is such a place.
        for offset in reversed(range(0, PAGE_SIZE, step)):
            self.address = self.start + offset
            jumps = [arch.live_patch.jump(self.address, lead) or b"" for lead in leads]
            self.old, self.new = jumps
            if self.halves():
                break
        pending.write(offset, self.old)
        pending.finish()

    def halves(self) -> list[bytes]:
        """Return what a CPU can meet between two stores that is neither jump."""
        poke = self.machine.arch.text_poke
        cuts = range(poke.granule if poke else 1, len(self.new), poke.granule if poke else 1)
        mixed = [self.new[:cut] + self.old[cut:] for cut in cuts]
        return [one for one in mixed if one not in (self.old, self.new)]

    def arrive(self) -> str:
        """Let CPU 1 call the jump; return what it gets."""
        try:
            return str(self.machine.call(self.address, *ARGUMENTS, cpu=1, instructions=10_000))
        except Fault as fault:
            return fault.kind.value
