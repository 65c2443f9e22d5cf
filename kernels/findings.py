# SPDX-License-Identifier: GPL-2.0-or-later
"""What checks of a machine find, whatever kernel it has: a kind, a place, an object."""

from __future__ import annotations

import enum
from collections.abc import Callable

import attrs

from emulator.faults import Fault, FaultKind

# Names of places, innermost first, when they are asked for.
Site = Callable[[], tuple[str, ...]]


class FindingKind(enum.Enum):
    """What is wrong."""

    OUT_OF_BOUNDS = "out-of-bounds access"
    USE_AFTER_FREE = "use after free"
    DOUBLE_FREE = "double free"
    BAD_FREE = "invalid free"
    OVERWRITTEN = "overwritten red zone"
    UNINITIALISED = "read of uninitialised memory"
    LEAK = "leak"
    LOCK = "lock imbalance"
    WX = "writable and executable memory"

    @property
    def fault(self) -> FaultKind:
        """What the guest stops with, where it does."""
        return _FAULTS.get(self, FaultKind.CHECK)


_FAULTS = {
    FindingKind.OUT_OF_BOUNDS: FaultKind.OUT_OF_BOUNDS,
    FindingKind.USE_AFTER_FREE: FaultKind.USE_AFTER_FREE,
    FindingKind.DOUBLE_FREE: FaultKind.DOUBLE_FREE,
    FindingKind.OVERWRITTEN: FaultKind.OUT_OF_BOUNDS,
}


@attrs.frozen
class HeapObject:
    """An object of the heap that something was found about.

    Parameters
    ----------
    address, size
        Where it is, and the bytes that were asked for.
    allocated, freed
        The places that did it, innermost first; empty: nobody did.
    """

    address: int
    size: int
    allocated: tuple[str, ...]
    freed: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"the {self.size}-byte object at {self.address:#x}"
        if self.allocated:
            text += f", allocated at {self.allocated[0]}"
        return f"{text}, freed at {self.freed[0]}" if self.freed else text


@attrs.frozen(str=False)
class Finding:
    """Something that a check found.

    Parameters
    ----------
    kind
        What is wrong.
    where
        The place, `symbol+0xoff/0xsize [module]`; what was called, where only the call is known.
    reason
        What was done, in words.
    address
        The address that it was done to; None: there is none.
    object
        The object that it is about; None: there is none.
    backtrace
        Who called the place, innermost first.
    fault
        What the guest stopped with; None: it went on.
    """

    kind: FindingKind
    where: str
    reason: str
    address: int | None = None
    object: HeapObject | None = None
    backtrace: tuple[str, ...] = ()
    fault: Fault | None = attrs.field(default=None, eq=False, repr=False)

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.reason}" + (f", at {self.where}" if self.where else "")
