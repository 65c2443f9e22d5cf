# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel needs of whoever runs guest code for it."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from emulator.faults import FaultKind


class GuestRunner(Protocol):
    """Runs guest functions, and knows the modules that they are in."""

    @property
    def depth(self) -> int:
        """How many guest functions are under way on this CPU, one called from the other."""
        ...

    @property
    def entry(self) -> int:
        """Where the innermost guest function on this CPU began; 0 between calls."""
        ...

    def call(self, address: int, *args: int) -> int:
        """Call a guest function from a kernel function that the guest called."""
        ...

    def aside(self, stack: int, address: int, slots: list[int], context: Any) -> int:
        """Run a guest function on a stack of its own, or go on with the one of a context.

        `emulator.calls.Parked` passes: the function waits, and is gone on with later.
        """
        ...

    def symbolize(self, address: int) -> str | None:
        """Return `name+0xoff/0xsize [module]` of a function, a kernel symbol's name, or None."""
        ...

    def locate(self, address: int) -> tuple[str, str]:
        """Return the module that `address` lies in and the symbol that it is; empty for none."""
        ...

    def request_module(self, name: str) -> bool:
        """Load the module that the guest asks for; False where that fails."""
        ...

    def refuse_access(self, kind: FaultKind, reason: str, address: int) -> NoReturn:
        """Stop the guest at an access that the sanitizer does not allow."""
        ...
