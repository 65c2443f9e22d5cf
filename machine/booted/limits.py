# SPDX-License-Identifier: GPL-2.0-or-later
"""What calls of a booted kernel may take: as on the modelled one, by the same names."""

from __future__ import annotations

from contextlib import AbstractContextManager

from emulator.budget import DEFAULT, Budget
from kernels.booted.kernel import BootedKernel


class Limited:
    """A machine whose calls have limits."""

    kernel: BootedKernel

    def budget(
        self,
        *,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
    ) -> AbstractContextManager[Budget]:
        """Let everything meanwhile take from one budget, as if it were one call from outside.

        Each call from outside does so for itself (`load`, `call`, `sleep`, a system call), with
        all that happens in it: interrupts, other tasks, calls that handlers make. Where it is
        spent the call ends in a Fault, and the machine can only be restored.

        Parameters
        ----------
        instructions, seconds
            Limits; None: none. By default the machine's, or those of the budget around.
        """
        return self.kernel.guest.limits.whole(instructions, seconds)

    @property
    def instructions(self) -> int | None:
        """Most instructions of a call from outside that has no limit of its own; None: no limit."""
        return self.kernel.guest.limits.instructions

    @instructions.setter
    def instructions(self, most: int | None) -> None:
        self.kernel.guest.limits.instructions = most

    @property
    def seconds(self) -> float | None:
        """Most time of a call from outside that has no limit of its own; None: no limit."""
        return self.kernel.guest.limits.seconds

    @seconds.setter
    def seconds(self, most: float | None) -> None:
        self.kernel.guest.limits.seconds = most
