# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine whose kernel is booted, under checks: they begin, end, and go back with it."""

from __future__ import annotations

from emulator.faults import BadCall
from kernels.guarding import PoolState
from machine.booted.interposing import Interposed
from machine.booted.sanitizer import BootedSanitizer
from machine.booted.snapshots import Snapshot
from machine.sanitizing import chosen


class Sanitizable(Interposed):
    """A machine that can be put under checks.

    `sanitizer` has those that it is under; None: there are none.
    """

    sanitizer: BootedSanitizer | None

    def sanitize(self, *checks: str) -> BootedSanitizer:
        """Put the machine under checks until the result's `stop`, or as a context manager.

        Parameters
        ----------
        checks
            Names of `machine.sanitizing.CHECKS`; all where none is given. Others than these are
            switched off. They last over snapshots made meanwhile, and end where the machine goes
            back to before they began.

        Raises
        ------
        BadCall
            There is no such check, a call is under way, or the kernel has no memory left.
        """
        names = chosen(checks)
        if self.kernel.guest.depth:
            raise BadCall("sanitize", "a call is under way", "begin before the call")
        if self.sanitizer is not None:
            self.sanitizer.stop()
        made = BootedSanitizer(
            names,
            self.kernel,
            self.interposing.functions,
            lambda: self.modules,
            self.symbolize,
            self.disassemble,
        )
        made.at_end(lambda: setattr(self, "sanitizer", None))
        self.sanitizer = made
        return made

    def _guarded(self) -> tuple[BootedSanitizer | None, PoolState | None]:
        """Return the checks and what they guard, for a snapshot."""
        checks = self.sanitizer
        return checks, None if checks is None else checks.state()

    def _checks_end(self, snapshot: Snapshot) -> None:
        """End the checks where the memory of what they guard was not there then."""
        if self.sanitizer is not None and self.sanitizer is not snapshot.checks:
            self.sanitizer.stop()

    def _checks_back(self, snapshot: Snapshot) -> None:
        """Let what is guarded be what was then."""
        if self.sanitizer is not None:
            self.sanitizer.set_state(snapshot.guarded)
