# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done about a child that works for a guest: it is given time, and ended."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from contextlib import suppress
from typing import TextIO

from emulator.process import LAST_WORDS, BlackBox, overdue

# A guest stops soon after its time is over; where the emulator does not let it, this ends it.
GRACE = 1.0
TICK = 0.2  # seconds between two looks at a worker's time


class Watch:
    """Ends a child whose guest does not stop when its time is over."""

    def __init__(self, child: int, shared: BlackBox) -> None:
        self.child = child
        self.shared = shared
        self._asked = math.inf

    @property
    def late(self) -> bool:
        """Whether the child was ended, or asked to end."""
        return self._asked < math.inf

    def look(self) -> None:
        """End the child where that is due: asked for last words first, and then at once."""
        now = time.monotonic()
        if not self.late and overdue(self.shared, GRACE):
            self._asked = now
            send(self.child, signal.SIGABRT)
        elif now > self._asked + LAST_WORDS + GRACE:
            send(self.child, signal.SIGKILL)


def send(child: int, number: int) -> None:
    """Send a signal to a child, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(child, number)


def flush() -> None:
    """Write what waits to be written, before there are two processes that would."""
    for file in (sys.stdout, sys.stderr):
        if file is not None:
            file.flush()


def keep_apart(shared: BlackBox) -> None:
    """Let what C code prints go to the black box, and what we say go where it went before."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not None and _is(old, descriptor):
            ours = open(os.dup(descriptor), "w", encoding=old.encoding, errors=old.errors)  # noqa: SIM115, PTH123 -- for good
            ours.reconfigure(line_buffering=old.line_buffering, write_through=old.write_through)
            setattr(sys, name, ours)
            setattr(sys, f"__{name}__", ours)  # where the size of a terminal is asked for
        os.dup2(shared.descriptors[1], descriptor)


def _is(file: TextIO, descriptor: int) -> bool:
    """Return whether a file is the one of a descriptor, and not what a test puts there."""
    try:
        return file.fileno() == descriptor
    except (OSError, ValueError):
        return False
