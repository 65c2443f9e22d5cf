# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted machines as cores: `machine.core(path)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emulator.faults import BadCall
from emulator.ram import Ram
from kernels.booted.dumps import Dumped
from kernels.booted.kernel import BootedKernel
from loader import vmcore
from loader.vmcore import CORE, VMCOREINFO, Note, prstatus
from machine.cores import PIECE, CoreFile, Kept, Progress, extents_of, write

_FIRST = 1  # the process that a booted kernel stands in
_NO_INFO = (
    "VMCOREINFO: the kernel keeps none in its memory (built without CONFIG_VMCORE_INFO, or"
    " CONFIG_CRASH_CORE before 6.9): drgn and crash need it, gdb does not"
)


def save_core(
    path: str | Path, kernel: BootedKernel, on_progress: Progress | None, dump: Dumped | None = None
) -> CoreFile:
    """Write a core of a booted kernel, or of one out of a dump; see `BootedMachine.core`."""
    board, arch, order = kernel.board, kernel.arch, kernel.arch.link.dialect.order
    if kernel.guest.depth:
        raise BadCall("core", "a call is under way: a handler cannot")
    if board.broken:
        raise BadCall("core", f"{board.broken}; restore a snapshot")
    ram, lacks = board.ram, []
    if dump is None:
        notes = [prstatus(kernel.guest.standing(arch.runs.gregset), _FIRST, order)]
        info = vmcore.info_in(ram.view, kernel.release)
        kept = Kept(((ram.start, ram.start + ram.size),), ram.pieces())
    else:  # its CPUs were where they were
        notes = [note for note in dump.core.notes if note.owner == CORE]
        info = dump.core.told(kernel.release)
        kept = Kept(dump.ranges, _pieces(ram, dump.ranges))
    if info is None:
        lacks.append(_NO_INFO)
    else:
        notes.append(Note(VMCOREINFO, 0, info))
    extents = list(extents_of(board.mapped(), kept))
    return write(path, arch, notes, extents, kept.size, kept.pieces, lacks, on_progress)


def _pieces(ram: Ram, ranges: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, bytes]]:
    """Yield the memory of a dump: offset behind what is before, whole pages."""
    before = 0
    for start, end in ranges:
        for at in range(start, end, PIECE):
            size = min(PIECE, end - at)
            yield before + at - start, ram.read(at, size)
        before += end - start


class Dumpable:
    """A machine that can be written as a core."""

    def core(
        self: Any, path: str | Path, *, on_progress: Callable[[int, int], object] | None = None
    ) -> CoreFile:
        """Write an ELF core of the machine, as the kernel's own /proc/vmcore would be one.

        Debuggers of kernels open it (gdb, drgn, crash). Equal machines give equal bytes; pages of
        zeros are holes of the file.

        Parameters
        ----------
        path
            Is replaced, if it is there.
        on_progress
            Called with the bytes that are done, and with how many there are.

        Raises
        ------
        BadCall
            A call is under way, or the machine can only go back.
        ExecmemError
            The file cannot be written.
        """
        return save_core(path, self.kernel, on_progress)
