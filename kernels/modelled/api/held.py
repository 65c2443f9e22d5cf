# SPDX-License-Identifier: GPL-2.0-or-later
"""Who holds what is held, so that whoever waits for it in vain can be told.

A lock is a word in guest memory and says at most which task has it. Here is kept where it was
taken; and where what took it has stopped since, why. What was taken by instructions of the
module's own (arm64's spinlocks) is not known.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from emulator.faults import Stopped
from kernels.modelled.api.common import state
from kernels.modelled.kernel import Kernel


@attrs.define
class _Holder:
    """Where something was taken, by which task, after how many; what stopped the holder since."""

    address: int
    task: int
    serial: int
    place: str = ""
    cause: Stopped | None = None


@attrs.define
class _Held:
    """What is held: address -> holder."""

    # Memory keeps what a load that failed has left in it, locks among it.
    lasting: ClassVar[bool] = True
    holders: dict[int, _Holder] = attrs.field(factory=dict)
    serial: int = 0


def take(k: Kernel, what: int) -> None:
    """Remember that what executes now holds the lock at an address."""
    held = state(k, _Held)
    held.serial += 1
    held.holders[what] = _Holder(k.return_to(), k.current, held.serial)


def give(k: Kernel, what: int) -> None:
    """Forget who held a lock."""
    state(k, _Held).holders.pop(what, None)


def taken(k: Kernel) -> int:
    """Return how many things were taken by now, for `left`."""
    return state(k, _Held).serial


def left(k: Kernel, since: int, cause: Stopped, task: int = 0) -> None:
    """Say what stopped the holders of all that was taken after `since` (by a task) and still is."""
    for holder in state(k, _Held).holders.values():
        if holder.serial > since and holder.cause is None and task in (0, holder.task):
            # Now: the module may go.
            holder.place, holder.cause = _place(k, holder), cause


def still(k: Kernel, since: int) -> list[tuple[int, str]]:
    """Return what was taken after `since` and is held: address, and where it was taken."""
    holders = state(k, _Held).holders.items()
    return [(at, _place(k, each)) for at, each in holders if each.serial > since]


def holder(k: Kernel, what: int) -> tuple[str, Stopped | None]:
    """Return where a lock was taken, empty where nobody knows, and what stopped its holder."""
    found = state(k, _Held).holders.get(what)
    return ("", None) if found is None else (_place(k, found), found.cause)


def _place(k: Kernel, holder: _Holder) -> str:
    return holder.place or k.symbolize(holder.address) or f"{holder.address:#x}"
