# SPDX-License-Identifier: GPL-2.0-or-later
"""Control of a machine whose kernel is booted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from emulator.faults import BadCall, Fault
from emulator.governor import Governor
from emulator.stops import Event, Rewound
from kernels.booted.kernel import BootedKernel
from machine.control import Control, Handler
from machine.controlling import Controlling, Looked
from machine.past import Past
from machine.watching import Touch, Watch


class Controllable(Looked, Protocol):
    """A machine, as far as it is put under control."""

    kernel: BootedKernel

    def read(self, address: int, size: int) -> bytes:
        """Return memory."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Store in memory."""
        ...

    def mark(self) -> Any:
        """Return the machine as it is now."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Become what it was."""
        ...


@contextmanager
def controlled(machine: Controllable, handler: Handler) -> Iterator[Control]:
    """Put a machine under control for a while; BadCall in the middle of a call."""
    guest, board = machine.kernel.guest, machine.kernel.board
    if board.governor is not None:
        raise BadCall("control", "somebody controls this machine already")
    if guest.depth:
        raise BadCall("control", "a call is under way", "begin before it")
    body = _Body(machine)
    control = Controlling([board], body, guest.limits, handler)
    governor = control.governor
    past = body.past = Past(governor, body.take, body.restore, anew=True, name=machine.symbolize)

    def conduct(address: int, call: Callable[[], int]) -> int:
        """Make a call from outside, and make it anew where it is to be gone back in."""
        body.function = address
        start = machine.mark()
        governor.begin()
        while True:
            try:
                return call()
            except Rewound:
                machine.restore(start)
                governor.restart()

    board.watching.hold()
    control.open(past)
    guest.conduct, guest.describe = conduct, machine.kernel.described
    try:
        yield control
    finally:
        control.close()
        guest.conduct = guest.describe = None
        board.watching.let_go()


class _Body:
    """The machine, for its control."""

    function = 0
    past: Past

    def __init__(self, machine: Controllable) -> None:
        self._machine = machine

    def current(self) -> Any:
        """Return the computer."""
        return self._machine.kernel.board

    def read(self, address: int, size: int) -> bytes:
        """Return memory, whatever its protection."""
        return self._machine.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store in memory, whatever its protection."""
        self._machine.write(address, data)

    def watch(self, address: int, size: int, kind: str, told: Callable[[Touch], object]) -> Watch:
        """Watch memory."""
        return self._machine.watch(address, size, kind, told, limit=0)

    def called(self) -> tuple[int, int]:
        """Return the function that was called from outside, and how deep calls nest."""
        return self.function, self._machine.kernel.guest.depth

    def settle(self, seat: Any, /) -> None:
        """Remember where the guest has stopped."""
        self.past.settle(seat)

    def take(self, _seat: Any, /) -> Any:
        """Return all of the machine."""
        return self._machine.mark()

    def restore(self, _seat: Any, taken: Any, /) -> None:
        """Let it be that again."""
        self._machine.restore(taken)

    def origin(self, event: Event, governor: Governor, /) -> int | None:
        """Return where the last exception was raised that is where the kernel says the fault is."""
        fault = event.fault
        if not isinstance(fault, Fault) or fault.kind.is_limit:
            return None
        where = fault.where.partition("/")[0]  # sizes are the kernel's, or the file's
        for count, pc in reversed(governor.exceptions):
            if (self._machine.symbolize(pc) or "").partition("/")[0] == where:
                return count
        return None

    def refused(self, _address: int, /) -> str:
        """Return that there can be a breakpoint anywhere."""
        return ""
