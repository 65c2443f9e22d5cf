# SPDX-License-Identifier: GPL-2.0-or-later
"""What is assumed about modules, told once: a line each on stderr, and all in JSON documents.

A command may make several machines, and a machine may load a thousand modules of one kernel:
what is said of one is not said again of the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from execmem.streams import say

if TYPE_CHECKING:
    from loader.gate import Notice
    from machine.machine import ModelledMachine

_KEY = "execmem.notices"


def listen(machine: ModelledMachine) -> None:
    """Tell of what a machine notices from now on."""
    machine.loader.gate.on_notice = noticed


def texts() -> list[str]:
    """Return what was told in this run of a command, `WHAT: TEXT`, in order."""
    return list(_told())


def _told() -> dict[str, str]:
    """Return what was told: whole line -> what is the same for every module."""
    context = click.get_current_context(silent=True)
    found: dict[str, str] = {} if context is None else context.meta.setdefault(_KEY, {})
    return found


def noticed(notice: Notice) -> None:
    """Tell of what is noticed of a module, once where the same is so of several."""
    told, line = _told(), str(notice)
    if notice.text not in told.values():
        show(line)
    told[line] = notice.text


def assume(line: str) -> None:
    """Tell of what a command itself assumes, `WHAT: TEXT`, once."""
    told = _told()
    if line not in told:
        told[line] = line
        show(line)


def show(line: str) -> None:
    """Write a notice to stderr."""
    say(f"execmem: notice: {line}", err=True)
