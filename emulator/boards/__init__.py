# SPDX-License-Identifier: GPL-2.0-or-later
"""Computers that whole kernels run on: Unicorn with its own MMU, and what it leaves out."""

from __future__ import annotations

from importlib import import_module

from archs import Arch
from emulator import process
from emulator.boards.board import Board


def board_of(arch: Arch, memory: int, cpu: str = "", start: int | None = None) -> Board:
    """Return a computer of an architecture, with so many bytes of RAM.

    Parameters
    ----------
    cpu
        The CPU's model, one of `arch.boots.models`; "" is the first.
    start
        Physical address of the RAM, of a computer without hardware that only has what was in the
        memory of another; None: as the architecture has it, with its hardware.

    Raises
    ------
    LevelMissing, NoSuchName
        Of the architecture there is none, or not with such a CPU.
    """
    process.admit(memory, 2)  # and one that is looked into beforehand
    found: type[Board] = import_module(f"emulator.boards.{arch.boots.board}").BOARD
    return found(arch, memory, cpu, start)
