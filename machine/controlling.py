# SPDX-License-Identifier: GPL-2.0-or-later
"""What a control is made of, whatever kernel answers: engines that ask a governor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from archs import Arch
from emulator.budget import Limits
from emulator.faults import BadCall
from emulator.governor import Governor
from emulator.registerfile import RegisterFile
from emulator.stops import Event, Past, Resume
from machine.control import Control, Handler, Register, Stopped
from machine.watching import Touch, Watch

_SLOWER = 10  # times that a guest is under control
_LONGEST = 16  # bytes of an instruction, and no less


class Looked(Protocol):
    """A machine of any kind, as far as control looks on."""

    def watch(
        self,
        what: int,
        size: int | None = ...,
        kinds: str = ...,
        callback: Callable[[Touch], object] | None = ...,
        *,
        limit: int = ...,
    ) -> Watch:
        """Watch memory."""
        ...

    def symbolize(self, address: int) -> str | None:
        """Return what lies at an address."""
        ...


class Engine(Protocol):
    """What executes: a CPU of the modelled kernel's, or a computer."""

    arch: Arch
    governor: Governor | None

    @property
    def seat(self) -> int:
        """Number of the CPU."""
        ...

    @property
    def file(self) -> RegisterFile:
        """The registers by name."""
        ...

    @property
    def now(self) -> int:
        """Instructions before the one under way."""
        ...

    def cut(self) -> None:
        """Let the run under way end before its next instruction."""
        ...

    def stop_at(self, address: int) -> None:
        """Ask the governor at an instruction."""
        ...

    def stop_nowhere(self, address: int | None = None) -> None:
        """Do so no longer."""
        ...


class Body(Protocol):
    """What a machine gives to a control."""

    def current(self) -> Engine:
        """Return the engine that runs, or would."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Return memory, whatever its protection; BadCall."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Store in memory, whatever its protection; BadCall."""
        ...

    def watch(self, address: int, size: int, kind: str, told: Callable[[Touch], object]) -> Watch:
        """Watch memory."""
        ...

    def called(self) -> tuple[int, int]:
        """Return the function that was called from outside, and how deep calls nest."""
        ...

    def settle(self, seat: Any, /) -> None:
        """Take note of where the guest has stopped, before anybody changes anything."""
        ...

    def origin(self, event: Event, governor: Governor) -> int | None:
        """Return the place of the instruction that a fault comes from; None: not known."""
        ...

    def refused(self, address: int) -> str:
        """Return why there can be no breakpoint at an address; empty: there can."""
        ...


