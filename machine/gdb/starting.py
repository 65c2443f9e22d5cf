# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a debugger gets the guest: at the first call, at a function, or at a module's init."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from machine.control import Control, Stopped, Why
from machine.gdb.subject import Subject

Begins: TypeAlias = Callable[[Stopped, Control], bool]


def first_call(stopped: Stopped, _control: Control) -> bool:
    """Return whether a call from outside begins."""
    return stopped.why is Why.ENTRY and stopped.depth == 1


def at_function(address: int) -> Begins:
    """Return what says whether a call of a function begins."""

    def begins(stopped: Stopped, _control: Control) -> bool:
        return stopped.why is Why.ENTRY and stopped.pc == address

    return begins


class AtInit:
    """Says whether a module's init begins.

    A kernel that loads modules itself calls it in the middle of its loader, and where it lies is
    known when that has placed it. So the guest is stopped before, where the kernel is about to
    run it.

    Parameters
    ----------
    subject
        The machine.
    module
        The module's name.
    """

    def __init__(self, subject: Subject, module: str) -> None:
        self._subject = subject
        self._module = module

    def __call__(self, stopped: Stopped, control: Control) -> bool:
        """Return whether it is about to execute its first instruction."""
        gate, init = self._subject.gate, self._subject.init_of(self._module)
        if init is not None and stopped.pc == init:
            for address in (gate, init):
                if address is not None:
                    control.unbreak(address)
            return True
        if gate is not None:
            control.break_at(gate if init is None else init)
        return False
