# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted machines as cores: `machine.core(path)`."""

from __future__ import annotations

from pathlib import Path

from emulator.faults import BadCall
from kernels.booted.kernel import BootedKernel
from loader import vmcore
from loader.vmcore import VMCOREINFO, Note, prstatus
from machine.cores import CoreFile, Progress, extents_of, write

_FIRST = 1  # the process that a booted kernel stands in
_NO_INFO = (
    "VMCOREINFO: the kernel keeps none in its memory (built without CONFIG_VMCORE_INFO, or"
    " CONFIG_CRASH_CORE before 6.9): drgn and crash need it, gdb does not"
)


def save_core(path: str | Path, kernel: BootedKernel, on_progress: Progress | None) -> CoreFile:
    """Write a core of a booted kernel; see `BootedMachine.core`."""
    board, arch = kernel.board, kernel.arch
    if kernel.guest.depth:
        raise BadCall("core", "a call is under way: a handler cannot")
    if board.broken:
        raise BadCall("core", f"{board.broken}; restore a snapshot")
    registers = kernel.guest.standing(arch.runs.gregset)
    notes, lacks = [prstatus(registers, _FIRST, arch.link.dialect.order)], []
    info = vmcore.info_in(board.ram.view, kernel.release)
    if info is None:
        lacks.append(_NO_INFO)
    else:
        notes.append(Note(VMCOREINFO, 0, info))
    ram = board.ram
    extents = list(extents_of(board.mapped(), ram.start, ram.size))
    return write(path, arch, notes, extents, ram.size, ram.pieces(), lacks, on_progress)