class Controlling(Control):
    """The control of one machine.

    Parameters
    ----------
    engines
        What executes.
    body
        The machine.
    limits
        What its calls may take.
    handler
        Called at each stop.
    """

    def __init__(
        self, engines: Sequence[Any], body: Body, limits: Limits, handler: Handler
    ) -> None:
        self._engines: tuple[Engine, ...] = tuple(engines)
        self._body, self._handler = body, handler
        repeated = self._engines[0].arch.runs.registers.repeated
        self.governor = Governor(self._stopped, repeated, limits)
        self.governor.mark = self._mark
        self._limits, self._seconds = limits, limits.seconds
        self._counter = self._engines[0].arch.runs.calling.program_counter
        file = self._engines[0].file
        self._registers = MappingProxyType(
            {name: Register(name, file.widths[name], group) for name, group in file.groups.items()}
        )
        self._watches: dict[tuple[int, int, str], Watch] = {}

    def open(self, past: Past | None) -> None:
        """Let it count from now on, which takes ten times as long."""
        self.governor.past = past
        if self._seconds is not None:
            self._limits.seconds = _SLOWER * self._seconds
        for engine in self._engines:
            engine.governor = self.governor

    def close(self) -> None:
        """Let the guest run freely again."""
        self._limits.seconds = self._seconds
        for watch in self._watches.values():
            watch.stop()
        for engine in self._engines:
            engine.stop_nowhere()
            engine.governor = None

    def _stopped(self, event: Event) -> Resume:
        """Tell the handler of a stop."""
        self._body.settle(self._engine)
        function, depth = self._body.called()
        stopped = Stopped(
            why=event.why,
            pc=event.pc,
            function=function,
            depth=depth,
            count=event.count,
            cpu=self._engine.seat,
            accesses=event.accesses,
            fault=event.fault,
            result=event.result,
            origin=None if event.fault is None else self._body.origin(event, self.governor),
            reason=event.reason,
        )
        return self._handler(stopped, self)

    @property
    def _engine(self) -> Any:
        return self.governor.seat or self._body.current()

    # Breakpoints ----------------------------------------------------------------------------------

    @property
    def breakpoints(self) -> frozenset[int]:
        """The addresses at which the guest stops."""
        return frozenset(self.governor.breakpoints)

    def break_at(self, address: int) -> None:
        """Stop before the instruction at an address."""
        if address in self.governor.breakpoints:
            return
        try:
            code = self._body.read(address, _LONGEST)
        except BadCall:
            code = b""
        reason = self._body.refused(address)
        if reason:
            raise BadCall("break_at", reason)
        self.governor.set_breakpoint(address, code)
        self._mark(address)

    def _mark(self, address: int) -> None:
        for engine in self._engines:
            engine.stop_at(address)

    def unbreak(self, address: int) -> None:
        """Stop there no longer."""
        if self.governor.breakpoints.pop(address, None) is not None:
            for engine in self._engines:
                engine.stop_nowhere(address)

    def watch(self, address: int, size: int, kind: str = "w") -> None:
        """Stop after instructions that access memory."""
        key = address, size, "".join(sorted(kind))
        if key not in self._watches:
            self._watches[key] = self._body.watch(address, size, kind, self._touched)

    def unwatch(self, address: int, size: int, kind: str = "w") -> None:
        """Stop after them no longer."""
        watch = self._watches.pop((address, size, "".join(sorted(kind))), None)
        if watch is not None:
            watch.stop()

    def _touched(self, touch: Touch) -> None:
        engine, governor = self.governor.seat, self.governor
        if engine is not None and governor.level and not governor.blind:
            found: Any = engine
            if governor.touched(touch, found.now):
                found.cut()

    def interrupt(self) -> None:
        """Let the guest stop soon."""
        self.governor.asked = True

    @property
    def poll(self) -> Callable[[], bool] | None:
        """What is asked while the guest runs."""
        return self.governor.poll

    @poll.setter
    def poll(self, poll: Callable[[], bool] | None) -> None:
        self.governor.poll = poll

    @property
    def aim(self) -> int:
        """Where to go back to."""
        return self.governor.aim

    @aim.setter
    def aim(self, count: int) -> None:
        self.governor.aim = count

    # Registers and memory -------------------------------------------------------------------------

    @property
    def registers(self) -> Mapping[str, Register]:
        """The registers that there are, by name."""
        return self._registers

    def get(self, name: str) -> int:
        """Return a register of the CPU that has stopped."""
        return int(self._engine.file.get(self._known(name)))

    def set(self, name: str, value: int) -> None:
        """Set a register."""
        known = self._known(name)
        try:
            self.governor.edited(partial(self._engine.file.set, known, value))
        except ValueError as error:
            raise BadCall(name, f"cannot be {value:#x}: {error}") from None

    def _known(self, name: str) -> str:
        known: str | None = self._engine.file.known(name.lower())
        if known is None:
            raise BadCall(name, f"{self._engines[0].arch.name} has no such register")
        return known

    @property
    def pc(self) -> int:
        """The next instruction."""
        return self.get(self._counter)

    @pc.setter
    def pc(self, address: int) -> None:
        self.set(self._counter, address)

    def read(self, address: int, size: int) -> bytes:
        """Return memory as the guest has it."""
        if size < 0:
            raise BadCall("read", f"{size} bytes")
        return self._body.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store in memory."""
        self.governor.edited(partial(self._body.write, address, bytes(data)))

    @property
    def cpus(self) -> int:
        """How many CPUs there are."""
        return len(self._engines)

    @property
    def history(self) -> str:
        """Why the guest cannot be gone back with; empty: it can."""
        return self.governor.history
